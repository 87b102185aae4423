#pragma once

#include <memory>

#include <openssl/provider.h>
#include <openssl/types.h>

#include "engine/tls/openssl.hpp"

namespace percore::tls {

// An OSSL_LIB_CTX with the providers in it. Each core has one, so that cores meet in none of its locks.
class library {
 public:
  // Beside OpenSSL's default provider the engine's own (provider/provider.hpp) is loaded, and preferred. When it cannot
  // be, or is not wanted, the default provider does everything. Throws std::bad_alloc, or tls_error when there is no
  // default provider.
  explicit library(bool with_own_provider = true);
  library(const library&) = delete;
  library& operator=(const library&) = delete;

  [[nodiscard]] OSSL_LIB_CTX* get() const noexcept { return context_.get(); }
  [[nodiscard]] bool has_own_provider() const noexcept { return own_ != nullptr; }

 private:
  using provider_ptr = std::unique_ptr<OSSL_PROVIDER, freed_by<OSSL_PROVIDER_unload>>;

  void load_own_provider() noexcept;

  library_ptr context_;
  provider_ptr default_;
  provider_ptr own_;
};

}  // namespace percore::tls
