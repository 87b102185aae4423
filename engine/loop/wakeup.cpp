#include "engine/loop/wakeup.hpp"

#include <atomic>
#include <cstdint>
#include <limits>
#include <mutex>
#include <system_error>
#include <utility>
#include <vector>

#include "engine/sys/calls.hpp"

namespace percore::loop {

// Its descriptors go with the table itself, when the last thread that has it ends.
struct descriptor_table {
  std::uint64_t known = 0;  // the last wake-up that it has a copy of
  int process = -1;
  std::atomic<int> spare = -1;  // makes room for one more
};

namespace {

constexpr std::uint64_t shared_table = std::numeric_limits<std::uint64_t>::max();

std::atomic<std::uint64_t> last_serial{0};
// The last wake-up that this thread's own table has a copy of.
constinit thread_local std::uint64_t known_serial = shared_table;
thread_local std::shared_ptr<descriptor_table> own_table;

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

int make_eventfd() noexcept { return sys::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK); }

// A descriptor of the process's table, written to from a thread that has another one.
void write_one_there(descriptor_table& here, int fd) noexcept {
  int copy = sys::descriptor_of_process(here.process, fd);
  int spare = -1;
  if (copy == -EMFILE && (spare = here.spare.exchange(-1, std::memory_order_relaxed)) >= 0) {
    (void)sys::close(spare);
    copy = sys::descriptor_of_process(here.process, fd);
  }
  if (copy >= 0) {
    write_one(copy);
    (void)sys::close(copy);
  }
  if (spare >= 0) here.spare.store(make_eventfd(), std::memory_order_relaxed);
}

}  // namespace

wakeup::wakeup() : fd_(make_eventfd()) {
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
  write_one_there(*own_table, fd_);
}

void wakeup::drain() const noexcept {
  std::uint64_t count = 0;
  while (sys::read(fd_, &count, sizeof count) == -EINTR) {
  }
}

int wakeup::unshare_descriptors() noexcept {
  // Read before: one that is made meanwhile may be in the copy or not, and counts as not.
  const std::uint64_t known = last_serial.load(std::memory_order_acquire);
  auto made = std::make_shared<descriptor_table>();
  made->known = known;
  const int result = sys::unshare_descriptors();
  if (result != 0) return result;
  known_serial = known;
  own_table = std::move(made);
  own_table->process = sys::own_process();
  if (own_table->process < 0 && own_table->process != -ENOSYS) return own_table->process;
  const int spare = make_eventfd();
  own_table->spare.store(spare, std::memory_order_relaxed);
  return spare < 0 ? spare : 0;
}

bool wakeup::thread_has_own_descriptors() noexcept { return known_serial != shared_table; }

std::shared_ptr<descriptor_table> wakeup::table() noexcept { return own_table; }

void wakeup::share_table(std::shared_ptr<descriptor_table> table) noexcept {
  known_serial = table ? table->known : shared_table;
  own_table = std::move(table);
}

void wakeup::close_orphans() noexcept {
  std::lock_guard lock(all_orphans().mutex);
  for (const int fd : all_orphans().descriptors) (void)sys::close(fd);
  all_orphans().descriptors.clear();
}

}  // namespace percore::loop
