// Signals in serve().
#include <doctest/doctest.h>

#include <signal.h>
#include <sys/types.h>
#include <unistd.h>

#include <atomic>
#include <string>
#include <thread>

#include "tests/support/clean_process.hpp"
#include "tests/support/test_server.hpp"

namespace percore::test {
namespace {

using namespace std::chrono_literals;

std::atomic<int> own_handler_calls = 0;

// The test's own actions for SIGINT and SIGTERM; puts those of the test program back at its end.
class own_signal_actions {
 public:
  own_signal_actions() {
    own_handler_calls = 0;
    struct sigaction own {};
    own.sa_handler = &own_signal_actions::handle;
    own.sa_flags = SA_RESTART;
    ::sigaddset(&own.sa_mask, SIGUSR1);
    ::sigaction(SIGINT, &own, &before_[0]);
    ::sigaction(SIGTERM, &own, &before_[1]);
  }
  own_signal_actions(const own_signal_actions&) = delete;
  own_signal_actions& operator=(const own_signal_actions&) = delete;
  ~own_signal_actions() {
    ::sigaction(SIGINT, &before_[0], nullptr);
    ::sigaction(SIGTERM, &before_[1], nullptr);
  }

  static bool in_force() {
    for (const int number : {SIGINT, SIGTERM}) {
      struct sigaction now {};
      ::sigaction(number, nullptr, &now);
      const bool same = now.sa_handler == &own_signal_actions::handle && (now.sa_flags & SA_RESTART) != 0 &&
                        ::sigismember(&now.sa_mask, SIGUSR1) == 1;
      if (!same) return false;
    }
    return true;
  }
  // serve() tells nobody that it has put its own actions in place.
  static bool replaced() {
    return eventually([] {
      struct sigaction now {};
      ::sigaction(SIGTERM, nullptr, &now);
      return now.sa_handler != &own_signal_actions::handle;
    });
  }

 private:
  static void handle(int) { ++own_handler_calls; }
  struct sigaction before_[2] = {};
};

TEST_CASE_FIXTURE(clean_process, "signals: the first one drains and serve puts the old actions back") {
  for (const int number : {SIGINT, SIGTERM}) {
    CAPTURE(number);
    const own_signal_actions own;
    std::atomic<bool> go_on = false;
    event working;
    server host(all_cores());
    host.listen("127.0.0.1:0", [&](connection& conn) -> task<> {
      working.set();
      co_await until(conn, go_on);
      co_await conn.write("finished");
    });
    host.start();
    std::thread driver([&] {
      client peer(host.local_address());
      working.wait();
      CHECK(own_signal_actions::replaced());
      ::kill(::getpid(), number);
      CHECK(eventually([&] { return host.stopping(); }));
      CHECK(eventually([&] { return connection_refused(host.local_address()); }));
      go_on = true;
      CHECK(peer.recv_to_end() == "finished");
    });
    host.serve();
    driver.join();
    CHECK(own_signal_actions::in_force());
    CHECK(own_handler_calls.load() == 0);
    CHECK(host.stats().total.halted == 0);
  }
}

TEST_CASE_FIXTURE(clean_process, "signals: the second one halts") {
  const own_signal_actions own;
  event working;
  server host(all_cores());
  host.listen("127.0.0.1:0", [&](connection& conn) -> task<> {
    const alive frame;
    working.set();
    for (;;) co_await conn.sleep_for(1h);
  });
  host.start();
  std::thread driver([&] {
    client peer(host.local_address());
    working.wait();
    CHECK(own_signal_actions::replaced());
    ::kill(::getpid(), SIGTERM);
    CHECK(eventually([&] { return host.stopping(); }));
    ::kill(::getpid(), SIGINT);
    CHECK(peer.wait_for_end() == ending::reset);
  });
  host.serve();
  driver.join();
  CHECK(own_signal_actions::in_force());
  CHECK(host.stats().total.halted == 1);
}

TEST_CASE_FIXTURE(clean_process, "signals: the grace of a drain by signal is an option") {
  const own_signal_actions own;
  server_options options = one_core();
  options.shutdown_grace = 20ms;
  event working;
  server host(options);
  host.listen("127.0.0.1:0", [&](connection& conn) -> task<> {
    working.set();
    co_await conn.sleep_for(1h);
  });
  host.start();
  std::thread driver([&] {
    client peer(host.local_address());
    working.wait();
    CHECK(own_signal_actions::replaced());
    ::kill(::getpid(), SIGTERM);
    peer.wait_for_end();
  });
  host.serve();
  driver.join();
}

TEST_CASE_FIXTURE(clean_process, "signals: serve starts the server and can be told to leave signals alone") {
  const own_signal_actions own;
  server_options options = one_core();
  options.handle_signals = false;
  server host(options);
  const int fd = listening_socket("127.0.0.1:0");
  const address where = address_of(fd);
  host.listen_fd(fd, [](connection& conn) -> task<> {
    auto data = co_await conn.read();
    co_await conn.write(data);
    conn.owner().begin_shutdown();
  });
  std::thread driver([&] {
    client peer(where);  // waits in the queue of the socket until serve() has started
    peer.send_all("x");
    CHECK(peer.recv_exactly(1) == "x");
  });
  ::kill(::getpid(), SIGTERM);
  CHECK(eventually([] { return own_handler_calls == 1; }));
  host.serve();
  driver.join();
  CHECK(own_signal_actions::in_force());
}

TEST_CASE_FIXTURE(clean_process, "signals: serve returns when the server is ended by other means") {
  const own_signal_actions own;
  server host(one_core());
  host.listen("127.0.0.1:0", echo);
  host.start();
  std::thread driver([&] {
    CHECK(own_signal_actions::replaced());
    host.shutdown();
  });
  host.serve();
  driver.join();
  CHECK(own_signal_actions::in_force());
}

TEST_CASE_FIXTURE(clean_process, "signals: two servers that serve at the same time both drain") {
  const own_signal_actions own;
  server first(one_core());
  server second(one_core());
  first.listen("127.0.0.1:0", echo);
  second.listen("127.0.0.1:0", echo);
  first.start();
  second.start();
  std::thread serving([&] { second.serve(); });
  std::thread driver([&] {
    CHECK(own_signal_actions::replaced());
    // Again and again: the first signal may come before the other server has begun to listen to signals.
    CHECK(eventually([&] {
      ::kill(::getpid(), SIGTERM);
      std::this_thread::sleep_for(20ms);
      return first.stopping() && second.stopping();
    }));
  });
  first.serve();
  serving.join();
  driver.join();
  CHECK(own_signal_actions::in_force());
}

}  // namespace
}  // namespace percore::test
