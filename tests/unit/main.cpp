// The main function of every doctest program of this repository.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#if defined(__SANITIZE_THREAD__)
#define PERCORE_UNDER_TSAN
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define PERCORE_UNDER_TSAN
#endif
#endif

#ifdef PERCORE_UNDER_TSAN
// OpenSSL caches the parsed form of a certificate under a lock and finds it again by an atomic that ThreadSanitizer does not
// see, since libcrypto is not built with it: two clients that verify with one context then look like a race.
extern "C" const char* __tsan_default_suppressions();
extern "C" const char* __tsan_default_suppressions() { return "race:ASN1_STRING_cmp\n"; }
#endif
