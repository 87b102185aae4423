// The same handlers over plain sockets, TLS 1.2 and TLS 1.3: what they read and write does not tell which it
// is.
#include <doctest/doctest.h>

#include <array>
#include <atomic>
#include <exception>
#include <list>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/support/clean_process.hpp"
#include "tests/support/every_wire.hpp"

namespace percore::test {
namespace {

// Sends on a thread of its own, so that its test can read meanwhile. A server that no longer takes it is
// found by what the test reads.
class sending {
 public:
  sending(client& to, std::string bytes)
      : thread_([&to, all = std::move(bytes)] {
          try {
            to.send_all(all);
          } catch (const std::exception&) {
            ;
          }
        }) {}

 private:
  std::jthread thread_;
};

TEST_CASE_FIXTURE(clean_process, "tls stream: echo of every size") {
  over_every_wire([](const wire& over) {
    test_server server(echo, one_core(), over.listening());
    any_client peer = over.connect(server);
    for (const std::size_t size : {1U, 2U, 100U, 4095U, 4096U, 16'384U, 16'385U, 100'000U}) {
      const std::string text = numbered_text(size);
      peer.send_all(text);
      CHECK((peer.recv_exactly(size) == text));
    }
    peer.half_close();
    CHECK(all_of(peer).empty());
    CHECK(eventually([&] { return server.total().active == 0; }));
    CHECK(server.total().tls_handshakes == (over.encrypted() ? 1 : 0));
    CHECK(server.total().tls_truncated == 0);
  });
}

TEST_CASE_FIXTURE(clean_process, "tls stream: ten megabytes both ways through small sockets") {
  over_every_wire([](const wire& over) {
    const std::string text = numbered_text(sanitized ? 2'000'000 : 10'000'000);
    test_server server(echo, one_core(), over.listening(small_send_buffer()));
    any_client peer = over.connect(server, 4096);
    const std::string bytes = peer.encrypt(text);
    const sending now(peer.socket(), bytes);
    CHECK((peer.recv_exactly(text.size()) == text));
    CHECK(server.total().unsent_tails > 0);
  });
}

TEST_CASE_FIXTURE(clean_process, "tls stream: a writer waits for a slow reader") {
  over_every_wire([](const wire& over) {
    const std::string text = numbered_text(sanitized ? 2'000'000 : 10'000'000);
    std::atomic<bool> written = false;
    channel<bool> result;
    test_server server(
        [&](connection& conn) -> task<> {
          const bool all = co_await conn.write(text);
          written = true;
          result.put(all);
        },
        one_core(), over.listening(small_send_buffer()));
    any_client peer = over.connect(server, 4096);
    const std::string start = peer.recv_exactly(1);
    CHECK_FALSE(written.load());
    CHECK((start + all_of(peer) == text));
    CHECK(result.take());
  });
}

TEST_CASE_FIXTURE(clean_process, "tls stream: writes of many sizes keep their order over full sockets") {
  over_every_wire([](const wire& over) {
    const std::string text = numbered_text(1'000'000);
    test_server server(
        [&](connection& conn) -> task<> {
          std::size_t length = 1;
          for (std::size_t at = 0; at < text.size(); at += length, length = length * 7 % 9973) {
            const std::string piece = text.substr(at, length);
            if (length % 3 == 0 && conn.try_write(piece)) continue;
            if (!co_await conn.write(piece)) co_return;
          }
        },
        one_core(), over.listening(small_send_buffer()));
    any_client peer = over.connect(server, 4096);
    CHECK((all_of(peer) == text));
  });
}

TEST_CASE_FIXTURE(clean_process, "tls stream: pieces arrive as one text") {
  over_every_wire([](const wire& over) {
    const std::string text = numbered_text(500'000);
    channel<bool> result;
    bool small = false;
    SUBCASE("roomy sockets") {
      small = false;
    }
    SUBCASE("full sockets") {
      small = true;
    }
    test_server server(
        [&](connection& conn) -> task<> {
          // Short and long ones, empty ones among them, more than one sendmsg takes.
          std::vector<bytes_view> pieces;
          std::size_t length = 1;
          for (std::size_t at = 0; at < text.size(); at += length, length = length * 5 % 997) {
            pieces.push_back(bytes_view(std::string_view(text).substr(at, length)));
            if (at % 7 == 0) pieces.push_back(bytes_view());
          }
          const bool all = co_await conn.write(std::span<const bytes_view>(pieces));
          result.put(all);
          const std::array<bytes_view, 3> last = {bytes_view("a"), bytes_view(std::string_view(text)),
                                                  bytes_view("z")};
          const bool more = co_await conn.write_last(std::span<const bytes_view>(last));
          result.put(more);
        },
        one_core(), over.listening(small ? small_send_buffer() : listen_options()));
    any_client peer = over.connect(server, small ? 4096 : 0);
    CHECK((all_of(peer) == text + "a" + text + "z"));
    CHECK(result.take());
    CHECK(result.take());
  });
}

TEST_CASE_FIXTURE(clean_process, "tls stream: nothing to write is written at once") {
  over_every_wire([](const wire& over) {
    channel<bool> result;
    test_server server(
        [&](connection& conn) -> task<> {
          const bool nothing = co_await conn.write(bytes_view());
          result.put(nothing);
          const bool no_pieces = co_await conn.write(std::span<const bytes_view>());
          result.put(no_pieces);
          result.put(conn.try_write(bytes_view()));
          const bool last = co_await conn.write_last(bytes_view());
          result.put(last);
        },
        one_core(), over.listening());
    any_client peer = over.connect(server);
    CHECK(all_of(peer).empty());
    for (int i = 0; i < 4; ++i) CHECK(result.take());
  });
}

TEST_CASE_FIXTURE(clean_process, "tls stream: every kind of read sees the same bytes") {
  over_every_wire([](const wire& over) {
    channel<std::string> seen;
    test_server server(
        [&](connection& conn) -> task<> {
          auto line = co_await conn.read_until("\r\n", 1000);
          seen.put(std::string(line.text()));
          std::array<std::byte, 5> five;
          const bool full = co_await conn.read_full(five);
          seen.put(full ? std::string(bytes_view(std::span<const std::byte>(five)).text()) : "not full");
          std::array<std::byte, 3> three;
          const std::size_t some = co_await conn.read(three);
          seen.put(std::string(bytes_view(std::span<const std::byte>(three).first(some)).text()));
          auto rest = co_await conn.read();
          seen.put(std::string(rest.text()));
          conn.unread(rest.size() - 1);
          rest = co_await conn.read_more();
          seen.put(std::string(rest.text()));
          rest = co_await conn.read_until("\n", 1000);
          seen.put(std::string(rest.text()));
          seen.put(conn.error() == errc::end_of_stream ? "end" : conn.error().message());
          rest = co_await conn.read();
          seen.put(std::string(rest.text()));
          co_await conn.write("done");
        },
        one_core(), over.listening());
    any_client peer = over.connect(server);
    SUBCASE("in one record") {
      peer.send_all("line\r\n12345abcREST");
    }
    SUBCASE("in records of one byte, sent as one") {
      std::string bytes;
      for (const char c : std::string("line\r\n12345abcREST")) bytes += peer.encrypt(std::string(1, c));
      peer.socket().send_all(bytes);
    }
    CHECK(seen.take() == "line\r\n");
    CHECK(seen.take() == "12345");
    CHECK(seen.take() == "abc");
    CHECK(seen.take() == "REST");
    peer.send_all("X");
    CHECK(seen.take() == "ESTX");
    peer.send_all("no end of line");
    peer.half_close();
    CHECK(seen.take().empty());
    CHECK(seen.take() == "end");
    CHECK(seen.take() == "no end of line");
    CHECK(all_of(peer) == "done");
  });
}

TEST_CASE_FIXTURE(clean_process, "tls stream: bytes that trickle in one at a time are put together") {
  over_every_wire([](const wire& over) {
    test_server server(
        [](connection& conn) -> task<> {
          while (auto line = co_await conn.read_until("\n", 1000)) {
            if (!co_await conn.write(line)) break;
          }
        },
        one_core(), over.listening());
    any_client peer = over.connect(server);
    std::string bytes;
    std::string expected;
    for (int i = 0; i < 5; ++i) {
      expected += "line " + std::to_string(i) + "\n";
      bytes += peer.encrypt("line " + std::to_string(i) + "\n");
    }
    for (const char each : bytes) peer.socket().send_all(std::string(1, each));
    CHECK(peer.recv_exactly(expected.size()) == expected);
  });
}

TEST_CASE_FIXTURE(clean_process,
                  "tls stream: a request that comes with the last flight of the handshake is seen") {
  // Nothing else will ever wake the connection: what was received with the handshake is all there is.
  std::size_t lines = 1;
  SUBCASE("one") {
    lines = 1;
  }
  SUBCASE("more than a read buffer holds") {
    lines = 20'000;
  }
  for (const int version : {TLS1_2_VERSION, TLS1_3_VERSION}) {
    CAPTURE(version);
    server_options options = one_core();
    options.read_buffer_bytes = 1024;
    test_server server(
        [](connection& conn) -> task<> {
          while (auto line = co_await conn.read_until("\n", 100)) {
            if (!co_await conn.write(line)) break;
          }
        },
        options, over_tls());
    tls_client_options how;
    how.min_version = how.max_version = version;
    // TLS 1.2 lets a client speak right behind its last flight when it resumes only; in a full handshake the
    // server has the last word.
    session_ptr ticket;
    if (version == TLS1_2_VERSION) {
      tls_client first(server.where(), tls_profile(how));
      first.handshake();
      ticket = first.ticket();
      REQUIRE(ticket != nullptr);
    }
    tls_client peer(server.where(), tls_profile(how), ticket);
    std::string flight;
    while (!peer.handshake_done()) {
      flight = peer.handshake_step();
      if (peer.handshake_done()) break;
      peer.socket().send_all(flight);
      REQUIRE(peer.receive());
    }
    CHECK(peer.resumed() == (version == TLS1_2_VERSION));
    std::string text;
    for (std::size_t i = 0; i < lines; ++i) text += "line " + std::to_string(i) + "\n";
    const std::string bytes = flight + peer.encrypt(text);
    const sending now(peer.socket(), bytes);
    CHECK((peer.recv_exactly(text.size()) == text));
  }
}

TEST_CASE_FIXTURE(clean_process, "tls stream: many connections of one core keep their bytes apart") {
  // Each leaves records unread while another one's turn comes: they share the core's buffer.
  over_every_wire([](const wire& over) {
    server_options options = one_core();
    options.read_buffer_bytes = 1024;
    options.operations_per_turn = 2;
    test_server server(
        [](connection& conn) -> task<> {
          while (auto data = co_await conn.read()) {
            if (!co_await conn.write(data)) break;
            co_await conn.yield();
          }
        },
        options, over.listening());
    std::vector<any_client> peers;
    std::vector<std::string> texts;
    for (int i = 0; i < 8; ++i) {
      peers.push_back(over.connect(server));
      texts.push_back(std::to_string(i) + ": " + numbered_text(100'000 + static_cast<std::size_t>(i)));
    }
    std::list<sending> now;
    for (std::size_t i = 0; i < peers.size(); ++i)
      now.emplace_back(peers[i].socket(), peers[i].encrypt(texts[i]));
    for (std::size_t i = 0; i < peers.size(); ++i)
      CHECK((peers[i].recv_exactly(texts[i].size()) == texts[i]));
  });
}

}  // namespace
}  // namespace percore::test
