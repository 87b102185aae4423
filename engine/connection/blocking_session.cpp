// Blocking handlers on the helper's side: operations that wait in poll(2).

#include <algorithm>
#include <array>
#include <cstring>
#include <new>
#include <stdexcept>
#include <utility>

#include "engine/connection/blocking.hpp"
#include "engine/connection/milliseconds.hpp"

namespace percore::engine {

std::int64_t blocking_session::after(std::uint32_t ms) noexcept {
  return ms == 0 ? never : sys::monotonic_ns() + to_ns(ms);
}

blocking_session::blocking_session(blocking_job& job, helpers::helper& self)
    : read_timeout_ms(job.owner->read_timeout_ms),
      write_timeout_ms(job.owner->write_timeout_ms),
      idle_timeout_ms(job.owner->idle_timeout_ms),
      job_(job),
      self_(self),
      config_(*job.owner->listener),
      core_(*job.owner->core),
      fd_(job.owner->fd) {}

blocking_session::~blocking_session() {
  close_tls();
}

void blocking_session::run() noexcept {
  if (config_.tls && !handshake(config_.tls)) return;
  blocking_connection face(*this);
  try {
    config_.blocking(face);
  } catch (...) {
    job_.exception = std::current_exception();
  }
}

// Ways to fail ----------------------------------------------------------------------------------------------

bool blocking_session::fail(int value) noexcept {
  error_ = value;
  return false;
}

bool blocking_session::end(int value) noexcept {
  if (!ended_) {
    ended_ = true;
    end_reason_ = value;
  }
  return fail(end_reason_);
}

bool blocking_session::alive() noexcept {
  if (const int reason = job_.interrupted.load(std::memory_order_acquire); reason != 0) {
    job_.reset = true;
    return end(reason);
  }
  return !ended_ || fail(end_reason_);
}

bool blocking_session::in_time() noexcept {
  if (deadline_ns == never || sys::monotonic_ns() < deadline_ns) return true;
  ++job_.timeouts;
  return fail(static_cast<int>(errc::timed_out));
}

void blocking_session::io_failed(int result) noexcept {
  if (!alive()) return;  // it was the core that has shut the socket down
  job_.reset = true;  // bytes that were accepted may be lost: the peer must not take the end for a clean one
  if (result == -ECONNRESET || result == -EPIPE) {
    ++job_.resets_received;
    (void)end(static_cast<int>(errc::connection_reset));
  } else {
    (void)end(result);
  }
}

std::error_code blocking_session::error() const noexcept {
  if (error_ > 0) return static_cast<errc>(error_);
  return error_ == 0 ? std::error_code{} : std::error_code(-error_, std::system_category());
}

// Waiting ---------------------------------------------------------------------------------------------------

// Until the socket is ready, or the core drains and nothing of a message is there yet. False: it took too
// long.
bool blocking_session::wait(direction which, std::int64_t limit_ns) noexcept {
  const bool in = which == direction::in;
  std::array<pollfd, 2> entries{pollfd{fd_, static_cast<short>(in ? POLLIN : POLLOUT), 0},
                                pollfd{core_.drain_fd, POLLIN, 0}};
  const bool shakes_hands = handshake_limit_ns_ != 0;
  const std::int64_t idle_limit = after(idle_timeout_ms);
  for (;;) {
    const bool minds_drain = shakes_hands ? !handshake_hurries_ : in && !in_message_;
    const nfds_t count = minds_drain ? 2 : 1;
    const std::int64_t limit = std::min({shakes_hands ? handshake_limit_ns_ : limit_ns, idle_limit, deadline_ns});
    int timeout_ms = -1;
    if (limit != never) {
      const std::int64_t left = limit - sys::monotonic_ns();
      if (left <= 0) {
        ++job_.timeouts;
        // A reader may try again; what was written in part may not.
        if (!in) {
          job_.reset = true;
          return end(static_cast<int>(errc::timed_out));
        }
        return fail(static_cast<int>(errc::timed_out));
      }
      timeout_ms = static_cast<int>(std::min<std::int64_t>((left + 999'999) / 1'000'000, 1'000'000));
    }
    const int ready = sys::poll(entries.data(), count, timeout_ms);
    if (ready > 0 && shakes_hands && entries[0].revents == 0) {
      hurry_handshake();
      continue;
    }
    if (ready > 0) return true;
    if (ready < 0 && ready != -EINTR && ready != -ENOMEM) return end(ready);
  }
}

std::size_t blocking_session::receive_wire(std::span<std::byte> into) noexcept {
  for (;;) {
    if (!alive()) return 0;
    const ssize_t received = sys::recv(fd_, into.data(), into.size(), MSG_DONTWAIT);
    if (received > 0) {
      self_.bytes_received.add(static_cast<std::uint64_t>(received));
      return static_cast<std::size_t>(received);
    }
    if (received == 0) {
      if (alive()) {
        end_seen_ = true;
        (void)fail(static_cast<int>(errc::end_of_stream));
      }
      return 0;
    }
    if (received == -EAGAIN) {
      if (!in_message_ && handshake_limit_ns_ == 0 && core_.stop_requested->load(std::memory_order_acquire)) {
        (void)fail(static_cast<int>(errc::shutting_down));
        return 0;
      }
      if (!wait(direction::in, read_limit_ns_)) return 0;
    } else if (received != -EINTR) {
      io_failed(static_cast<int>(received));
      return 0;
    }
  }
}

bool blocking_session::send_wire(std::span<const std::byte> data, int flags) noexcept {
  const bytes_view piece(data);
  return send_pieces({&piece, 1}, flags);
}

// All of it, as few calls as can be; `flags` for the last bytes.
bool blocking_session::send_pieces(std::span<const bytes_view> pieces, int flags) noexcept {
  constexpr std::size_t most_pieces = 16;  // per system call
  std::size_t first = 0;                   // not wholly sent
  std::size_t done = 0;                    // bytes of it that are
  for (;;) {
    while (first < pieces.size() && done == pieces[first].size()) {
      ++first;
      done = 0;
    }
    if (first == pieces.size()) return true;
    if (!alive()) return false;
    std::array<iovec, most_pieces> vector;
    std::size_t count = 0;
    std::size_t next = first;
    for (; next < pieces.size() && count < most_pieces; ++next) {
      const std::size_t skipped = next == first ? done : 0;
      if (pieces[next].size() == skipped) continue;
      vector[count++] = {const_cast<std::byte*>(pieces[next].data() + skipped),
                         pieces[next].size() - skipped};
    }
    msghdr message{};
    message.msg_iov = vector.data();
    message.msg_iovlen = count;
    const int more = next < pieces.size() ? MSG_MORE : flags;
    const ssize_t sent = sys::sendmsg(fd_, &message, MSG_NOSIGNAL | MSG_DONTWAIT | more);
    if (sent >= 0) {
      self_.bytes_sent.add(static_cast<std::uint64_t>(sent));
      for (auto left = static_cast<std::size_t>(sent); left != 0;) {
        const std::size_t taken = std::min(left, pieces[first].size() - done);
        left -= taken;
        done += taken;
        if (done != pieces[first].size()) continue;
        ++first;
        done = 0;
      }
    } else if (sent == -EAGAIN) {
      if (!wait(direction::out, after(write_timeout_ms))) return false;
    } else if (sent != -EINTR) {
      io_failed(static_cast<int>(sent));
      return false;
    }
  }
}

// Reading ---------------------------------------------------------------------------------------------------

bool blocking_session::begin_read() noexcept {
  view_ = 0;
  target_done_ = 0;
  read_limit_ns_ = after(read_timeout_ms);
  if (fin_pending_) {
    // write_last() was not the handler's last word: its FIN must not wait for what comes next.
    fin_pending_ = false;
    (void)sys::shutdown(fd_, SHUT_WR);
  }
  return in_time();
}

std::size_t blocking_session::receive(std::span<std::byte> into) noexcept {
  if (!alive() || !in_time()) return 0;
  if (end_seen_) {
    const bool truncated = secure_ != nullptr && !secure_->close_received();
    (void)fail(static_cast<int>(truncated ? errc::truncated : errc::end_of_stream));
    return 0;
  }
  in_message_ = buffered() != 0 || target_done_ != 0;
  return secure_ != nullptr ? receive_decrypted(into) : receive_wire(into);
}

// Makes room for `bytes` from begin_ on, which the buffer has.
void blocking_session::make_room(std::size_t bytes) {
  buffer_ = self_.buffer(core_.buffers.buffer_bytes());
  if (begin_ + bytes <= core_.buffers.buffer_bytes()) return;
  std::memmove(buffer_, buffer_ + begin_, buffered());
  end_ -= begin_;
  begin_ = 0;
}

bytes_view blocking_session::read() {
  if (!begin_read()) return {};
  if (begin_ == end_) {
    begin_ = end_ = 0;
    make_room(core_.buffers.buffer_bytes());
    end_ = receive({buffer_, core_.buffers.buffer_bytes()});
  }
  return take(buffered());
}

bytes_view blocking_session::take(std::size_t bytes) noexcept {
  view_ = bytes;
  begin_ += bytes;
  return {buffer_ + begin_ - bytes, bytes};
}

std::size_t blocking_session::read_into(std::span<std::byte> target) {
  if (!begin_read() || target.empty()) return 0;
  if (begin_ == end_) return receive(target);
  const std::size_t taken = std::min(target.size(), buffered());
  std::memcpy(target.data(), buffer_ + begin_, taken);
  begin_ += taken;
  return taken;
}

bool blocking_session::read_full(std::span<std::byte> target) {
  if (!begin_read()) return false;
  while (target_done_ < target.size()) {
    const auto rest = target.subspan(target_done_);
    std::size_t got = std::min(rest.size(), buffered());
    if (got != 0) {
      std::memcpy(rest.data(), buffer_ + begin_, got);
      begin_ += got;
    } else {
      got = receive(rest);
      if (got == 0) return false;
    }
    target_done_ += got;
  }
  return true;
}

bytes_view blocking_session::read_until(std::string_view delimiter, std::size_t limit) {
  PERCORE_ASSERT(!delimiter.empty() && delimiter.size() <= 255, "read_until: a delimiter has 1 to 255 bytes");
  if (!begin_read()) return {};
  limit = std::min<std::size_t>(limit, core_.buffers.buffer_bytes());
  std::size_t searched = 0;
  for (;;) {
    const std::size_t window = std::min(buffered(), limit);
    if (window >= delimiter.size()) {
      const std::byte* first = buffer_ + begin_;
      const void* found = ::memmem(first + searched, window - searched, delimiter.data(), delimiter.size());
      if (found != nullptr) {
        return take(static_cast<std::size_t>(static_cast<const std::byte*>(found) - first) +
                    delimiter.size());
      }
      searched = window - delimiter.size() + 1;
    }
    if (buffered() >= limit) {
      (void)fail(static_cast<int>(errc::limit_exceeded));
      return {};
    }
    make_room(limit);
    const std::size_t got = receive({buffer_ + end_, core_.buffers.buffer_bytes() - end_});
    if (got == 0) return {};
    end_ += got;
  }
}

void blocking_session::unread(std::size_t count) {
  if (count > view_) {
    throw std::length_error(
        "percore: unread() of more bytes than the last view holds, or after it has ended");
  }
  view_ -= count;
  begin_ -= count;
}

// Writing ---------------------------------------------------------------------------------------------------

bool blocking_session::write(std::span<const bytes_view> pieces, bool last) {
  if (!alive() || !in_time()) return false;
  if (sending_done_) return fail(static_cast<int>(errc::closed));
  const bool ok =
      secure_ != nullptr ? write_encrypted(pieces, last) : send_pieces(pieces, last ? MSG_MORE : 0);
  if (last) sending_done_ = fin_pending_ = true;
  return ok;
}

void blocking_session::shutdown_write() {
  if (sending_done_ || !alive()) return;
  sending_done_ = true;
  if (secure_ != nullptr) {
    secure_->close_notify();
    if (!send_records(0)) return;
  }
  (void)sys::shutdown(fd_, SHUT_WR);
}

void blocking_session::reset() noexcept {
  job_.reset = true;
  // The peer hears of it now, not when the handler returns. What refuses it (unix sockets) is reset at the end.
  (void)sys::disconnect(fd_);
  (void)end(static_cast<int>(errc::closed));
}

}  // namespace percore::engine
