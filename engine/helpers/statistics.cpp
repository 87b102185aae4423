#include "engine/helpers/statistics.hpp"

#include <numeric>

namespace percore {

std::uint64_t time_histogram::total() const noexcept {
  return std::accumulate(counts.begin(), counts.end(), std::uint64_t{0});
}

std::uint64_t time_histogram::quantile_us(double share) const noexcept {
  const std::uint64_t all = total();
  if (all == 0) return 0;
  const double wanted = share * static_cast<double>(all);
  std::uint64_t sum = 0;
  for (std::size_t i = 0; i < counts.size(); ++i) {
    sum += counts[i];
    if (sum != 0 && static_cast<double>(sum) >= wanted) return std::uint64_t{1} << i;
  }
  return std::uint64_t{1} << (counts.size() - 1);
}

time_histogram& time_histogram::operator+=(const time_histogram& other) noexcept {
  for (std::size_t i = 0; i < counts.size(); ++i) counts[i] += other.counts[i];
  return *this;
}

helper_stats& helper_stats::operator+=(const helper_stats& other) noexcept {
  alive += other.alive;
  most_alive += other.most_alive;
  spawned += other.spawned;
  retired += other.retired;
  refused += other.refused;
  queued += other.queued;
  most_queued += other.most_queued;
  submitted += other.submitted;
  full += other.full;
  cancelled += other.cancelled;
  woken += other.woken;
  wait += other.wait;
  run += other.run;
  return *this;
}

}  // namespace percore
