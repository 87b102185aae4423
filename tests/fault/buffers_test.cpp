// More readers than read buffers.
#include <doctest/doctest.h>

#include <array>
#include <atomic>
#include <chrono>
#include <functional>
#include <string>
#include <vector>

#include "tests/fault/injection.hpp"
#include "tests/support/clean_process.hpp"
#include "tests/support/test_server.hpp"

namespace percore::test {
namespace {

using namespace std::chrono_literals;

server_options with_buffers(std::size_t count) {
  server_options options = one_core();
  options.read_buffers_per_core = count;
  return options;
}

void send_and_hear(client& peer, const std::string& text) {
  peer.send_all(text);
  CHECK(peer.recv_exactly(text.size()) == text);
}

void check_views_held_across_sleeps(std::size_t buffers, const fault_plan& plan) {
  test_server server(
      [](connection& conn) -> task<> {
        const alive frame;
        while (auto data = co_await conn.read()) {
          co_await conn.sleep_for(200us);
          const bool written = co_await conn.write(data);
          if (!written) break;
        }
      },
      with_buffers(buffers));
  const injected faults(plan);
  std::vector<client> peers;
  for (int i = 0; i < 30; ++i) peers.push_back(server.connect());
  for (std::size_t round = 0; round < 10; ++round) {
    const std::string text = numbered_text(200 + round);
    for (client& peer : peers) peer.send_all(text);
    for (client& peer : peers) CHECK(peer.recv_exactly(text.size()) == text);
  }
  CHECK(server.total().buffers_exhausted > 0);
  peers.clear();
  CHECK(eventually([&] { return server.total().active == 0; }));
}

TEST_CASE_FIXTURE(clean_process, "buffers: handlers that hold their views across sleeps all proceed") {
  fault_plan stuttering = no_faults();
  stuttering.short_read = stuttering.short_write = stuttering.would_block = stuttering.interrupted = 0.2;
  for (const std::size_t buffers : {1u, 2u}) {
    check_views_held_across_sleeps(buffers, no_faults());
    check_views_held_across_sleeps(buffers, stuttering);
  }
}

// A message that is only half there must not keep a buffer from others.
TEST_CASE_FIXTURE(clean_process, "buffers: half a message holds none") {
  test_server server(
      [](connection& conn) -> task<> {
        const alive frame;
        for (;;) {
          const bytes_view line = co_await conn.read_until("\n", 1000);
          if (!line) break;
          const bool written = co_await conn.write(line);
          if (!written) break;
        }
      },
      with_buffers(1));
  std::vector<client> slow;
  for (int i = 0; i < 10; ++i) {
    slow.push_back(server.connect());
    slow.back().send_all("half");
  }
  client quick = server.connect();
  for (int i = 0; i < 10; ++i) send_and_hear(quick, "whole\n");
  for (client& peer : slow) {
    peer.send_all(" and half\n");
    CHECK(peer.recv_exactly(14) == "half and half\n");
  }
}

// Nor must a read that has nothing to show.
TEST_CASE_FIXTURE(clean_process, "buffers: a read without a view holds none") {
  std::atomic<bool> go_on = false;
  event ready;
  // No plain function pointer: GCC 12 calls a captureless lambda's code through one with a null `this`, which a
  // coroutine's promise then binds a reference to (UBSan says so).
  std::function<task<>(connection&)> hold;
  SUBCASE("after the end of the stream") {
    hold = [](connection& conn) -> task<> {
      while (auto data = co_await conn.read()) {
      }
    };
  }
  SUBCASE("after read_full took the rest of a buffer") {
    hold = [](connection& conn) -> task<> {
      const bytes_view line = co_await conn.read_until("\n", 100);
      CHECK(line.text() == "first\n");
      std::array<std::byte, 6> rest;
      const bool all = co_await conn.read_full(rest);
      CHECK(all);
    };
  }
  SUBCASE("after release_view") {
    hold = [](connection& conn) -> task<> {
      co_await conn.read();
      conn.release_view();
    };
  }
  std::atomic<bool> first = true;
  test_server server(
      [&](connection& conn) -> task<> {
        const alive frame;
        if (first.exchange(false)) {
          co_await hold(conn);
          ready.set();
          co_await until(conn, go_on);
        } else {
          co_await echo(conn);
        }
      },
      with_buffers(1));
  client holder = server.connect();
  holder.send_all("first\nsecond");
  holder.half_close();
  ready.wait();
  client other = server.connect();
  other.send_all("hello");
  CHECK(eventually([&] { return server.total().bytes_sent == 5; }, 2s));
  go_on = true;
  CHECK(other.recv_exactly(5) == "hello");
}

// A connection that is to have the returned buffer may end before it takes it. The next in line must then get
// it.
TEST_CASE_FIXTURE(clean_process, "buffers: a returned buffer is not lost with the one that was to have it") {
  enum class way { timeout, lifetime, close } how = way::timeout;
  SUBCASE("by its read timeout") {}
  SUBCASE("by its lifetime") {
    how = way::lifetime;
  }
  SUBCASE("by a posted close") {
    how = way::close;
  }
  std::atomic<int> number = 0;
  event holding;
  event ended;
  channel<connection_handle> seconds;
  listen_options options;
  options.unsent_tail_bytes = 0;  // a write that the socket refuses waits
  test_server server(
      [&](connection& conn) -> task<> {
        const alive frame;
        const int mine = number.fetch_add(1);
        if (mine == 0) {
          const bytes_view held = co_await conn.read();
          CHECK(held.size() == 5);
          holding.set();
          co_await conn.write("x");  // the view is still alive
          conn.release_view();
          if (how == way::close) seconds.take().post([](connection& second) { second.close(); });
          co_await conn.sleep_for(1h);
        } else if (mine == 1) {
          seconds.put(conn.handle());
          if (how == way::timeout) conn.set_read_timeout(200ms);
          if (how == way::lifetime) conn.set_lifetime_timeout(200ms);
          const bytes_view data = co_await conn.read();
          CHECK_FALSE(data);
          ended.set();
        } else {
          co_await echo(conn);
        }
      },
      with_buffers(1), options);
  const call_counts calls;
  client holder = server.connect();
  REQUIRE(eventually([&] { return calls.of(call::epoll_ctl_add) == 1; }));  // it waits for its first bytes
  injected faults(failing(call::send, EAGAIN));
  holder.send_all("first");
  holding.wait();
  client second = server.connect();
  second.send_all("second");
  REQUIRE(eventually([&] { return server.total().buffers_exhausted == 1; }));
  client third = server.connect();
  third.send_all("third");
  REQUIRE(eventually([&] { return server.total().buffers_exhausted == 2; }));
  {
    // All in one turn of the loop: bytes for the holder bring an event that also says that it can write, its
    // handler goes on and gives the buffer back, and the second connection ends before its turn comes.
    blocked_core blocked(*server, 0);
    holder.send_all("!");
    std::this_thread::sleep_for(300ms);
  }
  ended.wait();
  CHECK(eventually([&] { return server.total().bytes_sent == 1 + 5; }, 5s));
}

}  // namespace
}  // namespace percore::test
