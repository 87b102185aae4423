// TLS handshakes: of connections of TLS listeners before their handler begins, and of start_tls() in its midst.

#include <exception>
#include <utility>

#include <openssl/err.h>

#include "engine/connection/milliseconds.hpp"
#include "engine/connection/slice.hpp"
#include "engine/connection/slot.hpp"

namespace percore::engine {

// The session -----------------------------------------------------------------------------------------------

bool slot::open_session(const std::shared_ptr<tls::shared_context>& shared) noexcept {
  try {
    secure = core->tls_state().open(shared, listener->tls_identity);
  } catch (const std::exception&) {
    ERR_clear_error();
    secure = nullptr;
  }
  encrypted = encrypting = secure != nullptr;
  indirect = encrypted || zero_copy_from != 0;
  if (encrypted) {
    secure->offer_sending(this, [](void* self, const void* keys) noexcept {
      return static_cast<slot*>(self)->take_over_sending(keys);
    });
  }
  return encrypted;
}

void slot::close_session() noexcept {
  encrypted = encrypting = false;
  indirect = zero_copy_from != 0;
  if (secure != nullptr) core->secure->close(std::exchange(secure, nullptr));
}

// Handshakes ------------------------------------------------------------------------------------------------

void slot::start_handshake() noexcept {
  if (!open_session(listener->tls)) {
    ++core->counters.refused_memory;
    resetting = true;
    flush_or_close();
    return;
  }
  phase = slot_phase::handshaking;
  arm_handshake_deadline();
  continue_handshake();
}

void slot::arm_handshake_deadline() noexcept {
  const std::uint32_t usual = listener->handshake_timeout_ms;
  const bool shorten = core->stopping && (usual == 0 || usual > drain_handshake_ms);
  arm_read_deadline(shorten ? drain_handshake_ms : usual);
}

// A shutdown has begun. One who has sent nothing yet is idle; who has begun will have a request right behind.
void slot::drain_handshake() noexcept {
  const std::int64_t latest = core->now_ns + to_ns(drain_handshake_ms);
  if (read_deadline_ns == 0 || read_deadline_ns > latest) {
    read_deadline_ns = latest;
    arm(latest);
  }
  if (phase == slot_phase::handshaking && !queued) continue_handshake();
}

bool slot::is_silent_at_shutdown() const noexcept { return core->stopping && !queued && !secure->begun(); }

void slot::continue_handshake() noexcept {
  progress made = advance_handshake();
  if (made == progress::waiting && is_silent_at_shutdown()) {
    readable = true;  // a ClientHello may have come that no event has told of yet
    made = advance_handshake();
  }
  switch (made) {
    case progress::waiting:
      if (is_silent_at_shutdown() || !ensure_registered()) flush_or_close();
      break;
    case progress::done:
      phase = slot_phase::running;
      note_handshake();
      start_handler();
      break;
    case progress::failed:
      handshake_failed();
      break;
  }
}

void slot::handshake_failed() noexcept {
  note_handshake_failure();
  flush_or_close();  // with the alert that tells the peer
}

void slot::handshake_timed_out() noexcept {
  secure->handshake_timed_out();
  ++core->counters.timeouts;
  unqueue_reader();
  if (tail != nullptr) resetting = true;  // a peer that has not taken our flight takes no alert either
  if (phase == slot_phase::handshaking) {
    handshake_failed();
  } else {
    continue_read();  // start_tls() ends
  }
}

// One step after the other until the peer has to say something.
slot::progress slot::advance_handshake() noexcept {
  const bool others_wait = !core->serving_handshakes && !core->handshakes.empty();
  for (;;) {
    if (ended || secure->has_failed()) return progress::failed;
    if (core->handshake_left_ns <= 0 || others_wait) {
      if (!queued) {
        core->handshakes.push_back(ready_node);
        queued = true;
      }
      return progress::waiting;
    }
    if (secure->awaits_input()) {
      if (!readable) return progress::waiting;
      const ssize_t received = receive_records();
      if (received == -EAGAIN) return progress::waiting;
      if (received <= 0) {
        secure->input_ended();
        return progress::failed;
      }
    }
    const std::int64_t begun = sys::monotonic_ns();
    const tls::status result = secure->handshake();
    core->measured_at_ns = sys::monotonic_ns();  // for the slice that may follow
    core->handshake_left_ns -= core->measured_at_ns - begun;
    if (!send_records(0)) return progress::failed;
    if (result == tls::status::done) {
      if (secure->pending()) readable = true;  // the first request came with the last flight
      return progress::done;
    }
    if (result != tls::status::want_input) return progress::failed;
  }
}

void slot::note_handshake() noexcept {
  read_deadline_ns = 0;  // it was the handshake's
  deadline_timer.unlink();
  timeouts_changed();  // the lifetime still counts
  if (tail != nullptr) arm_for_write();
  if (fin_after_tail) {  // shutdown_write() came in mid-handshake
    say_goodbye(0);
    if (tail == nullptr) tail_is_empty();
  }
  const SSL* ssl = secure->ssl();
  core->counters.add_handshake(SSL_version(ssl) == TLS1_3_VERSION, SSL_session_reused(ssl) == 1,
                               SSL_CIPHER_get_cipher_nid(SSL_get_current_cipher(ssl)));
}

void slot::note_handshake_failure() noexcept {
  secure->handshake_lost();  // unless it has said more
  ++core->counters.of(secure->failure());
  if (core->on_tls_failure) core->on_tls_failure(secure->failure(), secure->reason(), peer);
}

// STARTTLS --------------------------------------------------------------------------------------------------

bool slot::begin_start_tls(const tls_context& with, buffered_plaintext policy) noexcept {
  check_use(*this);
  PERCORE_ASSERT(reading == read_kind::none && !writing, "start_tls while the connection is read or written");
  PERCORE_ASSERT(!encrypted, "start_tls on a connection that is encrypted already");
  reading = read_kind::start_tls;
  target_done = 0;  // 1 when the handshake is done
  view_size = 0;
  if (ended || sending_done) {
    read_failed(ended ? end_reason : static_cast<int>(errc::closed));
  } else if (begin != end && policy == buffered_plaintext::refuse) {
    read_failed(static_cast<int>(errc::plaintext_injected));
  } else {
    begin = end;
    drop_buffer();
    if (open_session(with.shared())) return advance_read();
    end_with(static_cast<int>(errc::no_memory));
    read_failed(end_reason);
  }
  reading = read_kind::none;
  return true;
}

bool slot::suspend_start_tls(std::coroutine_handle<> waiter) noexcept {
  check_running();
  if (!ensure_registered()) {
    fail_start_tls();
    return false;
  }
  reader = waiter;
  arm_handshake_deadline();
  arm_idle_timeout();
  return true;
}

// As the other advance_*: true when done.
bool slot::advance_start_tls() noexcept {
  switch (advance_handshake()) {
    case progress::waiting:
      return false;
    case progress::done:
      target_done = 1;
      note_handshake();
      return true;
    case progress::failed:
      break;
  }
  fail_start_tls();
  return true;
}

// The connection has ended in the midst of start_tls, by something else than the handshake.
void slot::note_ended_start_tls() noexcept {
  if (end_reason == static_cast<int>(errc::closed) || end_reason == static_cast<int>(errc::shutting_down)) return;
  if (end_reason == static_cast<int>(errc::timed_out)) secure->handshake_timed_out();
  note_handshake_failure();
}

void slot::fail_start_tls() noexcept {
  note_handshake_failure();
  const bool timed_out = secure->failure() == tls_failure::timed_out;
  end_with(static_cast<int>(timed_out ? errc::timed_out : errc::tls_failed));
  read_failed(end_reason);
  reading = read_kind::none;
}

}  // namespace percore::engine

