#include "engine/sys/faults.hpp"

#ifdef PERCORE_FAULTS

#include <doctest/doctest.h>

#include <atomic>
#include <barrier>
#include <cerrno>
#include <string>
#include <thread>
#include <vector>

#include "engine/sys/calls.hpp"

namespace sys = percore::sys;
using sys::call;
using sys::fault_plan;

namespace {

struct installed {
  explicit installed(const fault_plan& plan) {
    sys::reset_call_counters();
    sys::set_fault_plan(&plan);
  }
  installed(const installed&) = delete;
  installed& operator=(const installed&) = delete;
  ~installed() { sys::set_fault_plan(nullptr); }
};

// A connected TCP pair on loopback, made without the seam. `ours` does not block.
struct tcp_pair {
  tcp_pair() {
    const int listener = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in where{};
    where.sin_family = AF_INET;
    where.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof where;
    auto* const raw = reinterpret_cast<sockaddr*>(&where);
    REQUIRE(::bind(listener, raw, length) == 0);
    REQUIRE(::listen(listener, 1) == 0);
    REQUIRE(::getsockname(listener, raw, &length) == 0);
    peer = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    REQUIRE(::connect(peer, raw, length) == 0);
    ours = ::accept4(listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
    REQUIRE(ours >= 0);
    ::close(listener);
  }
  tcp_pair(const tcp_pair&) = delete;
  tcp_pair& operator=(const tcp_pair&) = delete;
  ~tcp_pair() {
    close_ours();
    ::close(peer);
  }
  void close_ours() {
    if (ours >= 0) (void)sys::close(ours);
    ours = -1;
  }

  int ours = -1;
  int peer = -1;
};

struct epoll_instance {
  epoll_instance() { REQUIRE(fd >= 0); }
  epoll_instance(const epoll_instance&) = delete;
  epoll_instance& operator=(const epoll_instance&) = delete;
  ~epoll_instance() { (void)sys::close(fd); }

  // Events of the next report; 0 if there is none within `timeout_ns`.
  std::uint32_t next(std::int64_t timeout_ns, std::uint64_t& data) const {
    epoll_event event{};
    const int ready = sys::epoll_wait(fd, &event, 1, timeout_ns);
    REQUIRE(ready >= 0);
    data = event.data.u64;
    return ready == 0 ? 0U : event.events;
  }

