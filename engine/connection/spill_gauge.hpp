#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <limits>
#include <vector>

namespace percore::engine {

// What is owed, of which the passing of time pays a 64th of itself, but for time that is owed for.
class time_debt {
 public:
  static constexpr std::int64_t payment = 64;  // the part of time that pays

  void pay(std::int64_t now_ns) noexcept {
    const std::int64_t paid = (now_ns - paid_at_ns_) / payment;
    if (paid <= 0) return;
    owed_ns_ = std::max<std::int64_t>(owed_ns_ - paid, 0);
    paid_at_ns_ = now_ns;
  }
  // For a time that has ended at `now_ns` and took so long.
  void add(std::int64_t ns, std::int64_t most_ns, std::int64_t took_ns, std::int64_t now_ns) noexcept {
    pay(now_ns - took_ns);
    owed_ns_ = std::min(owed_ns_ + ns, most_ns);
    paid_at_ns_ = std::max(paid_at_ns_, now_ns);
  }
  [[nodiscard]] std::int64_t ns() const noexcept { return owed_ns_; }

 private:
  std::int64_t owed_ns_ = 0;
  std::int64_t paid_at_ns_ = 0;
};

// Whether the handlers of one listener keep a core too long: how much of the core's time their slices take beyond what
// each may. What is taken is owed. A listener that owes more than four budgets has become slow, which one slice alone cannot
// bring about (a core's thread that the scheduler has put aside looks like a slow slice); it is slow until it owes nothing: half
// a second after its last slow slice at the longest, with the default budget. Slow slices that come more seldom than one is
// remembered (256 budgets) are left on the core, however long they are.
class spill_gauge {
 public:
  static constexpr std::int64_t payment = time_debt::payment;
  static constexpr std::int64_t threshold = 4;  // budgets
  static constexpr std::int64_t most = 16;      // budgets that can be owed

  explicit spill_gauge(std::int64_t budget_ns) noexcept : budget_ns_(budget_ns) {}

  // A slice has taken so long, wherever it ran. True: by that the listener has become slow.
  bool note(std::int64_t slice_ns, std::int64_t now_ns) noexcept {
    if (slice_ns <= budget_ns_) return false;
    owed_.add(std::min(slice_ns - budget_ns_, threshold * budget_ns_), most * budget_ns_, slice_ns, now_ns);
    if (slow_ || owed_.ns() <= threshold * budget_ns_) return false;
    slow_ = true;
    return true;
  }

  [[nodiscard]] std::int64_t owed_ns() const noexcept { return owed_.ns(); }
  // How long what one slice owes at most takes to be paid.
  [[nodiscard]] std::int64_t memory_of_one_ns() const noexcept { return payment * threshold * budget_ns_; }
  [[nodiscard]] std::int64_t budget_ns() const noexcept { return budget_ns_; }

  [[nodiscard]] bool slow(std::int64_t now_ns) noexcept {
    if (slow_) {
      owed_.pay(now_ns);
      slow_ = owed_.ns() > 0;
    }
    return slow_;
  }

 private:
  std::int64_t budget_ns_;
  time_debt owed_;
  bool slow_ = false;
};

// Which slices of a core are timed at all. Nearly always all are short, and the clock is read for some of them together:
// when `together` of them, or fewer that were the last of a turn, have taken no longer than the least budget, with all
// that ran between them, then none of them has. When they have taken longer, nothing is held against any of them, but it is
// noted here for each listener as if one slice had been so long, and once that makes a listener slow each slice is timed, until
// all is paid here and in the gauges. Not before: there is hardly a machine on which nothing takes a thread's CPU away for a
// millisecond once a second (a host, interrupts, as many clients as there are at once), and to time each slice costs about a
// hundredth of a short one.
//
// The last of a turn need no look of their own while turns follow each other closely: what the next turn reads of the clock,
// as each does, shows that they were short. When it does not, because the thread has slept meanwhile or a slice was long, then
// from there on the last of each turn are looked at, until no turn has begun late for as long as one slice is remembered.
class slice_timing {
 public:
  static constexpr std::uint8_t together = 16;

  // Of a listener whose slices are to be timed when need be.
  void add(std::int64_t budget_ns) {
    least_ns_ = std::min(least_ns_, budget_ns);
    gauges_.emplace_back(budget_ns);
  }

  [[nodiscard]] bool singly() const noexcept { return singly_; }
  [[nodiscard]] bool over(std::int64_t now_ns) const noexcept { return now_ns > until_ns_; }
  // No gauge is slow, and nothing was for long.
  void end() noexcept { singly_ = false; }

  // A turn begins, and the one before began at `before_ns`. True: time has passed in between that may have been a slice's.
  bool begin_turn(std::int64_t before_ns, std::int64_t now_ns) noexcept {
    untimed_ = 0;
    if (now_ns - before_ns <= least_ns_) [[likely]] return false;
    every_turn_ = true;
    for (const spill_gauge& gauge : gauges_) {
      every_turn_until_ns_ = std::max(every_turn_until_ns_, now_ns + gauge.memory_of_one_ns());
    }
    return true;
  }
  // Before an untimed slice. True: those before it are to be looked at.
  [[nodiscard]] bool full() const noexcept { return untimed_ == together; }
  void count() noexcept { ++untimed_; }
  // Of a turn that ends: the last of its slices are to be looked at.
  [[nodiscard]] bool pending() const noexcept { return untimed_ != 0 && every_turn_; }
  // At those since the last look, in the turn that began at `turn_ns`. `own` says how much of a time that has ended now was the
  // thread's own doing; asked when it matters.
  template <class Own = std::identity>
  void look(std::int64_t turn_ns, std::int64_t now_ns, Own own = {}) noexcept {
    if (const std::int64_t took = now_ns - std::max(turn_ns, looked_ns_); took > least_ns_) [[unlikely]] {
      note(own(took), now_ns);
    }
    looked_ns_ = now_ns;
    untimed_ = 0;
    every_turn_ = turn_ns <= every_turn_until_ns_;
  }
  // A slice was longer than its budget, or some together were by much; so much is owed now.
  void long_one(std::int64_t owed_ns, std::int64_t now_ns) noexcept {
    singly_ = true;
    until_ns_ = std::max(until_ns_, now_ns + time_debt::payment * owed_ns);
  }

 private:
  void note(std::int64_t took_ns, std::int64_t now_ns) noexcept {
    for (spill_gauge& gauge : gauges_) {
      (void)gauge.slow(now_ns - took_ns);  // no longer, if all was paid before
      if (gauge.note(took_ns, now_ns)) long_one(gauge.owed_ns(), now_ns);
    }
  }

  // What every slice and every turn asks comes first.
  bool singly_ = false;
  std::uint8_t untimed_ = 0;
  bool every_turn_ = false;
  std::int64_t least_ns_ = std::numeric_limits<std::int64_t>::max();
  std::int64_t looked_ns_ = 0;
  std::int64_t every_turn_until_ns_ = 0;
  std::int64_t until_ns_ = 0;
  std::vector<spill_gauge> gauges_;
};

}  // namespace percore::engine
