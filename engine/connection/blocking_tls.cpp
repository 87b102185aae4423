// TLS of blocking connections. The core's objects are for its thread only, so each helper has its own: a
// session works with the BIO and the buffers of the helper that serves its connection from beginning to end.

#include <algorithm>
#include <exception>
#include <utility>

#include "engine/connection/blocking.hpp"

namespace percore::engine {

bool blocking_session::handshake(const std::shared_ptr<tls::shared_context>& with) noexcept {
  try {
    secure_ = self_.tls().open(with, config_.tls_identity);
  } catch (const std::exception&) {  // no memory, or OpenSSL lacks what it needs
  }
  if (secure_ == nullptr) {
    job_.reset = true;
    return end(static_cast<int>(errc::no_memory));
  }
  handshake_limit_ns_ = after(config_.handshake_timeout_ms);
  bool done = false;
  while (!done && !secure_->has_failed()) {
    if (secure_->awaits_input() && receive_records() == 0) {
      if (error_ == static_cast<int>(errc::timed_out)) {
        secure_->handshake_timed_out();
      } else {
        secure_->input_ended();
      }
      break;
    }
    const tls::status result = secure_->handshake();
    if (!send_records(0)) break;
    done = result == tls::status::done;
    if (!done && result != tls::status::want_input) break;
  }
  handshake_limit_ns_ = 0;
  note_handshake(done);
  return done;
}

void blocking_session::note_handshake(bool ok) noexcept {
  const SSL* ssl = secure_->ssl();
  if (ok) {
    job_.handshake_done = true;
    job_.v1_3 = SSL_version(ssl) == TLS1_3_VERSION;
    job_.resumed = SSL_session_reused(ssl) == 1;
    job_.cipher = SSL_CIPHER_get_cipher_nid(SSL_get_current_cipher(ssl));
    return;
  }
  secure_->handshake_lost();
  job_.handshake_failed = true;
  job_.failure = secure_->failure();
  job_.failure_reason = secure_->reason().data();
  (void)end(
      static_cast<int>(secure_->failure() == tls_failure::timed_out ? errc::timed_out : errc::tls_failed));
}

bool blocking_session::start_tls(const tls_context& context, buffered_plaintext policy) {
  PERCORE_ASSERT(secure_ == nullptr, "start_tls on a connection that is encrypted already");
  begin_read();
  if (!alive()) return false;
  if (sending_done_) return fail(static_cast<int>(errc::closed));
  if (buffered() != 0 && policy == buffered_plaintext::refuse) {
    return fail(static_cast<int>(errc::plaintext_injected));
  }
  begin_ = end_ = 0;
  return handshake(context.shared());
}

// Sends what the session has produced.
bool blocking_session::send_records(int flags) noexcept {
  tls::io& wire = self_.tls().wire;
  const bool ok = send_wire(wire.output(), flags);
  wire.output_taken();
  return ok;
}

// Records into the helper's buffer. Only when the session has worked up what it had.
std::size_t blocking_session::receive_records() noexcept {
  tls::io& wire = self_.tls().wire;
  wire.use(*secure_);
  const std::size_t received = receive_wire(wire.room());
  if (received != 0) wire.received(received);
  return received;
}

std::size_t blocking_session::receive_decrypted(std::span<std::byte> into) noexcept {
  for (bool received = false;; received = true) {
    if (received || secure_->pending()) {
      std::size_t decrypted = 0;
      const tls::status result = secure_->read(into, decrypted);
      if (!send_records(0)) return 0;
      if (decrypted != 0) return decrypted;
      if (result == tls::status::closed) {
        end_seen_ = true;
        (void)fail(static_cast<int>(errc::end_of_stream));
        return 0;
      }
      if (result == tls::status::failed) {
        job_.failed_records = true;
        (void)end(static_cast<int>(errc::tls_failed));
        return 0;
      }
      // A peer can send records without a byte for the handler (key updates) so fast that this never waits.
      if (received && sys::monotonic_ns() >= std::min(read_limit_ns_, deadline_ns)) {
        ++job_.timeouts;
        (void)fail(static_cast<int>(errc::timed_out));
        return 0;
      }
    }
    if (receive_records() == 0) {
      if (end_seen_) {
        job_.truncated = true;
        (void)fail(static_cast<int>(errc::truncated));
      }
      return 0;
    }
  }
}

bool blocking_session::write_encrypted(std::span<const bytes_view> pieces, bool last) noexcept {
  std::vector<std::byte>& gather = self_.tls().gather;
  const auto encrypt = [this](std::span<const std::byte> data, int flags) {
    const bool ok = secure_->write(data, sys::monotonic_ns());
    if (!send_records(flags)) return false;
    if (ok) return true;
    job_.failed_records = true;
    return end(static_cast<int>(errc::tls_failed));
  };
  for (std::size_t i = 0; i < pieces.size();) {
    // Small pieces share a record: a head and its body are one.
    gather.clear();
    while (i < pieces.size() && pieces[i].size() <= gather.capacity() - gather.size()) {
      gather.insert(gather.end(), pieces[i].data(), pieces[i].data() + pieces[i].size());
      ++i;
    }
    if (!gather.empty()) {
      if (!encrypt(gather, last || i < pieces.size() ? MSG_MORE : 0)) return false;
      continue;
    }
    if (i == pieces.size()) break;
    std::span<const std::byte> rest(pieces[i].data(), pieces[i].size());
    ++i;
    while (!rest.empty()) {
      const std::size_t size = std::min(rest.size(), tls::batch_bytes);
      if (!encrypt(rest.first(size), last || size < rest.size() || i < pieces.size() ? MSG_MORE : 0))
        return false;
      rest = rest.subspan(size);
    }
  }
  if (!last) return true;
  secure_->close_notify();
  return send_records(MSG_MORE);
}

void blocking_session::close_tls() noexcept {
  if (secure_ == nullptr) return;
  // An alert of a failed handshake or record has been sent where it arose.
  if (!ended_ && !sending_done_ && !job_.reset) {
    secure_->close_notify();
    (void)send_records(MSG_MORE);
  }
  self_.tls().wire.output_taken();
  self_.tls().close(std::exchange(secure_, nullptr));
}

}  // namespace percore::engine
