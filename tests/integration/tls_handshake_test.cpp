// Handshakes that stall, break off, or are none: each has its cause counted and told, and disturbs nobody.
#include <doctest/doctest.h>

#include <atomic>
#include <chrono>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/support/clean_process.hpp"
#include "tests/support/test_server.hpp"
#include "tests/support/tls_client.hpp"
#include "tests/support/tls_server.hpp"

namespace percore::test {
namespace {

using namespace std::chrono_literals;

struct told {
  tls_failure cause{};
  std::string reason;
  address peer;
};

// A TLS echo server, and what it says about handshakes that fail. At its end it must still serve.
class watched_server {
 public:
  explicit watched_server(tls_options options = server_tls(), listen_options listening = {})
      : server_(echo, watched(), over_tls(std::move(options), std::move(listening))) {}
  // The server still serves. Its deadlines may be so short that a busy machine misses them once or twice.
  ~watched_server() {
    std::string failure;
    for (int attempt = 0; attempt < 20; ++attempt) {
      try {
        exchange();
        failure.clear();
        break;
      } catch (const std::exception& caught) {
        failure = caught.what();
      }
    }
    CHECK(failure.empty());
    CHECK(eventually([&] { return server_.total().active == 0; }));
  }
  watched_server(const watched_server&) = delete;
  watched_server& operator=(const watched_server&) = delete;

  test_server* operator->() noexcept { return &server_; }
  [[nodiscard]] address where() const { return server_.where(); }

  // One failure of this cause, counted once and told once; its reason.
  std::string expect(tls_failure cause, std::uint64_t core_stats::*counter) {
    const told one = failures_.take();
    CHECK(name_of(one.cause) == name_of(cause));
    CHECK(one.peer.to_string().starts_with("127.0.0.1:"));
    CHECK(eventually([&] { return server_.total().active == 0; }));
    const core_stats total = server_.total();
    ++expected_;
    CHECK(total.*counter >= 1);
    CHECK(tls_failures(total) == expected_);
    CHECK(total.tls_handshakes == 0);
    CHECK(total.accepted == 0);
    CHECK(failures_.size() == 0);
    return one.reason;
  }

  std::vector<std::string> alpn;  // of the client that looks at the end

 private:
  void exchange() {
    tls_client_options how;
    how.alpn = alpn;
    tls_client peer(server_.where(), tls_profile(how));
    peer.handshake().send_all("still here");
    CHECK(peer.recv_exactly(10) == "still here");
    peer.half_close();
    CHECK(peer.ended_cleanly());
  }
  server_options watched() {
    server_options options = one_core();
    options.on_tls_failure = [this](tls_failure cause, std::string_view reason, const address& peer) {
      failures_.put({cause, std::string(reason), peer});
    };
    return options;
  }

