#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>

#include <percore/options.hpp>

#include "engine/base/cache_line.hpp"

namespace percore::engine {

// The limits that all cores share. Each counter is touched only when its limit is set: the one exception to "no line
// that two cores write", paid by those who ask for an exact server-wide limit.
class shared_limits {
 public:
  shared_limits(std::size_t max_connections, std::uint64_t max_accepted) noexcept
      : max_connections_(max_connections), max_accepted_(max_accepted) {}

  // Called by the core that accepts connection number max_accepted, and by one that makes room while others pause.
  std::function<void()> on_last_accepted;
  std::function<void()> on_room;
  // Called by a core that stops accepting from a socket which all cores share.
  std::function<void()> on_shared_pause;

  // A place among the open connections; false when there is none.
  bool reserve_open() noexcept {
    if (max_connections_ == 0) return true;
    if (open_.fetch_add(1, std::memory_order_seq_cst) < max_connections_) return true;
    open_.fetch_sub(1, std::memory_order_seq_cst);
    return false;
  }
  void release_open(std::size_t count) noexcept {
    if (max_connections_ == 0 || count == 0) return;
    open_.fetch_sub(count, std::memory_order_seq_cst);
    if (paused_.load(std::memory_order_seq_cst) != 0) on_room();
  }
  // A core that pauses for want of a place says so first and then looks again: either it sees the place that another
  // core has just released, or that core sees the pause and calls on_room.
  void pause() noexcept { paused_.fetch_add(1, std::memory_order_seq_cst); }
  void resume() noexcept { paused_.fetch_sub(1, std::memory_order_seq_cst); }
  [[nodiscard]] bool has_room() const noexcept {
    return max_connections_ == 0 || open_.load(std::memory_order_seq_cst) < max_connections_;
  }

  // A ticket for one more accept4; false when all are given out. One that comes to nothing goes back.
  bool take_ticket() noexcept {
    if (max_accepted_ == 0) return true;
    if (tickets_.fetch_add(1, std::memory_order_relaxed) < max_accepted_) return true;
    tickets_.fetch_sub(1, std::memory_order_relaxed);
    return false;
  }
  void return_ticket() noexcept {
    if (max_accepted_ != 0) tickets_.fetch_sub(1, std::memory_order_relaxed);
  }
  void use_ticket() noexcept {
    if (max_accepted_ != 0 && used_.fetch_add(1, std::memory_order_relaxed) + 1 == max_accepted_) on_last_accepted();
  }
  // None is with another core, so none can come back.
  [[nodiscard]] bool all_tickets_used() const noexcept {
    return used_.load(std::memory_order_relaxed) >= max_accepted_;
  }

 private:
  const std::size_t max_connections_;
  const std::uint64_t max_accepted_;
  alignas(base::cache_line_bytes) std::atomic<std::size_t> open_{0};
  std::atomic<unsigned> paused_{0};
  alignas(base::cache_line_bytes) std::atomic<std::uint64_t> tickets_{0};
  std::atomic<std::uint64_t> used_{0};
};

}  // namespace percore::engine
