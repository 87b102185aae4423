// Large writes without a copy: MSG_ZEROCOPY (Documentation/networking/msg_zerocopy.rst of the kernel).

#include "engine/connection/zero_copy.hpp"

#include <time.h>

#include <linux/errqueue.h>
#include <poll.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <new>
#include <utility>

namespace percore::engine {

namespace {

// The kernel has copied all the same, that often in a row: on the way to this peer it always does (loopback, taps, devices
// that cannot gather).
constexpr std::uint32_t most_copied = 8;

constexpr std::size_t most_pieces = 64;  // per system call, as in write.cpp
constexpr std::int64_t retry_ns = 1'000'000;
constexpr int most_retries = 100;

// One entry of the error queue: true, with the calls that it tells of; entries of other kinds tell of none.
bool next_notification(int fd, std::uint32_t& calls, bool& copied) noexcept {
  alignas(cmsghdr) std::array<char, 256> control;  // sock_extended_err and an address
  msghdr message{};
  for (;;) {
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    const ssize_t result = sys::receive_notification(fd, &message);
    if (result == -EINTR) continue;
    if (result < 0) return false;
    break;
  }
  calls = 0;
  for (cmsghdr* part = CMSG_FIRSTHDR(&message); part != nullptr; part = CMSG_NXTHDR(&message, part)) {
    const bool is_error = (part->cmsg_level == IPPROTO_IP && part->cmsg_type == IP_RECVERR) ||
                          (part->cmsg_level == IPPROTO_IPV6 && part->cmsg_type == IPV6_RECVERR);
    if (!is_error || part->cmsg_len < CMSG_LEN(sizeof(sock_extended_err))) continue;
    sock_extended_err told;
    std::memcpy(&told, CMSG_DATA(part), sizeof told);
    if (told.ee_origin != SO_EE_ORIGIN_ZEROCOPY || told.ee_errno != 0) continue;
    calls = told.ee_data - told.ee_info + 1;  // a range, of numbers that wrap around
    copied = (told.ee_code & SO_EE_CODE_ZEROCOPY_COPIED) != 0;
  }
  return true;
}

}  // namespace

zero_copy::zero_copy(slot& owner) noexcept : owner_(owner) {
  send = [](write_source& self, slot&) noexcept { return static_cast<zero_copy&>(self).step(); };
  fire = [](timer_node& node) {
    auto& self = static_cast<zero_copy&>(node);
    slot& s = self.owner_;
    if (s.is_away()) {  // another coroutine of the handler is
      s.core->timers.insert(self, loop::timer_wheel::tick_from(s.core->now_ns + retry_ns));
    } else {
      s.continue_output();
    }
  };
}

// Unix sockets and others refuse it.
bool zero_copy::enable() const noexcept {
  const int on = 1;
  return sys::setsockopt(owner_.fd, SOL_SOCKET, SO_ZEROCOPY, &on, sizeof on) == 0;
}

void zero_copy::begin(const bytes_view* first, std::size_t count, std::size_t size, bool last) noexcept {
  PERCORE_ASSERT(lent_ == 0, "a write begins while the kernel has pages of the one before");
  pieces_ = first;
  count_ = count;
  offset_ = 0;
  left_ = size;
  fin_ = last;
}

detail::write_source::outcome zero_copy::step() noexcept {
  if (lent_ != 0) collect();
  if (left_ != 0) {
    // A small rest is cheaper to copy.
    bool lend = owner_.zero_copy_from != 0 && left_ >= least_bytes;
    ssize_t result = send_some(lend);
    if (lend && (result == -ENOBUFS || result == -EFAULT || result == -ENOMEM || result == -EINVAL)) {
      // The socket's or the user's limit of lent memory (net.core.optmem_max, RLIMIT_MEMLOCK), or memory that cannot be lent.
      ++owner_.core->counters.zero_copy_refused;
      lend = false;
      result = send_some(false);
    }
    (void)owner_.sent(result);
    if (result <= 0) return outcome::more;
    const auto size = static_cast<std::size_t>(result);
    left_ -= size;
    offset_ += size;
    if (lend) {
      ++lent_;
      ++owner_.core->counters.zero_copy_sends;
      owner_.core->counters.zero_copy_bytes.add(size);
    }
    if (left_ != 0) return outcome::more;
    if (std::exchange(fin_, false)) (void)sys::shutdown(owner_.fd, SHUT_WR);  // takes the last segment along
    if (lent_ != 0) collect();
    note_unacknowledged();
  }
  if (lent_ == 0) {
    owner_.writable = true;  // or so it seems, having been cleared below: the next write will see
    return outcome::done;
  }
  owner_.writable = false;  // until an event: EPOLLERR for what comes back
  return outcome::more;
}

ssize_t zero_copy::send_some(bool lend) noexcept {
  skip_sent();
  std::array<iovec, most_pieces> vector;
  const std::size_t count = std::min(count_, most_pieces);
  for (std::size_t i = 0; i < count; ++i) {
    vector[i] = {const_cast<std::byte*>(pieces_[i].data()), pieces_[i].size()};
  }
  vector[0].iov_base = const_cast<std::byte*>(pieces_->data() + offset_);
  vector[0].iov_len -= offset_;
  msghdr message{};
  message.msg_iov = vector.data();
  message.msg_iovlen = count;
  const bool more = fin_ || count < count_;
  return sys::sendmsg(owner_.fd, &message, MSG_NOSIGNAL | (lend ? MSG_ZEROCOPY : 0) | (more ? MSG_MORE : 0));
}

void zero_copy::skip_sent() noexcept {
  while (count_ > 0 && offset_ >= pieces_->size()) {
    offset_ -= pieces_->size();
    ++pieces_;
    --count_;
  }
}

void zero_copy::collect() noexcept {
  std::uint32_t calls = 0;
  bool copied = false;
  const std::uint32_t before = lent_;
  while (lent_ != 0 && next_notification(owner_.fd, calls, copied)) {
    if (calls != 0) note_returned(calls, copied);
  }
  if (lent_ != before && owner_.writer) owner_.arm_for_write();  // progress
}

void zero_copy::note_returned(std::uint32_t calls, bool copied) noexcept {
  lent_ -= std::min(calls, lent_);
  if (!copied) {
    copied_ = 0;
    return;
  }
  owner_.core->counters.zero_copy_copied.add(calls);
  copied_ += calls;
  if (copied_ >= most_copied && owner_.zero_copy_from != 0) {
    ++owner_.core->counters.zero_copy_off;
    owner_.lend_from(0);
  }
}

bool zero_copy::is_back() noexcept {
  unlink();
  if (lent_ == 0) return true;
  collect();
  if (lent_ != 0 && owner_.resetting && !std::exchange(severed_, true)) {
    owner_.sever();  // what was not sent goes at once, the rest as soon as the device has sent it
    collect();
  }
  if (lent_ == 0) return true;
  // close() still sends what the socket has taken: there the events tell, and the timeout.
  if (severed_) owner_.core->timers.insert(*this, loop::timer_wheel::tick_from(sys::monotonic_ns() + retry_ns));
  return false;
}

void zero_copy::take_back() noexcept {
  unlink();
  if (lent_ == 0) return;
  if (owner_.fd >= 0) {
    collect();
    if (lent_ != 0) owner_.sever();
    severed_ = true;
    collect();
    for (int retries = 0; lent_ != 0 && retries < most_retries; ++retries) {
      (void)sys::poll(nullptr, 0, 1);  // lets a millisecond pass
      collect();
    }
  }
  if (std::exchange(lent_, 0) != 0) ++owner_.core->counters.zero_copy_overdue;
}

void zero_copy::close_later() noexcept {
  if (owner_.resetting) {
    if (!std::exchange(severed_, true)) owner_.sever();
  } else if (!std::exchange(shut_, true)) {
    (void)sys::shutdown(owner_.fd, SHUT_RDWR);
    unacknowledged_ = std::max(0, sys::unacknowledged_bytes(owner_.fd));
    owner_.arm_for_write();
  }
}

void zero_copy::note_unacknowledged() noexcept {
  const bool may_time_out = owner_.write_timeout_ms != 0 || owner_.idle_timeout_ms != 0;
  if (lent_ != 0 && may_time_out) unacknowledged_ = std::max(0, sys::unacknowledged_bytes(owner_.fd));
}

bool zero_copy::has_moved() noexcept {
  if (lent_ == 0 || severed_ || (left_ != 0 && !owner_.ended)) return false;
  const int now = sys::unacknowledged_bytes(owner_.fd);
  if (now < 0) return false;
  return std::exchange(unacknowledged_, now) > now;
}

// The slot's part ---------------------------------------------------------------------------------------------

void slot::lend_from(std::size_t bytes) noexcept {
  constexpr std::size_t most = ~std::uint32_t{0};
  zero_copy_from = bytes == 0 ? 0 : static_cast<std::uint32_t>(std::clamp(bytes, zero_copy::least_bytes, most));
  indirect = encrypted || zero_copy_from != 0;
}

// A write of one piece that is not simply sent in any case.
bool slot::may_send_at_once(std::size_t size, bool last) const noexcept {
  return encrypted ? !encrypting && !last : size < zero_copy_from || zero_copy_from == 0;
}

// Of the core's read buffers, which others need, nothing is lent; nor of a connection that has none to lend to.
bool slot::may_lend(const bytes_view* first, std::size_t count) noexcept {
  if (encrypted || ended || zero_copy_from == 0 || write_remaining < zero_copy_from) return false;
  for (std::size_t i = 0; i < count; ++i) {
    if (core->buffers.owns(first[i].data())) return false;
  }
  if (lending != nullptr) return true;
  lending = new (std::nothrow) zero_copy(*this);
  if (lending != nullptr && !lending->enable()) delete std::exchange(lending, nullptr);
  if (lending == nullptr) lend_from(0);
  return lending != nullptr;
}

// The write that has just been noted, as one that lends.
void slot::begin_lending() noexcept {
  lending->begin(pieces, piece_count, write_remaining, write_last);
  source = lending;
  piece_count = from_source;
  piece_offset = 0;
  write_remaining = 1;
  write_last = false;
}

// A write under which the connection has ended. False: the kernel still has pages of it, and it goes on once they are back.
bool slot::fail_write() noexcept {
  if (lending != nullptr && !lending->is_back()) return false;
  finish_write(false);
  return true;
}

void slot::take_back_lent() noexcept {
  if (lending != nullptr) lending->take_back();
}

bool slot::lends() const noexcept { return lending != nullptr && lending->lends(); }

void slot::end_lending() noexcept {
  take_back_lent();
  if (fd >= 0) (void)sys::close(std::exchange(fd, -1));
  delete std::exchange(lending, nullptr);
}

void slot::drop_lending() noexcept { delete std::exchange(lending, nullptr); }

}  // namespace percore::engine
