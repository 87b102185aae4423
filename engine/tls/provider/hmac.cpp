// HMAC over SHA-256 and SHA-384: the Finished messages, the binders of session tickets and the tickets themselves, and
// the pseudo-random function of TLS 1.2. Other digests and uncommon parameters (those of the CBC suites of TLS 1.2,
// whose records must be checked in constant time) go to the default provider's HMAC.
#include <array>
#include <cstring>
#include <new>
#include <string_view>

#include <openssl/core_names.h>
#include <openssl/evp.h>
#include <openssl/params.h>

#include "engine/tls/provider/hash.hpp"
#include "engine/tls/provider/provider.hpp"

namespace percore::tls::provider {

namespace {

template <class Hash>
struct hmac_of {
  keyed_hmac<Hash> keyed;
  typename Hash::state message;

  void begin() noexcept { keyed.begin(message); }
  void add(const unsigned char* data, std::size_t bytes) noexcept { Hash::add(message, data, bytes); }
  void end(unsigned char* out) noexcept { keyed.end(message, out); }
};

class hmac_context {
 public:
  explicit hmac_context(OSSL_LIB_CTX* library) noexcept : library_(library) {}
  hmac_context(const hmac_context& other) noexcept;
  hmac_context& operator=(const hmac_context&) = delete;
  ~hmac_context();

  int set(const OSSL_PARAM* parameters) noexcept;
  int get(OSSL_PARAM* parameters) const noexcept;
  int init(const unsigned char* key, std::size_t bytes, const OSSL_PARAM* parameters) noexcept;
  int update(const unsigned char* data, std::size_t bytes) noexcept;
  int final(unsigned char* out, std::size_t* written, std::size_t capacity) noexcept;
  // A copy whose `other_` could not be made is of no use.
  [[nodiscard]] bool copied_from(const hmac_context& from) const noexcept {
    return (other_ != nullptr) == (from.other_ != nullptr);
  }

 private:
  enum class stage : std::uint8_t { no_key, fresh, fed, done };

  bool set_key(const unsigned char* key, std::size_t bytes) noexcept;
  void wipe() noexcept;
  bool hand_over() noexcept;
  // Calls f with the hmac_of in use; only with a key.
  template <class F>
  void with_hash(F f) noexcept {
    if (in_use_ == hash_kind::sha256) {
      f(sha256_);
    } else {
      f(sha384_);
    }
  }

