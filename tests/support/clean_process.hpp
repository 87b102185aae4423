// A fixture that sees to it that a test leaves nothing behind.
#pragma once

#include <atomic>
#include <cstddef>

namespace percore::test {

std::size_t open_descriptors();
std::size_t running_threads();

// A local of this type in a coroutine tells whether its frame is alive.
class alive {
 public:
  alive() noexcept { count_.fetch_add(1); }
  alive(const alive&) noexcept { count_.fetch_add(1); }
  alive(alive&&) noexcept { count_.fetch_add(1); }
  alive& operator=(const alive&) = default;
  alive& operator=(alive&&) = default;
  ~alive() { count_.fetch_sub(1); }

  static long count() noexcept { return count_.load(); }

 private:
  static inline std::atomic<long> count_{0};
};

// Checks at the end of the test that descriptors, threads and living `alive` objects are as many as at its start.
class clean_process {
 public:
  clean_process();
  clean_process(const clean_process&) = delete;
  clean_process& operator=(const clean_process&) = delete;
  ~clean_process();

 private:
  std::size_t descriptors_;
  std::size_t threads_;
  long alive_;
};

}  // namespace percore::test
