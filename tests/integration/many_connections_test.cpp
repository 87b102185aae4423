// As many open connections as the descriptor limit allows, ended at once on small stacks; and a server that runs out
// of descriptors.
#include <doctest/doctest.h>

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "tests/support/child_process.hpp"
#include "tests/support/clean_process.hpp"
#include "tests/support/test_server.hpp"

namespace percore::test {
namespace {

using namespace std::chrono_literals;

// Child processes that hold the client's ends, so that this one has its descriptors for the server's.
class crowd {
 public:
  // Forks them; to be made before the server. `first`: others have so many processes already.
  explicit crowd(std::size_t processes, std::size_t first = 0) {
    for (std::size_t i = first; i < first + processes; ++i) {
      children_.push_back(std::make_unique<child_process>([i](const child_process::parent& parent) {
        const address where = parent.hear();
        const std::size_t count = std::stoul(parent.hear());
        raise_descriptor_limit(count + 100);
        std::vector<client> peers;
        client::options how;
        // Ports are counted for each pair of addresses: one source address for each process.
        how.from = address("127.0.1." + std::to_string(1 + i) + ":0");
        for (std::size_t k = 0; k < count; ++k) peers.emplace_back(where, how);
        parent.tell("connected");
        if (parent.hear() == "wait") {
          for (client& peer : peers) peer.wait_for_end();
        } else {
          for (client& peer : peers) peer.reset();
        }
      }));
    }
  }

  void connect(const address& where, std::size_t count) {
    const std::size_t each = (count + children_.size() - 1) / children_.size();
    for (const auto& child : children_) {
      child->tell(where.to_string());
      child->tell(std::to_string(std::min(each, count)));
      count -= std::min(each, count);
    }
    for (const auto& child : children_) CHECK(child->hear() == "connected");
  }
  // All of their sockets are closed by the kernel within one exit each.
  void die() {
    for (const auto& child : children_) child->kill();
  }
  void tell(const char* what) {
    for (const auto& child : children_) child->tell(what);
  }
  void wait() {
    for (const auto& child : children_) CHECK(child->wait() == 0);
  }

