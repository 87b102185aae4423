// TLS13-KDF: HKDF-Extract and HKDF-Expand-Label of RFC 8446 7.1, as ssl/tls13_enc.c of OpenSSL 3 asks for them: a fresh
// context, then one derive that brings all parameters. That one call is answered here. Everything else, a context that
// is set up step by step, other digests, lengths out of range, goes to the default provider's algorithm.
#include <algorithm>
#include <array>
#include <cstring>
#include <new>
#include <optional>
#include <string_view>

#include <openssl/core_names.h>
#include <openssl/err.h>
#include <openssl/kdf.h>
#include <openssl/params.h>

#include "engine/tls/provider/hash.hpp"
#include "engine/tls/provider/provider.hpp"

namespace percore::tls::provider {

namespace {

using bytes = std::basic_string_view<unsigned char>;

struct kdf_context {
  OSSL_LIB_CTX* library;
  EVP_KDF_CTX* other;  // the default provider's; from its first use on it does everything
};

// What one derive asks for. Parts that are absent are empty: a part that is present and empty is not for us.
struct request {
  int mode = -1;
  hash_kind hash = hash_kind::none;
  bytes key;
  bytes salt;
  bytes prefix;
  bytes label;
  bytes data;
};

constexpr std::size_t longest_label = 255;  // with its prefix; RFC 8446 7.1
constexpr std::size_t longest_data = 255;
constexpr std::size_t most_blocks = 255;  // of output; RFC 5869 2.3

bool take_bytes(const OSSL_PARAM& from, bytes& to) noexcept {
  if (from.data_type != OSSL_PARAM_OCTET_STRING || from.data == nullptr || from.data_size == 0 || !to.empty()) {
    return false;
  }
  to = {static_cast<const unsigned char*>(from.data), from.data_size};
  return true;
}

bool take(const OSSL_PARAM& from, request& to) noexcept {
  const std::string_view key = from.key;
  if (key == OSSL_KDF_PARAM_KEY) return take_bytes(from, to.key);
  if (key == OSSL_KDF_PARAM_SALT) return take_bytes(from, to.salt);
  if (key == OSSL_KDF_PARAM_PREFIX) return take_bytes(from, to.prefix);
  if (key == OSSL_KDF_PARAM_LABEL) return take_bytes(from, to.label);
  if (key == OSSL_KDF_PARAM_DATA) return take_bytes(from, to.data);
  if (key == OSSL_KDF_PARAM_MODE) {
    if (from.data_type != OSSL_PARAM_INTEGER || from.data_size != sizeof(int) || to.mode != -1) return false;
    std::memcpy(&to.mode, from.data, sizeof to.mode);
    return true;
  }
  if (key == OSSL_KDF_PARAM_DIGEST) {
    if (from.data_type != OSSL_PARAM_UTF8_STRING || from.data == nullptr || to.hash != hash_kind::none) return false;
    to.hash = hash_of({static_cast<const char*>(from.data), from.data_size});
    return to.hash != hash_kind::none;
  }
  return false;
}

template <class Hash>
void expand(const keyed_hmac<Hash>& keyed, const request& what, bytes data, unsigned char* out,
            std::size_t size) noexcept {
  // The HkdfLabel structure, and the counter behind it.
  std::array<unsigned char, 2 + 1 + longest_label + 1 + longest_data + 1> info;
  unsigned char* end = info.data();
  *end++ = static_cast<unsigned char>(size >> 8);
  *end++ = static_cast<unsigned char>(size);
  *end++ = static_cast<unsigned char>(what.prefix.size() + what.label.size());
  end = std::copy(what.prefix.begin(), what.prefix.end(), end);
  end = std::copy(what.label.begin(), what.label.end(), end);
  *end++ = static_cast<unsigned char>(data.size());
  end = std::copy(data.begin(), data.end(), end);
  unsigned char& counter = *end++;
  const auto info_size = static_cast<std::size_t>(end - info.data());

  typename Hash::state message;
  std::array<unsigned char, Hash::size> block;
  counter = 0;
  for (std::size_t done = 0; done < size; done += block.size()) {
    ++counter;
    keyed.begin(message);
    if (done != 0) Hash::add(message, block.data(), block.size());
    Hash::add(message, info.data(), info_size);
    keyed.end(message, block.data());
    std::memcpy(out + done, block.data(), std::min(block.size(), size - done));
  }
  OPENSSL_cleanse(block.data(), block.size());
  OPENSSL_cleanse(&message, sizeof message);
}

template <class Hash>
void derive_secret(const request& what, unsigned char* out) noexcept {
  static constexpr std::array<unsigned char, Hash::size> zeros{};
  std::array<unsigned char, Hash::size> salt{};
  keyed_hmac<Hash> keyed;
  typename Hash::state message;
  if (!what.salt.empty()) {  // Derive-Secret(salt, "derived", "")
    std::array<unsigned char, Hash::size> of_nothing;
    Hash::begin(message);
    Hash::end(message, of_nothing.data());
    keyed.set_key(what.salt.data(), what.salt.size());
    expand<Hash>(keyed, what, {of_nothing.data(), of_nothing.size()}, salt.data(), salt.size());
  }
  keyed.set_key(salt.data(), salt.size());
  keyed.begin(message);
  if (what.key.empty()) {
    Hash::add(message, zeros.data(), zeros.size());
  } else {
    Hash::add(message, what.key.data(), what.key.size());
  }
  keyed.end(message, out);
  OPENSSL_cleanse(salt.data(), salt.size());
  OPENSSL_cleanse(&message, sizeof message);
}

// False when it is not for us.
template <class Hash>
bool answer(const request& what, unsigned char* out, std::size_t size) noexcept {
  if (what.prefix.size() + what.label.size() > longest_label || what.data.size() > longest_data) return false;
  switch (what.mode) {
    case EVP_KDF_HKDF_MODE_EXTRACT_ONLY:
      if (size != Hash::size) return false;
      derive_secret<Hash>(what, out);
      return true;
    case EVP_KDF_HKDF_MODE_EXPAND_ONLY: {
      if (what.key.empty() || !what.salt.empty() || size == 0 || size > most_blocks * Hash::size) return false;
      keyed_hmac<Hash> keyed;
      keyed.set_key(what.key.data(), what.key.size());
      expand<Hash>(keyed, what, what.data, out, size);
      return true;
    }
    default:
      return false;
  }
}

bool answer(const OSSL_PARAM* parameters, unsigned char* out, std::size_t size) noexcept {
  if (parameters == nullptr || out == nullptr) return false;
  request what;
  for (; parameters->key != nullptr; ++parameters) {
    if (!take(*parameters, what)) return false;
  }
  switch (what.hash) {
    case hash_kind::sha256:
      return answer<sha256>(what, out, size);
    case hash_kind::sha384:
      return answer<sha384>(what, out, size);
    case hash_kind::none:
      break;
  }
  return false;
}

EVP_KDF_CTX* other_of(kdf_context& context) noexcept {
  if (context.other == nullptr) {
    EVP_KDF* algorithm = EVP_KDF_fetch(context.library, OSSL_KDF_NAME_TLS1_3_KDF, others);
    if (algorithm != nullptr) context.other = EVP_KDF_CTX_new(algorithm);
    EVP_KDF_free(algorithm);
  }
  return context.other;
}

// The functions of provider-kdf(7) -----------------------------------------------------------------------------

void* new_context(void* made_by) {
  auto* made = static_cast<kdf_context*>(OPENSSL_malloc(sizeof(kdf_context)));
  if (made != nullptr) new (made) kdf_context{static_cast<instance*>(made_by)->library, nullptr};
  return made;
}

void free_context(void* context) {
  if (context == nullptr) return;
  EVP_KDF_CTX_free(static_cast<kdf_context*>(context)->other);
  OPENSSL_free(context);
}

void reset(void* context) {
  auto& self = *static_cast<kdf_context*>(context);
  EVP_KDF_CTX_free(self.other);
  self.other = nullptr;
}

int derive(void* context, unsigned char* out, std::size_t size, const OSSL_PARAM parameters[]) {
  auto& self = *static_cast<kdf_context*>(context);
  if (self.other == nullptr && answer(parameters, out, size)) return 1;
  return other_of(self) == nullptr ? 0 : EVP_KDF_derive(self.other, out, size, parameters);
}

int set_parameters(void* context, const OSSL_PARAM parameters[]) {
  if (parameters == nullptr || parameters->key == nullptr) return 1;
  auto& self = *static_cast<kdf_context*>(context);
  return other_of(self) == nullptr ? 0 : EVP_KDF_CTX_set_params(self.other, parameters);
}

int get_parameters(void* context, OSSL_PARAM parameters[]) {
  auto& self = *static_cast<kdf_context*>(context);
  return other_of(self) == nullptr ? 0 : EVP_KDF_CTX_get_params(self.other, parameters);
}

// As the default provider says of its own.
const OSSL_PARAM* settable_parameters(void*, void*) {
  static const OSSL_PARAM known[] = {
      OSSL_PARAM_utf8_string(OSSL_KDF_PARAM_MODE, nullptr, 0),
      OSSL_PARAM_int(OSSL_KDF_PARAM_MODE, nullptr),
      OSSL_PARAM_utf8_string(OSSL_KDF_PARAM_PROPERTIES, nullptr, 0),
      OSSL_PARAM_utf8_string(OSSL_KDF_PARAM_DIGEST, nullptr, 0),
      OSSL_PARAM_octet_string(OSSL_KDF_PARAM_KEY, nullptr, 0),
      OSSL_PARAM_octet_string(OSSL_KDF_PARAM_SALT, nullptr, 0),
      OSSL_PARAM_octet_string(OSSL_KDF_PARAM_PREFIX, nullptr, 0),
      OSSL_PARAM_octet_string(OSSL_KDF_PARAM_LABEL, nullptr, 0),
      OSSL_PARAM_octet_string(OSSL_KDF_PARAM_DATA, nullptr, 0),
      OSSL_PARAM_END,
  };
  return known;
}

const OSSL_PARAM* gettable_parameters(void*, void*) {
  static const OSSL_PARAM known[] = {OSSL_PARAM_size_t(OSSL_KDF_PARAM_SIZE, nullptr), OSSL_PARAM_END};
  return known;
}

}  // namespace

const OSSL_DISPATCH tls13_kdf_functions[] = {
    {OSSL_FUNC_KDF_NEWCTX, reinterpret_cast<void (*)()>(new_context)},
    {OSSL_FUNC_KDF_FREECTX, reinterpret_cast<void (*)()>(free_context)},
    {OSSL_FUNC_KDF_RESET, reinterpret_cast<void (*)()>(reset)},
    {OSSL_FUNC_KDF_DERIVE, reinterpret_cast<void (*)()>(derive)},
    {OSSL_FUNC_KDF_SETTABLE_CTX_PARAMS, reinterpret_cast<void (*)()>(settable_parameters)},
    {OSSL_FUNC_KDF_SET_CTX_PARAMS, reinterpret_cast<void (*)()>(set_parameters)},
    {OSSL_FUNC_KDF_GETTABLE_CTX_PARAMS, reinterpret_cast<void (*)()>(gettable_parameters)},
    {OSSL_FUNC_KDF_GET_CTX_PARAMS, reinterpret_cast<void (*)()>(get_parameters)},
    {0, nullptr},
};

}  // namespace percore::tls::provider
