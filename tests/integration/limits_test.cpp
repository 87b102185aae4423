// Limits of connections, exact over all cores.
#include <doctest/doctest.h>

#include <sys/socket.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <string>
#include <thread>
#include <vector>

#include "tests/support/clean_process.hpp"
#include "tests/support/test_server.hpp"

namespace percore::test {
namespace {

using namespace std::chrono_literals;

// Greets, stays until the client leaves, and keeps the highest number that were open at a time.
class house {
 public:
  task<> serve(connection& conn) {
    const alive frame;
    const int now = ++open_;
    for (int seen = most_; now > seen && !most_.compare_exchange_weak(seen, now);) {
    }
    const guest_leaves leave{open_};
    if (!co_await conn.write("hello")) co_return;
    co_await conn.read();
  }
  [[nodiscard]] int most() const { return most_; }

 private:
  struct guest_leaves {
    std::atomic<int>& open;
    ~guest_leaves() { --open; }
  };
  std::atomic<int> open_ = 0;
  std::atomic<int> most_ = 0;
};

TEST_CASE_FIXTURE(clean_process, "limits: the number of accepted connections is exact over all cores") {
  for (const std::uint64_t limit : {1U, 2U, 7U, 300U}) {
    CAPTURE(limit);
    server_options options = all_cores();
    options.max_accepted = limit;
    std::atomic<std::uint64_t> handled = 0;
    server host(options);
    host.listen("127.0.0.1:0", [&](connection& conn) -> task<> {
      ++handled;
      co_await conn.write("hello");
    });
    host.listen("unix:@", [&](connection& conn) -> task<> {
      ++handled;
      co_await conn.write("hello");
    });
    host.start();
    const address where[] = {host.local_address(0), host.local_address(1)};
    std::atomic<std::uint64_t> greeted = 0;
    std::vector<std::thread> clients;
    for (unsigned i = 0; i < 8; ++i) {
      clients.emplace_back([&, i] {
        for (;;) {
          try {
            client peer(where[i % 2]);
            if (peer.recv_to_end() != "hello") return;
            ++greeted;
          } catch (const std::system_error&) {
            return;  // refused or reset
          }
        }
      });
    }
    host.wait();  // it ends on its own
    for (std::thread& each : clients) each.join();
    CHECK(handled.load() == limit);
    CHECK(greeted.load() == limit);
    CHECK(host.stats().total.accepted == limit);
    CHECK(host.stopping());
    CHECK(connection_refused(where[0]));
  }
}

TEST_CASE_FIXTURE(clean_process, "limits: after the last accepted connection the open ones go on") {
  server_options options = all_cores();
  options.max_accepted = 3;
  test_server server(
      [](connection& conn) -> task<> {
        while (!conn.server_stopping()) co_await conn.sleep_for(1ms);
        co_await conn.write("served");
      },
      options);
  std::vector<client> peers;
  for (int i = 0; i < 3; ++i) peers.push_back(server.connect());
  for (client& peer : peers) CHECK(peer.recv_to_end() == "served");
  server->wait();
}

void set_limit(server_options& options, bool per_core, std::size_t limit) {
  (per_core ? options.max_connections_per_core : options.max_connections) = limit;
}

bool close_one_that_was_greeted(std::vector<client>& peers) {
  for (client& peer : peers) {
    char byte = 0;
    if (peer.fd() < 0 || ::recv(peer.fd(), &byte, 1, MSG_DONTWAIT) != 1) continue;
    peer.close();
    return true;
  }
  return false;
}

TEST_CASE_FIXTURE(clean_process, "limits: at the limit of open connections clients wait for their turn") {
  for (const bool per_core : {false, true}) {
    CAPTURE(per_core);
    house home;
    server_options options = per_core ? one_core() : all_cores();
    set_limit(options, per_core, 4);
    server host(options);
    host.listen("127.0.0.1:0", home, &house::serve);
    host.start();
    std::vector<client> peers;
    for (int i = 0; i < 4; ++i) {
      peers.emplace_back(host.local_address());
      CHECK(peers.back().recv_exactly(1) == "h");
    }
    for (int i = 0; i < 20; ++i) peers.emplace_back(host.local_address());
    CHECK(eventually([&] { return host.stats().total.accept_paused_limit >= 1; }));
    CHECK(host.stats().total.accepted == 4);
    // One out, one in. Which one comes next is the kernel's choice where there are several queues.
    for (std::size_t done = 0; done < 20; ++done) {
      const std::uint64_t before = host.stats().total.accepted;
      CHECK(before == 4 + done);
      CHECK(eventually([&] { return close_one_that_was_greeted(peers); }));
      CHECK(eventually([&] { return host.stats().total.accepted == before + 1; }));
    }
    CHECK(home.most() == 4);
    CHECK(host.stats().total.refused_limit == 0);
  }
}

TEST_CASE_FIXTURE(clean_process, "limits: at the limit of open connections clients can be refused") {
  for (const bool per_core : {false, true}) {
    CAPTURE(per_core);
    house home;
    server_options options = per_core ? one_core() : all_cores();
    options.at_limit = limit_policy::refuse;
    set_limit(options, per_core, 4);
    server host(options);
    host.listen("127.0.0.1:0", home, &house::serve);
    host.start();
    std::vector<client> peers;
    for (int i = 0; i < 4; ++i) {
      peers.emplace_back(host.local_address());
      CHECK(peers.back().recv_exactly(5) == "hello");
    }
    for (int i = 0; i < 10; ++i) CHECK(client(host.local_address()).wait_for_end() == ending::reset);
    CHECK(eventually([&] { return host.stats().total.refused_limit == 10; }));
    CHECK(host.stats().total.accepted == 4);
    peers.pop_back();
    CHECK(eventually([&] { return host.stats().total.active == 3; }));
    client next(host.local_address());
    CHECK(next.recv_exactly(5) == "hello");
    CHECK(home.most() == 4);
  }
}

TEST_CASE_FIXTURE(clean_process, "limits: many clients at a small limit are all served in the end") {
  for (const bool per_core : {false, true}) {
    CAPTURE(per_core);
    house home;
    server_options options = all_cores();
    set_limit(options, per_core, 3);
    server host(options);
    host.listen("127.0.0.1:0", home, &house::serve);
    host.start();
    std::atomic<int> greeted = 0;
    std::vector<std::thread> clients;
    for (int i = 0; i < 12; ++i) {
      clients.emplace_back([&] {
        for (int k = 0; k < 50; ++k) {
          client peer(host.local_address());
          if (peer.recv_exactly(5) == "hello") ++greeted;
        }
      });
    }
    for (std::thread& each : clients) each.join();
    CHECK(greeted.load() == 600);
    CHECK(home.most() <= static_cast<int>(per_core ? 3 * host.core_count() : 3));
  }
}

// The kernel wakes one of the cores that share a socket (EPOLLEXCLUSIVE), and the first that waits again and again: once
// full, it has to tell the others.
TEST_CASE_FIXTURE(clean_process, "limits: a full core hands clients of a shared socket on to others") {
  for (int round = 0; round < 5; ++round) {
    server_options options = all_cores();
    options.max_connections_per_core = 1;
    const int listening = listening_socket(address("127.0.0.1:0"));
    const address where = address_of(listening);
    server host(options);
    host.listen_fd(listening, echo);
    host.start();
    std::vector<client> peers;
    for (std::size_t i = 0; i < host.placement().cores.size(); ++i) {
      peers.emplace_back(where);
      peers.back().send_all("ping");
      CHECK(peers.back().recv_exactly(4) == "ping");
    }
    host.halt();
  }
}

TEST_CASE_FIXTURE(clean_process, "limits: a shutdown at the limit still serves what waits") {
  house home;
  server_options options = one_core();
  options.max_connections = 2;
  server host(options);
  host.listen("127.0.0.1:0", home, &house::serve);
  host.start();
  std::vector<client> peers;
  for (int i = 0; i < 10; ++i) peers.emplace_back(host.local_address());
  for (int i = 0; i < 2; ++i) CHECK(peers[static_cast<std::size_t>(i)].recv_exactly(5) == "hello");
  host.shutdown();  // wakes the two readers, and each of the next as it comes
  for (std::size_t i = 2; i < peers.size(); ++i) CHECK(peers[i].recv_to_end() == "hello");
  CHECK(home.most() == 2);
  CHECK(host.stats().total.accepted == 10);
}

}  // namespace
}  // namespace percore::test
