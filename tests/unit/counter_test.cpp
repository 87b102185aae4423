#include "engine/base/counter.hpp"

#include <doctest/doctest.h>

#include <atomic>
#include <cstdint>
#include <thread>

namespace percore::test {
namespace {

TEST_CASE("counter: counts up and down from zero") {
  base::counter count;
  CHECK(count.get() == 0);
  ++count;
  count.add(41);
  CHECK(count.get() == 42);
  --count;
  CHECK(count.get() == 41);
  count.add(std::uint64_t{1} << 40);
  CHECK(count.get() == (std::uint64_t{1} << 40) + 41);
}

TEST_CASE("counter: a reader on another thread sees whole values that grow") {
  // Each step changes both halves of the value, so a torn read would be no multiple of the step.
  constexpr std::uint64_t step = (std::uint64_t{1} << 32) + 1;
  constexpr std::uint64_t steps = 200'000;
  base::counter count;
  std::atomic<bool> reading{false};
  std::jthread writer([&] {
    while (!reading) std::this_thread::yield();
    for (std::uint64_t i = 0; i < steps; ++i) count.add(step);
  });
  std::uint64_t last = 0;
  bool whole = true;
  bool grows = true;
  reading = true;
  while (last != step * steps) {
    const std::uint64_t now = count.get();
    whole = whole && now % step == 0;
    grows = grows && now >= last;
    last = now;
  }
  CHECK(whole);
  CHECK(grows);
}

}  // namespace
}  // namespace percore::test
