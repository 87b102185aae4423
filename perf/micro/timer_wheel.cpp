// The wheel under timeouts and sleeps, among a given number of timers that wait for later.
#include <benchmark/benchmark.h>

#include <array>
#include <cstdint>
#include <memory>
#include <random>
#include <vector>

#include "engine/loop/timer_wheel.hpp"

namespace percore {
namespace {

using loop::timer_wheel;

struct timer : detail::timer_node {
  timer() noexcept {
    fire = [](detail::timer_node& node) { benchmark::DoNotOptimize(&node); };
  }
};

constexpr std::uint64_t second = 7629;  // ticks

// Timers of other connections, from a minute on: they neither fire nor move while a benchmark runs.
class crowd {
 public:
  crowd(timer_wheel& wheel, std::int64_t count) : timers_(new timer[static_cast<std::size_t>(count)]) {
    std::mt19937_64 random(1);
    for (std::int64_t i = 0; i < count; ++i) {
      wheel.insert(timers_[static_cast<std::size_t>(i)], (std::uint64_t{1} << 40) + random() % (60 * second));
    }
  }

 private:
  std::unique_ptr<timer[]> timers_;
};

// A read that is answered before its timeout.
void timer_wheel_insert_cancel(benchmark::State& state) {
  timer_wheel wheel(0);
  const crowd others(wheel, state.range(0));
  timer t;
  std::uint64_t deadline = 0;
  for (auto _ : state) {
    wheel.insert(t, 10 * second + deadline++ % (64 * second));
    t.unlink();
  }
  state.SetItemsProcessed(state.iterations());
}
BENCHMARK(timer_wheel_insert_cancel)->Arg(0)->Arg(100'000);

// A thousand timers spread over some time, inserted and fired: what a sleep costs in the wheel, its moves
// from level to level included.
void timer_wheel_insert_fire(benchmark::State& state) {
  constexpr std::size_t count = 1000;
  const auto spread = static_cast<std::uint64_t>(state.range(0));
  timer_wheel wheel(0);
  std::array<timer, count> timers;
  std::mt19937_64 random(1);
  std::array<std::uint64_t, count> distances;
  for (auto& distance : distances) distance = 1 + random() % spread;
  std::uint64_t now = 0;
  for (auto _ : state) {
    for (std::size_t i = 0; i < count; ++i) wheel.insert(timers[i], now + distances[i]);
    now += spread;
    wheel.advance(now);
  }
  state.SetItemsProcessed(state.iterations() * static_cast<std::int64_t>(count));
}
BENCHMARK(timer_wheel_insert_fire)->Arg(8)->Arg(second)->Arg(60 * second);

// What every turn of the loop pays: nothing is due.
void timer_wheel_advance_idle(benchmark::State& state) {
  timer_wheel wheel(0);
  const crowd others(wheel, state.range(0));
  std::uint64_t now = 0;
  for (auto _ : state) {
    benchmark::DoNotOptimize(wheel.next_tick());
    wheel.advance(++now);
  }
  state.SetItemsProcessed(state.iterations());
}
BENCHMARK(timer_wheel_advance_idle)->Arg(0)->Arg(100'000);

}  // namespace
}  // namespace percore
