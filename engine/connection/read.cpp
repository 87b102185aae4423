// The read operations: read, read(span), read_full, read_until.

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "engine/connection/slice.hpp"
#include "engine/connection/slot.hpp"

namespace percore::engine {

bool slot::start_read(read_kind kind) noexcept {
  const bool in_turn = ++operations <= core->operations_per_turn;  // away from the core it never is
  check_use_in_debug_builds(*this);
  if (!in_turn && is_away()) return read_away(kind);
  PERCORE_ASSERT(reading == read_kind::none, "a connection is read by two coroutines at once");
  reading = kind;
  view_size = 0;
  if (!in_turn) {
    postponed = true;
    return false;
  }
  return advance_read();
}

bool slot::suspend_read(std::coroutine_handle<> waiter) noexcept {
  check_running();
  if (postponed) {
    postponed = false;
    wake_soon();
  } else if (!settle_read()) {
    return false;
  }
  reader = waiter;
  arm_for_read();
  return true;
}

void slot::continue_read() noexcept {
  if (advance_read() || !settle_read()) resume(std::exchange(reader, {}));
}

void slot::fail_reader(int value) noexcept {
  read_failed(value);
  reading = read_kind::none;
  resume(std::exchange(reader, {}));
}

bool slot::waits_for_new_message() const noexcept {
  return !dialled && !relayed && reading != read_kind::none && reading != read_kind::start_tls && begin == end &&
         (reading <= read_kind::until || target_done == 0);
}

bytes_view slot::view() const noexcept {
  if (view_size == 0) return {};
  return {buffer->data() + (begin - view_size), view_size};
}

void slot::drop_buffer() noexcept {
  if (buffer == nullptr) return;
  core->buffers.give_back(std::exchange(buffer, nullptr), core->ready);
  begin = end = view_size = 0;
}

bool slot::advance_read() noexcept {
  if (ended) {
    if (reading == read_kind::start_tls) note_ended_start_tls();
    read_failed(end_reason);
    reading = read_kind::none;
    return true;
  }
  bool done = false;
  switch (reading) {
    case read_kind::some:
      done = advance_some();
      break;
    case read_kind::more:
      done = advance_more();
      break;
    case read_kind::ready:
      done = begin != end || end_seen || readable;
      target_done = done ? 1 : 0;
      break;
    case read_kind::until:
      done = advance_until();
      break;
    case read_kind::into:
    case read_kind::full:
      done = advance_target();
      break;
    case read_kind::start_tls:
      done = advance_start_tls();
      break;
    case read_kind::none:
      break;
  }
  if (done) reading = read_kind::none;
  return done;
}

// The read found nothing. Whatever it holds is made small, and the next event is seen to.
bool slot::settle_read() noexcept {
  if (starved) {
    starved = false;
    if (!queued) {
      queued = true;
      core->buffers.wait(ready_node);
    }
    return true;
  }
  if (core->stopping && waits_for_new_message()) {
    // A request may have come that no event has told of yet: it is still served.
    if (!readable) {
      readable = true;
      if (advance_read()) return false;
      if (starved) return settle_read();
    }
    if (waits_for_new_message()) {
      read_failed(static_cast<int>(errc::shutting_down));
      reading = read_kind::none;
      return false;
    }
  }
  release_idle_buffer();
  if (!ensure_registered()) {
    read_failed(end_reason);
    reading = read_kind::none;
    return false;
  }
  if (readable && !queued) wake_soon();  // it has stopped before it found nothing, see receive_decrypted
  return true;
}

bool slot::advance_some() noexcept {
  if (begin == end) {
    if (end_seen) return read_ended();
    if (!readable || !take_buffer()) return false;
    const ssize_t received = receive(buffer->data(), buffer->capacity);
    if (received <= 0) return received != -EAGAIN;
    begin = 0;
    end = static_cast<std::uint32_t>(received);
  }
  view_size = end - begin;
  begin = end;
  return true;
}

bool slot::advance_more() noexcept {
  if (end - begin == searched) {
    if (searched >= limit) return read_failed(static_cast<int>(errc::limit_exceeded));
    if (end_seen) return read_ended();
    if (!readable || !take_buffer()) return false;
    make_room();
    const ssize_t received = receive(buffer->data() + end, buffer->capacity - end);
    if (received <= 0) return received != -EAGAIN;
    end += static_cast<std::uint32_t>(received);
  }
  view_size = end - begin;
  begin = end;
  return true;
}

bool slot::advance_until() noexcept {
  for (;;) {
    if (take_delimited()) return true;
    if (end_seen) return read_ended();
    if (!readable || !take_buffer()) return false;
    make_room();
    const ssize_t received = receive(buffer->data() + end, buffer->capacity - end);
    if (received <= 0) return received != -EAGAIN;
    end += static_cast<std::uint32_t>(received);
  }
}

bool slot::advance_target() noexcept {
  if (begin < end) {
    const auto taken = std::min<std::size_t>(end - begin, target_size - target_done);
    std::memcpy(target + target_done, buffer->data() + begin, taken);
    begin += static_cast<std::uint32_t>(taken);
    target_done += taken;
  }
  while (target_done < target_size && (reading == read_kind::full || target_done == 0)) {
    if (end_seen) return read_ended();
    if (!readable) return false;
    const ssize_t received = receive(target + target_done, target_size - target_done);
    if (received <= 0) return received != -EAGAIN;
    target_done += static_cast<std::size_t>(received);
  }
  if (begin == end) drop_buffer();  // no view, nothing unread: nothing to keep it for
  return true;
}

// True when the delimiter is in the buffer, or can no longer come within the limit.
bool slot::take_delimited() noexcept {
  const std::uint32_t size = end - begin;
  const std::uint32_t window = std::min(size, limit);
  if (window >= delimiter_size) {
    const std::byte* first = buffer->data() + begin;
    const void* found = ::memmem(first + searched, window - searched, delimiter, delimiter_size);
    if (found != nullptr) {
      view_size = static_cast<std::uint32_t>(static_cast<const std::byte*>(found) - first) + delimiter_size;
      begin += view_size;
      return true;
    }
    searched = window - delimiter_size + 1;
  }
  return size >= limit && read_failed(static_cast<int>(errc::limit_exceeded));
}

// There is room for the whole limit behind `begin`: it is at most the buffer's size.
void slot::make_room() noexcept {
  if (begin + limit <= buffer->capacity) return;
  std::memmove(buffer->data(), buffer->data() + begin, end - begin);
  end -= begin;
  begin = 0;
}

// A whole buffer of the core's; what was parked is moved into it.
bool slot::take_buffer() noexcept {
  if (buffer != nullptr && !buffer->parked) return true;
  read_buffer* fresh = core->buffers.take();
  if (fresh == nullptr) {
    ++core->counters.buffers_exhausted;
    starved = true;
    return false;
  }
  if (buffer != nullptr) {
    std::memcpy(fresh->data(), buffer->data() + begin, end - begin);
    core->buffers.give_back(buffer, core->ready);
  }
  end -= begin;
  begin = 0;
  buffer = fresh;
  return true;
}

void slot::release_idle_buffer() noexcept {
  if (buffer == nullptr) return;
  if (begin == end) {
    drop_buffer();
  } else if (!buffer->parked) {
    read_buffer* parked = read_buffer_pool::park(buffer->data() + begin, end - begin);
    if (parked == nullptr) return;  // no memory: it keeps the whole one
    const std::uint32_t size = end - begin;
    drop_buffer();
    buffer = parked;
    end = size;
  }
}

ssize_t slot::receive(std::byte* into, std::size_t capacity) noexcept {
  if (encrypted) return receive_decrypted(into, capacity);
  const ssize_t received = receive_bytes(into, capacity);
  if (received == 0) {
    read_ended();
  } else if (received < 0 && received != -EAGAIN) {
    read_failed(end_reason);
  }
  return received;
}

// recv, and what it tells about the socket: the FIN in end_seen, an empty queue in readable, a failure in ended.
ssize_t slot::receive_bytes(std::byte* into, std::size_t capacity) noexcept {
  for (;;) {
    const ssize_t received = sys::recv(fd, into, capacity, 0);
    if (received > 0) {
      core->counters.bytes_received.add(static_cast<std::uint64_t>(received));
      note_activity();
      // epoll(7), question 9: on a stream a short count means that the queue is drained, so the call that would
      // only say EAGAIN is saved.
      if (static_cast<std::size_t>(received) < capacity && short_read_drains) readable = false;
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

// Nothing more will come, as an earlier read has found.
bool slot::read_ended() noexcept {
  const bool truncated = encrypted && !secure->close_received();
  return read_failed(static_cast<int>(truncated ? errc::truncated : errc::end_of_stream));
}

bool slot::read_failed(int value) noexcept {
  view_size = 0;
  if (begin == end) drop_buffer();
  fail(value);
  return true;
}

}  // namespace percore::engine

namespace percore {

using engine::check_use_in_debug_builds;
using engine::read_kind;
using engine::slot;

namespace {

template <class Awaiter>
bool suspend_read(Awaiter& read, connection& owner, std::coroutine_handle<> waiter) noexcept {
  slot& s = slot::of(owner);
  return s.is_away() ? s.request_wait(read, waiter) : s.suspend_read(waiter);
}

}  // namespace

[[gnu::hot]] bool detail::read_awaiter::await_ready() const noexcept {
  return slot::of(*owner_).start_read(read_kind::some);
}
[[gnu::hot]] bool detail::read_awaiter::await_suspend(std::coroutine_handle<> waiter) const noexcept {
  slot& s = slot::of(*owner_);
  return s.is_away() ? s.request_read(waiter) : s.suspend_read(waiter);
}
[[gnu::hot]] bytes_view detail::read_awaiter::await_resume() const noexcept { return slot::of(*owner_).view(); }

bool detail::read_more_awaiter::await_ready() const noexcept {
  slot& s = slot::of(*owner_);
  s.limit = s.core->buffers.buffer_bytes();
  s.searched = s.end - s.begin;
  return s.start_read(read_kind::more);
}
bool detail::read_more_awaiter::await_suspend(std::coroutine_handle<> waiter) const noexcept {
  return suspend_read(*this, *owner_, waiter);
}
bytes_view detail::read_more_awaiter::await_resume() const noexcept { return slot::of(*owner_).view(); }

bool detail::read_until_awaiter::await_ready() const noexcept {
  slot& s = slot::of(*owner_);
  PERCORE_ASSERT(!delimiter_.empty() && delimiter_.size() <= 255, "read_until: a delimiter has 1 to 255 bytes");
  s.delimiter = delimiter_.data();
  s.delimiter_size = static_cast<std::uint32_t>(delimiter_.size());
  s.limit = static_cast<std::uint32_t>(std::min<std::size_t>(limit_, s.core->buffers.buffer_bytes()));
  s.searched = 0;
  return s.start_read(read_kind::until);
}
bool detail::read_until_awaiter::await_suspend(std::coroutine_handle<> waiter) const noexcept {
  return suspend_read(*this, *owner_, waiter);
}
bytes_view detail::read_until_awaiter::await_resume() const noexcept { return slot::of(*owner_).view(); }

namespace {

bool start_target_read(connection& owner, std::span<std::byte> target, read_kind kind) noexcept {
  slot& s = slot::of(owner);
  s.target = target.data();
  s.target_size = target.size();
  s.target_done = 0;
  return s.start_read(kind);
}

}  // namespace

bool detail::read_into_awaiter::await_ready() const noexcept {
  return start_target_read(*owner_, target_, read_kind::into);
}
bool detail::read_into_awaiter::await_suspend(std::coroutine_handle<> waiter) const noexcept {
  return suspend_read(*this, *owner_, waiter);
}
std::size_t detail::read_into_awaiter::await_resume() const noexcept { return slot::of(*owner_).target_done; }

bool detail::read_full_awaiter::await_ready() const noexcept {
  return start_target_read(*owner_, target_, read_kind::full);
}
bool detail::read_full_awaiter::await_suspend(std::coroutine_handle<> waiter) const noexcept {
  return suspend_read(*this, *owner_, waiter);
}
bool detail::read_full_awaiter::await_resume() const noexcept {
  const slot& s = slot::of(*owner_);
  return s.target_done == s.target_size;
}

[[gnu::hot]] void connection::unread(std::size_t count) {
  slot& s = slot::of(*this);
  check_use_in_debug_builds(s);
  if (count > s.view_size) {
    throw std::length_error("percore: unread() of more bytes than the last view holds, or after it has ended");
  }
  s.view_size -= static_cast<std::uint32_t>(count);
  s.begin -= static_cast<std::uint32_t>(count);
}

[[gnu::hot]] void connection::release_view() noexcept {
  slot& s = slot::of(*this);
  check_use_in_debug_builds(s);
  s.view_size = 0;
  if (s.is_away()) {
    s.slice->view_released = true;
    return;
  }
  if (s.begin == s.end) s.drop_buffer();
}

std::size_t connection::buffered_bytes() const noexcept {
  const slot& s = slot::of(*this);
  return s.end - s.begin;
}

std::size_t connection::bytes_of_failed_read() const noexcept { return slot::of(*this).target_done; }

}  // namespace percore
