#include "tests/support/certificates.hpp"

#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/ocsp.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/rsa.h>
#include <openssl/x509v3.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include <array>
#include <cstdint>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <utility>

namespace percore::test {
namespace {

template <auto Free>
struct freed_by {
  template <class T>
  void operator()(T* object) const noexcept {
    Free(object);
  }
};
using key_ptr = std::unique_ptr<EVP_PKEY, freed_by<EVP_PKEY_free>>;
using x509_ptr = std::unique_ptr<X509, freed_by<X509_free>>;
using bio_ptr = std::unique_ptr<BIO, freed_by<BIO_free_all>>;

template <class T>
T* checked(T* made, const char* what) {
  if (made == nullptr) throw std::runtime_error(std::string(what) + " failed in OpenSSL");
  return made;
}

void check(int result, const char* what) {
  if (result <= 0) throw std::runtime_error(std::string(what) + " failed in OpenSSL");
}

std::string content_of(BIO* memory) {
  char* data = nullptr;
  const long size = BIO_get_mem_data(memory, &data);
  return {data, static_cast<std::size_t>(size)};
}

template <class Write>
std::string to_pem(Write write) {
  const bio_ptr memory(checked(BIO_new(BIO_s_mem()), "BIO_new"));
  check(write(memory.get()), "writing PEM");
  return content_of(memory.get());
}

EVP_PKEY* make_key(key_kind kind) {
  return checked(kind == key_kind::rsa_2048 ? EVP_RSA_gen(2048) : EVP_EC_gen("P-256"), "making a key");
}

void add_extension(X509* target, X509* issuer, int kind, const std::string& value) {
  X509V3_CTX context;
  X509V3_set_ctx(&context, issuer, target, nullptr, nullptr, 0);
  X509_EXTENSION* made = checked(X509V3_EXT_conf_nid(nullptr, &context, kind, value.c_str()), "an extension");
  const int added = X509_add_ext(target, made, -1);
  X509_EXTENSION_free(made);
  check(added, "X509_add_ext");
}

std::string fingerprint(const X509* made) {
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest;
  unsigned size = 0;
  check(X509_digest(made, EVP_sha256(), digest.data(), &size), "X509_digest");
  std::string text;
  for (unsigned i = 0; i < size; ++i) {
    text += "0123456789abcdef"[digest[i] >> 4];
    text += "0123456789abcdef"[digest[i] & 15];
  }
  return text;
}

}  // namespace

struct certificate::parts {
  key_ptr key;
  x509_ptr made;
};

certificate::certificate(const certificate_request& request, const certificate* issuer)
    : parts_(std::make_shared<parts>()) {
  parts_->key.reset(make_key(request.key));
  parts_->made.reset(checked(X509_new(), "X509_new"));
  X509* made = parts_->made.get();
  check(X509_set_version(made, 2), "X509_set_version");
  std::uint64_t serial = 0;
  check(RAND_bytes(reinterpret_cast<unsigned char*>(&serial), sizeof serial), "RAND_bytes");
  check(ASN1_INTEGER_set_uint64(X509_get_serialNumber(made), serial >> 1), "a serial number");
  checked(X509_time_adj_ex(X509_getm_notBefore(made), request.days_from, 0, nullptr), "a date");
  checked(X509_time_adj_ex(X509_getm_notAfter(made), request.days_until, request.seconds_until, nullptr), "a date");
  const auto* name = reinterpret_cast<const unsigned char*>(request.common_name.data());
  if (!request.common_name.empty()) {
    check(X509_NAME_add_entry_by_txt(X509_get_subject_name(made), "CN", MBSTRING_UTF8, name,
                                     static_cast<int>(request.common_name.size()), -1, 0),
          "a name");
  }
  X509* signer = issuer == nullptr ? made : issuer->parts_->made.get();
  check(X509_set_issuer_name(made, X509_get_subject_name(signer)), "X509_set_issuer_name");
  check(X509_set_pubkey(made, parts_->key.get()), "X509_set_pubkey");
  add_extension(made, signer, NID_subject_key_identifier, "hash");
  add_extension(made, signer, NID_authority_key_identifier, "keyid:always");
  add_extension(made, signer, NID_basic_constraints,
                request.authority ? "critical,CA:TRUE" : "critical,CA:FALSE");
  add_extension(
      made, signer, NID_key_usage,
      request.authority ? "critical,keyCertSign,cRLSign" : "critical,digitalSignature,keyEncipherment");
  std::string names;
  for (const auto& each : request.dns_names) {
    const bool is_address = each.find_first_not_of("0123456789.") == std::string::npos;
    if (!names.empty()) names += ',';
    names.append(is_address ? "IP:" : "DNS:").append(each);
  }
  if (!names.empty()) add_extension(made, signer, NID_subject_alt_name, names);
  EVP_PKEY* signing = issuer == nullptr ? parts_->key.get() : issuer->parts_->key.get();
  check(X509_sign(made, signing, EVP_sha256()), "X509_sign");
  pem_ = to_pem([&](BIO* to) { return PEM_write_bio_X509(to, made); });
  key_pem_ = to_pem([&](BIO* to) {
    return PEM_write_bio_PKCS8PrivateKey(to, parts_->key.get(), nullptr, nullptr, 0, nullptr, nullptr);
  });
  sha256_ = fingerprint(made);
  const bool under_root = issuer == nullptr || X509_self_signed(signer, 0) == 1;
  if (!under_root) issuers_pem_ = issuer->pem_ + issuer->issuers_pem_;
}

std::string certificate::encrypted_key_pem(const std::string& passphrase) const {
  return to_pem([&](BIO* to) {
    return PEM_write_bio_PKCS8PrivateKey(to, parts_->key.get(), EVP_aes_128_cbc(), passphrase.data(),
                                         static_cast<int>(passphrase.size()), nullptr, nullptr);
  });
}

std::string certificate::ocsp_response(const certificate& issued, int days_until) const {
  const std::unique_ptr<OCSP_BASICRESP, freed_by<OCSP_BASICRESP_free>> basic(
      checked(OCSP_BASICRESP_new(), "OCSP_BASICRESP_new"));
  const std::unique_ptr<ASN1_TIME, freed_by<ASN1_TIME_free>> from(checked(ASN1_TIME_adj(nullptr, ::time(nullptr), -9, 0),
                                                                         "a date"));
  const std::unique_ptr<ASN1_TIME, freed_by<ASN1_TIME_free>> until(
      checked(ASN1_TIME_adj(nullptr, ::time(nullptr), days_until, 0), "a date"));
  const std::unique_ptr<OCSP_CERTID, freed_by<OCSP_CERTID_free>> id(
      checked(OCSP_cert_to_id(EVP_sha1(), issued.parts_->made.get(), parts_->made.get()), "OCSP_cert_to_id"));
  checked(OCSP_basic_add1_status(basic.get(), id.get(), V_OCSP_CERTSTATUS_GOOD, 0, nullptr, from.get(), until.get()),
          "a status");
  check(OCSP_basic_sign(basic.get(), parts_->made.get(), parts_->key.get(), EVP_sha256(), nullptr, 0), "OCSP_basic_sign");
  const std::unique_ptr<OCSP_RESPONSE, freed_by<OCSP_RESPONSE_free>> made(
      checked(OCSP_response_create(OCSP_RESPONSE_STATUS_SUCCESSFUL, basic.get()), "OCSP_response_create"));
  unsigned char* bytes = nullptr;
  const int size = i2d_OCSP_RESPONSE(made.get(), &bytes);
  check(size, "i2d_OCSP_RESPONSE");
  std::string der(reinterpret_cast<char*>(bytes), static_cast<std::size_t>(size));
  OPENSSL_free(bytes);
  return der;
}

test_authority::test_authority()
    : root({.common_name = "percore test root", .authority = true}),
      localhost(issue("localhost", {"localhost", "127.0.0.1"})) {}

certificate test_authority::issue(std::string common_name, std::vector<std::string> dns_names,
                                  key_kind key) const {
  return certificate({.common_name = std::move(common_name), .dns_names = std::move(dns_names), .key = key},
                     &root);
}

const test_authority& authority() {
  static const test_authority made;
  return made;
}

temporary_file::temporary_file(std::string_view content) {
  const char* folder = ::getenv("TMPDIR");
  path_ = std::string(folder == nullptr ? "/tmp" : folder) + "/percore-XXXXXX";
  const int fd = ::mkstemp(path_.data());
  if (fd < 0) throw std::runtime_error("no temporary file at " + path_);
  ::close(fd);
  write(content);
}

temporary_file::~temporary_file() {
  ::unlink(path_.c_str());
}

void temporary_file::write(std::string_view content) const {
  std::ofstream(path_, std::ios::binary | std::ios::trunc) << content;
}

std::string temporary_file::read() const {
  std::ifstream file(path_, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace percore::test
