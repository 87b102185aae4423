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

}  // namespace
}  // namespace percore::engine
