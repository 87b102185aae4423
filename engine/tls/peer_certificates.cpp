// What a handler is told about the certificates of its peer.

#include <array>
#include <cstring>

#include <openssl/bn.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

#include "engine/tls/session.hpp"

namespace percore::tls {

namespace {

std::string content_of(BIO* memory) {
  char* data = nullptr;
  const long size = BIO_get_mem_data(memory, &data);
  return size > 0 ? std::string(data, static_cast<std::size_t>(size)) : std::string();
}

std::string to_text(const X509_NAME* name) {
  const bio_ptr memory(BIO_new(BIO_s_mem()));
  if (!memory || X509_NAME_print_ex(memory.get(), name, 0, XN_FLAG_RFC2253 & ~ASN1_STRFLGS_ESC_MSB) < 0) return {};
  return content_of(memory.get());
}

std::string common_name_of(X509* certificate) {
  X509_NAME* subject = X509_get_subject_name(certificate);
  const int at = X509_NAME_get_index_by_NID(subject, NID_commonName, -1);
  if (at < 0) return {};
  unsigned char* text = nullptr;
  const int size = ASN1_STRING_to_UTF8(&text, X509_NAME_ENTRY_get_data(X509_NAME_get_entry(subject, at)));
  if (size < 0) return {};
  std::string result(reinterpret_cast<const char*>(text), static_cast<std::size_t>(size));
  OPENSSL_free(text);
  return result;
}

std::string serial_of(X509* certificate) {
  BIGNUM* number = ASN1_INTEGER_to_BN(X509_get0_serialNumber(certificate), nullptr);
  char* text = number == nullptr ? nullptr : BN_bn2hex(number);
  std::string result = text == nullptr ? "" : text;
  OPENSSL_free(text);
  BN_free(number);
  return result;
}

std::string fingerprint_of(X509* certificate) {
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest;
  unsigned size = 0;
  if (X509_digest(certificate, EVP_sha256(), digest.data(), &size) != 1) return {};
  constexpr std::string_view digits = "0123456789abcdef";
  std::string result;
  for (unsigned i = 0; i < size; ++i) {
    result += digits[digest[i] >> 4];
    result += digits[digest[i] & 15];
  }
  return result;
}

tls_peer_certificate describe(X509* certificate) {
  tls_peer_certificate result;
  result.subject = to_text(X509_get_subject_name(certificate));
  result.issuer = to_text(X509_get_issuer_name(certificate));
  result.common_name = common_name_of(certificate);
  result.dns_names = dns_names_of(certificate);
  result.serial = serial_of(certificate);
  result.sha256 = fingerprint_of(certificate);
  result.not_before = to_time(X509_get0_notBefore(certificate));
  result.not_after = to_time(X509_get0_notAfter(certificate));
  const bio_ptr memory(BIO_new(BIO_s_mem()));
  if (memory && PEM_write_bio_X509(memory.get(), certificate) == 1) result.pem = content_of(memory.get());
  return result;
}

}  // namespace

std::vector<tls_peer_certificate> session::peer_certificates() const {
  std::vector<tls_peer_certificate> result;
  // A resumed session knows the peer's own certificate only; the chain was verified when the ticket was given out.
  if (STACK_OF(X509)* chain = SSL_get0_verified_chain(ssl_.get())) {
    for (int i = 0; i < sk_X509_num(chain); ++i) result.push_back(describe(sk_X509_value(chain, i)));
  } else if (X509* only = SSL_get0_peer_certificate(ssl_.get())) {
    result.push_back(describe(only));
  }
  return result;
}

}  // namespace percore::tls
