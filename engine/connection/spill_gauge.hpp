#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <utility>

namespace percore::engine {

// Whether the handlers of one listener keep a core too long: how much of the core's time their slices take beyond what
// each may. What is taken is owed; the passing of time pays a 64th of itself. A listener that owes more than four
// budgets has become slow, which one slice alone cannot bring about (a core's thread that the scheduler has put aside
// looks like a slow slice); it is slow until it owes nothing: half a second after its last slow slice at the longest,
// with the default budget. So the slow state costs a core at most a 64th of its time beyond budgets, however seldom slow
// slices come.
class spill_gauge {
 public:
  static constexpr std::int64_t payment = 64;   // the part of time that pays
  static constexpr std::int64_t threshold = 4;  // budgets
  static constexpr std::int64_t most = 16;      // budgets that can be owed

  explicit spill_gauge(std::int64_t budget_ns) noexcept : budget_ns_(budget_ns) {}

  // A slice has taken so long, wherever it ran. True: by that the listener has become slow.
  bool note(std::int64_t slice_ns, std::int64_t now_ns) noexcept {
    if (slice_ns <= budget_ns_) return false;
    pay(now_ns);
    owed_ns_ += std::min(slice_ns - budget_ns_, threshold * budget_ns_);
    owed_ns_ = std::min(owed_ns_, most * budget_ns_);
    if (slow_ || owed_ns_ <= threshold * budget_ns_) return false;
    slow_ = true;
    return true;
  }

  [[nodiscard]] std::int64_t owed_ns() const noexcept { return owed_ns_; }
  // How long what is owed can take to be paid.
  [[nodiscard]] std::int64_t memory_ns() const noexcept { return payment * most * budget_ns_; }
  [[nodiscard]] std::int64_t budget_ns() const noexcept { return budget_ns_; }

  [[nodiscard]] bool slow(std::int64_t now_ns) noexcept {
    if (slow_) {
      pay(now_ns);
      slow_ = owed_ns_ > 0;
    }
    return slow_;
  }

 private:
  void pay(std::int64_t now_ns) noexcept {
    const std::int64_t paid = (now_ns - paid_at_ns_) / payment;
    if (paid <= 0) return;
    owed_ns_ = std::max<std::int64_t>(owed_ns_ - paid, 0);
    paid_at_ns_ = now_ns;
  }

  std::int64_t budget_ns_;
  std::int64_t owed_ns_ = 0;
  std::int64_t paid_at_ns_ = 0;
  bool slow_ = false;
};

// Which slices of a core are timed at all. Nearly always all are short, and the clock is read for some of them together:
// when `together` of them, or fewer that were the last of a turn, have taken no longer than the least budget, with all
// that ran between them, then none of them has. When they have taken longer, nothing is held against any of them, but
// what is beyond the budget is owed here, as in a gauge, and once that is more than two budgets each slice is timed, until all
// is paid here and in the gauges. Not for less: there is hardly a machine on which nothing takes a thread's CPU away for a
// millisecond once a second, and to time each slice costs more than a hundredth of a short one.
class slice_timing {
 public:
  static constexpr unsigned together = 16;

  void add(const spill_gauge& gauge) noexcept {
    least_ns_ = std::min(least_ns_, gauge.budget_ns());
    memory_ns_ = std::max(memory_ns_, gauge.memory_ns());
  }

  [[nodiscard]] bool singly() const noexcept { return singly_; }
  [[nodiscard]] bool over(std::int64_t now_ns) const noexcept { return now_ns > until_ns_; }
  // No gauge is slow, and nothing was for long.
  void end() noexcept { singly_ = false; }

  // An untimed slice has run in the turn that began at `turn_ns`. True: the clock is to be looked at.
  bool count(std::int64_t turn_ns) noexcept {
    if (untimed_ == 0) since_ns_ = std::max(since_ns_, turn_ns);
    return ++untimed_ == together;
  }
  // Some have run since the last look.
  [[nodiscard]] bool pending() const noexcept { return untimed_ != 0; }
  void look(std::int64_t now_ns) noexcept {
    if (const std::int64_t took = now_ns - since_ns_; took > least_ns_) [[unlikely]] owe(took - least_ns_, now_ns);
    since_ns_ = now_ns;
    untimed_ = 0;
  }
  // A slice was longer than its budget, or some together were by much; so much is owed now.
  void long_one(std::int64_t owed_ns, std::int64_t now_ns) noexcept {
    singly_ = true;
    until_ns_ = std::max(until_ns_, now_ns + std::min(spill_gauge::payment * owed_ns, memory_ns_));
  }

 private:
  static constexpr std::int64_t threshold = 2;  // budgets

  void owe(std::int64_t excess_ns, std::int64_t now_ns) noexcept {
    owed_ns_ = std::max<std::int64_t>(owed_ns_ - (now_ns - owed_at_ns_) / spill_gauge::payment, 0) + excess_ns;
    owed_at_ns_ = now_ns;
    if (owed_ns_ <= threshold * least_ns_) return;
    long_one(std::exchange(owed_ns_, 0), now_ns);
  }

  bool singly_ = false;
  unsigned untimed_ = 0;
  std::int64_t since_ns_ = 0;
  std::int64_t owed_ns_ = 0;
  std::int64_t owed_at_ns_ = 0;
  std::int64_t until_ns_ = 0;
  std::int64_t least_ns_ = std::numeric_limits<std::int64_t>::max();
  std::int64_t memory_ns_ = 0;
};

}  // namespace percore::engine
