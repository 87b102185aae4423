#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include <openssl/crypto.h>
#include <openssl/sha.h>

namespace percore::tls::provider {

// The hashes of the cipher suites that TLS 1.3 and TLS 1.2 with AEAD have (RFC 8446 B.4, RFC 5288, RFC 7905). All
// others are left to OpenSSL's default provider.
enum class hash_kind : std::uint8_t { none, sha256, sha384 };

struct sha256 {
  static constexpr std::size_t size = SHA256_DIGEST_LENGTH;
  static constexpr std::size_t block = SHA256_CBLOCK;
  using state = SHA256_CTX;
  static void begin(state& s) noexcept;
  static void add(state& s, const void* data, std::size_t bytes) noexcept;
  static void end(state& s, unsigned char* out) noexcept;
};

struct sha384 {
  static constexpr std::size_t size = SHA384_DIGEST_LENGTH;
  static constexpr std::size_t block = SHA512_CBLOCK;
  using state = SHA512_CTX;
  static void begin(state& s) noexcept;
  static void add(state& s, const void* data, std::size_t bytes) noexcept;
  static void end(state& s, unsigned char* out) noexcept;
};

inline constexpr std::size_t longest_hash = sha384::size;
inline constexpr std::size_t longest_block = sha384::block;

// none: a digest, or a spelling of one, that OpenSSL's default provider may know.
hash_kind hash_of(std::string_view name) noexcept;

// HMAC (RFC 2104) of one key: both pads are hashed once, so that each message costs its own blocks and one more. It
// holds what is as good as the key, and leaves nothing of it behind.
template <class Hash>
class keyed_hmac {
 public:
  using state = typename Hash::state;

  keyed_hmac() noexcept = default;
  keyed_hmac(const keyed_hmac&) noexcept = default;
  keyed_hmac& operator=(const keyed_hmac&) noexcept = default;
  ~keyed_hmac() { OPENSSL_cleanse(this, sizeof *this); }

  void set_key(const unsigned char* key, std::size_t bytes) noexcept {
    std::array<unsigned char, Hash::block> pad{};
    if (bytes > Hash::block) {
      Hash::begin(inner_);
      Hash::add(inner_, key, bytes);
      Hash::end(inner_, pad.data());
    } else {
      for (std::size_t i = 0; i < bytes; ++i) pad[i] = key[i];
    }
    for (unsigned char& byte : pad) byte ^= inner_pad;
    Hash::begin(inner_);
    Hash::add(inner_, pad.data(), pad.size());
    for (unsigned char& byte : pad) byte ^= inner_pad ^ outer_pad;
    Hash::begin(outer_);
    Hash::add(outer_, pad.data(), pad.size());
    OPENSSL_cleanse(pad.data(), pad.size());
  }

  // A message goes into a state of the caller's: begin(), Hash::add() as often as needed, end().
  void begin(state& message) const noexcept { message = inner_; }
  void end(state& message, unsigned char* out) const noexcept {
    std::array<unsigned char, Hash::size> digest;
    Hash::end(message, digest.data());
    message = outer_;
    Hash::add(message, digest.data(), digest.size());
    Hash::end(message, out);
    OPENSSL_cleanse(digest.data(), digest.size());
  }

 private:
  static constexpr unsigned char inner_pad = 0x36;
  static constexpr unsigned char outer_pad = 0x5c;

  state inner_;
  state outer_;
};

}  // namespace percore::tls::provider
