// Sessions of the engine, with its provider beneath them, against plain OpenSSL: what either side derives must be the
// same, or no record is understood.
#include <doctest/doctest.h>

#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <openssl/bio.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>

#include "engine/tls/core_state.hpp"
#include "tests/support/certificates.hpp"
#include "tests/support/tls_server.hpp"

namespace percore::test {
namespace {

using tls::core_state;
using tls::session;
using tls::status;

// A side that knows nothing of the engine.
class plain_peer {
 public:
  plain_peer(SSL_CTX* context, bool server) : ssl_(SSL_new(context)) {
    in_ = BIO_new(BIO_s_mem());
    out_ = BIO_new(BIO_s_mem());
    SSL_set_bio(ssl_.get(), in_, out_);
    if (server) {
      SSL_set_accept_state(ssl_.get());
    } else {
      SSL_set_connect_state(ssl_.get());
    }
  }
  [[nodiscard]] SSL* ssl() const { return ssl_.get(); }
  bool handshake() { return SSL_do_handshake(ssl_.get()) == 1; }

  // What it has for the engine's session, if wanted with the last bit changed. False: nothing.
  bool give(core_state& core, session& to, bool altered = false) {
    core.wire.use(to);
    const auto room = core.wire.room();
    const int size = BIO_read(out_, room.data(), static_cast<int>(room.size()));
    if (size <= 0) return false;
    if (altered) room[static_cast<std::size_t>(size) - 1] ^= std::byte{1};
    core.wire.received(static_cast<std::size_t>(size));
    return true;
  }
  void take(core_state& core) {
    const auto output = core.wire.output();
    if (!output.empty()) BIO_write(in_, output.data(), static_cast<int>(output.size()));
    core.wire.output_taken();
  }

