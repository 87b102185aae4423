#include "engine/tls/settings.hpp"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <fstream>
#include <memory>
#include <system_error>

#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/ocsp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

namespace percore::tls {

namespace {

void warn(const tls_options& options, const std::string& text) {
  if (options.on_warning) {
    options.on_warning(text);
  } else {
    std::fprintf(stderr, "percore: %s\n", text.c_str());
  }
}

std::string read_file(const std::string& path, const char* what) {
  std::ifstream file(path, std::ios::binary);
  std::string content;
  // By read(): it turns into a state what the buffer throws, for a folder for instance.
  for (char part[4096]; file.read(part, sizeof part) || file.gcount() > 0;) {
    content.append(part, static_cast<std::size_t>(file.gcount()));
  }
  if (!file.is_open() || file.bad()) {
    throw tls_error(std::string(what) + " '" + path + "': " + std::generic_category().message(errno));
  }
  return content;
}

bio_ptr reader_of(const std::string& text) {
  return bio_ptr(BIO_new_mem_buf(text.data(), static_cast<int>(text.size())));
}

// A text and where it came from, for messages.
struct source {
  std::string text;
  std::string name;
};

source open(const std::string& file, const std::string& pem, const char* what) {
  if (!file.empty() && !pem.empty()) {
    throw tls_error(std::string(what) + ": give a file or a text, not both ('" + file + "')");
  }
  if (!file.empty()) return {read_file(file, what), std::string(what) + " '" + file + "'"};
  return {pem, std::string(what) + " (text)"};
}

der encode(X509* certificate) {
  unsigned char* bytes = nullptr;
  const int size = i2d_X509(certificate, &bytes);
  if (size < 0) throw std::bad_alloc();
  der result(bytes, bytes + size);
  OPENSSL_free(bytes);
  return result;
}

std::vector<x509_ptr> read_certificates(const source& from) {
  std::vector<x509_ptr> result;
  const bio_ptr bio = reader_of(from.text);
  ERR_clear_error();
  while (X509* certificate = PEM_read_bio_X509(bio.get(), nullptr, nullptr, nullptr)) result.emplace_back(certificate);
  const unsigned long error = ERR_peek_last_error();
  const bool only_at_end = ERR_GET_LIB(error) == ERR_LIB_PEM && ERR_GET_REASON(error) == PEM_R_NO_START_LINE;
  if (!only_at_end) throw tls_error(from.name + ": not a certificate in PEM: " + take_openssl_error());
  ERR_clear_error();
  if (result.empty()) throw tls_error(from.name + ": holds no certificate in PEM (-----BEGIN CERTIFICATE-----)");
  return result;
}

struct passphrase_request {
  const std::function<std::string()>* ask;
  bool asked = false;
};

int passphrase_callback(char* target, int capacity, int, void* user) {
  auto& request = *static_cast<passphrase_request*>(user);
  request.asked = true;
  if (!*request.ask) return -1;
  std::string text;
  try {
    text = (*request.ask)();
  } catch (...) {
    return -1;  // no passphrase, no key
  }
  const auto size = std::min(text.size(), static_cast<std::size_t>(capacity));
  std::copy_n(text.data(), size, target);
  OPENSSL_cleanse(text.data(), text.size());
  return static_cast<int>(size);
}

pkey_ptr read_key(const source& from, const std::function<std::string()>& passphrase) {
  const bio_ptr bio = reader_of(from.text);
  ERR_clear_error();
  passphrase_request request{&passphrase};
  pkey_ptr key(PEM_read_bio_PrivateKey(bio.get(), nullptr, passphrase_callback, &request));
  if (key == nullptr) {
    const std::string reason = take_openssl_error();
    if (request.asked && !passphrase) throw tls_error(from.name + ": the key is encrypted and no passphrase is given");
    if (request.asked) throw tls_error(from.name + ": the key cannot be decrypted (wrong passphrase?): " + reason);
    throw tls_error(from.name + ": holds no private key in PEM: " + reason);
  }
  return key;
}

std::string to_lower(std::string text) {
  for (char& c : text) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c | 0x20);
  }
  return text;
}

// The DNS names of subjectAltName; the common name when there are none, as certificates for oneself often are made.
std::vector<std::string> names_of(X509* certificate) {
  std::vector<std::string> result;
  for (const auto& name : dns_names_of(certificate)) result.push_back(to_lower(name));
  if (!result.empty()) return result;
  std::string common(256, '\0');
  const int size = X509_NAME_get_text_by_NID(X509_get_subject_name(certificate), NID_commonName, common.data(), 256);
  if (size > 0) result.push_back(to_lower(common.substr(0, static_cast<std::size_t>(size))));
  return result;
}

