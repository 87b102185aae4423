// The same handlers over plain sockets, TLS 1.2 and TLS 1.3: what they read and write does not tell which it is.
#include <doctest/doctest.h>

#include <array>
#include <atomic>
#include <chrono>
#include <exception>
#include <list>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/support/any_client.hpp"
#include "tests/support/clean_process.hpp"
#include "tests/support/test_server.hpp"
#include "tests/support/tls_client.hpp"
#include "tests/support/tls_server.hpp"

namespace percore::test {
namespace {

using namespace std::chrono_literals;

// What the bytes travel in.
class wire {
 public:
  explicit wire(int version) : version_(version) {}
  [[nodiscard]] bool encrypted() const noexcept { return version_ != 0; }
  [[nodiscard]] listen_options listening(listen_options options = {}) const {
    return version_ == 0 ? options : over_tls(server_tls(), std::move(options));
  }
  [[nodiscard]] any_client connect(const test_server& server, int receive_buffer_bytes = 0) const {
    client::options socket;
    socket.receive_buffer_bytes = receive_buffer_bytes;
    if (version_ == 0) return any_client(client(server.where(), socket));
    tls_client_options how;
    how.min_version = how.max_version = version_;
    tls_client peer(server.where(), tls_profile(how), {}, socket);
    peer.handshake();
    return any_client(std::move(peer));
  }

 private:
  int version_;
};

// Runs the test once for each.
template <class Test>
void over_every_wire(Test test) {
  SUBCASE("plain") { test(wire(0)); }
  SUBCASE("TLS 1.2") { test(wire(TLS1_2_VERSION)); }
  SUBCASE("TLS 1.3") { test(wire(TLS1_3_VERSION)); }
}

// Sends on a thread of its own, so that its test can read meanwhile. A server that no longer takes it is found by what
// the test reads.
class sending {
 public:
  sending(client& to, std::string bytes) : thread_([&to, all = std::move(bytes)] {
    try {
      to.send_all(all);
    } catch (const std::exception&) {
      ;
    }
  }) {}

