// What OpenSSL asks a core's context in the midst of a handshake.
#include <algorithm>
#include <array>
#include <cstring>

#include <openssl/core_names.h>
#include <openssl/rand.h>

#include "engine/sys/calls.hpp"
#include "engine/tls/core_context.hpp"
#include "engine/tls/session.hpp"

namespace percore::tls {

core_context& core_context::of(const SSL* session) noexcept {
  return *static_cast<core_context*>(SSL_CTX_get_app_data(SSL_get_SSL_CTX(session)));
}

SSL_CTX* core_context::find(std::string_view name) const noexcept {
  // A name of the DNS has at most 253 characters (RFC 1035 2.3.4, without the final dot).
  if (name.empty() || name.size() > 253) return nullptr;
  std::array<char, 256> lower;
  std::transform(name.begin(), name.end(), lower.begin(),
                 [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c | 0x20) : c; });
  std::string_view wanted(lower.data(), name.size());
  if (const auto exact = by_name_.find(wanted); exact != by_name_.end()) return exact->second;
  const std::size_t dot = wanted.find('.');
  if (dot == std::string_view::npos || dot == 0) return nullptr;
  lower[dot - 1] = '*';
  wanted.remove_prefix(dot - 1);
  const auto wildcard = by_name_.find(wanted);
  return wildcard == by_name_.end() ? nullptr : wildcard->second;
}

int core_context::on_server_name(SSL* session, int*, void*) {
  const char* name = SSL_get_servername(session, TLSEXT_NAMETYPE_host_name);
  if (name == nullptr) return SSL_TLSEXT_ERR_NOACK;
  SSL_CTX* found = of(session).find(name);
  if (found == nullptr) return SSL_TLSEXT_ERR_NOACK;
  if (found != SSL_get_SSL_CTX(session) && SSL_set_SSL_CTX(session, found) == nullptr) {
    return SSL_TLSEXT_ERR_ALERT_FATAL;
  }
  return SSL_TLSEXT_ERR_OK;
}

int core_context::on_alpn(SSL* session, const unsigned char** out, unsigned char* out_size, const unsigned char* in,
                          unsigned in_size, void*) {
  const auto& ours = of(session).settings_->alpn;
  unsigned char* chosen = nullptr;
  if (SSL_select_next_proto(&chosen, out_size, ours.data(), static_cast<unsigned>(ours.size()), in, in_size) !=
      OPENSSL_NPN_NEGOTIATED) {
    return SSL_TLSEXT_ERR_ALERT_FATAL;
  }
  *out = chosen;
  return SSL_TLSEXT_ERR_OK;
}

int core_context::on_status_request(SSL* session, void*) {
  const X509* shown = SSL_get_certificate(session);
  if (shown == nullptr) return SSL_TLSEXT_ERR_NOACK;
  const int type = EVP_PKEY_get_base_id(X509_get0_pubkey(shown));
  for (const auto& certificate : of(session).settings_->certificates) {
    if (certificate.ocsp_response.empty() || certificate.key_type != type) continue;
    unsigned char* encoded = nullptr;
    const int size = i2d_X509(shown, &encoded);
    const bool same = size > 0 && certificate.chain.front().size() == static_cast<std::size_t>(size) &&
                      std::memcmp(encoded, certificate.chain.front().data(), static_cast<std::size_t>(size)) == 0;
    OPENSSL_free(encoded);
    if (!same) continue;
    const auto& response = certificate.ocsp_response;
    void* copy = OPENSSL_memdup(response.data(), response.size());  // the session frees it
    if (copy == nullptr) return SSL_TLSEXT_ERR_NOACK;
    SSL_set_tlsext_status_ocsp_resp(session, copy, static_cast<long>(response.size()));
    return SSL_TLSEXT_ERR_OK;
  }
  return SSL_TLSEXT_ERR_NOACK;
}

int core_context::on_ticket_key(SSL* session, unsigned char* name, unsigned char* iv, EVP_CIPHER_CTX* cipher,
                                EVP_MAC_CTX* mac, int encrypting) {
  const int answer = of(session).use_ticket_key(name, iv, cipher, mac, encrypting != 0);
  // A TLS 1.3 client uses a ticket once (RFC 8446 C.4) and needs another, which OpenSSL sends only when told to renew.
  return answer == 1 && encrypting == 0 && SSL_version(session) == TLS1_3_VERSION ? 2 : answer;
}

