#include "engine/sys/faults.hpp"

#ifdef PERCORE_FAULTS

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

// This file goes to the kernel directly: it stands below the seam, and a fault must not cause a fault.

namespace percore::sys {
namespace {

constexpr std::array<const char*, call_count> names = {
    "accept4", "bind", "chmod", "clock_gettime", "close", "connect", "epoll_create1", "epoll_ctl_add",
    "epoll_ctl_del", "epoll_ctl_mod", "epoll_wait", "eventfd", "fcntl", "futex_wait", "getaddrinfo", "getsockname", "getsockopt", "ioctl",
    "listen", "lstat", "mmap", "pipe2", "poll", "pread", "read", "recv", "recvmsg", "send", "sendfile", "sendmsg",
    "setsockopt", "shutdown", "socket", "splice", "thread_create", "unlink", "unshare", "write"};
static_assert(names.back() != nullptr);

constexpr std::size_t index_of(call which) noexcept {
  return static_cast<std::size_t>(which);
}

std::array<std::atomic<std::uint64_t>, call_count> made{};
std::array<std::atomic<std::uint64_t>, call_count> injected{};

struct installed_plan {
  explicit installed_plan(const fault_plan& from) : plan(from) {}

  const fault_plan plan;
  std::atomic<std::uint64_t> threads{0};                      // that have drawn under this plan
  std::array<std::atomic<std::uint64_t>, call_count> seen{};  // calls of the kinds that fail by count
};

std::atomic<installed_plan*> current{nullptr};
std::atomic<kernel_stand_in*> stand_in{nullptr};
std::atomic<resolver_stand_in> names_from{nullptr};
std::atomic<notification_stand_in> notifications_from{nullptr};

// xoshiro256** seeded by splitmix64 (Blackman and Vigna, "Scrambled linear pseudorandom number generators",
// 2021).
class draws {
 public:
  void seed(std::uint64_t value) noexcept {
    for (std::uint64_t& word : state_) {
      value += 0x9e3779b97f4a7c15U;
      word = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9U;
      word = (word ^ (word >> 27)) * 0x94d049bb133111ebU;
      word ^= word >> 31;
    }
  }

  std::uint64_t next() noexcept {
    const std::uint64_t result = rotate(state_[1] * 5, 7) * 9;
    const std::uint64_t shifted = state_[1] << 17;
    state_[2] ^= state_[0];
    state_[3] ^= state_[1];
    state_[1] ^= state_[2];
    state_[0] ^= state_[3];
    state_[2] ^= shifted;
    state_[3] = rotate(state_[3], 45);
    return result;
  }

  bool happens(double probability) noexcept {
    return probability > 0 && static_cast<double>(next() >> 11) * 0x1p-53 < probability;
  }

  // 1..n-1; n is at least 2. The slight bias of the remainder does not matter here.
  std::size_t shorter_than(std::size_t n) noexcept { return 1 + static_cast<std::size_t>(next() % (n - 1)); }

 private:
  static std::uint64_t rotate(std::uint64_t x, int by) noexcept { return (x << by) | (x >> (64 - by)); }

