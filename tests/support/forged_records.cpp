#include "tests/support/forged_records.hpp"

#include <openssl/core_names.h>
#include <openssl/evp.h>
#include <openssl/kdf.h>
#include <openssl/ssl.h>

#include <array>
#include <memory>
#include <stdexcept>
#include <vector>

namespace percore::test {
namespace {

constexpr std::size_t key_bytes = 16;
constexpr std::size_t tag_bytes = 16;

void check(bool ok, const char* what) {
  if (!ok) throw std::runtime_error(std::string("forged records: ") + what);
}

// CLIENT_TRAFFIC_SECRET_0 of this thread's newest connection with TLS 1.3.
thread_local std::string traffic_secret;

void keep_secret(const SSL*, const char* line) {
  const std::string text(line);
  if (!text.starts_with("CLIENT_TRAFFIC_SECRET_0 ")) return;
  const std::string digits = text.substr(text.rfind(' ') + 1);
  traffic_secret.clear();
  for (std::size_t i = 0; i + 1 < digits.size(); i += 2) {
    traffic_secret += static_cast<char>(std::stoi(digits.substr(i, 2), nullptr, 16));
  }
}

OSSL_PARAM octets(const char* name, const std::string& value) {
  return OSSL_PARAM_construct_octet_string(name, const_cast<char*>(value.data()), value.size());
}

std::string derive(const char* algorithm, std::vector<OSSL_PARAM> parameters, std::size_t size) {
  static char digest[] = "SHA256";
  parameters.push_back(OSSL_PARAM_construct_utf8_string(OSSL_KDF_PARAM_DIGEST, digest, 0));
  parameters.push_back(OSSL_PARAM_construct_end());
  const std::unique_ptr<EVP_KDF, decltype(&EVP_KDF_free)> kdf(EVP_KDF_fetch(nullptr, algorithm, nullptr), EVP_KDF_free);
  const std::unique_ptr<EVP_KDF_CTX, decltype(&EVP_KDF_CTX_free)> context(EVP_KDF_CTX_new(kdf.get()), EVP_KDF_CTX_free);
  std::string result(size, '\0');
  check(EVP_KDF_derive(context.get(), reinterpret_cast<unsigned char*>(result.data()), size, parameters.data()) == 1,
        algorithm);
  return result;
}

// RFC 8446 7.1, with an empty context.
std::string expand_label(const std::string& secret, const std::string& label, std::size_t size) {
  const std::string full = "tls13 " + label;
  const std::string info = std::string(1, '\0') + static_cast<char>(size) + static_cast<char>(full.size()) + full + '\0';
  int mode = EVP_KDF_HKDF_MODE_EXPAND_ONLY;
  return derive("HKDF",
                {OSSL_PARAM_construct_int(OSSL_KDF_PARAM_MODE, &mode), octets(OSSL_KDF_PARAM_KEY, secret),
                 octets(OSSL_KDF_PARAM_INFO, info)},
                size);
}

// RFC 5246 6.3.
std::string key_block(const SSL* ssl) {
  std::array<unsigned char, 48> master;
  std::array<unsigned char, 32> random;
  SSL_SESSION_get_master_key(SSL_get_session(ssl), master.data(), master.size());
  const std::string secret(reinterpret_cast<char*>(master.data()), master.size());
  std::string seed = "key expansion";
  SSL_get_server_random(ssl, random.data(), random.size());
  seed.append(reinterpret_cast<char*>(random.data()), random.size());
  SSL_get_client_random(ssl, random.data(), random.size());
  seed.append(reinterpret_cast<char*>(random.data()), random.size());
  return derive("TLS1-PRF", {octets(OSSL_KDF_PARAM_SECRET, secret), octets(OSSL_KDF_PARAM_SEED, seed)},
                2 * key_bytes + 2 * 4);
}

std::string big_endian(std::uint64_t value, std::size_t bytes) {
  std::string result;
  for (std::size_t i = bytes; i-- > 0;) result += static_cast<char>(value >> (8 * i));
  return result;
}

std::string seal(const std::string& key, const std::string& nonce, const std::string& extra, const std::string& text) {
  const std::unique_ptr<EVP_CIPHER_CTX, decltype(&EVP_CIPHER_CTX_free)> context(EVP_CIPHER_CTX_new(), EVP_CIPHER_CTX_free);
  const auto bytes = [](const std::string& s) { return reinterpret_cast<const unsigned char*>(s.data()); };
  std::string result(text.size() + tag_bytes, '\0');
  auto* out = reinterpret_cast<unsigned char*>(result.data());
  int size = 0;
  check(EVP_EncryptInit_ex(context.get(), EVP_aes_128_gcm(), nullptr, bytes(key), bytes(nonce)) == 1, "a key");
  check(EVP_EncryptUpdate(context.get(), nullptr, &size, bytes(extra), static_cast<int>(extra.size())) == 1, "a header");
  if (!text.empty()) {
    check(EVP_EncryptUpdate(context.get(), out, &size, bytes(text), static_cast<int>(text.size())) == 1, "a content");
  }
  check(EVP_EncryptFinal_ex(context.get(), out + text.size(), &size) == 1, "an end");
  check(EVP_CIPHER_CTX_ctrl(context.get(), EVP_CTRL_GCM_GET_TAG, tag_bytes, out + text.size()) == 1, "a tag");
  return result;
}

}  // namespace

tls_profile forgeable_profile(int version) {
  tls_client_options how;
  how.min_version = how.max_version = version;
  how.ciphers = "ECDHE-ECDSA-AES128-GCM-SHA256";
  how.ciphersuites = "TLS_AES_128_GCM_SHA256";
  tls_profile made(how);
  SSL_CTX_set_keylog_callback(made.context(), keep_secret);
  return made;
}

forged_records::forged_records(const tls_client& peer) : old_version_(peer.version() == TLS1_2_VERSION) {
  if (old_version_) {
    const std::string block = key_block(peer.ssl());
    key_ = block.substr(0, key_bytes);
    iv_ = block.substr(2 * key_bytes, 4);
    number_ = 1;  // Finished was the first
  } else {
    key_ = expand_label(traffic_secret, "key", key_bytes);
    iv_ = expand_label(traffic_secret, "iv", 12);
    number_ = 0;
  }
}

std::string forged_records::make(record_type type, std::string_view content) {
  const auto kind = static_cast<char>(type);
  const std::string number = big_endian(number_++, 8);
  if (old_version_) {  // RFC 5288 3, RFC 5246 6.2.3.3
    const std::string extra = number + kind + "\x03\x03" + big_endian(content.size(), 2);
    return kind + std::string("\x03\x03") + big_endian(8 + content.size() + tag_bytes, 2) + number +
           seal(key_, iv_ + number, extra, std::string(content));
  }
  std::string nonce = iv_;  // RFC 8446 5.2 and 5.3
  for (std::size_t i = 0; i < 8; ++i) nonce[4 + i] = static_cast<char>(nonce[4 + i] ^ number[i]);
  const std::string header = "\x17\x03\x03" + big_endian(content.size() + 1 + tag_bytes, 2);
  return header + seal(key_, nonce, header, std::string(content) + kind);
}

}  // namespace percore::test
