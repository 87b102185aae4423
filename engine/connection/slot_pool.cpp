#include "engine/connection/slot_pool.hpp"

#include <new>
#include <utility>

#include "engine/connection/slot.hpp"

namespace percore::engine {

slot_pool::~slot_pool() {
  for (std::uint32_t i = 0; i < touched_; ++i) at(i).~slot();
}

slot* slot_pool::take(core_resources& core) noexcept {
  slot* taken = free_;
  if (taken != nullptr) {
    free_ = taken->next_free;
  } else {
    if (touched_ == count_) return nullptr;
    const std::uint32_t index = touched_++;
    taken = ::new (memory_ + index * slot_bytes_) slot(core, index);
  }
  ++in_use_;
  return taken;
}

void slot_pool::put_back(slot& unused) noexcept {
  unused.next_free = free_;
  free_ = &unused;
  --in_use_;
}

void slot_pool::give_back(slot& closed) noexcept {
  if (closed_ == nullptr) first_closed_ = &closed;
  closed.next_free = closed_;
  closed_ = &closed;
  ++closed_count_;
  --in_use_;
}

std::uint32_t slot_pool::end_of_turn() noexcept {
  if (closed_ == nullptr) return 0;
  first_closed_->next_free = free_;
  free_ = std::exchange(closed_, nullptr);
  return std::exchange(closed_count_, 0);
}

}  // namespace percore::engine
