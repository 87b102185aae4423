#pragma once

#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>

#include "engine/base/cache_line.hpp"

namespace percore::base {

enum class push_result { pushed, full, closed };

// A bounded lock-free ring: many producers, one consumer, in the manner of Vyukov's bounded queue. Each cell carries
// a sequence number that says whose turn it is, so producers contend only on the tail, and the consumer writes
// nothing that they read but the cells themselves. T is default constructible and nothrow movable; a consumed cell
// holds a moved-from T.
template <class T>
class mpsc_ring {
 public:
  // `capacity` is rounded up to a power of two, at least 2.
  explicit mpsc_ring(std::size_t capacity)
      : mask_(std::bit_ceil(capacity < 2 ? std::size_t{2} : capacity) - 1), cells_(new cell[mask_ + 1]) {
    for (std::size_t i = 0; i <= mask_; ++i) cells_[i].turn.store(i, std::memory_order_relaxed);
  }

  // Any thread. `value` is moved from only when it was pushed.
  push_result push(T&& value) noexcept {
    std::uint64_t position = tail_.load(std::memory_order_relaxed);
    for (;;) {
      if (position & closed_bit) return push_result::closed;
      cell& target = cells_[position & mask_];
      const std::uint64_t turn = target.turn.load(std::memory_order_acquire);
      const auto ahead = static_cast<std::int64_t>(turn - position);
      if (ahead == 0) {
        if (tail_.compare_exchange_weak(position, position + 1, std::memory_order_relaxed)) {
          target.value = std::move(value);
          // seq_cst, not just release: the mailbox pairs it with the consumer's "I sleep" flag (see mailbox.hpp).
          target.turn.store(position + 1, std::memory_order_seq_cst);
          return push_result::pushed;
        }
      } else if (ahead < 0) {
        return push_result::full;
      } else {
        position = tail_.load(std::memory_order_relaxed);
      }
    }
  }

  // Consumer only.
  std::optional<T> pop() noexcept {
    cell& source = cells_[head_ & mask_];
    if (source.turn.load(std::memory_order_acquire) != head_ + 1) return std::nullopt;
    std::optional<T> value(std::move(source.value));
    source.turn.store(head_ + mask_ + 1, std::memory_order_release);
    ++head_;
    return value;
  }

  // Consumer only. False negatives are possible only for a push that has not finished; seq_cst, see push().
  [[nodiscard]] bool empty() const noexcept {
    return cells_[head_ & mask_].turn.load(std::memory_order_seq_cst) != head_ + 1;
  }

  // Consumer only: every later push answers `closed`. What was pushed before stays to be popped, and pushes that were
  // under way finish: drained() tells when all of it has been.
  void close() noexcept { tail_.fetch_or(closed_bit, std::memory_order_acq_rel); }
  [[nodiscard]] bool drained() const noexcept {
    return (tail_.load(std::memory_order_acquire) & ~closed_bit) == head_;
  }

  [[nodiscard]] std::size_t capacity() const noexcept { return mask_ + 1; }

 private:
  static constexpr std::uint64_t closed_bit = std::uint64_t{1} << 63;

  struct alignas(cache_line_bytes) cell {
    std::atomic<std::uint64_t> turn{0};
    T value{};
  };

  const std::size_t mask_;
  const std::unique_ptr<cell[]> cells_;
  alignas(cache_line_bytes) std::atomic<std::uint64_t> tail_{0};
  alignas(cache_line_bytes) std::uint64_t head_ = 0;
};

}  // namespace percore::base
