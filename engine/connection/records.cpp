// TLS records between the operations and the socket: what read.cpp receives and what write.cpp sends with a session.
//
// A session knows no socket. The slot receives records into the core's buffer, lets the session work on them, and sends
// what the session has left in the core's output, all of it in one send if the socket takes it; else the rest joins the
// unsent tail, whose bytes are always those of the wire.

#include <algorithm>

#include "engine/connection/slot.hpp"

namespace percore::engine {

namespace {

// Plaintext that is encrypted before it is sent, at most.
constexpr std::size_t batch_bytes = 64 * 1024;
// Alerts and answers to key updates that a peer which does not read may pile up in the tail, over its cap.
constexpr std::size_t most_unasked_bytes = 16 * 1024;

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
    (void)send_records(0);
  }
}

void slot::say_goodbye(int flags) noexcept {
  secure->close_notify();
  (void)send_records(flags);
}

}  // namespace percore::engine
