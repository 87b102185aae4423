#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "engine/sys/calls.hpp"

namespace percore::loop {

// The driver of one core: readiness from epoll(7). Owned and used by the core's thread.
//
// Connections are added once, edge-triggered for everything that can happen to them, and never modified: closing the
// descriptor removes them, or going to a blocking handler. Listeners are level-triggered.
class poller {
 public:
  static constexpr std::size_t batch = 512;

  static constexpr std::uint32_t readable_events = EPOLLIN | EPOLLPRI | EPOLLRDHUP | EPOLLHUP | EPOLLERR;
  static constexpr std::uint32_t writable_events = EPOLLOUT | EPOLLHUP | EPOLLERR;

  // Throws std::system_error.
  poller();
  poller(const poller&) = delete;
  poller& operator=(const poller&) = delete;
  ~poller() { close(); }

  // On the thread that made it, whose descriptors may be its own (server_options::private_descriptors).
  void close() noexcept;

  // Each answers 0 or a negative errno.
  int add_connection(int fd, std::uint64_t token) noexcept {
    return sys::epoll_add(epoll_fd_, fd, EPOLLIN | EPOLLPRI | EPOLLOUT | EPOLLRDHUP | EPOLLET, token);
  }
  // `exclusive`: the descriptor is shared with other cores' pollers, of which one is to be woken (EPOLLEXCLUSIVE).
  int add_listener(int fd, std::uint64_t token, bool exclusive) noexcept {
    return sys::epoll_add(epoll_fd_, fd, EPOLLIN | (exclusive ? std::uint32_t{EPOLLEXCLUSIVE} : 0u), token);
  }
  int remove(int fd) noexcept { return sys::epoll_delete(epoll_fd_, fd); }

  // What is ready, at most `batch` events: waits up to `timeout_ns` (0: not at all, negative: without limit). Empty
  // after a time-out or an interruption.
  [[gnu::hot]] std::span<const epoll_event> wait(std::int64_t timeout_ns) noexcept;

 private:
  int epoll_fd_;
  std::array<epoll_event, batch> events_;
};

}  // namespace percore::loop
