// Latencies counted in buckets that are at most 1.6 % wide.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>

namespace pace {

class histogram {
 public:
  void add(std::uint64_t ns) noexcept {
    ++counts_[place(ns)];
    ++total_;
    longest_ = std::max(longest_, ns);
  }

  void add(const histogram& other) noexcept {
    for (std::size_t i = 0; i < counts_.size(); ++i) counts_[i] += other.counts_[i];
    total_ += other.total_;
    longest_ = std::max(longest_, other.longest_);
  }

  // The upper end of the bucket below which the share `quantile` of all lies; the longest for 1, 0 without
  // any.
  [[nodiscard]] std::uint64_t quantile(double share) const noexcept {
    const auto rank = static_cast<std::uint64_t>(share * static_cast<double>(total_));
    std::uint64_t below = 0;
    for (std::size_t i = 0; i < counts_.size(); ++i) {
      below += counts_[i];
      if (below > rank) return std::min(upper_end(i), longest_);
    }
    return longest_;
  }

  [[nodiscard]] std::uint64_t total() const noexcept { return total_; }

 private:
  static constexpr std::uint64_t sub_buckets = 64;  // of each power of two

  static std::size_t place(std::uint64_t ns) noexcept {
    if (ns < sub_buckets) return static_cast<std::size_t>(ns);
    const auto shift = static_cast<unsigned>(std::bit_width(ns)) - 7;  // leaves 64 to 127
    return static_cast<std::size_t>(sub_buckets * shift + (ns >> shift));
  }

  static std::uint64_t upper_end(std::size_t at) noexcept {
    if (at < 2 * sub_buckets) return at;
    const std::uint64_t shift = at / sub_buckets - 1;
    return ((at - sub_buckets * shift + 1) << shift) - 1;
  }

  std::array<std::uint64_t, sub_buckets * 59> counts_{};  // up to 2^64 ns
  std::uint64_t total_ = 0;
  std::uint64_t longest_ = 0;
};

}  // namespace pace
