// The write operations: write, write_last, try_write, shutdown_write, and the unsent tail.

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#include "engine/connection/slice.hpp"
#include "engine/connection/slot.hpp"
#include "engine/connection/zero_copy.hpp"

namespace percore::engine {

bool slot::start_write(const bytes_view* first, std::size_t count, bool last) noexcept {
  const bool in_turn = ++operations <= core->operations_per_turn;  // away from the core it never is
  check_use_in_debug_builds(*this);
  PERCORE_ASSERT(!writing, "a connection is written by two coroutines at once");
  if (!in_turn && is_away()) return write_away(first, count, last);
  if (last && dialled) [[unlikely]] {
    // resume() looks after a FIN that waits only for connections with a handler of their own.
    --operations;
    const bool done = start_write(first, count, false);
    finish_sending();
    return done;
  }
  if (ended || sending_done || is_shaking_hands()) {
    fail(ended ? end_reason : static_cast<int>(sending_done ? errc::closed : errc::limit_exceeded));
    write_ok = false;
    if (in_turn) return true;
    postponed = true;  // a handler that goes on writing to a dead connection must not keep its core
    return false;
  }
  std::size_t done = 0;
  if (in_turn && count == 1 && tail == nullptr && writable && (!indirect || may_send_at_once(first->size(), last))) {
    // The usual write: one piece that the socket takes whole. Nothing of it needs to be noted.
    const ssize_t result =
        sent(sys::send(fd, first->data(), first->size(), MSG_NOSIGNAL | (last ? MSG_MORE : 0)));
    if (result == static_cast<ssize_t>(first->size())) [[likely]] {
      write_ok = true;
      sending_done = fin_pending = last;
      return true;
    }
    if (result > 0) done = static_cast<std::size_t>(result);
  } else if (in_turn && encrypting && count == 1 && !last && tail == nullptr && writable &&
             first->size() <= tls::batch_bytes) {
    write_ok = send_encrypted_whole(*first);
    return true;
  }
  return write_rest(first, count, last, done, in_turn);
}

// All of the write but its first `done` bytes.
bool slot::write_rest(const bytes_view* first, std::size_t count, bool last, std::size_t done, bool in_turn) noexcept {
  pieces = first;
  piece_count = count;
  piece_offset = done;
  write_remaining = 0;
  for (std::size_t i = 0; i < count; ++i) write_remaining += first[i].size();
  write_remaining -= done;
  write_last = last;
  sending_done = last;
  if (indirect && may_lend(first, count)) begin_lending();
  return begin_output(in_turn);
}

bool slot::begin_output(bool in_turn) noexcept {
  writing = true;
  if (!in_turn) {
    postponed = true;
    return false;
  }
  advance_output();
  return !writing;
}

bool slot::suspend_write(std::coroutine_handle<> waiter) noexcept {
  check_running();
  if (postponed) {
    postponed = false;
    wake_soon();
  } else if (!ensure_registered() && fail_write()) {
    return false;
  }
  writer = waiter;
  arm_for_write();
  return true;
}

void slot::continue_output() noexcept {
  advance_output();
  // A write that was postponed may be the first operation of all that has to wait for the socket.
  if (writing && !ensure_registered()) (void)fail_write();
  if (!writing && writer) resume(std::exchange(writer, {}));
}

void slot::finish_write(bool ok) noexcept {
  writing = false;
  write_ok = ok;
  if (ok && fin_after_tail && encrypted) say_goodbye(0);  // shutdown_write() came while this was waiting
  if (!ok) {
    fail(end_reason);
  } else if (tail == nullptr) {
    tail_is_empty();
  }
}

void slot::advance_output() noexcept {
  if (tail == nullptr || flush_tail()) {
    if (writing && !ended) send_pieces();
  }
  if (!writing) return;
  if (ended) {
    (void)fail_write();
  } else if (write_remaining == 0 || tail != nullptr || !writable) {
    keep_rest();
  }
}

// The bytes that are left of a write in plain join the tail.
bool slot::keep_plain_rest() noexcept {
  skip_sent_pieces();
  for (; write_remaining > 0; ++pieces, piece_offset = 0) {
    const std::size_t size = pieces->size() - piece_offset;
    if (size != 0 && !append_to_tail(pieces->data() + piece_offset, size)) return false;
    write_remaining -= size;
  }
  return ensure_registered();
}

// What is left of the write goes to the tail if it fits; then the writer need not wait for it.
void slot::keep_rest() noexcept {
  if (write_remaining > 0) {
    const std::size_t kept = tail == nullptr ? 0 : tail->size();
    if (kept + write_remaining > listener->unsent_tail_bytes || piece_count == from_source) {
      if (writer) (void)ensure_registered();  // a write that was put off to this turn has not been yet
      return;
    }
    if (encrypting) {
      encrypt_rest();
      if (ended) {
        finish_write(false);
        return;
      }
    } else if (!keep_plain_rest()) {
      finish_write(false);
      return;
    }
  }
  if (write_last) {
    if (encrypted) {
      say_goodbye(MSG_MORE);  // unless the last batch has brought it
      if (ended) {
        finish_write(false);
        return;
      }
    }
    fin_after_tail = tail != nullptr;
    fin_pending = tail == nullptr;
  }
  finish_write(true);
}

// Sends until everything is sent, the socket is full, or it fails. The tail is empty.
void slot::send_pieces() noexcept {
  if (piece_count == from_source) {
    send_source();
    return;
  }
  if (encrypting) {
    send_encrypted();
    return;
  }
  constexpr std::size_t most_pieces = 64;  // per system call; IOV_MAX is 1024
  const int flags = MSG_NOSIGNAL | (write_last && !encrypted ? MSG_MORE : 0);  // as send_tls_record says
  while (write_remaining > 0 && writable && !ended) {
    skip_sent_pieces();
    ssize_t result = 0;
    if (piece_count == 1) {
      result = sent(sys::send(fd, pieces->data() + piece_offset, write_remaining, flags));
    } else {
      std::array<iovec, most_pieces> vector;
      const std::size_t count = std::min(piece_count, most_pieces);
      std::size_t offered = 0;
      for (std::size_t i = 0; i < count; ++i) {
        vector[i] = {const_cast<std::byte*>(pieces[i].data()), pieces[i].size()};
        offered += pieces[i].size();
      }
      vector[0].iov_base = const_cast<std::byte*>(pieces->data() + piece_offset);
      vector[0].iov_len -= piece_offset;
      msghdr message{};
      message.msg_iov = vector.data();
      message.msg_iovlen = count;
      const bool all = offered - piece_offset == write_remaining;
      result = sent(sys::sendmsg(fd, &message, all ? flags : flags | MSG_MORE));
    }
    if (result <= 0) continue;
    write_remaining -= static_cast<std::size_t>(result);
    piece_offset += static_cast<std::size_t>(result);
  }
}

// Goes past the pieces that are sent, and past empty ones.
void slot::skip_sent_pieces() noexcept {
  while (piece_count > 0 && piece_offset >= pieces->size()) {
    piece_offset -= pieces->size();
    ++pieces;
    --piece_count;
  }
}

// Books the result of a send. After EAGAIN `writable` is false, after a failure `ended` is true.
ssize_t slot::sent(ssize_t result) noexcept {
  if (result >= 0) {
    core->counters.bytes_sent.add(static_cast<std::uint64_t>(result));
    note_activity();
    if (writer) arm_for_write();  // progress: the time starts anew
  } else if (result == -EAGAIN) {
    writable = false;
  } else if (result != -EINTR) {
    io_failed(static_cast<int>(result));
  }
  return result;
}

// True when nothing is left of the tail.
bool slot::flush_tail() noexcept {
  while (writable && tail != nullptr) {
    if (tail->size() != 0) {
      const ssize_t result = sent(sys::send(fd, tail->data() + tail->begin, tail->size(), MSG_NOSIGNAL));
      if (result <= 0) continue;
      tail->begin += static_cast<std::uint32_t>(result);
      if (tail->size() != 0 || (encrypted && secure->kept() != 0)) arm_for_write();
      if (tail->size() != 0) continue;
    }
    if (encrypted && !send_kept_messages()) continue;
    drop_tail();
    tail_is_empty();
  }
  return tail == nullptr;
}

void slot::tail_is_empty() noexcept {
  if (fin_after_tail && !writing && !closing && phase == slot_phase::running &&
      !is_shaking_hands()) {
    fin_after_tail = false;
    (void)sys::shutdown(fd, SHUT_WR);
  }
}

bool slot::append_to_tail(const std::byte* data, std::size_t size) noexcept {
  const std::size_t kept = tail == nullptr ? 0 : tail->size();
  const std::size_t needed = kept + size;
  if (tail == nullptr || needed > tail->capacity - tail->begin) {
    // One that grows does so by doubling: a large write comes in many parts.
    const std::size_t capacity = tail == nullptr ? needed : std::max(needed, std::size_t{2} * tail->capacity);
    void* memory = std::malloc(sizeof(unsent_tail) + capacity);
    if (memory == nullptr) {
      resetting = true;  // bytes that were accepted are lost: the peer must not take the end for a clean one
      end_with(static_cast<int>(errc::no_memory));
      return false;
    }
    auto* grown = ::new (memory) unsent_tail{0, static_cast<std::uint32_t>(kept), static_cast<std::uint32_t>(capacity)};
    if (tail != nullptr) {
      std::memcpy(grown->data(), tail->data() + tail->begin, kept);
      std::free(tail);
    } else {
      ++core->counters.unsent_tails;
      arm_for_write();
    }
    tail = grown;
  }
  if (size != 0) std::memcpy(tail->data() + tail->end, data, size);
  tail->end += static_cast<std::uint32_t>(size);
  return true;
}

void slot::drop_tail() noexcept { std::free(std::exchange(tail, nullptr)); }

bool slot::try_write_now(bytes_view data) noexcept {
  if (is_away()) return try_write_away(data);
  if (ended || sending_done) {
    fail(ended ? end_reason : static_cast<int>(errc::closed));
    return false;
  }
  const std::size_t kept = tail == nullptr ? 0 : tail->size();
  if (writing || kept + data.size() > listener->unsent_tail_bytes) {
    fail(static_cast<int>(errc::limit_exceeded));
    return false;
  }
  if (is_shaking_hands()) {
    fail(static_cast<int>(errc::limit_exceeded));
    return false;
  }
  if (encrypting) return send_encrypted_whole(data);
  if (!send_or_keep(data.data(), data.size(), 0)) fail(end_reason);
  return !ended;
}

// Sends, and keeps in the tail what the socket does not take now. False when the connection has ended.
bool slot::send_or_keep(const std::byte* data, std::size_t size, int flags) noexcept {
  std::size_t done = 0;
  while (tail == nullptr && writable && !ended && done < size) {
    const ssize_t result = sent(sys::send(fd, data + done, size - done, MSG_NOSIGNAL | flags));
    if (result > 0) done += static_cast<std::size_t>(result);
  }
  if (!ended && done < size && append_to_tail(data + done, size - done)) (void)ensure_registered();
  return !ended;
}

void slot::finish_sending() noexcept {
  if (is_away()) {
    request_ending([](void* self, std::coroutine_handle<>) noexcept {
      static_cast<slot*>(self)->finish_sending();
      return true;
    });
    return;
  }
  if (sending_done || ended) return;
  sending_done = true;
  const bool shaking_hands = is_shaking_hands();
  if (encrypted && !writing && !shaking_hands) say_goodbye(0);
  if (tail != nullptr || writing || shaking_hands) {
    fin_after_tail = true;
  } else {
    (void)sys::shutdown(fd, SHUT_WR);
  }
}

}  // namespace percore::engine

