// TLS between the operations and the socket: handshakes, what read.cpp receives with it, what write.cpp sends with it.
//
// A session knows no socket. The slot receives records into the core's buffer, lets the session work on them, and sends
// what the session has left in the core's output, all of it in one send if the socket takes it; else the rest joins the
// unsent tail, whose bytes are always those of the wire.

#include <algorithm>
#include <cstring>
#include <new>
#include <utility>

#include "engine/connection/slot.hpp"

namespace percore::engine {

namespace {

// Plaintext that is encrypted before it is sent, at most.
constexpr std::size_t batch_bytes = 64 * 1024;
// Alerts and answers to key updates that a peer which does not read may pile up in the tail, over its cap.
constexpr std::size_t most_unasked_bytes = 16 * 1024;

// In one go without a byte for the handler.
constexpr unsigned most_receives = 2;

constexpr std::int64_t to_ns(std::uint32_t ms) noexcept { return std::int64_t{ms} * 1'000'000; }

}  // namespace

// The session -----------------------------------------------------------------------------------------------

bool slot::open_session(const std::shared_ptr<tls::shared_context>& shared) noexcept {
  if (core->secure == nullptr) {
    try {
      core->secure = std::make_unique<tls::core_state>();
    } catch (const std::bad_alloc&) {
      return false;
    }
  }
  secure = core->secure->open(shared, listener->tls_identity);
  encrypted = secure != nullptr;
  return encrypted;
}

void slot::close_session() noexcept {
  encrypted = false;
  if (secure != nullptr) core->secure->close(std::exchange(secure, nullptr));
}

// Handshakes ------------------------------------------------------------------------------------------------

void slot::start_handshake() noexcept {
  ++core->counters.active;
  if (!open_session(listener->tls)) {
    ++core->counters.refused_memory;
    resetting = true;
    flush_or_close();
    return;
  }
  phase = slot_phase::handshaking;
  if (listener->handshake_timeout_ms != 0) {
    read_deadline_ns = core->now_ns + to_ns(listener->handshake_timeout_ms);
    arm(read_deadline_ns);
  }
  continue_handshake();
}

void slot::continue_handshake() noexcept {
  switch (advance_handshake()) {
    case progress::waiting:
      if (!ensure_registered()) flush_or_close();
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
  secure->fail(tls_failure::timed_out, "the handshake took too long");
  ++core->counters.timeouts;
  unqueue();
  handshake_failed();
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
    core->handshake_left_ns -= sys::monotonic_ns() - begun;
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
  core_counters& counters = core->counters;
  ++counters.tls_handshakes;
  const SSL* ssl = secure->ssl();
  if (SSL_session_reused(ssl) == 1) ++counters.tls_resumptions;
  ++(SSL_version(ssl) == TLS1_3_VERSION ? counters.tls_v1_3 : counters.tls_v1_2);
  switch (SSL_CIPHER_get_cipher_nid(SSL_get_current_cipher(ssl))) {
    case NID_aes_128_gcm:
      ++counters.tls_aes_128_gcm;
      break;
    case NID_aes_256_gcm:
      ++counters.tls_aes_256_gcm;
      break;
    case NID_chacha20_poly1305:
      ++counters.tls_chacha20_poly1305;
      break;
    default:
      ++counters.tls_other_ciphers;
      break;
  }
}

void slot::note_handshake_failure() noexcept {
  secure->fail(tls_failure::peer_gone, "the connection was lost in mid-handshake");  // unless it has said more
  core_counters& counters = core->counters;
  switch (secure->failure()) {
    case tls_failure::timed_out:
      ++counters.tls_failed_timed_out;
      break;
    case tls_failure::peer_gone:
      ++counters.tls_failed_peer_gone;
      break;
    case tls_failure::not_tls:
      ++counters.tls_failed_not_tls;
      break;
    case tls_failure::plain_http:
      ++counters.tls_failed_plain_http;
      break;
    case tls_failure::nothing_shared:
      ++counters.tls_failed_nothing_shared;
      break;
    case tls_failure::certificate:
      ++counters.tls_failed_certificate;
      break;
    case tls_failure::alert:
      ++counters.tls_failed_alert;
      break;
    case tls_failure::protocol:
      ++counters.tls_failed_protocol;
      break;
    case tls_failure::internal:
      ++counters.tls_failed_internal;
      break;
  }
  if (core->on_tls_failure) core->on_tls_failure(secure->failure(), secure->reason(), peer);
}

// STARTTLS --------------------------------------------------------------------------------------------------

bool slot::begin_start_tls(const tls_context& with, buffered_plaintext policy) noexcept {
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
  read_deadline_ns = 0;  // of an earlier read
  if (idle_timeout_ms != 0) {
    last_activity_ns = core->now_ns;
    arm(last_activity_ns + to_ns(idle_timeout_ms));
  }
  if (listener->handshake_timeout_ms != 0) {
    read_deadline_ns = core->now_ns + to_ns(listener->handshake_timeout_ms);
    arm(read_deadline_ns);
  }
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

void slot::fail_start_tls() noexcept {
  note_handshake_failure();
  const bool timed_out = secure->failure() == tls_failure::timed_out;
  end_with(static_cast<int>(timed_out ? errc::timed_out : errc::tls_failed));
  read_failed(end_reason);
  reading = read_kind::none;
}

// Receiving -------------------------------------------------------------------------------------------------

// Records into the core's buffer; the results of recv. Only when the session has worked up what it had.
ssize_t slot::receive_records() noexcept {
  tls::io& wire = core->secure->wire;
  wire.use(*secure);
  const auto room = wire.room();
  for (;;) {
    const ssize_t received = sys::recv(fd, room.data(), room.size(), 0);
    if (received > 0) {
      core->counters.bytes_received.add(static_cast<std::uint64_t>(received));
      note_activity();
      if (static_cast<std::size_t>(received) < room.size() && short_read_drains) readable = false;
      wire.received(static_cast<std::size_t>(received));
      return received;
    }
    if (received == -EINTR) continue;
    if (received == 0) {
      end_seen = true;
    } else if (received == -EAGAIN) {
      readable = false;
    } else {
      io_failed(static_cast<int>(received));
    }
    return received;
  }
}

// What receive() is for plain connections: the same results, and `readable` stays set while the session has more to
// give than fits `into`.
ssize_t slot::receive_decrypted(std::byte* into, std::size_t capacity) noexcept {
  for (unsigned receives = 0;; ++receives) {
    if (receives != 0 || secure->pending()) {
      std::size_t decrypted = 0;
      const tls::status result = secure->read({into, capacity}, decrypted);
      if (!send_records(0)) {
        read_failed(end_reason);
        return -ECONNRESET;
      }
      if (decrypted != 0) {
        if (secure->pending()) readable = true;
        return static_cast<ssize_t>(decrypted);
      }
      if (result == tls::status::closed) {
        end_seen = true;
        read_failed(static_cast<int>(errc::end_of_stream));
        return 0;
      }
      if (result == tls::status::failed) {
        records_failed();
        read_failed(end_reason);
        return -EPROTO;
      }
    }
    // A peer can send any number of records without a byte for the handler (key updates): they must not keep the core.
    // settle_read sees to it that the rest is looked at in the next step.
    if (!readable || receives == most_receives) return -EAGAIN;
    const ssize_t received = receive_records();
    if (received == -EAGAIN) return received;
    if (received == 0) {
      ++core->counters.tls_truncated;
      read_ended();
      return 0;
    }
    if (received < 0) {
      read_failed(end_reason);
      return received;
    }
  }
}

// The session has broken down. Its alert, if it has one for the peer, has been sent.
void slot::records_failed() noexcept {
  ++core->counters.tls_failed_records;
  end_with(static_cast<int>(errc::tls_failed));
}

// Sending ---------------------------------------------------------------------------------------------------

// Sends what the session has produced, or keeps it in the tail. False when the connection has ended.
bool slot::send_records(int flags) noexcept {
  tls::io& wire = core->secure->wire;
  const std::span<const std::byte> output = wire.output();
  if (output.empty()) return !ended;
  std::size_t done = 0;
  while (tail == nullptr && writable && !ended && done < output.size()) {
    const ssize_t result = sent(sys::send(fd, output.data() + done, output.size() - done, MSG_NOSIGNAL | flags));
    if (result > 0) done += static_cast<std::size_t>(result);
  }
  if (!ended && done < output.size()) {
    const std::size_t kept = tail == nullptr ? 0 : tail->size();
    const std::size_t overhead = listener->unsent_tail_bytes / 256;  // at most 29 bytes for 16 KiB, more for less
    if (kept > std::size_t{listener->unsent_tail_bytes} + overhead + batch_bytes + most_unasked_bytes) {
      resetting = true;
      end_with(static_cast<int>(errc::limit_exceeded));
    } else if (append_to_tail(output.data() + done, output.size() - done)) {
      (void)ensure_registered();
    }
  }
  wire.output_taken();
  return !ended;
}

// Encrypts the next pieces of the write in progress, up to a batch. False when the session has failed.
bool slot::encrypt_batch() noexcept {
  std::vector<std::byte>& gather = core->secure->gather;
  std::size_t batch = 0;
  while (write_remaining > 0 && batch < batch_bytes) {
    skip_sent_pieces();
    const std::byte* data = pieces->data() + piece_offset;
    std::size_t size = std::min(pieces->size() - piece_offset, batch_bytes - batch);
    if (size < gather.capacity() && size < write_remaining) {
      // Small pieces share a record: a head and its body are one.
      gather.clear();
      while (write_remaining > 0 && gather.size() < gather.capacity()) {
        skip_sent_pieces();
        const std::size_t part = std::min(pieces->size() - piece_offset, gather.capacity() - gather.size());
        gather.insert(gather.end(), pieces->data() + piece_offset, pieces->data() + piece_offset + part);
        piece_offset += part;
        write_remaining -= part;
      }
      data = gather.data();
      size = gather.size();
    } else {
      piece_offset += size;
      write_remaining -= size;
    }
    if (!secure->write({data, size}, core->now_ns)) return false;
    batch += size;
  }
  return true;
}

void slot::send_encrypted() noexcept {
  while (write_remaining > 0 && tail == nullptr && writable && !ended) {
    const bool ok = encrypt_batch();
    const bool finished = write_last && write_remaining == 0;
    if (ok && finished) secure->close_notify();
    if (send_records(finished ? MSG_MORE : 0) && !ok) records_failed();
  }
}

// What is left of the write becomes part of the tail.
void slot::encrypt_rest() noexcept {
  while (write_remaining > 0 && !ended) {
    if (!encrypt_batch()) records_failed();
    if (write_last && write_remaining == 0) secure->close_notify();
    (void)send_records(0);
  }
}

void slot::say_goodbye(int flags) noexcept {
  secure->close_notify();
  (void)send_records(flags);
}

}  // namespace percore::engine

namespace percore {

using engine::slot;

bool detail::start_tls_awaiter::await_ready() const noexcept {
  return slot::of(*owner_).begin_start_tls(*context_, policy_);
}
bool detail::start_tls_awaiter::await_suspend(std::coroutine_handle<> waiter) const noexcept {
  return slot::of(*owner_).suspend_start_tls(waiter);
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
