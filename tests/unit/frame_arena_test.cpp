#include "engine/connection/frame_arena.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <utility>
#include <vector>

namespace percore::test {
namespace {

using engine::frame_arena;

constexpr std::size_t header_bytes = 16;

struct arena_of_1024 {
  alignas(64) std::byte memory[1024];
  frame_arena arena;

  arena_of_1024() { arena.reset(memory, sizeof memory); }
  [[nodiscard]] bool contains(const void* p) const { return p >= memory && p < memory + sizeof memory; }
};

bool aligned(const void* p) {
  return reinterpret_cast<std::uintptr_t>(p) % 16 == 0;
}

TEST_CASE_FIXTURE(arena_of_1024, "frame_arena: frames lie in its memory and are aligned to 16 bytes") {
  for (const std::size_t bytes : {1u, 15u, 16u, 17u, 100u}) {
    CAPTURE(bytes);
    void* frame = arena.allocate(bytes);
    REQUIRE(frame != nullptr);
    CHECK(contains(frame));
    CHECK(aligned(frame));
  }
}

TEST_CASE_FIXTURE(arena_of_1024, "frame_arena: the last frame released makes room for the next") {
  void* first = arena.allocate(100);
  void* second = arena.allocate(200);
  CHECK(arena.used() == 112 + 208 + 2 * header_bytes);
  frame_arena::release(second);
  CHECK(arena.used() == 112 + header_bytes);
  void* third = arena.allocate(10);
  CHECK(third == second);
  frame_arena::release(third);
  frame_arena::release(first);
  CHECK(arena.used() == 0);
  CHECK(arena.allocate(1) == first);
}

TEST_CASE_FIXTURE(arena_of_1024, "frame_arena: frames released out of order go with those above them") {
  void* a = arena.allocate(16);
  void* b = arena.allocate(16);
  void* c = arena.allocate(16);
  void* d = arena.allocate(16);
  const std::size_t all = arena.used();
  frame_arena::release(b);
  CHECK(arena.used() == all);
  frame_arena::release(c);
  CHECK(arena.used() == all);
  frame_arena::release(d);  // and with it c and b
  CHECK(arena.used() == all / 4);
  void* again = arena.allocate(16);
  CHECK(again == b);
  frame_arena::release(a);
  CHECK(arena.used() == all / 2);
  frame_arena::release(again);
  CHECK(arena.used() == 0);
}

TEST_CASE_FIXTURE(arena_of_1024, "frame_arena: can be filled to the last byte and no further") {
  constexpr std::size_t half = 512 - header_bytes;
  void* first = arena.allocate(half);
  CHECK(arena.allocate(half + 1) == nullptr);
  void* second = arena.allocate(half);
  REQUIRE(second != nullptr);
  CHECK(arena.used() == 1024);
  CHECK(arena.allocate(0) == nullptr);
  CHECK(arena.allocate_at_end(1) == nullptr);
  CHECK(arena.used() == 1024);
  frame_arena::release(second);
  CHECK(arena.allocate(half) == second);
  frame_arena::release(second);
  frame_arena::release(first);
  CHECK(arena.used() == 0);
}

TEST_CASE_FIXTURE(arena_of_1024, "frame_arena: an impossible size is refused") {
  CHECK(arena.allocate(1025) == nullptr);
  CHECK(arena.allocate(std::size_t{1} << 40) == nullptr);
  CHECK(arena.allocate_at_end(1025) == nullptr);
  CHECK(arena.used() == 0);
  CHECK(arena.allocate(1024 - header_bytes) != nullptr);
}

TEST_CASE_FIXTURE(arena_of_1024, "frame_arena: the end of it is kept apart until reset") {
  void* frame = arena.allocate(100);
  void* context = arena.allocate_at_end(200);
  REQUIRE(context != nullptr);
  CHECK(aligned(context));
  CHECK(contains(context));
  CHECK(static_cast<std::byte*>(context) + 208 == memory + 1024);
  CHECK(arena.used() == 112 + header_bytes);  // it counts frames only

  const std::size_t left = 1024 - 208 - arena.used() - header_bytes;
  CHECK(arena.allocate(left + 1) == nullptr);
  void* rest = arena.allocate(left);
  CHECK(rest != nullptr);
  CHECK(arena.allocate_at_end(16) == nullptr);
  frame_arena::release(rest);
  frame_arena::release(frame);
  CHECK(arena.allocate(1024 - header_bytes) == nullptr);

  arena.reset(memory, sizeof memory);
  CHECK(arena.allocate(1024 - header_bytes) != nullptr);
}

TEST_CASE("frame_arena: without memory it holds nothing") {
  frame_arena arena;
  CHECK(arena.allocate(1) == nullptr);
  alignas(16) std::byte memory[64];
  arena.reset(memory, 31);  // only whole units of 16 bytes count
  CHECK(arena.allocate(1) == nullptr);
  arena.reset(memory, 33);
  CHECK(arena.allocate(16) != nullptr);
}

TEST_CASE_FIXTURE(arena_of_1024, "frame_arena: frames from the heap have the same shape and release") {
  void* inside = arena.allocate(64);
  for (const std::size_t bytes : {0u, 1u, 64u, 100'000u}) {
    void* frame = frame_arena::heap_frame(bytes);
    REQUIRE(frame != nullptr);
    CHECK(aligned(frame));
    CHECK_FALSE(contains(frame));
    std::memset(frame, 0xff, bytes);
    frame_arena::release(frame);
  }
  CHECK(arena.used() == 64 + header_bytes);
  frame_arena::release(inside);
  CHECK(arena.used() == 0);
}

TEST_CASE("frame_arena: a release finds the arena that the frame came from") {
  arena_of_1024 one, two;
  void* in_one = one.arena.allocate(16);
  void* in_two = two.arena.allocate(16);
  frame_arena::release(in_one);
  CHECK(one.arena.used() == 0);
  CHECK(two.arena.used() == 16 + header_bytes);
  frame_arena::release(in_two);
  CHECK(two.arena.used() == 0);
}

TEST_CASE("frame_arena: frames never overlap whatever the order of their releases") {
  for (unsigned seed = 1; seed <= 20; ++seed) {
    CAPTURE(seed);
    std::mt19937 random(seed);
    arena_of_1024 place;
    struct frame {
      unsigned char* bytes;
      std::size_t size;
      unsigned char mark;
    };
    std::vector<frame> frames;
    unsigned refused = 0;
    for (int step = 0; step < 2'000; ++step) {
      if (random() % 2 == 0) {
        const std::size_t size = 1 + random() % 150;
        auto* bytes = static_cast<unsigned char*>(place.arena.allocate(size));
        if (bytes == nullptr) {
          ++refused;
          continue;
        }
        frames.push_back({bytes, size, static_cast<unsigned char>(step)});
        std::memset(bytes, frames.back().mark, size);
      } else if (!frames.empty()) {
        // Mostly the last one, as nested tasks do it.
        if (random() % 3 == 0) std::swap(frames[random() % frames.size()], frames.back());
        const frame gone = frames.back();
        frames.pop_back();
        REQUIRE(
            std::all_of(gone.bytes, gone.bytes + gone.size, [&](unsigned char b) { return b == gone.mark; }));
        frame_arena::release(gone.bytes);
      }
    }
    for (const frame& left : frames) {
      REQUIRE(
          std::all_of(left.bytes, left.bytes + left.size, [&](unsigned char b) { return b == left.mark; }));
      frame_arena::release(left.bytes);
    }
    CHECK(place.arena.used() == 0);
    CHECK(refused > 0);
  }
}

}  // namespace
}  // namespace percore::test
