#include "perf/servers/percore-http/crypto.hpp"

#include <openssl/rand.h>

#include <cstring>
#include <stdexcept>
#include <string>

namespace percore_http {
namespace {

void require(bool succeeded, const char* what) {
  if (!succeeded) throw std::runtime_error(std::string("OpenSSL: ") + what + " failed");
}

const unsigned char* bytes(std::string_view text) {
  return reinterpret_cast<const unsigned char*>(text.data());
}

}  // namespace

aes128_cbc::aes128_cbc() : context_(EVP_CIPHER_CTX_new()) {
  require(context_ != nullptr, "EVP_CIPHER_CTX_new");
  // The key schedule is made here, once; encrypt() sets the vector only.
  require(EVP_EncryptInit_ex2(context_.get(), EVP_aes_128_cbc(), bytes(aes_key), nullptr, nullptr) == 1,
          "AES-128-CBC");
}

const unsigned char* aes128_cbc::fresh_vector() {
  if (random_used_ == random_.size()) {
    require(RAND_bytes(random_.data(), static_cast<int>(random_.size())) == 1, "RAND_bytes");
    random_used_ = 0;
  }
  const unsigned char* vector = random_.data() + random_used_;
  random_used_ += aes_block_bytes;
  return vector;
}

void aes128_cbc::encrypt(std::string_view plain, char* out) {
  const unsigned char* vector = fresh_vector();
  std::memcpy(out, vector, aes_block_bytes);
  auto* cipher = reinterpret_cast<unsigned char*>(out) + aes_block_bytes;
  int body = 0;
  int last = 0;
  require(EVP_EncryptInit_ex2(context_.get(), nullptr, nullptr, vector, nullptr) == 1 &&
              EVP_EncryptUpdate(context_.get(), cipher, &body, bytes(plain),
                                static_cast<int>(plain.size())) == 1 &&
              EVP_EncryptFinal_ex(context_.get(), cipher + body, &last) == 1,
          "AES-128-CBC");
}

sha256_hex::sha256_hex() : digest_(EVP_MD_fetch(nullptr, "SHA256", nullptr)), context_(EVP_MD_CTX_new()) {
  require(digest_ != nullptr && context_ != nullptr, "SHA-256");
}

void sha256_hex::digest(std::string_view data, char* out) {
  constexpr char digits[] = "0123456789abcdef";
  std::array<unsigned char, output_bytes / 2> binary;
  require(EVP_DigestInit_ex2(context_.get(), digest_.get(), nullptr) == 1 &&
              EVP_DigestUpdate(context_.get(), data.data(), data.size()) == 1 &&
              EVP_DigestFinal_ex(context_.get(), binary.data(), nullptr) == 1,
          "SHA-256");
  for (const unsigned char byte : binary) {
    *out++ = digits[byte >> 4];
    *out++ = digits[byte & 15];
  }
}

}  // namespace percore_http
