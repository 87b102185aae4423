// Timeouts and sleeps. Only lower bounds of time are checked: a busy machine may be late, the engine never early.
#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "tests/support/clean_process.hpp"
#include "tests/support/test_server.hpp"

namespace percore::test {
namespace {

using namespace std::chrono_literals;
using clock = std::chrono::steady_clock;

// The engine counts from the time of the loop turn, which began before the handler looked at its clock.
constexpr auto tolerance = 2ms;

struct outcome {
  std::error_code error;
  clock::duration took{};
};

template <connection_handler F>
void check_times_out(F handler, channel<outcome>& outcomes, std::chrono::milliseconds at_least,
                     listen_options options = {}) {
  options.socket.send_buffer_bytes = 4096;
  test_server server(handler, one_core(), options);
  client::options how;
  how.receive_buffer_bytes = 4096;
  client peer(server.where(), how);
  const outcome end = outcomes.take();
  CHECK(end.error == errc::timed_out);
  CHECK(end.took + tolerance >= at_least);
  CHECK(server.total().timeouts == 1);  // counted before the handler is told
}

TEST_CASE_FIXTURE(clean_process, "timeouts: every kind of read times out") {
  for (const char kind : {'r', 't', 'f', 'u'}) {
    for (const bool as_option : {true, false}) {
      CAPTURE(kind);
      CAPTURE(as_option);
      channel<outcome> outcomes;
      listen_options options;
      if (as_option) options.read_timeout = 30ms;
      check_times_out(
          [&](connection& conn) -> task<> {
            if (!as_option) conn.set_read_timeout(30ms);
            std::array<std::byte, 10> target;
            const auto start = clock::now();
            if (kind == 'r') co_await conn.read();
            if (kind == 't') co_await conn.read(target);
            if (kind == 'f') co_await conn.read_full(target);
            if (kind == 'u') co_await conn.read_until("\n", 100);
            outcomes.put({conn.error(), clock::now() - start});
          },
          outcomes, 30ms, options);
    }
  }
}

TEST_CASE_FIXTURE(clean_process, "timeouts: a read timeout is for the whole operation however much trickles in") {
  for (const char kind : {'f', 'u'}) {
    CAPTURE(kind);
    channel<std::error_code> ends;
    std::atomic<bool> ended = false;
    listen_options options;
    options.read_timeout = 200ms;
    test_server server(
        [&](connection& conn) -> task<> {
          std::array<std::byte, 20'000> target;
          if (kind == 'f') co_await conn.read_full(target);
          if (kind == 'u') co_await conn.read_until("\n", 20'000);
          ends.put(conn.error());
          ended = true;
          co_await conn.read();
        },
        one_core(), options);
    client peer = server.connect();
    const auto deadline = clock::now() + patience;
    while (!ended && clock::now() < deadline) {
      peer.send_all("x");
      std::this_thread::sleep_for(5ms);  // the pace of the trickle
    }
    CHECK(ends.take() == errc::timed_out);
  }
}

TEST_CASE_FIXTURE(clean_process, "timeouts: a read that timed out can be tried again and the connection still writes") {
  channel<std::error_code> errors;
  test_server server([&](connection& conn) -> task<> {
    conn.set_read_timeout(10ms);
    for (int i = 0; i < 3; ++i) {
      co_await conn.read();
      errors.put(conn.error());
    }
    if (!co_await conn.write("slow")) co_return;
    conn.set_read_timeout(0ms);
    auto data = co_await conn.read();
    co_await conn.write(data);
  });
  client peer = server.connect();
  for (int i = 0; i < 3; ++i) CHECK(errors.take() == errc::timed_out);
  CHECK(peer.recv_exactly(4) == "slow");
  peer.send_all("late");
  CHECK(peer.recv_exactly(4) == "late");
}

TEST_CASE_FIXTURE(clean_process, "timeouts: a peer that takes nothing times a write out") {
  for (const bool as_option : {true, false}) {
    const std::string text = numbered_text(4'000'000);
    channel<outcome> outcomes;
    listen_options options;
    if (as_option) options.write_timeout = 50ms;
    check_times_out(
        [&](connection& conn) -> task<> {
          if (!as_option) conn.set_write_timeout(50ms);
          const auto start = clock::now();
          co_await conn.write(text);
          outcomes.put({conn.error(), clock::now() - start});
        },
        outcomes, 50ms, options);
  }
}

// The client reads or writes a little at a time, so that its connection is never silent for long. When the machine
// has held the client up for half of the timeout or more, the outcome says nothing.
struct paced {
  clock::duration longest_gap{};

  template <class F>
  void run(clock::duration total, F step) {
    const auto start = clock::now();
    for (auto last = start; last - start < total;) {
      std::this_thread::sleep_for(20ms);
      step();
      const auto now = clock::now();
      longest_gap = std::max(longest_gap, now - last);
      last = now;
    }
  }
};

TEST_CASE_FIXTURE(clean_process, "timeouts: an idle timeout is put off by bytes in either direction") {
  channel<std::error_code> ends;
  listen_options options;
  options.idle_timeout = 1000ms;
  test_server server(
      [&](connection& conn) -> task<> {
        std::array<std::byte, 10'000> target;
        co_await conn.read_full(target);
        ends.put(conn.error());
      },
      one_core(), options);
  client peer = server.connect();
  paced pace;
  pace.run(1500ms, [&] { peer.send_all("x"); });
  const bool ended_early = ends.size() != 0;
  if (pace.longest_gap < 500ms) {
    CHECK_FALSE(ended_early);
  } else {
    MESSAGE("inconclusive: the client itself was held up");
  }
  CHECK(ends.take() == errc::timed_out);  // now that nothing comes
}

TEST_CASE_FIXTURE(clean_process, "timeouts: an idle timeout applies to reads and writes that see no byte") {
  const std::string text = numbered_text(4'000'000);
  for (const char kind : {'r', 'f', 'u', 'w'}) {
    for (const bool as_option : {true, false}) {
      CAPTURE(kind);
      channel<outcome> outcomes;
      listen_options options;
      if (as_option) options.idle_timeout = 40ms;
      check_times_out(
          [&](connection& conn) -> task<> {
            if (!as_option) conn.set_idle_timeout(40ms);
            std::array<std::byte, 10> target;
            const auto start = clock::now();
            if (kind == 'r') co_await conn.read();
            if (kind == 'f') co_await conn.read_full(target);
            if (kind == 'u') co_await conn.read_until("\n", 100);
            if (kind == 'w') co_await conn.write(text);
            outcomes.put({conn.error(), clock::now() - start});
          },
          outcomes, 40ms, options);
    }
  }
}

TEST_CASE_FIXTURE(clean_process, "timeouts: a slow reader that goes on taking bytes does not time out") {
  const std::string text = numbered_text(300'000);
  channel<bool> written;
  listen_options options;
  options.socket.send_buffer_bytes = 4096;
  options.write_timeout = 1000ms;
  options.unsent_tail_bytes = 0;
  test_server server(
      [&](connection& conn) -> task<> {
        const bool all = co_await conn.write(text);
        written.put(all);
      },
      one_core(), options);
  client::options how;
  how.receive_buffer_bytes = 4096;
  client peer(server.where(), how);
  paced pace;
  std::string all;
  pace.run(1500ms, [&] { all += peer.recv_some(2000); });
  if (pace.longest_gap < 500ms) {
    CHECK((all + peer.recv_to_end() == text));
    CHECK(written.take());
  } else {
    MESSAGE("inconclusive: the client itself was held up");
  }
}

TEST_CASE_FIXTURE(clean_process, "timeouts: a lifetime ends whatever the handler waits in") {
  const std::string text = numbered_text(4'000'000);
  for (const char kind : {'r', 'f', 'u', 'w', 's'}) {
    for (const bool as_option : {true, false}) {
      CAPTURE(kind);
      channel<outcome> outcomes;
      listen_options options;
      options.socket.send_buffer_bytes = 4096;
      if (as_option) options.lifetime_timeout = 40ms;
      test_server server(
          [&](connection& conn) -> task<> {
            const auto start = conn.start_time();
            if (!as_option) conn.set_lifetime_timeout(40ms);
            std::array<std::byte, 10> target;
            bool slept = false;
            if (kind == 'r') co_await conn.read();
            if (kind == 'f') co_await conn.read_full(target);
            if (kind == 'u') co_await conn.read_until("\n", 100);
            if (kind == 'w') co_await conn.write(text);
            if (kind == 's') slept = co_await conn.sleep_for(1h);
            outcomes.put({slept ? std::error_code() : conn.error(), clock::now() - start});
          },
          one_core(), options);
      client::options how;
      how.receive_buffer_bytes = 4096;
      client peer(server.where(), how);
      const outcome end = outcomes.take();
      CHECK(end.error == errc::timed_out);
      CHECK(end.took + tolerance >= 40ms);
      peer.wait_for_end();
    }
  }
}

TEST_CASE_FIXTURE(clean_process, "timeouts: no timeout fires where none is set and the peer is merely slow") {
  channel<std::error_code> ends;
  test_server server([&](connection& conn) -> task<> {
    auto data = co_await conn.read();
    ends.put(data ? std::error_code() : conn.error());
  });
  client peer = server.connect();
  std::this_thread::sleep_for(100ms);  // the slowness itself
  CHECK(ends.size() == 0);
  peer.send_all("x");
  CHECK_FALSE(ends.take());
}

TEST_CASE_FIXTURE(clean_process, "timeouts: sleeps are never early and end in order") {
  channel<std::chrono::milliseconds> woken;
  test_server server([&](connection& conn) -> task<> {
    auto data = co_await conn.read();
    const std::chrono::milliseconds length(std::stoi(std::string(data.text())));
    const auto start = conn.now();
    const bool slept = co_await conn.sleep_for(length);
    woken.put(slept && conn.now() - start >= length ? length : -1ms);
  });
  std::vector<client> peers;
  const std::vector<int> lengths = {300, 5, 200, 0, 100, 1};
  for (const int length : lengths) {
    peers.push_back(server.connect());
    peers.back().send_all(std::to_string(length));
  }
  std::vector<int> seen;
  for (std::size_t i = 0; i < lengths.size(); ++i) seen.push_back(static_cast<int>(woken.take().count()));
  std::sort(seen.begin(), seen.end());
  CHECK(seen == std::vector<int>{0, 1, 5, 100, 200, 300});
}

TEST_CASE_FIXTURE(clean_process, "timeouts: many sleeps of one handler add up") {
  channel<bool> done;
  test_server server([&](connection& conn) -> task<> {
    const auto start = conn.now();
    for (int i = 0; i < 100; ++i) co_await conn.sleep_for(500us);
    done.put(conn.now() - start >= 50ms);
  });
  client peer = server.connect();
  CHECK(done.take());
}

TEST_CASE_FIXTURE(clean_process, "timeouts: yield lets the other connections of the core run") {
  std::atomic<bool> served = false;
  channel<bool> done;
  test_server server([&](connection& conn) -> task<> {
    auto data = co_await conn.read();
    if (data.text() == "spin") {
      while (!served) co_await conn.yield();
      done.put(true);
    } else {
      served = true;
    }
  });
  client spinning = server.connect();
  spinning.send_all("spin");
  client other = server.connect();
  other.send_all("other");
  CHECK(done.take());
}

TEST_CASE_FIXTURE(clean_process, "timeouts: an end with unsent bytes that make no progress becomes a reset") {
  const std::string text = numbered_text(60'000);
  listen_options options;
  options.socket.send_buffer_bytes = 4096;
  SUBCASE("after the close timeout") { options.close_timeout = 50ms; }
  SUBCASE("after the write timeout") { options.write_timeout = 50ms; }
  test_server server(
      [&](connection& conn) -> task<> {
        const alive frame;
        conn.try_write(text);
        co_return;
      },
      one_core(), options);
  client::options how;
  how.receive_buffer_bytes = 4096;
  client peer(server.where(), how);
  CHECK(eventually([&] { return server.total().accepted == 1 && server.total().active == 0; }));
  CHECK(peer.wait_for_end() == ending::reset);
}

lone_coroutine read_until_timeout(connection& conn, std::atomic<bool>& timed_out) {
  const bytes_view data = co_await conn.read();
  timed_out = !data && conn.error() == errc::timed_out;
}

// Both have a place in the same turn of the loop: the read's deadline has passed, and the write goes on.
TEST_CASE_FIXTURE(clean_process, "timeouts: that of a read does not stop a write which waits for its turn") {
  server_options options = one_core();
  options.operations_per_turn = 1;
  std::atomic<bool> timed_out{false};
  test_server server(
      [&](connection& conn) -> task<> {
        conn.set_read_timeout(20ms);
        read_until_timeout(conn, timed_out);
        std::this_thread::sleep_for(40ms);  // until the deadline has passed
        co_await conn.write("late");
        const bool both = co_await until(conn, timed_out);
        CHECK(both);
      },
      options);
  client peer = server.connect();
  CHECK(peer.recv_exactly(4) == "late");
  CHECK(peer.wait_for_end() == ending::fin);
}

}  // namespace
}  // namespace percore::test
