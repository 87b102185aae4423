#include "engine/tls/ticket_keys.hpp"

#include <stdexcept>

#include <openssl/crypto.h>
#include <openssl/rand.h>

namespace percore::tls {

namespace {

bool fill(ticket_key& key) noexcept {
  return RAND_bytes(key.name.data(), static_cast<int>(key.name.size())) == 1 &&
         RAND_priv_bytes(key.cipher.data(), static_cast<int>(key.cipher.size())) == 1 &&
         RAND_priv_bytes(key.mac.data(), static_cast<int>(key.mac.size())) == 1;
}

}  // namespace

ticket_key_pair::~ticket_key_pair() {
  OPENSSL_cleanse(&current, sizeof current);
  OPENSSL_cleanse(&previous, sizeof previous);
}

ticket_ring::ticket_ring(std::int64_t lifetime_ns, std::int64_t now_ns) : lifetime_ns_(lifetime_ns) {
  if (!rotate(now_ns)) throw std::runtime_error("no randomness for session ticket keys");
}

bool ticket_ring::rotate_locked(std::int64_t now_ns) noexcept {
  ticket_key fresh;
  if (!fill(fresh)) return false;
  keys_.previous = keys_.current;
  keys_.has_previous = keys_.epoch != 0;
  keys_.current = fresh;
  OPENSSL_cleanse(&fresh, sizeof fresh);
  ++keys_.epoch;
  next_rotation_ns_.store(now_ns + lifetime_ns_.load(std::memory_order_relaxed), std::memory_order_relaxed);
  epoch_.store(keys_.epoch, std::memory_order_release);
  return true;
}

bool ticket_ring::rotate(std::int64_t now_ns) noexcept {
  std::lock_guard lock(mutex_);
  return rotate_locked(now_ns);
}

bool ticket_ring::refresh(ticket_key_pair& mine, std::int64_t now_ns) noexcept {
  const bool due = now_ns >= next_rotation_ns_.load(std::memory_order_relaxed);
  if (!due && mine.epoch == epoch_.load(std::memory_order_acquire)) return true;
  std::lock_guard lock(mutex_);
  if (now_ns >= next_rotation_ns_.load(std::memory_order_relaxed)) {
    // A context that nobody has used for two lifetimes owes nobody its old key.
    const bool long_unused =
        now_ns >= next_rotation_ns_.load(std::memory_order_relaxed) + lifetime_ns_.load(std::memory_order_relaxed);
    if (!rotate_locked(now_ns)) return false;
    if (long_unused && !rotate_locked(now_ns)) return false;
  }
  mine.epoch = keys_.epoch;
  mine.current = keys_.current;
  mine.previous = keys_.previous;
  mine.has_previous = keys_.has_previous;
  return true;
}

}  // namespace percore::tls