namespace percore {

using engine::check_use;
using engine::slot;

namespace {

template <class Awaiter>
bool suspend_write(Awaiter& write, connection& owner, std::coroutine_handle<> waiter) noexcept {
  slot& s = slot::of(owner);
  if (!s.is_away()) return s.suspend_write(waiter);
  s.slice->write_requested = true;
  if (!s.writing) return s.request_wait(write, waiter);
  // The socket has taken the beginning of it already.
  s.request(
      [](void* self, std::coroutine_handle<> resumed) noexcept { return !static_cast<slot*>(self)->suspend_write(resumed); },
      &s, waiter);
  return true;
}

}  // namespace

[[gnu::hot]] bool detail::write_awaiter::await_ready() const noexcept {
  return slot::of(*owner_).start_write(&data_, 1, last_);
}
bool detail::write_awaiter::await_suspend(std::coroutine_handle<> waiter) const noexcept {
  return suspend_write(*this, *owner_, waiter);
}
[[gnu::hot]] bool detail::write_awaiter::await_resume() const noexcept { return slot::of(*owner_).write_ok; }

bool detail::write_pieces_awaiter::await_ready() const noexcept {
  return slot::of(*owner_).start_write(pieces_.data(), pieces_.size(), last_);
}
bool detail::write_pieces_awaiter::await_suspend(std::coroutine_handle<> waiter) const noexcept {
  return suspend_write(*this, *owner_, waiter);
}
bool detail::write_pieces_awaiter::await_resume() const noexcept { return slot::of(*owner_).write_ok; }

bool connection::try_write(bytes_view data) noexcept {
  slot& s = slot::of(*this);
  check_use(s);
  return s.try_write_now(data);
}

std::size_t connection::unsent_bytes() const noexcept {
  const slot& s = slot::of(*this);
  return s.tail == nullptr ? 0 : s.tail->size();
}

void connection::shutdown_write() noexcept {
  slot& s = slot::of(*this);
  check_use(s);
  s.finish_sending();
}

std::error_code detail::write_posted(connection* target, const std::string& data) noexcept {
  if (target == nullptr) return errc::closed;
  return target->try_write(data) ? std::error_code{} : target->error();
}

}  // namespace percore
