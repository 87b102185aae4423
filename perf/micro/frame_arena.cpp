// Memory of coroutine frames: the slot's arena beside malloc.
#include <benchmark/benchmark.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "engine/connection/frame_arena.hpp"

namespace percore {
namespace {

using engine::frame_arena;

struct from_arena {
  alignas(64) std::byte memory[4096];
  frame_arena arena;
  from_arena() { arena.reset(memory, sizeof memory); }
  void* allocate(std::size_t bytes) noexcept { return arena.allocate(bytes); }
  static void release(void* frame) noexcept { frame_arena::release(frame); }
};
struct from_malloc {
  static void* allocate(std::size_t bytes) noexcept { return std::malloc(bytes); }
  static void release(void* frame) noexcept { std::free(frame); }
};

// One frame at a time.
template <class Memory>
void frame(benchmark::State& state) {
  Memory memory;
  const auto bytes = static_cast<std::size_t>(state.range(0));
  for (auto _ : state) {
    void* made = memory.allocate(bytes);
    benchmark::DoNotOptimize(made);
    memory.release(made);
  }
  state.SetItemsProcessed(state.iterations());
}
BENCHMARK(frame<from_arena>)->Name("frame/arena")->Arg(128)->Arg(512);
BENCHMARK(frame<from_malloc>)->Name("frame/malloc")->Arg(128)->Arg(512);

// Four frames, each within the one before, as a handler's nested tasks are.
template <class Memory>
void frame_nested(benchmark::State& state) {
  constexpr std::size_t levels = 4;
  Memory memory;
  void* made[levels];
  for (auto _ : state) {
    for (auto& each : made) {
      each = memory.allocate(128);
      benchmark::DoNotOptimize(each);
    }
    for (std::size_t i = levels; i > 0; --i) memory.release(made[i - 1]);
  }
  state.SetItemsProcessed(state.iterations() * static_cast<std::int64_t>(levels));
}
BENCHMARK(frame_nested<from_arena>)->Name("frame_nested/arena");
BENCHMARK(frame_nested<from_malloc>)->Name("frame_nested/malloc");

}  // namespace
}  // namespace percore
