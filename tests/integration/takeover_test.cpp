// Cores that go on on another thread while a handler keeps theirs: takeover_options.
#include <doctest/doctest.h>

#include <sched.h>

#include <atomic>
#include <chrono>
#include <deque>
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

server_options open_to_takeover(server_options options = one_core()) {
  options.takeover.on = true;
  options.takeover.after = 1ms;
  return options;
}

// Keeps the core of whoever asks for it, until it is opened.
struct keeper {
  event entered, opened;

  task<> operator()(connection& conn) {
    while (auto data = co_await conn.read()) {
      if (data.text() == "keep") {
        entered.set();
        opened.wait();
      }
      if (!co_await conn.write(data)) break;
    }
  }
};

TEST_CASE_FIXTURE(clean_process, "takeover: a core serves others while a handler keeps its thread") {
  keeper kept;
  test_server server([&](connection& conn) { return kept(conn); }, open_to_takeover());
  CHECK(still_serves(server));
  CHECK(server.total().takeovers == 0);
  client slow = server.connect();
  slow.send_all("keep");
  kept.entered.wait();
  for (int i = 0; i < 20; ++i) CHECK(still_serves(server));
  CHECK(server.total().takeovers == 1);
  kept.opened.set();
  CHECK(slow.recv_exactly(4) == "keep");
  for (int i = 0; i < 20; ++i) {  // the handler goes on, on the core's new thread
    slow.send_all("more");
    CHECK(slow.recv_exactly(4) == "more");
  }
  CHECK(server.total().takeovers == 1);
}

TEST_CASE_FIXTURE(clean_process, "takeover: everything of a core goes on") {
  server_options options = open_to_takeover();
  SUBCASE("descriptors of the process") {}
  SUBCASE("descriptors of its own") {
    if (under_tsan) return;  // which knows one table only
    options.private_descriptors = true;
  }
  keeper kept;
  event slept;
  test_server server(
      [&](connection& conn) -> task<> {
        auto data = co_await conn.read();
        if (data.text() == "sleep") {
          co_await conn.sleep_for(5ms);
          auto twice = [] { return 2; };
          CHECK(*co_await conn.offload(twice) == 2);
          slept.set();
          co_return;
        }
        conn.unread(data);
        co_await kept(conn);
      },
      options);
  std::vector<client> waiting;
  for (int i = 0; i < 20; ++i) waiting.push_back(server.connect());
  client slow = server.connect();
  CHECK(eventually([&] { return server.total().active == 21; }));
  // All at once: some of them are in the same batch of events as the one that keeps the core.
  slow.send_all("keep");
  for (client& peer : waiting) peer.send_all("hello");
  kept.entered.wait();
  for (client& peer : waiting) CHECK(peer.recv_exactly(5) == "hello");
  client sleeper = server.connect();
  sleeper.send_all("sleep");
  slept.wait();
  event posted;
  server->post(0, [&] { posted.set(); });
  posted.wait();
  CHECK(still_serves(server));
  kept.opened.set();
  CHECK(slow.recv_exactly(4) == "keep");
}

TEST_CASE_FIXTURE(clean_process, "takeover: one after the other, as many as there may be threads") {
  server_options options = open_to_takeover();
  options.takeover.most_threads = 3;
  keeper kept;
  test_server server([&](connection& conn) { return kept(conn); }, options);
  std::vector<client> slow;
  for (std::size_t i = 1; i <= 3; ++i) {
    slow.push_back(server.connect());
    slow.back().send_all("keep");
    kept.entered.wait(i);
    CHECK(still_serves(server));
  }
  CHECK(server.total().takeovers == 3);
  slow.push_back(server.connect());  // all threads are kept now, and then the core too
  slow.back().send_all("keep");
  kept.entered.wait(4);
  client late = server.connect();
  late.send_all("late");
  kept.opened.set();
  for (client& peer : slow) CHECK(peer.recv_exactly(4) == "keep");
  CHECK(late.recv_exactly(4) == "late");
  CHECK(still_serves(server));
}

