// OpenSSL's CTR-DRBG behind a buffer. A call of OpenSSL 3.0's own costs 3 us for 4 bytes as for 512: it asks for the
// process number, the time and the limits, sets up AES and renews its key. A handshake makes five such calls.
//
// Each instance, that is, each thread's public and private one (RAND(7)), has a CTR-DRBG of the default provider for
// itself, seeded by the operating system and reseeded by OpenSSL's own rules, and draws 512 bytes from it at a time.
// - Bytes are overwritten as they are handed out. Those that wait can be read only by who could read the DRBG's state
//   as well, from which the next ones follow.
// - The buffer is wiped in a child of fork(2), so parent and child never hand out the same bytes; the DRBG notices the
//   fork by itself. Without that from the kernel there is no buffer.
// - A reseed, and a request for prediction resistance or with additional input, does not use what is buffered.
#include <algorithm>
#include <cstring>
#include <new>

#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/params.h>

#include "engine/sys/calls.hpp"
#include "engine/tls/provider/provider.hpp"

namespace percore::tls::provider {

namespace {

constexpr std::size_t buffer_bytes = 512;
constexpr std::size_t longest_buffered = 64;  // a longer request repays its own call

// Alone on its pages. All zeros, as the kernel leaves it, is an empty buffer.
struct buffer {
  std::size_t left;
  unsigned char bytes[buffer_bytes];  // those at the front are still to be used
};

class random_context {
 public:
  explicit random_context(EVP_RAND_CTX* source) noexcept : source_(source) {}
  random_context(const random_context&) = delete;
  random_context& operator=(const random_context&) = delete;
  ~random_context() {
    unmap();
    EVP_RAND_CTX_free(source_);
    CRYPTO_THREAD_lock_free(lock_);
  }

  int instantiate(unsigned strength, int prediction_resistance, const unsigned char* personalization,
                  std::size_t personalization_bytes, const OSSL_PARAM* parameters) noexcept;
  int uninstantiate() noexcept;
  int generate(unsigned char* out, std::size_t bytes, unsigned strength, int prediction_resistance,
               const unsigned char* additional, std::size_t additional_bytes) noexcept;
  int reseed(int prediction_resistance, const unsigned char* entropy, std::size_t entropy_bytes,
             const unsigned char* additional, std::size_t additional_bytes) noexcept;
  int get(OSSL_PARAM* parameters) const noexcept;
  int set(const OSSL_PARAM* parameters) noexcept { return EVP_RAND_CTX_set_params(source_, parameters); }
  int zeroized() noexcept { return EVP_RAND_verify_zeroization(source_); }

  // Only the instance that all threads share is locked.
  int enable_locking() noexcept {
    if (lock_ == nullptr) lock_ = CRYPTO_THREAD_lock_new();
    return lock_ == nullptr ? 0 : 1;
  }
  int lock() noexcept { return lock_ == nullptr ? 1 : CRYPTO_THREAD_write_lock(lock_); }
  void unlock() noexcept {
    if (lock_ != nullptr) CRYPTO_THREAD_unlock(lock_);
  }

 private:
  void map() noexcept;
  void unmap() noexcept;
  void drop_buffered() noexcept;

