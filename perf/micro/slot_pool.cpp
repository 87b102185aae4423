// The order in which free slots are reused: the pool's stack beside a queue over the same slots.
//
// The load is a server's with 1000 connections of 16,384 possible ones: in each turn of the loop a batch of
// connections ends, oldest first, and as many are accepted. Of each slot the first three cache lines are
// written when it is opened and again when it is closed, which is what a request touches at least.
#include <benchmark/benchmark.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "engine/base/cache_line.hpp"
#include "tests/support/bare_core.hpp"

namespace percore {
namespace {

using engine::slot;

constexpr std::size_t slots = 16'384;
constexpr std::size_t slot_bytes = 960;
constexpr std::size_t live = 1000;
constexpr std::size_t batch = 16;
constexpr std::size_t lines_touched = 3;

// Writes the lines and changes nothing.
void touch(slot& s) {
  auto* line = reinterpret_cast<volatile std::uint64_t*>(&s);
  for (std::size_t i = 0; i < lines_touched; ++i, line += base::cache_line_bytes / sizeof *line)
    *line = *line;
}

// The engine's own, last in first out.
class stack {
 public:
  explicit stack(test::bare_core& core) : core_(*core), pool_(core_.slots) {}
  slot* take() { return pool_.take(core_); }
  void give_back(slot& s) { pool_.give_back(s); }
  void end_of_turn() { (void)pool_.end_of_turn(); }

 private:
  engine::core_resources& core_;
  engine::slot_pool& pool_;
};

// The same slots in a ring, first in first out; a slot given back is free at once, which costs less.
class queue {
 public:
  explicit queue(test::bare_core& core) : free_(slots) {
    for (auto& place : free_) place = core->slots.take(*core);
  }
  slot* take() { return free_[head_++ % slots]; }
  void give_back(slot& s) { free_[tail_++ % slots] = &s; }
  void end_of_turn() {}

 private:
  std::vector<slot*> free_;
  std::size_t head_ = 0;
  std::size_t tail_ = 0;
};

template <class Pool>
void slot_reuse(benchmark::State& state) {
  test::bare_core core(slots, slot_bytes);
  Pool pool(core);
  std::vector<slot*> open(live);
  for (auto& s : open) touch(*(s = pool.take()));
  std::size_t oldest = 0;
  for (auto _ : state) {
    for (std::size_t i = 0; i < batch; ++i) {
      slot& ending = *open[(oldest + i) % live];
      touch(ending);
      pool.give_back(ending);
    }
    pool.end_of_turn();
    for (std::size_t i = 0; i < batch; ++i) {
      slot* opened = pool.take();
      touch(*opened);
      open[(oldest + i) % live] = opened;
    }
    oldest = (oldest + batch) % live;
  }
  state.SetItemsProcessed(state.iterations() * static_cast<std::int64_t>(batch));
}
BENCHMARK(slot_reuse<stack>)->Name("slot_reuse/stack");
BENCHMARK(slot_reuse<queue>)->Name("slot_reuse/queue");

}  // namespace
}  // namespace percore
