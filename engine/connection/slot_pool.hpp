#pragma once

#include <cstddef>
#include <cstdint>

namespace percore::engine {

struct slot;
struct core_resources;

// The preallocated connection slots of one core, in one region of its NUMA node. The free ones are a stack and not a
// queue: with 1000 of 16,384 slots in use a queue walks through all of the region and finds each slot cold, a stack
// reuses the one that was closed last: 17 against 22 ns a slot on one Xeon core (perf/micro, slot_reuse/stack and
// slot_reuse/queue), more when the kernel competes for the cache. Slots that were never used lie behind
// `touched()` and have cost no page yet.
//
// A slot that is given back joins the free ones at the end of the loop turn, so nothing that this turn still holds
// (events, timers, a posted message) can meet its next connection.
class slot_pool {
 public:
  // `memory`: count * slot_bytes of it, zeroed, aligned to a cache line; must outlive the pool.
  slot_pool(std::byte* memory, std::size_t slot_bytes, std::size_t count) noexcept
      : memory_(memory), slot_bytes_(slot_bytes), count_(static_cast<std::uint32_t>(count)) {}
  slot_pool(const slot_pool&) = delete;
  slot_pool& operator=(const slot_pool&) = delete;
  ~slot_pool();

  // nullptr when all are in use.
  slot* take(core_resources& core) noexcept;
  // What take gave and no connection was opened in: free at once.
  void put_back(slot& unused) noexcept;
  // Free after end_of_turn().
  void give_back(slot& closed) noexcept;
  std::uint32_t end_of_turn() noexcept;  // how many became free

  // index < touched().
  [[nodiscard]] slot& at(std::uint32_t index) const noexcept {
    return *reinterpret_cast<slot*>(memory_ + index * slot_bytes_);
  }
  [[nodiscard]] std::uint32_t touched() const noexcept { return touched_; }
  [[nodiscard]] std::uint32_t in_use() const noexcept { return in_use_; }
  [[nodiscard]] std::uint32_t count() const noexcept { return count_; }
  [[nodiscard]] std::size_t slot_bytes() const noexcept { return slot_bytes_; }

 private:
  std::byte* memory_;
  std::size_t slot_bytes_;
  std::uint32_t count_;
  std::uint32_t touched_ = 0;
  std::uint32_t in_use_ = 0;
  slot* free_ = nullptr;
  slot* closed_ = nullptr;       // of this turn, the last one first
  slot* first_closed_ = nullptr;
  std::uint32_t closed_count_ = 0;
};

}  // namespace percore::engine
