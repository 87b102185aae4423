// What a client may send to a TLS listener, without a socket: a server's session gets the fuzzer's bytes as if they had
// come from the wire, either from the start (ClientHello with its SNI, ALPN and all other extensions) or as what follows
// a client's true flights. Nothing may crash, leak, hang or leave output behind for another connection.
//
// The first byte of the input says from where on it replaces the true client (bit 0), how the bytes are cut into
// receives (bits 1 to 4), and the client's version (bit 5).

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/tls/core_state.hpp"
#include "perf/servers/self_signed.hpp"

namespace {

using namespace percore::tls;

percore::tls_options make_options() {
  const self_signed::pem_pair pair = self_signed::make(self_signed::key_type::ecdsa_p256);
  percore::tls_options options;
  for (const char* name : {"example.org", "*.example.org"}) {
    options.certificates.emplace_back();
    options.certificates.back().chain_pem = pair.certificate;
    options.certificates.back().key_pem = pair.key;
    options.certificates.back().names = {name};
  }
  options.alpn = {"h2", "http/1.1"};
  return options;
}

struct state {
  std::shared_ptr<shared_context> shared = std::make_shared<shared_context>(make_options(), percore::tls_role::server);
  core_state core;
  ssl_ctx_ptr client_context{SSL_CTX_new(TLS_client_method())};
};

// One that takes every step that a true client takes.
class client {
 public:
  client(SSL_CTX* context, bool old_version) : ssl_(SSL_new(context)), in_(BIO_new(BIO_s_mem())), out_(BIO_new(BIO_s_mem())) {
    SSL_set_bio(ssl_.get(), in_, out_);
    SSL_set_connect_state(ssl_.get());
    if (old_version) SSL_set_max_proto_version(ssl_.get(), TLS1_2_VERSION);
    SSL_set_tlsext_host_name(ssl_.get(), "www.example.org");
  }
  std::vector<std::byte> step(std::span<const std::byte> received) {
    if (!received.empty()) BIO_write(in_, received.data(), static_cast<int>(received.size()));
    SSL_do_handshake(ssl_.get());
    std::vector<std::byte> flight(16 * 1024);
    const int size = BIO_read(out_, flight.data(), static_cast<int>(flight.size()));
    flight.resize(size > 0 ? static_cast<std::size_t>(size) : 0);
    return flight;
  }

 private:
  ssl_ptr ssl_;
  BIO* in_;
  BIO* out_;
};

void give(core_state& core, session& to, std::span<const std::byte> bytes) {
  core.wire.use(to);
  const auto room = core.wire.room();
  std::copy(bytes.begin(), bytes.end(), room.begin());
  core.wire.received(bytes.size());
}

std::vector<std::byte> take_output(core_state& core) {
  const auto output = core.wire.output();
  std::vector<std::byte> result(output.begin(), output.end());
  core.wire.output_taken();
  return result;
}

// As a slot does: the handshake, then reads until nothing is left. False: over.
bool work(core_state& core, session& server) {
  if (!server.established()) {
    const status result = server.handshake();
    if (result == status::want_input) return true;
    if (result != status::done) return false;
  }
  std::vector<std::byte> target(1000);
  do {
    std::size_t done = 0;
    const status result = server.read(target, done);
    if (result != status::done && result != status::want_input) return false;
    if (done > target.size()) std::abort();
  } while (server.pending());
  (void)core;
  return true;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static state fixture;
  if (size == 0) return 0;
  core_state& core = fixture.core;
  session* server = core.open(fixture.shared, 1);
  if (server == nullptr) std::abort();
  const std::uint8_t how = data[0];
  std::span<const std::byte> input(reinterpret_cast<const std::byte*>(data + 1), size - 1);

  bool alive = true;
  if (how & 1) {
    client peer(fixture.client_context.get(), (how & 32) != 0);
    std::vector<std::byte> answer;
    for (int flight = 0; flight < 1 + (how >> 6) && alive; ++flight) {
      give(core, *server, peer.step(answer));
      alive = work(core, *server);
      answer = take_output(core);
    }
  }
  const std::size_t piece = std::size_t{1} << ((how >> 1) & 15);
  while (alive && !input.empty()) {
    const std::size_t part = std::min({piece, input.size(), io::input_bytes});
    give(core, *server, input.first(part));
    input = input.subspan(part);
    alive = work(core, *server);
    (void)take_output(core);
  }
  server->input_ended();
  server->close_notify();
  (void)take_output(core);
  core.close(server);
  return 0;
}
