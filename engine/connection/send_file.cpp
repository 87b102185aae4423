// send_file: sendfile(2), and reading and sending where that cannot be.

#include <percore/send_file.hpp>

#include <netinet/in.h>
#include <netinet/tcp.h>

#include <algorithm>
#include <array>

#include "engine/connection/slot.hpp"

namespace percore {

using engine::slot;

namespace {

constexpr std::size_t sendfile_bytes = 512 * 1024;  // in one call
constexpr std::size_t copy_bytes = 16 * 1024;       // a TLS record
// A file of at most this much travels in one segment with its head, as the kernel hands it down (64 KiB). With larger ones
// that costs more than the segment it saves (measured with 1 MiB, perf/README.md).
constexpr std::uint64_t most_held_back = 60 * 1024;

}  // namespace

bool detail::send_file_awaiter::await_ready() noexcept {
  send = [](write_source& self, slot& through) noexcept {
    return static_cast<send_file_awaiter&>(self).step(through);
  };
  slot& s = slot::of(*owner_);
  return !s.is_away() && s.start_source(*this);
}

bool detail::send_file_awaiter::await_suspend(std::coroutine_handle<> waiter) noexcept {
  slot& s = slot::of(*owner_);
  return s.is_away() ? s.request_wait(*this, waiter) : s.suspend_write(waiter);
}

sent_file detail::send_file_awaiter::await_resume() const noexcept {
  return {sent_, slot::of(*owner_).write_ok};
}

detail::write_source::outcome detail::send_file_awaiter::step(slot& through) noexcept {
  if (left_ == 0 && head_.empty()) return outcome::done;
  if (through.encrypting) return copy(through);
  if (!head_.empty()) return send_head(through);
  if (copying_) return copy(through);
  auto position = static_cast<off_t>(offset_);
  const std::size_t size = static_cast<std::size_t>(std::min<std::uint64_t>(left_, sendfile_bytes));
  const ssize_t result = sys::sendfile(through.fd, file_, &position, size);
  if (result > 0) {
    (void)through.sent(result);
    advance(static_cast<std::uint64_t>(result));
    return left_ == 0 ? outcome::done : outcome::more;
  }
  if (result == 0) return ended(through);
  if (result == -EAGAIN || result == -EINTR || result == -EPIPE || result == -ECONNRESET) {
    (void)through.sent(result);
  } else {
    copying_ = true;  // which also finds out whether it is the file's fault or the socket's
  }
  return outcome::more;
}

detail::write_source::outcome detail::send_file_awaiter::send_head(slot& through) noexcept {
  const int more = left_ == 0 || left_ > most_held_back ? 0 : MSG_MORE;
  const ssize_t result = through.sent(sys::send(through.fd, head_.data(), head_.size(), MSG_NOSIGNAL | more));
  if (result > 0) advance(static_cast<std::uint64_t>(result));
  held_back_ = more != 0 && head_.empty();
  return left_ == 0 && head_.empty() ? outcome::done : outcome::more;
}

// No file behind the head: without this the kernel would keep the head for another 200 ms.
void detail::send_file_awaiter::push(const slot& through) const noexcept {
  int before = 0;
  socklen_t size = sizeof before;
  if (!held_back_ || sys::getsockopt(through.fd, IPPROTO_TCP, TCP_NODELAY, &before, &size) != 0) return;
  for (const int value : {1, before}) {
    (void)sys::setsockopt(through.fd, IPPROTO_TCP, TCP_NODELAY, &value, sizeof value);
  }
}

// What is left of the last call stays in the file: only what was sent counts. A head goes before it, as much as there
// is room.
detail::write_source::outcome detail::send_file_awaiter::copy(slot& through) noexcept {
  std::array<std::byte, copy_bytes> bytes;
  const std::size_t before = std::min(head_.size(), bytes.size());
  std::copy_n(head_.data(), before, bytes.data());
  const std::size_t size = static_cast<std::size_t>(std::min<std::uint64_t>(left_, bytes.size() - before));
  ssize_t got = size == 0 ? 0 : sys::pread(file_, bytes.data() + before, size, static_cast<off_t>(offset_));
  if (got == -EINTR) return outcome::more;
  if (before != 0) {
    got = std::max<ssize_t>(got, 0) + static_cast<ssize_t>(before);  // what is wrong with the file is found again
  } else if (got < 0) {
    push(through);
    through.fail(static_cast<int>(got));
    return outcome::failed;
  } else if (got == 0) {
    return ended(through);
  }
  if (through.encrypting) {
    if (through.send_plaintext(bytes.data(), static_cast<std::size_t>(got))) advance(static_cast<std::uint64_t>(got));
  } else {
    const ssize_t result =
        through.sent(sys::send(through.fd, bytes.data(), static_cast<std::size_t>(got), MSG_NOSIGNAL));
    if (result > 0) advance(static_cast<std::uint64_t>(result));
  }
  return left_ == 0 && head_.empty() ? outcome::done : outcome::more;
}

detail::write_source::outcome detail::send_file_awaiter::ended(slot& through) const noexcept {
  push(through);
  if (to_end_) return outcome::done;
  through.fail(static_cast<int>(errc::file_ended));
  return outcome::failed;
}

void detail::send_file_awaiter::advance(std::uint64_t bytes) noexcept {
  const std::uint64_t of_head = std::min<std::uint64_t>(bytes, head_.size());
  head_ = head_.subview(static_cast<std::size_t>(of_head));
  bytes -= of_head;
  if (bytes != 0) held_back_ = false;
  offset_ += bytes;
  left_ -= bytes;
  sent_ += bytes;
}

}  // namespace percore