  OSSL_LIB_CTX* library_;
  EVP_MAC_CTX* other_ = nullptr;  // the default provider's; when it is there, it does everything
  hash_kind chosen_ = hash_kind::none;  // for the next key
  hash_kind in_use_ = hash_kind::none;  // the present key's
  stage stage_ = stage::no_key;
  std::size_t key_bytes_ = 0;
  std::array<unsigned char, longest_block> key_;  // for `other_`, should it be needed
  union {  // the one that in_use_ names is alive
    hmac_of<sha256> sha256_;
    hmac_of<sha384> sha384_;
  };
};

const char* name_of(hash_kind hash) noexcept { return hash == hash_kind::sha256 ? "SHA2-256" : "SHA2-384"; }
std::size_t size_of(hash_kind hash) noexcept {
  return hash == hash_kind::none ? 0 : hash == hash_kind::sha256 ? sha256::size : sha384::size;
}
std::size_t block_of(hash_kind hash) noexcept {
  return hash == hash_kind::none ? 0 : hash == hash_kind::sha256 ? sha256::block : sha384::block;
}

hmac_context::hmac_context(const hmac_context& from) noexcept
    : library_(from.library_),
      other_(from.other_ == nullptr ? nullptr : EVP_MAC_CTX_dup(from.other_)),
      chosen_(from.chosen_),
      in_use_(from.in_use_),
      stage_(from.stage_),
      key_bytes_(from.key_bytes_) {
  std::memcpy(key_.data(), from.key_.data(), key_bytes_);
  if (in_use_ == hash_kind::sha256) {
    new (&sha256_) hmac_of<sha256>(from.sha256_);
  } else if (in_use_ == hash_kind::sha384) {
    new (&sha384_) hmac_of<sha384>(from.sha384_);
  }
}

hmac_context::~hmac_context() {
  wipe();
  EVP_MAC_CTX_free(other_);
}

// The key, and what has been made of it.
void hmac_context::wipe() noexcept {
  OPENSSL_cleanse(key_.data(), key_bytes_);
  key_bytes_ = 0;
  if (in_use_ == hash_kind::sha256) {
    OPENSSL_cleanse(&sha256_, sizeof sha256_);
  } else if (in_use_ == hash_kind::sha384) {
    OPENSSL_cleanse(&sha384_, sizeof sha384_);
  }
  in_use_ = hash_kind::none;
  stage_ = stage::no_key;
}

bool hmac_context::set_key(const unsigned char* key, std::size_t bytes) noexcept {
  if (chosen_ == hash_kind::none) return false;
  // A key that is longer than a block stands for its hash (RFC 2104 2), which `other_` then gets.
  std::array<unsigned char, longest_hash> digest;
  if (bytes > block_of(chosen_)) {
    if (chosen_ == hash_kind::sha256) {
      SHA256(key, bytes, digest.data());
    } else {
      SHA384(key, bytes, digest.data());
    }
    key = digest.data();
    bytes = size_of(chosen_);
  }
  if (stage_ != stage::no_key) wipe();
  if (bytes != 0) std::memcpy(key_.data(), key, bytes);
  key_bytes_ = bytes;
  if (key == digest.data()) OPENSSL_cleanse(digest.data(), digest.size());
  in_use_ = chosen_;
  if (in_use_ == hash_kind::sha256) {
    new (&sha256_) hmac_of<sha256>;
  } else {
    new (&sha384_) hmac_of<sha384>;
  }
  with_hash([this](auto& hmac) {
    hmac.keyed.set_key(key_.data(), key_bytes_);
    hmac.begin();
  });
  stage_ = stage::fresh;
  return true;
}

// Lets the default provider go on from here. It cannot take over a message that is only half there.
bool hmac_context::hand_over() noexcept {
  if (stage_ == stage::fed) return false;
  EVP_MAC* algorithm = EVP_MAC_fetch(library_, "HMAC", others);
  EVP_MAC_CTX* made = algorithm == nullptr ? nullptr : EVP_MAC_CTX_new(algorithm);
  EVP_MAC_free(algorithm);
  const auto choose = [made](hash_kind hash) {
    const OSSL_PARAM digest[] = {
        OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_DIGEST, const_cast<char*>(name_of(hash)), 0),
        OSSL_PARAM_construct_end()};
    return EVP_MAC_CTX_set_params(made, digest) == 1;
  };
  bool ok = made != nullptr;
  if (ok && stage_ != stage::no_key) ok = choose(in_use_) && EVP_MAC_init(made, key_.data(), key_bytes_, nullptr) == 1;
  if (ok && chosen_ != in_use_) ok = choose(chosen_);
  if (!ok) {
    EVP_MAC_CTX_free(made);
    return false;
  }
  wipe();
  other_ = made;
  return true;
}

int hmac_context::set(const OSSL_PARAM* parameters) noexcept {
  if (parameters == nullptr) return 1;
  const OSSL_PARAM* key = nullptr;
  hash_kind hash = hash_kind::none;
  bool ours = other_ == nullptr;
  for (const OSSL_PARAM* p = parameters; other_ == nullptr && p->key != nullptr; ++p) {
    if (std::string_view(p->key) == OSSL_MAC_PARAM_KEY) {
      ours = ours && p->data_type == OSSL_PARAM_OCTET_STRING && p->data != nullptr && key == nullptr;
      key = p;
    } else if (std::string_view(p->key) == OSSL_MAC_PARAM_DIGEST) {
      ours = ours && p->data_type == OSSL_PARAM_UTF8_STRING && p->data != nullptr && hash == hash_kind::none;
      if (ours) hash = hash_of({static_cast<const char*>(p->data), p->data_size});
      ours = ours && hash != hash_kind::none;
    } else {
      ours = false;
    }
  }
  if (!ours) {
    if (key != nullptr && stage_ == stage::fed) stage_ = stage::done;  // a new key ends the message
    return other_ != nullptr || hand_over() ? EVP_MAC_CTX_set_params(other_, parameters) : 0;
  }
  if (hash != hash_kind::none) chosen_ = hash;
  if (key == nullptr) return 1;
  return set_key(static_cast<const unsigned char*>(key->data), key->data_size) ? 1 : 0;
}

int hmac_context::get(OSSL_PARAM* parameters) const noexcept {
  if (other_ != nullptr) return EVP_MAC_CTX_get_params(other_, parameters);
  if (OSSL_PARAM* p = OSSL_PARAM_locate(parameters, OSSL_MAC_PARAM_SIZE);
      p != nullptr && OSSL_PARAM_set_size_t(p, size_of(in_use_)) != 1) {
    return 0;
  }
  if (OSSL_PARAM* p = OSSL_PARAM_locate(parameters, OSSL_MAC_PARAM_BLOCK_SIZE);
      p != nullptr && OSSL_PARAM_set_int(p, static_cast<int>(block_of(chosen_))) != 1) {
    return 0;
  }
  return 1;
}

int hmac_context::init(const unsigned char* key, std::size_t bytes, const OSSL_PARAM* parameters) noexcept {
  if (stage_ == stage::fed) stage_ = stage::done;  // the message is given up
  if (set(parameters) != 1) return 0;
  if (other_ != nullptr) return EVP_MAC_init(other_, key, bytes, nullptr);
  if (key != nullptr) return set_key(key, bytes) ? 1 : 0;
  if (stage_ == stage::no_key) return 0;
  with_hash([](auto& hmac) { hmac.begin(); });
  stage_ = stage::fresh;
  return 1;
}

int hmac_context::update(const unsigned char* data, std::size_t bytes) noexcept {
  if (other_ != nullptr) return EVP_MAC_update(other_, data, bytes);
  if (stage_ == stage::no_key || stage_ == stage::done) return 0;
  if (bytes == 0) return 1;
  with_hash([data, bytes](auto& hmac) { hmac.add(data, bytes); });
  stage_ = stage::fed;
  return 1;
}

int hmac_context::final(unsigned char* out, std::size_t* written, std::size_t capacity) noexcept {
  if (other_ != nullptr) return EVP_MAC_final(other_, out, written, capacity);
  if (stage_ == stage::no_key || stage_ == stage::done || capacity < size_of(in_use_)) return 0;
  with_hash([out](auto& hmac) { hmac.end(out); });
  stage_ = stage::done;
  if (written != nullptr) *written = size_of(in_use_);
  return 1;
}

// The functions of provider-mac(7) -----------------------------------------------------------------------------

hmac_context& of(void* context) noexcept { return *static_cast<hmac_context*>(context); }

void* new_context(void* made_by) {
  void* room = OPENSSL_malloc(sizeof(hmac_context));
  return room == nullptr ? nullptr : new (room) hmac_context(static_cast<instance*>(made_by)->library);
}

void free_context(void* context) {
  if (context == nullptr) return;
  of(context).~hmac_context();
  OPENSSL_free(context);
}

void* dup_context(void* context) {
  void* room = OPENSSL_malloc(sizeof(hmac_context));
  if (room == nullptr) return nullptr;
  auto* copy = new (room) hmac_context(of(context));
  if (copy->copied_from(of(context))) return copy;
  free_context(copy);
  return nullptr;
}

int init(void* context, const unsigned char* key, std::size_t bytes, const OSSL_PARAM parameters[]) {
  return of(context).init(key, bytes, parameters);
}
int update(void* context, const unsigned char* data, std::size_t bytes) { return of(context).update(data, bytes); }
int final(void* context, unsigned char* out, std::size_t* written, std::size_t capacity) {
  return of(context).final(out, written, capacity);
}
int set_parameters(void* context, const OSSL_PARAM parameters[]) { return of(context).set(parameters); }
int get_parameters(void* context, OSSL_PARAM parameters[]) { return of(context).get(parameters); }

// As the default provider says of its own; EVP_Q_mac(3) and others look here.
const OSSL_PARAM* settable_parameters(void*, void*) {
  static const OSSL_PARAM known[] = {
      OSSL_PARAM_utf8_string(OSSL_MAC_PARAM_DIGEST, nullptr, 0),
      OSSL_PARAM_utf8_string(OSSL_MAC_PARAM_PROPERTIES, nullptr, 0),
      OSSL_PARAM_octet_string(OSSL_MAC_PARAM_KEY, nullptr, 0),
      OSSL_PARAM_int(OSSL_MAC_PARAM_DIGEST_NOINIT, nullptr),
      OSSL_PARAM_int(OSSL_MAC_PARAM_DIGEST_ONESHOT, nullptr),
      OSSL_PARAM_size_t(OSSL_MAC_PARAM_TLS_DATA_SIZE, nullptr),
      OSSL_PARAM_END,
  };
  return known;
}

const OSSL_PARAM* gettable_parameters(void*, void*) {
  static const OSSL_PARAM known[] = {OSSL_PARAM_size_t(OSSL_MAC_PARAM_SIZE, nullptr),
                                     OSSL_PARAM_size_t(OSSL_MAC_PARAM_BLOCK_SIZE, nullptr), OSSL_PARAM_END};
  return known;
}

}  // namespace

