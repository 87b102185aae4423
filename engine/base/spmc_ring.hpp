#pragma once

#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "engine/base/cache_line.hpp"

namespace percore::base {

// A bounded lock-free ring of pointers: one producer, many consumers. Each cell carries a sequence number
// that says whose turn it is (Vyukov's bounded queue), so the producer needs no read-modify-write and
// consumers contend only on the head. The ring owns nothing.
//
// The producer may take back what it has pushed as long as no consumer has it: the pointer in the cell, not
// the cell's turn, is what the two compete for. A consumer passes over cells that were emptied in this way.
template <class T>
class spmc_ring {
 public:
  // `capacity` is rounded up to a power of two, at least 2.
  explicit spmc_ring(std::size_t capacity)
      : mask_(std::bit_ceil(capacity < 2 ? std::size_t{2} : capacity) - 1), cells_(new cell[mask_ + 1]) {
    for (std::size_t i = 0; i <= mask_; ++i) cells_[i].turn.store(i, std::memory_order_relaxed);
  }

  // Producer only. False when the ring is full; else `position` is what withdraw() wants.
  bool push(T* value, std::uint64_t& position) noexcept {
    const std::uint64_t tail = tail_.load(std::memory_order_relaxed);
    cell& target = cells_[tail & mask_];
    // Acquire: the consumer of a lap ago has done with the cell.
    if (target.turn.load(std::memory_order_acquire) != tail) return false;
    target.value.store(value, std::memory_order_relaxed);
    position = tail;
    // seq_cst, not just release: paired with a consumer that announces its sleep and then looks at empty()
    // (see pool.hpp).
    target.turn.store(tail + 1, std::memory_order_seq_cst);
    tail_.store(tail + 1, std::memory_order_relaxed);
    return true;
  }

  // Producer only: true when no consumer has got `value`, and none will.
  bool withdraw(T* value, std::uint64_t position) noexcept {
    return cells_[position & mask_].value.compare_exchange_strong(value, nullptr, std::memory_order_acq_rel);
  }

  // Any thread. nullptr when there is nothing.
  T* pop() noexcept {
    std::uint64_t head = head_.load(std::memory_order_relaxed);
    for (;;) {
      cell& source = cells_[head & mask_];
      const auto ahead = static_cast<std::int64_t>(source.turn.load(std::memory_order_acquire) - (head + 1));
      if (ahead < 0) return nullptr;
      if (ahead > 0) {
        head = head_.load(std::memory_order_relaxed);
      } else if (head_.compare_exchange_weak(head, head + 1, std::memory_order_relaxed)) {
        T* value = source.value.exchange(nullptr, std::memory_order_acq_rel);
        source.turn.store(head + mask_ + 1, std::memory_order_release);
        if (value != nullptr) return value;
        head = head_.load(std::memory_order_relaxed);
      }
    }
  }

  // Any thread. May call an emptied cell something; never calls nothing what was pushed before in the single
  // order of sequentially consistent operations and is not taken yet.
  [[nodiscard]] bool empty() const noexcept {
    for (;;) {
      const std::uint64_t head = head_.load(std::memory_order_seq_cst);
      const std::uint64_t turn = cells_[head & mask_].turn.load(std::memory_order_seq_cst);
      const auto ahead = static_cast<std::int64_t>(turn - (head + 1));
      if (ahead <= 0) return ahead < 0;
      // Taken since head_ was read: look at the next.
    }
  }

  // Any thread, as of about now: withdrawn ones count until a consumer has passed over them.
  [[nodiscard]] std::size_t size() const noexcept {
    const std::uint64_t head = head_.load(std::memory_order_relaxed);
    const std::uint64_t tail = tail_.load(std::memory_order_relaxed);
    return tail > head ? static_cast<std::size_t>(tail - head) : 0;
  }
  [[nodiscard]] std::size_t capacity() const noexcept { return mask_ + 1; }

 private:
  struct cell {
    std::atomic<std::uint64_t> turn{0};
    std::atomic<T*> value{nullptr};
  };

  const std::size_t mask_;
  const std::unique_ptr<cell[]> cells_;
  alignas(cache_line_bytes) std::atomic<std::uint64_t> tail_{0};
  alignas(cache_line_bytes) std::atomic<std::uint64_t> head_{0};
};

}  // namespace percore::base
