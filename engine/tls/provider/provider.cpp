#include "engine/tls/provider/provider.hpp"

#include <new>

namespace percore::tls::provider {

namespace {

constexpr const char* properties = "provider=percore";

constexpr OSSL_ALGORITHM macs[] = {{"HMAC", properties, hmac_functions, "HMAC"}, {nullptr, nullptr, nullptr, nullptr}};
constexpr OSSL_ALGORITHM kdfs[] = {{"TLS13-KDF", properties, tls13_kdf_functions, "TLS 1.3 KDF"},
                                   {nullptr, nullptr, nullptr, nullptr}};
constexpr OSSL_ALGORITHM randoms[] = {{random_name, properties, random_functions, "CTR-DRBG with a buffer"},
                                      {nullptr, nullptr, nullptr, nullptr}};

const OSSL_ALGORITHM* query(void*, int operation, int* no_cache) {
  *no_cache = 0;
  switch (operation) {
    case OSSL_OP_MAC:
      return macs;
    case OSSL_OP_KDF:
      return kdfs;
    case OSSL_OP_RAND:
      return randoms;
    default:
      return nullptr;
  }
}

void teardown(void* made) { delete static_cast<instance*>(made); }

const OSSL_DISPATCH functions[] = {
    {OSSL_FUNC_PROVIDER_QUERY_OPERATION, reinterpret_cast<void (*)()>(query)},
    {OSSL_FUNC_PROVIDER_TEARDOWN, reinterpret_cast<void (*)()>(teardown)},
    {0, nullptr},
};

}  // namespace

extern "C" int percore_tls_provider_init(const OSSL_CORE_HANDLE* core, const OSSL_DISPATCH* from_core,
                                         const OSSL_DISPATCH** out, void** context) {
  OSSL_FUNC_core_get_libctx_fn* library_of = nullptr;
  for (; from_core->function_id != 0; ++from_core) {
    if (from_core->function_id == OSSL_FUNC_CORE_GET_LIBCTX) library_of = OSSL_FUNC_core_get_libctx(from_core);
  }
  if (library_of == nullptr) return 0;
  // The core is the libcrypto that this provider is linked with, so its context is an OSSL_LIB_CTX (provider-base(7)).
  auto* made = new (std::nothrow) instance{reinterpret_cast<OSSL_LIB_CTX*>(library_of(core))};
  if (made == nullptr) return 0;
  *out = functions;
  *context = made;
  return 1;
}

}  // namespace percore::tls::provider
