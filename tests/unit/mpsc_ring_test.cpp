#include "engine/base/mpsc_ring.hpp"

#include <doctest/doctest.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <deque>
#include <latch>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "tests/support/waiting.hpp"

namespace percore::test {
namespace {

using base::mpsc_ring;
using base::push_result;

TEST_CASE("mpsc_ring: the capacity is rounded up to a power of two") {
  CHECK(mpsc_ring<int>(0).capacity() == 2);
  CHECK(mpsc_ring<int>(1).capacity() == 2);
  CHECK(mpsc_ring<int>(2).capacity() == 2);
  CHECK(mpsc_ring<int>(3).capacity() == 4);
  CHECK(mpsc_ring<int>(4096).capacity() == 4096);
  CHECK(mpsc_ring<int>(4097).capacity() == 8192);
}

TEST_CASE("mpsc_ring: takes as many as its capacity and answers full after that") {
  mpsc_ring<int> ring(4);
  CHECK(ring.empty());
  CHECK_FALSE(ring.pop());
  for (int i = 0; i < 4; ++i) CHECK(ring.push(int{i}) == push_result::pushed);
  CHECK_FALSE(ring.empty());
  CHECK(ring.push(4) == push_result::full);
  CHECK(ring.push(4) == push_result::full);
  CHECK(ring.pop() == 0);
  CHECK(ring.push(4) == push_result::pushed);
  CHECK(ring.push(5) == push_result::full);
  for (int i = 1; i < 5; ++i) CHECK(ring.pop() == i);
  CHECK_FALSE(ring.pop());
  CHECK(ring.empty());
}

TEST_CASE("mpsc_ring: wraps around many times at every fill level") {
  for (const std::size_t capacity : {2u, 4u, 64u}) {
    CAPTURE(capacity);
    std::mt19937 random(static_cast<unsigned>(capacity));
    mpsc_ring<std::uint64_t> ring(capacity);
    std::deque<std::uint64_t> model;
    std::uint64_t next = 0;
    for (int step = 0; step < 20'000; ++step) {
      if (random() % 2 == 0) {
        const bool fits = model.size() < capacity;
        const std::uint64_t value = next;
        REQUIRE(ring.push(std::uint64_t{value}) == (fits ? push_result::pushed : push_result::full));
        if (fits) model.push_back(next++);
      } else {
        const auto popped = ring.pop();
        REQUIRE(popped.has_value() == !model.empty());
        if (!popped) continue;
        REQUIRE(*popped == model.front());
        model.pop_front();
      }
      REQUIRE(ring.empty() == model.empty());
    }
    CHECK(next > 10 * capacity);
  }
}

TEST_CASE("mpsc_ring: a value is moved from only when it was pushed") {
  mpsc_ring<std::unique_ptr<int>> ring(2);
  auto value = std::make_unique<int>(1);
  CHECK(ring.push(std::move(value)) == push_result::pushed);
  CHECK(value == nullptr);
  CHECK(ring.push(std::make_unique<int>(2)) == push_result::pushed);
  value = std::make_unique<int>(3);
  CHECK(ring.push(std::move(value)) == push_result::full);
  CHECK(value != nullptr);
  ring.close();
  CHECK(ring.push(std::move(value)) == push_result::closed);
  CHECK(value != nullptr);
}

TEST_CASE("mpsc_ring: keeps no copy of what was popped and destroys what was not") {
  const auto value = std::make_shared<int>(7);
  {
    mpsc_ring<std::shared_ptr<int>> ring(4);
    for (int i = 0; i < 3; ++i) CHECK(ring.push(std::shared_ptr<int>(value)) == push_result::pushed);
    CHECK(value.use_count() == 4);
    CHECK(ring.pop() == value);
    CHECK(value.use_count() == 3);
  }
  CHECK(value.use_count() == 1);
}

TEST_CASE("mpsc_ring: after close nothing is taken and what it holds can be popped") {
  mpsc_ring<int> ring(4);
  CHECK(ring.push(1) == push_result::pushed);
  CHECK(ring.push(2) == push_result::pushed);
  ring.close();
  CHECK(ring.push(3) == push_result::closed);
  CHECK_FALSE(ring.drained());
  CHECK(ring.pop() == 1);
  CHECK_FALSE(ring.drained());
  CHECK(ring.push(3) == push_result::closed);
  CHECK(ring.pop() == 2);
  CHECK(ring.drained());
  CHECK_FALSE(ring.pop());
  ring.close();
  CHECK(ring.drained());
  CHECK(ring.push(3) == push_result::closed);
}

TEST_CASE("mpsc_ring: a full ring that is closed answers closed") {
  mpsc_ring<int> ring(2);
  while (ring.push(1) == push_result::pushed) {
  }
  ring.close();
  CHECK(ring.push(1) == push_result::closed);
  CHECK(ring.pop() == 1);
  CHECK(ring.push(1) == push_result::closed);
  CHECK(ring.pop() == 1);
  CHECK(ring.drained());
}

TEST_CASE("mpsc_ring: an empty ring is drained once it is closed") {
  mpsc_ring<int> ring(2);
  CHECK(ring.drained());  // nothing is under way
  ring.close();
  CHECK(ring.drained());
}

// --- with threads ----------------------------------------------------------------------------------------

constexpr unsigned producers = 3;

// More than a cache line's worth of plain memory, so that a cell that is read before it is written shows: to
// ThreadSanitizer as a race, to everybody as a wrong check sum.
struct parcel {
  std::uint64_t producer = 0;
  std::uint64_t number = 0;
  std::array<std::uint64_t, 8> payload{};

