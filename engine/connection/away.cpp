// What a slice does away from its core: the usual read and write on the spot, and requests for everything else.

#include <array>
#include <new>

#include "engine/connection/slice.hpp"
#include "engine/connection/slot.hpp"

namespace percore::engine {

namespace {

// -EINTR when there are more pieces than are sent on the spot.
ssize_t send_few(int fd, const bytes_view* first, std::size_t count, int flags) noexcept {
  std::array<iovec, 8> vector;
  if (count > vector.size()) return -EINTR;
  for (std::size_t i = 0; i < count; ++i) vector[i] = {const_cast<std::byte*>(first[i].data()), first[i].size()};
  msghdr message{};
  message.msg_iov = vector.data();
  message.msg_iovlen = count;
  return sys::sendmsg(fd, &message, flags);
}

}  // namespace

void slot::request(bool (*start)(void*, std::coroutine_handle<>) noexcept, void* what,
                   std::coroutine_handle<> waiter) noexcept {
  PERCORE_ASSERT(slice_of_thread == slice, "an operation of a connection is awaited by another's handler");
  PERCORE_ASSERT(slice->request_count < slice->requests.size(), "a connection has too many coroutines");
  slice->requests[slice->request_count++] = {start, what, waiter};
}

bool read_on(void* self, std::coroutine_handle<> waiter) noexcept {
  auto& s = *static_cast<slot*>(self);
  return s.start_read(read_kind::some) || !s.suspend_read(waiter);
}

bool slot::request_read(std::coroutine_handle<> waiter) noexcept {
  request(read_on, this, waiter);
  return true;
}

void slot::request_ending(bool (*start)(void*, std::coroutine_handle<>) noexcept) noexcept {
  slice->ending = true;
  for (std::size_t i = 0; i < slice->request_count; ++i) {
    if (slice->requests[i].start == start) return;
  }
  request(start, this, {});
}

// The usual read of what is here already, and the usual write, need not wait for the way back to the core and here again.
// They have the same budget as on the core: over it, the slice ends and others have their turn.

bool slot::over_budget() const noexcept {
  return slice->operations + (operations - away_operations) > core->operations_per_turn;
}

bool slot::read_away(read_kind kind) noexcept {
  if (begin == end || ended || reading != read_kind::none || over_budget()) return false;
  if (kind == read_kind::some) {
    view_size = end - begin;
    begin = end;
    return true;
  }
  view_size = 0;
  return kind == read_kind::until && take_delimited() && view_size != 0;
}

// Nothing stands between the write and the socket, and none was put off before it.
bool slot::sends_away() const noexcept {
  const slice_job& from = *slice;
  const bool waits = encrypted | !writable | writing | ended | sending_done | (tail != nullptr);
  return !(waits | from.ending | from.write_requested) && from.kept.empty() && !over_budget();
}

bool slot::write_away(const bytes_view* first, std::size_t count, bool last) noexcept {
  if (count != 1 || indirect) return write_few_away(first, count, last);
  if (!sends_away()) return false;
  const ssize_t result = sys::send(fd, first->data(), first->size(), MSG_NOSIGNAL | (last ? MSG_MORE : 0));
  if (result != static_cast<ssize_t>(first->size())) [[unlikely]] return written_away(result, first, 1, last);
  slice->bytes_sent += first->size();
  write_ok = true;
  sending_done = fin_pending = last;
  return true;
}

// The same of several pieces, or where it matters how many bytes there are.
bool slot::write_few_away(const bytes_view* first, std::size_t count, bool last) noexcept {
  if (!sends_away()) return false;
  std::size_t size = 0;
  for (std::size_t i = 0; i < count; ++i) size += first[i].size();
  if (indirect && !may_send_at_once(size, last)) return false;  // one that lends begins on the core
  const ssize_t result = send_few(fd, first, count, MSG_NOSIGNAL | (last ? MSG_MORE : 0));
  if (result != static_cast<ssize_t>(size)) return written_away(result, first, count, last);
  slice->bytes_sent += size;
  write_ok = true;
  sending_done = fin_pending = last;
  return true;
}

// Not all was taken.
bool slot::written_away(ssize_t result, const bytes_view* first, std::size_t count, bool last) noexcept {
  if (result < 0) {  // whatever it is, it will be met again on the core
    if (result == -EAGAIN) writable = false;
    return false;
  }
  const auto sent_bytes = static_cast<std::size_t>(result);
  slice->bytes_sent += sent_bytes;
  return write_rest(first, count, last, sent_bytes, false);
}

bool slot::try_write_away(bytes_view data) noexcept {
  slice_job& from = *slice;
  if (ended || sending_done || from.ending) {
    fail(ended ? end_reason : static_cast<int>(errc::closed));
    return false;
  }
  const std::size_t unsent = (tail == nullptr ? 0 : tail->size()) + from.kept.size();
  if (writing || from.write_requested || is_shaking_hands() || unsent + data.size() > listener->unsent_tail_bytes) {
    fail(static_cast<int>(errc::limit_exceeded));
    return false;
  }
  try {
    from.rare().kept.reserve(from.kept.size() + data.size());
  } catch (const std::bad_alloc&) {
    fail(static_cast<int>(errc::no_memory));
    return false;
  }
  std::size_t done = 0;
  if (!encrypted && unsent == 0 && tail == nullptr && writable && !over_budget()) {
    const ssize_t result = sys::send(fd, data.data(), data.size(), MSG_NOSIGNAL);
    if (result == -EAGAIN) writable = false;
    if (result > 0) done = static_cast<std::size_t>(result);
    from.bytes_sent += done;
  }
  from.kept.insert(from.kept.end(), data.data() + done, data.data() + data.size());
  return true;
}

}  // namespace percore::engine
