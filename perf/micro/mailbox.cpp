// Messages to a core.
#include <benchmark/benchmark.h>
#include <poll.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <stop_token>
#include <thread>

#include "engine/loop/mailbox.hpp"
#include "tests/support/bare_core.hpp"

namespace percore {
namespace {

using detail::message;
using loop::mailbox;

// Post, take and run on one thread, with a closure of the given size in bytes: over message::inline_bytes it
// costs a heap allocation.
template <std::size_t Bytes>
void mailbox_post_run(benchmark::State& state) {
  test::bare_core core;
  mailbox box(1024, loop::wakeup());
  std::array<std::uint64_t, Bytes / sizeof(std::uint64_t)> payload{1};
  for (auto _ : state) {
    (void)box.post(message([payload](engine::core_resources&) { benchmark::DoNotOptimize(payload[0]); }));
    (*box.pop())(*core);
  }
  state.SetItemsProcessed(state.iterations());
}
BENCHMARK(mailbox_post_run<8>)->Name("mailbox_post_run/8");
BENCHMARK(mailbox_post_run<message::inline_bytes>)->Name("mailbox_post_run/40");
BENCHMARK(mailbox_post_run<128>)->Name("mailbox_post_run/128");

// What every turn of the loop pays that goes to sleep.
void mailbox_prepare_to_sleep(benchmark::State& state) {
  mailbox box(1024, loop::wakeup());
  for (auto _ : state) {
    benchmark::DoNotOptimize(box.prepare_to_sleep());
    box.awake();
    benchmark::DoNotOptimize(box.take_signals());
  }
  state.SetItemsProcessed(state.iterations());
}
BENCHMARK(mailbox_prepare_to_sleep);

// Runs the next message. A sleeper blocks in the kernel until it is woken, as an idle core does; the other
// kind looks until there is one, as a busy core comes by.
template <bool Sleeps>
void run_one(mailbox& box, engine::core_resources& core) {
  for (;;) {
    if (auto next = box.pop()) {
      (*next)(core);
      return;
    }
    if constexpr (Sleeps) {
      if (box.prepare_to_sleep()) {
        pollfd entry{box.wakeup_fd(), POLLIN, 0};
        (void)::poll(&entry, 1, -1);
        box.awake();
        box.drain_wakeup();
      }
    } else {
      std::this_thread::yield();
    }
  }
}

// A message there and one back between two threads.
template <bool Sleeps>
void mailbox_round_trip(benchmark::State& state) {
  test::bare_core core;
  mailbox there(1024, loop::wakeup());
  mailbox back(1024, loop::wakeup());
  bool stop = false;
  std::jthread other([&] {
    while (!stop) run_one<Sleeps>(there, *core);
  });
  for (auto _ : state) {
    (void)there.post(message(
        [&back](engine::core_resources&) { (void)back.post(message([](engine::core_resources&) {})); }));
    run_one<Sleeps>(back, *core);
  }
  (void)there.post(message([&stop](engine::core_resources&) { stop = true; }));
  state.SetItemsProcessed(state.iterations());
}
BENCHMARK(mailbox_round_trip<true>)->Name("mailbox_round_trip/asleep")->UseRealTime();
BENCHMARK(mailbox_round_trip<false>)->Name("mailbox_round_trip/awake")->UseRealTime();

}  // namespace
}  // namespace percore
