#include "engine/sys/calls.hpp"

#include <linux/futex.h>
#include <sys/syscall.h>

#include <atomic>

namespace percore::sys {

int epoll_wait(int epoll_fd, epoll_event* events, int capacity, std::int64_t timeout_ns) noexcept {
  PERCORE_FAULT_POINT(epoll_wait, epoll_fd);
  if (timeout_ns <= 0) {
    const int timeout_ms = timeout_ns == 0 ? 0 : -1;
#if PERCORE_DIRECT_CALLS
    // epoll_pwait without a signal mask is epoll_wait, which arm64 has no system call for.
    return static_cast<int>(
        direct_call(SYS_epoll_pwait, epoll_fd, as_argument(events), capacity, timeout_ms, 0, sizeof(std::uint64_t)));
#else
    return or_errno(::epoll_wait(epoll_fd, events, capacity, timeout_ms));
#endif
  }
  // Set once by the first thread that learns it; a race only repeats the discovery.
  static std::atomic<bool> has_pwait2{true};
  if (has_pwait2.load(std::memory_order_relaxed)) {
    timespec timeout{};
    timeout.tv_sec = timeout_ns / 1'000'000'000;
    timeout.tv_nsec = timeout_ns % 1'000'000'000;
    const int ready = or_errno(::epoll_pwait2(epoll_fd, events, capacity, &timeout, nullptr));
    if (ready != -ENOSYS) return ready;
    has_pwait2.store(false, std::memory_order_relaxed);
  }
  constexpr std::int64_t longest_ms = 1'000'000'000;  // fits an int; a longer wait is waited for in parts
  const std::int64_t ms = (timeout_ns + 999'999) / 1'000'000;
  return or_errno(::epoll_wait(epoll_fd, events, capacity, static_cast<int>(ms < longest_ms ? ms : longest_ms)));
}

int futex_wait(const std::atomic<std::uint32_t>& word, std::uint32_t expected, std::int64_t timeout_ns) noexcept {
  static_assert(sizeof word == sizeof expected && std::atomic<std::uint32_t>::is_always_lock_free);
  PERCORE_FAULT_POINT(futex_wait, -1);
  timespec timeout{};
  timeout.tv_sec = timeout_ns / 1'000'000'000;
  timeout.tv_nsec = timeout_ns % 1'000'000'000;
  return static_cast<int>(or_errno(::syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, expected,
                                             timeout_ns < 0 ? nullptr : &timeout, nullptr, 0)));
}

int signal_thread(pid_t thread, int signal) noexcept {
  return static_cast<int>(or_errno(::syscall(SYS_tgkill, ::getpid(), thread, signal)));
}

int futex_wake(const std::atomic<std::uint32_t>& word, int count) noexcept {
  return static_cast<int>(or_errno(::syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, count, nullptr, nullptr, 0)));
}

}  // namespace percore::sys
