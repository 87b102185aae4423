// blocking_connection: the face of a blocking_session.

#include <percore/blocking.hpp>

#include <stdexcept>

#include "engine/connection/blocking.hpp"
#include "engine/connection/milliseconds.hpp"

namespace percore {

using engine::to_ms;

bytes_view blocking_connection::read() {
  return session_->read();
}
std::size_t blocking_connection::read(std::span<std::byte> target) {
  return session_->read_into(target);
}
bool blocking_connection::read_full(std::span<std::byte> target) {
  return session_->read_full(target);
}
bytes_view blocking_connection::read_until(std::string_view delimiter, std::size_t limit) {
  return session_->read_until(delimiter, limit);
}
void blocking_connection::unread(std::size_t count) {
  session_->unread(count);
}
std::size_t blocking_connection::buffered_bytes() const noexcept {
  return session_->buffered();
}
std::size_t blocking_connection::bytes_of_failed_read() const noexcept {
  return session_->bytes_of_failed_read();
}

bool blocking_connection::write(bytes_view data) {
  return session_->write({&data, 1}, false);
}
bool blocking_connection::write(std::span<const bytes_view> pieces) {
  return session_->write(pieces, false);
}
bool blocking_connection::write_last(bytes_view data) {
  return session_->write({&data, 1}, true);
}
void blocking_connection::shutdown_write() {
  session_->shutdown_write();
}
void blocking_connection::reset() noexcept {
  session_->reset();
}
std::error_code blocking_connection::error() const noexcept {
  return session_->error();
}

bool blocking_connection::start_tls(const tls_context& context, buffered_plaintext policy) {
  if (context.role() != tls_role::server) {
    throw std::invalid_argument("percore: start_tls() needs a server's tls_context");
  }
  return session_->start_tls(context, policy);
}
std::optional<tls_info> blocking_connection::tls() const {
  const tls::session* secure = session_->secure();
  if (secure == nullptr || !secure->established()) return std::nullopt;
  return secure->info();
}
std::vector<tls_peer_certificate> blocking_connection::peer_certificates() const {
  if (session_->secure() == nullptr) return {};
  return session_->secure()->peer_certificates();
}
std::string_view blocking_connection::tls_error() const noexcept {
  return session_->secure() == nullptr ? std::string_view() : session_->secure()->reason();
}
ssl_st* blocking_connection::native_tls() const noexcept {
  return session_->secure() == nullptr ? nullptr : session_->secure()->ssl();
}

void blocking_connection::set_read_timeout(std::chrono::milliseconds timeout) noexcept {
  session_->read_timeout_ms = to_ms(timeout);
}
void blocking_connection::set_write_timeout(std::chrono::milliseconds timeout) noexcept {
  session_->write_timeout_ms = to_ms(timeout);
}
void blocking_connection::set_idle_timeout(std::chrono::milliseconds timeout) noexcept {
  session_->idle_timeout_ms = to_ms(timeout);
}
void blocking_connection::set_deadline(std::chrono::steady_clock::time_point when) noexcept {
  // libstdc++'s steady_clock is CLOCK_MONOTONIC.
  session_->deadline_ns = std::chrono::nanoseconds(when.time_since_epoch()).count();
}

address blocking_connection::peer_address() const noexcept {
  return session_->connection().peer;
}
address blocking_connection::local_address() const noexcept {
  return session_->connection().local_address();
}
server& blocking_connection::owner() const noexcept {
  return *session_->connection().core->owner;
}
unsigned blocking_connection::core_index() const noexcept {
  return session_->connection().core->index;
}
std::size_t blocking_connection::listener() const noexcept {
  return session_->connection().listener->index;
}
bool blocking_connection::server_stopping() const noexcept {
  // A server that has given up on its helpers may be gone, and has said so before.
  return session_->interrupted() || session_->connection().core->stop_requested->load(std::memory_order_relaxed);
}
int blocking_connection::fd() const noexcept {
  return session_->connection().fd;
}
std::error_code blocking_connection::set_option(int level, int name, const void* value,
                                                std::size_t bytes) noexcept {
  const int result = sys::setsockopt(fd(), level, name, value, static_cast<socklen_t>(bytes));
  return result >= 0 ? std::error_code{} : std::error_code(-result, std::system_category());
}

}  // namespace percore
