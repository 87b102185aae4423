// How servers end: drain, grace, halt.
#include <doctest/doctest.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "tests/support/clean_process.hpp"
#include "tests/support/test_server.hpp"

namespace percore::test {
namespace {

using namespace std::chrono_literals;

// Answers one message.
task<> answer_once(connection& conn) {
  const alive frame;
  if (auto data = co_await conn.read()) co_await conn.write(data);
}

// Runs the blocking shutdown beside the test.
class background {
 public:
  template <class F>
  explicit background(F body) : thread_([this, body] {
      body();
      done_ = true;
    }) {}
  ~background() { thread_.join(); }
  [[nodiscard]] bool done() const { return done_; }

 private:
  std::atomic<bool> done_ = false;
  std::thread thread_;
};

TEST_CASE_FIXTURE(clean_process, "shutdown: what waits in the accept queues is served first") {
  for (const char* where : {"127.0.0.1:0", "[::1]:0", "unix:@"}) {
    for (const bool everywhere : {false, true}) {
      CAPTURE(where);
      CAPTURE(everywhere);
      test_server server(answer_once, everywhere ? all_cores() : one_core(), {}, where);
      std::vector<client> peers;
      {
        std::vector<std::unique_ptr<blocked_core>> blocked;
        for (std::size_t core = 0; core < server->core_count(); ++core)
          blocked.push_back(std::make_unique<blocked_core>(*server, core));
        for (int i = 0; i < 100; ++i) {
          peers.push_back(server.connect());
          peers.back().send_all("queued");
        }
        CHECK(server.total().accepted == 0);
        server->begin_shutdown();
      }
      for (client& peer : peers) CHECK(peer.recv_to_end() == "queued");
      server->wait();
      CHECK(server.total().accepted == 100);
    }
  }
}

TEST_CASE_FIXTURE(clean_process, "shutdown: every request that was read under load is answered") {
  for (int round = 0; round < 3; ++round) {
    std::atomic<std::uint64_t> requests = 0;
    test_server server(
        [&](connection& conn) -> task<> {
          auto data = co_await conn.read();
          if (!data) co_return;  // accepted so late that its request was not there yet
          ++requests;
          co_await conn.write(data);
        },
        all_cores());
    std::atomic<std::uint64_t> answered = 0;
    event warm;
    std::vector<std::thread> clients;
    for (int i = 0; i < 6; ++i) {
      clients.emplace_back([&] {
        for (;;) {
          try {
            client peer(server.where());
            peer.send_all("load");
            if (peer.recv_to_end() != "load") return;
            if (++answered == 200) warm.set();
          } catch (const std::system_error&) {
            return;  // refused or reset: the listener has gone
          }
        }
      });
    }
    const address where = server.where();
    warm.wait();
    server->shutdown();
    for (std::thread& each : clients) each.join();
    CHECK(answered.load() == requests.load());
    CHECK(connection_refused(where));
  }
}

TEST_CASE_FIXTURE(clean_process, "shutdown: idle readers are told and may say goodbye") {
  channel<std::error_code> errors;
  event reading;
  test_server server(
      [&](connection& conn) -> task<> {
        const alive frame;
        reading.set();
        co_await conn.read();
        errors.put(conn.error());
        CHECK(conn.server_stopping());
        co_await conn.write("goodbye");
      },
      all_cores());
  std::vector<client> peers;
  for (int i = 0; i < 20; ++i) peers.push_back(server.connect());
  reading.wait(20);
  CHECK_FALSE(server->stopping());
  server->shutdown();
  CHECK(server->stopping());
  for (client& peer : peers) {
    CHECK(errors.take() == errc::shutting_down);
    CHECK(peer.recv_to_end() == "goodbye");
  }
  CHECK(server.total().halted == 0);
}

TEST_CASE_FIXTURE(clean_process, "shutdown: every way to wait for a new message is told") {
  for (const char kind : {'r', 't', 'f', 'u'}) {
    CAPTURE(kind);
    channel<std::error_code> errors;
    event reading;
    test_server server([&](connection& conn) -> task<> {
      std::array<std::byte, 10> target;
      reading.set();
      if (kind == 'r') co_await conn.read();
      if (kind == 't') co_await conn.read(target);
      if (kind == 'f') co_await conn.read_full(target);
      if (kind == 'u') co_await conn.read_until("\n", 10);
      errors.put(conn.error());
      // A handler that reads on is told again instead of waiting for ever.
      co_await conn.read();
      errors.put(conn.error());
    });
    client peer = server.connect();
    reading.wait();
    server->shutdown();
    CHECK(errors.take() == errc::shutting_down);
    CHECK(errors.take() == errc::shutting_down);
  }
}

TEST_CASE_FIXTURE(clean_process, "shutdown: a handler at work finishes and what was sent to it is read") {
  std::atomic<bool> go_on = false;
  event working;
  test_server server([&](connection& conn) -> task<> {
    working.set();
    co_await until(conn, go_on);
    auto data = co_await conn.read();  // arrived before the shutdown
    co_await conn.write(data);
  });
  client peer = server.connect();
  peer.send_all("request");
  working.wait();
  background ending([&] { server->shutdown(1h); });
  CHECK(eventually([&] { return server->stopping(); }));
  CHECK(eventually([&] { return connection_refused(server.where()); }));
  CHECK_FALSE(ending.done());
  go_on = true;
  CHECK(peer.recv_to_end() == "request");
  // Well before the hour: it returns with the last connection.
  CHECK(eventually([&] { return ending.done(); }));
  CHECK(server.total().halted == 0);
}

TEST_CASE_FIXTURE(clean_process, "shutdown: unsent bytes are still sent") {
  const std::string text = numbered_text(3'000'000);
  listen_options listening;
  listening.socket.send_buffer_bytes = 4096;
  test_server server([&](connection& conn) -> task<> { co_await conn.write(text); }, one_core(), listening);
  client peer = server.connect();
  const std::string start = peer.recv_exactly(1);
  background ending([&] { server->shutdown(); });
  CHECK(eventually([&] { return server->stopping(); }));
  CHECK((start + peer.recv_to_end() == text));
}

TEST_CASE_FIXTURE(clean_process, "shutdown: the end of the grace ends the rest") {
  event waiting;
  channel<bool> slept;
  test_server server(
      [&](connection& conn) -> task<> {
        const alive frame;
        auto data = co_await conn.read();
        waiting.set();
        if (data.text() == "sleep") {
          const bool whole = co_await conn.sleep_for(1h);
          slept.put(whole);
        } else if (data.text() == "stubborn") {
          for (;;) co_await conn.sleep_for(1ms);  // hears nothing
        } else {
          for (;;) co_await conn.read();
        }
      },
      all_cores());
  std::vector<client> peers;
  for (const char* kind : {"sleep", "stubborn", "deaf", "sleep", "stubborn", "deaf"}) {
    peers.push_back(server.connect());
    peers.back().send_all(kind);
  }
  waiting.wait(6);
  server->shutdown(50ms);
  CHECK(server.total().active == 0);
  CHECK(server.total().halted == 4);
  for (int i = 0; i < 2; ++i) CHECK_FALSE(slept.take());
  for (client& peer : peers) peer.wait_for_end();
  CHECK(alive::count() == 0);
}

TEST_CASE_FIXTURE(clean_process, "shutdown: the end of the grace ends a peer that takes nothing") {
  const std::string text = numbered_text(3'000'000);
  listen_options listening;
  listening.socket.send_buffer_bytes = 4096;
  test_server server([&](connection& conn) -> task<> { co_await conn.write(text); }, one_core(), listening);
  client peer = server.connect();
  peer.recv_exactly(1);
  server->shutdown(50ms);
  CHECK(server.total().active == 0);
}

TEST_CASE_FIXTURE(clean_process, "shutdown: a second call can shorten the grace and not lengthen it") {
  event waiting;
  test_server server([&](connection& conn) -> task<> {
    waiting.set();
    co_await conn.sleep_for(1h);
  });
  client peer = server.connect();
  waiting.wait();
  SUBCASE("no limit and then one") {
    server->begin_shutdown();
    server->shutdown(20ms);
  }
  SUBCASE("a long one and then a short one") {
    server->begin_shutdown(1h);
    server->shutdown(20ms);
  }
  SUBCASE("a short one and then none") {
    server->begin_shutdown(20ms);
    server->shutdown(0ms);
  }
  SUBCASE("a short one and then a long one") {
    server->begin_shutdown(20ms);
    server->shutdown(1h);
  }
  SUBCASE("no limit and then one that is over") {
    server->begin_shutdown();
    server->shutdown(-1ms);
  }
  SUBCASE("none and then halt") {
    server->begin_shutdown();
    server->halt();
  }
  CHECK(server.total().active == 0);
}

TEST_CASE_FIXTURE(clean_process, "shutdown: the longest grace is no short one") {
  for (const auto grace : {std::chrono::milliseconds::max(), std::chrono::milliseconds(9'223'372'036'855)}) {
    event waiting;
    test_server server([&](connection& conn) -> task<> {
      waiting.set();
      while (!conn.server_stopping()) co_await conn.sleep_for(1ms);
      const bool slept = co_await conn.sleep_for(20ms);
      if (slept) co_await conn.write("done");
    });
    client peer = server.connect();
    waiting.wait();
    server->shutdown(grace);
    CHECK(peer.recv_to_end() == "done");
  }
}

TEST_CASE_FIXTURE(clean_process, "shutdown: several threads end and wait at the same time") {
  test_server server(echo, all_cores());
  std::vector<client> peers;
  for (int i = 0; i < 10; ++i) peers.push_back(server.connect());
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&, i] {
      if (i % 3 == 0) server->wait();
      if (i % 3 == 1) server->shutdown(10s);
      if (i == 5) server->halt();
    });
  }
  for (std::thread& each : threads) each.join();
  CHECK(server.total().active == 0);
  server->wait();
  server->shutdown();
  server->halt();
}

