#include "engine/tls/shared_context.hpp"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <system_error>
#include <utility>

#include <openssl/rand.h>

#include "engine/sys/calls.hpp"
#include "engine/tls/core_context.hpp"
#include "engine/tls/library.hpp"

namespace percore::tls {

namespace {

std::int64_t ticket_key_lifetime_ns(const settings& loaded) noexcept {
  return std::chrono::nanoseconds(loaded.options.ticket_key_lifetime).count();
}

}  // namespace

shared_context::shared_context(std::shared_ptr<const settings> loaded, tls_role role)
    : role_(role), tickets_(ticket_key_lifetime_ns(*loaded), sys::monotonic_ns()) {
  if (RAND_bytes(identity_.data(), static_cast<int>(identity_.size())) != 1) {
    throw tls_error("no randomness: " + take_openssl_error());
  }
  const std::string key_log = loaded->options.key_log_file;
  adopt(std::move(loaded));
  if (key_log.empty()) return;
  key_log_fd_ = sys::open_append(key_log.c_str());
  if (key_log_fd_ < 0) {
    throw tls_error("key_log_file '" + key_log + "': " + std::generic_category().message(-key_log_fd_));
  }
}

shared_context::~shared_context() {
  if (key_log_fd_ >= 0) (void)sys::close(key_log_fd_);
}

// Everything is tried once before anybody sees it: a core that takes it up later can only lack memory.
void shared_context::adopt(std::shared_ptr<const settings> made) {
  {
    // As a core will do it: without what openssl.cnf says for the process.
    const library trial_library;
    const core_context trial(nullptr, made, 0, trial_library.get());
  }
  tickets_.set_lifetime(ticket_key_lifetime_ns(*made));
  std::lock_guard lock(mutex_);
  settings_ = std::move(made);
  version_.fetch_add(1, std::memory_order_release);
}

void shared_context::reload() {
  std::lock_guard one(reloading_);
  std::uint64_t version = 0;
  adopt(load(current(version)->options, role_));
}

void shared_context::reload(tls_options options) {
  std::lock_guard one(reloading_);
  std::uint64_t version = 0;
  if (options.key_log_file != current(version)->options.key_log_file) {
    throw tls_error("key_log_file cannot change in a reload: '" + options.key_log_file + "'");
  }
  adopt(load(options, role_));
}

std::shared_ptr<const settings> shared_context::current(std::uint64_t& version) const {
  std::lock_guard lock(mutex_);
  version = version_.load(std::memory_order_relaxed);
  return settings_;
}

void shared_context::log_key(const char* line) const noexcept {
  if (key_log_fd_ < 0) return;
  // One write of the whole line to a file opened for appending: lines of several cores do not mix.
  char text[512];
  const std::size_t size = std::min(std::strlen(line), sizeof text - 1);
  std::memcpy(text, line, size);
  text[size] = '\n';
  (void)sys::write(key_log_fd_, text, size + 1);
}

}  // namespace percore::tls

namespace percore {

tls_context::tls_context(tls_options options, tls_role role)
    : shared_(std::make_shared<tls::shared_context>(std::move(options), role)) {}

void tls_context::reload() { shared_->reload(); }
void tls_context::reload(tls_options options) { shared_->reload(std::move(options)); }
void tls_context::rotate_ticket_keys() noexcept { (void)shared_->tickets().rotate(sys::monotonic_ns()); }
tls_role tls_context::role() const noexcept { return shared_->role(); }

}  // namespace percore
