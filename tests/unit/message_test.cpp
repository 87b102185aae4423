#include <percore/detail/message.hpp>

#include <doctest/doctest.h>

#include <array>
#include <cstddef>
#include <memory>
#include <new>
#include <stdexcept>
#include <type_traits>
#include <utility>
#include <vector>

#include "tests/support/bare_core.hpp"
#include "tests/support/clean_process.hpp"

namespace percore::test {
namespace {

using detail::message;

// A closure of a given size that counts its heap allocations, its lives (through `alive`) and its calls.
template <std::size_t Bytes, std::size_t Alignment = 8, bool NothrowMove = true>
struct alignas(Alignment) closure {
  static inline int allocations = 0;
  int* calls;
  std::array<char, Bytes - sizeof(int*)> rest{};

  explicit closure(int& counter) : calls(&counter) {}
  closure(const closure&) = default;
  closure(closure&& other) noexcept(NothrowMove) : calls(other.calls), rest(other.rest) {}
  void operator()(engine::core_resources&) { ++*calls; }

  static void* operator new(std::size_t size, std::align_val_t alignment) {
    ++allocations;
    return ::operator new(size, alignment);
  }
  static void* operator new(std::size_t size) {
    ++allocations;
    return ::operator new(size);
  }
  static void* operator new(std::size_t, void* place) noexcept { return place; }
  static void operator delete(void* p) { ::operator delete(p); }
  static void operator delete(void* p, std::align_val_t alignment) { ::operator delete(p, alignment); }
};

template <class Closure>
int allocations_of_one_run(engine::core_resources& core) {
  Closure::allocations = 0;
  int calls = 0;
  message first{Closure(calls)};
  message second(std::move(first));
  second(core);
  CHECK(calls == 1);
  return Closure::allocations;
}

TEST_CASE_FIXTURE(clean_process, "message: small closures lie in place and others on the heap") {
  bare_core core;
  CHECK(allocations_of_one_run<closure<16>>(*core) == 0);
  CHECK(allocations_of_one_run<closure<message::inline_bytes>>(*core) == 0);
  CHECK(allocations_of_one_run<closure<message::inline_bytes + 8>>(*core) == 1);
  CHECK(allocations_of_one_run<closure<4096>>(*core) == 1);
  CHECK(allocations_of_one_run<closure<16, 16>>(*core) == 1);  // more aligned than the place
  CHECK(allocations_of_one_run<closure<128, 64>>(*core) == 1);
  CHECK(allocations_of_one_run<closure<16, 8, false>>(*core) == 1);  // moving it could throw
}

TEST_CASE("message: fits a cache line together with the sequence number of its ring cell") {
  CHECK(sizeof(message) + sizeof(std::uint64_t) <= 64);
}

// A closure with `alive` inside of it: small, and with a payload that sends it to the heap.
auto small(int& calls) {
  return [&calls, probe = alive()](engine::core_resources&) { ++calls; };
}
auto large(int& calls) {
  return [&calls, probe = alive(), payload = std::array<char, 100>{}](engine::core_resources&) {
    calls += 1 + payload[0];
  };
}

template <class Make>
void check_lives(engine::core_resources& core, Make make) {
  int calls = 0;
  SUBCASE("destroyed without having run") {
    {
      message unused(make(calls));
      CHECK(alive::count() == 1);
    }
    CHECK(calls == 0);
  }
  SUBCASE("run and destroyed") {
    {
      message used(make(calls));
      used(core);
      CHECK(alive::count() == 1);
    }
    CHECK(calls == 1);
  }
  SUBCASE("moved, run and destroyed") {
    {
      message first(make(calls));
      message second(std::move(first));
      CHECK_FALSE(first);
      CHECK(second);
      CHECK(alive::count() == 1);
      message third;
      CHECK_FALSE(third);
      third = std::move(second);
      CHECK_FALSE(second);
      CHECK(alive::count() == 1);
      third(core);
    }
    CHECK(calls == 1);
  }
  SUBCASE("assignment destroys what the target held") {
    {
      message first(make(calls));
      message second(make(calls));
      CHECK(alive::count() == 2);
      second = std::move(first);
      CHECK(alive::count() == 1);
      second = message();
      CHECK(alive::count() == 0);
      CHECK_FALSE(second);
    }
  }
  SUBCASE("assignment to itself changes nothing") {
    message one(make(calls));
    message& same = one;
    one = std::move(same);
    CHECK(alive::count() == 1);
    one(core);
    CHECK(calls == 1);
  }
  SUBCASE("many of them in a growing vector") {
    {
      std::vector<message> all;
      for (int i = 0; i < 50; ++i) all.emplace_back(make(calls));
      CHECK(alive::count() == 50);
      for (auto& each : all) each(core);
    }
    CHECK(calls == 50);
  }
}

TEST_CASE_FIXTURE(clean_process, "message: a closure in place is destroyed exactly once") {
  bare_core core;
  check_lives(*core, small);
  CHECK(alive::count() == 0);
}

TEST_CASE_FIXTURE(clean_process, "message: a closure on the heap is destroyed exactly once") {
  bare_core core;
  check_lives(*core, large);
  CHECK(alive::count() == 0);
}

TEST_CASE_FIXTURE(clean_process, "message: captures can be move-only and are changed in place") {
  bare_core core;
  int sum = 0;
  auto value = std::make_unique<int>(20);
  message first([&sum, value = std::move(value)](engine::core_resources&) mutable { sum += (*value)++; });
  message second(std::move(first));
  second(*core);
  second(*core);
  CHECK(sum == 41);
  CHECK_FALSE(std::is_copy_constructible_v<message>);
}

TEST_CASE_FIXTURE(clean_process, "message: is given the core that runs it") {
  bare_core core;
  engine::core_resources* seen = nullptr;
  message look([&seen](engine::core_resources& running) { seen = &running; });
  look(*core);
  CHECK(seen == &*core);
}

TEST_CASE_FIXTURE(clean_process, "message: a closure given as an lvalue is copied") {
  bare_core core;
  const auto value = std::make_shared<int>(0);
  const auto increment = [value](engine::core_resources&) { ++*value; };
  {
    message copy(increment);
    CHECK(value.use_count() == 3);
    copy(*core);
  }
  CHECK(value.use_count() == 2);
  CHECK(*value == 1);
}

struct refuses_to_be_copied {
  alive probe;
  refuses_to_be_copied() = default;
  refuses_to_be_copied(const refuses_to_be_copied&) { throw std::runtime_error("no copy"); }
  void operator()(engine::core_resources&) {}
};

TEST_CASE_FIXTURE(clean_process,
                  "message: a closure that throws while it is captured leaves nothing behind") {
  const refuses_to_be_copied original;
  CHECK_THROWS_AS(message{original}, std::runtime_error);
  CHECK(alive::count() == 1);
}

TEST_CASE_FIXTURE(clean_process,
                  "message: an exception of the closure reaches the caller and the closure dies once") {
  bare_core core;
  {
    message fails([probe = alive()](engine::core_resources&) { throw std::runtime_error("posted"); });
    CHECK_THROWS_AS(fails(*core), std::runtime_error);
    CHECK(alive::count() == 1);
  }
  CHECK(alive::count() == 0);
}

}  // namespace
}  // namespace percore::test
