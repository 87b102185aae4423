// A call on a helper thread and back, next to the least that two threads need to wake each other.
#include <percore/percore.hpp>

#include <benchmark/benchmark.h>

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

void eventfd_ping_pong(benchmark::State& state) {
  const int there = ::eventfd(0, EFD_CLOEXEC);
  const int back = ::eventfd(0, EFD_CLOEXEC);
  std::thread other([&] {
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
  ::close(there);
  ::close(back);
  state.SetItemsProcessed(state.iterations() * trips_per_iteration);
}
BENCHMARK(eventfd_ping_pong)->UseRealTime()->MeasureProcessCPUTime();

}  // namespace