// As SSL_CTX_set_tlsext_ticket_key_evp_cb(3) wants it: -1 failed, 0 no such key, 1 go on, 2 go on and renew.
int core_context::use_ticket_key(unsigned char* name, unsigned char* iv, EVP_CIPHER_CTX* cipher, EVP_MAC_CTX* mac,
                                 bool encrypting) {
  if (!owner_->tickets().refresh(ticket_keys_, sys::monotonic_ns())) return -1;
  const ticket_key* key = &ticket_keys_.current;
  int answer = 1;
  if (encrypting) {
    std::memcpy(name, key->name.data(), key->name.size());
    if (RAND_bytes_ex(library_, iv, 16, 0) != 1) return -1;
  } else if (std::memcmp(name, key->name.data(), key->name.size()) != 0) {
    key = &ticket_keys_.previous;
    if (!ticket_keys_.has_previous || std::memcmp(name, key->name.data(), key->name.size()) != 0) return 0;
    answer = 2;
  }
  char digest[] = "SHA256";
  const std::array<OSSL_PARAM, 3> parameters{
      OSSL_PARAM_construct_octet_string(OSSL_MAC_PARAM_KEY, const_cast<unsigned char*>(key->mac.data()),
                                        key->mac.size()),
      OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_DIGEST, digest, 0), OSSL_PARAM_construct_end()};
  if (EVP_MAC_CTX_set_params(mac, parameters.data()) != 1) return -1;
  if (EVP_CipherInit_ex(cipher, ticket_cipher_.get(), nullptr, key->cipher.data(), iv, encrypting ? 1 : 0) != 1) {
    return -1;
  }
  return answer;
}

namespace {

// What a ticket says of the full handshake that its chain of resumptions began with, in seconds since 1970.
struct authentication {
  std::int64_t done;         // when it was
  std::int64_t valid_until;  // the first certificate of the client's path expires; 0: it has shown none
};

}  // namespace

std::int64_t first_expiry(const SSL* session) noexcept {
  const STACK_OF(X509)* chain = SSL_get0_verified_chain(session);
  std::int64_t first = 0;
  for (int i = 0; i < sk_X509_num(chain); ++i) {
    const std::int64_t expires = to_time(X509_get0_notAfter(sk_X509_value(chain, i)));
    if (first == 0 || expires < first) first = expires;
  }
  return first;
}

// A session that was resumed bears what its first ticket said.
int core_context::on_new_ticket(SSL* session, void*) {
  if (SSL_session_reused(session) == 1) return 1;
  const authentication now{sys::unix_seconds(), first_expiry(session)};
  return SSL_SESSION_set1_ticket_appdata(SSL_get_session(session), &now, sizeof now);
}

SSL_TICKET_RETURN core_context::on_shown_ticket(SSL* session, SSL_SESSION* shown, const unsigned char*, std::size_t,
                                                SSL_TICKET_STATUS status, void*) {
  if (status != SSL_TICKET_SUCCESS && status != SSL_TICKET_SUCCESS_RENEW) return SSL_TICKET_RETURN_IGNORE_RENEW;
  authentication first{};
  void* data = nullptr;
  std::size_t size = 0;
  if (SSL_SESSION_get0_ticket_appdata(shown, &data, &size) != 1 || size != sizeof first) {
    return SSL_TICKET_RETURN_IGNORE_RENEW;
  }
  std::memcpy(&first, data, size);
  const std::int64_t now = sys::unix_seconds();
  const std::int64_t lifetime = of(session).settings_->options.resumption_lifetime.count();
  const bool too_old = now < first.done || now - first.done >= lifetime;
  const bool expired = first.valid_until != 0 && now > first.valid_until;
  if (too_old || expired) return SSL_TICKET_RETURN_IGNORE_RENEW;
  return status == SSL_TICKET_SUCCESS ? SSL_TICKET_RETURN_USE : SSL_TICKET_RETURN_USE_RENEW;
}

// A client has something to resume with: at the end of a handshake of TLS 1.2, and whenever a ticket of 1.3 comes. 1: taken.
int core_context::on_new_session(SSL* ssl, SSL_SESSION* fresh) {
  auto* owner = static_cast<session*>(SSL_get_app_data(ssl));
  return owner != nullptr && owner->keep_for_resumption(fresh) ? 1 : 0;
}

void core_context::on_key_log(const SSL* session, const char* line) { of(session).owner_->log_key(line); }

}  // namespace percore::tls
