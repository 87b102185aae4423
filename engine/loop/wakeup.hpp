#pragma once

#include <utility>

namespace percore::loop {

// An eventfd(2): readable from wake() until drain().
class wakeup {
 public:
  wakeup();  // throws std::system_error
  wakeup(wakeup&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  wakeup& operator=(wakeup&&) = delete;
  ~wakeup();

  [[nodiscard]] int fd() const noexcept { return fd_; }
  void wake() const noexcept;   // any thread, also from a signal handler
  void drain() const noexcept;

 private:
  int fd_;
};

}  // namespace percore::loop
