// What handlers cost beside the work that they do.
#include <benchmark/benchmark.h>

#include <coroutine>
#include <percore/task.hpp>

#include "tests/support/bare_core.hpp"

namespace percore {
namespace {

using engine::slot;
using test::bare_core;
using test::gate;

task<> nothing(connection&) {
  co_return;
}

// Start, run and end of a coroutine that never waits: a handler that finds its request and answers it.
void coroutine_start_finish(benchmark::State& state) {
  bare_core core;
  slot& s = core.open_slot();
  for (auto _ : state) {
    const auto frame = nothing(s).release();
    frame.resume();
    benchmark::DoNotOptimize(frame.done());
    frame.destroy();
  }
  state.SetItemsProcessed(state.iterations());
}
BENCHMARK(coroutine_start_finish);

// The same from the slot to the slot: open, handler, close. No descriptor, hence no system call.
void coroutine_whole_connection(benchmark::State& state) {
  bare_core core;
  core.use_handler(nothing);
  for (auto _ : state) {
    core.run();
    core.end_of_turn();
  }
  state.SetItemsProcessed(state.iterations());
}
BENCHMARK(coroutine_whole_connection);

task<> waits_for_ever(connection&, gate& g) {
  for (;;) co_await g;
}

// A wait and its end: what a read costs that has to wait, less the event.
void coroutine_suspend_resume(benchmark::State& state) {
  bare_core core;
  gate g;
  slot& s = core.run([&g](connection& conn) -> task<> { co_await waits_for_ever(conn, g); });
  for (auto _ : state) g.open(s);
  s.halt();
  state.SetItemsProcessed(state.iterations());
}
BENCHMARK(coroutine_suspend_resume);

task<int> one(connection&) {
  co_return 1;
}
task<int> one_after(connection&, gate& g) {
  co_await g;
  co_return 1;
}

// A nested task that does not wait.
void coroutine_await_ready(benchmark::State& state) {
  constexpr int awaits = 1000;
  bare_core core;
  int sum = 0;
  core.use_handler([&sum](connection& conn) -> task<> {
    for (int i = 0; i < awaits; ++i) sum += co_await one(conn);
  });
  for (auto _ : state) {
    core.run();
    core.end_of_turn();
    benchmark::DoNotOptimize(sum);
  }
  state.SetItemsProcessed(state.iterations() * awaits);
}
BENCHMARK(coroutine_await_ready);

// A nested task that waits and is resumed.
void coroutine_await_suspended(benchmark::State& state) {
  bare_core core;
  gate g;
  int sum = 0;
  slot& s = core.run([&g, &sum](connection& conn) -> task<> {
    for (;;) sum += co_await one_after(conn, g);
  });
  for (auto _ : state) g.open(s);
  s.halt();
  benchmark::DoNotOptimize(sum);
  state.SetItemsProcessed(state.iterations());
}
BENCHMARK(coroutine_await_suspended);

}  // namespace
}  // namespace percore