TEST_CASE_FIXTURE(clean_process, "shutdown: halt destroys the handlers where they wait and resets") {
  const std::string large(4'000'000, 'x');
  std::atomic<int> waiting = 0;
  test_server server(
      [&](connection& conn) -> task<> {
        const alive frame;
        auto data = co_await conn.read();
        const char kind = data ? data.text().front() : 'r';
        ++waiting;
        std::array<std::byte, 10> target;
        const auto nested = [](connection& inner) -> task<> {
          const alive inner_frame;
          co_await inner.read();
        };
        for (;;) {
          if (kind == 'r') co_await conn.read();
          if (kind == 'f') co_await conn.read_full(target);
          if (kind == 'u') co_await conn.read_until("\n", 100);
          if (kind == 'w') co_await conn.write(large);
          if (kind == 's') co_await conn.sleep_for(1h);
          if (kind == 'y') co_await conn.yield();
          if (kind == 'n') co_await nested(conn);
        }
      },
      all_cores());
  std::vector<client> peers;
  for (const char* kind : {"r", "f", "u", "w", "s", "y", "n", "r", "f", "u", "w", "s", "y", "n"}) {
    peers.push_back(server.connect());
    peers.back().send_all(kind);
  }
  CHECK(eventually([&] { return waiting == 14; }));
  server->halt();
  CHECK(alive::count() == 0);
  CHECK(server.total().active == 0);
  CHECK(server.total().halted == 14);
  for (client& peer : peers) CHECK(peer.wait_for_end() == ending::reset);
}