const OSSL_DISPATCH hmac_functions[] = {
    {OSSL_FUNC_MAC_NEWCTX, reinterpret_cast<void (*)()>(new_context)},
    {OSSL_FUNC_MAC_DUPCTX, reinterpret_cast<void (*)()>(dup_context)},
    {OSSL_FUNC_MAC_FREECTX, reinterpret_cast<void (*)()>(free_context)},
    {OSSL_FUNC_MAC_INIT, reinterpret_cast<void (*)()>(init)},
    {OSSL_FUNC_MAC_UPDATE, reinterpret_cast<void (*)()>(update)},
    {OSSL_FUNC_MAC_FINAL, reinterpret_cast<void (*)()>(final)},
    {OSSL_FUNC_MAC_GETTABLE_CTX_PARAMS, reinterpret_cast<void (*)()>(gettable_parameters)},
    {OSSL_FUNC_MAC_GET_CTX_PARAMS, reinterpret_cast<void (*)()>(get_parameters)},
    {OSSL_FUNC_MAC_SETTABLE_CTX_PARAMS, reinterpret_cast<void (*)()>(settable_parameters)},
    {OSSL_FUNC_MAC_SET_CTX_PARAMS, reinterpret_cast<void (*)()>(set_parameters)},
    {0, nullptr},
};

}  // namespace percore::tls::provider
