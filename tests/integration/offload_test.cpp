// offload: values, exceptions, order, limits, and every way in which a connection or a server may end
// meanwhile.
#include <doctest/doctest.h>

#include <sys/socket.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <deque>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "tests/support/clean_process.hpp"
#include "tests/support/test_server.hpp"

namespace percore::test {
namespace {

using std::chrono::milliseconds;

// One helper, so that what is queued behind it can be told to wait.
server_options one_helper(server_options options = one_core()) {
  options.helpers.most_per_core = 1;
  return options;
}

// Occupies the helper until it is opened.
struct occupation {
  event entered;
  event opened;
  void operator()() {
    entered.set();
    opened.wait();
  }
};

TEST_CASE_FIXTURE(clean_process, "offload: runs on another thread, and the handler goes on on its core") {
  struct {
    std::thread::id core_before, helper, core_after;
  } seen;
  test_server server([&](connection& conn) -> task<> {
    const auto data = co_await conn.read();
    seen.core_before = std::this_thread::get_id();
    auto upper = [&] {
      seen.helper = std::this_thread::get_id();
      std::string text(data.text());
      for (char& c : text) c = static_cast<char>(c & ~0x20);
      return text;
    };
    auto answer = co_await conn.offload(upper);  // reads the core's buffer, which stays
    seen.core_after = std::this_thread::get_id();
    CHECK(answer);
    if (answer) co_await conn.write(*answer);
  });
  client peer = server.connect();
  peer.send_all("hello");
  CHECK(peer.recv_to_end() == "HELLO");
  CHECK(seen.core_before == seen.core_after);
  CHECK(seen.core_before != seen.helper);
  const helper_stats stats = server.total().helpers;
  CHECK(stats.submitted == 1);
  CHECK(stats.alive == 1);
  CHECK(stats.run.total() == 1);
}

TEST_CASE_FIXTURE(clean_process, "offload: values of every kind, exceptions, and nothing at all") {
  test_server server([](connection& conn) -> task<> {
    auto unique = [] { return std::make_unique<int>(7); };
    auto moved = co_await conn.offload(unique);
    CHECK(moved);
    CHECK(**moved == 7);
    const std::unique_ptr<int> owned = *std::move(moved);
    CHECK(*owned == 7);

    int side = 0;
    const auto nothing = co_await conn.offload([&side] { side = 3; });
    CHECK(nothing);
    CHECK_FALSE(nothing.error());
    CHECK(side == 3);

    const auto throwing = []() -> int { throw std::runtime_error("from the helper"); };
    std::string caught;
    try {
      (void)co_await conn.offload(throwing);
    } catch (const std::runtime_error& e) {
      caught = e.what();
    }
    CHECK(caught == "from the helper");

    const auto asks = [](const offload_token& token) { return token.cancelled(); };
    auto cancelled = co_await conn.offload(asks);
    CHECK(cancelled);
    CHECK_FALSE(*cancelled);
    CHECK_FALSE(conn.error());
    co_await conn.write("done");
  });
  client peer = server.connect();
  CHECK(peer.recv_to_end() == "done");
  CHECK(server.total().handler_errors == 0);
}

TEST_CASE_FIXTURE(clean_process,
                  "offload: what f throws and nobody catches ends the handler, and is reported") {
  channel<std::string> reported;
  server_options options = one_core();
  options.on_exception = [&](std::exception_ptr exception) {
    try {
      std::rethrow_exception(exception);
    } catch (const std::exception& e) {
      reported.put(e.what());
    }
  };
  test_server server(
      [](connection& conn) -> task<> {
        (void)co_await conn.offload([] { throw std::runtime_error("uncaught"); });
      },
      options);
  client peer = server.connect();
  CHECK(peer.recv_to_end().empty());
  CHECK(reported.take() == "uncaught");
}

task<int> nested(int depth) {
  if (depth == 0) {
    const auto answer = [] { return 1; };
    auto result = co_await offload(answer);
    CHECK(result);
    co_return *result;
  }
  const int below = co_await nested(depth - 1);
  co_return below + 1;
}

TEST_CASE_FIXTURE(clean_process, "offload: from a task that has no connection at hand") {
  test_server server([](connection& conn) -> task<> {
    const int depth = co_await nested(5);
    co_await conn.write(std::to_string(depth));
  });
  CHECK(server.connect().recv_to_end() == "6");
}

lone_coroutine lone_offload(channel<std::string>& told) {
  const auto on_core = std::this_thread::get_id();
  bool elsewhere = false;
  const auto look = [&] { elsewhere = std::this_thread::get_id() != on_core; };
  const auto result = co_await offload(look);
  const bool back = std::this_thread::get_id() == on_core;
  told.put(result ? (elsewhere && back ? "ran" : "on the wrong thread") : result.error().message());
}

TEST_CASE_FIXTURE(clean_process, "offload: from a posted function's coroutine, and a shutdown waits for it") {
  channel<std::string> told;
  test_server server(echo);
  CHECK(server->post(0, [&] { lone_offload(told); }) == post_result::posted);
  server->shutdown();
  CHECK(told.take() == "ran");
}

lone_coroutine lone_wait(occupation& busy, event& back) {
  const auto wait = [&] { busy(); };
  const auto done = co_await offload(wait);
  if (done) back.set();
}

// Two of them, while the connection that began them is another client's already.
TEST_CASE_FIXTURE(clean_process, "offload: coroutines that a handler has begun go on after it has returned") {
  occupation first;
  occupation second;
  event back;
  std::atomic<bool> begun{false};
  server_options options = one_core();
  options.max_connections_per_core = 1;
  test_server server(
      [&](connection& conn) -> task<> {
        if (!begun.exchange(true)) {
          lone_wait(first, back);
          lone_wait(second, back);
          co_return;
        }
        co_await echo(conn);
      },
      options);
  CHECK(server.connect().wait_for_end() == ending::fin);
  first.entered.wait();
  second.entered.wait();
  client next = server.connect();
  next.send_all("ping");
  CHECK(next.recv_exactly(4) == "ping");
  first.opened.set();
  second.opened.set();
  back.wait(2);
  next.send_all("pong");
  CHECK(next.recv_exactly(4) == "pong");
}

lone_coroutine offload_for_ever(event& ended) {
  const auto nothing = [] {};
  for (int told = 0; told < 3;) {
    const auto done = co_await offload(nothing);
    if (done.error() == errc::shutting_down) ++told;
  }
  ended.set();
}

TEST_CASE_FIXTURE(clean_process, "offload: a halt ends although its answer is another call") {
  occupation busy;
  event ended;
  test_server server(echo, one_helper());
  server->post(0, [&] {
    offload_detached([&] { busy(); });
    offload_for_ever(ended);
  });
  busy.entered.wait();
  std::thread opener([&] {
    ended.wait();
    busy.opened.set();
  });
  server->halt();
  opener.join();
}

TEST_CASE_FIXTURE(clean_process, "offload: a detached call does not wait for room, since nobody waits for it") {
  occupation busy;
  server_options options = one_helper();
  options.helpers.queue = 2;
  channel<int> refused;
  test_server server(echo, options);
  server->post(0, [&] {
    offload_detached([&] { busy(); });
    int count = 0;
    for (int i = 0; i < 10; ++i) count += offload_detached([] {}) ? 0 : 1;
    refused.put(count);
  });
  CHECK(refused.take() >= 7);
  busy.opened.set();
}

TEST_CASE_FIXTURE(clean_process,
                  "offload: a halt tells coroutines without a connection whose call has not begun") {
  channel<std::string> told;
  occupation busy;
  test_server server(echo, one_helper());
  server->post(0, [&] {
    offload_detached([&] { busy(); });
    lone_offload(told);
  });
  busy.entered.wait();
  std::thread opener([&] {
    CHECK(told.take() == make_error_code(errc::shutting_down).message());
    busy.opened.set();
  });
  server->halt();
  opener.join();
}

TEST_CASE_FIXTURE(clean_process, "offload: one that nobody waits for") {
  event ran;
  channel<std::string> reported;
  server_options options = one_core();
  options.on_exception = [&](std::exception_ptr exception) {
    try {
      std::rethrow_exception(exception);
    } catch (const std::exception& e) {
      reported.put(e.what());
    }
  };
  test_server server(
      [&](connection& conn) -> task<> {
        auto big = std::make_unique<int>(5);
        const bool taken =
            offload_detached([&ran, big = std::move(big)] { ran.set(static_cast<std::size_t>(*big)); });
        CHECK(taken);
        CHECK(offload_detached([] { throw std::runtime_error("detached"); }));
        co_await conn.write("at once");
      },
      options);
  client peer = server.connect();
  CHECK(peer.recv_to_end() == "at once");
  ran.wait(5);
  CHECK(reported.take() == "detached");
  CHECK(server.total().handler_errors == 1);
}

TEST_CASE_FIXTURE(
    clean_process,
    "offload: a shutdown waits for calls that nobody waits for, and runs those that are queued") {
  std::atomic<int> ran{0};
  occupation busy;
  {
    test_server server(echo, one_helper());
    server->post(0, [&] {
      CHECK(offload_detached([&] { busy(); }));
      for (int i = 0; i < 10; ++i) CHECK(offload_detached([&] { ran.fetch_add(1); }));
    });
    busy.entered.wait();
    server->begin_shutdown();
    busy.opened.set();
    server->wait();
  }
  CHECK(ran == 10);
}

TEST_CASE_FIXTURE(clean_process, "offload: many connections at once, each gets its own answer") {
  server_options options = all_cores();
  options.helpers.most_per_core = 8;
  test_server server(
      [](connection& conn) -> task<> {
        while (auto line = co_await conn.read_until("\n", 100)) {
          const auto twice = [&] {
            std::this_thread::sleep_for(std::chrono::microseconds(100));
            return std::to_string(2 * std::stol(std::string(line.text()))) + "\n";
          };
          auto answer = co_await conn.offload(twice);
          if (!answer || !co_await conn.write(*answer)) break;
        }
      },
      options);
  std::vector<client> peers;
  for (int i = 0; i < 50; ++i) peers.push_back(server.connect());
  for (long round = 0; round < 20; ++round) {
    for (long i = 0; i < 50; ++i)
      peers[static_cast<std::size_t>(i)].send_all(std::to_string(1000 * round + i) + "\n");
    for (long i = 0; i < 50; ++i) {
      CHECK(peers[static_cast<std::size_t>(i)].recv_until("\n") ==
            std::to_string(2 * (1000 * round + i)) + "\n");
    }
  }
  CHECK(server.total().helpers.submitted == 1000);
}

// Limits ----------------------------------------------------------------------------------------------------

TEST_CASE_FIXTURE(clean_process, "offload: a full queue makes callers wait, or refuses them, as chosen") {
  server_options options = one_helper();
  options.helpers.queue = 2;
  bool waits = true;
  SUBCASE("wait") {}
  SUBCASE("refuse") {
    options.helpers.at_full = full_queue::refuse;
    waits = false;
  }
  occupation busy;
  test_server server(
      [&](connection& conn) -> task<> {
        co_await conn.read();
        const auto result = co_await conn.offload([] {});
        if (!result) CHECK(result.error() == errc::queue_full);
        if (!result) CHECK(conn.error() == errc::queue_full);
        co_await conn.write(result ? "y" : "n");
      },
      options);
  server->post(0, [&] { offload_detached([&] { busy(); }); });
  busy.entered.wait();
  std::vector<client> peers;
  for (int i = 0; i < 10; ++i) {
    peers.push_back(server.connect());
    peers.back().send_all("go");
  }
  if (waits) {
    CHECK(eventually([&] { return server.total().helpers.full == 8; }));
  } else {
    CHECK(eventually(
        [&] { return server.total().helpers.submitted == 3 && server.total().helpers.full == 8; }));
  }
  busy.opened.set();
  std::string answers;
  for (auto& peer : peers) answers += peer.recv_to_end();
  CHECK(std::count(answers.begin(), answers.end(), 'y') == (waits ? 10 : 2));
  CHECK(answers.size() == 10);
}

TEST_CASE_FIXTURE(clean_process, "offload: a call that no helper has begun in time is taken back") {
  occupation busy;
  std::atomic<bool> ran{false};
  channel<bool> token_said;
  test_server server(
      [&](connection& conn) -> task<> {
        co_await conn.read();
        const auto late = [&] { ran = true; };
        const auto result = co_await conn.offload(late, milliseconds(5));
        CHECK_FALSE(result);
        CHECK(result.error() == errc::timed_out);
        co_await conn.write("late");
      },
      one_helper());
  server->post(0, [&] { offload_detached([&] { busy(); }); });
  busy.entered.wait();
  client peer = server.connect();
  peer.send_all("go");
  CHECK(peer.recv_to_end() == "late");
  busy.opened.set();
  CHECK_FALSE(ran);
  CHECK(server.total().helpers.cancelled == 1);
}

TEST_CASE_FIXTURE(clean_process,
                  "offload: a call that has begun is waited for, but is told when its time is over") {
  test_server server([&](connection& conn) -> task<> {
    const auto asks = [](const offload_token& token) {
      return eventually([&] { return token.cancelled(); });
    };
    auto result = co_await conn.offload(asks, milliseconds(20));
    // On a machine so busy that no helper has begun by then there is no result.
    co_await conn.write(!result ? "not begun" : *result ? "told" : "not told");
  });
  const std::string said = server.connect().recv_to_end();
  CHECK((said == "told" || said == "not begun"));
}

// Ends ------------------------------------------------------------------------------------------------------

// What a handler has seen of its call.
struct outcome {
  bool made = false;
  std::error_code why;
};

TEST_CASE_FIXTURE(clean_process, "offload: the connection's end takes a call back that has not begun") {
  occupation busy;
  channel<outcome> outcomes;
  event reading;
  std::atomic<int> ran{0};
  listen_options listening;
  std::error_code expected;
  void (*end)(server&, client&, connection_handle&) = nullptr;
  SUBCASE("by its lifetime") {
    listening.lifetime_timeout = milliseconds(30);
    expected = errc::timed_out;
    end = [](server&, client&, connection_handle&) {};
  }
  SUBCASE("by the peer's reset") {
    expected = errc::connection_reset;
    end = [](server&, client& peer, connection_handle&) { peer.reset(); };
  }
  SUBCASE("by a posted reset") {
    expected = errc::closed;
    end = [](server&, client&, connection_handle& handle) {
      handle.post([](connection& conn) { conn.reset(); });
    };
  }
  SUBCASE("by a posted close") {
    expected = errc::closed;
    end = [](server&, client&, connection_handle& handle) {
      handle.post([](connection& conn) { conn.close(); });
    };
  }
  SUBCASE("by the end of a grace") {
    expected = errc::shutting_down;
    end = [](server& which, client&, connection_handle&) { which.begin_shutdown(milliseconds(1)); };
  }
  channel<connection_handle> handles;
  test_server server(
      [&](connection& conn) -> task<> {
        co_await conn.read();
        handles.put(conn.handle());
        const auto result = co_await conn.offload([&ran] { ran.fetch_add(1); });
        outcomes.put({static_cast<bool>(result), result.error()});
        // A second try on what has ended does not keep the core, and does not run.
        const auto again = co_await conn.offload([&ran] { ran.fetch_add(1); });
        outcomes.put({static_cast<bool>(again), again.error()});
      },
      one_helper(), listening);
  server->post(0, [&] { offload_detached([&] { busy(); }); });
  busy.entered.wait();
  client peer = server.connect();
  peer.send_all("go");
  connection_handle handle = handles.take();
  end(*server, peer, handle);
  const outcome first = outcomes.take();
  CHECK_FALSE(first.made);
  CHECK(first.why == expected);
  busy.opened.set();
  if (expected != errc::shutting_down) {
    const outcome second = outcomes.take();
    CHECK_FALSE(second.made);
    CHECK(second.why == expected);
  }
  server->shutdown();
  CHECK(ran == 0);
}

// The frame stays until the helper is back, whatever has become of the connection; then the handler learns
// both.
TEST_CASE_FIXTURE(clean_process, "offload: a call that runs outlives its connection") {
  occupation busy;
  listen_options listening;
  bool resumed = true;
  void (*end)(server&, connection_handle&) = nullptr;
  SUBCASE("whose lifetime is over") {
    listening.lifetime_timeout = milliseconds(20);
    end = [](server&, connection_handle&) {};
  }
  SUBCASE("that was reset") {
    end = [](server&, connection_handle& handle) { handle.post([](connection& conn) { conn.reset(); }); };
  }
  SUBCASE("at the end of a grace") {
    end = [](server& which, connection_handle&) { which.begin_shutdown(milliseconds(1)); };
  }
  SUBCASE("at a halt") {
    resumed = false;
  }
  struct witness : alive {
    std::string text = "still here";
  };
  event went_on;
  event destroyed;
  channel<connection_handle> handles;
  std::string seen;
  server_options options = one_core();
  options.helpers.patience = std::chrono::duration_cast<milliseconds>(patience);
  {
    test_server server(
        [&](connection& conn) -> task<> {
          struct at_end {
            event* told;
            ~at_end() { told->set(); }
          } const end_of_frame{&destroyed};
          witness local;
          handles.put(conn.handle());
          auto work = [&] {
            busy();
            seen = local.text;
            return 5;
          };
          auto result = co_await conn.offload(work);
          CHECK(result);
          CHECK(*result == 5);
          const bool wrote = co_await conn.write("too late");
          CHECK_FALSE(wrote);
          went_on.set();
          co_await conn.sleep_for(std::chrono::hours(1));
          const auto again = co_await conn.offload([] {});
          CHECK_FALSE(again);
        },
        options, listening);
    client peer = server.connect();
    connection_handle handle = handles.take();
    busy.entered.wait();
    std::thread halter;
    if (end != nullptr) {
      end(*server, handle);
    } else {
      halter = std::thread([&] { server->halt(); });
    }
    // The peer sees the end though the helper still works.
    if (listening.lifetime_timeout.count() == 0) {
      (void)peer.wait_for_end();
    } else {
      CHECK(eventually([&] { return server.total().timeouts == 1; }));
    }
    CHECK(destroyed.count() == 0);
    busy.opened.set();
    destroyed.wait();
    if (halter.joinable()) halter.join();
  }
  CHECK(seen == "still here");
  CHECK(went_on.count() == (resumed ? 1 : 0));
}

TEST_CASE_FIXTURE(clean_process,
                  "offload: a shutdown without a grace waits for calls, and their handlers finish") {
  occupation busy;
  test_server server([&](connection& conn) -> task<> {
    const auto result = co_await conn.offload(busy);
    CHECK(result);
    co_await conn.write("finished");
  });
  client peer = server.connect();
  busy.entered.wait();
  server->begin_shutdown();
  busy.opened.set();
  CHECK(peer.recv_to_end() == "finished");
  server->wait();
  CHECK(server.total().helpers.alive == 0);
}

TEST_CASE_FIXTURE(
    clean_process,
    "offload: a helper that never returns is reported, and neither halt nor grace hangs on it") {
  server_options options = one_core();
  options.helpers.patience = milliseconds(20);
  const std::size_t threads = running_threads();
  channel<stuck_helper> reports;
  options.helpers.on_stuck = [&](const stuck_helper& report) { reports.put(report); };
  bool by_grace = false;
  bool detached = false;
  SUBCASE("halt") {}
  SUBCASE("the end of a grace") {
    by_grace = true;
  }
  SUBCASE("halt, and no connection") {
    detached = true;
  }
  // Nothing orders the thread that comes back late before the end of this test.
  static auto& immortal = *new std::deque<occupation>;
  occupation* busy = &immortal.emplace_back();
  {
    test_server server(
        [=](connection& conn) -> task<> {
          const auto stuck = [busy] { (*busy)(); };
          if (detached) {
            offload_detached(stuck);
            co_return;
          }
          (void)co_await conn.offload(stuck);
        },
        options);
    client peer = server.connect();
    busy->entered.wait();
    if (by_grace) {
      server->shutdown(milliseconds(1));
    } else {
      server->halt();
    }
    const stuck_helper report = reports.take();
    CHECK(report.core == 0);
    CHECK(report.serves_connection == !detached);
    CHECK(report.running >= milliseconds(20));
    if (!detached) {
      CHECK(report.peer == peer.local_address());
      CHECK(report.listener == 0);
    }
    if (!detached) (void)peer.wait_for_end();
  }
  busy->opened.set();
  CHECK(eventually(
      [&] { return running_threads() <= threads; }));  // it has left, and with it what was kept for it
}

TEST_CASE_FIXTURE(
    clean_process,
    "offload: connections come and go while their calls are queued, run and end: none is lost") {
  server_options options = all_cores();
  options.helpers.most_per_core = 3;
  options.helpers.queue = 4;
  options.helpers.idle_lifetime = milliseconds(2);
  std::atomic<std::size_t> begun{0};
  std::atomic<std::size_t> made{0};
  std::atomic<std::size_t> not_made{0};
  std::atomic<std::size_t> ran{0};
  const std::size_t connections = sanitized ? 300 : 3000;
  {
    test_server server(
        [&](connection& conn) -> task<> {
          for (int i = 0; i < 4; ++i) {
            begun.fetch_add(1);
            const auto work = [&] {
              ran.fetch_add(1);
              if (ran % 16 == 0) std::this_thread::sleep_for(std::chrono::microseconds(500));
            };
            const auto result = co_await conn.offload(work);
            (result ? made : not_made).fetch_add(1);
          }
          co_await conn.write("x");
        },
        options);
    std::vector<client> peers;
    for (std::size_t i = 0; i < connections; ++i) {
      peers.push_back(server.connect());
      if (i % 3 == 0) peers[i / 3].reset();
      if (i % 100 == 99) {
        for (auto& peer : peers) peer.close();
      }
    }
    peers.clear();
    SUBCASE("drained") {
      server->shutdown();
      CHECK(made == ran);
      CHECK(made + not_made == begun);
    }
    SUBCASE("halted") {
      server->halt();
      CHECK(made <= ran);  // a halt destroys frames where they wait
    }
    CHECK(server.total().active == 0);
    CHECK(server.total().helpers.run.total() == ran);
  }
}

// Descriptor tables -----------------------------------------------------------------------------------------

TEST_CASE_FIXTURE(clean_process,
                  "offload: helpers share their core's descriptor table" * doctest::skip(under_tsan)) {
  server_options options = one_core();
  options.private_descriptors = true;
  test_server server(
      [](connection& conn) -> task<> {
        const int fd = conn.fd();
        const auto ask = [fd] {
          sockaddr_storage name{};
          socklen_t size = sizeof name;
          return ::getpeername(fd, reinterpret_cast<sockaddr*>(&name), &size) == 0
                     ? address::from_sockaddr(reinterpret_cast<sockaddr*>(&name), size).to_string()
                     : std::string("no such descriptor");
        };
        auto name = co_await conn.offload(ask);
        co_await conn.write(*name);
      },
      options);
  client peer = server.connect();
  CHECK(peer.recv_to_end() == peer.local_address().to_string());
}

}  // namespace
}  // namespace percore::test
