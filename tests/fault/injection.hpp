// Injected kernel failures for the time of a test, and the calls that the engine makes meanwhile.
#pragma once

#include <array>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>

#include "engine/sys/faults.hpp"

namespace percore::test {

using sys::call;
using sys::fault_plan;

// Seed of all draws of this run: PERCORE_SEED, or a random one. Told once, so that a failure can be repeated
// as far as the scheduler lets it.
inline std::uint64_t seed() {
  static const std::uint64_t chosen = [] {
    const char* given = std::getenv("PERCORE_SEED");
    const std::uint64_t value = given != nullptr ? std::strtoull(given, nullptr, 0) : std::random_device{}();
    std::printf("seed %llu (PERCORE_SEED repeats it)\n", static_cast<unsigned long long>(value));
    std::fflush(stdout);
    return value;
  }();
  return chosen;
}

// A plan that injects nothing yet.
inline fault_plan no_faults() {
  fault_plan plan;
  plan.seed = seed();
  return plan;
}

// The `count` calls of kind `which` after the next `after` fail with `error`.
inline fault_plan failing(call which, int error, std::uint32_t count = 1, std::uint32_t after = 0) {
  fault_plan plan = no_faults();
  const auto kind = static_cast<std::size_t>(which);
  plan.fail_after[kind] = after;
  plan.fail_next[kind] = count;
  plan.fail_errno[kind] = error;
  return plan;
}

// Installs a plan and takes it away again.
class injected {
 public:
  explicit injected(const fault_plan& plan) { sys::set_fault_plan(&plan); }
  injected(const injected&) = delete;
  injected& operator=(const injected&) = delete;
  ~injected() { end(); }
  void end() { sys::set_fault_plan(nullptr); }
};

// Calls made since this object.
class call_counts {
 public:
  call_counts() {
    for (std::size_t i = 0; i < sys::call_count; ++i) before_[i] = sys::calls_made(static_cast<call>(i));
  }
  [[nodiscard]] std::uint64_t of(call which) const {
    return sys::calls_made(which) - before_[static_cast<std::size_t>(which)];
  }
  // All but those that wait for events.
  [[nodiscard]] std::uint64_t working() const {
    std::uint64_t sum = 0;
    for (std::size_t i = 0; i < sys::call_count; ++i) sum += of(static_cast<call>(i));
    return sum - of(call::epoll_wait);
  }

 private:
  std::array<std::uint64_t, sys::call_count> before_{};
};

}  // namespace percore::test
