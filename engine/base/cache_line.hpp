#pragma once

#include <cstddef>

namespace percore::base {

// x86-64 and most arm64 cores. std::hardware_destructive_interference_size changes with -mtune in GCC 12 and would
// make the layout depend on compiler flags.
inline constexpr std::size_t cache_line_bytes = 64;

constexpr std::size_t round_up(std::size_t value, std::size_t unit) noexcept {
  return (value + unit - 1) / unit * unit;
}

}  // namespace percore::base
