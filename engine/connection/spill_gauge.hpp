#pragma once

#include <algorithm>
#include <cstdint>

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

}  // namespace percore::engine
