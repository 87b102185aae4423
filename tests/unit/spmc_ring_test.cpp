#include "engine/base/spmc_ring.hpp"

#include <doctest/doctest.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

#include "tests/support/waiting.hpp"

namespace percore::test {
namespace {

using ring = base::spmc_ring<int>;

TEST_CASE("spmc_ring: first in, first out, as many as its capacity") {
  ring queue(4);
  CHECK(queue.capacity() == 4);
  CHECK(ring(0).capacity() == 2);
  CHECK(ring(5).capacity() == 8);
  int values[5] = {};
  std::uint64_t position = 0;
  for (int lap = 0; lap < 5; ++lap) {
    CHECK(queue.empty());
    CHECK(queue.pop() == nullptr);
    for (int i = 0; i < 4; ++i) CHECK(queue.push(&values[i], position));
    CHECK_FALSE(queue.push(&values[4], position));
    CHECK(queue.size() == 4);
    CHECK_FALSE(queue.empty());
    for (int i = 0; i < 4; ++i) CHECK(queue.pop() == &values[i]);
  }
}

TEST_CASE("spmc_ring: what was withdrawn is not popped, what was popped cannot be withdrawn") {
  ring queue(4);
  int a = 0;
  int b = 0;
  int c = 0;
  std::uint64_t at_a = 0;
  std::uint64_t at_b = 0;
  std::uint64_t at_c = 0;
  CHECK(queue.push(&a, at_a));
  CHECK(queue.push(&b, at_b));
  CHECK(queue.push(&c, at_c));
  CHECK(queue.withdraw(&b, at_b));
  CHECK_FALSE(queue.withdraw(&b, at_b));
  CHECK(queue.pop() == &a);
  CHECK_FALSE(queue.withdraw(&a, at_a));
  CHECK(queue.pop() == &c);
  CHECK(queue.pop() == nullptr);
  CHECK(queue.empty());
  // Its cell serves another by now.
  for (int i = 0; i < 4; ++i) CHECK(queue.push(&a, at_c));
  CHECK_FALSE(queue.withdraw(&b, at_b));
}

// Each value is counted once, by the consumer that got it or by the producer that took it back.
TEST_CASE("spmc_ring: several consumers and a producer that takes some back get each value exactly once") {
  constexpr std::size_t values = sanitized ? 40'000 : 400'000;
  std::vector<std::atomic<int>> seen(values);
  base::spmc_ring<std::atomic<int>> queue(64);
  std::atomic<bool> done{false};
  std::atomic<std::size_t> popped{0};
  std::vector<std::thread> consumers;
  for (int i = 0; i < 4; ++i) {
    consumers.emplace_back([&] {
      for (;;) {
        const bool last_look = done.load();
        if (std::atomic<int>* value = queue.pop()) {
          value->fetch_add(1);
          popped.fetch_add(1);
        } else if (last_look) {
          return;
        } else {
          std::this_thread::yield();
        }
      }
    });
  }
  std::size_t withdrawn = 0;
  for (std::size_t i = 0; i < values; ++i) {
    std::uint64_t position = 0;
    while (!queue.push(&seen[i], position)) std::this_thread::yield();
    if (i % 3 == 0 && queue.withdraw(&seen[i], position)) {
      seen[i].fetch_add(1);
      ++withdrawn;
    }
  }
  done = true;
  for (auto& consumer : consumers) consumer.join();
  CHECK(popped + withdrawn == values);
  std::size_t wrong = 0;
  for (const auto& count : seen) wrong += count == 1 ? 0 : 1;
  CHECK(wrong == 0);
  CHECK(withdrawn > 0);
}

}  // namespace
}  // namespace percore::test
