#include "engine/connection/read_buffers.hpp"

#include <cstdlib>
#include <cstring>
#include <new>

namespace percore::engine {

read_buffer* read_buffer_pool::make() noexcept {
  if (made_ == limit_) return nullptr;
  std::byte* place = memory_ + made_++ * stride(buffer_bytes_);
  return ::new (place) read_buffer{nullptr, buffer_bytes_, false};
}

read_buffer* read_buffer_pool::park(const std::byte* bytes, std::size_t size) noexcept {
  void* memory = std::malloc(sizeof(read_buffer) + size);
  if (memory == nullptr) return nullptr;
  auto* buffer = ::new (memory) read_buffer{nullptr, static_cast<std::uint32_t>(size), true};
  std::memcpy(buffer->data(), bytes, size);
  return buffer;
}

void read_buffer_pool::give_back(read_buffer* buffer, base::intrusive_list<detail::ready_node>& ready) noexcept {
  if (buffer->parked) {
    std::free(buffer);
    return;
  }
  buffer->next_free = free_;
  free_ = buffer;
  wake_waiter(ready);
}

}  // namespace percore::engine
