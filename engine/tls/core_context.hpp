#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "engine/tls/openssl.hpp"
#include "engine/tls/session_cache.hpp"
#include "engine/tls/shared_context.hpp"

namespace percore::tls {

// OpenSSL's objects that one core makes of a shared_context's settings: nothing in them is shared with another core.
// Used on that core's thread only.
class core_context {
 public:
  // Throws tls_error, or std::bad_alloc.
  core_context(std::shared_ptr<shared_context> owner, std::shared_ptr<const settings> given, std::uint64_t version,
               OSSL_LIB_CTX* library);
  core_context(const core_context&) = delete;
  core_context& operator=(const core_context&) = delete;

  // A session of the context's role, without a BIO yet; nullptr when memory is out. Tickets that it gives out are
  // taken back under the same `identity` only.
  ssl_ptr make_session(std::uint64_t identity) noexcept;
  // Client: the name that the server's certificate must bear and that SNI asks for; an IP address is checked as such
  // and not sent. False when memory is out.
  bool set_server_name(SSL* session, const std::string& name) const noexcept;

  // Client: what earlier sessions have left; none when it resumes nothing.
  [[nodiscard]] session_cache& cache() noexcept { return cache_; }
  [[nodiscard]] bool resumes() const noexcept;

  [[nodiscard]] shared_context& owner() const noexcept { return *owner_; }
  [[nodiscard]] std::uint64_t version() const noexcept { return version_; }
  [[nodiscard]] bool wants_kernel_tls() const noexcept {
    return settings_->options.kernel == kernel_tls::when_possible;
  }

  // Sessions alive; the context must outlive them.
  std::size_t sessions = 0;

 private:
  struct name_hash {
    using is_transparent = void;
    std::size_t operator()(std::string_view name) const noexcept { return std::hash<std::string_view>{}(name); }
  };

  ssl_ctx_ptr make_ssl_context(const std::vector<const loaded_certificate*>& certificates);
  void set_versions_and_ciphers(SSL_CTX* made) const;
  void set_verification(SSL_CTX* made) const;
  void add_certificate(SSL_CTX* made, const loaded_certificate& certificate) const;
  void make_name_table();
  SSL_CTX* find(std::string_view name) const noexcept;

  static int on_server_name(SSL* session, int* alert, void*);
  static int on_alpn(SSL* session, const unsigned char** out, unsigned char* out_size, const unsigned char* in,
                     unsigned in_size, void*);
  static int on_status_request(SSL* session, void*);
  static int on_ticket_key(SSL* session, unsigned char* name, unsigned char* iv, EVP_CIPHER_CTX* cipher,
                           EVP_MAC_CTX* mac, int encrypting);
  static int on_new_ticket(SSL* session, void*);
  static SSL_TICKET_RETURN on_shown_ticket(SSL* session, SSL_SESSION* shown, const unsigned char*, std::size_t,
                                           SSL_TICKET_STATUS status, void*);
  static int on_new_session(SSL* session, SSL_SESSION* fresh);
  static void on_key_log(const SSL* session, const char* line);
  static core_context& of(const SSL* session) noexcept;
  int use_ticket_key(unsigned char* name, unsigned char* iv, EVP_CIPHER_CTX* cipher, EVP_MAC_CTX* mac, bool encrypting);

  std::shared_ptr<shared_context> owner_;
  std::shared_ptr<const settings> settings_;
  std::uint64_t version_;
  OSSL_LIB_CTX* library_;
  cipher_ptr ticket_cipher_;
  ticket_key_pair ticket_keys_;
  session_cache cache_;
  std::vector<ssl_ctx_ptr> contexts_;  // the first is for clients that name nothing known
  std::unordered_map<std::string, SSL_CTX*, name_hash, std::equal_to<>> by_name_;
};

// When the first certificate of the peer's verified path expires, in seconds since 1970; 0: none was verified.
std::int64_t first_expiry(const SSL* session) noexcept;

}  // namespace percore::tls
