// Connections that the peer ends, at every stage.
#include <doctest/doctest.h>

#include <atomic>
#include <array>
#include <functional>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "tests/support/clean_process.hpp"
#include "tests/support/test_server.hpp"

namespace percore::test {
namespace {

using namespace std::chrono_literals;

// The first byte that the client sends chooses what its handler waits in when the client goes.
class stages {
 public:
  task<> handle(connection& conn) {
    const alive frame;
    auto first = co_await conn.read();
    const char stage = first ? first.text().front() : 'r';
    if (stage == 'p') {
      co_await conn.write(first);
      co_return;
    }
    if (first.size() == 1 && stage != 'w') conn.try_write("+");  // tells the client that the stage is reached
    bool failed = false;
    std::array<std::byte, 100> target;
    const std::string large(4'000'000, 'x');
    while (!failed) {
      if (stage == 'r') {
        failed = !co_await conn.read();
      } else if (stage == 't') {
        failed = co_await conn.read(target) == 0;
      } else if (stage == 'f') {
        failed = !co_await conn.read_full(target);
      } else if (stage == 'u') {
        failed = !co_await conn.read_until("\n", 100);
      } else if (stage == 'w') {
        failed = !co_await conn.write(large);
      } else if (stage == 's') {
        co_await until(conn, gone_);
        failed = !co_await conn.read();
      } else {
        while (!gone_) co_await conn.yield();
        failed = !co_await conn.read();
      }
    }
    ends_.put(conn.error());
  }

  std::error_code take() { return ends_.take(); }
  void client_is_gone() { gone_ = true; }

 private:
  channel<std::error_code> ends_;
  std::atomic<bool> gone_ = false;
};

// `go` ends the connection; returns the error that the handler saw.
std::error_code error_when_peer_ends(char stage, void (*go)(client&)) {
  stages seen;
  test_server server([&](connection& conn) { return seen.handle(conn); }, one_core(), small_send_buffer());
  client peer = server.connect();
  peer.send_all(std::string(1, stage));
  CHECK(peer.recv_exactly(1).size() == 1);  // '+', or the start of what is written
  go(peer);
  seen.client_is_gone();
  const std::error_code error = seen.take();
  peer.close();
  CHECK(still_serves(server));
  return error;
}

TEST_CASE_FIXTURE(clean_process, "ending: the peer half-closes at every stage of reading") {
  for (const char stage : {'r', 't', 'f', 'u', 's', 'y'}) {
    CAPTURE(stage);
    CHECK(error_when_peer_ends(stage, [](client& peer) { peer.half_close(); }) == errc::end_of_stream);
  }
}

TEST_CASE_FIXTURE(clean_process, "ending: the peer resets at every stage") {
  for (const char stage : {'r', 't', 'f', 'u', 's', 'y', 'w'}) {
    CAPTURE(stage);
    CHECK(error_when_peer_ends(stage, [](client& peer) { peer.reset(); }) == errc::connection_reset);
  }
}

TEST_CASE_FIXTURE(clean_process, "ending: the peer resets after part of a message") {
  for (const char stage : {'f', 'u'}) {
    CAPTURE(stage);
    CHECK(error_when_peer_ends(stage, [](client& peer) {
            peer.send_all("part");
            peer.reset();
          }) == errc::connection_reset);
  }
}

TEST_CASE_FIXTURE(clean_process, "ending: the peer closes with bytes unread while the handler writes") {
  // Closing with unread bytes sends a RST (RFC 2525, section 2.17), whichever way the kernel comes to know of it.
  CHECK(error_when_peer_ends('w', [](client& peer) { peer.close(); }) == errc::connection_reset);
}

TEST_CASE_FIXTURE(clean_process, "ending: the peer half-closes while the handler writes and gets all of it") {
  const std::string text = numbered_text(2'000'000);
  channel<bool> written;
  test_server server(
      [&](connection& conn) -> task<> {
        const bool all = co_await conn.write(text);
        written.put(all);
        while (co_await conn.read()) {
        }
      },
      one_core(), small_send_buffer());
  client peer = server.connect();
  const std::string start = peer.recv_exactly(1);
  peer.half_close();
  CHECK((start + peer.recv_to_end() == text));
  CHECK(written.take());
}

TEST_CASE_FIXTURE(clean_process, "ending: the peer goes before it is accepted") {
  channel<std::string> seen;
  test_server server([&](connection& conn) -> task<> {
    std::string all;
    while (auto data = co_await conn.read()) {
      if (data.text() == "ping") co_await conn.write(data);
      all += data.text();
    }
    seen.put(all + (conn.error() == errc::end_of_stream ? " end" : " reset"));
  });
  {
    blocked_core blocked(*server, 0);
    client silent = server.connect();
    silent.close();
    client speaking = server.connect();
    speaking.send_all("words");
    speaking.close();
    client resetting = server.connect();
    resetting.send_all("lost");
    resetting.reset();
  }
  CHECK(still_serves(server));
  CHECK(seen.take() == " end");
  CHECK(seen.take() == "words end");
  // Of the one that was reset the kernel may hand over a dead connection, with its bytes, or none (accept(2)).
  const std::string third = seen.take();
  CAPTURE(third);
  CHECK((third == "lost reset" || third == " reset" || third == "ping end"));
}

TEST_CASE_FIXTURE(clean_process, "ending: many peers reset at once while others go on") {
  test_server server(echo, all_cores());
  client steady = server.connect();
  for (int round = 0; round < 20; ++round) {
    std::vector<client> peers;
    for (int i = 0; i < 50; ++i) {
      peers.push_back(server.connect());
      peers.back().send_all("hello");
    }
    for (client& peer : peers) peer.reset();
    steady.send_all("on");
    CHECK(steady.recv_exactly(2) == "on");
  }
  CHECK(eventually([&] { return server.total().active == 1; }));
}

TEST_CASE_FIXTURE(clean_process, "ending: a handler that ignores every error keeps nobody else waiting") {
  for (const char kind : {'r', 't', 'f', 'u', 'w', 'p', 's', 'm'}) {
    CAPTURE(kind);
    std::atomic<bool> enough = false;
    event begun;
    test_server server([&](connection& conn) -> task<> {
      const alive frame;
      auto data = co_await conn.read();
      if (data.text() == "ping") {
        co_await conn.write(data);
        co_return;
      }
      begun.set();
      std::array<std::byte, 10> target;
      const std::array<bytes_view, 2> pieces = {bytes_view("x"), bytes_view("y")};
      while (!enough) {
        if (kind == 'r' || kind == 'm') co_await conn.read();
        if (kind == 't') co_await conn.read(target);
        if (kind == 'f') co_await conn.read_full(target);
        if (kind == 'u') co_await conn.read_until("\n", 10);
        if (kind == 'w' || kind == 'm') co_await conn.write("x");
        if (kind == 'p') co_await conn.write(std::span<const bytes_view>(pieces));
        if (kind == 's') {
          conn.try_write("x");  // meets the reset
          co_await conn.sleep_for(1ms);
        }
      }
    });
    client peer = server.connect();
    peer.send_all("loop");
    begun.wait();
    peer.reset();
    for (int i = 0; i < 3; ++i) CHECK(still_serves(server));
    enough = true;
  }
}

}  // namespace
}  // namespace percore::test