 private:
  std::vector<std::unique_ptr<child_process>> children_;
};

constexpr std::size_t per_process = 15'000;  // ports and descriptors of one child

std::size_t how_many() {
  const std::size_t wanted = sanitized ? 4'000 : 100'000;
  const std::size_t limit = raise_descriptor_limit(wanted + 200);
  return std::min(wanted, limit - 200);
}

server_options small_stacks() {
  server_options options = all_cores();
  options.core_stack_bytes = sanitized ? 256 * 1024 : 64 * 1024;  // a sanitizer makes every frame larger
  return options;
}

task<> idle(connection& conn) {
  const alive frame;
  co_await conn.read();
}

TEST_CASE_FIXTURE(clean_process, "many connections: idle ones are all ended at once") {
  const std::size_t count = how_many();
  MESSAGE(count << " connections");
  crowd clients(count / per_process + 1);
  test_server server(idle, small_stacks());
  clients.connect(server.where(), count);
  CHECK(eventually([&] { return server.total().active == count; }, 2 * patience));
  CHECK(alive::count() == static_cast<long>(count));
  CHECK(server.total().frames_on_heap == 0);
  SUBCASE("by a FIN of the peers") {
    clients.die();
    CHECK(eventually([&] { return server.total().active == 0; }, 2 * patience));
  }
  SUBCASE("by a reset of the peers") {
    clients.tell("reset");
    clients.wait();
    CHECK(eventually([&] { return server.total().active == 0; }, 2 * patience));
  }
  SUBCASE("by a shutdown") {
    clients.tell("wait");
    server->shutdown();
    CHECK(server.total().halted == 0);
    clients.wait();
  }
  SUBCASE("by the end of a grace") {
    clients.tell("wait");
    server->shutdown(1ms);
    clients.wait();
  }
  SUBCASE("by halt") {
    clients.tell("wait");
    server->halt();
    CHECK(server.total().halted == count);
    clients.wait();
  }
  CHECK(server.total().active == 0);
  CHECK(alive::count() == 0);
}

// A process's descriptors may be limited to fewer than 100,000; those of a core with a table of its own count for themselves.
TEST_CASE_FIXTURE(clean_process, "many connections: 100,000 in one process with a descriptor table for each core" *
                                     doctest::skip(sanitized)) {
  constexpr std::size_t wanted = 100'000;
  const std::size_t limit = raise_descriptor_limit(wanted + 200) - 200;
  server_options options = small_stacks();
  options.private_descriptors = true;
  // Clients are hashed to the cores, so these do not get quite the same number.
  const std::size_t for_one_server = discover_topology().cpus.size() * limit * 9 / 10;
  const std::size_t servers = (wanted + for_one_server - 1) / for_one_server;
  const std::size_t each = (wanted + servers - 1) / servers;
  const std::size_t processes = each / per_process + 1;
  std::vector<std::unique_ptr<crowd>> clients;
  for (std::size_t i = 0; i < servers; ++i) clients.push_back(std::make_unique<crowd>(processes, i * processes));
  std::vector<std::unique_ptr<test_server>> hosts;
  for (std::size_t i = 0; i < servers; ++i) hosts.push_back(std::make_unique<test_server>(idle, options));
  for (std::size_t i = 0; i < servers; ++i) {
    clients[i]->connect(hosts[i]->where(), each);
    CHECK(eventually([&] { return hosts[i]->total().active == each; }, 2 * patience));
  }
  CHECK(alive::count() == static_cast<long>(each * servers));
  for (const auto& crowd : clients) crowd->die();
  for (const auto& host : hosts) {
    CHECK(eventually([&] { return host->total().active == 0; }, 2 * patience));
  }
  CHECK(alive::count() == 0);
}

TEST_CASE_FIXTURE(clean_process, "many connections: all that hold unsent bytes are reset at once") {
  const std::size_t count = std::min<std::size_t>(how_many(), 2'000);
  crowd clients(1);
  const std::string text = numbered_text(3'000'000);
  test_server server(
      [&](connection& conn) -> task<> {
        const alive frame;
        co_await conn.write(text);
      },
      small_stacks(), small_send_buffer());
  clients.connect(server.where(), count);
  CHECK(eventually([&] { return server.total().active == count; }));
  clients.die();
  CHECK(eventually([&] { return server.total().active == 0; }));
}

// --- out of descriptors ----------------------------------------------------------------------------------

// Sockets that connect without waiting, ask one question each and leave with the answer.
class questioners {
 public:
  questioners(const address& where, std::size_t count) {
    sockaddr_storage target{};
    const socklen_t length = where.to_sockaddr(target);
    for (std::size_t i = 0; i < count; ++i) {
      const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
      REQUIRE(fd >= 0);
      (void)::connect(fd, reinterpret_cast<const sockaddr*>(&target), length);
      waiting_.push_back({fd, POLLOUT, 0});
    }
  }
  questioners(const questioners&) = delete;
  questioners& operator=(const questioners&) = delete;
  ~questioners() {
    for (const pollfd& each : waiting_) ::close(each.fd);
  }

  // Goes on until `enough` have their answer or nothing has moved for `patience`.
  void run(std::size_t enough) {
    while (answered_ < enough) {
      if (::poll(waiting_.data(), waiting_.size(), static_cast<int>(std::chrono::milliseconds(patience).count())) <= 0)
        return;
      std::erase_if(waiting_, [&](pollfd& each) { return each.revents != 0 && finished(each); });
    }
  }
  [[nodiscard]] std::size_t answered() const { return answered_; }
  [[nodiscard]] std::size_t failed() const { return failed_; }

 private:
  bool finished(pollfd& each) {
    char byte = 'x';
    if (each.events == POLLOUT && (each.revents & (POLLERR | POLLHUP)) == 0) {
      if (::send(each.fd, &byte, 1, MSG_NOSIGNAL) == 1) {
        each.events = POLLIN;
        return false;
      }
    } else if (::recv(each.fd, &byte, 1, 0) == 1) {
      ++answered_;
      ::close(each.fd);
      return true;
    }
    ++failed_;
    ::close(each.fd);
    return true;
  }

  std::vector<pollfd> waiting_;
  std::size_t answered_ = 0;
  std::size_t failed_ = 0;
};

// A server with a descriptor limit of 256 that answers "stats" with four numbers.
void serve_with_few_descriptors(const child_process::parent& parent, std::size_t max_connections_per_core) {
  lower_descriptor_limit(256);
  server_options options = all_cores();
  options.max_connections_per_core = max_connections_per_core;
  options.on_warning = [](const std::string&) {};
  test_server server(echo, options);
  parent.tell(server.where().to_string());
  while (parent.hear() == "stats") {
    const core_stats now = server.total();
    parent.tell(std::to_string(now.active));
    parent.tell(std::to_string(now.accepted));
    parent.tell(std::to_string(now.accept_paused_files));
    parent.tell(std::to_string(now.accept_paused_limit));
  }
}

struct few_descriptors_stats {
  std::size_t active, accepted, paused_files, paused_limit;
};

few_descriptors_stats ask(const child_process& child) {
  child.tell("stats");
  few_descriptors_stats now{};
  for (std::size_t* each : {&now.active, &now.accepted, &now.paused_files, &now.paused_limit})
    *each = std::stoul(child.hear());
  return now;
}

TEST_CASE_FIXTURE(clean_process, "many connections: 5000 clients at a server with 256 descriptors") {
  constexpr std::size_t clients = 5'000;
  if (raise_descriptor_limit(clients + 200) < clients + 200) {
    MESSAGE("the descriptor limit is too low for " << clients << " clients: not tested");
    return;
  }
  std::size_t slots_per_core = 0;
  bool by_descriptors = true;
  SUBCASE("whose slots would be enough") { slots_per_core = 10'000; }
  SUBCASE("whose slots follow the limit") { by_descriptors = false; }
  child_process child(
      [&](const child_process::parent& parent) { serve_with_few_descriptors(parent, slots_per_core); });
  const address where = child.hear();
  questioners crowd(where, clients);
  // Full: it has accepted what it can and pauses.
  CHECK(eventually([&] {
    const few_descriptors_stats now = ask(child);
    return now.active > 150 && now.paused_files + now.paused_limit > 0;
  }));
  if (by_descriptors) CHECK(ask(child).paused_files > 0);

  // A paused server does next to nothing. One that spins takes all of a CPU: 1 s for each second and core.
  const double before = child.cpu_seconds();
  std::this_thread::sleep_for(2s);  // the time that is measured
  CHECK(child.cpu_seconds() - before < 0.4);
  const few_descriptors_stats full = ask(child);

  // The first to be answered leave and make room for others, and so on until nobody is left.
  crowd.run(full.active + 1);
  CHECK(crowd.answered() > full.active);
  crowd.run(clients);
  CHECK(crowd.answered() == clients);
  CHECK(crowd.failed() == 0);
  child.tell("end");
  CHECK(child.wait() == 0);
}

}  // namespace
}  // namespace percore::test
