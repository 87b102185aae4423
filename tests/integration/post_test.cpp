// Reaching cores and connections from other threads.
#include <doctest/doctest.h>

#include <pthread.h>
#include <sched.h>

#include <array>
#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <unordered_set>
#include <vector>

#include "tests/support/clean_process.hpp"
#include "tests/support/test_server.hpp"

namespace percore::test {
namespace {

using namespace std::chrono_literals;

void run_in_threads(int count, const std::function<void(int)>& body) {
  std::vector<std::thread> threads;
  for (int i = 0; i < count; ++i) threads.emplace_back(body, i);
  for (std::thread& each : threads) each.join();
}

TEST_CASE_FIXTURE(clean_process, "post: runs on the thread of the named core") {
  server_options options = all_cores();
  options.thread_name = "post-test";
  test_server server(echo, options);
  struct place {
    std::thread::id thread;
    std::string name;
    cpu_set_t cpus;
  };
  channel<place> places;
  std::set<std::thread::id> threads;
  for (std::size_t core = 0; core < server->core_count(); ++core) {
    for (int repeat = 0; repeat < 2; ++repeat) {
      CHECK(server->post(core, [&] {
        place here{std::this_thread::get_id(), std::string(16, '\0'), {}};
        ::pthread_getname_np(::pthread_self(), here.name.data(), here.name.size());
        ::sched_getaffinity(0, sizeof here.cpus, &here.cpus);
        places.put(here);
      }) == post_result::posted);
      const place seen = places.take();
      threads.insert(seen.thread);
      CHECK(std::string(seen.name.c_str()) == "post-test/" + std::to_string(core));
      CHECK(CPU_COUNT(&seen.cpus) == 1);
      CHECK(CPU_ISSET(server->placement().cores[core].cpu, &seen.cpus));
    }
  }
  CHECK(threads.size() == server->core_count());
}

TEST_CASE_FIXTURE(clean_process, "post: keeps the order of one thread and loses nothing of many") {
  constexpr int senders = 6;
  constexpr int each = 5000;
  test_server server(echo, all_cores());
  const std::size_t cores = server->core_count();
  struct state {
    std::array<int, senders> next{};
    bool in_order = true;
  };
  std::vector<state> states(cores);  // each is used by its core's thread only
  event done;
  run_in_threads(senders, [&](int sender) {
    for (int i = 0; i < each; ++i) {
      for (std::size_t core = 0; core < cores; ++core) {
        const auto step = [&, sender, core, i] {
          states[core].in_order = states[core].in_order && states[core].next[static_cast<std::size_t>(sender)]++ == i;
          if (i + 1 == each) done.set();
        };
        while (server->post(core, step) == post_result::queue_full) std::this_thread::yield();
      }
    }
  });
  done.wait(senders * cores);
  for (const state& core : states) CHECK(core.in_order);
  CHECK(eventually([&] { return server.total().messages >= senders * each * cores; }));
}

TEST_CASE_FIXTURE(clean_process, "post: a core that does not exist is refused") {
  test_server server(echo);
  CHECK_THROWS_AS((void)server->post(server->core_count(), [] {}), std::out_of_range);
}

TEST_CASE_FIXTURE(clean_process, "post: is answered with stopped before the start and after the end") {
  server host(one_core());
  host.listen("127.0.0.1:0", echo);
  CHECK(host.post(0, [] {}) == post_result::stopped);
  host.start();
  CHECK(host.post(0, [] {}) == post_result::posted);
  host.shutdown();
  CHECK(host.post(0, [probe = alive()] {}) == post_result::stopped);
}

TEST_CASE_FIXTURE(clean_process, "post: a full mailbox says so and all that it took runs in order") {
  server_options options = one_core();
  options.mailbox_messages = 64;
  test_server server(echo, options);
  std::vector<int> ran;
  event done;
  int posted = 0;
  {
    blocked_core blocked(*server, 0);
    while (server->post(0, [&ran, posted] { ran.push_back(posted); }) == post_result::posted) ++posted;
    CHECK(posted >= 63);  // the message that blocks the core may still have its place
    CHECK(posted <= 64);
    CHECK(server->post(0, [probe = alive()] {}) == post_result::queue_full);
  }
  while (server->post(0, [&] { done.set(); }) != post_result::posted) std::this_thread::yield();
  done.wait();
  REQUIRE(ran.size() == static_cast<std::size_t>(posted));
  for (int i = 0; i < posted; ++i) CHECK(ran[static_cast<std::size_t>(i)] == i);
}

TEST_CASE_FIXTURE(clean_process, "post: takes closures of every size and those that can only be moved") {
  test_server server(echo);
  channel<std::size_t> seen;
  server->post(0, [&seen] { seen.put(1); });
  server->post(0, [&seen, text = std::string(1000, 'x')] { seen.put(text.size()); });
  server->post(0, [&seen, bytes = std::array<char, 5000>{}] { seen.put(bytes.size()); });
  server->post(0, [&seen, owned = std::make_unique<std::size_t>(7)] { seen.put(*owned); });
  server->post(0, [&seen, count = std::size_t{8}]() mutable { seen.put(++count); });
  for (const std::size_t expected : {1U, 1000U, 5000U, 7U, 9U}) CHECK(seen.take() == expected);
}

TEST_CASE_FIXTURE(clean_process, "post: what was posted has run when the server has ended") {
  for (const bool halt : {false, true}) {
    CAPTURE(halt);
    std::atomic<long> posted = 0;
    std::atomic<long> ran = 0;
    test_server server(echo, all_cores());
    event running;
    std::thread poster([&] {
      for (std::size_t core = 0;; core = (core + 1) % server->core_count()) {
        const post_result result = server->post(core, [&ran, probe = alive()] { ++ran; });
        if (result == post_result::stopped) return;
        if (result == post_result::posted) ++posted;
        if (posted == 1000) running.set();
      }
    });
    running.wait();
    halt ? server->halt() : server->shutdown();
    poster.join();
    CHECK(ran.load() == posted.load());
  }
}

TEST_CASE_FIXTURE(clean_process, "post: from core to core and to itself") {
  test_server server(echo, all_cores());
  const std::size_t cores = server->core_count();
  event arrived;
  struct token {
    percore::server* host;
    event* arrived;
    std::size_t cores;
    int hops;
    void operator()() const {
      if (hops == 0) return arrived->set();
      host->post(static_cast<std::size_t>(hops) % cores, token{host, arrived, cores, hops - 1});
    }
  };
  server->post(0, token{&*server, &arrived, cores, 1000});
  arrived.wait();
}

TEST_CASE_FIXTURE(clean_process, "post: an exception of a posted function is counted and reported") {
  server_options options = one_core();
  event reported;
  options.on_exception = [&](std::exception_ptr) { reported.set(); };
  test_server server(echo, options);
  server->post(0, [] { throw std::runtime_error("posted"); });
  reported.wait();
  CHECK(eventually([&] { return server.total().handler_errors == 1; }));
  client peer = server.connect();
  peer.send_all("on");
  CHECK(peer.recv_exactly(2) == "on");
}

// --- connection_handle -----------------------------------------------------------------------------------

// Gives out the handle of every connection and echoes.
class handle_server {
 public:
  explicit handle_server(server_options options = one_core(), listen_options listening = {})
      : server_([this](connection& conn) { return serve(conn); }, std::move(options), std::move(listening)) {}
  test_server& operator*() { return server_; }
  test_server* operator->() { return &server_; }
  connection_handle take() { return handles_.take(); }

