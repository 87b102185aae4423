#pragma once

#include <array>
#include <cstdint>
#include <limits>

#include <percore/detail/links.hpp>

#include "engine/base/intrusive_list.hpp"

namespace percore::loop {

// A hierarchical timer wheel (Varghese and Lauck, 1987): 6 levels of 64 lists, a level's list as wide as the whole
// level below. Insert and cancel are O(1); a timer moves down at most 5 times before it fires. Times are ticks of
// 2^17 ns (131 us), so the wheel spans 2^36 ticks (104 days); what is later waits in the last list and is sorted
// again. A timer fires at the first advance() at or after its deadline, never before.
class timer_wheel {
 public:
  static constexpr int tick_shift = 17;
  static constexpr std::int64_t tick_ns = std::int64_t{1} << tick_shift;
  static constexpr std::uint64_t never = std::numeric_limits<std::uint64_t>::max();

  // The tick that has begun at `ns`, and the first one that begins at or after it.
  static constexpr std::uint64_t tick_of(std::int64_t ns) noexcept {
    return static_cast<std::uint64_t>(ns) >> tick_shift;
  }
  static constexpr std::uint64_t tick_from(std::int64_t ns) noexcept {
    return static_cast<std::uint64_t>(ns + tick_ns - 1) >> tick_shift;
  }

  explicit timer_wheel(std::uint64_t now) noexcept : elapsed_(now) {}

  // `node` must not be linked. A deadline that has passed fires at the next tick. The node leaves the wheel when it
  // fires, by its unlink(), or by its destructor.
  void insert(detail::timer_node& node, std::uint64_t deadline) noexcept {
    node.deadline = deadline;
    place(node);
  }

  // Fires everything whose deadline is <= now, in the order of ticks. Callbacks may insert and unlink any node.
  [[gnu::hot]] void advance(std::uint64_t now) noexcept;

  // The tick at which advance() next has something to do, or never. May be earlier than the next deadline: a list of
  // timers that has to be sorted.
  [[nodiscard]] std::uint64_t next_tick() noexcept;

 private:
  static constexpr int levels = 6;
  static constexpr int level_bits = 6;
  static constexpr std::uint64_t lists_per_level = 1u << level_bits;

  struct due_list {
    int level = 0;
    unsigned position = 0;
    std::uint64_t tick = never;
  };

  void place(detail::timer_node& node) noexcept;
  [[nodiscard]] due_list next_list() noexcept;

  std::uint64_t elapsed_;
  // A bit may be set for a list that cancellations have emptied: that costs one look, and saves each node from knowing
  // where it is.
  std::array<std::uint64_t, levels> occupied_{};
  std::array<std::array<base::intrusive_list<detail::timer_node>, lists_per_level>, levels> lists_;
};

}  // namespace percore::loop
