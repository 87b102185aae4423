// A call on a helper thread and back, next to the least that two threads need to wake each other.
#include <percore/percore.hpp>

#include <benchmark/benchmark.h>

#include <sched.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <coroutine>
#include <cstdint>
#include <exception>
#include <latch>
#include <thread>

namespace {

constexpr int trips_per_iteration = 1000;

// Starts at once and belongs to nobody.
struct lone_coroutine {
  struct promise_type {
    lone_coroutine get_return_object() noexcept { return {}; }
    std::suspend_never initial_suspend() noexcept { return {}; }
    std::suspend_never final_suspend() noexcept { return {}; }
    void return_void() noexcept {}
    void unhandled_exception() noexcept { std::terminate(); }
  };
};

lone_coroutine make_trips(std::latch& done) {
  for (int i = 0; i < trips_per_iteration; ++i) (void)co_await percore::offload([] {});
  done.count_down();
}

// One after the other: each finds the helper and the core asleep.
void offload_round_trip(benchmark::State& state) {
  percore::server_options options;
  options.placement.cores = 1;
  options.placement.respect_quota = false;
  percore::server server(options);
  server.listen("127.0.0.1:0",
                [](percore::connection& conn) -> percore::task<> { (void)co_await conn.read(); });
  server.start();
  for (auto _ : state) {
    std::latch done(1);
    server.post(0, [&done] { make_trips(done); });
    done.wait();
  }
  state.SetItemsProcessed(state.iterations() * trips_per_iteration);
  server.halt();
}
BENCHMARK(offload_round_trip)->UseRealTime()->MeasureProcessCPUTime();

void pin_to(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  (void)sched_setaffinity(0, sizeof set, &set);
}

// On one CPU, or on two as a core and its helper are: then each wake-up is an interrupt of the other CPU.
template <bool Apart>
void eventfd_ping_pong(benchmark::State& state) {
  cpu_set_t before;
  (void)sched_getaffinity(0, sizeof before, &before);
  const int there = ::eventfd(0, EFD_CLOEXEC);
  const int back = ::eventfd(0, EFD_CLOEXEC);
  pin_to(0);
  std::thread other([&] {
    pin_to(Apart ? 1 : 0);
    std::uint64_t value = 0;
    while (::read(there, &value, sizeof value) == sizeof value && value == 1) {
      if (::write(back, &value, sizeof value) != sizeof value) return;
    }
  });
  std::uint64_t value = 1;
  for (auto _ : state) {
    for (int i = 0; i < trips_per_iteration; ++i) {
      value = 1;
      if (::write(there, &value, sizeof value) != sizeof value) state.SkipWithError("write");
      if (::read(back, &value, sizeof value) != sizeof value) state.SkipWithError("read");
    }
  }
  value = 2;
  if (::write(there, &value, sizeof value) != sizeof value) state.SkipWithError("write");
  other.join();
  (void)sched_setaffinity(0, sizeof before, &before);
  ::close(there);
  ::close(back);
  state.SetItemsProcessed(state.iterations() * trips_per_iteration);
}
BENCHMARK(eventfd_ping_pong<false>)->Name("eventfd_ping_pong/one_cpu")->UseRealTime()->MeasureProcessCPUTime();
BENCHMARK(eventfd_ping_pong<true>)->Name("eventfd_ping_pong/two_cpus")->UseRealTime()->MeasureProcessCPUTime();

}  // namespace
