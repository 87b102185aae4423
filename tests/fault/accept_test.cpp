// Accepting while the kernel refuses: descriptors and memory run out, connections are gone before they are
// accepted, the poller has no room.
#include <doctest/doctest.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "tests/fault/injection.hpp"
#include "tests/support/clean_process.hpp"
#include "tests/support/test_server.hpp"

namespace percore::test {
namespace {

using namespace std::chrono_literals;

constexpr std::uint32_t for_ever = 4'000'000'000;

void check_echo(client& peer, const std::string& text) {
  peer.send_all(text);
  CHECK(peer.recv_exactly(text.size()) == text);
}

TEST_CASE_FIXTURE(clean_process, "accept: without descriptors or memory the core rests and recovers") {
  int error = 0;
  bool of_files = true;
  SUBCASE("EMFILE") {
    error = EMFILE;
  }
  SUBCASE("ENFILE") {
    error = ENFILE;
  }
  SUBCASE("ENOMEM") {
    error = ENOMEM;
    of_files = false;
  }
  SUBCASE("ENOBUFS") {
    error = ENOBUFS;
    of_files = false;
  }
  test_server server(echo);
  client early = server.connect();
  check_echo(early, "before");
  injected faults(failing(call::accept4, error, for_ever));
  std::vector<client> waiting;
  for (int i = 0; i < 20; ++i) {
    waiting.push_back(server.connect());
    waiting.back().send_all("hello");
  }
  const auto pauses = [&] {
    const core_stats total = server.total();
    return of_files ? total.accept_paused_files : total.accept_paused_memory;
  };
  REQUIRE(eventually([&] { return pauses() >= 1; }));
  check_echo(early, "meanwhile");
  // Nothing spins: one try every 100 ms, each with a few calls. The lower limit of the time holds on a busy
  // machine too, since a timer is never early; as to the upper one, "within a second" holds on average.
  const std::uint64_t first = pauses();
  const auto start = std::chrono::steady_clock::now();
  const call_counts calls;
  constexpr std::uint64_t tries = 5;
  REQUIRE(eventually([&] { return pauses() >= first + tries; }));
  const auto took = std::chrono::steady_clock::now() - start;
  CHECK(took >= (tries - 1) * 90ms);
  CHECK(took <= tries * 1s);
  CHECK(calls.of(call::epoll_wait) <= 12 * tries);
  CHECK(calls.working() <= 6 * tries);
  CHECK(server.total().accepted == 1);
  faults.end();
  for (client& peer : waiting) CHECK(peer.recv_exactly(5) == "hello");
  check_echo(early, "after");
  CHECK(server.total().accepted == 21);
  CHECK(server.total().accept_aborted == 0);
}

TEST_CASE_FIXTURE(clean_process, "accept: the poller has no room for a listener that comes back") {
  test_server server(echo);
  fault_plan plan = failing(call::accept4, EMFILE, 1);
  const auto add = static_cast<std::size_t>(call::epoll_ctl_add);
  plan.fail_next[add] = 3;
  plan.fail_errno[add] = ENOMEM;
  sys::reset_call_counters();
  injected faults(plan);
  client peer = server.connect();
  check_echo(peer, "hello");
  CHECK(sys::faults_injected(call::epoll_ctl_add) == 3);
  CHECK(server.total().accept_paused_files == 1);
  CHECK(server.total().refused_memory == 0);
}

TEST_CASE_FIXTURE(clean_process,
                  "accept: connections that are gone before they are accepted cost the others nothing") {
  int error = 0;
  std::uint64_t counted = 20;
  SUBCASE("ECONNABORTED") {
    error = ECONNABORTED;
  }
  SUBCASE("EPROTO") {
    error = EPROTO;
  }
  SUBCASE("EPERM") {
    error = EPERM;
  }
  SUBCASE("ENETDOWN") {
    error = ENETDOWN;
  }
  SUBCASE("EHOSTUNREACH") {
    error = EHOSTUNREACH;
  }
  SUBCASE("EINTR") {
    error = EINTR;
    counted = 0;
  }
  test_server server(echo);
  injected faults(failing(call::accept4, error, 20));
  std::vector<client> peers;
  for (int i = 0; i < 10; ++i) peers.push_back(server.connect());
  for (client& peer : peers) check_echo(peer, "hello");
  CHECK(server.total().accept_aborted == counted);
  CHECK(server.total().accepted == 10);
}

TEST_CASE_FIXTURE(clean_process, "accept: a listener that no longer listens does not make the core spin") {
  test_server server(echo);
  injected faults(failing(call::accept4, EINVAL, for_ever));
  client peer = server.connect();
  peer.send_all("hello");
  REQUIRE(eventually([&] { return server.total().accept_aborted >= 1; }));
  const std::uint64_t first = server.total().accept_aborted;
  const auto start = std::chrono::steady_clock::now();
  REQUIRE(eventually([&] { return server.total().accept_aborted >= first + 3; }));
  CHECK(std::chrono::steady_clock::now() - start >= 2 * 90ms);
  faults.end();
  CHECK(peer.recv_exactly(5) == "hello");
}

// --- the wait for events ---------------------------------------------------------------------------------

TEST_CASE_FIXTURE(clean_process, "accept: waits for events that fail lose none") {
  int error = 0;
  SUBCASE("EINTR") {
    error = EINTR;
  }
  SUBCASE("ENOMEM") {
    error = ENOMEM;
  }
  event slept;
  test_server server([&](connection& conn) -> task<> {
    const bool whole = co_await conn.sleep_for(20ms);
    CHECK(whole);
    slept.set();
    co_await echo(conn);
  });
  const injected faults(failing(call::epoll_wait, error, 1000));
  client peer = server.connect();
  check_echo(peer, "hello");
  slept.wait();
  event posted;
  CHECK(server->post(0, [&] { posted.set(); }) == post_result::posted);
  posted.wait();
}

// --- connections that the poller does not take -----------------------------------------------------------

TEST_CASE_FIXTURE(clean_process,
                  "accept: a connection that the poller does not take is refused and the others live") {
  int error = 0;
  SUBCASE("ENOMEM") {
    error = ENOMEM;
  }
  SUBCASE("ENOSPC") {
    error = ENOSPC;
  }
  channel<std::error_code> errors;
  test_server server([&](connection& conn) -> task<> {
    const alive frame;
    while (auto data = co_await conn.read()) {
      const bool written = co_await conn.write(data);
      if (!written) break;
    }
    errors.put(conn.error());
  });
  const call_counts calls;
  client before = server.connect();
  check_echo(before, "one");
  REQUIRE(eventually([&] { return calls.of(call::epoll_ctl_add) == 1; }));
  injected faults(failing(call::epoll_ctl_add, error, 3));
  for (int i = 0; i < 3; ++i) {
    client refused = server.connect();
    CHECK(refused.wait_for_end() == ending::reset);
    CHECK(errors.take() == std::error_code(error, std::system_category()));
  }
  client after = server.connect();
  check_echo(after, "two");
  check_echo(before, "three");
  CHECK(server.total().refused_memory == 3);
  CHECK(server.total().active == 2);
  before.close();
  after.close();
  CHECK(errors.take() == errc::end_of_stream);
  CHECK(errors.take() == errc::end_of_stream);
}

// The server speaks first, so that the poller is first asked when a write does not fit.
TEST_CASE_FIXTURE(clean_process, "accept: the poller refuses a connection with unsent bytes") {
  const std::string text = numbered_text(300'000);
  struct seen {
    bool ok = true;
    std::error_code error;
  };
  channel<seen> results;
  // No plain function pointer: GCC 12 calls a captureless lambda's code through one with a null `this`, which a
  // coroutine's promise then binds a reference to (UBSan says so).
  std::function<task<bool>(connection&, const std::string&)> attempt;
  SUBCASE("in a write that waits") {
    attempt = [](connection& conn, const std::string& all) -> task<bool> {
      const bool ok = co_await conn.write(all);
      co_return ok;
    };
  }
  SUBCASE("in a write that leaves a tail") {
    attempt = [](connection& conn, const std::string& all) -> task<bool> {
      const bool ok = co_await conn.write(bytes_view(all).subview(0, 50'000));
      co_return ok;
    };
  }
  SUBCASE("in write_last") {
    attempt = [](connection& conn, const std::string& all) -> task<bool> {
      const bool ok = co_await conn.write_last(bytes_view(all).subview(0, 50'000));
      co_return ok;
    };
  }
  SUBCASE("in try_write") {
    attempt = [](connection& conn, const std::string& all) -> task<bool> {
      co_return conn.try_write(bytes_view(all).subview(0, 50'000));
    };
  }
  SUBCASE("in a posted write while the handler sleeps") {
    attempt = [](connection& conn, const std::string& all) -> task<bool> {
      conn.handle().write(all.substr(0, 50'000));
      const bool slept = co_await conn.sleep_for(1h);
      co_return slept;
    };
  }
  test_server server(
      [&](connection& conn) -> task<> {
        const alive frame;
        const bool ok = co_await attempt(conn, text);
        results.put({ok, conn.error()});
      },
      one_core(), small_send_buffer());
  injected faults(failing(call::epoll_ctl_add, ENOSPC, 1));
  client::options how;
  how.receive_buffer_bytes = 4096;
  client peer(server.where(), how);
  const seen result = results.take();
  CHECK_FALSE(result.ok);
  CHECK(result.error == std::error_code(ENOSPC, std::system_category()));
  CHECK(peer.wait_for_end() == ending::reset);
  CHECK(eventually([&] { return server.total().active == 0; }));
  CHECK(server.total().refused_memory == 1);
  client next(server.where());
  CHECK(next.recv_exactly(1000) == text.substr(0, 1000));
}

// --- ending while accepting is not possible --------------------------------------------------------------

TEST_CASE_FIXTURE(clean_process,
                  "accept: a shutdown without descriptors serves the queue once there are some") {
  test_server server(echo);
  injected faults(failing(call::accept4, EMFILE, for_ever));
  client peer = server.connect();
  peer.send_all("hello");
  REQUIRE(eventually([&] { return server.total().accept_paused_files >= 1; }));
  server->begin_shutdown();
  const std::uint64_t first = server.total().accept_paused_files;
  REQUIRE(eventually([&] { return server.total().accept_paused_files >= first + 2; }));
  faults.end();
  CHECK(peer.recv_exactly(5) == "hello");
  CHECK(peer.wait_for_end() == ending::fin);
  server->wait();
}

TEST_CASE_FIXTURE(clean_process, "accept: the end of a grace does not wait for descriptors") {
  test_server server(echo);
  injected faults(failing(call::accept4, EMFILE, for_ever));
  client peer = server.connect();
  REQUIRE(eventually([&] { return server.total().accept_paused_files >= 1; }));
  event ended;
  std::thread waiter([&] {
    server->shutdown(200ms);
    ended.set();
  });
  CHECK(eventually([&] { return ended.count() == 1; }, 5s));
  faults.end();  // whoever waits for descriptors after all is let go
  waiter.join();
}

TEST_CASE_FIXTURE(clean_process, "accept: a halt does not wait for descriptors") {
  test_server server(echo);
  injected faults(failing(call::accept4, EMFILE, for_ever));
  client peer = server.connect();
  REQUIRE(eventually([&] { return server.total().accept_paused_files >= 1; }));
  server->halt();
  CHECK(peer.wait_for_end() == ending::reset);
}

// At its limit a core goes on to accept what had been waiting as the connections of before end: also those
// must not outlive the grace.
TEST_CASE_FIXTURE(clean_process, "accept: the end of a grace also ends what was accepted late") {
  server_options options = one_core();
  options.max_connections = 2;
  event started;
  test_server server(
      [&](connection& conn) -> task<> {
        const alive frame;
        started.set();
        co_await conn.sleep_for(1h);
      },
      options);
  std::vector<client> peers;
  for (int i = 0; i < 6; ++i) peers.push_back(server.connect());
  started.wait(2);
  event ended;
  std::thread waiter([&] {
    server->shutdown(100ms);
    ended.set();
  });
  CHECK(eventually([&] { return ended.count() == 1; }, 5s));
  server->halt();
  waiter.join();
}

}  // namespace
}  // namespace percore::test
