#pragma once

#include <memory>

#include <openssl/core.h>
#include <openssl/core_dispatch.h>
#include <openssl/types.h>

#include "engine/tls/openssl.hpp"

// A provider of OpenSSL's, built into the engine and loaded into its own library contexts only. libssl 3.0 fetches,
// allocates and copies parameters for each of the more than twenty key derivations of a TLS 1.3 handshake, and asks its
// random generator, at a system call and three cipher set-ups a time, for 4 to 32 bytes. The algorithms here do the
// same work without that. What they are not made for, they hand to OpenSSL's default provider, call by call: other
// digests, unusual parameters, every error. Results and errors are therefore OpenSSL's.
namespace percore::tls::provider {

// The name under which it is loaded, and the property by which its algorithms are preferred.
inline constexpr const char* provider_name = "percore";
inline constexpr const char* preference = "?provider=percore";
inline constexpr const char* others = "provider=default";
// For RAND_set_DRBG_type(3).
inline constexpr const char* random_name = "PERCORE-BUFFERED";

// What one loaded instance hands to its operations. Constant once loaded: any thread.
struct instance {
  OSSL_LIB_CTX* library;
};

extern const OSSL_DISPATCH hmac_functions[];
extern const OSSL_DISPATCH tls13_kdf_functions[];
extern const OSSL_DISPATCH random_functions[];

// For OSSL_PROVIDER_add_builtin(3).
extern "C" OSSL_provider_init_fn percore_tls_provider_init;

}  // namespace percore::tls::provider