TEST_CASE_FIXTURE(clean_process, "shutdown: the destructor halts") {
  client peer = [&] {
    test_server server([](connection& conn) -> task<> {
      const alive frame;
      co_await conn.sleep_for(1h);
    });
    client connected = server.connect();
    CHECK(eventually([&] { return server.total().active == 1; }));
    return connected;
  }();
  CHECK(alive::count() == 0);
  CHECK(peer.wait_for_end() == ending::reset);
}

TEST_CASE_FIXTURE(clean_process, "shutdown: on a core's thread it only begins and waiting there is refused") {
  channel<std::string> seen;
  test_server server([&](connection& conn) -> task<> {
    co_await conn.read();
    try {
      conn.owner().wait();
      seen.put("waited");
    } catch (const std::logic_error&) {
      seen.put("refused");
    }
    conn.owner().shutdown();
    seen.put(conn.server_stopping() ? "stopping" : "running");
    co_await conn.write("still here");
  });
  client peer = server.connect();
  peer.send_all("go");
  CHECK(seen.take() == "refused");
  CHECK(seen.take() == "stopping");
  CHECK(peer.recv_to_end() == "still here");
  server->wait();
}

TEST_CASE_FIXTURE(clean_process, "shutdown: a port is free again at once") {
  address where;
  for (int i = 0; i < 5; ++i) {
    server host(all_cores());
    host.listen(i == 0 ? address("127.0.0.1:0") : where, answer_once);
    host.start();
    where = host.local_address();
    for (int k = 0; k < 5; ++k) {
      client peer(where);
      peer.send_all("x");
      CHECK(peer.recv_to_end() == "x");  // the server's side closes first and keeps TIME_WAIT
    }
    host.shutdown();
  }
}

TEST_CASE_FIXTURE(clean_process, "shutdown: a server that was never started ends as well") {
  server host(one_core());
  CHECK_THROWS_AS(host.start(), std::logic_error);  // without a listener
  const alive probe;
  host.listen("127.0.0.1:0", [probe](connection& conn) -> task<> { co_await conn.read(); });
  CHECK(host.core_count() == 0);
}

}  // namespace
}  // namespace percore::test
