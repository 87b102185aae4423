#include "engine/loop/wakeup.hpp"

#include <cstdint>
#include <system_error>

#include "engine/sys/calls.hpp"

namespace percore::loop {

wakeup::wakeup() : fd_(sys::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  if (fd_ < 0) throw std::system_error(-fd_, std::system_category(), "percore: cannot create an eventfd");
}

wakeup::~wakeup() {
  if (fd_ >= 0) (void)sys::close(fd_);
}

void wakeup::wake() const noexcept {
  const std::uint64_t one = 1;
  while (sys::write(fd_, &one, sizeof one) == -EINTR) {
  }
}

void wakeup::drain() const noexcept {
  std::uint64_t count = 0;
  while (sys::read(fd_, &count, sizeof count) == -EINTR) {
  }
}

}  // namespace percore::loop
