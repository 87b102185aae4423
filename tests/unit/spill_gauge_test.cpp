#include "engine/connection/spill_gauge.hpp"

#include <utility>

#include <doctest/doctest.h>

namespace percore::engine {
namespace {

constexpr std::int64_t us = 1'000;
constexpr std::int64_t budget = 100 * us;

TEST_CASE("spill gauge: slices within the budget are never slow") {
  spill_gauge gauge(budget);
  for (int i = 0; i < 100'000; ++i) CHECK_FALSE(gauge.note(budget, i * budget));
  CHECK_FALSE(gauge.slow(100'000 * budget));
}

TEST_CASE("spill gauge: one slice, however long, does not make a listener slow, the second does") {
  spill_gauge gauge(budget);
  CHECK_FALSE(gauge.note(1'000'000 * us, 1'000'000 * us));
  CHECK_FALSE(gauge.slow(1'000'000 * us));
  CHECK(gauge.note(1'000 * us, 1'001'000 * us));
  CHECK(gauge.slow(1'001'000 * us));
  CHECK_FALSE(gauge.note(1'000 * us, 1'002'000 * us));  // it is already
}

TEST_CASE("spill gauge: slices that follow each other are slow, though what the first owes could be paid while the second runs") {
  spill_gauge gauge(budget);
  const std::int64_t took = 10 * gauge.memory_of_one_ns();
  CHECK_FALSE(gauge.note(took, took));
  CHECK(gauge.note(took, 2 * took));
}

TEST_CASE("spill gauge: slices a little over the budget count for what they are over") {
  spill_gauge gauge(budget);
  std::int64_t now = 0;
  int slices = 0;
  do {
    now += 2 * budget;
    ++slices;
  } while (!gauge.note(2 * budget, now));
  CHECK(slices == 5);  // more than four budgets
}

TEST_CASE("spill gauge: slow slices that come seldom are forgotten in between") {
  spill_gauge gauge(budget);
  std::int64_t now = 0;
  for (int i = 0; i < 1'000; ++i) {
    now += gauge.memory_of_one_ns() + 50 * budget;
    CHECK_FALSE(gauge.note(50 * budget, now));
  }
}

TEST_CASE("spill gauge: a slow listener is slow until all is forgotten, and not longer than said") {
  spill_gauge gauge(budget);
  std::int64_t now = 0;
  for (int i = 0; i < 100; ++i) (void)gauge.note(50 * budget, now += budget);
  const std::int64_t longest = spill_gauge::payment * spill_gauge::most * budget;
  CHECK(gauge.slow(now + longest / 2));
  CHECK_FALSE(gauge.slow(now + longest));
  CHECK_FALSE(gauge.note(50 * budget, now + longest));  // and begins anew
  CHECK(gauge.note(50 * budget, now + longest));
}

struct timed_core {
  slice_timing timing;
  std::int64_t now = 0;

  explicit timed_core(std::int64_t other_budget = budget) {
    timing.add(budget);
    timing.add(other_budget);
  }
  // One slice in a turn of its own, which has taken so long.
  void one_turn(std::int64_t took) {
    const std::int64_t began = now;
    timing.count();
    now += took;
    timing.look(began, now);
  }
};

TEST_CASE("slice timing: short slices are looked at together, and never one by one") {
  timed_core core(100 * budget);
  int looks = 0;
  const auto look = [&](std::int64_t began) {
    core.timing.look(began, core.now);
    ++looks;
  };
  for (int turn = 0; turn < 1'000; ++turn, core.now += 50 * budget) {  // between turns it sleeps
    const std::int64_t began = core.now;
    for (unsigned i = 0; i < 2 * slice_timing::together; ++i) {
      if (core.timing.full()) look(began);
      core.timing.count();
      core.now += budget / slice_timing::together;
    }
    look(began);
    CHECK_FALSE(core.timing.singly());
  }
  CHECK(looks == 2'000);
}

TEST_CASE("slice timing: some that took longer than the least budget together, twice, are timed from then on, for a while") {
  timed_core core;
  SUBCASE("twice") {
    core.one_turn(1'000 * budget);
    CHECK_FALSE(core.timing.singly());
    core.one_turn(3 * budget);
  }
  SUBCASE("twice, each longer than one is remembered") {
    core.one_turn(1'000 * budget);
    CHECK_FALSE(core.timing.singly());
    core.one_turn(1'000 * budget);
  }
  SUBCASE("a little longer, often") {
    for (int i = 0; i < 6; ++i) {
      CHECK_FALSE(core.timing.singly());
      core.one_turn(2 * budget - budget / 4);
      core.now += budget;
    }
  }
  CHECK(core.timing.singly());
  const std::int64_t memory = spill_gauge::payment * spill_gauge::most * budget;
  CHECK_FALSE(core.timing.over(core.now + spill_gauge::payment * spill_gauge::threshold * budget - 10 * budget));
  CHECK(core.timing.over(core.now + memory + 1));
  core.timing.end();
  CHECK_FALSE(core.timing.singly());
  // What was before the turn is not the slices'.
  for (int i = 3; i < 6; ++i) {
    core.timing.count();
    core.timing.look(i * memory, i * memory + budget);
  }
  CHECK_FALSE(core.timing.singly());
}

TEST_CASE("slice timing: what others had of the CPU is not the slices'") {
  timed_core core;
  std::int64_t others = 9 * budget;
  const auto look = [&](std::int64_t now) { core.timing.look(0, now, [&](std::int64_t took) { return took - others; }); };
  for (int i = 1; i < 10; ++i) look(i * 10 * budget);
  CHECK_FALSE(core.timing.singly());
  others = 2 * budget;
  for (int i = 10; i < 12; ++i) look(i * 10 * budget);
  CHECK(core.timing.singly());
}

TEST_CASE("slice timing: the last slices of a turn are looked at once a turn has begun late, for as long as long ones count") {
  timed_core core;
  const auto turn = [&](std::int64_t after) {
    const std::int64_t before = core.now;
    core.now += after;
    const bool late = core.timing.begin_turn(before, core.now);
    core.timing.count();
    return late;
  };
  const auto look_if_pending = [&] {
    if (!core.timing.pending()) return false;
    core.timing.look(core.now, core.now);
    return true;
  };
  for (int i = 0; i < 1'000; ++i) {
    CHECK_FALSE(turn(budget));
    CHECK_FALSE(look_if_pending());
  }
  CHECK(turn(budget + 1));
  const std::int64_t until = core.now + spill_gauge::payment * spill_gauge::threshold * budget;
  CHECK(look_if_pending());
  while (core.now < until) {
    CHECK_FALSE(turn(budget));
    CHECK(look_if_pending());
  }
  CHECK_FALSE(turn(budget));
  CHECK(look_if_pending());  // by which it learns the time
  CHECK_FALSE(turn(budget));
  CHECK_FALSE(look_if_pending());
  // A look amidst a long turn leaves its last slices to be looked at.
  CHECK(turn(2 * budget));
  core.timing.look(core.now, core.now + 1'000 * budget);
  core.timing.count();
  CHECK(look_if_pending());
}

TEST_CASE("slice timing: a listener with a small budget does not hide the slow slices of one with a great one") {
  timed_core core(200 * budget);
  core.one_turn(600 * budget);
  CHECK_FALSE(core.timing.singly());
  const std::int64_t before = std::exchange(core.now, core.now + 1'400 * budget);
  CHECK(core.timing.begin_turn(before, core.now));
  core.one_turn(600 * budget);
  CHECK_FALSE(core.timing.singly());
  core.one_turn(600 * budget);
  CHECK(core.timing.singly());
  CHECK_FALSE(core.timing.over(core.now + 1'400 * budget));
}

TEST_CASE("slice timing: what is longer now and then is forgotten") {
  timed_core core;
  for (int i = 0; i < 1'000; ++i) {
    core.one_turn(1'000 * budget);
    core.now += spill_gauge::payment * spill_gauge::threshold * budget;
  }
  CHECK_FALSE(core.timing.singly());
}

}  // namespace
}  // namespace percore::engine