TEST_CASE_FIXTURE(clean_process, "takeover: the handler that was kept meets what has happened meanwhile") {
  keeper kept;
  std::function<void(client&, test_server&)> happens;
  errc expected = errc::end_of_stream;
  server_options options = open_to_takeover();
  options.helpers.patience = std::chrono::milliseconds(patience);
  SUBCASE("the peer's FIN") {
    happens = [](client& peer, test_server&) { peer.half_close(); };
  }
  SUBCASE("the peer's reset") {
    expected = errc::connection_reset;
    happens = [](client& peer, test_server&) { peer.reset(); };
  }
  SUBCASE("a shutdown") {
    expected = errc::shutting_down;
    happens = [](client&, test_server& server) { server->begin_shutdown(); };
  }
  SUBCASE("the end of a grace") {
    expected = errc::shutting_down;
    happens = [](client& peer, test_server& server) {
      server->begin_shutdown(1ms);
      (void)peer.wait_for_end();
    };
  }
  std::atomic<errc> seen{};
  test_server server(
      [&](connection& conn) -> task<> {
        (void)co_await conn.read();
        kept.entered.set();
        kept.opened.wait();
        const auto data = co_await conn.read();
        CHECK_FALSE(bool(data));
        seen = static_cast<errc>(conn.error().value());
      },
      options);
  client peer = server.connect();
  peer.send_all("x");
  kept.entered.wait();
  CHECK(eventually([&] { return server.total().takeovers == 1; }));
  happens(peer, server);
  kept.opened.set();
  CHECK(eventually([&] { return server.total().active == 0; }));
  CHECK(seen.load() == expected);
}

TEST_CASE_FIXTURE(clean_process, "takeover: a halt waits for the thread that is kept, and ends its handler") {
  keeper kept;
  server_options options = open_to_takeover();
  options.helpers.patience = std::chrono::milliseconds(patience);
  test_server server(
      [&](connection& conn) -> task<> {
        const alive frame;
        kept.entered.set();
        kept.opened.wait();
        co_await conn.sleep_for(1us);
        CHECK(false);
      },
      options);
  client peer = server.connect();
  kept.entered.wait();
  CHECK(eventually([&] { return server.total().takeovers == 1; }));
  std::thread halter([&] { server->halt(); });
  (void)peer.wait_for_end();
  CHECK(alive::count() == 1);
  kept.opened.set();
  halter.join();
  CHECK(alive::count() == 0);
}

TEST_CASE_FIXTURE(clean_process, "takeover: a thread that never comes back is reported, and nothing hangs on it") {
  // Nothing orders the thread that comes back late before the end of this test.
  static auto& immortal = *new std::deque<keeper>;
  keeper& kept = immortal.emplace_back();
  static auto& late = *new std::deque<event>;
  event& left = late.emplace_back();
  bool second = false;
  bool grace = false;
  SUBCASE("the core's first thread, by a halt") {}
  SUBCASE("the core's first thread, by the end of a grace") { grace = true; }
  SUBCASE("one that has taken the core over itself") { second = true; }
  const std::size_t threads = running_threads();
  channel<stuck_helper> reports;
  server_options options = open_to_takeover();
  options.helpers.patience = 20ms;
  options.helpers.on_stuck = [&](const stuck_helper& report) { reports.put(report); };
  {
    test_server server(
        [&kept, &left](connection& conn) -> task<> {
          auto data = co_await conn.read();
          if (data.text() == "first") {
            std::this_thread::sleep_for(20ms);
            co_await conn.write(data);
            co_return;
          }
          kept.entered.set();
          kept.opened.wait();
          left.set();
          (void)conn.try_write("into the void");
          conn.close();
          co_await conn.read();
        },
        options);
    if (second) {
      client first = server.connect();
      first.send_all("first");
      CHECK(first.recv_to_end() == "first");
    }
    client peer = server.connect();
    peer.send_all("x");
    kept.entered.wait();
    CHECK(eventually([&] { return server.total().takeovers >= (second ? 2 : 1); }));
    if (grace) {
      server->shutdown(1ms);
    } else {
      server->halt();
    }
    const stuck_helper report = reports.take();
    CHECK(report.serves_connection);
    CHECK(report.peer == peer.local_address());
    CHECK(report.running >= 10ms);
  }
  kept.opened.set();
  left.wait();
  CHECK(eventually([&] { return running_threads() == threads; }));
}

