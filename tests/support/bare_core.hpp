// A core's resources without its loop, its listeners and its thread: what unit tests and micro benchmarks of
// the connection floor need.
#pragma once

#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>

#include "engine/connection/slot.hpp"
#include "engine/sys/numa_memory.hpp"

namespace percore::test {

class bare_core {
 public:
  explicit bare_core(std::size_t slots = 16, std::size_t slot_bytes = 960)
      : slot_memory_(slots * slot_bytes, std::nullopt),
        buffer_memory_(engine::read_buffer_pool::region_bytes(buffer_bytes, buffers), std::nullopt),
        resources_({slots, slot_bytes, buffers, buffer_bytes, 64}, slot_memory_.data(), buffer_memory_.data(),
                   std::make_shared<loop::mailbox>(std::size_t{8}, loop::wakeup())) {}

  engine::core_resources& operator*() noexcept { return resources_; }
  engine::core_resources* operator->() noexcept { return &resources_; }

  // What serves the connections from here on.
  template <connection_handler F>
  void use_handler(F&& handler) {
    config_.handler = detail::handler(std::forward<F>(handler));
  }
  // A connection without a descriptor, whose handler has run until its first wait. It goes on when
  // slot::resume is called, as the loop does.
  engine::slot& run() {
    engine::slot& s = open_slot();
    s.start_handler();
    return s;
  }
  template <connection_handler F>
  engine::slot& run(F&& handler) {
    use_handler(std::forward<F>(handler));
    return run();
  }
  // A slot in which coroutines can be made by hand.
  engine::slot& open_slot() {
    engine::slot& s = *resources_.slots.take(resources_);
    s.open(-1, {}, config_, false);
    return s;
  }
  void end_of_turn() noexcept { (void)resources_.slots.end_of_turn(); }

 private:
  static constexpr std::size_t buffers = 4;
  static constexpr std::size_t buffer_bytes = 1024;

  sys::numa_region slot_memory_;
  sys::numa_region buffer_memory_;
  engine::listener_config config_;
  engine::core_resources resources_;
};

// Suspends whoever awaits it until the test resumes the handle. Not an awaiter itself: GCC 12 copies an
// awaiter that is captured by reference (see coroutine_pitfalls_test.cpp).
struct gate {
  std::coroutine_handle<> waiter;

  auto operator co_await() noexcept {
    struct awaiter {
      gate* owner;
      [[nodiscard]] bool await_ready() const noexcept { return false; }
      void await_suspend(std::coroutine_handle<> handle) const noexcept { owner->waiter = handle; }
      void await_resume() const noexcept {}
    };
    return awaiter{this};
  }
  // Goes on with the handler of `s`, as the loop does when what it waited for has happened.
  void open(engine::slot& s) { s.resume(std::exchange(waiter, {})); }
};

}  // namespace percore::test
