// Sessions of both sides without a socket, and above all the client's: what outgoing connections will stand on.
#include <doctest/doctest.h>

#include <openssl/err.h>
#include <openssl/pem.h>
#include <stdlib.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "engine/sys/calls.hpp"
#include "tests/support/certificates.hpp"
#include "tests/support/tls_server.hpp"
#include "tests/support/tls_sides.hpp"

namespace percore::test {
namespace {

using tls::status;
using side = tls_side;

struct failed {
  tls_failure cause;
  std::string reason;
};

// How a client that asks for `name` fails against a server with `shown_one`; nothing when it does not.
std::optional<failed> failure_of(const tls_options& how, const std::string& name, const certificate& shown_one) {
  side server(server_tls(shown_one), tls_role::server);
  side client(how, tls_role::client);
  REQUIRE(client.set_server_name(name));
  if (shake_hands(client, server)) return std::nullopt;
  CHECK(client->has_failed());
  CHECK_FALSE(client->established());
  return failed{client->failure(), std::string(client->reason())};
}

TEST_CASE("tls_session: a client speaks with a server in both versions") {
  for (const tls_version version : {tls_version::v1_2, tls_version::v1_3}) {
    CAPTURE(static_cast<int>(version));
    tls_options how = client_tls();
    how.min_version = how.max_version = version;
    side server(server_tls(), tls_role::server);
    side client(how, tls_role::client);
    CHECK_FALSE(client->awaits_input());  // it begins
    CHECK(server->awaits_input());
    REQUIRE(client.set_server_name("localhost"));
    REQUIRE(shake_hands(client, server));
    for (side* each : {&client, &server}) {
      CHECK((*each)->info().version == version);
      CHECK((*each)->info().server_name == "localhost");
      CHECK((*each)->info().cipher.find("AES") != std::string_view::npos);
      CHECK_FALSE((*each)->info().resumed);
    }
    const auto chain = client->peer_certificates();
    REQUIRE(chain.size() == 2);
    CHECK(chain.front().sha256 == authority().localhost.sha256());
    CHECK(chain.back().sha256 == authority().root.sha256());
    CHECK(client.write("question"));
    server.give(client.take());
    CHECK(server.read() == "question");
    CHECK(server.write("answer"));
    client.give(server.take());
    CHECK(client.read() == "answer");
    client->close_notify();
    server.give(client.take());
    CHECK(server.read().empty());
    CHECK(server.last() == status::closed);
    CHECK(server->close_received());
  }
}

TEST_CASE("tls_session: errors that others leave on the thread are nobody's failure") {
  side server(server_tls(), tls_role::server);
  side client(client_tls(), tls_role::client);
  REQUIRE(client.set_server_name("localhost"));
  const auto leave_error = [] { ERR_raise(ERR_LIB_USER, ERR_R_INTERNAL_ERROR); };
  leave_error();
  REQUIRE(shake_hands(client, server));
  leave_error();
  CHECK(server.read().empty());
  CHECK(server.last() == status::want_input);
  CHECK(client.write("question"));
  server.give(client.take());
  leave_error();
  CHECK(server.read() == "question");
  CHECK(server.write("answer"));
  client.give(server.take());
  CHECK(client.read() == "answer");
  SUBCASE("an end is an end") {
    client->close_notify();
    server.give(client.take());
    leave_error();
    CHECK(server.read().empty());
    CHECK(server.last() == status::closed);
    CHECK_FALSE(server->has_failed());
  }
  SUBCASE("a failure says its own reason") {
    CHECK(client.write("question"));
    std::string bytes = client.take();
    bytes.back() = static_cast<char>(bytes.back() ^ 1);
    server.give(bytes);
    leave_error();
    CHECK(server.read().empty());
    CHECK(server.last() == status::failed);
    CHECK(server->failure() == tls_failure::protocol);
    CHECK(server->reason() == "decryption failed or bad record mac");
    client.give(server.take());
    leave_error();
    CHECK(client.read().empty());
    CHECK(client.last() == status::failed);
    CHECK(client->failure() == tls_failure::alert);
  }
  ERR_clear_error();
}

TEST_CASE("tls_session: a ticket that comes late counts from the handshake") {
  side server(server_tls(), tls_role::server);
  tls_options options = client_tls();
  options.min_version = tls_version::v1_3;
  side client(options, tls_role::client);
  REQUIRE(client.set_server_name("localhost"));
  CHECK_FALSE(client->resume("localhost 443"));
  REQUIRE(shake_hands(client, server));
  const std::int64_t done = sys::unix_seconds();
  while (sys::unix_seconds() == done) std::this_thread::yield();
  client.give(server.take());
  CHECK(client.read().empty());
  const auto kept = client->context().cache().take("localhost 443", sys::unix_seconds());
  REQUIRE(kept);
  CHECK(kept->by.done <= done);
  CHECK(kept->by.valid_until > done);
}

TEST_CASE("tls_session: records that arrive together, the last one in part") {
  side server(server_tls(), tls_role::server);
  side client(client_tls(), tls_role::client);
  REQUIRE(client.set_server_name("localhost"));
  REQUIRE(shake_hands(client, server));
  CHECK(client.write("one"));
  CHECK(client.write("two"));
  std::string bytes = client.take();
  CHECK(client.write("three"));
  const std::string last = client.take();
  for (std::size_t part = 1; part < last.size(); part += 7) {
    CAPTURE(part);
    if (part == 1) bytes += last.substr(0, 1);
    server.give(part == 1 ? bytes : last.substr(part - 7, 7));
    CHECK(server.read() == (part == 1 ? "onetwo" : ""));
    CHECK_FALSE(server->pending());
    if (part + 7 >= last.size()) {
      server.give(last.substr(part));
      CHECK(server.read() == "three");
      CHECK_FALSE(server->pending());
    }
  }
  // One record after the other, when there is no room for more; and the end behind them.
  CHECK(client.write("four"));
  client->close_notify();
  server.give(client.take());
  std::byte two[2];
  std::size_t done = 0;
  CHECK(server->read(two, done) == status::done);
  CHECK(done == 2);
  CHECK(server->pending());
  CHECK(server->read(two, done) == status::done);
  CHECK(done == 2);
  CHECK(server->pending());
  CHECK(server->read(two, done) == status::closed);
}

TEST_CASE("tls_session: the name that was dialled must be the certificate's") {
  const certificate many = authority().issue("common.example", {"a.example", "*.wild.example", "192.0.2.7"});
  const certificate none = authority().issue("common.example");
  const struct {
    const certificate* shown_one;
    const char* name;
    bool good;
  } table[] = {
      {&many, "a.example", true},
      {&many, "A.Example", true},
      {&many, "x.wild.example", true},
      {&many, "x.y.wild.example", false},
      {&many, "wild.example", false},
      {&many, "b.example", false},
      {&many, "aa.example", false},
      {&many, "common.example", false},  // there are names: the common name is none of them (RFC 6125 6.4.4)
      {&many, "192.0.2.7", true},
      {&many, "192.0.2.8", false},
      {&none, "common.example", true},
      {&none, "other.example", false},
      {&none, "192.0.2.7", false},
  };
  for (const auto& row : table) {
    CAPTURE(row.name);
    const auto wrong = failure_of(client_tls(), row.name, *row.shown_one);
    CHECK(wrong.has_value() != row.good);
    if (wrong) {
      CHECK(name_of(wrong->cause) == "certificate");
      CHECK(wrong->reason == "certificate verify failed");
    }
  }
}

TEST_CASE("tls_session: addresses are checked and not sent as names") {
  const certificate made = authority().issue("address", {"127.0.0.1"});
  side server(server_tls(made), tls_role::server);
  side client(client_tls(), tls_role::client);
  REQUIRE(client.set_server_name("127.0.0.1"));
  REQUIRE(shake_hands(client, server));
  CHECK(server->info().server_name.empty());  // RFC 6066 3: literal addresses are not permitted
  const auto wrong = failure_of(client_tls(), "::1", made);
  REQUIRE(wrong);
  CHECK(wrong->cause == tls_failure::certificate);
}

TEST_CASE("tls_session: who may vouch for a server") {
  const certificate foreign_root({.common_name = "foreign", .authority = true});
  const certificate foreign({.common_name = "localhost", .dns_names = {"localhost"}}, &foreign_root);
  const certificate own({.common_name = "localhost", .dns_names = {"localhost"}});
  const certificate middle({.common_name = "middle", .authority = true}, &authority().root);
  const certificate below({.common_name = "localhost", .dns_names = {"localhost"}}, &middle);
  const certificate old({.common_name = "localhost", .dns_names = {"localhost"}, .days_from = -9, .days_until = -1},
                        &authority().root);
  CHECK_FALSE(failure_of(client_tls(), "localhost", authority().localhost));
  CHECK_FALSE(failure_of(client_tls(), "localhost", below));
  for (const certificate* bad : {&foreign, &own}) {
    const auto wrong = failure_of(client_tls(), "localhost", *bad);
    REQUIRE(wrong);
    CHECK(wrong->cause == tls_failure::certificate);
    CHECK(wrong->reason == "certificate verify failed");
  }
  side server({[&] {
                tls_options options = server_tls();
                options.certificates.front() = shown(old);
                options.on_warning = [](const std::string&) {};
                return options;
              }()},
              tls_role::server);
  side client(client_tls(), tls_role::client);
  REQUIRE(client.set_server_name("localhost"));
  CHECK_FALSE(shake_hands(client, server));
  CHECK(client->failure() == tls_failure::certificate);
  CHECK(server->failure() == tls_failure::alert);
  CHECK(server->reason() == "sslv3 alert certificate expired");

  tls_options shallow = client_tls();
  shallow.verify_depth = 0;
  CHECK_FALSE(failure_of(shallow, "localhost", authority().localhost));
  CHECK(failure_of(shallow, "localhost", below).has_value());
  tls_options careless = client_tls();
  careless.verify_server = false;
  CHECK_FALSE(failure_of(careless, "other.example", foreign));
}

// OpenSSL looks for it where the environment says (SSL_CTX_set_default_verify_paths(3)).
TEST_CASE("tls_session: without authorities the system's store vouches") {
  const temporary_file store(authority().root.pem());
  const temporary_file empty;
  const auto use = [](const temporary_file& file) {
    REQUIRE(::setenv("SSL_CERT_FILE", file.path().c_str(), 1) == 0);
    REQUIRE(::setenv("SSL_CERT_DIR", "/nonexistent", 1) == 0);
  };
  use(store);
  CHECK_FALSE(failure_of({}, "localhost", authority().localhost));
  CHECK(failure_of({}, "other.example", authority().localhost).has_value());
  use(empty);
  const auto wrong = failure_of({}, "localhost", authority().localhost);
  REQUIRE(wrong);
  CHECK(wrong->cause == tls_failure::certificate);
  // Authorities that are given take the store's place.
  use(store);
  const certificate foreign_root({.common_name = "foreign", .authority = true});
  tls_options how;
  how.authorities_pem = foreign_root.pem();
  CHECK(failure_of(how, "localhost", authority().localhost).has_value());
  ::unsetenv("SSL_CERT_FILE");
  ::unsetenv("SSL_CERT_DIR");
}

TEST_CASE("tls_session: a client offers protocols and the server chooses") {
  const auto chosen = [](const std::vector<std::string>& offered, const std::vector<std::string>& known) {
    tls_options how = client_tls();
    how.alpn = offered;
    tls_options options = server_tls();
    options.alpn = known;
    side server(options, tls_role::server);
    side client(how, tls_role::client);
    if (!shake_hands(client, server)) return std::string(client->reason());
    CHECK(client->info().alpn == server->info().alpn);
    return std::string(client->info().alpn);
  };
  CHECK(chosen({"http/1.1", "h2"}, {"h2", "http/1.1"}) == "h2");
  CHECK(chosen({"http/1.1"}, {"h2", "http/1.1"}) == "http/1.1");
  CHECK(chosen({}, {"h2"}).empty());
  CHECK(chosen({"h2"}, {}).empty());
  CHECK(chosen({"imap"}, {"h2"}) == "tlsv1 alert no application protocol");
}

TEST_CASE("tls_session: a client shows its certificate") {
  const certificate alice = authority().issue("alice");
  tls_options options = server_tls();
  options.clients = client_certificates::required;
  options.authorities_pem = authority().root.pem();
  for (const tls_version version : {tls_version::v1_2, tls_version::v1_3}) {
    CAPTURE(static_cast<int>(version));
    tls_options how = client_tls();
    how.min_version = how.max_version = version;
    {
      side server(options, tls_role::server);
      side client(how, tls_role::client);
      (void)shake_hands(client, server);
      CHECK(server->failure() == tls_failure::certificate);
      CHECK(client->failure() == tls_failure::alert);
    }
    how.certificates.push_back(shown(alice));
    side server(options, tls_role::server);
    side client(how, tls_role::client);
    CHECK(shake_hands(client, server));
    REQUIRE_FALSE(server->peer_certificates().empty());
    CHECK(server->peer_certificates().front().common_name == "alice");
  }
}

TEST_CASE("tls_session: what is no TLS server fails a client with a cause") {
  const struct {
    std::string bytes;
    tls_failure cause;
  } table[] = {
      {"HTTP/1.1 400 Bad Request\r\n\r\n", tls_failure::not_tls},
      {"220 mail.example.org ESMTP\r\n", tls_failure::not_tls},
      {std::string("\x15\x03\x03\x00\x02\x02\x28", 7), tls_failure::alert},
      {std::string("\x16\x03\x03\x00\x04\x02\x00\x00\x00", 9), tls_failure::protocol},
  };
  for (const auto& row : table) {
    CAPTURE(row.bytes);
    side client(client_tls(), tls_role::client);
    CHECK(client->handshake() == status::want_input);
    CHECK_FALSE(client.take().empty());
    client.give(row.bytes);
    CHECK(client->handshake() == status::failed);
    CHECK(name_of(client->failure()) == name_of(row.cause));
    CHECK_FALSE(client->reason().empty());
    (void)client.take();
  }
  side client(client_tls(), tls_role::client);
  CHECK(client->handshake() == status::want_input);
  (void)client.take();
  client->input_ended();
  CHECK(client->failure() == tls_failure::peer_gone);
}

// A server may ask for a new handshake as often as it likes (RFC 5246 7.4.1.1). It is told no each time, and gets nothing
// else for it.
TEST_CASE("tls_session: a client does not renegotiate") {
  tls_options how = client_tls();
  how.max_version = tls_version::v1_2;
  side client(how, tls_role::client);
  const auto free_context = [](SSL_CTX* context) { SSL_CTX_free(context); };
  const std::unique_ptr<SSL_CTX, decltype(free_context)> foreign(SSL_CTX_new(TLS_server_method()), free_context);
  const tls::ssl_ptr server = [&] {
    BIO* chain = BIO_new_mem_buf(authority().localhost.pem().data(), -1);
    BIO* key = BIO_new_mem_buf(authority().localhost.key_pem().data(), -1);
    X509* leaf = PEM_read_bio_X509(chain, nullptr, nullptr, nullptr);
    EVP_PKEY* secret = PEM_read_bio_PrivateKey(key, nullptr, nullptr, nullptr);
    CHECK(SSL_CTX_use_certificate(foreign.get(), leaf) == 1);
    CHECK(SSL_CTX_use_PrivateKey(foreign.get(), secret) == 1);
    X509_free(leaf);
    EVP_PKEY_free(secret);
    BIO_free(chain);
    BIO_free(key);
    return tls::ssl_ptr(SSL_new(foreign.get()));
  }();
  BIO* in = BIO_new(BIO_s_mem());
  BIO* out = BIO_new(BIO_s_mem());
  SSL_set_bio(server.get(), in, out);
  SSL_set_accept_state(server.get());
  const auto output = [&] {
    std::string bytes(20'000, '\0');
    const int size = BIO_read(out, bytes.data(), static_cast<int>(bytes.size()));
    bytes.resize(size > 0 ? static_cast<std::size_t>(size) : 0);
    return bytes;
  };
  status result = client->handshake();
  while (result == status::want_input) {
    const std::string flight = client.take();
    BIO_write(in, flight.data(), static_cast<int>(flight.size()));
    (void)SSL_do_handshake(server.get());
    client.give(output());
    result = client->handshake();
  }
  REQUIRE(result == status::done);
  CHECK(SSL_renegotiate(server.get()) == 1);
  CHECK(SSL_do_handshake(server.get()) == 1);  // HelloRequest
  client.give(output());
  CHECK(client.read().empty());
  CHECK_FALSE(client->has_failed());
  const std::string answer = client.take();
  CHECK(answer.size() < 64);
  CHECK(answer.substr(0, 1) == "\x15");  // an alert: no_renegotiation
}

}  // namespace
}  // namespace percore::test
