#pragma once

#include <cstdint>
#include <memory>
#include <utility>

namespace percore::loop {

// A descriptor table that a thread, and those that it has started since, have for themselves.
struct descriptor_table;

// An eventfd(2): readable from wake() until drain().
//
// It belongs to the process's descriptor table, but threads with a table of their own (private_descriptors) may hold
// and wake it too. For such a thread that has split off before the wake-up was made, its number means nothing, or
// another file: it is then reached through pidfd_getfd(2), and one that dies there is closed later by a thread of
// the process's table. Such a table keeps two descriptors for that: the process, and one that makes room for the copy when
// the table is full.
class wakeup {
 public:
  wakeup();  // throws std::system_error
  wakeup(wakeup&& other) noexcept : fd_(std::exchange(other.fd_, -1)), serial_(other.serial_) {}
  wakeup& operator=(wakeup&&) = delete;
  ~wakeup();

  [[nodiscard]] int fd() const noexcept { return fd_; }
  void wake() const noexcept;  // any thread, also from a signal handler
  void drain() const noexcept;

  // Gives the calling thread a descriptor table of its own, with a copy of every wake-up made so far. 0, or -errno.
  static int unshare_descriptors() noexcept;
  [[nodiscard]] static bool thread_has_own_descriptors() noexcept;
  // A thread that shares the table of the thread which has started it (a helper of a core) says so first, with what
  // that one's table() answered. None: the process's.
  static std::shared_ptr<descriptor_table> table() noexcept;
  static void share_table(std::shared_ptr<descriptor_table> table) noexcept;
  // Closes what died on threads with tables of their own. On a thread of the process's table.
  static void close_orphans() noexcept;

 private:
  int fd_;
  std::uint64_t serial_;  // in the order of their making
};

}  // namespace percore::loop