  EVP_RAND_CTX* source_;
  buffer* buffer_ = nullptr;
  CRYPTO_RWLOCK* lock_ = nullptr;
  unsigned strength_ = 0;        // of the source, in bits
  std::size_t max_request_ = 0;  // likewise, in bytes
};

void random_context::map() noexcept {
  if (buffer_ != nullptr) return;
  void* pages = sys::map_memory(sizeof(buffer));
  if (pages == nullptr) return;
  if (sys::keep_from_children(pages, sizeof(buffer)) != 0) {
    sys::unmap_memory(pages, sizeof(buffer));
    return;
  }
  buffer_ = static_cast<buffer*>(pages);
}

void random_context::unmap() noexcept {
  if (buffer_ == nullptr) return;
  drop_buffered();
  sys::unmap_memory(buffer_, sizeof(buffer));
  buffer_ = nullptr;
}

void random_context::drop_buffered() noexcept {
  if (buffer_ == nullptr) return;
  OPENSSL_cleanse(buffer_->bytes, buffer_->left);
  buffer_->left = 0;
}

int random_context::instantiate(unsigned strength, int prediction_resistance, const unsigned char* personalization,
                                std::size_t personalization_bytes, const OSSL_PARAM* parameters) noexcept {
  drop_buffered();
  if (EVP_RAND_instantiate(source_, strength, prediction_resistance, personalization, personalization_bytes,
                           parameters) != 1) {
    return 0;
  }
  strength_ = EVP_RAND_get_strength(source_);
  OSSL_PARAM wanted[] = {OSSL_PARAM_construct_size_t(OSSL_RAND_PARAM_MAX_REQUEST, &max_request_),
                         OSSL_PARAM_construct_end()};
  if (EVP_RAND_CTX_get_params(source_, wanted) != 1 || max_request_ < buffer_bytes) return 0;
  map();
  return 1;
}

int random_context::uninstantiate() noexcept {
  unmap();
  return EVP_RAND_uninstantiate(source_);
}

int random_context::generate(unsigned char* out, std::size_t bytes, unsigned strength, int prediction_resistance,
                             const unsigned char* additional, std::size_t additional_bytes) noexcept {
  if (buffer_ == nullptr || bytes > longest_buffered || prediction_resistance != 0 || additional_bytes != 0 ||
      strength > strength_) {
    return EVP_RAND_generate(source_, out, bytes, strength, prediction_resistance, additional, additional_bytes);
  }
  if (buffer_->left < bytes) {
    buffer_->left = 0;
    if (EVP_RAND_generate(source_, buffer_->bytes, buffer_bytes, strength_, 0, nullptr, 0) != 1) return 0;
    buffer_->left = buffer_bytes;
  }
  buffer_->left -= bytes;
  unsigned char* taken = buffer_->bytes + buffer_->left;
  std::memcpy(out, taken, bytes);
  OPENSSL_cleanse(taken, bytes);
  return 1;
}

int random_context::reseed(int prediction_resistance, const unsigned char* entropy, std::size_t entropy_bytes,
                           const unsigned char* additional, std::size_t additional_bytes) noexcept {
  drop_buffered();
  return EVP_RAND_reseed(source_, prediction_resistance, entropy, entropy_bytes, additional, additional_bytes);
}

int random_context::get(OSSL_PARAM* parameters) const noexcept {
  // EVP_RAND_generate(3) asks for just this, each time.
  if (parameters[0].key != nullptr && parameters[1].key == nullptr &&
      std::strcmp(parameters[0].key, OSSL_RAND_PARAM_MAX_REQUEST) == 0 && max_request_ != 0) {
    return OSSL_PARAM_set_size_t(parameters, max_request_);
  }
  return EVP_RAND_CTX_get_params(source_, parameters);
}

// The functions of provider-rand(7) ----------------------------------------------------------------------------

random_context& of(void* context) noexcept { return *static_cast<random_context*>(context); }

// The parent that OpenSSL offers is not used: the source is seeded by the operating system. So threads do not meet in a
// shared generator either.
void* new_context(void* made_by, void*, const OSSL_DISPATCH*) {
  EVP_RAND* algorithm = EVP_RAND_fetch(static_cast<instance*>(made_by)->library, "CTR-DRBG", others);
  EVP_RAND_CTX* source = algorithm == nullptr ? nullptr : EVP_RAND_CTX_new(algorithm, nullptr);
  EVP_RAND_free(algorithm);
  if (source == nullptr) return nullptr;
  void* room = OPENSSL_malloc(sizeof(random_context));
  if (room != nullptr) return new (room) random_context(source);
  EVP_RAND_CTX_free(source);
  return nullptr;
}

void free_context(void* context) {
  if (context == nullptr) return;
  of(context).~random_context();
  OPENSSL_free(context);
}

int instantiate(void* context, unsigned strength, int prediction_resistance, const unsigned char* personalization,
                std::size_t personalization_bytes, const OSSL_PARAM parameters[]) {
  return of(context).instantiate(strength, prediction_resistance, personalization, personalization_bytes, parameters);
}
int uninstantiate(void* context) { return of(context).uninstantiate(); }
int generate(void* context, unsigned char* out, std::size_t bytes, unsigned strength, int prediction_resistance,
             const unsigned char* additional, std::size_t additional_bytes) {
  return of(context).generate(out, bytes, strength, prediction_resistance, additional, additional_bytes);
}
int reseed(void* context, int prediction_resistance, const unsigned char* entropy, std::size_t entropy_bytes,
           const unsigned char* additional, std::size_t additional_bytes) {
  return of(context).reseed(prediction_resistance, entropy, entropy_bytes, additional, additional_bytes);
}
int enable_locking(void* context) { return of(context).enable_locking(); }
int lock(void* context) { return of(context).lock(); }
void unlock(void* context) { of(context).unlock(); }
int get_parameters(void* context, OSSL_PARAM parameters[]) { return of(context).get(parameters); }
int set_parameters(void* context, const OSSL_PARAM parameters[]) { return of(context).set(parameters); }
int verify_zeroization(void* context) { return of(context).zeroized(); }

const OSSL_PARAM* gettable_parameters(void*, void*) {
  static const OSSL_PARAM known[] = {OSSL_PARAM_int(OSSL_RAND_PARAM_STATE, nullptr),
                                     OSSL_PARAM_uint(OSSL_RAND_PARAM_STRENGTH, nullptr),
                                     OSSL_PARAM_size_t(OSSL_RAND_PARAM_MAX_REQUEST, nullptr), OSSL_PARAM_END};
  return known;
}

}  // namespace

const OSSL_DISPATCH random_functions[] = {
    {OSSL_FUNC_RAND_NEWCTX, reinterpret_cast<void (*)()>(new_context)},
    {OSSL_FUNC_RAND_FREECTX, reinterpret_cast<void (*)()>(free_context)},
    {OSSL_FUNC_RAND_INSTANTIATE, reinterpret_cast<void (*)()>(instantiate)},
    {OSSL_FUNC_RAND_UNINSTANTIATE, reinterpret_cast<void (*)()>(uninstantiate)},
    {OSSL_FUNC_RAND_GENERATE, reinterpret_cast<void (*)()>(generate)},
    {OSSL_FUNC_RAND_RESEED, reinterpret_cast<void (*)()>(reseed)},
    {OSSL_FUNC_RAND_ENABLE_LOCKING, reinterpret_cast<void (*)()>(enable_locking)},
    {OSSL_FUNC_RAND_LOCK, reinterpret_cast<void (*)()>(lock)},
    {OSSL_FUNC_RAND_UNLOCK, reinterpret_cast<void (*)()>(unlock)},
    {OSSL_FUNC_RAND_GETTABLE_CTX_PARAMS, reinterpret_cast<void (*)()>(gettable_parameters)},
    {OSSL_FUNC_RAND_GET_CTX_PARAMS, reinterpret_cast<void (*)()>(get_parameters)},
    {OSSL_FUNC_RAND_SET_CTX_PARAMS, reinterpret_cast<void (*)()>(set_parameters)},
    {OSSL_FUNC_RAND_VERIFY_ZEROIZATION, reinterpret_cast<void (*)()>(verify_zeroization)},
    {0, nullptr},
};

}  // namespace percore::tls::provider
