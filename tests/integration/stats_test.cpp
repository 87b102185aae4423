// Counters.
#include <doctest/doctest.h>

#include <atomic>
#include <stdexcept>
#include <string>
#include <thread>

#include "tests/support/clean_process.hpp"
#include "tests/support/test_server.hpp"

namespace percore::test {
namespace {

using namespace std::chrono_literals;

TEST_CASE_FIXTURE(clean_process, "stats: connections and bytes are counted exactly") {
  test_server server(echo, all_cores());
  const std::string text = numbered_text(100'000);
  for (int i = 0; i < 10; ++i) {
    client peer = server.connect();
    peer.send_all(text);
    peer.half_close();
    CHECK((peer.recv_to_end() == text));
  }
  client open = server.connect();
  open.send_all("x");
  CHECK(open.recv_exactly(1) == "x");
  // The client may have the bytes before the core has counted them.
  CHECK(eventually([&] { return server.total().active == 1 && server.total().bytes_sent == 1'000'001; }));
  const core_stats total = server.total();
  CHECK(total.accepted == 11);
  CHECK(total.bytes_received == 1'000'001);
  CHECK(total.bytes_sent == 1'000'001);
  CHECK(total.handler_errors == 0);
  CHECK(total.resets_received == 0);
  CHECK(total.timeouts == 0);
  CHECK(total.refused_limit == 0);
  CHECK(total.refused_memory == 0);
  CHECK(total.frames_on_heap == 0);
  CHECK(total.wakeups > 0);
  CHECK(total.events > 0);
}

TEST_CASE_FIXTURE(clean_process, "stats: the total is the sum of the cores") {
  test_server server(
      [](connection& conn) -> task<> {
        auto data = co_await conn.read();
        if (data.text() == "throw") throw std::runtime_error("on request");
        co_await conn.write(data);
      },
      all_cores());
  for (int i = 0; i < 40; ++i) {
    client peer = server.connect();
    peer.send_all(i % 4 == 0 ? "throw" : "echo");
    (void)peer.wait_for_end();
  }
  CHECK(eventually([&] { return server.total().active == 0; }));
  server->shutdown();  // no counter moves afterwards
  const server_stats all = server->stats();
  CHECK(all.cores.size() == server->placement().cores.size());
  core_stats sum;
  for (const core_stats& core : all.cores) sum += core;
  CHECK(sum.accepted == 40);
  CHECK(sum.handler_errors == 10);
  CHECK(all.total.accepted == sum.accepted);
  CHECK(all.total.handler_errors == sum.handler_errors);
  CHECK(all.total.bytes_received == sum.bytes_received);
  CHECK(all.total.bytes_sent == sum.bytes_sent);
  CHECK(all.total.wakeups == sum.wakeups);
  CHECK(all.total.events == sum.events);
  CHECK(sum.bytes_sent == 30 * 4);
}

TEST_CASE_FIXTURE(clean_process, "stats: causes are told apart") {
  channel<std::error_code> ends;
  test_server server([&](connection& conn) -> task<> {
    auto data = co_await conn.read();
    if (data.text() == "timeout") conn.set_read_timeout(5ms);
    co_await conn.read();
    ends.put(conn.error());
  });
  client resetting = server.connect();
  resetting.send_all("reset");
  resetting.reset();
  CHECK(ends.take() == errc::connection_reset);
  client slow = server.connect();
  slow.send_all("timeout");
  CHECK(ends.take() == errc::timed_out);
  client polite = server.connect();
  polite.send_all("end");
  polite.half_close();
  CHECK(ends.take() == errc::end_of_stream);
  CHECK(eventually([&] { return server.total().active == 0; }));
  CHECK(server.total().resets_received == 1);
  CHECK(server.total().timeouts == 1);
  CHECK(server.total().handler_errors == 0);
}

TEST_CASE_FIXTURE(clean_process, "stats: can be read before the start and after the end and while everything runs") {
  server host(all_cores());
  host.listen("127.0.0.1:0", echo);
  CHECK(host.stats().total.accepted == 0);
  host.start();
  std::atomic<bool> stop = false;
  std::thread reader([&] {
    std::uint64_t accepted = 0;
    while (!stop) {
      const core_stats now = host.stats().total;
      CHECK(now.accepted >= accepted);  // a counter never goes back
      accepted = now.accepted;
    }
  });
  for (int i = 0; i < 200; ++i) {
    client peer(host.local_address());
    peer.send_all("x");
    CHECK(peer.recv_exactly(1) == "x");
  }
  stop = true;
  reader.join();
  host.shutdown();
  CHECK(host.stats().total.accepted == 200);
  CHECK(host.stats().total.active == 0);
}

TEST_CASE_FIXTURE(clean_process, "stats: each listener tells how it is steered and why") {
  server host(all_cores());
  CHECK(host.stats().listeners.empty());
  listen_options hashed;
  hashed.socket.steering = steering::hash;
  listen_options by_cpu;
  by_cpu.socket.steering = steering::incoming_cpu;
  host.listen("127.0.0.1:0", echo);
  host.listen("127.0.0.1:0", echo, hashed);
  host.listen("127.0.0.1:0", echo, by_cpu);
  host.listen("unix:@", echo);
  host.listen_fd(listening_socket("127.0.0.1:0"), echo);
  host.start();
  const std::vector<listener_stats> listeners = host.stats().listeners;
  REQUIRE(listeners.size() == 5);
  for (std::size_t i = 0; i < listeners.size(); ++i) {
    CHECK(listeners[i].where == host.local_address(i));
    CHECK(listeners[i].steered_by != steering::automatic);
    CHECK_FALSE(listeners[i].steering_reason.empty());
  }
  CHECK(listeners[0].steered_by == steering::hash);  // automatic never steers loopback addresses by CPU
  CHECK(listeners[1].steered_by == steering::hash);
  CHECK(listeners[4].steering_reason == "an adopted socket serves all cores");
  if (host.core_count() == 1) {
    CHECK(listeners[0].steering_reason == "there is only one core");
    return;
  }
  CHECK(listeners[0].steering_reason.find("loopback") != std::string::npos);
  CHECK(listeners[1].steering_reason == "chosen by the caller");
  CHECK(listeners[3].steering_reason == "one socket serves all cores");
  // A kernel that does not obey is told by a warning too.
  if (listeners[2].steered_by == steering::incoming_cpu) CHECK(listeners[2].steering_reason == "chosen by the caller");
}

}  // namespace
}  // namespace percore::test