 private:
  tls::ssl_ptr ssl_;
  BIO* in_;
  BIO* out_;
};

bool shake_hands(core_state& core, session& ours, plain_peer& theirs) {
  bool done = false;
  for (int flights = 0; flights < 8 && !(done && ours.established()); ++flights) {
    if (!ours.awaits_input() || theirs.give(core, ours)) {
      if (ours.handshake() == status::failed) return false;
      theirs.take(core);
    }
    done = theirs.handshake();
  }
  while (theirs.give(core, ours)) {  // tickets for a client
    std::byte byte{};
    std::size_t got = 0;
    (void)ours.read({&byte, 1}, got);
  }
  return done && ours.established();
}

// `text` there and back.
bool exchange(core_state& core, session& ours, plain_peer& theirs, const std::string& text) {
  const int size = static_cast<int>(text.size());
  if (SSL_write(theirs.ssl(), text.data(), size) != size) return false;
  std::string heard;
  while (heard.size() < text.size()) {
    theirs.give(core, ours);
    std::vector<std::byte> part(20'000);
    std::size_t got = 0;
    if (ours.read(part, got) != status::done || got == 0) return false;
    heard.append(reinterpret_cast<const char*>(part.data()), got);
  }
  if (!ours.write(std::as_bytes(std::span(heard)), 0)) return false;
  theirs.take(core);
  std::string back(text.size(), '\0');
  for (std::size_t done = 0; done < back.size();) {
    const int got = SSL_read(theirs.ssl(), back.data() + done, static_cast<int>(back.size() - done));
    if (got <= 0) return false;
    done += static_cast<std::size_t>(got);
  }
  return heard == text && back == text;
}

SSL_SESSION* kept = nullptr;
int keep_session(SSL*, SSL_SESSION* made) {
  SSL_SESSION_free(kept);
  kept = made;
  return 1;
}

struct suite {
  int version;
  const char* name;
};
const suite suites[] = {
    {TLS1_3_VERSION, "TLS_AES_128_GCM_SHA256"},        {TLS1_3_VERSION, "TLS_AES_256_GCM_SHA384"},
    {TLS1_3_VERSION, "TLS_CHACHA20_POLY1305_SHA256"},  {TLS1_2_VERSION, "ECDHE-ECDSA-AES128-GCM-SHA256"},
    {TLS1_2_VERSION, "ECDHE-ECDSA-AES256-GCM-SHA384"}, {TLS1_2_VERSION, "ECDHE-ECDSA-CHACHA20-POLY1305"},
    {TLS1_2_VERSION, "ECDHE-ECDSA-AES128-SHA256"},     {TLS1_2_VERSION, "ECDHE-ECDSA-AES256-SHA384"},
    {TLS1_2_VERSION, "ECDHE-ECDSA-AES128-SHA"},
};

tls::ssl_ctx_ptr plain_context(const SSL_METHOD* method, const suite& which) {
  tls::ssl_ctx_ptr made(SSL_CTX_new(method));
  REQUIRE(SSL_CTX_set_min_proto_version(made.get(), which.version) == 1);
  REQUIRE(SSL_CTX_set_max_proto_version(made.get(), which.version) == 1);
  if (which.version == TLS1_3_VERSION) {
    REQUIRE(SSL_CTX_set_ciphersuites(made.get(), which.name) == 1);
  } else {
    REQUIRE(SSL_CTX_set_cipher_list(made.get(), which.name) == 1);
  }
  return made;
}

TEST_CASE("tls_peers: a plain client, every kind of suite, full and resumed") {
  tls_options options = server_tls();
  options.ciphers = "ECDHE";  // the CBC suites too
  const auto shared = std::make_shared<tls::shared_context>(options, tls_role::server);
  for (const suite& which : suites) {
    CAPTURE(which.name);
    core_state core;
    const auto context = plain_context(TLS_client_method(), which);
    SSL_CTX_set_session_cache_mode(context.get(), SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
    SSL_CTX_sess_set_new_cb(context.get(), keep_session);
    for (int turn = 0; turn < 4; ++turn) {
      CAPTURE(turn);
      plain_peer client(context.get(), false);
      if (turn != 0) REQUIRE(SSL_set_session(client.ssl(), kept) == 1);
      session* server = core.open(shared, 1);
      REQUIRE(server != nullptr);
      CHECK(shake_hands(core, *server, client));
      CHECK(server->info().cipher == which.name);
      CHECK(exchange(core, *server, client, std::string(50'000, 'x')));
      CHECK(server->info().resumed == (turn != 0));
      if (which.version == TLS1_3_VERSION) {
        CHECK(SSL_key_update(client.ssl(), SSL_KEY_UPDATE_REQUESTED) == 1);
        CHECK(exchange(core, *server, client, "after a key update"));
        CHECK(exchange(core, *server, client, "with the server's new keys too"));
      }
      unsigned char theirs[40];
      unsigned char mine[40];
      const auto export_from = [](SSL* ssl, unsigned char* to) {
        return SSL_export_keying_material(ssl, to, sizeof theirs, "EXPORTER-test", 13, nullptr, 0, 0) == 1;
      };
      CHECK(export_from(client.ssl(), theirs));
      CHECK(export_from(server->ssl(), mine));
      CHECK(std::memcmp(theirs, mine, sizeof mine) == 0);
      SSL_set_shutdown(client.ssl(), SSL_SENT_SHUTDOWN | SSL_RECEIVED_SHUTDOWN);  // or its session is no good
      core.close(server);
    }
    SSL_SESSION_free(kept);
    kept = nullptr;
  }
}

TEST_CASE("tls_peers: a plain server") {
  tls_options options;
  options.verify_server = false;
  options.ciphers = "ECDHE";
  const auto shared = std::make_shared<tls::shared_context>(options, tls_role::client);
  for (const suite& which : suites) {
    CAPTURE(which.name);
    core_state core;
    const auto context = plain_context(TLS_server_method(), which);
    const certificate& shown = authority().localhost;
    const tls::bio_ptr chain(BIO_new_mem_buf(shown.pem().data(), static_cast<int>(shown.pem().size())));
    const tls::bio_ptr key(BIO_new_mem_buf(shown.key_pem().data(), static_cast<int>(shown.key_pem().size())));
    const tls::x509_ptr leaf(PEM_read_bio_X509(chain.get(), nullptr, nullptr, nullptr));
    const tls::pkey_ptr secret(PEM_read_bio_PrivateKey(key.get(), nullptr, nullptr, nullptr));
    REQUIRE(SSL_CTX_use_certificate(context.get(), leaf.get()) == 1);
    REQUIRE(SSL_CTX_use_PrivateKey(context.get(), secret.get()) == 1);
    plain_peer server(context.get(), true);
    session* client = core.open(shared, 1);
    REQUIRE(client != nullptr);
    CHECK(shake_hands(core, *client, server));
    CHECK(client->info().cipher == which.name);
    CHECK(exchange(core, *client, server, std::string(50'000, 'y')));
    core.close(client);
  }
}

// The binder, which proves that the client knows the ticket's secret, ends the ClientHello (RFC 8446 4.2.11.2).
TEST_CASE("tls_peers: a client with a wrong binder is refused") {
  const auto shared = std::make_shared<tls::shared_context>(server_tls(), tls_role::server);
  for (const suite& which : {suites[0], suites[1]}) {
    CAPTURE(which.name);
    core_state core;
    const auto context = plain_context(TLS_client_method(), which);
    SSL_CTX_set_session_cache_mode(context.get(), SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
    SSL_CTX_sess_set_new_cb(context.get(), keep_session);
    plain_peer first(context.get(), false);
    session* server = core.open(shared, 1);
    REQUIRE(shake_hands(core, *server, first));
    REQUIRE(exchange(core, *server, first, "for the ticket"));
    SSL_set_shutdown(first.ssl(), SSL_SENT_SHUTDOWN | SSL_RECEIVED_SHUTDOWN);
    core.close(server);
    for (const bool altered : {false, true}) {
      CAPTURE(altered);
      plain_peer second(context.get(), false);
      REQUIRE(SSL_set_session(second.ssl(), kept) == 1);
      (void)second.handshake();
      server = core.open(shared, 1);
      REQUIRE(second.give(core, *server, altered));
      CHECK(server->handshake() == (altered ? status::failed : status::want_input));
      if (altered) CHECK(server->failure() == tls_failure::protocol);
      core.wire.output_taken();
      core.close(server);
    }
    SSL_SESSION_free(kept);
    kept = nullptr;
  }
}

}  // namespace
}  // namespace percore::test