void check_dates(const tls_options& options, X509* certificate, const std::string& name) {
  if (X509_cmp_current_time(X509_get0_notAfter(certificate)) < 0) {
    warn(options, name + ": the certificate has expired; clients will refuse it");
  } else if (X509_cmp_current_time(X509_get0_notBefore(certificate)) > 0) {
    warn(options, name + ": the certificate is not valid yet; clients will refuse it");
  }
}

struct free_ocsp {
  void operator()(OCSP_RESPONSE* response) const noexcept { OCSP_RESPONSE_free(response); }
  void operator()(OCSP_BASICRESP* response) const noexcept { OCSP_BASICRESP_free(response); }
};

bool is_about(OCSP_SINGLERESP* single, const X509* certificate) {
  ASN1_INTEGER* serial = nullptr;
  auto* id = const_cast<OCSP_CERTID*>(OCSP_SINGLERESP_get0_id(single));
  return OCSP_id_get0_info(nullptr, nullptr, nullptr, &serial, id) == 1 &&
         ASN1_INTEGER_cmp(serial, X509_get0_serialNumber(certificate)) == 0;
}

// A client that cannot use a response may refuse the connection for it.
void check_ocsp_response(const tls_options& options, const std::string& response, const std::string& name,
                         const X509* certificate) {
  const auto* from = reinterpret_cast<const unsigned char*>(response.data());
  const auto* const end = from + response.size();
  const std::unique_ptr<OCSP_RESPONSE, free_ocsp> whole(
      d2i_OCSP_RESPONSE(nullptr, &from, static_cast<long>(response.size())));
  ERR_clear_error();
  if (whole == nullptr || from != end) throw tls_error(name + ": is no OCSP response in DER");
  if (const int status = OCSP_response_status(whole.get()); status != OCSP_RESPONSE_STATUS_SUCCESSFUL) {
    throw tls_error(name + ": says '" + OCSP_response_status_str(status) + "' and no certificate's status");
  }
  const std::unique_ptr<OCSP_BASICRESP, free_ocsp> basic(OCSP_response_get1_basic(whole.get()));
  ERR_clear_error();
  OCSP_SINGLERESP* found = nullptr;
  for (int i = 0; basic != nullptr && found == nullptr && i < OCSP_resp_count(basic.get()); ++i) {
    OCSP_SINGLERESP* single = OCSP_resp_get0(basic.get(), i);
    if (is_about(single, certificate)) found = single;
  }
  if (found == nullptr) throw tls_error(name + ": says nothing about its certificate");
  ASN1_GENERALIZEDTIME* next_update = nullptr;
  (void)OCSP_single_get0_status(found, nullptr, nullptr, nullptr, &next_update);
  if (next_update != nullptr && X509_cmp_current_time(next_update) < 0) {
    warn(options, name + ": is out of date; clients may refuse it");
  }
}

loaded_certificate load_certificate(const tls_options& options, const tls_certificate& given) {
  if (given.chain_file.empty() && given.chain_pem.empty()) {
    throw tls_error("tls_certificate: chain_file or chain_pem must be given");
  }
  if (given.key_file.empty() && given.key_pem.empty()) {
    throw tls_error("tls_certificate: key_file or key_pem must be given");
  }
  const source chain = open(given.chain_file, given.chain_pem, "certificate");
  source key_text = open(given.key_file, given.key_pem, "key");
  const std::vector<x509_ptr> certificates = read_certificates(chain);
  const pkey_ptr key = read_key(key_text, given.passphrase);
  OPENSSL_cleanse(key_text.text.data(), key_text.text.size());
  if (X509_check_private_key(certificates.front().get(), key.get()) != 1) {
    ERR_clear_error();
    throw tls_error(key_text.name + " does not belong to the first certificate of " + chain.name);
  }
  check_dates(options, certificates.front().get(), chain.name);

  loaded_certificate result;
  for (const auto& certificate : certificates) result.chain.push_back(encode(certificate.get()));
  unsigned char* bytes = nullptr;
  const int size = i2d_PrivateKey(key.get(), &bytes);
  if (size < 0) throw tls_error(key_text.name + ": " + take_openssl_error());
  result.key.assign(bytes, bytes + size);
  OPENSSL_clear_free(bytes, static_cast<std::size_t>(size));
  result.key_type = EVP_PKEY_get_base_id(key.get());
  for (const auto& name : given.names) result.names.push_back(to_lower(name));
  if (result.names.empty()) result.names = names_of(certificates.front().get());
  if (!given.ocsp_file.empty()) {
    const std::string response = read_file(given.ocsp_file, "OCSP response");
    if (response.empty() || response.size() > 65'535) {
      throw tls_error("OCSP response '" + given.ocsp_file + "': must have from 1 to 65535 bytes of DER");
    }
    check_ocsp_response(options, response, "OCSP response '" + given.ocsp_file + "'", certificates.front().get());
    result.ocsp_response.assign(response.begin(), response.end());
  }
  return result;
}