namespace percore {

using engine::slot;

bool detail::start_tls_awaiter::await_ready() const noexcept {
  slot& s = slot::of(*owner_);
  return !s.is_away() && s.begin_start_tls(*context_, policy_);
}
bool detail::start_tls_awaiter::await_suspend(std::coroutine_handle<> waiter) const noexcept {
  slot& s = slot::of(*owner_);
  return s.is_away() ? s.request_wait(*this, waiter) : s.suspend_start_tls(waiter);
}
bool detail::start_tls_awaiter::await_resume() const noexcept { return slot::of(*owner_).target_done != 0; }

std::optional<tls_info> connection::tls() const noexcept {
  const slot& s = slot::of(*this);
  if (s.secure == nullptr || !s.secure->established()) return std::nullopt;
  return s.secure->info();
}

std::vector<tls_peer_certificate> connection::peer_certificates() const {
  const slot& s = slot::of(*this);
  if (s.secure == nullptr) return {};
  return s.secure->peer_certificates();
}

std::string_view connection::tls_error() const noexcept {
  const slot& s = slot::of(*this);
  return s.secure == nullptr ? std::string_view() : s.secure->reason();
}

ssl_st* connection::native_tls() const noexcept {
  const slot& s = slot::of(*this);
  return s.secure == nullptr ? nullptr : s.secure->ssl();
}

}  // namespace percore