  channel<told> failures_;
  std::uint64_t expected_ = 0;
  test_server server_;
};

// How a stream ended: what came before is dropped.
bool ended(client& peer) {
  (void)peer.wait_for_end();
  return true;
}

tls_profile only(int version) {
  tls_client_options how;
  how.min_version = how.max_version = version;
  return tls_profile(how);
}

TEST_CASE_FIXTURE(clean_process, "tls handshake: any way to cut a ClientHello and what follows it works") {
  for (const int version : {TLS1_2_VERSION, TLS1_3_VERSION}) {
    CAPTURE(version);
    test_server server(echo, one_core(), over_tls());
    tls_client peer(server.where(), only(version));
    while (!peer.handshake_done()) {
      for (const char each : peer.handshake_step()) peer.socket().send_all(std::string(1, each));
      if (!peer.handshake_done()) REQUIRE(peer.receive());
    }
    peer.send_all("text");
    CHECK(peer.recv_exactly(4) == "text");
    // One record per byte of the ClientHello: RFC 8446 5.1 allows handshake messages to be cut.
    tls_client cut(server.where(), only(version));
    const std::string hello = cut.handshake_step();
    std::string records;
    for (const char each : hello.substr(5))
      records += hello.substr(0, 3) + std::string(1, '\0') + '\1' + each;
    cut.socket().send_all(records);
    REQUIRE(cut.receive());
    cut.handshake().send_all("text");
    CHECK(cut.recv_exactly(4) == "text");
  }
}

TEST_CASE_FIXTURE(clean_process, "tls handshake: a peer that stops at any flight is timed out") {
  listen_options options;
  options.handshake_timeout = 200ms;
  watched_server server(server_tls(), options);
  for (const int version : {TLS1_2_VERSION, TLS1_3_VERSION}) {
    CAPTURE(version);
    for (const std::size_t part : {0U, 1U, 5U, 6U, 100U}) {
      CAPTURE(part);
      const auto begun = std::chrono::steady_clock::now();
      tls_client peer(server.where(), only(version));
      peer.socket().send_all(std::string_view(peer.handshake_step()).substr(0, part));
      CHECK(ended(peer.socket()));
      CHECK(std::chrono::steady_clock::now() - begun > 190ms);
      CHECK(server.expect(tls_failure::timed_out, &core_stats::tls_failed_timed_out) ==
            "the handshake took too long");
    }
    // All but the last flight, and a part of that.
    for (const bool half : {false, true}) {
      CAPTURE(half);
      tls_client peer(server.where(), only(version));
      peer.socket().send_all(peer.handshake_step());
      std::string flight;
      while (flight.empty()) {
        REQUIRE(peer.receive());
        flight = peer.handshake_step();
      }
      if (half) peer.socket().send_all(std::string_view(flight).substr(0, flight.size() / 2));
      CHECK(ended(peer.socket()));
      server.expect(tls_failure::timed_out, &core_stats::tls_failed_timed_out);
    }
  }
  CHECK(server->total().timeouts == 14);
}

TEST_CASE_FIXTURE(clean_process,
                  "tls handshake: a lifetime ends a handshake too, and a drip does not prolong it") {
  listen_options options;
  options.handshake_timeout = 0ms;
  SUBCASE("its own deadline") {
    options.handshake_timeout = 100ms;
  }
  SUBCASE("the connection's lifetime") {
    options.lifetime_timeout = 400ms;
  }
  watched_server server(server_tls(), options);
  tls_client peer(server.where());
  const std::string hello = peer.handshake_step();
  std::thread drip([&] {
    try {
      for (const char each : hello.substr(0, 60)) {
        peer.socket().send_all(std::string(1, each));
        std::this_thread::sleep_for(10ms);  // the slowness itself
      }
    } catch (const std::system_error&) {
      ;  // the server has had enough
    }
  });
  server.expect(tls_failure::timed_out, &core_stats::tls_failed_timed_out);
  drip.join();
}

TEST_CASE_FIXTURE(clean_process, "tls handshake: a peer that leaves in the middle of it") {
  watched_server server;
  for (const int version : {TLS1_2_VERSION, TLS1_3_VERSION}) {
    CAPTURE(version);
    for (const int steps : {0, 1, 2}) {
      for (const bool reset : {false, true}) {
        CAPTURE(steps);
        CAPTURE(reset);
        tls_client peer(server.where(), only(version));
        if (steps > 0) {
          const std::string hello = peer.handshake_step();
          peer.socket().send_all(steps == 1 ? std::string_view(hello).substr(0, 50)
                                            : std::string_view(hello));
        }
        if (steps == 2) REQUIRE(peer.receive());
        if (reset) {
          peer.socket().reset();
        } else {
          peer.socket().half_close();
          CHECK(ended(peer.socket()));
        }
        server.expect(tls_failure::peer_gone, &core_stats::tls_failed_peer_gone);
      }
    }
  }
}

TEST_CASE_FIXTURE(clean_process, "tls handshake: plain HTTP on a TLS port") {
  watched_server server;
  for (const char* request :
       {"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "POST /x HTTP/1.0\r\n\r\n", "HEAD / HTTP/1.0\r\n\r\n",
        "PUT /a HTTP/1.1\r\n\r\n", "CONNECT a:443 HTTP/1.1\r\n\r\n"}) {
    CAPTURE(request);
    client peer(server.where());
    peer.send_all(request);
    CHECK(peer.wait_for_end() == ending::fin);
    CHECK_FALSE(server.expect(tls_failure::plain_http, &core_stats::tls_failed_plain_http).empty());
  }
}

TEST_CASE_FIXTURE(clean_process, "tls handshake: what is no TLS") {
  watched_server server;
  std::string many_empty_records("\x16\x03\x01\x00\x00", 5);  // OpenSSL takes 32 of them
  for (int i = 0; i < 6; ++i) many_empty_records += many_empty_records;
  for (const std::string& garbage : {std::string("SSH-2.0-OpenSSH_9.2\r\n"), std::string(1000, '\0'),
                                     std::string("\x16\x09\x01\x00\x05hello", 10),
                                     std::string("\x16\x03\x01\xff\xff", 5) + std::string(500, 'x'),
                                     std::string("EHLO example.org\r\n"), many_empty_records}) {
    CAPTURE(garbage);
    client peer(server.where());
    peer.send_all(garbage);
    CHECK(ended(peer));
    server.expect(tls_failure::not_tls, &core_stats::tls_failed_not_tls);
  }
}

TEST_CASE_FIXTURE(clean_process, "tls handshake: what breaks the protocol") {
  watched_server server;
  const std::string hello = tls_client(server.where()).handshake_step();
  server.expect(tls_failure::peer_gone, &core_stats::tls_failed_peer_gone);
  std::vector<std::string> bad;
  bad.push_back(std::string("\x17\x03\x03\x00\x05hello", 10));            // data before the handshake
  bad.push_back(std::string("\x14\x03\x03\x00\x01\x01", 6));              // change_cipher_spec first
  bad.push_back(std::string("\x16\x03\x01\x00\x04\x02\x00\x00\x00", 9));  // a ServerHello
  bad.push_back(std::string("\x16\x03\x01\x00\x04\x01\x00\x00\x00", 9));  // an empty ClientHello
  bad.push_back(std::string("\x16\x03\x01\x00\x04\x01\xff\xff\xff", 9));  // one of 16 MB
  std::string wrong_length = hello;
  wrong_length[43] = '\x7f';  // the session id's length: 32 at most
  bad.push_back(wrong_length);
  for (const std::string& bytes : bad) {
    CAPTURE(static_cast<int>(&bytes - bad.data()));
    client peer(server.where());
    peer.send_all(bytes);
    CHECK(ended(peer));
    server.expect(tls_failure::protocol, &core_stats::tls_failed_protocol);
  }
}

TEST_CASE_FIXTURE(clean_process, "tls handshake: random bytes and damaged ClientHellos of every kind") {
  test_server server(echo, one_core(), over_tls());
  std::uint64_t state = 88172645463325252U;
  const auto draw = [&state] {  // xorshift64
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
  };
  const int rounds = sanitized ? 300 : 2000;
  for (int i = 0; i < rounds; ++i) {
    tls_client peer(server.where());
    std::string hello = peer.handshake_step();
    for (std::uint64_t changes = 1 + draw() % 4; changes > 0; --changes) {
      hello[draw() % hello.size()] = static_cast<char>(draw());
    }
    try {
      peer.socket().send_all(hello);
      peer.socket().half_close();
    } catch (const std::system_error&) {
      ;  // the server has closed already
    }
    CHECK(ended(peer.socket()));
  }
  CHECK(eventually([&] { return tls_failures(server.total()) == static_cast<std::uint64_t>(rounds); }));
  CHECK(server.total().tls_failed_internal == 0);
  tls_client peer(server.where());
  peer.handshake().send_all("still here");
  CHECK(peer.recv_exactly(10) == "still here");
}

TEST_CASE_FIXTURE(clean_process, "tls handshake: an alert of the peer in the middle") {
  watched_server server;
  // Untrusted: this client refuses the certificate that it is shown.
  const certificate other({.common_name = "localhost", .dns_names = {"localhost"}});
  for (const int version : {TLS1_2_VERSION, TLS1_3_VERSION}) {
    CAPTURE(version);
    tls_client peer(server.where(), only(version));
    peer.socket().send_all(peer.handshake_step());
    REQUIRE(peer.receive());
    // In TLS 1.3 in plain still: the server takes both (RFC 8446 6.2 leaves it no choice at this point).
    peer.socket().send_all(std::string("\x15\x03\x03\x00\x02\x02\x2e", 7));  // fatal certificate_unknown
    CHECK(ended(peer.socket()));
    CHECK(server.expect(tls_failure::alert, &core_stats::tls_failed_alert) ==
          "sslv3 alert certificate unknown");
  }
}

TEST_CASE_FIXTURE(clean_process, "tls handshake: nothing in common") {
  tls_client_options client_side;
  tls_options server_side = server_tls();
  std::string alert;
  SUBCASE("the client's versions end below") {
    client_side.min_version = client_side.max_version = TLS1_1_VERSION;
    client_side.signature_algorithms = "RSA+SHA1:ECDSA+SHA1:RSA+SHA256:ECDSA+SHA256";
    alert = "tlsv1 alert protocol version";
  }
  SUBCASE("TLS 1.3 only, a client of TLS 1.2") {
    server_side.min_version = tls_version::v1_3;
    client_side.max_version = TLS1_2_VERSION;
    alert = "tlsv1 alert protocol version";
  }
  SUBCASE("TLS 1.2 only, a client of TLS 1.3") {
    server_side.max_version = tls_version::v1_2;
    client_side.min_version = TLS1_3_VERSION;
    alert = "tlsv1 alert protocol version";
  }
  SUBCASE("ciphers of TLS 1.2") {
    client_side.max_version = TLS1_2_VERSION;
    client_side.ciphers = "AES128-SHA:ECDHE-ECDSA-AES128-SHA";
    alert = "sslv3 alert handshake failure";
  }
  SUBCASE("cipher suites of TLS 1.3") {
    server_side.ciphersuites = "TLS_AES_256_GCM_SHA384";
    client_side.min_version = TLS1_3_VERSION;
    client_side.ciphersuites = "TLS_AES_128_GCM_SHA256";
    alert = "sslv3 alert handshake failure";
  }
  SUBCASE("groups of TLS 1.3") {
    client_side.min_version = TLS1_3_VERSION;
    client_side.groups = "P-521";
    alert = "sslv3 alert handshake failure";
  }
  SUBCASE("groups of TLS 1.2") {
    client_side.max_version = TLS1_2_VERSION;
    client_side.groups = "P-521";
    alert = "sslv3 alert handshake failure";
  }
  SUBCASE("signature algorithms of TLS 1.3") {
    client_side.min_version = TLS1_3_VERSION;
    client_side.signature_algorithms = "RSA-PSS+SHA256";  // the server has an ECDSA key
    alert = "sslv3 alert handshake failure";
  }
  SUBCASE("protocols") {
    server_side.alpn = {"h2", "http/1.1"};
    client_side.alpn = {"imap", "smtp"};
    alert = "tlsv1 alert no application protocol";
  }
  watched_server server(server_side);
  tls_client peer(server.where(), tls_profile(client_side));
  std::string wrong;
  try {
    peer.handshake();
  } catch (const tls_went_wrong& failure) {
    wrong = failure.what();
  }
  CHECK(wrong == alert);
  server.expect(tls_failure::nothing_shared, &core_stats::tls_failed_nothing_shared);
}

TEST_CASE_FIXTURE(clean_process,
                  "tls handshake: renegotiation is refused and the connection lives on or ends, no more") {
  test_server server(echo, one_core(), over_tls());
  tls_client peer(server.where(), only(TLS1_2_VERSION));
  peer.handshake().send_all("before");
  CHECK(peer.recv_exactly(6) == "before");
  CHECK(SSL_renegotiate(peer.ssl()) == 1);
  std::string wrong;
  try {
    peer.handshake();
  } catch (const tls_went_wrong& failure) {
    wrong = failure.what();
  }
  CHECK(wrong == "no renegotiation");
  CHECK(server.total().tls_handshakes == 1);
  tls_client other(server.where());
  other.handshake().send_all("x");
  CHECK(other.recv_exactly(1) == "x");
}

TEST_CASE_FIXTURE(clean_process,
                  "tls handshake: many key updates of a peer that reads nothing end the connection") {
  listen_options options;
  options.socket.send_buffer_bytes = 4096;
  // A TCP client whose receive buffer is full drops acknowledgements with the data, and sends on only now and then.
  test_server server(echo, one_core(), over_tls(server_tls(), options), "unix:@");
  tls_client peer(server.where(), only(TLS1_3_VERSION));
  peer.handshake();
  // Each asks for an answer. What is kept for this peer is bounded.
  try {
    for (int i = 0; i < 100'000 && server.total().active == 1; ++i) {
      SSL_key_update(peer.ssl(), SSL_KEY_UPDATE_REQUESTED);
      peer.send_all("");
      peer.socket().send_all(peer.handshake_step());
    }
  } catch (const std::system_error&) {
    ;  // reset: what is wanted
  }
  CHECK(eventually([&] { return server.total().active == 0; }));
}

TEST_CASE_FIXTURE(clean_process, "tls handshake: the budget of a turn lets established connections go on") {
  server_options options = one_core();
  options.handshake_budget = 1us;  // one handshake's step a turn
  listen_options patient;
  patient.handshake_timeout = 0ms;
  test_server server(echo, options, over_tls(server_tls(), patient));
  tls_client busy(server.where());
  busy.handshake();
  std::vector<tls_client> crowd;
  std::vector<tls_client>::size_type count = 50;
  const tls_profile profile;
  for (std::size_t i = 0; i < count; ++i) {
    crowd.emplace_back(server.where(), profile);
    crowd.back().socket().send_all(crowd.back().handshake_step());
  }
  for (int i = 0; i < 20; ++i) {
    busy.send_all("ping");
    CHECK(busy.recv_exactly(4) == "ping");
  }
  for (auto& peer : crowd) {
    REQUIRE(peer.receive());
    peer.handshake().send_all("x");
    CHECK(peer.recv_exactly(1) == "x");
  }
  // Some leave while they wait for their turn.
  std::vector<tls_client> leaving;
  {
    blocked_core blocked(*server, 0);
    for (std::size_t i = 0; i < count; ++i) {
      leaving.emplace_back(server.where(), profile);
      leaving.back().socket().send_all(leaving.back().handshake_step());
    }
    for (std::size_t i = 0; i < count; i += 2) leaving[i].socket().reset();
  }
  for (std::size_t i = 1; i < count; i += 2) {
    REQUIRE(leaving[i].receive());
    leaving[i].handshake();
  }
  CHECK(eventually([&] { return server.total().tls_handshakes == 1 + count + count / 2; }));
  CHECK(eventually([&] { return tls_failures(server.total()) == count / 2; }));
}

TEST_CASE_FIXTURE(clean_process, "tls handshake: a server ends in the middle of handshakes") {
  listen_options listening;
  listening.handshake_timeout = 300ms;
  test_server server(echo, one_core(), over_tls(server_tls(), listening));
  tls_client silent(server.where());
  tls_client begun(server.where());
  begun.socket().send_all(begun.handshake_step());
  REQUIRE(begun.receive());
  CHECK(eventually([&] { return server.total().active == 2; }));
  SUBCASE("by halt") {
    server->halt();
  }
  SUBCASE("by a shutdown with a grace") {
    server->shutdown(50ms);
  }
  SUBCASE("by a shutdown: they have their deadline") {
    server->shutdown();
  }
  CHECK(ended(silent.socket()));
  CHECK(ended(begun.socket()));
  server->wait();
  CHECK(server.total().active == 0);
}

// Without a deadline of their own, and without a grace.
TEST_CASE_FIXTURE(clean_process, "tls handshake: a shutdown lets those go on that have begun, for a limited time") {
  listen_options listening;
  listening.handshake_timeout = 0ms;
  for (const int version : {TLS1_2_VERSION, TLS1_3_VERSION}) {
    CAPTURE(version);
    test_server server(echo, one_core(), over_tls(server_tls(), listening));
    tls_client silent(server.where(), only(version));
    tls_client busy(server.where(), only(version));
    tls_client idle(server.where(), only(version));
    for (tls_client* begun : {&busy, &idle}) {
      begun->socket().send_all(begun->handshake_step());
      REQUIRE(begun->receive());
    }
    CHECK(eventually([&] { return server.total().active == 3; }));
    server->begin_shutdown();
    CHECK(silent.socket().wait_for_end() == ending::fin);  // while the others have not gone on yet
    CHECK(eventually([&] { return server.total().active == 2; }));
    if (version == TLS1_3_VERSION) {
      const std::string flight = busy.handshake_step();
      busy.socket().send_all(flight + busy.encrypt("request"));
      CHECK(busy.recv_exactly(7) == "request");
    } else {
      busy.handshake();  // its last flight is the server's: a request could only come after that
    }
    CHECK(busy.ended_cleanly());
    idle.handshake();
    CHECK(idle.ended_cleanly());
    server->wait();
    CHECK(server.total().tls_handshakes == 2);
    CHECK(tls_failures(server.total()) == 0);
  }
}

TEST_CASE_FIXTURE(clean_process, "tls handshake: a shutdown does not wait for those that stall") {
  listen_options listening;
  listening.handshake_timeout = 0ms;
  const tls_context context(server_tls());
  server host(one_core());
  host.listen("127.0.0.1:0", echo, over_tls(context, listening));
  host.listen(
      "127.0.0.1:0",
      [&](connection& conn) -> task<> {
        const alive frame;
        co_await conn.read();
        const bool done = co_await conn.start_tls(context);
        CHECK_FALSE(done);
        CHECK(conn.error() == errc::timed_out);
      },
      listening);
  host.start();
  tls_client begun(host.local_address(0));
  begun.socket().send_all(begun.handshake_step());
  REQUIRE(begun.receive());
  client upgrading(host.local_address(1));
  upgrading.send_all("STARTTLS\n");
  CHECK(eventually([&] { return host.stats().total.active == 2 && host.stats().total.bytes_received > 9; }));
  const auto asked = std::chrono::steady_clock::now();
  host.shutdown();
  CHECK(std::chrono::steady_clock::now() - asked < patience);
  CHECK(ended(begun.socket()));
  CHECK(ended(upgrading));
  CHECK(host.stats().total.tls_failed_timed_out == 2);
}

// What has come by then is served, though the core has not looked at it before the shutdown.
TEST_CASE_FIXTURE(clean_process, "tls handshake: a ClientHello that waits in the socket at a shutdown has begun") {
  test_server server(echo, one_core(), over_tls());
  tls_client accepted(server.where());
  CHECK(eventually([&] { return server.total().active == 1; }));
  tls_client queued(server.where());
  std::vector<tls_client*> peers{&accepted};
  {
    const blocked_core blocked(*server, 0);
    tls_client* late = &accepted;
    late->socket().send_all(late->handshake_step());
    queued.socket().send_all(queued.handshake_step());
    peers.push_back(&queued);
    server->begin_shutdown();
  }
  for (tls_client* peer : peers) {
    REQUIRE(peer->receive());
    peer->handshake();
    CHECK(peer->ended_cleanly());
  }
  server->wait();
  CHECK(server.total().tls_handshakes == 2);
}

TEST_CASE_FIXTURE(clean_process, "tls handshake: statistics tell versions and ciphers") {
  test_server server(echo, one_core(), over_tls());
  struct {
    int version;
    const char* ciphers;
    const char* suites;
    std::uint64_t core_stats::*counter;
  } const kinds[] = {
      {TLS1_2_VERSION, "ECDHE-ECDSA-AES128-GCM-SHA256", "", &core_stats::tls_aes_128_gcm},
      {TLS1_2_VERSION, "ECDHE-ECDSA-AES256-GCM-SHA384", "", &core_stats::tls_aes_256_gcm},
      {TLS1_2_VERSION, "ECDHE-ECDSA-CHACHA20-POLY1305", "", &core_stats::tls_chacha20_poly1305},
      {TLS1_3_VERSION, "", "TLS_AES_128_GCM_SHA256", &core_stats::tls_aes_128_gcm},
      {TLS1_3_VERSION, "", "TLS_AES_256_GCM_SHA384", &core_stats::tls_aes_256_gcm},
      {TLS1_3_VERSION, "", "TLS_CHACHA20_POLY1305_SHA256", &core_stats::tls_chacha20_poly1305},
  };
  core_stats before = server.total();
  for (const auto& kind : kinds) {
    tls_client_options how;
    how.min_version = how.max_version = kind.version;
    how.ciphers = kind.ciphers;
    how.ciphersuites = kind.suites;
    tls_client peer(server.where(), tls_profile(how));
    peer.handshake().send_all("x");
    CHECK(peer.recv_exactly(1) == "x");
    const core_stats now = server.total();
    CHECK(now.*kind.counter == before.*kind.counter + 1);
    CHECK(now.tls_handshakes == before.tls_handshakes + 1);
    before = now;
  }
  CHECK(before.tls_v1_2 == 3);
  CHECK(before.tls_v1_3 == 3);
  CHECK(before.tls_resumptions == 0);
  CHECK(tls_failures(before) == 0);
}

TEST_CASE_FIXTURE(clean_process, "tls handshake: the defaults prefer AES-128-GCM in both versions") {
  test_server server(echo, one_core(), over_tls());
  for (const int version : {TLS1_2_VERSION, TLS1_3_VERSION}) {
    tls_client peer(server.where(), only(version));
    peer.handshake();
    const std::string cipher = SSL_get_cipher_name(peer.ssl());
    CHECK(cipher == (version == TLS1_2_VERSION ? "ECDHE-ECDSA-AES128-GCM-SHA256" : "TLS_AES_128_GCM_SHA256"));
  }
}

}  // namespace
}  // namespace percore::test
