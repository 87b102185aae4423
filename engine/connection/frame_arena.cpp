#include "engine/connection/frame_arena.hpp"

#include <cstdlib>
#include <new>

#include "engine/base/cache_line.hpp"

namespace percore::engine {

void* frame_arena::allocate(std::size_t bytes) noexcept {
  const std::size_t whole = sizeof(header) + base::round_up(bytes, alignment);
  if (whole > end_ - top_) return nullptr;
  auto* made = ::new (memory_ + top_) header{this, last_, false};
  last_ = top_;
  top_ += static_cast<std::uint32_t>(whole);
  return made + 1;
}

void* frame_arena::allocate_at_end(std::size_t bytes) noexcept {
  const std::size_t whole = base::round_up(bytes, alignment);
  if (whole > end_ - top_) return nullptr;
  end_ -= static_cast<std::uint32_t>(whole);
  return memory_ + end_;
}

void frame_arena::release(void* frame) noexcept {
  header* released = static_cast<header*>(frame) - 1;
  frame_arena* arena = released->arena;
  if (arena == nullptr) {
    std::free(released);
    return;
  }
  released->released = true;
  arena->pop_released();
}

void frame_arena::pop_released() noexcept {
  while (last_ != none && at(last_).released) {
    top_ = last_;
    last_ = at(last_).previous;
  }
}

void* frame_arena::heap_frame(std::size_t bytes) noexcept {
  void* memory = std::malloc(sizeof(header) + bytes);
  return memory == nullptr ? nullptr : ::new (memory) header{nullptr, none, false} + 1;
}

}  // namespace percore::engine
