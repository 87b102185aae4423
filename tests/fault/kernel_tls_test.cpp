// TLS that the kernel sends (tls_options::kernel): when it is tried, what is done when it cannot be, and that a client
// sees no difference. What whole streams look like over it is in tls_stream_test.cpp.
#include <doctest/doctest.h>

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/tls.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>
#include <utility>

#include "engine/sys/kernel_tls.hpp"
#include "tests/fault/injection.hpp"
#include "tests/fault/kernel_tls.hpp"
#include "tests/support/clean_process.hpp"
#include "tests/support/test_server.hpp"
#include "tests/support/tls_client.hpp"
#include "tests/support/tls_server.hpp"

namespace percore::test {
namespace {

tls_options by_kernel() {
  tls_options options = server_tls();
  options.kernel = kernel_tls::when_possible;
  return options;
}

tls_client_options tls_1_3() {
  tls_client_options how;
  how.min_version = TLS1_3_VERSION;
  return how;
}

tls_client connected(const test_server& server, tls_client_options how = {}, const session_ptr& ticket = {}) {
  tls_client peer(server.where(), tls_profile(how), ticket);
  peer.handshake();
  return peer;
}

// One EAGAIN, and room again at once.
fault_plan once_full(call which, std::uint32_t after = 0) {
  fault_plan plan = failing(which, EAGAIN, 1, after);
  plan.edge_follows = true;
  return plan;
}

std::string exchanged(tls_client& peer, const std::string& text) {
  peer.send_all(text);
  return peer.recv_exactly(text.size());
}

TEST_CASE_FIXTURE(clean_process, "kernel TLS: every cipher of both versions") {
  const kernel_tls_stand_in kernel;
  tls_client_options how;
  SUBCASE("TLS 1.3, AES-128") { how.ciphersuites = "TLS_AES_128_GCM_SHA256"; }
  SUBCASE("TLS 1.3, AES-256") { how.ciphersuites = "TLS_AES_256_GCM_SHA384"; }
  SUBCASE("TLS 1.3, ChaCha20") { how.ciphersuites = "TLS_CHACHA20_POLY1305_SHA256"; }
  SUBCASE("TLS 1.2, AES-128") { how.ciphers = "ECDHE+AES128+AESGCM"; }
  SUBCASE("TLS 1.2, AES-256") { how.ciphers = "ECDHE+AES256+AESGCM"; }
  SUBCASE("TLS 1.2, ChaCha20") { how.ciphers = "ECDHE+CHACHA20"; }
  if (!how.ciphers.empty()) how.max_version = TLS1_2_VERSION;
  channel<bool> told;
  test_server server(
      [&](connection& conn) -> task<> {
        told.put(conn.tls()->kernel_sends);
        co_await echo(conn);
      },
      one_core(), over_tls(by_kernel()));
  tls_client peer = connected(server, how);
  CHECK(told.take());
  for (const std::size_t size : {1U, 1000U, 16'384U, 100'000U}) {
    const std::string text = numbered_text(size);
    CHECK((exchanged(peer, text) == text));
  }
  peer.half_close();
  CHECK(peer.recv_to_end().empty());
  CHECK(peer.close_received());
  CHECK(server.total().tls_kernel_sends == 1);
}

TEST_CASE_FIXTURE(clean_process, "kernel TLS: files are sent by sendfile, and copied only without it") {
  kernel_tls_stand_in kernel;
  bool taken = true;
  tls_client_options how;
  SUBCASE("TLS 1.3") { how.min_version = TLS1_3_VERSION; }
  SUBCASE("TLS 1.2") { how.max_version = TLS1_2_VERSION; }
  SUBCASE("the kernel has no TLS") {
    kernel.ulp_error = ENOENT;
    taken = false;
  }
  const std::string text = numbered_text(300'000);
  const int file = ::open("/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
  REQUIRE(::write(file, text.data(), text.size()) == static_cast<ssize_t>(text.size()));
  channel<sent_file> result;
  {
    test_server server(
        [&](connection& conn) -> task<> {
          const sent_file sent = co_await conn.send_file(file, 0, text.size());
          result.put(sent);
          co_await conn.write("behind it");
        },
        one_core(), over_tls(by_kernel()));
    const call_counts counts;
    tls_client peer = connected(server, how);
    CHECK((peer.recv_exactly(text.size()) == text));
    CHECK(peer.recv_to_end() == "behind it");
    CHECK(peer.close_received());
    const sent_file sent = result.take();
    CHECK(sent);
    CHECK(sent.bytes == text.size());
    CHECK(kernel.file_bytes == (taken ? text.size() : 0));
    CHECK((counts.of(call::pread) == 0) == taken);
  }
  ::close(file);
}

TEST_CASE_FIXTURE(clean_process, "kernel TLS: not unless it is asked for") {
  const kernel_tls_stand_in kernel;
  test_server server(echo, one_core(), over_tls());
  tls_client peer = connected(server);
  CHECK(exchanged(peer, "ping") == "ping");
  CHECK(kernel.asked == 0);
  CHECK(server.total().tls_kernel_sends == 0);
}

TEST_CASE_FIXTURE(clean_process, "kernel TLS: what the kernel refuses OpenSSL does") {
  kernel_tls_stand_in kernel;
  unsigned asked = 3;
  SUBCASE("no module: asked once only") {
    kernel.ulp_error = ENOENT;
    asked = 1;
  }
  SUBCASE("not for this socket") { kernel.ulp_error = EOPNOTSUPP; }
  SUBCASE("not these keys") { kernel.keys_error = EINVAL; }
  channel<bool> told;
  test_server server(
      [&](connection& conn) -> task<> {
        told.put(conn.tls()->kernel_sends);
        co_await echo(conn);
      },
      one_core(), over_tls(by_kernel()));
  for (int i = 0; i < 3; ++i) {
    tls_client peer = connected(server);
    CHECK_FALSE(told.take());
    CHECK(exchanged(peer, "ping") == "ping");
    peer.half_close();
    CHECK(peer.ended_cleanly());
  }
  CHECK(kernel.asked == asked);
  CHECK(server.total().tls_kernel_sends == 0);
  CHECK(server.total().tls_handshakes == 3);
}

// The kernel's first record has to follow the flight of the handshake, which must be on its way by then.
TEST_CASE_FIXTURE(clean_process, "kernel TLS: not when the flight before is stuck") {
  const kernel_tls_stand_in kernel;
  test_server server(echo, one_core(), over_tls(by_kernel()));
  const injected full(once_full(call::send));
  tls_client peer = connected(server);
  CHECK(exchanged(peer, "ping") == "ping");
  CHECK(kernel.asked == 0);
  CHECK(server.total().tls_kernel_sends == 0);
}

TEST_CASE_FIXTURE(clean_process, "kernel TLS: tickets are resumed") {
  const kernel_tls_stand_in kernel;
  tls_client_options how;
  SUBCASE("TLS 1.2") { how.max_version = TLS1_2_VERSION; }
  SUBCASE("TLS 1.3") { how.min_version = TLS1_3_VERSION; }
  test_server server(echo, one_core(), over_tls(by_kernel()));
  tls_client first = connected(server, how);
  CHECK(exchanged(first, "ping") == "ping");
  tls_client second = connected(server, how, first.ticket());
  CHECK(exchanged(second, "ping") == "ping");
  CHECK(second.resumed());
  CHECK(server.total().tls_kernel_sends == 2);
}

TEST_CASE_FIXTURE(clean_process, "kernel TLS: messages wait while the socket has no room") {
  const kernel_tls_stand_in kernel;
  test_server server(echo, one_core(), over_tls(by_kernel()));
  // The ticket is the first message, close_notify the second.
  std::uint32_t passed = 0;
  SUBCASE("the ticket") { passed = 0; }
  SUBCASE("close_notify") { passed = 1; }
  const injected full(once_full(call::sendmsg, passed));
  tls_client peer = connected(server, tls_1_3());
  CHECK(exchanged(peer, "ping") == "ping");
  peer.half_close();
  CHECK(peer.recv_to_end().empty());
  CHECK(peer.close_received());
  CHECK(peer.ticket() != nullptr);
  CHECK(kernel.messages == 2);
  CHECK(sys::faults_injected(call::sendmsg) > 0);
}

TEST_CASE_FIXTURE(clean_process, "kernel TLS: a message that cannot be sent ends the connection") {
  const kernel_tls_stand_in kernel;
  test_server server(echo, one_core(), over_tls(by_kernel()));
  const injected broken(failing(call::sendmsg, ECONNRESET));
  CHECK_THROWS(connected(server, tls_1_3()).recv_exactly(1));
  CHECK(eventually([&] { return server.total().active == 0; }));
}

TEST_CASE_FIXTURE(clean_process, "kernel TLS: new keys") {
  const kernel_tls_stand_in kernel;
  test_server server(echo, one_core(), over_tls(by_kernel()));
  tls_client peer = connected(server, tls_1_3());
  CHECK(exchanged(peer, "ping") == "ping");
  SUBCASE("of the peer's own sending") {
    for (int i = 0; i < 3; ++i) {
      REQUIRE(SSL_key_update(peer.ssl(), SSL_KEY_UPDATE_NOT_REQUESTED) == 1);
      CHECK(exchanged(peer, "pong") == "pong");
    }
    CHECK(server.total().tls_failed_records == 0);
  }
  SUBCASE("asked of the server: the connection ends") {
    REQUIRE(SSL_key_update(peer.ssl(), SSL_KEY_UPDATE_REQUESTED) == 1);
    CHECK_THROWS(exchanged(peer, "pong") + exchanged(peer, "pong"));
    CHECK(eventually([&] { return server.total().active == 0; }));
    CHECK(server.total().tls_failed_records == 1);
  }
}

TEST_CASE_FIXTURE(clean_process, "kernel TLS: after start_tls") {
  const kernel_tls_stand_in kernel;
  const tls_context context(by_kernel());
  test_server server([&](connection& conn) -> task<> {
    const auto hello = co_await conn.read_until("\n", 100);
    const bool done = hello && co_await conn.write("go\n") && co_await conn.start_tls(context);
    if (done) co_await echo(conn);
  });
  client plain = server.connect();
  plain.send_all("hello\n");
  CHECK(plain.recv_until("\n") == "go\n");
  tls_client peer(std::move(plain), tls_profile());
  peer.handshake();
  CHECK(exchanged(peer, "ping") == "ping");
  CHECK(server.total().tls_kernel_sends == 1);
}

// Whether this machine has the module or not.
TEST_CASE_FIXTURE(clean_process, "kernel TLS: the kernel of this machine") {
  test_server server(echo, one_core(), over_tls(by_kernel()));
  tls_client peer = connected(server);
  CHECK(exchanged(peer, "ping") == "ping");
  CHECK(server.total().tls_kernel_sends <= 1);
}

TEST_CASE_FIXTURE(clean_process, "kernel TLS: keys of an unknown cipher") {
  const tls_crypto_info info{TLS_1_3_VERSION, 9999};
  CHECK(sys::start_kernel_tls(-1, &info) == -EOPNOTSUPP);
}

}  // namespace
}  // namespace percore::test
