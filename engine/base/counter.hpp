#pragma once

#include <atomic>
#include <cstdint>

namespace percore::base {

// Written by one thread with plain loads and stores (no read-modify-write, no lock prefix), read by any.
class counter {
 public:
  void add(std::uint64_t amount) noexcept {
    value_.store(value_.load(std::memory_order_relaxed) + amount, std::memory_order_relaxed);
  }
  void operator++() noexcept { add(1); }
  void operator--() noexcept { add(static_cast<std::uint64_t>(-1)); }
  [[nodiscard]] std::uint64_t get() const noexcept { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<std::uint64_t> value_{0};
};

}  // namespace percore::base
