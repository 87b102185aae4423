#include "engine/loop/wakeup.hpp"

#include <atomic>
#include <cstdint>
#include <limits>
#include <mutex>
#include <system_error>
#include <vector>

#include "engine/sys/calls.hpp"

namespace percore::loop {

namespace {

constexpr std::uint64_t shared_table = std::numeric_limits<std::uint64_t>::max();

std::atomic<std::uint64_t> last_serial{0};
// The last wake-up that this thread's own table has a copy of.
constinit thread_local std::uint64_t known_serial = shared_table;

struct orphans {
  std::mutex mutex;
  std::vector<int> descriptors;
};
orphans& all_orphans() {
  static orphans the_orphans;
  return the_orphans;
}

void write_one(int fd) noexcept {
  const std::uint64_t one = 1;
  while (sys::write(fd, &one, sizeof one) == -EINTR) {
  }
}

}  // namespace

wakeup::wakeup() : fd_(sys::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  if (fd_ < 0) throw std::system_error(-fd_, std::system_category(), "percore: cannot create an eventfd");
  serial_ = last_serial.fetch_add(1, std::memory_order_acq_rel) + 1;
}

wakeup::~wakeup() {
  if (fd_ < 0) return;
  if (!thread_has_own_descriptors()) {
    (void)sys::close(fd_);
    return;
  }
  std::lock_guard lock(all_orphans().mutex);
  all_orphans().descriptors.push_back(fd_);
}

void wakeup::wake() const noexcept {
  if (serial_ <= known_serial) {
    write_one(fd_);
    return;
  }
  const int copy = sys::descriptor_of_process(fd_);
  if (copy < 0) return;
  write_one(copy);
  (void)sys::close(copy);
}

void wakeup::drain() const noexcept {
  std::uint64_t count = 0;
  while (sys::read(fd_, &count, sizeof count) == -EINTR) {
  }
}

int wakeup::unshare_descriptors() noexcept {
  // Read before: one that is made meanwhile may be in the copy or not, and counts as not.
  const std::uint64_t known = last_serial.load(std::memory_order_acquire);
  const int result = sys::unshare_descriptors();
  if (result == 0) known_serial = known;
  return result;
}

bool wakeup::thread_has_own_descriptors() noexcept { return known_serial != shared_table; }

std::uint64_t wakeup::table() noexcept { return known_serial; }
void wakeup::share_table(std::uint64_t table) noexcept { known_serial = table; }

void wakeup::close_orphans() noexcept {
  std::lock_guard lock(all_orphans().mutex);
  for (const int fd : all_orphans().descriptors) (void)sys::close(fd);
  all_orphans().descriptors.clear();
}

}  // namespace percore::loop
