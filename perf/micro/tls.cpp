// TLS without a socket: a server's session of the engine and a client's plain OpenSSL session exchange their flights in
// memory. The client's share is in the figure; the same client serves all variants.

#include <benchmark/benchmark.h>

#include <memory>
#include <string>
#include <vector>

#include "engine/tls/core_state.hpp"
#include "perf/servers/self_signed.hpp"

namespace {

using percore::tls::core_state;
using percore::tls::session;
using percore::tls::shared_context;
using percore::tls::status;

std::shared_ptr<shared_context> make_context(self_signed::key_type type) {
  const self_signed::pem_pair pair = self_signed::make(type);
  percore::tls_options options;
  options.certificates.emplace_back();
  options.certificates.back().chain_pem = pair.certificate;
  options.certificates.back().key_pem = pair.key;
  return std::make_shared<shared_context>(options, percore::tls_role::server);
}

struct client {
  explicit client(SSL_CTX* context) : ssl(SSL_new(context)), in(BIO_new(BIO_s_mem())), out(BIO_new(BIO_s_mem())) {
    SSL_set_bio(ssl.get(), in, out);
    SSL_set_connect_state(ssl.get());
  }
  percore::tls::ssl_ptr ssl;
  BIO* in;
  BIO* out;
};

// What the client has for the server.
bool carry(client& from, core_state& core, session& to) {
  core.wire.use(to);
  const auto room = core.wire.room();
  const int size = BIO_read(from.out, room.data(), static_cast<int>(room.size()));
  if (size <= 0) return false;
  core.wire.received(static_cast<std::size_t>(size));
  return true;
}

void carry(core_state& core, client& to) {
  const auto output = core.wire.output();
  if (!output.empty()) BIO_write(to.in, output.data(), static_cast<int>(output.size()));
  core.wire.output_taken();
}

SSL_SESSION* last_session = nullptr;

int keep_session(SSL*, SSL_SESSION* made) {
  SSL_SESSION_free(last_session);
  last_session = made;
  return 1;
}

percore::tls::ssl_ctx_ptr make_client_context(int version) {
  percore::tls::ssl_ctx_ptr made(SSL_CTX_new(TLS_client_method()));
  SSL_CTX_set_min_proto_version(made.get(), version);
  SSL_CTX_set_max_proto_version(made.get(), version);
  SSL_CTX_set_session_cache_mode(made.get(), SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
  SSL_CTX_sess_set_new_cb(made.get(), keep_session);
  return made;
}

bool shake_hands(core_state& core, session& server, client& peer) {
  bool client_done = false;
  while (!client_done || !server.established()) {
    client_done = SSL_do_handshake(peer.ssl.get()) == 1;
    if (carry(peer, core, server)) {
      const status result = server.handshake();
      if (result == status::failed) return false;
      carry(core, peer);
    } else if (client_done && !server.established()) {
      return false;
    }
  }
  char byte = 0;
  (void)SSL_read(peer.ssl.get(), &byte, 1);  // takes the ticket
  return true;
}

void handshake(benchmark::State& state, self_signed::key_type type, int version, bool resumed) {
  const auto shared = make_context(type);
  core_state core;
  const auto client_context = make_client_context(version);
  std::uint64_t resumptions = 0;
  for (auto _ : state) {
    client peer(client_context.get());
    if (resumed && last_session != nullptr) SSL_set_session(peer.ssl.get(), last_session);
    session* server = core.open(shared, 1);
    if (server == nullptr || !shake_hands(core, *server, peer)) {
      state.SkipWithError("the handshake failed");
      break;
    }
    // A client that vanishes without a goodbye would not offer its session again (SSL_free marks it).
    SSL_set_shutdown(peer.ssl.get(), SSL_SENT_SHUTDOWN | SSL_RECEIVED_SHUTDOWN);
    resumptions += server->info().resumed ? 1 : 0;
    core.close(server);
  }
  state.counters["resumed"] = benchmark::Counter(static_cast<double>(resumptions), benchmark::Counter::kAvgIterations);
  SSL_SESSION_free(last_session);
  last_session = nullptr;
}

// A request of 100 bytes and a response of 1 kB on a connection that is there.
void exchange(benchmark::State& state) {
  const auto shared = make_context(self_signed::key_type::ecdsa_p256);
  core_state core;
  const auto client_context = make_client_context(TLS1_3_VERSION);
  client peer(client_context.get());
  session* server = core.open(shared, 1);
  if (!shake_hands(core, *server, peer)) state.SkipWithError("the handshake failed");
  const std::string request(100, 'r');
  const std::vector<std::byte> response(1024);
  std::vector<std::byte> buffer(32 * 1024);
  for (auto _ : state) {
    SSL_write(peer.ssl.get(), request.data(), static_cast<int>(request.size()));
    carry(peer, core, *server);
    std::size_t done = 0;
    if (server->read(buffer, done) != status::done || !server->write(response, 0)) state.SkipWithError("failed");
    carry(core, peer);
    SSL_read(peer.ssl.get(), buffer.data(), static_cast<int>(buffer.size()));
  }
  core.close(server);
  SSL_SESSION_free(last_session);
  last_session = nullptr;
}

using self_signed::key_type;

BENCHMARK_CAPTURE(handshake, ecdsa_p256_tls13_full, key_type::ecdsa_p256, TLS1_3_VERSION, false);
BENCHMARK_CAPTURE(handshake, ecdsa_p256_tls13_resumed, key_type::ecdsa_p256, TLS1_3_VERSION, true);
BENCHMARK_CAPTURE(handshake, ecdsa_p256_tls12_full, key_type::ecdsa_p256, TLS1_2_VERSION, false);
BENCHMARK_CAPTURE(handshake, ecdsa_p256_tls12_resumed, key_type::ecdsa_p256, TLS1_2_VERSION, true);
BENCHMARK_CAPTURE(handshake, rsa2048_tls13_full, key_type::rsa2048, TLS1_3_VERSION, false);
BENCHMARK(exchange);

}  // namespace
