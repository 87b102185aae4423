#pragma once

#include <ctime>
#include <memory>
#include <string>
#include <vector>

#include <openssl/bio.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>

namespace percore::tls {

// Owners of OpenSSL's objects.
template <auto Free>
struct freed_by {
  template <class T>
  void operator()(T* object) const noexcept {
    Free(object);
  }
};

using library_ptr = std::unique_ptr<OSSL_LIB_CTX, freed_by<OSSL_LIB_CTX_free>>;
using ssl_ptr = std::unique_ptr<SSL, freed_by<SSL_free>>;
using ssl_ctx_ptr = std::unique_ptr<SSL_CTX, freed_by<SSL_CTX_free>>;
using bio_ptr = std::unique_ptr<BIO, freed_by<BIO_free_all>>;
using bio_method_ptr = std::unique_ptr<BIO_METHOD, freed_by<BIO_meth_free>>;
using x509_ptr = std::unique_ptr<X509, freed_by<X509_free>>;
using pkey_ptr = std::unique_ptr<EVP_PKEY, freed_by<EVP_PKEY_free>>;
using cipher_ptr = std::unique_ptr<EVP_CIPHER, freed_by<EVP_CIPHER_free>>;

// The DNS names of subjectAltName, as they stand there.
std::vector<std::string> dns_names_of(X509* certificate);

std::time_t to_time(const ASN1_TIME* when);  // 0: not a date

// The oldest entry of this thread's error queue as text; the queue is empty afterwards.
std::string take_openssl_error();

}  // namespace percore::tls
