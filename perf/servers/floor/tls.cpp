// Key material and the SSL_CTX of a loop.

#include "perf/servers/floor/tls.hpp"

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/rand.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <system_error>
#include <utility>

#include "perf/servers/self_signed.hpp"

namespace floor_server {
namespace {

using bio_ptr = std::unique_ptr<BIO, frees<BIO_free>>;
using key_ptr = std::unique_ptr<EVP_PKEY, frees<EVP_PKEY_free>>;
using certificate_ptr = std::unique_ptr<X509, frees<X509_free>>;

// AES-128-GCM first: the charts' suite, and the cheapest here. ECDHE only, as in TLS 1.3.
constexpr const char* tls13_suites =
    "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256";
constexpr const char* tls12_suites =
    "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384:"
    "ECDHE-RSA-AES256-GCM-SHA384:ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305";

[[noreturn]] void fail(const std::string& what, const std::string& why) {
  std::fprintf(stderr, "%s: %s: %s\n", program_invocation_short_name, what.c_str(), why.c_str());
  std::exit(1);
}

// With the latest of OpenSSL's reasons, which names what the caller did; earlier ones tell inner causes.
[[noreturn]] void fail(const std::string& what) {
  const char* reason = ERR_reason_error_string(ERR_peek_last_error());
  fail(what, reason != nullptr ? reason : "unknown error");
}

std::string read_file(const std::string& path, const char* option) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  if (file) text << file.rdbuf();
  if (!file || !text) fail(option, "'" + path + "': " + std::system_category().message(errno));
  return text.str();
}

bio_ptr reader(const std::string& text) {
  return bio_ptr(BIO_new_mem_buf(text.data(), static_cast<int>(text.size())));
}

void make_pair(key_type type, tls_material& material) {
  try {
    self_signed::pem_pair made = self_signed::make(type);
    material.certificate_pem = std::move(made.certificate);
    material.key_pem = std::move(made.key);
  } catch (const std::runtime_error& e) {
    fail("--key-type", e.what());
  }
}

// A password prompt would hang a server that is started by a program.
int no_password(char*, int, int, void*) {
  return -1;
}

void use_chain(SSL_CTX* context, const tls_material& material) {
  const bio_ptr pem = reader(material.certificate_pem);
  const certificate_ptr leaf(PEM_read_bio_X509(pem.get(), nullptr, nullptr, nullptr));
  if (!leaf || SSL_CTX_use_certificate(context, leaf.get()) != 1) fail("--cert");
  while (X509* issuer = PEM_read_bio_X509(pem.get(), nullptr, nullptr, nullptr))
    if (SSL_CTX_add0_chain_cert(context, issuer) != 1) fail("--cert");
  ERR_clear_error();  // the end of the file
}

void use_key(SSL_CTX* context, const tls_material& material) {
  const key_ptr key(PEM_read_bio_PrivateKey(reader(material.key_pem).get(), nullptr, no_password, nullptr));
  if (!key || SSL_CTX_use_PrivateKey(context, key.get()) != 1) fail("--key");
}

// Tickets are stateless in both versions, so there is no cache to share between the loops, only the keys.
void set_resumption(SSL_CTX* context, const tls_options& opt, const tls_material& material) {
  SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
  if (!opt.tickets) {
    SSL_CTX_set_options(context, SSL_OP_NO_TICKET);
    SSL_CTX_set_num_tickets(context, 0);
    return;
  }
  auto keys = material.ticket_keys;
  if (SSL_CTX_set_tlsext_ticket_keys(context, keys.data(), static_cast<long>(keys.size())) != 1)
    fail("ticket keys");
}

}  // namespace

tls_material load_tls_material(const tls_options& opt) {
  tls_material material;
  if (opt.key_file.empty()) {
    make_pair(opt.key, material);
  } else {
    material.certificate_pem = read_file(opt.certificate_file, "--cert");
    material.key_pem = read_file(opt.key_file, "--key");
  }
  if (RAND_bytes(material.ticket_keys.data(), static_cast<int>(material.ticket_keys.size())) != 1)
    fail("ticket keys");
  make_tls_context(opt, material);  // says now what is wrong
  return material;
}

context_ptr make_tls_context(const tls_options& opt, const tls_material& material) {
  context_ptr owner(SSL_CTX_new(TLS_server_method()));
  SSL_CTX* context = owner.get();
  if (context == nullptr) fail("SSL_CTX_new");
  SSL_CTX_set_options(context, SSL_OP_CIPHER_SERVER_PREFERENCE | SSL_OP_NO_RENEGOTIATION);
  if (opt.min_version != 0) SSL_CTX_set_min_proto_version(context, opt.min_version);
  if (opt.max_version != 0) SSL_CTX_set_max_proto_version(context, opt.max_version);
  if (SSL_CTX_set_ciphersuites(context, tls13_suites) != 1 ||
      SSL_CTX_set_cipher_list(context, tls12_suites) != 1)
    fail("cipher suites");
  use_chain(context, material);
  use_key(context, material);
  if (SSL_CTX_check_private_key(context) != 1) fail("--cert and --key");
  set_resumption(context, opt, material);
  return owner;
}

}  // namespace floor_server
