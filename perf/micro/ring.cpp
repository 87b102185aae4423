// The ring under every mailbox.
#include <benchmark/benchmark.h>

#include <cstdint>
#include <stop_token>
#include <thread>

#include "engine/base/mpsc_ring.hpp"

namespace percore {
namespace {

using ring = base::mpsc_ring<std::uint64_t>;

// A push and a pop on one thread: the cost without any other core.
void mpsc_ring_push_pop(benchmark::State& state) {
  ring r(1024);
  for (auto _ : state) {
    benchmark::DoNotOptimize(r.push(1));
    benchmark::DoNotOptimize(r.pop());
  }
  state.SetItemsProcessed(state.iterations());
}
BENCHMARK(mpsc_ring_push_pop);

// The same in batches, where consecutive cells are written and read.
void mpsc_ring_push_pop_batch(benchmark::State& state) {
  constexpr int batch = 256;
  ring r(1024);
  for (auto _ : state) {
    for (int i = 0; i < batch; ++i) benchmark::DoNotOptimize(r.push(1));
    for (int i = 0; i < batch; ++i) benchmark::DoNotOptimize(r.pop());
  }
  state.SetItemsProcessed(state.iterations() * batch);
}
BENCHMARK(mpsc_ring_push_pop_batch);

// One thread pushes and is measured, another pops: what a message costs its sender when both are busy.
void mpsc_ring_one_to_one(benchmark::State& state) {
  ring r(1024);
  std::jthread consumer([&r](const std::stop_token& stop) {
    while (!stop.stop_requested()) {
      if (!r.pop()) std::this_thread::yield();
    }
  });
  for (auto _ : state) {
    while (r.push(1) != base::push_result::pushed) std::this_thread::yield();
  }
  state.SetItemsProcessed(state.iterations());
}
BENCHMARK(mpsc_ring_one_to_one)->UseRealTime();

}  // namespace
}  // namespace percore
