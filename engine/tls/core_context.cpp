// Making the SSL_CTXs of a core: every option of OpenSSL is set here.
#include "engine/tls/core_context.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <utility>

#include <openssl/err.h>
#include <openssl/x509v3.h>

namespace percore::tls {

namespace {

// Forward secrecy and authenticated encryption only; AES-128 before AES-256, which costs more and protects no better
// against what is known.
constexpr const char* default_ciphers = "ECDHE+AES128+AESGCM:ECDHE+AESGCM:ECDHE+CHACHA20";
constexpr const char* default_ciphersuites =
    "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256";
constexpr const char* default_groups = "X25519:P-256:P-384";

}  // namespace

core_context::core_context(std::shared_ptr<shared_context> owner, std::shared_ptr<const settings> given,
                           std::uint64_t version, OSSL_LIB_CTX* library)
    : owner_(std::move(owner)),
      settings_(std::move(given)),
      version_(version),
      library_(library),
      ticket_cipher_(EVP_CIPHER_fetch(library, "AES-256-CBC", nullptr)),
      cache_(settings_->options.client_sessions, settings_->options.resumption_lifetime.count()) {
  if (!ticket_cipher_) throw tls_error("AES-256-CBC for session tickets: " + take_openssl_error());
  make_name_table();
}

ssl_ptr core_context::make_session(std::uint64_t identity) noexcept {
  ssl_ptr made(SSL_new(contexts_.front().get()));
  if (!made) {
    ERR_clear_error();
    return nullptr;
  }
  std::array<unsigned char, 32> id{};
  std::memcpy(id.data(), owner_->identity().data(), 16);
  std::memcpy(id.data() + 16, &identity, 8);
  std::memcpy(id.data() + 24, settings_->trust.data(), 8);
  SSL_set_session_id_context(made.get(), id.data(), static_cast<unsigned>(id.size()));
  if (settings_->role == tls_role::server) {
    SSL_set_accept_state(made.get());
  } else {
    SSL_set_connect_state(made.get());
  }
  return made;
}

bool core_context::set_server_name(SSL* session, const std::string& name) const noexcept {
  X509_VERIFY_PARAM* checks = SSL_get0_param(session);
  ERR_clear_error();
  if (X509_VERIFY_PARAM_set1_ip_asc(checks, name.c_str()) == 1) return true;
  ERR_clear_error();
  SSL_set_hostflags(session, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
  const bool ok = SSL_set1_host(session, name.c_str()) == 1 && SSL_set_tlsext_host_name(session, name.c_str()) == 1;
  ERR_clear_error();
  return ok;
}

bool core_context::resumes() const noexcept {
  return settings_->role == tls_role::client && settings_->options.tickets && settings_->options.client_sessions != 0;
}

// Which certificates a name gets: of each key type the first one that bears it. Names that get the same ones share an
// SSL_CTX.
void core_context::make_name_table() {
  using group = std::vector<const loaded_certificate*>;
  const auto& all = settings_->certificates;
  const auto first_of_each_type = [&all](auto fits) {
    group result;
    for (const auto& certificate : all) {
      const bool has_type = std::any_of(result.begin(), result.end(), [&](const loaded_certificate* other) {
        return other->key_type == certificate.key_type;
      });
      if (fits(certificate) && !has_type) result.push_back(&certificate);
    }
    return result;
  };
  const auto bearing = [&](const std::string& name) {
    return first_of_each_type([&name](const loaded_certificate& certificate) {
      return std::find(certificate.names.begin(), certificate.names.end(), name) != certificate.names.end();
    });
  };
  const auto nameless = [&] {
    return first_of_each_type([](const loaded_certificate& certificate) { return certificate.names.empty(); });
  };
  std::map<group, SSL_CTX*> made;
  const auto context_for = [&](const group& certificates) {
    SSL_CTX*& known = made[certificates];
    if (known == nullptr) {
      contexts_.push_back(make_ssl_context(certificates));
      known = contexts_.back().get();
    }
    return known;
  };
  if (all.empty()) {
    (void)context_for({});
  } else if (all.front().names.empty()) {
    (void)context_for(nameless());
  } else {
    (void)context_for(bearing(all.front().names.front()));
  }
  for (const auto& certificate : all) {
    for (const auto& name : certificate.names) {
      if (!by_name_.contains(name)) by_name_.emplace(name, context_for(bearing(name)));
    }
  }
}

ssl_ctx_ptr core_context::make_ssl_context(const std::vector<const loaded_certificate*>& certificates) {
  const tls_options& options = settings_->options;
  const bool server = settings_->role == tls_role::server;
  ssl_ctx_ptr made(SSL_CTX_new_ex(library_, nullptr, server ? TLS_server_method() : TLS_client_method()));
  if (!made) throw tls_error("SSL_CTX_new: " + take_openssl_error());
  SSL_CTX* ctx = made.get();
  SSL_CTX_set_app_data(ctx, this);
  SSL_CTX_set_options(ctx, SSL_OP_NO_COMPRESSION | SSL_OP_NO_RENEGOTIATION | SSL_OP_CIPHER_SERVER_PREFERENCE);
  if (!options.tickets) {
    SSL_CTX_set_options(ctx, SSL_OP_NO_TICKET);
    SSL_CTX_set_num_tickets(ctx, 0);
  } else {
    SSL_CTX_set_num_tickets(ctx, 1);
  }
#ifdef SSL_OP_ENABLE_KTLS
  if (options.kernel == kernel_tls::when_possible) SSL_CTX_set_options(ctx, SSL_OP_ENABLE_KTLS);
#endif
  // An idle connection keeps no record buffers.
  SSL_CTX_set_mode(ctx, SSL_MODE_RELEASE_BUFFERS | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER | SSL_MODE_NO_AUTO_CHAIN);
  // All that has been received at once, instead of the head of a record and then the record.
  SSL_CTX_set_read_ahead(ctx, 1);
  SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF);
  SSL_CTX_set_timeout(ctx, static_cast<long>(options.session_lifetime.count()));
  SSL_CTX_set_max_early_data(ctx, 0);
  set_versions_and_ciphers(ctx);
  set_verification(ctx);
  for (const loaded_certificate* certificate : certificates) add_certificate(ctx, *certificate);
  if (server) {
    SSL_CTX_set_tlsext_servername_callback(ctx, on_server_name);
    SSL_CTX_set_tlsext_ticket_key_evp_cb(ctx, on_ticket_key);
    SSL_CTX_set_session_ticket_cb(ctx, on_new_ticket, on_shown_ticket, nullptr);
    SSL_CTX_set_tlsext_status_cb(ctx, on_status_request);
    if (!settings_->alpn.empty()) SSL_CTX_set_alpn_select_cb(ctx, on_alpn, nullptr);
  } else if (resumes()) {
    SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
    SSL_CTX_sess_set_new_cb(ctx, on_new_session);
  }
  if (!server && !settings_->alpn.empty() &&
      SSL_CTX_set_alpn_protos(ctx, settings_->alpn.data(), static_cast<unsigned>(settings_->alpn.size())) != 0) {
    throw tls_error("alpn: " + take_openssl_error());
  }
  if (!options.key_log_file.empty()) SSL_CTX_set_keylog_callback(ctx, on_key_log);
  return made;
}

namespace {

// Calls f for each part of a list that OpenSSL separates with colons.
template <class F>
void for_each_part(std::string_view list, F f) {
  while (!list.empty()) {
    const std::size_t colon = list.find(':');
    const std::string part(list.substr(0, colon));
    if (!part.empty()) f(part);
    if (colon == std::string_view::npos) return;
    list.remove_prefix(colon + 1);
  }
}

bool has_cipher(SSL_CTX* ctx, const std::string& name) {
  STACK_OF(SSL_CIPHER)* ciphers = SSL_CTX_get_ciphers(ctx);
  for (int i = 0; i < sk_SSL_CIPHER_num(ciphers); ++i) {
    if (name == SSL_CIPHER_get_name(sk_SSL_CIPHER_value(ciphers, i))) return true;
  }
  return false;
}

}  // namespace

void core_context::set_versions_and_ciphers(SSL_CTX* ctx) const {
  const tls_options& options = settings_->options;
  if (SSL_CTX_set_min_proto_version(ctx, static_cast<int>(options.min_version)) != 1 ||
      SSL_CTX_set_max_proto_version(ctx, static_cast<int>(options.max_version)) != 1) {
    throw tls_error("TLS versions: " + take_openssl_error());
  }
  // OpenSSL passes over names that it does not know, as long as one is left: one with a slip in it would go unnoticed.
  for_each_part(options.ciphers, [ctx](const std::string& part) {
    const bool is_rule = part.front() == '!' || part.front() == '-' || part.front() == '+' || part.front() == '@';
    if (!is_rule && SSL_CTX_set_cipher_list(ctx, part.c_str()) != 1) {
      ERR_clear_error();
      throw tls_error("ciphers: '" + part + "' is no cipher for TLS 1.2 that OpenSSL knows and allows");
    }
  });
  const std::string& ciphers = options.ciphers;
  if (SSL_CTX_set_cipher_list(ctx, ciphers.empty() ? default_ciphers : ciphers.c_str()) != 1) {
    throw tls_error("ciphers: '" + ciphers + "': " + take_openssl_error());
  }
  const std::string suites = options.ciphersuites.empty() ? default_ciphersuites : options.ciphersuites;
  const bool suites_ok = SSL_CTX_set_ciphersuites(ctx, suites.c_str()) == 1;
  ERR_clear_error();
  for_each_part(suites, [ctx, suites_ok](const std::string& part) {
    if (!suites_ok || !has_cipher(ctx, part)) {
      if (suites_ok || SSL_CTX_set_ciphersuites(ctx, part.c_str()) != 1) {
        ERR_clear_error();
        throw tls_error("ciphersuites: '" + part + "' is no cipher suite for TLS 1.3 that OpenSSL knows");
      }
    }
  });
  for_each_part(options.groups, [ctx](const std::string& part) {
    if (SSL_CTX_set1_groups_list(ctx, part.c_str()) != 1) {
      ERR_clear_error();
      throw tls_error("groups: '" + part + "' is no group that OpenSSL knows");
    }
  });
  const std::string& groups = options.groups;
  if (SSL_CTX_set1_groups_list(ctx, groups.empty() ? default_groups : groups.c_str()) != 1) {
    throw tls_error("groups: '" + groups + "': " + take_openssl_error());
  }
}

namespace {

x509_ptr decode(const der& bytes, OSSL_LIB_CTX* library) {
  x509_ptr made(X509_new_ex(library, nullptr));
  X509* target = made.get();
  const unsigned char* from = bytes.data();
  if (!made || d2i_X509(&target, &from, static_cast<long>(bytes.size())) == nullptr) {
    (void)made.release();  // d2i frees it when it fails
    throw tls_error("a certificate cannot be decoded: " + take_openssl_error());
  }
  return made;
}

}  // namespace

void core_context::set_verification(SSL_CTX* ctx) const {
  const tls_options& options = settings_->options;
  int mode = SSL_VERIFY_NONE;
  if (settings_->role == tls_role::client) {
    if (options.verify_server) mode = SSL_VERIFY_PEER;
    if (settings_->authorities.empty() && SSL_CTX_set_default_verify_paths(ctx) != 1) {
      throw tls_error("the system's certificate store: " + take_openssl_error());
    }
  } else if (options.clients != client_certificates::none) {
    mode = SSL_VERIFY_PEER;
    if (options.clients == client_certificates::required) mode |= SSL_VERIFY_FAIL_IF_NO_PEER_CERT;
  }
  SSL_CTX_set_verify(ctx, mode, nullptr);
  SSL_CTX_set_verify_depth(ctx, options.verify_depth);
  X509_STORE* store = SSL_CTX_get_cert_store(ctx);
  for (const der& bytes : settings_->authorities) {
    const x509_ptr authority = decode(bytes, library_);
    if (X509_STORE_add_cert(store, authority.get()) != 1) throw tls_error("authorities: " + take_openssl_error());
    // Tells clients which of their certificates would do.
    if (settings_->role == tls_role::server && SSL_CTX_add_client_CA(ctx, authority.get()) != 1) {
      throw tls_error("authorities: " + take_openssl_error());
    }
  }
}

void core_context::add_certificate(SSL_CTX* ctx, const loaded_certificate& certificate) const {
  const x509_ptr leaf = decode(certificate.chain.front(), library_);
  const unsigned char* from = certificate.key.data();
  const pkey_ptr key(d2i_PrivateKey_ex(certificate.key_type, nullptr, &from, static_cast<long>(certificate.key.size()),
                                       library_, nullptr));
  if (!key) throw tls_error("a key cannot be decoded: " + take_openssl_error());
  STACK_OF(X509)* chain = sk_X509_new_null();
  const auto free_chain = [](STACK_OF(X509)* stack) { sk_X509_pop_free(stack, X509_free); };
  const std::unique_ptr<STACK_OF(X509), decltype(free_chain)> owner(chain, free_chain);
  for (std::size_t i = 1; i < certificate.chain.size(); ++i) {
    x509_ptr next = decode(certificate.chain[i], library_);
    if (sk_X509_push(chain, next.get()) <= 0) throw std::bad_alloc();
    (void)next.release();
  }
  if (SSL_CTX_use_cert_and_key(ctx, leaf.get(), key.get(), chain, 1) != 1) {
    throw tls_error("a certificate is not accepted: " + take_openssl_error());
  }
}

}  // namespace percore::tls
