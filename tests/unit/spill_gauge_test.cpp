#include "engine/connection/spill_gauge.hpp"

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
    now += spill_gauge::payment * spill_gauge::threshold * budget;
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

TEST_CASE("slice timing: short slices are looked at together, and never one by one") {
  slice_timing timing;
  timing.add(spill_gauge(budget));
  timing.add(spill_gauge(100 * budget));
  std::int64_t now = 0;
  int looks = 0;
  for (int turn = 0; turn < 1'000; ++turn, now += 50 * budget) {  // between turns it sleeps
    const std::int64_t begun = now;
    for (unsigned i = 0; i < 2 * slice_timing::together; ++i) {
      now += budget / slice_timing::together;
      if (!timing.count(begun)) continue;
      timing.look(now);
      ++looks;
    }
    CHECK_FALSE(timing.pending());
    CHECK_FALSE(timing.singly());
  }
  CHECK(looks == 2'000);
}

// One slice in a turn of its own, which has taken so long.
void one_turn(slice_timing& timing, std::int64_t& now, std::int64_t took) {
  CHECK_FALSE(timing.count(now));
  CHECK(timing.pending());
  now += took;
  timing.look(now);
  CHECK_FALSE(timing.pending());
}

TEST_CASE("slice timing: some that took much longer than the least budget together are timed from then on, for a while") {
  slice_timing timing;
  timing.add(spill_gauge(budget));
  std::int64_t now = 0;
  SUBCASE("once") { one_turn(timing, now, 3 * budget + 1); }
  SUBCASE("a little longer, often") {
    for (int i = 0; i < 4; ++i) {
      CHECK_FALSE(timing.singly());
      one_turn(timing, now, 2 * budget - budget / 4);
      now += 10 * budget;
    }
    now -= 10 * budget;
  }
  CHECK(timing.singly());
  const std::int64_t memory = spill_gauge::payment * spill_gauge::most * budget;
  CHECK_FALSE(timing.over(now + spill_gauge::payment * 2 * budget));
  CHECK(timing.over(now + memory + 1));
  timing.end();
  CHECK_FALSE(timing.singly());
  CHECK_FALSE(timing.count(3 * memory));  // what was before the turn is not the slice's
  timing.look(3 * memory + budget);
  CHECK_FALSE(timing.singly());
}

TEST_CASE("slice timing: what others had of the CPU is not the slices'") {
  slice_timing timing;
  timing.add(spill_gauge(budget));
  CHECK_FALSE(timing.count(0));
  timing.look(1'000 * budget, [](std::int64_t took) { return took - 998 * budget; });
  CHECK_FALSE(timing.singly());
  CHECK_FALSE(timing.count(1'000 * budget));
  timing.look(2'000 * budget, [](std::int64_t took) { return took - 990 * budget; });
  CHECK(timing.singly());
}

TEST_CASE("slice timing: what is a little longer now and then is forgotten") {
  slice_timing timing;
  timing.add(spill_gauge(budget));
  std::int64_t now = 0;
  for (int i = 0; i < 1'000; ++i) {
    one_turn(timing, now, 3 * budget);
    now += 2 * spill_gauge::payment * budget;
  }
  CHECK_FALSE(timing.singly());
}

}  // namespace
}  // namespace percore::engine