TEST_CASE_FIXTURE(clean_process, "takeover: the core keeps its CPU, whichever thread runs it") {
  server_options options = all_cores();
  options.takeover.on = true;
  options.takeover.after = 1ms;
  test_server server(
      [](connection& conn) -> task<> {
        while (auto data = co_await conn.read()) {
          std::this_thread::sleep_for(20ms);
          co_await conn.write(data);
        }
      },
      options);
  const auto cpus_of_core = [&](std::size_t core) {
    channel<int> cpus;
    server->post(core, [&] {
      cpu_set_t allowed;
      CPU_ZERO(&allowed);
      CHECK(::sched_getaffinity(0, sizeof allowed, &allowed) == 0);
      const unsigned own = server->placement().cores[core].cpu;
      cpus.put(CPU_ISSET(own, &allowed) ? CPU_COUNT(&allowed) : 0);
    });
    return cpus.take();
  };
  client peer = server.connect();
  for (std::uint64_t times = 1; times <= 4; ++times) {  // by then each thread has had it again
    CHECK(eventually([&] {
      peer.send_all("x");
      (void)peer.recv_exactly(1);
      return server.total().takeovers >= times;
    }));
    for (std::size_t core = 0; core < server->core_count(); ++core) CHECK(cpus_of_core(core) == 1);
  }
}

TEST_CASE_FIXTURE(clean_process, "takeover: a connection that never waits has a budget") {
  server_options options = one_core();
  options.takeover.on = true;
  options.takeover.after = 1h;  // never, here
  const std::string block(1000, 'b');
  test_server server(
      [&](connection& conn) -> task<> {
        auto data = co_await conn.read();
        bool streams = data.text() == "stream";
        if (!streams) co_await conn.write(data);
        while (streams) streams = co_await conn.write(block);
      },
      options);
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

TEST_CASE_FIXTURE(clean_process, "takeover: with spilling, what the first slow slices do is learned") {
  listen_options listening;
  listening.spill = spilling::when_slow;
  test_server server(
      [](connection& conn) -> task<> {
        while (auto data = co_await conn.read()) {
          std::this_thread::sleep_for(10ms);
          co_await conn.write(data);
        }
      },
      open_to_takeover(), listening);
  client peer = server.connect();
  CHECK(eventually([&] {
    peer.send_all("x");
    (void)peer.recv_exactly(1);
    return server.total().spilled > 0;
  }));
  CHECK(server.total().takeovers > 0);
}

TEST_CASE_FIXTURE(clean_process, "takeover: stalls are reported with the thread that stalls, whoever runs the core") {
  server_options options = open_to_takeover();
  options.takeover.most_threads = 1;
  options.stalls.threshold.emplace(20);
  channel<stall> reports;
  options.stalls.on_stall = [&](const stall& told) { reports.put(told); };
  keeper kept;
  test_server server([&](connection& conn) { return kept(conn); }, options);
  client first = server.connect();
  first.send_all("keep");
  kept.entered.wait();
  CHECK(eventually([&] { return server.total().takeovers == 1; }));
  client second = server.connect();  // nobody stands by any more: this is a stall
  second.send_all("keep");
  const stall told = reports.take();
  CHECK(told.in_handler);
  CHECK(told.peer == second.local_address());
  kept.opened.set();
  CHECK(second.recv_exactly(4) == "keep");
}

TEST_CASE_FIXTURE(clean_process, "takeover: many handlers that block now and then, on every core") {
  server_options options = all_cores();
  options.takeover.on = true;
  options.takeover.after = 1ms;
  test_server server(
      [](connection& conn) -> task<> {
        for (int i = 0; auto data = co_await conn.read(); ++i) {
          if (i % 10 == static_cast<int>(data.text().front()) % 10) std::this_thread::sleep_for(3ms);
          if (!co_await conn.write(data)) break;
        }
      },
      options);
  std::vector<std::thread> clients;
  std::atomic<int> wrong{0};
  for (int number = 0; number < 4; ++number) {
    clients.emplace_back([&, number] {
      std::vector<client> peers;
      for (int i = 0; i < 5; ++i) peers.push_back(server.connect());
      const std::string text(1, static_cast<char>('0' + number));
      for (int round = 0; round < 40; ++round) {
        for (client& peer : peers) peer.send_all(text);
        for (client& peer : peers) wrong += peer.recv_exactly(1) == text ? 0 : 1;
      }
    });
  }
  for (std::thread& each : clients) each.join();
  CHECK(wrong.load() == 0);
  CHECK(server.total().takeovers > 0);
}

TEST_CASE_FIXTURE(clean_process, "takeover: options outside of their range are refused") {
  server_options options = open_to_takeover();
  SUBCASE("after") {
    options.takeover.after = 0ms;
    CHECK_THROWS_WITH_AS(server{options}, "percore: takeover.after must be from 1 ms to 1 h", std::invalid_argument);
  }
  SUBCASE("most_threads") {
    options.takeover.most_threads = 0;
    CHECK_THROWS_WITH_AS(server{options}, "percore: takeover.most_threads must be from 1 to 1024",
                         std::invalid_argument);
  }
}

}  // namespace
}  // namespace percore::test