  std::array<std::uint64_t, 4> state_{};
};

draws& draws_of_this_thread(installed_plan& under) noexcept {
  thread_local draws mine;
  thread_local const installed_plan* seeded_for =
      nullptr;  // a plan is never freed, so its address is its identity
  if (seeded_for != &under) {
    const std::uint64_t ordinal = under.threads.fetch_add(1, std::memory_order_relaxed);
    mine.seed(under.plan.seed + ordinal * 0xd1342543de82ef95U);
    seeded_for = &under;
  }
  return mine;
}

// --- edges -----------------------------------------------------------------------------------------------

struct registration {
  int epoll_fd = -1;
  std::uint32_t events = 0;
  std::uint64_t data = 0;
};

// Registrations by descriptor. There is one of these for each descriptor table, since the same number means
// different sockets in different tables.
struct registrations {
  std::mutex lock;
  std::vector<registration> by_fd;
};

registrations& of_process() noexcept {
  static auto& all = *new registrations;  // never destroyed: threads may still close while the process ends
  return all;
}

thread_local registrations* of_this_thread = nullptr;  // nullptr: the process's table

registrations& table_of_this_thread() noexcept {
  return of_this_thread == nullptr ? of_process() : *of_this_thread;
}

// MOD looks at the descriptor anew and reports what is ready, edge-triggered or not (epoll_ctl(2)).
void ask_for_the_edge_again(int fd) noexcept {
  registrations& table = table_of_this_thread();
  const std::lock_guard hold(table.lock);
  const auto number = static_cast<std::size_t>(fd);
  if (fd < 0 || number >= table.by_fd.size() || table.by_fd[number].epoll_fd < 0) return;
  epoll_event event{};
  event.events = table.by_fd[number].events;
  event.data.u64 = table.by_fd[number].data;
  (void)::epoll_ctl(table.by_fd[number].epoll_fd, EPOLL_CTL_MOD, fd, &event);
}

// From now on close sends RST in place of FIN (tcp(7), SO_LINGER with a time of zero).
void reset_on_close(int fd) noexcept {
  const linger at_once{1, 0};
  (void)::setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
}

// --- verdicts --------------------------------------------------------------------------------------------

fault_verdict fails(int error, std::size_t length) noexcept {
  return {true, -static_cast<long>(error), length};
}

fault_verdict pass(std::size_t length) noexcept {
  return {false, 0, length};
}

fault_verdict decide_transfer(const fault_plan& plan, draws& draw, call which, int fd,
                              std::size_t length) noexcept {
  const bool sends = which != call::recv;
  if (draw.happens(plan.reset)) {
    reset_on_close(fd);
    return fails(ECONNRESET, length);
  }
  if (sends && draw.happens(plan.no_memory)) return fails(ENOMEM, length);
  if (draw.happens(plan.interrupted)) return fails(EINTR, length);
  if (draw.happens(plan.would_block)) {
    ask_for_the_edge_again(fd);
    return fails(EAGAIN, length);
  }
  if (length > 1 && draw.happens(sends ? plan.short_write : plan.short_read)) {
    // Who takes a short transfer for "drained" or "full" waits for an edge that the kernel sees no reason to
    // give.
    ask_for_the_edge_again(fd);
    return pass(draw.shorter_than(length));
  }
  return pass(length);
}

fault_verdict decide(const fault_plan& plan, draws& draw, call which, int fd, std::size_t length) noexcept {
  switch (which) {
    case call::recv:
    case call::send:
    case call::sendfile:
    case call::sendmsg:
    case call::splice:
      return decide_transfer(plan, draw, which, fd, length);
    case call::recvmsg:
      if (draw.happens(plan.interrupted)) return fails(EINTR, length);
      if (draw.happens(plan.would_block)) {
        ask_for_the_edge_again(fd);
        return fails(EAGAIN, length);
      }
      return pass(length);
    case call::accept4:
      if (draw.happens(plan.connection_aborted)) return fails(ECONNABORTED, length);
      if (draw.happens(plan.too_many_files)) return fails(EMFILE, length);
      if (draw.happens(plan.no_memory)) return fails(ENOMEM, length);
      if (draw.happens(plan.interrupted)) return fails(EINTR, length);
      if (draw.happens(plan.would_block)) return fails(EAGAIN, length);  // listeners are level-triggered
      return pass(length);
    case call::socket:
      return draw.happens(plan.too_many_files) ? fails(EMFILE, length) : pass(length);
    case call::epoll_ctl_add:
    case call::mmap:
      return draw.happens(plan.no_memory) ? fails(ENOMEM, length) : pass(length);
    case call::epoll_wait:
      return draw.happens(plan.interrupted) ? fails(EINTR, length) : pass(length);
    default:
      return pass(length);
  }
}

bool fails_by_count(installed_plan& under, std::size_t kind) noexcept {
  const std::uint64_t next = under.plan.fail_next[kind];
  if (next == 0) return false;
  const std::uint64_t after = under.plan.fail_after[kind];
  const std::uint64_t seen = under.seen[kind].fetch_add(1, std::memory_order_relaxed);
  return seen >= after && seen < after + next;
}

}  // namespace

const char* call_name(call which) noexcept {
  const std::size_t kind = index_of(which);
  return kind < call_count ? names[kind] : "unknown";
}

void set_fault_plan(const fault_plan* plan) {
  // Old plans are kept, since a thread may be about to draw under one. Some hundred bytes each, in tests
  // only.
  static std::mutex lock;
  static auto& kept = *new std::vector<std::unique_ptr<installed_plan>>;
  const std::lock_guard hold(lock);
  if (plan == nullptr) {
    current.store(nullptr, std::memory_order_release);
    return;
  }
  kept.push_back(std::make_unique<installed_plan>(*plan));
  current.store(kept.back().get(), std::memory_order_release);
}

std::uint64_t calls_made(call which) noexcept {
  return made[index_of(which)].load(std::memory_order_relaxed);
}

std::uint64_t faults_injected(call which) noexcept {
  return injected[index_of(which)].load(std::memory_order_relaxed);
}

void reset_call_counters() noexcept {
  for (auto& counter : made) counter.store(0, std::memory_order_relaxed);
  for (auto& counter : injected) counter.store(0, std::memory_order_relaxed);
}

fault_verdict before_call(call which, int fd, std::size_t length) noexcept {
  const std::size_t kind = index_of(which);
  made[kind].fetch_add(1, std::memory_order_relaxed);
  installed_plan* const under = current.load(std::memory_order_acquire);
  if (under == nullptr) return pass(length);
  const bool by_count = fails_by_count(*under, kind);
  if (by_count && under->plan.fail_errno[kind] == EAGAIN && under->plan.edge_follows) ask_for_the_edge_again(fd);
  const fault_verdict verdict = by_count ? fails(under->plan.fail_errno[kind], length)
                                         : decide(under->plan, draws_of_this_thread(*under), which, fd, length);
  if (verdict.injected || verdict.length != length) injected[kind].fetch_add(1, std::memory_order_relaxed);
  return verdict;
}

void note_epoll_add(int epoll_fd, int fd, std::uint32_t events, std::uint64_t data) noexcept {
  if (fd < 0) return;
  registrations& table = table_of_this_thread();
  const std::lock_guard hold(table.lock);
  const auto number = static_cast<std::size_t>(fd);
  try {
    if (table.by_fd.size() <= number) table.by_fd.resize(number + 1);
  } catch (const std::bad_alloc&) {
    return;  // the descriptor then gets no second edge
  }
  table.by_fd[number] = {epoll_fd, events, data};
}

void set_kernel_stand_in(kernel_stand_in* instead) noexcept { stand_in.store(instead, std::memory_order_release); }

void set_resolver_stand_in(resolver_stand_in instead) noexcept { names_from.store(instead); }
resolver_stand_in resolver() noexcept { return names_from.load(); }

void set_notification_stand_in(notification_stand_in instead) noexcept { notifications_from.store(instead); }
notification_stand_in notifications() noexcept { return notifications_from.load(); }

kernel_stand_in* stand_in_for(int fd) noexcept {
  kernel_stand_in* const installed = stand_in.load(std::memory_order_acquire);
  return installed != nullptr && installed->has(fd) ? installed : nullptr;
}

kernel_stand_in* stand_in_asked(int level, int name) noexcept {
  constexpr int sol_tls = 282;  // linux/socket.h
  const bool is_tls = level == sol_tls || (level == IPPROTO_TCP && name == TCP_ULP);
  return is_tls ? stand_in.load(std::memory_order_acquire) : nullptr;
}

void note_close(int fd) noexcept {
  if (kernel_stand_in* const installed = stand_in.load(std::memory_order_acquire)) installed->closed(fd);
  registrations& table = table_of_this_thread();
  const std::lock_guard hold(table.lock);
  const auto number = static_cast<std::size_t>(fd);
  if (fd >= 0 && number < table.by_fd.size()) table.by_fd[number] = {};
}

void note_unshare() noexcept {
  // Freed with the thread. A thread that this one starts goes by the process's table here, and so gets no
  // second edges.
  struct owned_table {
    registrations table;
    ~owned_table() { of_this_thread = nullptr; }
  };
  thread_local owned_table own;
  const std::lock_guard hold(of_process().lock);
  try {
    own.table.by_fd = of_process().by_fd;
  } catch (const std::bad_alloc&) {
    own.table.by_fd.clear();
  }
  of_this_thread = &own.table;
}

}  // namespace percore::sys

#endif  // PERCORE_FAULTS
