#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <mutex>

namespace percore::tls {

// What encrypts session tickets: AES-256-CBC and HMAC-SHA256 (RFC 5077 4), under a name by which it is found again.
struct ticket_key {
  std::array<unsigned char, 16> name;
  std::array<unsigned char, 32> cipher;
  std::array<unsigned char, 32> mac;
};

// The newest key encrypts, it and the one before it decrypt. Key material that is older is overwritten.
struct ticket_key_pair {
  std::uint64_t epoch = 0;  // counts the keys; 0: no pair
  ticket_key current{};
  ticket_key previous{};
  bool has_previous = false;

  ~ticket_key_pair();
};

// The keys that all cores of all servers with this context share. Cores work with copies of their own: on the
// handshake path they read one atomic that changes once per lifetime, and only then take the lock to copy.
class ticket_ring {
 public:
  // Throws std::runtime_error when there is no randomness.
  ticket_ring(std::int64_t lifetime_ns, std::int64_t now_ns);

  // Brings `mine` up to date; begins a new key when the newest one's lifetime is over. False when it cannot.
  bool refresh(ticket_key_pair& mine, std::int64_t now_ns) noexcept;
  // Begins a new key now. False when there is no randomness.
  bool rotate(std::int64_t now_ns) noexcept;
  void set_lifetime(std::int64_t lifetime_ns) noexcept { lifetime_ns_.store(lifetime_ns, std::memory_order_relaxed); }

 private:
  bool rotate_locked(std::int64_t now_ns) noexcept;

  std::atomic<std::uint64_t> epoch_{0};
  std::atomic<std::int64_t> next_rotation_ns_{0};
  std::atomic<std::int64_t> lifetime_ns_;
  std::mutex mutex_;
  ticket_key_pair keys_;
};

}  // namespace percore::tls
