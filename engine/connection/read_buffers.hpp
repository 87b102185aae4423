#pragma once

#include <cstddef>
#include <cstdint>

#include "engine/base/cache_line.hpp"
#include "engine/base/intrusive_list.hpp"

namespace percore::engine {

// Header of a buffer; its bytes follow.
struct read_buffer {
  read_buffer* next_free;
  std::uint32_t capacity;
  bool parked;  // made to measure for the bytes of a message that is not complete, see read_buffer_pool::park

  std::byte* data() noexcept { return reinterpret_cast<std::byte*>(this + 1); }
};

// The read buffers of one core. A connection has one only while it has bytes to show: the buffer goes back when a
// read finds nothing, so an idle connection owns none. Free buffers are a stack: the one used last, which the cache
// still holds, is lent next.
class read_buffer_pool {
 public:
  // Memory for `limit` buffers. The extra line between two of them also keeps their beginnings, which every request
  // touches, from sharing cache sets.
  static constexpr std::size_t region_bytes(std::size_t buffer_bytes, std::size_t limit) noexcept {
    return stride(buffer_bytes) * limit;
  }

  // `memory`: region_bytes() of it, aligned to a cache line, not yet touched; must outlive the pool.
  read_buffer_pool(std::byte* memory, std::size_t buffer_bytes, std::size_t limit) noexcept
      : memory_(memory), buffer_bytes_(static_cast<std::uint32_t>(buffer_bytes)), limit_(limit) {}
  read_buffer_pool(const read_buffer_pool&) = delete;
  read_buffer_pool& operator=(const read_buffer_pool&) = delete;

  // nullptr when `limit` buffers are lent.
  read_buffer* take() noexcept {
    if (read_buffer* buffer = free_) {
      free_ = buffer->next_free;
      return buffer;
    }
    return make();
  }

  // Also for a parked one. The first connection that waits for a buffer becomes ready.
  [[gnu::hot]] void give_back(read_buffer* buffer, base::intrusive_list<detail::ready_node>& ready) noexcept;

  // Copies `size` bytes into a buffer of just that size. A connection in mid-message then waits with what it has
  // received instead of with a whole buffer, and the pool serves the others. nullptr when memory is out.
  static read_buffer* park(const std::byte* bytes, std::size_t size) noexcept;

  // A connection that found no buffer waits here.
  void wait(detail::ready_node& node) noexcept { waiting_.push_back(node); }
  // Once a turn: one that was woken may have ended without taking its buffer, so the next one is.
  void wake_waiter(base::intrusive_list<detail::ready_node>& ready) noexcept {
    if (free_ == nullptr) return;
    if (detail::ready_node* waiter = waiting_.pop_front()) ready.push_back(*waiter);
  }

  [[nodiscard]] std::uint32_t buffer_bytes() const noexcept { return buffer_bytes_; }
  [[nodiscard]] bool owns(const std::byte* where) const noexcept {
    return where >= memory_ && where < memory_ + region_bytes(buffer_bytes_, limit_);
  }

 private:
  static constexpr std::size_t stride(std::size_t buffer_bytes) noexcept {
    return base::round_up(sizeof(read_buffer) + buffer_bytes, base::cache_line_bytes);
  }
  read_buffer* make() noexcept;

  read_buffer* free_ = nullptr;
  std::byte* memory_;
  std::uint32_t buffer_bytes_;
  std::size_t limit_;
  std::size_t made_ = 0;
  base::intrusive_list<detail::ready_node> waiting_;
};

}  // namespace percore::engine
