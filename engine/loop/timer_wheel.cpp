#include "engine/loop/timer_wheel.hpp"

#include <bit>

namespace percore::loop {

void timer_wheel::place(detail::timer_node& node) noexcept {
  std::uint64_t tick = node.deadline > elapsed_ ? node.deadline : elapsed_ + 1;
  // Never the list of the last level that now is in: it would be the first to be looked at and the last to be due.
  constexpr int last_shift = (levels - 1) * level_bits;
  const std::uint64_t furthest = ((elapsed_ >> last_shift) + lists_per_level - 1) << last_shift;
  if (tick > furthest) tick = furthest;
  // The highest bit in which the tick differs from now names the level: below it, all lists before now's are past.
  const std::uint64_t differing = (elapsed_ ^ tick) | (lists_per_level - 1);
  int level = (63 - std::countl_zero(differing)) / level_bits;
  if (level >= levels) level = levels - 1;
  const auto position = static_cast<unsigned>((tick >> (level * level_bits)) & (lists_per_level - 1));
  const auto row = static_cast<std::size_t>(level);
  lists_[row][position].push_back(node);
  occupied_[row] |= std::uint64_t{1} << position;
}

// Forgets the lists on its way that cancellations have emptied: a deadline that nobody waits for any more (of a
// handshake that is done) must not make each wait of the poller one with a time limit, which costs a kernel timer.
timer_wheel::due_list timer_wheel::next_list() noexcept {
  for (int level = 0; level < levels;) {
    const auto row = static_cast<std::size_t>(level);
    const std::uint64_t occupied = occupied_[row];
    if (occupied == 0) {
      ++level;
      continue;
    }
    const int shift = level * level_bits;
    const auto here = static_cast<unsigned>((elapsed_ >> shift) & (lists_per_level - 1));
    const auto distance = static_cast<unsigned>(std::countr_zero(std::rotr(occupied, static_cast<int>(here))));
    const unsigned position = (here + distance) % lists_per_level;
    if (lists_[row][position].empty()) {
      occupied_[row] &= ~(std::uint64_t{1} << position);
      continue;
    }
    const std::uint64_t level_span = std::uint64_t{1} << (shift + level_bits);
    const std::uint64_t level_start = elapsed_ & ~(level_span - 1);
    std::uint64_t tick = level_start + (std::uint64_t{position} << shift);
    if (tick <= elapsed_) tick += level_span;  // only the last level wraps around
    return {level, position, tick};
  }
  return {};
}

std::uint64_t timer_wheel::next_tick() noexcept { return next_list().tick; }

void timer_wheel::advance(std::uint64_t now) noexcept {
  for (;;) {
    const due_list due = next_list();
    if (due.tick > now) break;
    elapsed_ = due.tick;
    const auto row = static_cast<std::size_t>(due.level);
    occupied_[row] &= ~(std::uint64_t{1} << due.position);
    base::intrusive_list<detail::timer_node> list;
    list.take(lists_[row][due.position]);
    while (detail::timer_node* node = list.pop_front()) {
      if (node->deadline <= elapsed_) {
        node->fire(*node);
      } else {
        place(*node);
      }
    }
  }
  if (now > elapsed_) elapsed_ = now;
}

}  // namespace percore::loop
