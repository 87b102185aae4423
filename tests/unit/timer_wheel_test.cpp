#include "engine/loop/timer_wheel.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <vector>

namespace percore::test {
namespace {

using loop::timer_wheel;

constexpr std::uint64_t span = std::uint64_t{1} << 36;

// A timer that runs a function of the test.
struct timer : detail::timer_node {
  std::function<void()> action;
  int fired = 0;

  explicit timer(std::function<void()> what = {}) : action(std::move(what)) {
    fire = [](detail::timer_node& node) {
      auto& self = static_cast<timer&>(node);
      CHECK_FALSE(self.linked());
      ++self.fired;
      if (self.action) self.action();
    };
  }
};

// --- single rules ----------------------------------------------------------------------------------------

TEST_CASE("timer_wheel: times are rounded so that nothing fires early") {
  constexpr std::int64_t tick = timer_wheel::tick_ns;
  CHECK(timer_wheel::tick_of(0) == 0);
  CHECK(timer_wheel::tick_of(tick - 1) == 0);
  CHECK(timer_wheel::tick_of(tick) == 1);
  CHECK(timer_wheel::tick_from(0) == 0);
  CHECK(timer_wheel::tick_from(1) == 1);
  CHECK(timer_wheel::tick_from(tick) == 1);
  CHECK(timer_wheel::tick_from(tick + 1) == 2);
}

TEST_CASE("timer_wheel: an empty one has nothing to do") {
  timer_wheel wheel(5);
  CHECK(wheel.next_tick() == timer_wheel::never);
  wheel.advance(1000);
  wheel.advance(10 * span);
  CHECK(wheel.next_tick() == timer_wheel::never);
}

TEST_CASE("timer_wheel: fires at its deadline and not before") {
  for (const std::uint64_t now : {std::uint64_t{0}, std::uint64_t{63}, std::uint64_t{64}, std::uint64_t{4095},
                                  span - 1, span, 7 * span + 12345}) {
    for (const std::uint64_t wait :
         {std::uint64_t{1}, std::uint64_t{2}, std::uint64_t{63}, std::uint64_t{64}, std::uint64_t{65},
          std::uint64_t{4096}, std::uint64_t{1} << 30, span - 1, span, span + 1, 5 * span + 77}) {
      CAPTURE(now);
      CAPTURE(wait);
      timer_wheel wheel(now);
      timer t;
      wheel.insert(t, now + wait);
      CHECK(wheel.next_tick() > now);
      CHECK(wheel.next_tick() <= now + wait);
      wheel.advance(now);
      wheel.advance(now + wait - 1);
      CHECK(t.fired == 0);
      CHECK(t.linked());
      CHECK(wheel.next_tick() == now + wait);
      wheel.advance(now + wait);
      CHECK(t.fired == 1);
      CHECK_FALSE(t.linked());
      wheel.advance(now + wait + 10 * span);
      CHECK(t.fired == 1);
    }
  }
}

TEST_CASE("timer_wheel: a deadline that has passed fires at the next tick") {
  timer_wheel wheel(1000);
  timer past, now;
  wheel.insert(past, 0);
  wheel.insert(now, 1000);
  CHECK(wheel.next_tick() == 1001);
  wheel.advance(1000);
  CHECK(past.fired + now.fired == 0);
  wheel.advance(1001);
  CHECK(past.fired == 1);
  CHECK(now.fired == 1);
}

TEST_CASE("timer_wheel: going back in time fires nothing and loses nothing") {
  timer_wheel wheel(1000);
  timer t;
  wheel.insert(t, 1010);
  wheel.advance(1005);
  wheel.advance(900);
  CHECK(t.fired == 0);
  wheel.advance(1010);
  CHECK(t.fired == 1);
}

TEST_CASE("timer_wheel: fires in the order of deadlines however far one advance goes") {
  timer_wheel wheel(100);
  std::vector<std::uint64_t> order;
  std::vector<std::unique_ptr<timer>> timers;
  for (const std::uint64_t deadline :
       {span + 500, std::uint64_t{101}, std::uint64_t{70'000}, std::uint64_t{163}, std::uint64_t{1} << 33,
        std::uint64_t{5000}, std::uint64_t{164}}) {
    timers.push_back(std::make_unique<timer>([&order, deadline] { order.push_back(deadline); }));
    wheel.insert(*timers.back(), deadline);
  }
  wheel.advance(2 * span);
  CHECK(order.size() == timers.size());
  CHECK(std::is_sorted(order.begin(), order.end()));
}

// A deadline beyond the span of the wheel waits in a list of the top level; it must not stand before those
// that are nearer.
TEST_CASE("timer_wheel: a deadline beyond the span hides no nearer one") {
  constexpr std::uint64_t top_list = std::uint64_t{1} << 30;  // ticks that one list of the top level is wide
  for (const std::uint64_t now :
       {std::uint64_t{0}, std::uint64_t{1}, top_list - 1, top_list, 70 * top_list + 12345}) {
    for (const std::uint64_t far : {span - top_list, span - 1, span, span + 1, 2 * span, 100 * span}) {
      for (const std::uint64_t near : {top_list, 5 * top_list + 99, 62 * top_list}) {
        CAPTURE(now);
        CAPTURE(far);
        CAPTURE(near);
        timer_wheel wheel(now);
        timer far_one, near_one;
        wheel.insert(far_one, now + far);
        wheel.insert(near_one, now + near);
        CHECK(wheel.next_tick() <= now + near);
        wheel.advance(now + near - 1);
        CHECK(near_one.fired == 0);
        wheel.advance(now + near);
        CHECK(near_one.fired == 1);
        CHECK(far_one.fired == 0);
        wheel.advance(now + far - 1);
        CHECK(far_one.fired == 0);
        wheel.advance(now + far);
        CHECK(far_one.fired == 1);
      }
    }
  }
}

TEST_CASE("timer_wheel: a cancelled timer does not fire") {
  timer_wheel wheel(0);
  timer kept, cancelled;
  wheel.insert(kept, 50);
  wheel.insert(cancelled, 50);
  cancelled.unlink();
  wheel.advance(60);
  CHECK(kept.fired == 1);
  CHECK(cancelled.fired == 0);
  wheel.insert(cancelled, 70);
  wheel.advance(70);
  CHECK(cancelled.fired == 1);
}

TEST_CASE("timer_wheel: a timer that dies while it waits is forgotten") {
  timer_wheel wheel(0);
  timer before, after;
  wheel.insert(before, 5000);
  {
    timer gone;
    wheel.insert(gone, 5000);
    wheel.insert(after, 5000);
  }
  wheel.advance(5000);
  CHECK(before.fired == 1);
  CHECK(after.fired == 1);
}

TEST_CASE("timer_wheel: a wheel that dies leaves its timers unlinked") {
  timer near, far;
  {
    timer_wheel wheel(0);
    wheel.insert(near, 1);
    wheel.insert(far, 3 * span);
  }
  CHECK_FALSE(near.linked());
  CHECK_FALSE(far.linked());
  CHECK(near.fired + far.fired == 0);
}

TEST_CASE("timer_wheel: a list that cancellations have emptied costs one early tick at most") {
  timer_wheel wheel(0);
  timer t;
  wheel.insert(t, 1000);
  t.unlink();
  if (wheel.next_tick() != timer_wheel::never) wheel.advance(wheel.next_tick());
  CHECK(wheel.next_tick() == timer_wheel::never);
}

// --- callbacks -------------------------------------------------------------------------------------------

TEST_CASE("timer_wheel: a callback may insert its own timer again") {
  timer_wheel wheel(0);
  std::vector<std::uint64_t> ticks;
  timer periodic;
  std::uint64_t next = 10;
  periodic.action = [&] {
    ticks.push_back(next);
    next += 10;
    wheel.insert(periodic, next);
  };
  wheel.insert(periodic, next);
  wheel.advance(45);
  CHECK(ticks == std::vector<std::uint64_t>{10, 20, 30, 40});
  CHECK(wheel.next_tick() == 50);
}

TEST_CASE("timer_wheel: what a callback inserts as passed comes at the following tick") {
  timer_wheel wheel(0);
  timer second;
  timer first([&] { wheel.insert(second, 3); });
  wheel.insert(first, 63);
  wheel.advance(63);
  CHECK(second.fired == 0);  // not in the same tick, or a callback could hold the core for ever
  CHECK(wheel.next_tick() == 64);
  wheel.advance(64);
  CHECK(second.fired == 1);
}

TEST_CASE("timer_wheel: a callback may cancel others that are due in the same tick") {
  timer_wheel wheel(0);
  timer victim, later;
  timer killer([&] {
    victim.unlink();
    later.unlink();
  });
  timer last;
  wheel.insert(killer, 64);
  wheel.insert(victim, 64);
  wheel.insert(last, 64);
  wheel.insert(later, 100);
  wheel.advance(200);
  CHECK(killer.fired == 1);
  CHECK(victim.fired == 0);
  CHECK(later.fired == 0);
  CHECK(last.fired == 1);
}

TEST_CASE("timer_wheel: a callback may destroy timers and its own among them") {
  timer_wheel wheel(0);
  auto own = std::make_unique<timer>();
  auto other = std::make_unique<timer>();
  timer last;
  own->action = [&] {
    other.reset();
    own.reset();
  };
  wheel.insert(*own, 10);
  wheel.insert(*other, 10);
  wheel.insert(last, 10);
  wheel.advance(10);
  CHECK(own == nullptr);
  CHECK(other == nullptr);
  CHECK(last.fired == 1);
}

TEST_CASE("timer_wheel: a callback may move another timer") {
  timer_wheel wheel(0);
  timer moved;
  timer mover([&] {
    moved.unlink();
    wheel.insert(moved, 500);
  });
  wheel.insert(mover, 128);
  wheel.insert(moved, 128);
  wheel.advance(499);
  CHECK(moved.fired == 0);
  wheel.advance(500);
  CHECK(moved.fired == 1);
}

// --- against a model -------------------------------------------------------------------------------------

// The wheel beside a std::multimap, which knows the right answer: a timer fires in the first advance() that
// reaches its deadline, or the tick after its insertion if that is later; in the order of those.
class model_run {
 public:
  model_run(std::uint64_t seed, std::uint64_t start)
      : random_(seed), now_(start), reached_(start), wheel_(start) {}

  void run(int steps) {
    for (int i = 0; i < steps; ++i) {
      const auto choice = random_() % 100;
      if (choice < 45) {
        insert_some();
      } else if (choice < 60) {
        cancel_one();
      } else if (choice < 65) {
        destroy_one();
      } else {
        advance();
      }
      check_next_tick();
    }
    // All that is left fires in the end.
    while (!waiting_.empty()) advance_to(waiting_.rbegin()->first);
  }

 private:
  struct model_timer : timer {
    std::optional<std::multimap<std::uint64_t, model_timer*>::iterator> place;
  };

  // Of any magnitude up to beyond the span, and often next to a power of two, where levels begin and end.
  std::uint64_t some_distance() {
    const std::uint64_t power = std::uint64_t{1} << random_() % 40;
    switch (random_() % 4) {
      case 0:
        return power;
      case 1:
        return power - 1;
      default:
        return random_() % power;
    }
  }
  std::uint64_t some_deadline() {
    if (random_() % 16 == 0) return reached_ - std::min(reached_, some_distance());
    std::uint64_t deadline = reached_ + some_distance();
    if (random_() % 4 == 0) deadline &= ~((std::uint64_t{1} << random_() % 36) - 1);  // where lists begin
    return deadline;
  }

  void insert_some() {
    auto made = std::make_unique<model_timer>();
    model_timer& t = *made;
    t.action = [this, &t] { on_fire(t); };
    timers_.push_back(std::move(made));
    insert(t, some_deadline());
  }
  void insert(model_timer& t, std::uint64_t deadline) {
    wheel_.insert(t, deadline);
    t.place = waiting_.emplace(std::max(deadline, reached_ + 1), &t);
  }
  void forget(model_timer& t) {
    waiting_.erase(*t.place);
    t.place.reset();
  }
  std::unique_ptr<model_timer>* some_timer() {
    return timers_.empty() ? nullptr : &timers_[random_() % timers_.size()];
  }
  void cancel_one() {
    if (auto* chosen = some_timer(); chosen && (*chosen)->place) {
      forget(**chosen);
      (*chosen)->unlink();
    }
  }
  void destroy_one() {
    if (auto* chosen = some_timer()) {
      if ((*chosen)->place) forget(**chosen);
      std::swap(*chosen, timers_.back());
      timers_.pop_back();
    }
  }

  // Nothing may throw through advance(), so what is wrong here is told afterwards.
  void on_fire(model_timer& t) {
    if (!t.place) {  // it was cancelled, or fires twice
      fired_wrongly_ = true;
      return;
    }
    const std::uint64_t due = (*t.place)->first;
    if (due > now_) fired_early_ = true;
    if (due < reached_ || due != waiting_.begin()->first) fired_late_ = true;
    reached_ = due;
    forget(t);
    // Callbacks do what users' do: nothing, start themselves or another again, cancel another.
    switch (random_() % 8) {
      case 0:
        insert(t, some_deadline());
        break;
      case 1:
        insert_some();
        break;
      case 2:
        cancel_one();
        break;
      default:
        break;
    }
  }

  void advance() {
    switch (random_() % 5) {
      case 0:  // as the loop does
        if (const auto next = wheel_.next_tick(); next != timer_wheel::never) advance_to(next);
        break;
      case 1:  // to just before something is due
        if (!waiting_.empty()) advance_to(waiting_.begin()->first - 1);
        break;
      case 2:
        if (!waiting_.empty()) advance_to(waiting_.begin()->first);
        break;
      default:
        advance_to(now_ + some_distance());
        break;
    }
  }
  void advance_to(std::uint64_t now) {
    now_ = now;
    wheel_.advance(now);
    reached_ = now;
    REQUIRE_FALSE(fired_wrongly_);
    REQUIRE_FALSE(fired_early_);
    REQUIRE_FALSE(fired_late_);
    REQUIRE((waiting_.empty() || waiting_.begin()->first > now));  // what was due has fired
  }
  void check_next_tick() {
    const std::uint64_t next = wheel_.next_tick();
    REQUIRE(next > now_);  // else the loop would not sleep
    if (!waiting_.empty()) REQUIRE(next <= waiting_.begin()->first);
  }

  std::mt19937_64 random_;
  std::uint64_t now_;
  std::uint64_t reached_;  // the wheel's own time: during advance() the tick that fires
  bool fired_wrongly_ = false;
  bool fired_early_ = false;
  bool fired_late_ = false;
  std::multimap<std::uint64_t, model_timer*> waiting_;
  timer_wheel wheel_;
  std::vector<std::unique_ptr<model_timer>> timers_;
};

TEST_CASE("timer_wheel: behaves as an ordered map does") {
  for (std::uint64_t seed = 1; seed <= 40; ++seed) {
    CAPTURE(seed);
    const std::array<std::uint64_t, 5> starts{0, 1, span - 3, std::uint64_t{1} << 30, 0x123'4567'89ab};
    model_run(seed, starts[seed % starts.size()]).run(2'000);
  }
}

}  // namespace
}  // namespace percore::test
