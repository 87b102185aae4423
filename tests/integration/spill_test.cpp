// Slices of coroutine handlers on helper threads: listen_options::spill.
#include <doctest/doctest.h>

#include <malloc.h>
#include <sched.h>
#include <time.h>

#include <atomic>
#include <chrono>
#include <deque>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "tests/support/child_process.hpp"
#include "tests/support/clean_process.hpp"
#include "tests/support/every_wire.hpp"
#include "tests/support/test_server.hpp"

namespace percore::test {
namespace {

using namespace std::chrono_literals;

listen_options spilled(spilling how = spilling::always, listen_options options = {}) {
  options.spill = how;
  return options;
}

// By everybody in this process.
std::size_t allocated_bytes() {
  const auto info = ::mallinfo2();
  return info.uordblks + info.hblkhd;
}

// It runs something that was posted now.
bool core_is_free(test_server& server) { return thread_of_core(server) != std::thread::id(); }

// Says whose thread has answered. A request "slow" blocks: what a listener is judged by is the time that passes.
auto core_or_helper(const std::atomic<std::thread::id>& core) {
  return [&core](connection& conn) -> task<> {
    while (auto data = co_await conn.read()) {
      const bool here = std::this_thread::get_id() == core.load();
      if (data.text() == "slow") std::this_thread::sleep_for(1ms);
      co_await conn.write(here ? "core" : "help");
    }
  };
}

TEST_CASE_FIXTURE(clean_process, "spill: always means that no slice runs on the core") {
  channel<std::thread::id> threads;
  test_server server(
      [&](connection& conn) -> task<> {
        threads.put(std::this_thread::get_id());
        while (auto data = co_await conn.read()) {
          threads.put(std::this_thread::get_id());
          co_await conn.write(data);
          co_await conn.sleep_for(1us);
          threads.put(std::this_thread::get_id());
        }
        CHECK(conn.error() == errc::end_of_stream);
        threads.put(std::this_thread::get_id());
      },
      one_core(), spilled());
  client peer = server.connect();
  peer.send_all("ping");
  CHECK(peer.recv_exactly(4) == "ping");
  peer.half_close();
  CHECK(peer.recv_to_end().empty());
  const std::thread::id core = thread_of_core(server);
  for (int i = 0; i < 4; ++i) CHECK(threads.take() != core);
  CHECK(server.total().spilled >= 4);
  CHECK(server.total().helpers.run.total() == server.total().spilled);
}

TEST_CASE_FIXTURE(clean_process, "spill: a core serves others while a handler of it waits inside a slice") {
  event entered, opened;
  test_server server(
      [&](connection& conn) -> task<> {
        auto data = co_await conn.read();
        if (data.text() == "wait") {
          entered.set();
          opened.wait();
        }
        co_await conn.write(data);
      },
      one_core(), spilled());
  client slow = server.connect();
  slow.send_all("wait");
  entered.wait();
  for (int i = 0; i < 20; ++i) CHECK(still_serves(server));
  opened.set();
  CHECK(slow.recv_to_end() == "wait");
}

TEST_CASE_FIXTURE(clean_process, "spill: when_slow goes to the helpers and comes back") {
  std::atomic<std::thread::id> core;
  listen_options listening = spilled(spilling::when_slow);
  listening.spill_budget = 100us;
  test_server server(core_or_helper(core), one_core(), listening);
  core = thread_of_core(server);
  client peer = server.connect();
  const auto ask = [&](const char* what) {
    peer.send_all(what);
    return peer.recv_exactly(4);
  };
  CHECK(ask("fast") == "core");
  for (int round = 0; round < 2; ++round) {
    CHECK(eventually([&] { return ask("slow") == "help"; }));
    CHECK(eventually([&] { return ask("fast") == "core"; }));
  }
  CHECK(server.total().spill_begins >= 2);
  CHECK(server.total().spilled > 0);
}

// 20 ms of each turn of the loop: more than what one slice owes takes to be forgotten.
TEST_CASE_FIXTURE(clean_process, "spill: when_slow sees slow slices of which a turn has many") {
  std::atomic<std::thread::id> core;
  listen_options listening = spilled(spilling::when_slow);
  listening.spill_budget = 10us;
  test_server server(core_or_helper(core), one_core(), listening);
  core = thread_of_core(server);
  std::deque<client> peers;
  for (int i = 0; i < 20; ++i) peers.push_back(server.connect());
  CHECK(eventually([&] {
    bool helped = false;
    for (client& peer : peers) peer.send_all("slow");
    for (client& peer : peers) helped |= peer.recv_exactly(4) == "help";
    return helped;
  }));
}

TEST_CASE_FIXTURE(clean_process, "spill: when_slow does not mind that others have the core's CPU") {
  if (!std::filesystem::exists("/proc/thread-self/schedstat")) return;  // this kernel does not tell
  listen_options listening = spilled(spilling::when_slow);
  listening.spill_budget = 20ms;
  server_options pinned = one_core();
  pinned.placement.pin = true;
  const auto cpu_time = [] {
    timespec now{};
    ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return std::chrono::seconds(now.tv_sec) + std::chrono::nanoseconds(now.tv_nsec);
  };
  test_server server(
      [&](connection& conn) -> task<> {
        while (auto data = co_await conn.read()) {
          const auto end = cpu_time() + 10ms;
          while (cpu_time() < end) {
          }
          co_await conn.write(data);
        }
      },
      pinned, listening);
  // With three others on the same CPU each slice takes 40 ms, twice its budget: five of them make a listener slow.
  std::atomic<bool> stop = false;
  std::vector<std::thread> others;
  for (int i = 0; i < 3; ++i) {
    others.emplace_back([&] {
      cpu_set_t set;
      CPU_ZERO(&set);
      CPU_SET(server->placement().cores[0].cpu, &set);
      (void)::sched_setaffinity(0, sizeof set, &set);
      while (!stop) {
      }
    });
  }
  client peer = server.connect();
  for (int i = 0; i < 20; ++i) {
    peer.send_all("x");
    CHECK(peer.recv_exactly(1) == "x");
  }
  stop = true;
  for (std::thread& each : others) each.join();
  CHECK(server.total().spill_begins == 0);
}

TEST_CASE_FIXTURE(clean_process, "spill: one slow listener leaves another one of the same server on the core") {
  server_options options = one_core();
  server both(options);
  std::atomic<std::thread::id> core, fast_ran_on;
  listen_options listening = spilled(spilling::when_slow);
  listening.spill_budget = 10us;
  both.listen("127.0.0.1:0", [](connection& conn) -> task<> {
    while (auto data = co_await conn.read()) {
      std::this_thread::sleep_for(1ms);
      co_await conn.write(data);
    }
  }, listening);
  both.listen("127.0.0.1:0", [&](connection& conn) -> task<> {
    while (auto data = co_await conn.read()) {
      fast_ran_on = std::this_thread::get_id();
      co_await conn.write(data);
    }
  }, listening);
  both.start();
  event told;
  both.post(0, [&] { core = std::this_thread::get_id(); told.set(); });
  told.wait();
  client slow(both.local_address(0));
  client fast(both.local_address(1));
  CHECK(eventually([&] {
    slow.send_all("s");
    (void)slow.recv_exactly(1);
    return both.stats().total.spill_begins > 0;
  }));
  // Its own slices may be taken for slow ones too, on a busy machine, but not for ever.
  CHECK(eventually([&] {
    fast.send_all("f");
    (void)fast.recv_exactly(1);
    return fast_ran_on.load() == core.load();
  }));
}

TEST_CASE_FIXTURE(clean_process, "spill: everything that a handler may call works in a slice") {
  channel<std::string> seen;
  test_server server(
      [&](connection& conn) -> task<> {
        conn.set_read_timeout(std::chrono::milliseconds(patience));
        conn.set_idle_timeout(std::chrono::milliseconds(patience));
        auto line = co_await conn.read_until("\n", 100);
        CHECK(line.text() == "head\n");
        conn.unread(2);
        CHECK(conn.buffered_bytes() >= 2);
        std::byte rest[6];
        CHECK(bool(co_await conn.read_full(rest)));
        CHECK(std::string(reinterpret_cast<const char*>(rest), 6) == "d\nbody");
        conn.release_view();
        conn.emplace_context<std::string>("context");
        CHECK(*conn.context<std::string>() == "context");
        CHECK(conn.try_write("tried,"));
        CHECK(bool(co_await conn.write("written,")));
        const auto nested = [](connection& inner) -> task<int> {
          co_await inner.yield();
          co_await inner.sleep_for(1us);
          co_return 7;
        };
        CHECK(co_await nested(conn) == 7);
        auto compute = [] { return 35; };
        auto answer = co_await conn.offload(compute);
        CHECK(*answer == 35);
        auto other = co_await offload(compute);
        CHECK(*other == 35);
        channel<int> called;
        CHECK(offload_detached([&] { called.put(1); }));
        co_await conn.yield();
        CHECK(called.take() == 1);
        CHECK(conn.now() >= conn.start_time());
        CHECK(conn.core_index() == 0);
        const bytes_view pieces[] = {"one,", "two,"};
        CHECK(bool(co_await conn.write(pieces)));
        CHECK(conn.try_write("last"));
        conn.shutdown_write();
        CHECK_FALSE(bool(co_await conn.write("too late")));
        CHECK(conn.error() == errc::closed);
        auto more = co_await conn.read();
        seen.put(std::string(more.text()));
        conn.close();
        CHECK_FALSE(bool(co_await conn.read()));
      },
      one_core(), spilled());
  client peer = server.connect();
  peer.send_all("head\nbody");
  CHECK(peer.recv_to_end() == "tried,written,one,two,last");
  peer.send_all("more");
  CHECK(seen.take() == "more");
  CHECK(eventually([&] { return server.total().active == 0; }));
  CHECK(server.total().contexts_on_heap == 0);
}

TEST_CASE_FIXTURE(clean_process, "spill: endings in a slice are made at its end, in their order") {
  std::string what;
  SUBCASE("reset") { what = "reset"; }
  SUBCASE("close, then reset") { what = "close"; }
  SUBCASE("the handler returns behind a reset") { what = "return"; }
  test_server server(
      [&](connection& conn) -> task<> {
        co_await conn.read();
        if (what == "close") {
          conn.close();
          CHECK_FALSE(conn.try_write("x"));
          for (int i = 0; i < 100; ++i) conn.close();
        }
        for (int i = 0; i < 100; ++i) conn.reset();
        if (what == "return") co_return;
        CHECK_FALSE(bool(co_await conn.write("y")));
        CHECK(conn.error() == errc::closed);
        CHECK(conn.fd() == -1);
      },
      one_core(), spilled());
  client peer = server.connect();
  peer.send_all("go");
  CHECK(peer.wait_for_end() == (what == "close" ? ending::fin : ending::reset));
  CHECK(eventually([&] { return server.total().active == 0; }));
}

TEST_CASE_FIXTURE(clean_process, "spill: what is posted to a connection waits for its slice, in order") {
  event entered, opened;
  channel<connection_handle> handles;
  channel<int> ran;
  bool returns = false;
  SUBCASE("and finds it between two slices") {}
  SUBCASE("and is told when the handler has returned") { returns = true; }
  test_server server(
      [&](connection& conn) -> task<> {
        handles.put(conn.handle());
        entered.set();
        opened.wait();
        if (!returns) co_await conn.read();
      },
      one_core(), spilled());
  client peer = server.connect();
  const connection_handle handle = handles.take();
  entered.wait();
  for (int i = 0; i < 100; ++i) {
    handle.post([&ran, i, returns](connection* target) {
      CHECK((target == nullptr) == returns);
      ran.put(i);
    });
  }
  CHECK(core_is_free(server));
  CHECK(ran.size() == 0);
  opened.set();
  for (int i = 0; i < 100; ++i) CHECK(ran.take() == i);
  peer.close();
}

TEST_CASE_FIXTURE(clean_process, "spill: several coroutines of one connection, of which one is in a slice") {
  event entered, opened;
  std::string read;
  std::atomic<int> ticks{0};
  const auto reader = [&](connection& conn) -> lone_coroutine {
    auto data = co_await conn.read();
    read = data.text();
    ++ticks;
  };
  const auto sleeper = [&](connection& conn) -> lone_coroutine {
    co_await conn.sleep_for(1us);
    ++ticks;
  };
  const auto yielder = [&](connection& conn) -> lone_coroutine {
    for (int i = 0; i < 3; ++i) co_await conn.yield();
    ++ticks;
  };
  test_server server(
      [&](connection& conn) -> task<> {
        reader(conn);
        sleeper(conn);
        yielder(conn);
        co_await conn.write("ready");
        entered.set();
        opened.wait();  // meanwhile the others could go on
        CHECK(ticks.load() == 0);
        while (ticks.load() != 3) co_await conn.yield();
        co_await conn.write(read);
      },
      one_core(), spilled());
  client peer = server.connect();
  CHECK(peer.recv_exactly(5) == "ready");
  entered.wait();
  peer.send_all("meanwhile");
  CHECK(core_is_free(server));
  opened.set();
  CHECK(peer.recv_to_end() == "meanwhile");
}

TEST_CASE_FIXTURE(clean_process, "spill: a timeout that runs out during a slice counts at its end") {
  event entered;
  listen_options listening = spilled();
  listening.lifetime_timeout = 1ms;
  std::atomic<bool> timed_out{false};
  test_server server(
      [&](connection& conn) -> task<> {
        entered.set();
        std::this_thread::sleep_for(5ms);
        const auto data = co_await conn.read();
        timed_out = !data && conn.error() == errc::timed_out;
      },
      one_core(), listening);
  client peer = server.connect();
  CHECK(peer.wait_for_end() == ending::reset);
  CHECK(timed_out.load());
  CHECK(server.total().timeouts == 1);
}

TEST_CASE_FIXTURE(clean_process, "spill: an exception that leaves a handler is reported and ends its connection") {
  server_options options = one_core();
  channel<std::string> reports;
  options.on_exception = [&](std::exception_ptr exception) {
    try {
      std::rethrow_exception(exception);
    } catch (const std::exception& error) {
      reports.put(error.what());
    }
  };
  test_server server(
      [](connection& conn) -> task<> {
        co_await conn.read();
        throw std::runtime_error("from a slice");
      },
      options, spilled());
  client peer = server.connect();
  peer.send_all("x");
  CHECK(reports.take() == "from a slice");
  CHECK(peer.recv_to_end().empty());
  CHECK(server.total().handler_errors == 1);
}

TEST_CASE_FIXTURE(clean_process, "spill: with the smallest queue every slice waits for its turn and none is lost") {
  server_options options = one_core();
  options.helpers.most_per_core = 1;
  options.helpers.queue = 1;
  options.helpers.at_full = full_queue::refuse;  // a slice waits all the same
  test_server server(echo, options, spilled());
  std::vector<client> peers;
  for (int i = 0; i < 100; ++i) peers.push_back(server.connect());
  for (int round = 0; round < 5; ++round) {
    for (auto& peer : peers) peer.send_all("hello");
    for (auto& peer : peers) CHECK(peer.recv_exactly(5) == "hello");
  }
  CHECK(server.total().helpers.full > 0);
}

// What becomes of a connection whose handler is in a slice, or in the queue for one, when its server ends.
TEST_CASE_FIXTURE(clean_process, "spill: a server that ends waits for slices") {
  event entered, opened;
  std::atomic<int> went_on{0};
  bool grace = false;
  SUBCASE("halt") {}
  SUBCASE("the end of a grace") { grace = true; }
  server_options options = one_core();
  options.helpers.most_per_core = 1;
  options.helpers.patience = std::chrono::milliseconds(patience);
  test_server server(
      [&](connection& conn) -> task<> {
        const alive frame;
        auto data = co_await conn.read();
        if (data.text() == "wait") {
          entered.set();
          opened.wait();
        }
        const bool wrote = co_await conn.write("late");
        CHECK_FALSE(wrote);
        CHECK(conn.error() == errc::shutting_down);
        ++went_on;
        co_await conn.sleep_for(1h);
        co_await conn.sleep_for(1h);
        CHECK(false);
      },
      options, spilled());
  client running = server.connect();
  running.send_all("wait");
  entered.wait();
  client queued = server.connect();  // behind the only helper
  CHECK(eventually([&] { return server.total().helpers.queued == 1; }));
  std::thread ender([&] {
    if (grace) {
      server->shutdown(1ms);
    } else {
      server->halt();
    }
  });
  (void)running.wait_for_end();  // the peers see it though the slice goes on
  (void)queued.wait_for_end();
  CHECK(alive::count() >= 1);
  opened.set();
  ender.join();
  CHECK(alive::count() == 0);
  CHECK(went_on.load() == (grace ? 2 : 0));  // a grace lets both say their last words
}

TEST_CASE_FIXTURE(clean_process, "spill: a slice that never ends is reported, and neither halt nor grace hangs on it") {
  struct occupation {
    event entered, opened, left;
  };
  // Nothing orders the thread that comes back late before the end of this test.
  static auto& immortal = *new std::deque<occupation>;
  occupation& busy = immortal.emplace_back();
  bool grace = false;
  bool secure = false;
  SUBCASE("halt") {}
  SUBCASE("the end of a grace") { grace = true; }
  SUBCASE("halt, over TLS") { secure = true; }
  const std::size_t threads = running_threads();
  channel<stuck_helper> reports;
  channel<connection_handle> handles;
  server_options options = one_core();
  options.helpers.patience = 20ms;
  options.helpers.on_stuck = [&](const stuck_helper& report) { reports.put(report); };
  {
    test_server server(
        [&busy, &handles](connection& conn) -> task<> {
          handles.put(conn.handle());
          co_await conn.read();
          busy.entered.set();
          busy.opened.wait();
          CHECK(conn.server_stopping());
          (void)conn.tls();
          (void)conn.try_write("into the void");
          conn.close();
          busy.left.set();
          co_await conn.read();
        },
        options, secure ? over_tls(server_tls(), spilled()) : spilled());
    any_client peer = wire(secure ? TLS1_3_VERSION : 0).connect(server);
    peer.send_all("x");
    busy.entered.wait();
    std::atomic<int> told{0};
    handles.take().post([&](connection* target) { told += target == nullptr ? 1 : 2; });
    if (grace) {
      server->shutdown(1ms);
    } else {
      server->halt();
    }
    CHECK(reports.take().serves_connection);
    CHECK(told.load() == 1);
    (void)peer.socket().wait_for_end();
  }
  busy.opened.set();
  busy.left.wait();
  CHECK(eventually([&] { return running_threads() == threads; }));
}

TEST_CASE_FIXTURE(clean_process, "spill: a connection that never waits has a budget, and others get the helper in between") {
  server_options options = one_core();
  options.helpers.most_per_core = 1;
  const std::string block(1000, 'b');
  test_server server(
      [&](connection& conn) -> task<> {
        auto data = co_await conn.read();
        bool streams = data.text() == "stream";
        if (!streams) co_await conn.write(data);
        while (streams) streams = co_await conn.write(block);
      },
      options, spilled());
  client stream = server.connect();
  stream.send_all("stream");
  std::atomic<bool> enough{false};
  std::thread reader([&] {
    while (!enough.load()) (void)stream.recv_exactly(block.size());
    stream.close();
  });
  for (int i = 0; i < 5; ++i) CHECK(still_serves(server));
  enough = true;
  reader.join();
}

TEST_CASE_FIXTURE(clean_process, "spill: the last words at the end of a grace are not the core's to say") {
  std::thread::id words;
  test_server server(
      [&](connection& conn) -> task<> {
        const auto data = co_await conn.read();
        CHECK(conn.error() == errc::shutting_down);
        words = std::this_thread::get_id();
        co_await conn.sleep_for(1h);
        CHECK_FALSE(bool(data));
      },
      one_core(), spilled());
  client peer = server.connect();
  CHECK(eventually([&] { return server.total().spilled == 1; }));
  const std::thread::id core = thread_of_core(server);
  event entered, opened;
  server->post(0, [&] {
    entered.set();
    opened.wait();
  });
  entered.wait();
  server->begin_shutdown(1ms);  // the drain and the end of the grace are met in one turn
  std::this_thread::sleep_for(2ms);
  opened.set();
  server->wait();
  CHECK(words != std::thread::id());
  CHECK(words != core);
}

TEST_CASE_FIXTURE(clean_process, "spill: a read's time that runs out leaves the lifetime its own") {
  listen_options listening = spilled();
  listening.read_timeout = 1ms;
  listening.lifetime_timeout = 30ms;
  test_server server(
      [&](connection& conn) -> task<> {
        CHECK_FALSE(bool(co_await conn.read()));
        CHECK(conn.error() == errc::timed_out);
        const bool slept = co_await conn.sleep_for(1h);
        CHECK_FALSE(slept);
      },
      one_core(), listening);
  client peer = server.connect();
  CHECK(peer.wait_for_end() == ending::reset);
}

TEST_CASE_FIXTURE(clean_process, "spill: a drain that begins during a slice reaches the other coroutines") {
  event entered, opened, failed;
  const auto reader = [&](connection& conn) -> lone_coroutine {
    CHECK_FALSE(bool(co_await conn.read()));
    CHECK(conn.error() == errc::shutting_down);
    failed.set();
  };
  test_server server(
      [&](connection& conn) -> task<> {
        reader(conn);
        co_await conn.yield();  // so that its read waits
        entered.set();
        opened.wait();
        while (failed.count() == 0) co_await conn.sleep_for(100us);
      },
      one_core(), spilled());
  client peer = server.connect();
  entered.wait();
  server->begin_shutdown();
  CHECK(core_is_free(server));
  opened.set();
  server->wait();
  CHECK(failed.count() == 1);
}

TEST_CASE_FIXTURE(clean_process, "spill: coroutines that a handler leaves behind go on") {
  event went_on;
  bool secure = false;
  SUBCASE("plain") {}
  SUBCASE("TLS, where every write is the core's") { secure = true; }
  const auto writer = [&](connection& conn) -> lone_coroutine {
    co_await conn.write("written");
    went_on.set();
  };
  const auto caller = [&]() -> lone_coroutine {
    const auto done = co_await offload([] {});
    CHECK(done);
    went_on.set();
  };
  test_server server(
      [&](connection& conn) -> task<> {
        co_await conn.read();
        writer(conn);
        caller();
      },
      one_core(), secure ? over_tls(server_tls(), spilled()) : spilled());
  any_client peer = wire(secure ? TLS1_3_VERSION : 0).connect(server);
  peer.send_all("x");
  CHECK(all_of(peer) == "written");
  went_on.wait(2);
}

TEST_CASE_FIXTURE(clean_process, "spill: try_write does not overtake a write of another coroutine") {
  const std::string text = numbered_text(2'000'000);
  const auto writer = [&](connection& conn) -> lone_coroutine { co_await conn.write(text); };
  test_server server(
      [&](connection& conn) -> task<> {
        writer(conn);
        CHECK_FALSE(conn.try_write("overtaken"));
        CHECK(conn.error() == errc::limit_exceeded);
        while (!conn.try_write("behind")) co_await conn.sleep_for(1ms);
      },
      one_core(), spilled(spilling::always, small_send_buffer()));
  client peer = server.connect();
  CHECK((peer.recv_to_end() == text + "behind"));
}

TEST_CASE_FIXTURE(clean_process, "spill: a helper cannot wait for the end of its own server") {
  channel<std::string> said;
  server* self = nullptr;
  const auto wait = [&] {
    try {
      self->wait();
    } catch (const std::logic_error& error) {
      said.put(error.what());
    }
  };
  test_server server(
      [&](connection& conn) -> task<> {
        co_await conn.read();
        wait();
        self->shutdown();  // begins it
      },
      one_core(), spilled());
  self = &*server;
  client peer = server.connect();
  peer.send_all("x");
  CHECK(said.take().find("cannot wait") != std::string::npos);
  server->wait();
}

TEST_CASE_FIXTURE(clean_process, "spill: what try_write has kept is not kept for ever") {
  if (sanitized) return;  // whose allocator tells nothing
  constexpr std::size_t big = 4 * 1024 * 1024;
  server_options options = one_core();
  listen_options listening = small_send_buffer();
  listening.unsent_tail_bytes = 2 * big;
  SUBCASE("on a helper") { listening.spill = spilling::always; }
  SUBCASE("open to a takeover") { options.takeover.on = true; }
  test_server server(
      [](connection& conn) -> task<> {
        while (auto data = co_await conn.read()) {
          if (data.text() == "more") {
            (void)conn.try_write(std::string(big, 'b'));
          } else if (!co_await conn.write(data)) {
            break;
          }
        }
      },
      options, listening);
  std::vector<client> peers;
  for (int i = 0; i < 10; ++i) peers.push_back(server.connect());
  const std::size_t before = allocated_bytes();
  for (client& peer : peers) peer.send_all("more");
  for (client& peer : peers) CHECK(peer.recv_exactly(big).size() == big);
  CHECK(eventually([&] { return allocated_bytes() < before + big; }));  // while they are idle
  for (client& peer : peers) {
    peer.send_all("echo");
    CHECK(peer.recv_exactly(4) == "echo");
  }
  CHECK(eventually([&] { return allocated_bytes() < before + big; }));
}

// What a handler does to the connection of another one, on its core or not.
void use_another(spilling spill, bool takeover, void (*use)(connection&)) {
  std::atomic<connection*> other{nullptr};
  server_options options = one_core();
  options.takeover.on = takeover;
  listen_options listening;
  listening.spill = spill;
  test_server server(
      [&](connection& conn) -> task<> {
        connection* first = nullptr;
        if (other.compare_exchange_strong(first, &conn)) {
          while (co_await conn.read()) {
          }
        } else {
          (void)co_await conn.read();
          use(*first);
          co_await conn.write("used");
        }
      },
      options, listening);
  client one = server.connect();
  CHECK(eventually([&] { return other.load() != nullptr; }));
  client two = server.connect();
  two.send_all("use it");
  CHECK(two.recv_exactly(4) == "used");
}

TEST_CASE_FIXTURE(clean_process, "spill: a handler away from its core leaves other connections alone, or the program ends") {
  void (*use)(connection&) = nullptr;
  SUBCASE("try_write") {
    use = [](connection& other) { (void)other.try_write("unasked"); };
  }
  SUBCASE("close") {
    use = [](connection& other) { other.close(); };
  }
  SUBCASE("reset") {
    use = [](connection& other) { other.reset(); };
  }
  SUBCASE("shutdown_write") {
    use = [](connection& other) { other.shutdown_write(); };
  }
  SUBCASE("set_read_timeout") {
    use = [](connection& other) { other.set_read_timeout(1min); };
  }
  SUBCASE("emplace_context") {
    use = [](connection& other) { other.emplace_context<int>(1); };
  }
#ifndef NDEBUG
  SUBCASE("a write that needs not wait") {
    use = [](connection& other) { (void)other.write("unasked").await_ready(); };
  }
  SUBCASE("release_view") {
    use = [](connection& other) { other.release_view(); };
  }
#endif
  for (const bool takeover : {false, true}) {
    CAPTURE(takeover);
    CHECK(ends_by_assertion([&] { use_another(takeover ? spilling::never : spilling::always, takeover, use); }));
  }
  use_another(spilling::never, false, use);
}

TEST_CASE_FIXTURE(clean_process, "spill: a budget outside of its range is refused") {
  server refusing(one_core());
  listen_options listening = spilled(spilling::when_slow);
  listening.spill_budget = 9us;
  CHECK_THROWS_WITH_AS(refusing.listen("127.0.0.1:0", echo, listening),
                       "percore: spill_budget must be from 10 us to 1 s", std::invalid_argument);
}

}  // namespace
}  // namespace percore::test
