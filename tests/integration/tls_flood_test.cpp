// Peers that send records without end, or take none: no core is kept busy by them, and what is kept for them is bounded.
#include <doctest/doctest.h>

#include <sys/socket.h>

#include <chrono>
#include <string>
#include <utility>

#include "tests/support/clean_process.hpp"
#include "tests/support/forged_records.hpp"
#include "tests/support/test_server.hpp"
#include "tests/support/tls_server.hpp"

#ifdef PERCORE_FAULTS
#include "tests/fault/kernel_tls.hpp"
#endif

namespace percore::test {
namespace {

using namespace std::chrono_literals;

// What a flood is made of.
enum class flood { key_updates, renegotiations, hello_requests, warnings, empty_records };

// A ClientHello of which only the type is ever looked at, and a HelloRequest (RFC 5246 7.4).
const std::string client_hello("\x01\x00\x00\x40", 4);
const std::string hello_request("\x00\x00\x00\x00", 4);
const std::string user_canceled("\x01\x5a", 2);  // a warning (RFC 5246 7.2)

std::string records_of(flood kind, tls_client& peer, std::size_t count) {
  std::string all;
  if (kind == flood::key_updates) {
    for (std::size_t i = 0; i < count; ++i) {
      SSL_key_update(peer.ssl(), SSL_KEY_UPDATE_NOT_REQUESTED);
      all += peer.handshake_step();
    }
    return all + peer.encrypt("flooded");
  }
  forged_records forge(peer);
  for (std::size_t i = 0; i < count; ++i) {
    switch (kind) {
      case flood::renegotiations:
        all += forge.make(record_type::handshake, client_hello + std::string(64, 'x'));
        break;
      case flood::hello_requests:
        all += forge.make(record_type::handshake, hello_request);
        break;
      case flood::warnings:
        all += forge.make(record_type::alert, user_canceled);
        break;
      default:
        all += forge.make(record_type::application_data, "");
        break;
    }
  }
  return all + forge.make(record_type::application_data, "flooded");
}

TEST_CASE_FIXTURE(clean_process, "tls flood: records without a byte for the handler do not keep the core") {
  flood kind = flood::key_updates;
  int version = TLS1_3_VERSION;
  SUBCASE("key updates") {}
  SUBCASE("renegotiations, each of which is answered") {
    kind = flood::renegotiations;
    version = TLS1_2_VERSION;
  }
  listen_options listening;
  listening.socket.receive_buffer_bytes = 1024 * 1024;
  listening.socket.send_buffer_bytes = 1024 * 1024;
  channel<std::string> seen;
  test_server server(
      [&](connection& conn) -> task<> {
        while (auto data = co_await conn.read()) {
          seen.put(std::string(data.text()));
          co_await conn.write(data);
        }
      },
      one_core(), over_tls(server_tls(), listening));
  tls_client flooder(server.where(), forgeable_profile(version));
  flooder.handshake();
  const int room = 1024 * 1024;
  CHECK(::setsockopt(flooder.socket().fd(), SOL_SOCKET, SO_SNDBUF, &room, sizeof room) == 0);
  tls_client other(server.where());
  other.handshake().send_all("first");
  CHECK(other.recv_exactly(5) == "first");
  CHECK(seen.take() == "first");
  const std::string records = records_of(kind, flooder, kind == flood::key_updates ? 10'000 : 2'500);
  REQUIRE(records.size() > 3 * 64 * 1024);  // two receives of 32 kB are what a turn allows
  {
    const blocked_core blocked(*server, 0);
    flooder.socket().send_all(records);
    other.send_all("ping");
  }
  CHECK(seen.take() == "ping");
  CHECK(seen.take() == "flooded");
  CHECK(other.recv_exactly(4) == "ping");
  CHECK(server.total().tls_failed_records == 0);
}

TEST_CASE_FIXTURE(clean_process, "tls flood: a blocking handler's time limits count while records come that say nothing") {
  bool by_deadline = false;
  SUBCASE("of a read") {}
  SUBCASE("of all") { by_deadline = true; }
  listen_options listening;
  listening.socket.receive_buffer_bytes = 1024 * 1024;
  event all_sent;
  channel<std::string> seen;
  test_server server(blocking([&](blocking_connection& conn) {
                       all_sent.wait();
                       if (by_deadline) {
                         conn.set_deadline(std::chrono::steady_clock::now());
                       } else {
                         conn.set_read_timeout(1ms);
                       }
                       const auto data = conn.read();
                       seen.put(data ? std::string(data.text()) : conn.error() == errc::timed_out ? "late" : "failed");
                     }),
                     one_core(), over_tls(server_tls(), listening));
  tls_client peer(server.where(), forgeable_profile(TLS1_3_VERSION));
  peer.handshake();
  const int room = 1024 * 1024;
  CHECK(::setsockopt(peer.socket().fd(), SOL_SOCKET, SO_SNDBUF, &room, sizeof room) == 0);
  peer.socket().send_all(records_of(flood::key_updates, peer, 10'000));
  all_sent.set();
  CHECK(seen.take() == "late");
}

TEST_CASE_FIXTURE(clean_process, "tls flood: records that say nothing end the connection when there are many") {
  flood kind = flood::empty_records;
  int version = TLS1_2_VERSION;
  std::size_t harmless = 0;
  SUBCASE("empty records of TLS 1.2") {
    harmless = 30;
  }
  SUBCASE("empty records of TLS 1.3") {
    version = TLS1_3_VERSION;
    harmless = 30;
  }
  SUBCASE("warnings of TLS 1.2") {
    kind = flood::warnings;
    harmless = 3;
  }
  SUBCASE("requests for a handshake, which only a server may send") {
    kind = flood::hello_requests;
  }
  channel<std::string> seen;
  test_server server(
      [&](connection& conn) -> task<> {
        while (auto data = co_await conn.read()) seen.put(std::string(data.text()));
        seen.put(conn.error() == errc::tls_failed ? "failed" : conn.error().message());
      },
      one_core(), over_tls());
  if (harmless != 0) {
    tls_client peer(server.where(), forgeable_profile(version));
    peer.handshake();
    peer.socket().send_all(records_of(kind, peer, harmless));
    CHECK(seen.take() == "flooded");
    peer.socket().reset();
    CHECK(seen.take() != "failed");
  }
  tls_client peer(server.where(), forgeable_profile(version));
  peer.handshake();
  peer.socket().send_all(records_of(kind, peer, 1'000));
  CHECK(seen.take() == "failed");
  (void)peer.socket().wait_for_end();
  CHECK(server.total().tls_failed_records == 1);
  CHECK(eventually([&] { return server.total().active == 0; }));
}

TEST_CASE_FIXTURE(clean_process, "tls flood: answers that nobody reads are bounded") {
  tls_options how = server_tls();
#ifdef PERCORE_FAULTS
  const kernel_tls_stand_in kernel;
  SUBCASE("of OpenSSL") {}
  SUBCASE("of the kernel") { how.kernel = kernel_tls::when_possible; }
#endif
  // A TCP client whose receive buffer is full drops acknowledgements with the data, and sends on only now and then.
  test_server server(echo, one_core(), over_tls(how, small_send_buffer()), "unix:@");
  tls_client peer(server.where(), forgeable_profile(TLS1_2_VERSION));
  peer.handshake();
  forged_records forge(peer);
  std::string reset;
  try {
    for (int i = 0; i < 100'000; ++i) {
      std::string some;
      for (int j = 0; j < 100; ++j) some += forge.make(record_type::handshake, client_hello);
      peer.socket().send_all(some);
    }
  } catch (const std::system_error& failure) {
    reset = failure.what();
  }
  CHECK_FALSE(reset.empty());
  CHECK(eventually([&] { return server.total().active == 0; }));
  CHECK(server.total().bytes_received < 100'000'000);
}

// --- peers that take nothing -------------------------------------------------------------------------------

// A certificate whose chain no small socket takes whole.
const certificate& long_certificate() {
  static const certificate made = [] {
    std::vector<std::string> names{"localhost"};
    for (int i = 0; i < 3000; ++i) names.push_back("name-" + std::to_string(i) + ".example.org");
    return authority().issue("localhost", names);
  }();
  return made;
}

// Without a handshake yet, and with little room for what it receives.
tls_client small_client(const test_server& server, int version) {
  tls_client_options how;
  how.min_version = how.max_version = version;
  client::options socket;
  socket.receive_buffer_bytes = 4096;
  return {server.where(), tls_profile(how), {}, socket};
}

TEST_CASE_FIXTURE(clean_process, "tls flood: a flight that the peer does not take ends with the handshake's deadline") {
  listen_options listening = small_send_buffer();
  listening.handshake_timeout = 0ms;
  SUBCASE("of the handshake") {
    listening.handshake_timeout = 200ms;
  }
  SUBCASE("of writes") {
    listening.write_timeout = 200ms;
  }
  SUBCASE("of idleness") {
    listening.idle_timeout = 200ms;
  }
  for (const int version : {TLS1_2_VERSION, TLS1_3_VERSION}) {
    CAPTURE(version);
    test_server server(echo, one_core(), over_tls(server_tls(long_certificate()), listening));
    tls_client peer = small_client(server, version);
    peer.socket().send_all(peer.handshake_step());
    // Ended, and no tail flushed to a peer that has shown that it takes nothing: close_timeout is 30 s.
    CHECK(eventually([&] { return server.total().tls_failed_timed_out == 1 && server.total().active == 0; }, 10s));
    CHECK(server.total().timeouts == 1);
    CHECK(server.total().unsent_tails == 1);
    CHECK(peer.socket().wait_for_end() == ending::reset);
  }
}

TEST_CASE_FIXTURE(clean_process, "tls flood: a flight that is taken slowly arrives whole") {
  listen_options listening = small_send_buffer();
  for (const int version : {TLS1_2_VERSION, TLS1_3_VERSION}) {
    CAPTURE(version);
    test_server server(echo, one_core(), over_tls(server_tls(long_certificate()), listening));
    tls_client peer = small_client(server, version);
    peer.handshake().send_all("taken");
    CHECK(peer.recv_exactly(5) == "taken");
  }
}

}  // namespace
}  // namespace percore::test
