#pragma once

#include <cstddef>
#include <cstdint>

namespace percore::engine {

// The part of a slot that holds coroutine frames, from the bottom up, and the connection's context, from the top
// down. Frames of awaited tasks are released last in, first out; one released out of order is only marked and goes
// when those above it have gone.
class frame_arena {
 public:
  // `memory` is aligned to 16 bytes.
  void reset(std::byte* memory, std::size_t bytes) noexcept {
    memory_ = memory;
    top_ = 0;
    last_ = none;
    whole_ = end_ = static_cast<std::uint32_t>(bytes / alignment * alignment);
  }

  // nullptr when it does not fit. Aligned to 16 bytes.
  void* allocate(std::size_t bytes) noexcept;
  // Room at the top end that stays until reset or release_end(); nullptr when it does not fit.
  void* allocate_at_end(std::size_t bytes) noexcept;
  void release_end() noexcept { end_ = whole_; }
  // Bytes in use, headers included.
  [[nodiscard]] std::size_t used() const noexcept { return top_; }

  // Frees what allocate gave, whichever arena it came from, or what heap_frame gave.
  static void release(void* frame) noexcept;
  // The same shape from the heap; nullptr when memory is out.
  static void* heap_frame(std::size_t bytes) noexcept;

 private:
  static constexpr std::size_t alignment = 16;
  static constexpr std::uint32_t none = ~std::uint32_t{0};

  struct alignas(alignment) header {
    frame_arena* arena;  // nullptr: the heap
    std::uint32_t previous;   // offset of the header below
    bool released;
  };

  header& at(std::uint32_t offset) noexcept { return *reinterpret_cast<header*>(memory_ + offset); }
  void pop_released() noexcept;

  std::byte* memory_ = nullptr;
  std::uint32_t top_ = 0;
  std::uint32_t last_ = none;  // offset of the topmost header
  std::uint32_t end_ = 0;
  std::uint32_t whole_ = 0;
};

}  // namespace percore::engine
