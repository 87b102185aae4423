// The stall watch: what keeps a core is reported, while it does.
#include <doctest/doctest.h>

#include <signal.h>
#include <time.h>

#include <atomic>
#include <chrono>
#include <stdexcept>
#include <string>
#include <thread>

#include "tests/support/clean_process.hpp"
#include "tests/support/test_server.hpp"

namespace percore::test {
namespace {

using std::chrono::milliseconds;

server_options watching(channel<stall>& reports, milliseconds threshold = milliseconds(20)) {
  server_options options = one_core();
  options.stalls.threshold = threshold;
  options.stalls.on_stall = [&reports](const stall& report) { reports.put(report); };
  return options;
}

TEST_CASE_FIXTURE(clean_process,
                  "stalls: a handler that keeps its core is reported with all there is to know") {
  channel<stall> reports;
  event go;
  test_server server(
      [&](connection& conn) -> task<> {
        co_await conn.read();
        go.wait();
        co_await conn.write("went on");
      },
      watching(reports));
  client peer = server.connect();
  peer.send_all("x");
  const stall report = reports.take();
  CHECK(report.core == 0);
  CHECK(report.in_handler);
  CHECK(report.listener == 0);
  CHECK(report.peer == peer.local_address());
  CHECK(report.duration >= milliseconds(20));
  CHECK(report.frames.size() > 2);
  CHECK(report.symbols.size() == report.frames.size());
  CHECK(report.unreported == 0);
  // The handle is the connection's: what is posted runs once the core goes on.
  event ran;
  CHECK(report.connection.post([&](connection&) { ran.set(); }) == post_result::posted);
  CHECK(server.total().stalls == 1);
  go.set();
  CHECK(peer.recv_to_end() == "went on");
  server->shutdown();
  CHECK(server.total().stalls == 1);
  CHECK(reports.size() == 0);
}

TEST_CASE_FIXTURE(clean_process, "stalls: a posted function counts, and reports come once a second at most") {
  channel<stall> reports;
  test_server server(echo, watching(reports));
  for (std::uint64_t i = 1; i <= 3; ++i) {
    blocked_core blocked(*server, 0);
    CHECK(eventually([&] { return server.total().stalls == i; }));
  }
  const stall report = reports.take();
  CHECK_FALSE(report.in_handler);
  CHECK(reports.size() <= 2);  // all three in a second, unless the machine is slow
  server->halt();
}

lone_coroutine lone_stall(event& go) {
  const auto nothing = [] {};
  const auto done = co_await offload(nothing);
  if (done) go.wait();
}

task<> spawned_stall(event& go) {
  go.wait();
  co_return;
}

TEST_CASE_FIXTURE(clean_process, "stalls: a coroutine of nobody's counts") {
  channel<stall> reports;
  event go;
  test_server server(echo, watching(reports));
  SUBCASE("that comes back from a helper") {
    CHECK(server->post(0, [&] { lone_stall(go); }) == post_result::posted);
  }
  SUBCASE("that was spawned") {
    CHECK(server->post(0, [&] { spawn(spawned_stall(go)); }) == post_result::posted);
  }
  const stall report = reports.take();
  CHECK_FALSE(report.in_handler);
  CHECK(report.frames.size() > 2);
  go.set();
  CHECK(still_serves(server));
  CHECK(server.total().stalls == 1);
}

TEST_CASE_FIXTURE(clean_process, "stalls: a core that sleeps or works in many small steps does not stall") {
  channel<stall> reports;
  test_server server(echo, watching(reports, milliseconds(200)));
  client peer = server.connect();
  const auto until = std::chrono::steady_clock::now() + milliseconds(300);
  while (std::chrono::steady_clock::now() < until) {
    peer.send_all("x");
    CHECK(peer.recv_exactly(1) == "x");
  }
  peer.close();
  std::this_thread::sleep_for(milliseconds(300));
  server->shutdown();
  CHECK(reports.size() == 0);
  CHECK(server.total().stalls == 0);
}

TEST_CASE_FIXTURE(clean_process,
                  "stalls: the program's own action for the signal is called, and comes back at the end") {
  static std::atomic<int> calls{0};
  calls = 0;
  struct sigaction action {};
  action.sa_handler = [](int) { calls.fetch_add(1); };
  struct sigaction before {};
  REQUIRE(::sigaction(SIGURG, &action, &before) == 0);
  {
    channel<stall> reports;
    test_server server(echo, watching(reports));
    REQUIRE(::raise(SIGURG) == 0);
    CHECK(calls == 1);
    CHECK(still_serves(server));
  }
  REQUIRE(::raise(SIGURG) == 0);
  CHECK(calls == 2);
  struct sigaction now {};
  REQUIRE(::sigaction(SIGURG, &before, &now) == 0);
  CHECK((now.sa_handler == action.sa_handler));
}

TEST_CASE("stalls: a threshold that cannot be is refused") {
  server_options options = one_core();
  options.stalls.threshold = milliseconds(-1);
  CHECK_THROWS_AS(server{options}, std::invalid_argument);
}

}  // namespace
}  // namespace percore::test