  parcel() = default;
  parcel(std::uint64_t from, std::uint64_t count) : producer(from), number(count) {
    payload.fill(from ^ count);
  }
  [[nodiscard]] bool whole() const {
    for (const auto word : payload) {
      if (word != (producer ^ number)) return false;
    }
    return true;
  }
};

// What the consumer has seen: of each producer the numbers 0, 1, 2, ... in order.
struct receipts {
  std::array<std::uint64_t, producers> next{};
  bool in_order = true;
  bool whole = true;

  void book(const parcel& got) {
    whole = whole && got.whole();
    if (got.number != next[got.producer]) in_order = false;
    next[got.producer] = got.number + 1;
  }
};

TEST_CASE("mpsc_ring: with several producers each value arrives once and in its producer's order") {
  for (const std::size_t capacity : {2u, 8u, 1024u}) {
    CAPTURE(capacity);
    // A small ring is full most of the time, and each time costs a switch of threads.
    const std::uint64_t per_producer = (sanitized ? 10'000u : 100'000u) / (capacity < 1024 ? 10 : 1);
    mpsc_ring<parcel> ring(capacity);
    std::latch start(producers + 1);
    std::vector<std::jthread> threads;
    for (unsigned producer = 0; producer < producers; ++producer) {
      threads.emplace_back([&, producer] {
        start.arrive_and_wait();
        for (std::uint64_t number = 0; number < per_producer; ++number) {
          while (ring.push(parcel(producer, number)) != push_result::pushed) std::this_thread::yield();
        }
      });
    }
    start.arrive_and_wait();
    receipts seen;
    for (std::uint64_t count = 0; count < producers * per_producer;) {
      if (const auto got = ring.pop()) {
        seen.book(*got);
        ++count;
      } else {
        std::this_thread::yield();
      }
    }
    CHECK(seen.whole);
    CHECK(seen.in_order);
    for (const auto next : seen.next) CHECK(next == per_producer);
    CHECK(ring.empty());
    CHECK_FALSE(ring.pop());
  }
}

TEST_CASE("mpsc_ring: what was accepted before a concurrent close is popped") {
  constexpr int rounds = sanitized ? 200 : 2'000;
  std::mt19937 random(1);
  for (int round = 0; round < rounds; ++round) {
    mpsc_ring<parcel> ring(16);
    std::latch start(producers + 1);
    std::array<std::uint64_t, producers> accepted{};
    std::atomic<unsigned> ended{0};
    std::vector<std::jthread> threads;
    for (unsigned producer = 0; producer < producers; ++producer) {
      threads.emplace_back([&, producer] {
        start.arrive_and_wait();
        for (;;) {
          const auto result = ring.push(parcel(producer, accepted[producer]));
          if (result == push_result::closed) break;
          if (result == push_result::pushed) {
            ++accepted[producer];
          } else {
            std::this_thread::yield();
          }
        }
        ++ended;
      });
    }
    start.arrive_and_wait();
    receipts seen;
    for (std::uint64_t before_close = random() % 100; before_close > 0; --before_close) {
      if (const auto got = ring.pop()) seen.book(*got);
    }
    ring.close();
    // Producers end although nobody makes room for them, and drained() waits for those that are still
    // writing.
    while (!ring.drained()) {
      if (const auto got = ring.pop()) seen.book(*got);
    }
    for (auto& thread : threads) thread.join();
    REQUIRE_FALSE(ring.pop());
    REQUIRE(seen.whole);
    REQUIRE(seen.in_order);
    REQUIRE(seen.next == accepted);
    REQUIRE(ended == producers);
  }
}

}  // namespace
}  // namespace percore::test
