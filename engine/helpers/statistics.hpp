#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>

#include <percore/stats.hpp>

#include "engine/base/counter.hpp"

namespace percore::helpers {

// A time_histogram that one thread writes and any reads.
class live_histogram {
 public:
  void add(std::int64_t ns) noexcept {
    const auto us = static_cast<std::uint64_t>(ns > 0 ? ns / 1000 : 0);
    const auto bucket = static_cast<std::size_t>(std::bit_width(us));
    ++counts_[bucket < counts_.size() ? bucket : counts_.size() - 1];
  }
  void add_to(time_histogram& sum) const noexcept {
    for (std::size_t i = 0; i < counts_.size(); ++i) sum.counts[i] += counts_[i].get();
  }

 private:
  std::array<base::counter, time_histogram::buckets> counts_;
};

}  // namespace percore::helpers