std::vector<unsigned char> encode_alpn(const std::vector<std::string>& protocols) {
  std::vector<unsigned char> result;
  for (const auto& name : protocols) {
    if (name.empty() || name.size() > 255) throw tls_error("alpn: a protocol's name has from 1 to 255 bytes");
    result.push_back(static_cast<unsigned char>(name.size()));
    result.insert(result.end(), name.begin(), name.end());
  }
  return result;
}

std::array<unsigned char, 8> digest_of_trust(const settings& given) {
  std::vector<unsigned char> terms{static_cast<unsigned char>(given.options.clients),
                                   static_cast<unsigned char>(given.options.verify_depth)};
  for (const der& authority : given.authorities) {
    for (std::size_t size = authority.size(), i = 0; i < 4; ++i, size >>= 8) {
      terms.push_back(static_cast<unsigned char>(size));
    }
    terms.insert(terms.end(), authority.begin(), authority.end());
  }
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
  if (EVP_Digest(terms.data(), terms.size(), digest.data(), nullptr, EVP_sha256(), nullptr) != 1) {
    throw tls_error("SHA-256: " + take_openssl_error());
  }
  std::array<unsigned char, 8> result{};
  std::copy_n(digest.begin(), result.size(), result.begin());
  return result;
}

}  // namespace

loaded_certificate::~loaded_certificate() {
  if (!key.empty()) OPENSSL_cleanse(key.data(), key.size());
}

std::shared_ptr<const settings> load(const tls_options& options, tls_role role) {
  if (options.min_version > options.max_version) throw tls_error("min_version is above max_version");
  if (role == tls_role::server && options.certificates.empty()) throw tls_error("a server needs a certificate");
  if (role == tls_role::client && options.certificates.size() > 1) {
    throw tls_error("a client can show one certificate only");
  }
  if (options.verify_depth < 0 || options.verify_depth > 100) throw tls_error("verify_depth must be from 0 to 100");
  if (options.ticket_key_lifetime.count() < 1 || options.ticket_key_lifetime > std::chrono::hours(24 * 7)) {
    throw tls_error("ticket_key_lifetime must be from 1 s to 7 days");
  }
  if (options.session_lifetime.count() < 1 || options.session_lifetime > std::chrono::hours(24 * 7)) {
    throw tls_error("session_lifetime must be from 1 s to 7 days");
  }
  if (options.resumption_lifetime.count() < 1 || options.resumption_lifetime > std::chrono::hours(24 * 7)) {
    throw tls_error("resumption_lifetime must be from 1 s to 7 days");
  }
  if (options.client_sessions > 4096) throw tls_error("client_sessions must be at most 4096");
  auto made = std::make_shared<settings>();
  made->options = options;
  made->role = role;
  for (const auto& certificate : options.certificates) {
    made->certificates.push_back(load_certificate(options, certificate));
  }
  made->alpn = encode_alpn(options.alpn);
  if (!options.authorities_file.empty() || !options.authorities_pem.empty()) {
    const source from = open(options.authorities_file, options.authorities_pem, "authorities");
    for (const auto& certificate : read_certificates(from)) made->authorities.push_back(encode(certificate.get()));
  } else if (role == tls_role::server && options.clients != client_certificates::none) {
    throw tls_error("client certificates are asked for, but neither authorities_file nor authorities_pem is given");
  }
  made->trust = digest_of_trust(*made);
  if (!options.key_log_file.empty()) {
    warn(options, "key_log_file '" + options.key_log_file + "': whoever can read it can decrypt every connection");
  }
  return made;
}

}  // namespace percore::tls
