#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>

#include "engine/tls/settings.hpp"
#include "engine/tls/ticket_keys.hpp"

namespace percore::tls {

// What a public tls_context stands for. Any thread; cores look at `version` only, and take the lock when it has
// changed.
class shared_context {
 public:
  // Throws tls_error.
  shared_context(const tls_options& options, tls_role role) : shared_context(load(options, role), role) {}
  ~shared_context();
  shared_context(const shared_context&) = delete;
  shared_context& operator=(const shared_context&) = delete;

  void reload();
  void reload(tls_options options);

  [[nodiscard]] tls_role role() const noexcept { return role_; }
  [[nodiscard]] std::uint64_t version() const noexcept { return version_.load(std::memory_order_acquire); }
  // What is valid now, and its version.
  [[nodiscard]] std::shared_ptr<const settings> current(std::uint64_t& version) const;
  [[nodiscard]] ticket_ring& tickets() noexcept { return tickets_; }
  // Random: sessions of one context are not resumed under another.
  [[nodiscard]] const std::array<unsigned char, 16>& identity() const noexcept { return identity_; }
  void log_key(const char* line) const noexcept;

 private:
  shared_context(std::shared_ptr<const settings> loaded, tls_role role);
  void adopt(std::shared_ptr<const settings> made);

  const tls_role role_;
  int key_log_fd_ = -1;
  std::array<unsigned char, 16> identity_{};
  ticket_ring tickets_;
  std::mutex reloading_;  // one reload at a time
  mutable std::mutex mutex_;
  std::shared_ptr<const settings> settings_;
  std::atomic<std::uint64_t> version_{0};
};

}  // namespace percore::tls
