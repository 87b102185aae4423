// How many system calls the engine makes in its steady state, counted at the seam.
#include <doctest/doctest.h>

#include <functional>
#include <string>
#include <vector>

#include "tests/fault/injection.hpp"
#include "tests/support/clean_process.hpp"
#include "tests/support/test_server.hpp"

namespace percore::test {
namespace {

using namespace std::chrono_literals;

// The registration of a connection follows the first answer, when its handler reads again.
void wait_for_registrations(const call_counts& since, std::uint64_t count) {
  REQUIRE(eventually([&] { return since.of(call::epoll_ctl_add) >= count; }));
}

void exchange(client& peer) {
  peer.send_all("request");
  CHECK(peer.recv_exactly(7) == "request");
}

// Without the watch for stalls, a thread of debug builds, whose calls are not what is counted here.
server_options unwatched_core() {
  server_options options = one_core();
  options.stalls.threshold.emplace(0);
  return options;
}

TEST_CASE_FIXTURE(clean_process, "calls: a request on a living connection is one recv and one send") {
  test_server server(echo, unwatched_core());
  std::vector<client> peers;
  const call_counts all_calls;
  for (int i = 0; i < 10; ++i) peers.push_back(server.connect());
  for (client& peer : peers) exchange(peer);
  wait_for_registrations(all_calls, peers.size());
  const call_counts calls;
  constexpr std::uint64_t rounds = 50;
  for (std::uint64_t i = 0; i < rounds; ++i) {
    for (client& peer : peers) exchange(peer);
  }
  const std::uint64_t requests = rounds * peers.size();
  CHECK(calls.of(call::recv) == requests);
  CHECK(calls.of(call::send) == requests);
  CHECK(calls.working() == 2 * requests);  // no epoll_ctl, no clock, no wake-up, nothing
  CHECK(calls.of(call::epoll_wait) <= requests + 1);
}

TEST_CASE_FIXTURE(clean_process, "calls: timeouts and large messages make no further calls") {
  listen_options timed;
  timed.read_timeout = timed.write_timeout = timed.idle_timeout = timed.lifetime_timeout = 1h;
  test_server server(
      [](connection& conn) -> task<> {
        for (;;) {
          const bytes_view line = co_await conn.read_until("\n", 100);
          if (!line) break;
          const bytes_view pieces[] = {line, bytes_view("and "), bytes_view("more\n")};
          const std::span<const bytes_view> view(pieces);
          const bool written = co_await conn.write(view);
          if (!written) break;
        }
      },
      unwatched_core(), timed);
  const call_counts all_calls;
  client peer = server.connect();
  const auto ask = [&] {
    peer.send_all("request\n");
    CHECK(peer.recv_exactly(17) == "request\nand more\n");
  };
  ask();
  wait_for_registrations(all_calls, 1);
  const call_counts calls;
  constexpr std::uint64_t requests = 200;
  for (std::uint64_t i = 0; i < requests; ++i) ask();
  CHECK(calls.of(call::recv) == requests);
  CHECK(calls.of(call::sendmsg) == requests);
  CHECK(calls.working() == 2 * requests);
}

TEST_CASE_FIXTURE(clean_process, "calls: requests that arrive together are read together") {
  test_server server([](connection& conn) -> task<> {
    for (;;) {
      const bytes_view line = co_await conn.read_until("\n", 100);
      if (!line) break;
      const bool written = co_await conn.write(line);
      if (!written) break;
    }
  });
  client peer = server.connect();
  const std::string ten = "1\n2\n3\n4\n5\n6\n7\n8\n9\n0\n";
  const auto ask = [&] {
    peer.send_all(ten);
    CHECK(peer.recv_exactly(ten.size()) == ten);
  };
  ask();
  const call_counts calls;
  for (int i = 0; i < 20; ++i) ask();
  CHECK(calls.of(call::recv) == 20);
  CHECK(calls.of(call::send) == 200);
}

// With the request in the accept queue: accept4, recv, send, close.
TEST_CASE_FIXTURE(clean_process, "calls: a short connection whose request is there is four calls") {
  // No plain function pointer: GCC 12 calls a captureless lambda's code through one with a null `this`, which a
  // coroutine's promise then binds a reference to (UBSan says so).
  std::function<task<>(connection&)> answer;
  SUBCASE("with write and return") {
    answer = [](connection& conn) -> task<> {
      const bytes_view data = co_await conn.read();
      co_await conn.write(data);
    };
  }
  SUBCASE("with write_last and return") {
    answer = [](connection& conn) -> task<> {
      const bytes_view data = co_await conn.read();
      co_await conn.write_last(data);
    };
  }
  SUBCASE("with write and close") {
    answer = [](connection& conn) -> task<> {
      const bytes_view data = co_await conn.read();
      co_await conn.write(data);
      conn.close();
    };
  }
  test_server server(answer, unwatched_core());
  constexpr std::uint64_t count = 200;
  std::uint64_t accepts = 0;
  constexpr int rounds = 3;
  for (int round = 0; round < rounds; ++round) {
    std::vector<client> peers;
    blocked_core blocked(*server, 0);
    for (std::uint64_t i = 0; i < count; ++i) {
      peers.push_back(server.connect());
      peers.back().send_all("request");
    }
    const call_counts calls;
    blocked.open();
    for (client& peer : peers) CHECK(peer.recv_to_end() == "request");
    CHECK(eventually([&] { return server.total().active == 0; }));
    CHECK(calls.of(call::recv) == count);
    CHECK(calls.of(call::send) == count);
    CHECK(calls.of(call::close) == count);
    CHECK(calls.of(call::epoll_ctl_add) == 0);
    CHECK(calls.of(call::epoll_ctl_mod) == 0);
    CHECK(calls.of(call::epoll_ctl_del) == 0);
    CHECK(calls.of(call::shutdown) == 0);
    CHECK(calls.of(call::setsockopt) == 0);
    accepts += calls.of(call::accept4);
    // The eventfd's read is that of the blocked core's wake-up.
    CHECK(calls.working() <=
          3 * count + calls.of(call::accept4) + calls.of(call::read) + calls.of(call::write));
    CHECK(calls.of(call::read) + calls.of(call::write) <= 2);
  }
  // Each accepts one connection, but for a few that find the queue empty.
  CHECK(accepts >= rounds * count);
  CHECK(accepts <= rounds * (count + 4));
  CHECK(server.total().first_read_hits == rounds * count);
}

// One after the other: then every look at the queue behind an accepted connection would be one for each
// connection.
TEST_CASE_FIXTURE(clean_process,
                  "calls: with TCP_DEFER_ACCEPT a short connection is four calls and a fraction") {
  listen_options options;
  options.socket.defer_accept = 5s;
  test_server server(
      [](connection& conn) -> task<> {
        const bytes_view data = co_await conn.read();
        co_await conn.write_last(data);
      },
      unwatched_core(), options);
  const auto ask = [&] {
    client peer = server.connect();
    peer.send_all("request");
    CHECK(peer.recv_to_end() == "request");
  };
  for (int i = 0; i < 10; ++i) ask();
  CHECK(eventually([&] { return server.total().active == 0; }));
  const call_counts calls;
  constexpr std::uint64_t count = 200;
  for (std::uint64_t i = 0; i < count; ++i) ask();
  CHECK(eventually([&] { return server.total().active == 0; }));
  CHECK(calls.of(call::recv) == count);
  CHECK(calls.of(call::send) == count);
  CHECK(calls.of(call::close) == count);
  CHECK(calls.of(call::accept4) >= count);
  CHECK(calls.of(call::accept4) <= count + count / 3);
  CHECK(calls.working() == 3 * count + calls.of(call::accept4));
}

TEST_CASE_FIXTURE(clean_process, "calls: a connection is registered once and never again") {
  test_server server(echo, unwatched_core());
  constexpr std::uint64_t count = 20;
  const call_counts calls;
  {
    std::vector<client> peers;
    for (std::uint64_t i = 0; i < count; ++i) peers.push_back(server.connect());
    for (int round = 0; round < 5; ++round) {
      for (client& peer : peers) exchange(peer);
    }
  }
  CHECK(eventually([&] { return server.total().active == 0; }));
  CHECK(calls.of(call::epoll_ctl_add) <= count);
  CHECK(calls.of(call::epoll_ctl_mod) == 0);
  CHECK(calls.of(call::epoll_ctl_del) == 0);
  CHECK(calls.of(call::close) == count);
}

// A server with nothing to do makes no call at all, whatever timeouts are set.
TEST_CASE_FIXTURE(clean_process, "calls: an idle server is silent") {
  server_options options = all_cores();
  options.stalls.threshold.emplace(0);
  test_server server(echo, options);
  std::vector<client> peers;
  const call_counts all_calls;
  for (int i = 0; i < 10; ++i) peers.push_back(server.connect());
  for (client& peer : peers) exchange(peer);
  wait_for_registrations(all_calls, peers.size());
  const call_counts calls;
  std::this_thread::sleep_for(200ms);
  CHECK(calls.working() == 0);
  CHECK(calls.of(call::epoll_wait) <= 2 * server->core_count());
}

}  // namespace
}  // namespace percore::test
