// A key and a certificate for it that is signed with itself, for servers that are only measured.
#pragma once

#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>

#include <openssl/ec.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rsa.h>
#include <openssl/x509v3.h>

namespace self_signed {

enum class key_type { ecdsa_p256, rsa2048, rsa4096 };

// "ecdsa", "rsa2048" or "rsa4096"; nothing for any other text.
inline std::optional<key_type> parse_key_type(std::string_view text) {
  if (text == "ecdsa") return key_type::ecdsa_p256;
  if (text == "rsa2048") return key_type::rsa2048;
  if (text == "rsa4096") return key_type::rsa4096;
  return std::nullopt;
}

struct pem_pair {
  std::string certificate;
  std::string key;
};

namespace detail {

template <auto Free>
struct freed_by {
  template <class T>
  void operator()(T* object) const noexcept {
    Free(object);
  }
};
using bio_ptr = std::unique_ptr<BIO, freed_by<BIO_free>>;
using key_ptr = std::unique_ptr<EVP_PKEY, freed_by<EVP_PKEY_free>>;
using certificate_ptr = std::unique_ptr<X509, freed_by<X509_free>>;
using extension_ptr = std::unique_ptr<X509_EXTENSION, freed_by<X509_EXTENSION_free>>;

inline key_ptr make_key(key_type type) {
  switch (type) {
    case key_type::ecdsa_p256:
      return key_ptr(EVP_EC_gen("P-256"));
    case key_type::rsa2048:
      return key_ptr(EVP_RSA_gen(2048));
    case key_type::rsa4096:
      return key_ptr(EVP_RSA_gen(4096));
  }
  return nullptr;
}

// For localhost, a year long.
inline certificate_ptr sign(EVP_PKEY* key) {
  certificate_ptr made(X509_new());
  X509* x = made.get();
  if (x == nullptr) return nullptr;
  X509_NAME* name = X509_get_subject_name(x);
  const extension_ptr names(
      X509V3_EXT_conf_nid(nullptr, nullptr, NID_subject_alt_name, "DNS:localhost,IP:127.0.0.1,IP:::1"));
  const auto* common_name = reinterpret_cast<const unsigned char*>("localhost");
  const bool ok = X509_set_version(x, X509_VERSION_3) == 1 && ASN1_INTEGER_set(X509_get_serialNumber(x), 1) == 1 &&
                  X509_gmtime_adj(X509_getm_notBefore(x), 0) != nullptr &&
                  X509_gmtime_adj(X509_getm_notAfter(x), 365L * 24 * 3600) != nullptr &&
                  X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC, common_name, -1, -1, 0) == 1 &&
                  X509_set_issuer_name(x, name) == 1 && X509_set_pubkey(x, key) == 1 && names != nullptr &&
                  X509_add_ext(x, names.get(), -1) == 1 && X509_sign(x, key, EVP_sha256()) > 0;
  return ok ? std::move(made) : nullptr;
}

inline std::string content_of(const bio_ptr& memory) {
  char* data = nullptr;
  const long size = BIO_get_mem_data(memory.get(), &data);
  return {data, static_cast<std::size_t>(size)};
}

}  // namespace detail

// Throws std::runtime_error. An RSA key of 4096 bits takes about a second.
inline pem_pair make(key_type type) {
  const detail::key_ptr key = detail::make_key(type);
  const detail::certificate_ptr certificate = key ? detail::sign(key.get()) : nullptr;
  const detail::bio_ptr key_pem(BIO_new(BIO_s_mem()));
  const detail::bio_ptr certificate_pem(BIO_new(BIO_s_mem()));
  if (!certificate || !key_pem || !certificate_pem ||
      PEM_write_bio_X509(certificate_pem.get(), certificate.get()) != 1 ||
      PEM_write_bio_PrivateKey(key_pem.get(), key.get(), nullptr, nullptr, 0, nullptr, nullptr) != 1) {
    throw std::runtime_error("cannot make a self-signed certificate");
  }
  return {detail::content_of(certificate_pem), detail::content_of(key_pem)};
}

}  // namespace self_signed
