#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>

#include "engine/sys/calls.hpp"
#include "engine/sys/threads.hpp"

namespace percore::engine {

// A thread that calls a function again and again, until it is stopped.
class periodic_thread {
 public:
  periodic_thread() noexcept = default;
  periodic_thread(const periodic_thread&) = delete;
  periodic_thread& operator=(const periodic_thread&) = delete;
  ~periodic_thread() { stop(); }

  // From one call to the next at least `period_ns`, and up to `slack_ns` more. A timer of its own costs the thread up to 10 us
  // each time, on a virtual machine; with slack enough for the kernel's tick (4 ms mostly), it needs none.
  // Throws std::system_error. `look` must not throw.
  void start(std::function<void()> look, std::int64_t period_ns, std::int64_t slack_ns, const std::string& name) {
    constexpr std::size_t stack_bytes = 128 * 1024;
    thread_.start(
        [this, look = std::move(look), period_ns, slack_ns] {
          sys::set_timer_slack(slack_ns);
          while (!stopping()) {
            sleep(period_ns);
            look();
          }
        },
        name, {}, stack_bytes);
  }
  void stop() noexcept {
    stopping_.store(1, std::memory_order_release);
    (void)sys::futex_wake(stopping_, 1);
    thread_.join();
  }

  [[nodiscard]] bool stopping() const noexcept { return stopping_.load(std::memory_order_acquire) != 0; }
  // At once when it is to stop.
  void sleep(std::int64_t ns) const noexcept { (void)sys::futex_wait(stopping_, 0, ns); }

 private:
  std::atomic<std::uint32_t> stopping_{0};
  sys::core_thread thread_;
};

}  // namespace percore::engine
