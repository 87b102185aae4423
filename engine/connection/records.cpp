// TLS records between the operations and the socket: what read.cpp receives and what write.cpp sends with a session.
//
// A session knows no socket. The slot receives records into the core's buffer, lets the session work on them, and sends
// what the session has left in the core's output, all of it in one send if the socket takes it; else the rest joins the
// unsent tail, whose bytes are those of the wire. With kernel TLS the kernel makes the records: then writes do not come
// here, and the tail holds plaintext.

#include <algorithm>

#include "engine/connection/slot.hpp"
#include "engine/sys/kernel_tls.hpp"

namespace percore::engine {

using tls::batch_bytes;

namespace {

// Alerts and answers to key updates that a peer which does not read may pile up in the tail, over its cap.
constexpr std::size_t most_unasked_bytes = 16 * 1024;

// Messages of a session's own that wait, with kernel TLS, or come at once. An honest peer causes two or three: a ticket,
// an alert, an answer to a request for renegotiation.
constexpr std::size_t most_kernel_messages = 64;

// In one go without a byte for the handler.
constexpr unsigned most_receives = 2;

}  // namespace

// Receiving -------------------------------------------------------------------------------------------------

// Records into the core's buffer; the results of recv. Only when the session has worked up what it had.
ssize_t slot::receive_records() noexcept {
  tls::io& wire = core->secure->wire;
  wire.use(*secure);
  const auto room = wire.room();
  const ssize_t received = receive_bytes(room.data(), room.size());
  if (received > 0) wire.received(static_cast<std::size_t>(received));
  return received;
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
  if (!encrypting) return send_kernel_messages();
  if (output.empty()) return !ended;
  const std::size_t overhead = listener->unsent_tail_bytes / 256;  // at most 29 bytes for 16 KiB, more for less
  const std::size_t most = std::size_t{listener->unsent_tail_bytes} + overhead + batch_bytes + most_unasked_bytes;
  if (!ended && tail != nullptr && tail->size() > most) {
    resetting = true;
    end_with(static_cast<int>(errc::limit_exceeded));
  }
  const bool ok = send_or_keep(output.data(), output.size(), flags);
  wire.output_taken();
  return ok;
}

// Kernel TLS. The session's keys for sending, in the midst of its handshake: true when the kernel has taken them. Its
// first record must follow the last of ours, so nothing of ours may be left.
bool slot::take_over_sending(const void* keys) noexcept {
  if (core->secure->kernel_has_no_tls || !send_records(0) || tail != nullptr) return false;
  const int result = sys::start_kernel_tls(fd, keys);
  if (result == -ENOENT) core->secure->kernel_has_no_tls = true;
  if (result != 0) return false;
  ++core->counters.tls_kernel_sends;
  encrypting = false;
  return true;
}

// What the session says itself (alerts, tickets), each as a record of its type. What the socket does not take is kept
// by the session, and sent behind the tail: handlers' bytes may overtake a ticket, and nothing follows an alert.
bool slot::send_kernel_messages() noexcept {
  tls::io& wire = core->secure->wire;
  if (!ended && wire.kernel_messages().size() + secure->kept() > most_kernel_messages) {
    resetting = true;
    end_with(static_cast<int>(errc::limit_exceeded));
  }
  for (const tls::kernel_message& message : wire.kernel_messages()) {
    if (ended || (tail == nullptr && send_kernel_message(message))) continue;
    if (ended) continue;
    if (!secure->keep(message)) {
      resetting = true;
      end_with(static_cast<int>(errc::no_memory));
    } else if (append_to_tail(nullptr, 0)) {
      (void)ensure_registered();
    }
  }
  wire.output_taken();
  return !ended;
}

// False: not sent.
bool slot::send_kernel_message(const tls::kernel_message& message) noexcept {
  while (writable && !ended) {
    const std::size_t size = message.content.size();
    const ssize_t result = sent(sys::send_tls_record(fd, message.type, message.content.data(), size, MSG_NOSIGNAL));
    if (result == static_cast<ssize_t>(size)) return true;
    if (result >= 0) io_failed(-EIO);  // a part of it is no message
  }
  return false;
}

// The messages that wait behind the tail. True when none is left.
bool slot::send_kept_messages() noexcept {
  while (const tls::kernel_message* message = secure->first_kept()) {
    if (!send_kernel_message(*message)) return false;
    secure->drop_first_kept();
  }
  return true;
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

// One piece at once: the usual write, in one batch to a socket that has room. What of its records does not fit after all
// is in the tail, so it is done. False: the connection has ended.
bool slot::send_encrypted_whole(bytes_view data) noexcept {
  const bool ok = secure->write({data.data(), data.size()}, core->now_ns);
  if (send_records(0) && !ok) records_failed();
  if (ended) fail(end_reason);
  return !ended;
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
    (void)send_records(0);
  }
}

void slot::say_goodbye(int flags) noexcept {
  secure->close_notify();
  (void)send_records(flags);
}

}  // namespace percore::engine
