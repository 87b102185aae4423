#include "tests/support/tls_client.hpp"

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

#include <array>
#include <utility>

namespace percore::test {
namespace {

std::string reason() {
  const unsigned long error = ERR_peek_error();
  const char* text = ERR_reason_error_string(error);
  ERR_clear_error();
  return text == nullptr ? "unknown" : text;
}

void check(bool ok, const std::string& what) {
  if (!ok) throw std::runtime_error(what + ": " + reason());
}

// Where a client keeps its newest ticket: the SSL's application data.
int keep_ticket(SSL* ssl, SSL_SESSION* session) {
  auto* kept = static_cast<session_ptr*>(SSL_get_app_data(ssl));
  if (kept == nullptr) return 0;
  // A copy: SSL_free() makes the session of a connection without close_notify useless
  // (ssl_clear_bad_session).
  *kept = session_ptr(SSL_SESSION_dup(session), SSL_SESSION_free);
  return 0;
}

template <class Use>
void with_pem(const std::string& pem, Use use) {
  BIO* memory = BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size()));
  while (X509* each = PEM_read_bio_X509(memory, nullptr, nullptr, nullptr)) {
    use(each);
    X509_free(each);
  }
  BIO_free(memory);
  ERR_clear_error();
}

void show(SSL_CTX* context, const certificate& identity) {
  bool first = true;
  with_pem(identity.chain_pem(), [&](X509* each) {
    check((first ? SSL_CTX_use_certificate(context, each) : SSL_CTX_add1_chain_cert(context, each)) == 1,
          "client certificate");
    first = false;
  });
  BIO* memory = BIO_new_mem_buf(identity.key_pem().data(), static_cast<int>(identity.key_pem().size()));
  EVP_PKEY* key = PEM_read_bio_PrivateKey(memory, nullptr, nullptr, nullptr);
  BIO_free(memory);
  const bool ok = SSL_CTX_use_PrivateKey(context, key) == 1;
  EVP_PKEY_free(key);
  check(ok, "client key");
}

}  // namespace

