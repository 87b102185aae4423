// OpenSSL 3 deprecates its low-level digests because they bypass providers. This is a provider: it stands where
// OpenSSL's own calls them. Through EVP each HMAC would cost several allocations and fetches.
#define OPENSSL_SUPPRESS_DEPRECATED
#include "engine/tls/provider/hash.hpp"

namespace percore::tls::provider {

// None of these can fail on OpenSSL's side: their results are always 1.
void sha256::begin(state& s) noexcept { SHA256_Init(&s); }
void sha256::add(state& s, const void* data, std::size_t bytes) noexcept { SHA256_Update(&s, data, bytes); }
void sha256::end(state& s, unsigned char* out) noexcept { SHA256_Final(out, &s); }

void sha384::begin(state& s) noexcept { SHA384_Init(&s); }
void sha384::add(state& s, const void* data, std::size_t bytes) noexcept { SHA384_Update(&s, data, bytes); }
void sha384::end(state& s, unsigned char* out) noexcept { SHA384_Final(out, &s); }

hash_kind hash_of(std::string_view name) noexcept {
  const auto is = [name](std::string_view other) {
    return name.size() == other.size() && OPENSSL_strncasecmp(name.data(), other.data(), other.size()) == 0;
  };
  if (is("SHA2-256") || is("SHA256") || is("SHA-256")) return hash_kind::sha256;
  if (is("SHA2-384") || is("SHA384") || is("SHA-384")) return hash_kind::sha384;
  return hash_kind::none;
}

}  // namespace percore::tls::provider
