// What the clock says and a thread did not do: time in which it could have run and had no CPU.
#pragma once

#include <algorithm>
#include <cstdint>

namespace percore::sys {

// Of the calling thread, all its life, in nanoseconds (run delay of proc(5), /proc/PID/schedstat). 0 where the kernel does
// not tell, or no descriptor is left to ask it with. It costs about 3 us.
std::int64_t time_without_cpu_ns() noexcept;

// Of the calling thread: how much of a time that was measured by the clock it had no CPU, because others had it. So that a
// thread which the scheduler has put aside is not taken for one that blocks or computes.
class lost_time {
 public:
  // Before what is measured; looks every `renewed_ns` at most.
  static void prepare(std::int64_t now_ns) noexcept {
    if (now_ns - at_ns_ > renewed_ns) look(now_ns);
  }
  // `ran_ns`, which has ended at `now_ns` and was found long, without what was lost since the look before it (which may
  // have been a little before it).
  static std::int64_t without(std::int64_t ran_ns, std::int64_t now_ns) noexcept {
    const bool known = now_ns - ran_ns - at_ns_ <= 2 * renewed_ns;
    const std::int64_t before = without_cpu_ns_;
    look(now_ns);
    return known ? std::max<std::int64_t>(ran_ns - (without_cpu_ns_ - before), 0) : ran_ns;
  }

 private:
  static constexpr std::int64_t renewed_ns = 5'000'000;
  static void look(std::int64_t now_ns) noexcept {
    without_cpu_ns_ = std::max(without_cpu_ns_, time_without_cpu_ns());
    at_ns_ = now_ns;
  }
  static constinit thread_local std::int64_t at_ns_;
  static constinit thread_local std::int64_t without_cpu_ns_;
};

}  // namespace percore::sys