 private:
  task<> serve(connection& conn) {
    const alive frame;
    handles_.put(conn.handle());
    while (auto data = co_await conn.read())
      if (!co_await conn.write(data)) break;
  }

  channel<connection_handle> handles_;
  test_server server_;
};

TEST_CASE_FIXTURE(clean_process, "post: a handle reaches its connection until that is gone") {
  handle_server server;
  client peer = server->connect();
  const connection_handle handle = server.take();
  CHECK(handle);
  CHECK(handle.core_index() == 0);
  channel<std::string> seen;
  const auto look = [&](connection* conn) { seen.put(conn == nullptr ? "gone" : "here"); };
  CHECK(handle.post(look) == post_result::posted);
  CHECK(seen.take() == "here");
  CHECK(handle.post([&](connection& conn) { conn.try_write("posted"); }) == post_result::posted);
  CHECK(peer.recv_exactly(6) == "posted");
  peer.close();
  CHECK(eventually([&] { return server->total().active == 0; }));
  CHECK(handle.post(look) == post_result::posted);
  CHECK(seen.take() == "gone");
  bool called = false;
  event after;
  CHECK(handle.post([&](connection&) { called = true; }) == post_result::posted);
  CHECK((*server)->post(0, [&] { after.set(); }) == post_result::posted);
  after.wait();
  CHECK_FALSE(called);
}

TEST_CASE_FIXTURE(clean_process, "post: a handle that names nothing") {
  const connection_handle nothing;
  CHECK_FALSE(nothing);
  CHECK(nothing.post([](connection*) {}) == post_result::stopped);
  CHECK(nothing.write("x") == post_result::stopped);
}

TEST_CASE_FIXTURE(clean_process, "post: a stale handle never reaches the next connection in the same slot") {
  // One slot only, so that every connection is in the same one.
  server_options options = one_core();
  options.max_connections_per_core = 1;
  handle_server server(options);
  std::vector<connection_handle> stale;
  std::unordered_set<connection_handle> distinct;
  channel<bool> reached;
  for (int i = 0; i < 200; ++i) {
    client peer = server->connect();
    const connection_handle handle = server.take();
    CHECK(distinct.insert(handle).second);
    for (std::size_t k = 0; k < stale.size(); k += 1 + stale.size() / 5) {
      stale[k].write("stale");
      stale[k].post([&](connection* conn) { reached.put(conn != nullptr); });
      CHECK_FALSE(reached.take());
    }
    handle.post([&](connection* conn) { reached.put(conn != nullptr); });
    CHECK(reached.take());
    peer.send_all("mine");
    peer.half_close();
    CHECK(peer.recv_to_end() == "mine");
    stale.push_back(handle);
  }
}

TEST_CASE_FIXTURE(clean_process, "post: handles race with the end of their connections") {
  server_options options = all_cores();
  options.max_connections_per_core = 4;
  handle_server server(options);
  std::mutex lock;
  std::vector<connection_handle> handles;
  std::atomic<bool> stop = false;
  std::thread poster([&] {
    for (std::size_t i = 0; !stop; ++i) {
      connection_handle handle;
      {
        std::lock_guard guard(lock);
        if (!handles.empty()) handle = handles[i % handles.size()];
      }
      // The slot may have a new owner: it must never see this.
      if (handle) handle.post([handle](connection& conn) { CHECK(conn.handle() == handle); });
    }
  });
  for (int i = 0; i < 300; ++i) {
    client peer = server->connect();
    {
      std::lock_guard guard(lock);
      handles.push_back(server.take());
      if (handles.size() > 16) handles.erase(handles.begin());
    }
    peer.send_all("x");
    CHECK(peer.recv_exactly(1) == "x");
    if (i % 2 == 0) peer.reset();
  }
  stop = true;
  poster.join();
}

TEST_CASE_FIXTURE(clean_process, "post: a posted write tells what became of it") {
  listen_options listening = small_send_buffer();
  listening.unsent_tail_bytes = 10'000;
  handle_server server(one_core(), listening);
  client::options how;
  how.receive_buffer_bytes = 4096;
  client peer(server->where(), how);
  const connection_handle handle = server.take();
  channel<std::error_code> outcomes;
  const auto tell = [&](std::error_code error) { outcomes.put(error); };
  CHECK(handle.write("hello", tell) == post_result::posted);
  CHECK_FALSE(outcomes.take());
  CHECK(peer.recv_exactly(5) == "hello");

  const std::string block(1000, 'x');
  std::size_t taken = 0;
  for (;;) {
    REQUIRE(handle.write(block, tell) == post_result::posted);
    const std::error_code error = outcomes.take();
    if (error) {
      CHECK(error == errc::limit_exceeded);
      break;
    }
    ++taken;
  }
  CHECK(taken >= 9);
  CHECK(peer.recv_exactly(taken * block.size()) == std::string(taken * block.size(), 'x'));
  CHECK(eventually([&] {  // the tail is sent as the peer reads
    handle.write("again", tell);
    return !outcomes.take();
  }));
  CHECK(peer.recv_exactly(5) == "again");

  peer.close();
  CHECK(eventually([&] { return server->total().active == 0; }));
  CHECK(handle.write("late", tell) == post_result::posted);
  CHECK(outcomes.take() == errc::closed);
}

TEST_CASE_FIXTURE(clean_process, "post: writes of many threads arrive whole and in each thread's order") {
  constexpr int writers = 6;
  constexpr int lines = 500;
  handle_server server(all_cores());
  client peer = server->connect();
  const connection_handle handle = server.take();
  std::array<int, writers> next{};
  std::thread reader([&] {
    std::string pending;
    for (int left = writers * lines; left > 0;) {
      pending += peer.recv_some();
      for (std::size_t end = 0; (end = pending.find('\n')) != std::string::npos; pending.erase(0, end + 1), --left) {
        const std::string line = pending.substr(0, end);
        const auto writer = static_cast<std::size_t>(line.at(0) - 'a');
        CHECK(line.substr(1, line.find(' ') - 1) == std::to_string(next.at(writer)++));
        CHECK(line.ends_with(std::string(200, line.at(0))));
      }
    }
  });
  run_in_threads(writers, [&](int writer) {
    const char mark = static_cast<char>('a' + writer);
    for (int i = 0; i < lines; ++i) {
      const std::string line = mark + std::to_string(i) + ' ' + std::string(200, mark) + '\n';
      for (bool written = false; !written;) {
        channel<std::error_code> outcome;
        if (handle.write(line, [&](std::error_code error) { outcome.put(error); }) != post_result::posted) continue;
        const std::error_code error = outcome.take();
        CHECK((!error || error == errc::limit_exceeded));
        written = !error;
      }
    }
  });
  reader.join();
}

TEST_CASE_FIXTURE(clean_process, "post: a handle outlives its connection and its server") {
  connection_handle handle;
  {
    handle_server server;
    client peer = server->connect();
    handle = server.take();
  }
  CHECK(handle);
  CHECK(handle.post([probe = alive()](connection*) {}) == post_result::stopped);
  CHECK(handle.write("x") == post_result::stopped);
  const connection_handle copy = handle;
  CHECK(copy == handle);
}

}  // namespace
}  // namespace percore::test
