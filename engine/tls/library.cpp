#include "engine/tls/library.hpp"

#include <new>
#include <utility>

#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/rand.h>

#include <percore/tls.hpp>

#include "engine/tls/provider/provider.hpp"

namespace percore::tls {

library::library(bool with_own_provider) : context_(OSSL_LIB_CTX_new()) {
  if (!context_) throw std::bad_alloc();
  default_.reset(OSSL_PROVIDER_load(context_.get(), "default"));
  if (!default_) throw tls_error("OpenSSL's default provider: " + take_openssl_error());
  if (with_own_provider) load_own_provider();
}

// The preference is set once for the library context. Given to SSL_CTX_new_ex(3) instead, it would go along with every
// fetch, and be parsed and compared there.
void library::load_own_provider() noexcept {
  OSSL_LIB_CTX* context = context_.get();
  provider_ptr loaded;
  if (OSSL_PROVIDER_add_builtin(context, provider::provider_name, provider::percore_tls_provider_init) == 1) {
    loaded.reset(OSSL_PROVIDER_load(context, provider::provider_name));
  }
  if (loaded != nullptr && EVP_set_default_properties(context, provider::preference) == 1) own_ = std::move(loaded);
  if (own_ != nullptr) (void)RAND_set_DRBG_type(context, provider::random_name, nullptr, nullptr, nullptr);
  ERR_clear_error();
}

}  // namespace percore::tls