 private:
  std::jthread thread_;
};

listen_options small_send_buffer() {
  listen_options options;
  options.socket.send_buffer_bytes = 4096;
  return options;
}

// All there is; with TLS it must have ended with close_notify.
std::string all_of(any_client& peer) {
  std::string all = peer.recv_to_end();
  CHECK(peer.ended_cleanly());
  return all;
}

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
    SUBCASE("roomy sockets") { small = false; }
    SUBCASE("full sockets") { small = true; }
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
          const std::array<bytes_view, 3> last = {bytes_view("a"), bytes_view(std::string_view(text)), bytes_view("z")};
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
    SUBCASE("in one record") { peer.send_all("line\r\n12345abcREST"); }
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

TEST_CASE_FIXTURE(clean_process, "tls stream: a request that comes with the last flight of the handshake is seen") {
  // Nothing else will ever wake the connection: what was received with the handshake is all there is.
  std::size_t lines = 1;
  SUBCASE("one") { lines = 1; }
  SUBCASE("more than a read buffer holds") { lines = 20'000; }
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
    // TLS 1.2 lets a client speak right behind its last flight when it resumes only; in a full handshake the server
    // has the last word.
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
    for (std::size_t i = 0; i < peers.size(); ++i) now.emplace_back(peers[i].socket(), peers[i].encrypt(texts[i]));
    for (std::size_t i = 0; i < peers.size(); ++i) CHECK((peers[i].recv_exactly(texts[i].size()) == texts[i]));
  });
}

// --- ends --------------------------------------------------------------------------------------------------

TEST_CASE_FIXTURE(clean_process, "tls stream: the server's end is a clean one") {
  over_every_wire([](const wire& over) {
    std::atomic<bool> go_on = false;
    char kind = 'r';
    SUBCASE("by returning") { kind = 'r'; }
    SUBCASE("by close()") { kind = 'c'; }
    SUBCASE("by write_last()") { kind = 'l'; }
    SUBCASE("by shutdown_write()") { kind = 's'; }
    test_server server(
        [&](connection& conn) -> task<> {
          if (kind == 'l') {
            co_await conn.write_last("bye");
          } else {
            co_await conn.write("bye");
          }
          if (kind == 'c') conn.close();
          if (kind == 's') conn.shutdown_write();
          if (kind != 'r') co_await until(conn, go_on);  // its end does not wait for the handler's
        },
        one_core(), over.listening());
    any_client peer = over.connect(server);
    CHECK(all_of(peer) == "bye");
    go_on = true;
  });
}

TEST_CASE_FIXTURE(clean_process, "tls stream: reading goes on after shutdown_write") {
  over_every_wire([](const wire& over) {
    channel<std::string> seen;
    const std::string text = numbered_text(1'000'000);
    test_server server(
        [&](connection& conn) -> task<> {
          co_await conn.write(text);
          conn.shutdown_write();
          const bool later = co_await conn.write("later");
          seen.put(later ? "sent" : conn.error() == errc::closed ? "closed" : conn.error().message());
          while (auto data = co_await conn.read_until("\n", 100)) seen.put(std::string(data.text()));
          seen.put(conn.error() == errc::end_of_stream ? "end" : conn.error().message());
        },
        one_core(), over.listening(small_send_buffer()));
    any_client peer = over.connect(server, 4096);
    CHECK((all_of(peer) == text));
    CHECK(seen.take() == "closed");
    peer.send_all("one\n");
    CHECK(seen.take() == "one\n");
    peer.send_all("two\n");
    CHECK(seen.take() == "two\n");
    peer.half_close();
    CHECK(seen.take() == "end");
  });
}

TEST_CASE_FIXTURE(clean_process, "tls stream: shutdown_write while a write waits ends the stream after its last byte") {
  over_every_wire([](const wire& over) {
    const std::string text = numbered_text(1'000'000);
    channel<connection_handle> handles;
    channel<bool> result;
    test_server server(
        [&](connection& conn) -> task<> {
          handles.put(conn.handle());
          const bool all = co_await conn.write(text);
          result.put(all);
          co_await conn.read();
        },
        one_core(), over.listening(small_send_buffer()));
    any_client peer = over.connect(server, 4096);
    const std::string start = peer.recv_exactly(1);
    event done;
    CHECK(handles.take().post([&](connection& conn) {
      conn.shutdown_write();
      done.set();
    }) == post_result::posted);
    done.wait();
    CHECK((start + all_of(peer) == text));
    CHECK(result.take());
  });
}

TEST_CASE_FIXTURE(clean_process, "tls stream: writing goes on after the peer's half-close") {
  over_every_wire([](const wire& over) {
    const std::string text = numbered_text(1'000'000);
    channel<std::error_code> end;
    test_server server(
        [&](connection& conn) -> task<> {
          while (co_await conn.read()) continue;
          end.put(conn.error());
          co_await conn.write(text);
        },
        one_core(), over.listening(small_send_buffer()));
    any_client peer = over.connect(server);
    peer.send_all("question");
    peer.half_close();
    CHECK(end.take() == errc::end_of_stream);
    CHECK((all_of(peer) == text));
  });
}

TEST_CASE_FIXTURE(clean_process, "tls stream: a FIN without close_notify is a truncation, in every kind of read") {
  for (const char kind : {'r', 'f', 'u', 't'}) {
    CAPTURE(kind);
    channel<std::error_code> end;
    test_server server(
        [&](connection& conn) -> task<> {
          std::array<std::byte, 10> target;
          if (kind == 'r') {
            while (co_await conn.read()) continue;
          }
          if (kind == 'f') co_await conn.read_full(target);
          if (kind == 'u') co_await conn.read_until("\n", 100);
          if (kind == 't') {
            while (co_await conn.read(target) != 0) continue;
          }
          end.put(conn.error());
          co_await conn.read_full(target);  // what is left of it, and the same answer again
          end.put(conn.error());
        },
        one_core(), over_tls());
    tls_client peer(server.where());
    peer.handshake();
    peer.send_all("half");
    peer.socket().half_close();
    CHECK(end.take() == errc::truncated);
    CHECK(end.take() == errc::truncated);
    CHECK(server.total().tls_truncated == 1);
  }
}

TEST_CASE_FIXTURE(clean_process, "tls stream: what follows the peer's close_notify is not read") {
  channel<std::string> seen;
  test_server server(
      [&](connection& conn) -> task<> {
        while (auto data = co_await conn.read()) seen.put(std::string(data.text()));
        seen.put(conn.error() == errc::end_of_stream ? "end" : conn.error().message());
        co_await conn.write("answer");
      },
      one_core(), over_tls());
  tls_client peer(server.where());
  peer.handshake();
  peer.send_all("text");
  CHECK(seen.take() == "text");
  peer.close_notify();
  peer.socket().send_all("anything at all");  // no FIN
  CHECK(seen.take() == "end");
  CHECK(peer.recv_to_end() == "answer");
  CHECK(peer.close_received());
}

TEST_CASE_FIXTURE(clean_process, "tls stream: resets on both sides are resets") {
  over_every_wire([](const wire& over) {
    channel<std::error_code> end;
    test_server server(
        [&](connection& conn) -> task<> {
          auto data = co_await conn.read();
          if (data) {
            conn.reset();
          } else {
            end.put(conn.error());
          }
        },
        one_core(), over.listening());
    {
      any_client peer = over.connect(server);
      CHECK(eventually([&] { return server.total().accepted == 1; }));
      peer.socket().reset();
      CHECK(end.take() == errc::connection_reset);
    }
    any_client peer = over.connect(server);
    peer.send_all("reset, please");
    CHECK(peer.socket().wait_for_end() == ending::reset);
  });
}

TEST_CASE_FIXTURE(clean_process, "tls stream: records that are not good end the connection and no other") {
  channel<std::string> seen;
  test_server server(
      [&](connection& conn) -> task<> {
        while (auto data = co_await conn.read()) {
          if (!co_await conn.write(data)) break;
        }
        seen.put(conn.error() == errc::tls_failed ? std::string(conn.tls_error()) : conn.error().message());
      },
      one_core(), over_tls());
  tls_client other(server.where());
  other.handshake();
  tls_client peer(server.where());
  peer.handshake();
  peer.send_all("good");
  CHECK(peer.recv_exactly(4) == "good");
  std::string bad = peer.encrypt("changed on its way");
  std::string reason;
  SUBCASE("a changed byte") {
    bad.back() = static_cast<char>(bad.back() ^ 1);
    reason = "decryption failed or bad record mac";
  }
  SUBCASE("a record over the limit") {
    bad[3] = bad[4] = '\xff';
    reason = "packet length too long";
  }
  SUBCASE("plain text") {
    bad = "plain text";
    reason = "wrong version number";
  }
  peer.socket().send_all(bad);
  const std::string told = seen.take();
  if (reason != "wrong version number") CHECK(told == reason);
  CHECK_FALSE(told.empty());
  std::string alert;
  try {
    peer.recv_to_end();
  } catch (const tls_went_wrong& wrong) {
    alert = wrong.what();
  }
  CHECK(alert.find("alert") != std::string::npos);
  CHECK(server.total().tls_failed_records == 1);
  other.send_all("still here");
  CHECK(other.recv_exactly(10) == "still here");
}

TEST_CASE_FIXTURE(clean_process, "tls stream: an alert of the peer is told") {
  channel<std::string> seen;
  test_server server(
      [&](connection& conn) -> task<> {
        co_await conn.read();
        seen.put(conn.error() == errc::tls_failed ? std::string(conn.tls_error()) : conn.error().message());
      },
      one_core(), over_tls());
  tls_client peer(server.where());
  peer.handshake();
  peer.socket().send_all("");
  // Something that this client's own OpenSSL will not take: it answers with an alert.
  BIO_write(SSL_get_rbio(peer.ssl()), "\x17\x03\x03\x00\x20xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx", 37);
  CHECK_THROWS_AS(peer.recv_some(), tls_went_wrong);
  CHECK(seen.take() == "sslv3 alert bad record mac");
}

// --- timeouts ----------------------------------------------------------------------------------------------

TEST_CASE_FIXTURE(clean_process, "tls stream: read, idle, write and lifetime timeouts") {
  over_every_wire([](const wire& over) {
    const std::string text = numbered_text(4'000'000);
    listen_options options = small_send_buffer();
    char kind = 'r';
    SUBCASE("read") { options.read_timeout = 50ms; }
    SUBCASE("idle") { options.idle_timeout = 50ms; }
    SUBCASE("lifetime in a read") {
      options.lifetime_timeout = 300ms;
    }
    SUBCASE("write") {
      options.write_timeout = 50ms;
      kind = 'w';
    }
    SUBCASE("lifetime in a write") {
      options.lifetime_timeout = 300ms;
      kind = 'w';
    }
    channel<std::error_code> end;
    test_server server(
        [&](connection& conn) -> task<> {
          if (kind == 'r') co_await conn.read();
          if (kind == 'w') co_await conn.write(text);
          end.put(conn.error());
        },
        one_core(), over.listening(options));
    any_client peer = over.connect(server, 4096);
    if (kind == 'r' && over.encrypted()) {
      // A part of a record is no progress for the handler.
      const std::string record = peer.encrypt("never whole");
      peer.socket().send_all(std::string_view(record).substr(0, 7));
    }
    CHECK(end.take() == errc::timed_out);
    CHECK(server.total().timeouts == 1);
  });
}

TEST_CASE_FIXTURE(clean_process, "tls stream: a close never waits longer than its deadline for a peer") {
  over_every_wire([](const wire& over) {
    const std::string text = numbered_text(60'000);
    listen_options options = small_send_buffer();
    options.close_timeout = 50ms;
    test_server server(
        [&](connection& conn) -> task<> {
          conn.try_write(text);
          co_return;
        },
        one_core(), over.listening(options));
    any_client peer = over.connect(server, 4096);
    CHECK(eventually([&] { return server.total().accepted == 1 && server.total().active == 0; }));
    CHECK(peer.socket().wait_for_end() == ending::reset);
  });
}

TEST_CASE_FIXTURE(clean_process, "tls stream: a shutdown of the server ends idle connections cleanly") {
  over_every_wire([](const wire& over) {
    test_server server(echo, one_core(), over.listening());
    any_client idle = over.connect(server);
    idle.send_all("x");
    CHECK(idle.recv_exactly(1) == "x");
    server->shutdown();
    CHECK(all_of(idle).empty());
  });
}

}  // namespace
}  // namespace percore::test
