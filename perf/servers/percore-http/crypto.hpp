// What --aes128 and --sha256 do to the body, by OpenSSL. One object per core: no allocation per request.
#pragma once

#include <openssl/evp.h>

#include <array>
#include <cstddef>
#include <memory>
#include <string_view>

namespace percore_http {

// The key is public: this measures the cost of encryption and keeps no secret.
inline constexpr std::string_view aes_key = "0123456789ABCDEF";
inline constexpr std::size_t aes_block_bytes = 16;

// AES-128-CBC with PKCS#7 padding and a fresh random initialisation vector for each message, which comes
// first.
class aes128_cbc {
 public:
  // Throws std::runtime_error when OpenSSL has no such cipher or no memory.
  aes128_cbc();

  static constexpr std::size_t output_bytes(std::size_t plain_bytes) noexcept {
    return aes_block_bytes + (plain_bytes / aes_block_bytes + 1) * aes_block_bytes;
  }
  // Writes output_bytes(plain.size()) bytes to `out`. `plain` is shorter than 2 GiB. Throws
  // std::runtime_error when OpenSSL fails: without random bytes nothing must be sent.
  void encrypt(std::string_view plain, char* out);

 private:
  struct context_free {
    void operator()(EVP_CIPHER_CTX* context) const noexcept { EVP_CIPHER_CTX_free(context); }
  };

  const unsigned char* fresh_vector();

  std::unique_ptr<EVP_CIPHER_CTX, context_free> context_;
  // One call of the generator costs about as much as the encryption of 1 kB, so it fills many vectors.
  std::array<unsigned char, 256 * aes_block_bytes> random_;
  std::size_t random_used_ = sizeof(random_);
};

// SHA-256 in hexadecimal.
class sha256_hex {
 public:
  static constexpr std::size_t output_bytes = 64;

  // Throws std::runtime_error when OpenSSL has no such digest or no memory.
  sha256_hex();
  // Writes output_bytes bytes to `out`. Throws std::runtime_error when OpenSSL fails.
  void digest(std::string_view data, char* out);

 private:
  struct digest_free {
    void operator()(EVP_MD* digest) const noexcept { EVP_MD_free(digest); }
  };
  struct context_free {
    void operator()(EVP_MD_CTX* context) const noexcept { EVP_MD_CTX_free(context); }
  };

  std::unique_ptr<EVP_MD, digest_free> digest_;  // fetched once: a fetch takes locks of the library's
  std::unique_ptr<EVP_MD_CTX, context_free> context_;
};

}  // namespace percore_http
