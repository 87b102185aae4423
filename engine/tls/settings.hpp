#pragma once

#include <array>
#include <memory>
#include <string>
#include <vector>

#include <percore/tls.hpp>

#include "engine/tls/openssl.hpp"

namespace percore::tls {

using der = std::vector<unsigned char>;

// A certificate, its chain and its key as they were read: every core makes its own OpenSSL objects of them.
struct loaded_certificate {
  loaded_certificate() = default;
  loaded_certificate(loaded_certificate&&) noexcept = default;
  loaded_certificate& operator=(loaded_certificate&&) noexcept = default;
  ~loaded_certificate();

  std::vector<der> chain;  // the certificate itself first
  der key;                 // PKCS#8, not encrypted; overwritten at the end
  std::vector<std::string> names;  // in lower case
  der ocsp_response;
  int key_type = EVP_PKEY_NONE;
};

// Everything that a context says, read and checked. Never changes: a reload makes another one.
struct settings {
  tls_options options;
  tls_role role = tls_role::server;
  std::vector<loaded_certificate> certificates;
  std::vector<der> authorities;
  // Names whom clients are asked to be vouched for by: a session that was made under other terms is not resumed, since
  // a resumption shows no certificate.
  std::array<unsigned char, 8> trust{};
  std::vector<unsigned char> alpn;  // as OpenSSL wants it: each protocol behind its length
};

// Reads the files and checks what can be checked without OpenSSL's SSL objects. Throws tls_error. Warns of certificates
// that have expired.
std::shared_ptr<const settings> load(const tls_options& options, tls_role role);

}  // namespace percore::tls
