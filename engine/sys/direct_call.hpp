#pragma once

#include <sys/syscall.h>

// The calls of the request path go straight to the kernel on x86-64 and arm64. The C library's wrappers are pthread
// cancellation points (nptl(7)) and keep errno: on keep-alive HTTP that was 2.8 % of the server's CPU time. Builds
// with a sanitizer or with fault injection use the wrappers, which the sanitizers intercept.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || defined(PERCORE_FAULTS)
#define PERCORE_DIRECT_CALLS 0
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
#define PERCORE_DIRECT_CALLS 0
#endif
#endif
#if !defined(PERCORE_DIRECT_CALLS)
#if defined(__x86_64__) && !defined(__ILP32__) || defined(__aarch64__)
#define PERCORE_DIRECT_CALLS 1
#else
#define PERCORE_DIRECT_CALLS 0
#endif
#endif

namespace percore::sys {

#if PERCORE_DIRECT_CALLS
// syscall(2): number and arguments in registers, the result or -errno in one.
inline long direct_call(long number, long a, long b, long c = 0, long d = 0, long e = 0, long f = 0) noexcept {
#if defined(__x86_64__)
  register long r10 asm("r10") = d;
  register long r8 asm("r8") = e;
  register long r9 asm("r9") = f;
  long result = number;
  asm volatile("syscall"
               : "+a"(result)
               : "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
               : "rcx", "r11", "memory");
  return result;
#else
  register long x8 asm("x8") = number;
  register long x0 asm("x0") = a;
  register long x1 asm("x1") = b;
  register long x2 asm("x2") = c;
  register long x3 asm("x3") = d;
  register long x4 asm("x4") = e;
  register long x5 asm("x5") = f;
  asm volatile("svc #0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
  return x0;
#endif
}
inline long as_argument(const void* pointer) noexcept { return reinterpret_cast<long>(pointer); }
#endif

}  // namespace percore::sys
