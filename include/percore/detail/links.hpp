// Intrusive nodes that awaiters carry inside coroutine frames. Not for users.
#pragma once

#include <cstdint>

namespace percore::detail {

// A node of a circular doubly linked list; unlinked when `next` is null. Unlinks itself when destroyed, so that a
// coroutine frame that is destroyed while it waits leaves no list behind that points into it.
struct link {
  link* next = nullptr;
  link* previous = nullptr;

  link() noexcept = default;
  link(const link&) = delete;
  link& operator=(const link&) = delete;
  ~link() { unlink(); }

  [[nodiscard]] bool linked() const noexcept { return next != nullptr; }

  void unlink() noexcept {
    if (next == nullptr) return;
    previous->next = next;
    next->previous = previous;
    next = previous = nullptr;
  }
};

// Work for the end of a loop turn.
struct ready_node : link {
  using callback = void (*)(ready_node&);
  callback run = nullptr;
};

// A deadline in the core's timer wheel, in ticks of the wheel.
struct timer_node : link {
  using callback = void (*)(timer_node&);
  callback fire = nullptr;
  std::uint64_t deadline = 0;
};

}  // namespace percore::detail
