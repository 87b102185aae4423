#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>

namespace percore::engine {

// Timeouts are kept in milliseconds, 32 bits of them; deadlines in nanoseconds of the monotonic clock.

constexpr std::int64_t to_ns(std::uint32_t ms) noexcept { return std::int64_t{ms} * 1'000'000; }

// What a TLS handshake may take at most once a shutdown has begun. Go's http.Server.Shutdown gives connections that have
// not sent a request yet the same.
inline constexpr std::uint32_t drain_handshake_ms = 5000;

// What does not fit becomes the nearest that does.
constexpr std::uint32_t to_ms(std::chrono::milliseconds timeout) noexcept {
  return static_cast<std::uint32_t>(std::clamp<std::int64_t>(timeout.count(), 0, ~std::uint32_t{0}));
}

}  // namespace percore::engine
