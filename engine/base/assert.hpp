// Assertions that stay in release builds. For faults of the engine or of the program that uses it: nothing that a
// peer sends may reach one.
#pragma once

#include <cstdio>
#include <cstdlib>

namespace percore::base {

[[noreturn, gnu::cold, gnu::noinline]] inline void assertion_failed(const char* condition, const char* message,
                                                                    const char* file, int line) noexcept {
  std::fprintf(stderr, "percore: %s (%s, %s:%d)\n", message, condition, file, line);
  std::abort();
}

}  // namespace percore::base

#define PERCORE_ASSERT(condition, message)                                                             \
  (__builtin_expect(static_cast<bool>(condition), 1)                                                   \
       ? static_cast<void>(0)                                                                          \
       : ::percore::base::assertion_failed(#condition, message, __FILE__, __LINE__))