  const int fd = sys::epoll_create1(EPOLL_CLOEXEC);
};

constexpr std::uint32_t every_edge = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET;
constexpr std::int64_t soon_ns = 5'000'000'000;

// The verdicts of `count` one-byte sends to nowhere, as text: e(rror) or p(ass).
std::string draw_some(int count) {
  std::string result;
  for (int i = 0; i < count; ++i) result += sys::before_call(call::send, -1, 1).injected ? 'e' : 'p';
  return result;
}

}  // namespace

TEST_CASE("faults: without a plan calls are counted and pass") {
  sys::reset_call_counters();
  const int fd = sys::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  CHECK(fd >= 0);
  (void)sys::close(fd);
  CHECK(sys::calls_made(call::socket) == 1);
  CHECK(sys::calls_made(call::close) == 1);
  CHECK(sys::faults_injected(call::socket) == 0);
}

TEST_CASE("faults: every call has its name") {
  CHECK(std::string(sys::call_name(call::accept4)) == "accept4");
  CHECK(std::string(sys::call_name(call::epoll_ctl_mod)) == "epoll_ctl_mod");
  CHECK(std::string(sys::call_name(call::getsockname)) == "getsockname");
  CHECK(std::string(sys::call_name(call::mmap)) == "mmap");
  CHECK(std::string(sys::call_name(call::sendmsg)) == "sendmsg");
  CHECK(std::string(sys::call_name(call::write)) == "write");
  CHECK(std::string(sys::call_name(call::count_)) == "unknown");
}

TEST_CASE("faults: the same seed gives the same draws, another one others") {
  fault_plan plan;
  plan.seed = 42;
  plan.would_block = 0.5;
  std::vector<std::string> runs;
  for (int i = 0; i < 2; ++i) {
    const installed active(plan);
    runs.push_back(draw_some(200));
    std::thread([&] { runs.push_back(draw_some(200)); }).join();  // the second thread to draw under this plan
  }
  CHECK(runs[0] == runs[2]);
  CHECK(runs[1] == runs[3]);
  CHECK(runs[0] != runs[1]);
  plan.seed = 43;
  const installed active(plan);
  CHECK(draw_some(200) != runs[0]);
}

TEST_CASE("faults: probabilities hold for the calls they are documented for") {
  struct row {
    double fault_plan::*probability;
    std::vector<call> applies;
    int error;
  };
  const std::vector<row> rows = {
      {&fault_plan::would_block, {call::recv, call::recvmsg, call::send, call::sendfile, call::sendmsg, call::splice, call::accept4}, EAGAIN},
      {&fault_plan::interrupted,
       {call::recv, call::recvmsg, call::send, call::sendfile, call::sendmsg, call::splice, call::accept4, call::epoll_wait},
       EINTR},
      {&fault_plan::connection_aborted, {call::accept4}, ECONNABORTED},
      {&fault_plan::too_many_files, {call::accept4, call::socket}, EMFILE},
      {&fault_plan::no_memory,
       {call::accept4, call::epoll_ctl_add, call::send, call::sendfile, call::sendmsg, call::splice, call::mmap},
       ENOMEM},
      {&fault_plan::reset, {call::recv, call::send, call::sendfile, call::sendmsg, call::splice}, ECONNRESET},
  };
  for (const row& r : rows) {
    CAPTURE(r.error);
    fault_plan plan;
    plan.seed = 7;
    plan.*r.probability = 0.25;
    const installed active(plan);
    for (std::size_t kind = 0; kind < sys::call_count; ++kind) {
      const auto which = static_cast<call>(kind);
      CAPTURE(sys::call_name(which));
      int hits = 0;
      for (int i = 0; i < 4000; ++i) {
        const auto verdict = sys::before_call(which, -1, 100);
        if (!verdict.injected) continue;
        ++hits;
        CHECK(verdict.result == -r.error);
      }
      bool applies = false;
      for (const call c : r.applies) applies = applies || c == which;
      // 4000 draws at 1/4: a mean of 1000 with a deviation of 27. The seed is fixed, so this cannot flicker.
      CHECK(hits >= (applies ? 850 : 0));
      CHECK(hits <= (applies ? 1150 : 0));
      CHECK(sys::faults_injected(which) == static_cast<std::uint64_t>(hits));
    }
  }
}

TEST_CASE("faults: calls fail by count, after a given number") {
  fault_plan plan;
  plan.fail_after[static_cast<std::size_t>(call::socket)] = 2;
  plan.fail_next[static_cast<std::size_t>(call::socket)] = 3;
  plan.fail_errno[static_cast<std::size_t>(call::socket)] = ENFILE;
  const installed active(plan);
  std::string outcome;
  for (int i = 0; i < 7; ++i) {
    const int fd = sys::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    outcome += fd == -ENFILE ? 'e' : 'p';
    if (fd >= 0) (void)sys::close(fd);
  }
  CHECK(outcome == "ppeeepp");
  CHECK(sys::faults_injected(call::socket) == 3);
  CHECK(sys::calls_made(call::socket) == 7);
  CHECK(sys::map_memory(4096) != nullptr);
}

TEST_CASE("faults: memory can be refused") {
  fault_plan plan;
  plan.no_memory = 1;
  const installed active(plan);
  CHECK(sys::map_memory(4096) == nullptr);
}

TEST_CASE("faults: short reads lose nothing and give the edge again") {
  const tcp_pair pair;
  const epoll_instance epoll;
  fault_plan plan;
  plan.seed = 1;
  plan.short_read = 1;
  const installed active(plan);
  REQUIRE(sys::epoll_add(epoll.fd, pair.ours, every_edge, 77) == 0);
  std::string sent;
  for (int i = 0; i < 1000; ++i) sent += static_cast<char>('a' + i % 26);
  REQUIRE(::send(pair.peer, sent.data(), sent.size(), MSG_NOSIGNAL) == 1000);
  std::string received;
  while (received.size() < sent.size()) {
    // One recv per edge: without the injector's help the second edge would never come.
    std::uint64_t data = 0;
    REQUIRE((epoll.next(soon_ns, data) & EPOLLIN) != 0);
    CHECK(data == 77);
    char buffer[300];
    const ssize_t n = sys::recv(pair.ours, buffer, sizeof buffer, 0);
    if (n == -EAGAIN) continue;
    REQUIRE(n > 0);
    CHECK(n < static_cast<ssize_t>(sizeof buffer));
    received.append(buffer, static_cast<std::size_t>(n));
  }
  CHECK(received == sent);
  CHECK(sys::faults_injected(call::recv) > 0);
  CHECK(sys::calls_made(call::epoll_ctl_mod) == 0);  // the injector's own do not count
}

TEST_CASE("faults: an injected EAGAIN gives the edge again, for both directions") {
  const tcp_pair pair;
  const epoll_instance epoll;
  REQUIRE(sys::epoll_add(epoll.fd, pair.ours, every_edge, 5) == 0);
  std::uint64_t data = 0;
  CHECK((epoll.next(soon_ns, data) & EPOLLOUT) != 0);
  CHECK(epoll.next(0, data) == 0);  // consumed
  fault_plan plan;
  plan.would_block = 1;
  char byte = 'x';
  {
    const installed active(plan);
    CHECK(sys::send(pair.ours, &byte, 1, MSG_NOSIGNAL) == -EAGAIN);
  }
  CHECK((epoll.next(soon_ns, data) & EPOLLOUT) != 0);
  CHECK(epoll.next(0, data) == 0);
  REQUIRE(::send(pair.peer, &byte, 1, MSG_NOSIGNAL) == 1);
  CHECK((epoll.next(soon_ns, data) & EPOLLIN) != 0);
  {
    const installed active(plan);
    CHECK(sys::recv(pair.ours, &byte, 1, 0) == -EAGAIN);
  }
  CHECK((epoll.next(soon_ns, data) & EPOLLIN) != 0);
  CHECK(data == 5);
  CHECK(sys::recv(pair.ours, &byte, 1, 0) == 1);
}

TEST_CASE("faults: a modified registration is the one that is asked for again, a deleted one is not") {
  const tcp_pair pair;
  const epoll_instance epoll;
  REQUIRE(sys::epoll_add(epoll.fd, pair.ours, every_edge, 1) == 0);
  REQUIRE(sys::epoll_modify(epoll.fd, pair.ours, every_edge, 2) == 0);
  std::uint64_t data = 0;
  CHECK(epoll.next(soon_ns, data) != 0);
  fault_plan plan;
  plan.would_block = 1;
  const installed active(plan);
  char byte = 0;
  CHECK(sys::recv(pair.ours, &byte, 1, 0) == -EAGAIN);
  CHECK(epoll.next(soon_ns, data) != 0);
  CHECK(data == 2);
  REQUIRE(sys::epoll_delete(epoll.fd, pair.ours) == 0);
  CHECK(sys::recv(pair.ours, &byte, 1, 0) == -EAGAIN);
  CHECK(epoll.next(0, data) == 0);
}

#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define PERCORE_UNDER_TSAN
#endif
#elif defined(__SANITIZE_THREAD__)
#define PERCORE_UNDER_TSAN
#endif

// The thread sanitizer takes equal numbers for the same descriptor and would report a race.
#ifndef PERCORE_UNDER_TSAN

TEST_CASE("faults: the same number in tables of their own means different sockets") {
  std::vector<std::thread> threads;
  std::barrier step(2);
  std::atomic<int> right{0};
  for (std::uint64_t id : {11U, 22U}) {
    threads.emplace_back([&right, &step, id] {
      if (sys::unshare_descriptors() != 0) return;
      const tcp_pair pair;
      const epoll_instance epoll;
      (void)sys::epoll_add(epoll.fd, pair.ours, every_edge, id);
      std::uint64_t data = 0;
      (void)epoll.next(soon_ns, data);
      fault_plan plan;
      plan.would_block = 1;
      step.arrive_and_wait();
      if (id == 11) sys::set_fault_plan(&plan);
      step.arrive_and_wait();
      char byte = 0;
      if (sys::recv(pair.ours, &byte, 1, 0) == -EAGAIN && epoll.next(soon_ns, data) != 0 && data == id)
        ++right;
      step.arrive_and_wait();
    });
  }
  for (std::thread& thread : threads) thread.join();
  sys::set_fault_plan(nullptr);
  CHECK(right == 2);
}

#endif

TEST_CASE("faults: short writes send a part, scattered or not") {
  const tcp_pair pair;
  fault_plan plan;
  plan.seed = 3;
  plan.short_write = 1;
  const installed active(plan);
  std::string sent(500, 's');
  const ssize_t n = sys::send(pair.ours, sent.data(), sent.size(), MSG_NOSIGNAL);
  CHECK(n >= 1);
  CHECK(n < 500);
  iovec pieces[] = {{sent.data(), 0}, {sent.data(), 100}, {sent.data(), 400}};
  msghdr message{};
  message.msg_iov = pieces;
  message.msg_iovlen = 3;
  const ssize_t m = sys::sendmsg(pair.ours, &message, MSG_NOSIGNAL);
  CHECK(m >= 1);
  CHECK(m < 100);
  std::vector<char> buffer(1000);
  CHECK(::recv(pair.peer, buffer.data(), static_cast<std::size_t>(n + m), MSG_WAITALL) == n + m);
  CHECK(sys::send(pair.ours, sent.data(), 1, MSG_NOSIGNAL) == 1);  // one byte cannot be shortened
}

TEST_CASE("faults: an injected reset reaches the peer when the socket is closed") {
  tcp_pair pair;
  fault_plan plan;
  plan.reset = 1;
  char byte = 0;
  {
    const installed active(plan);
    CHECK(sys::recv(pair.ours, &byte, 1, 0) == -ECONNRESET);
  }
  pair.close_ours();
  CHECK(::recv(pair.peer, &byte, 1, 0) == -1);
  CHECK(errno == ECONNRESET);
}

TEST_CASE("faults: many threads, changing plans, descriptors that come and go") {
  std::atomic<bool> stop{false};
  std::atomic<std::uint64_t> exchanged{0};
  sys::reset_call_counters();
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      const int epoll = ::epoll_create1(EPOLL_CLOEXEC);
      while (!stop.load(std::memory_order_relaxed)) {
        int ends[2];
        if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends) != 0) break;
        (void)sys::epoll_add(epoll, ends[0], every_edge, 9);
        for (int i = 0; i < 20; ++i) {
          char buffer[16] = {};
          if (sys::send(ends[1], buffer, sizeof buffer, MSG_NOSIGNAL) > 0) {
            exchanged.fetch_add(1, std::memory_order_relaxed);
          }
          (void)sys::recv(ends[0], buffer, sizeof buffer, 0);
        }
        (void)sys::close(ends[0]);
        (void)sys::close(ends[1]);
      }
      ::close(epoll);
    });
  }
  fault_plan plan;
  plan.short_read = plan.short_write = plan.would_block = plan.interrupted = plan.reset = plan.no_memory =
      0.1;
  plan.fail_next[static_cast<std::size_t>(call::send)] = 10;
  plan.fail_errno[static_cast<std::size_t>(call::send)] = EPIPE;
  for (std::uint64_t round = 0; round < 30; ++round) {
    plan.seed = round;
    sys::set_fault_plan(&plan);
    const std::uint64_t before = exchanged.load(std::memory_order_relaxed);
    while (exchanged.load(std::memory_order_relaxed) < before + 50) std::this_thread::yield();
    if (round % 5 == 0) sys::set_fault_plan(nullptr);
  }
  stop.store(true, std::memory_order_relaxed);
  for (std::thread& thread : threads) thread.join();
  sys::set_fault_plan(nullptr);
  CHECK(sys::faults_injected(call::send) > 0);
  CHECK(sys::calls_made(call::send) > sys::faults_injected(call::send));
}

#endif  // PERCORE_FAULTS