tls_profile::tls_profile(const tls_client_options& how)
    : options_(how), context_(SSL_CTX_new(TLS_client_method()), SSL_CTX_free) {
  SSL_CTX* made = context_.get();
  check(made != nullptr, "SSL_CTX_new");
  check(SSL_CTX_set_min_proto_version(made, how.min_version) == 1, "min_version");
  check(SSL_CTX_set_max_proto_version(made, how.max_version) == 1, "max_version");
  SSL_CTX_set_security_level(made, 0);  // what the server refuses is what is tested
  if (!how.ciphers.empty()) check(SSL_CTX_set_cipher_list(made, how.ciphers.c_str()) == 1, how.ciphers);
  if (!how.ciphersuites.empty())
    check(SSL_CTX_set_ciphersuites(made, how.ciphersuites.c_str()) == 1, how.ciphersuites);
  if (!how.groups.empty()) check(SSL_CTX_set1_groups_list(made, how.groups.c_str()) == 1, how.groups);
  const std::string& algorithms = how.signature_algorithms;
  if (!algorithms.empty()) check(SSL_CTX_set1_sigalgs_list(made, algorithms.c_str()) == 1, algorithms);
  std::string protocols;
  for (const auto& name : how.alpn) protocols += static_cast<char>(name.size()) + name;
  if (!protocols.empty()) {
    SSL_CTX_set_alpn_protos(made, reinterpret_cast<const unsigned char*>(protocols.data()),
                            static_cast<unsigned>(protocols.size()));
  }
  if (how.identity != nullptr) show(made, *how.identity);
  if (how.verify) {
    SSL_CTX_set_verify(made, SSL_VERIFY_PEER, nullptr);
    with_pem(authority().root.pem(),
             [&](X509* root) { X509_STORE_add_cert(SSL_CTX_get_cert_store(made), root); });
  }
  if (how.ask_for_status) SSL_CTX_set_tlsext_status_type(made, TLSEXT_STATUSTYPE_ocsp);
  SSL_CTX_set_session_cache_mode(made, SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
  SSL_CTX_sess_set_new_cb(made, keep_ticket);
}

tls_client::tls_client(const address& where, const tls_profile& how, const session_ptr& resumed,
                       const client::options& socket)
    : tls_client(client(where, socket), how, resumed) {}

tls_client::tls_client(client socket, const tls_profile& how, const session_ptr& resumed)
    : socket_(std::move(socket)), ssl_(SSL_new(how.context()), SSL_free) {
  check(ssl_ != nullptr, "SSL_new");
  SSL_set_app_data(ssl_.get(), ticket_.get());
  BIO* input = BIO_new(BIO_s_mem());
  BIO_set_mem_eof_return(input, -1);
  SSL_set_bio(ssl_.get(), input, BIO_new(BIO_s_mem()));
  SSL_set_connect_state(ssl_.get());
  const std::string& name = how.options().server_name;
  if (!name.empty()) SSL_set_tlsext_host_name(ssl_.get(), name.c_str());
  if (resumed != nullptr) {
    // OpenSSL changes a session that it resumes, and other threads may resume the same one.
    const session_ptr own(SSL_SESSION_dup(resumed.get()), SSL_SESSION_free);
    check(SSL_set_session(ssl_.get(), own.get()) == 1, "SSL_set_session");
  }
}

void tls_client::fail() {
  const std::string why = reason();
  try {
    send_output();  // the alert
  } catch (const std::system_error&) {
    // the server is gone already
  }
  throw tls_went_wrong(why);
}

std::string tls_client::take_output() {
  BIO* output = SSL_get_wbio(ssl_.get());
  char* data = nullptr;
  const long size = BIO_get_mem_data(output, &data);
  std::string bytes(data, static_cast<std::size_t>(size));
  (void)BIO_reset(output);
  return bytes;
}

void tls_client::send_output() {
  socket_.send_all(take_output());
}

bool tls_client::receive() {
  const std::string some = socket_.recv_some();
  if (!some.empty()) BIO_write(SSL_get_rbio(ssl_.get()), some.data(), static_cast<int>(some.size()));
  return !some.empty();
}

std::string tls_client::handshake_step() {
  ERR_clear_error();
  const int result = SSL_do_handshake(ssl_.get());
  if (result != 1 && SSL_get_error(ssl_.get(), result) != SSL_ERROR_WANT_READ) fail();
  return take_output();
}

tls_client& tls_client::handshake() {
  for (;;) {
    socket_.send_all(handshake_step());
    if (handshake_done()) return *this;
    if (!receive()) throw tls_went_wrong("the stream ended in the handshake");
  }
}

std::string tls_client::encrypt(std::string_view data) {
  while (!data.empty()) {
    std::size_t written = 0;
    ERR_clear_error();
    if (SSL_write_ex(ssl_.get(), data.data(), data.size(), &written) != 1) fail();
    data.remove_prefix(written);
  }
  return take_output();
}

void tls_client::send_all(std::string_view data) {
  socket_.send_all(encrypt(data));
}

std::string tls_client::recv_some(std::size_t limit) {
  std::string data(limit, '\0');
  for (;;) {
    std::size_t got = 0;
    ERR_clear_error();
    const int result = SSL_read_ex(ssl_.get(), data.data(), data.size(), &got);
    if (result == 1) {
      data.resize(got);
      return data;
    }
    switch (SSL_get_error(ssl_.get(), result)) {
      case SSL_ERROR_WANT_READ:
        send_output();  // an answer to a key update
        if (!receive()) return {};
        break;
      case SSL_ERROR_ZERO_RETURN:
        return {};
      default:
        fail();
    }
  }
}

std::string tls_client::recv_exactly(std::size_t count) {
  std::string all;
  while (all.size() < count) {
    const std::string some = recv_some(count - all.size());
    if (some.empty()) throw std::runtime_error("the stream ended after: " + all.substr(0, 200));
    all += some;
  }
  return all;
}

std::string tls_client::recv_to_end() {
  std::string all;
  for (;;) {
    const std::string some = recv_some();
    if (some.empty()) return all;
    all += some;
  }
}

bool tls_client::ended_cleanly() {
  (void)recv_to_end();
  return close_received();
}

void tls_client::close_notify() {
  ERR_clear_error();
  (void)SSL_shutdown(ssl_.get());
  send_output();
}

std::string tls_client::alpn() const {
  const unsigned char* name = nullptr;
  unsigned length = 0;
  SSL_get0_alpn_selected(ssl_.get(), &name, &length);
  return length == 0 ? std::string() : std::string(reinterpret_cast<const char*>(name), length);
}

std::string tls_client::peer_sha256() const {
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest;
  unsigned size = 0;
  const X509* shown = SSL_get0_peer_certificate(ssl_.get());
  if (shown == nullptr || X509_digest(shown, EVP_sha256(), digest.data(), &size) != 1) return {};
  std::string text;
  for (unsigned i = 0; i < size; ++i) {
    text += "0123456789abcdef"[digest[i] >> 4];
    text += "0123456789abcdef"[digest[i] & 15];
  }
  return text;
}

session_ptr tls_client::ticket() const {
  if (*ticket_ != nullptr || version() != TLS1_2_VERSION) return *ticket_;
  // In a resumed session of TLS 1.2 the callback is not told of the ticket that takes the place of the old
  // one.
  SSL_SESSION* now = SSL_get0_session(ssl_.get());
  if (now == nullptr || SSL_SESSION_has_ticket(now) == 0) return {};
  return {SSL_SESSION_dup(now), SSL_SESSION_free};
}

session_ptr with_broken_ticket(const session_ptr& good, long byte) {
  const unsigned char* ticket = nullptr;
  std::size_t size = 0;
  SSL_SESSION_get0_ticket(good.get(), &ticket, &size);
  unsigned char* encoded = nullptr;
  const int length = i2d_SSL_SESSION(good.get(), &encoded);
  if (length <= 0 || ticket == nullptr) throw std::runtime_error("a session without a ticket");
  std::string bytes(reinterpret_cast<char*>(encoded), static_cast<std::size_t>(length));
  OPENSSL_free(encoded);
  const std::size_t at = bytes.find(std::string_view(reinterpret_cast<const char*>(ticket), size));
  if (at == std::string::npos) throw std::runtime_error("a ticket that is not in its session");
  const auto offset = static_cast<std::size_t>(byte < 0 ? static_cast<long>(size) + byte : byte);
  bytes[at + offset] = static_cast<char>(bytes[at + offset] ^ 1);
  const auto* from = reinterpret_cast<const unsigned char*>(bytes.data());
  SSL_SESSION* broken = d2i_SSL_SESSION(nullptr, &from, length);
  if (broken == nullptr) throw std::runtime_error("a session cannot be decoded");
  return {broken, SSL_SESSION_free};
}

}  // namespace percore::test
