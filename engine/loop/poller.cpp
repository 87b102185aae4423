#include "engine/loop/poller.hpp"

#include <system_error>
#include <utility>

#include "engine/base/assert.hpp"

namespace percore::loop {

poller::poller() : epoll_fd_(sys::epoll_create1(EPOLL_CLOEXEC)) {
  if (epoll_fd_ < 0) {
    throw std::system_error(-epoll_fd_, std::system_category(), "percore: cannot create an epoll instance");
  }
}

void poller::close() noexcept {
  if (epoll_fd_ >= 0) (void)sys::close(std::exchange(epoll_fd_, -1));
}

std::span<const epoll_event> poller::wait(std::int64_t timeout_ns) noexcept {
  const int ready = sys::epoll_wait(epoll_fd_, events_.data(), static_cast<int>(batch), timeout_ns);
  PERCORE_ASSERT(ready >= 0 || ready == -EINTR || ready == -ENOMEM, "epoll_wait refuses its arguments");
  return {events_.data(), ready > 0 ? static_cast<std::size_t>(ready) : 0};
}

}  // namespace percore::loop
