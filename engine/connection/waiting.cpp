// sleep_for and yield.

#include <algorithm>
#include <chrono>
#include <utility>

#include "engine/connection/slot.hpp"

namespace percore {

using engine::slot;

// What the engine may do with the private nodes of the awaiters.
struct detail::sleep_access {
  static void start(sleep_awaiter& sleep, slot& s, std::int64_t deadline_ns) noexcept {
    sleep.fire = [](timer_node& node) { wake(static_cast<sleep_awaiter&>(node), false); };
    s.sleeper = &sleep;
    s.core->timers.insert(sleep, loop::timer_wheel::tick_from(deadline_ns));
  }
  static void wake(sleep_awaiter& sleep, bool interrupted) noexcept {
    slot& s = slot::of(*sleep.owner_);
    sleep.unlink();
    if (s.is_away()) {  // with another coroutine's slice
      s.put_off(sleep);
      return;
    }
    sleep.interrupted_ = sleep.interrupted_ || interrupted;
    s.sleeper = nullptr;
    if (sleep.interrupted_) s.fail(s.end_reason);
    s.resume(sleep.waiter_);
  }
  static bool is_of(const sleep_awaiter& sleep, std::coroutine_handle<> waiter) noexcept {
    return sleep.waiter_ == waiter;
  }
  static void interrupt_soon(sleep_awaiter& sleep, slot& s) noexcept {
    sleep.interrupted_ = true;
    sleep.unlink();
    s.core->timers.insert(sleep, 0);  // fires at the next tick
  }
};

struct detail::yield_access {
  static void start(yield_awaiter& yield, slot& s) noexcept {
    yield.run = [](ready_node& node) {
      auto& self = static_cast<yield_awaiter&>(node);
      slot& owner = slot::of(*self.owner_);
      if (owner.is_away()) {
        owner.put_off(node);
      } else {
        owner.resume(self.waiter_);
      }
    };
    s.core->ready.push_back(yield);
  }
};

bool detail::sleep_awaiter::await_suspend(std::coroutine_handle<> waiter) noexcept {
  slot& s = slot::of(*owner_);
  if (s.is_away()) return s.request_wait(*this, waiter);
  s.check_running();
  PERCORE_ASSERT(s.sleeper == nullptr, "a connection sleeps in two coroutines at once");
  waiter_ = waiter;
  if (s.ended) {
    // Still a wait, if a short one: a handler that loops around its sleep must not keep its core.
    interrupted_ = true;
    sleep_access::start(*this, s, 0);
    return true;
  }
  constexpr std::chrono::nanoseconds longest = std::chrono::hours(24 * 365 * 100);
  const auto duration = std::clamp(duration_, std::chrono::nanoseconds(0), longest);
  // The turn's own time may lie milliseconds back when handlers before this one took long: that would be early.
  sleep_access::start(*this, s, sys::monotonic_ns() + duration.count());
  return true;
}

void detail::yield_awaiter::await_suspend(std::coroutine_handle<> waiter) noexcept {
  slot& s = slot::of(*owner_);
  if (s.is_away()) {
    (void)s.request_wait(*this, waiter);
    return;
  }
  s.check_running();
  waiter_ = waiter;
  yield_access::start(*this, s);
}

void engine::slot::interrupt_sleep() noexcept { detail::sleep_access::interrupt_soon(*sleeper, *this); }

bool engine::slot::sleeps_in(std::coroutine_handle<> waiter) const noexcept {
  return sleeper != nullptr && detail::sleep_access::is_of(*sleeper, waiter);
}

void engine::slot::resume_sleeper() noexcept { detail::sleep_access::wake(*sleeper, true); }

}  // namespace percore
