// Waiting for events between threads, with a limit that only a hang reaches.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <utility>

namespace percore::test {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define PERCORE_TEST_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define PERCORE_TEST_SANITIZED 1
#endif
#endif

#ifdef PERCORE_TEST_SANITIZED
inline constexpr bool sanitized = true;
#else
inline constexpr bool sanitized = false;
#endif

// ThreadSanitizer knows one descriptor table per process: equal numbers in the tables of two threads are one file to it,
// and it reports races that are none. Tests with server_options::private_descriptors leave that out under it.
#if defined(__SANITIZE_THREAD__)
inline constexpr bool under_tsan = true;
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
inline constexpr bool under_tsan = true;
#else
inline constexpr bool under_tsan = false;
#endif
#else
inline constexpr bool under_tsan = false;
#endif

// How long any single wait of a test may take. Nothing that works comes near it, also on a busy machine.
inline constexpr std::chrono::seconds patience{30};

struct waited_too_long : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A number that only grows; threads wait until it has reached a value. With 1 as the value it is a one-shot event.
class event {
 public:
  void set(std::size_t by = 1) {
    std::lock_guard lock(mutex_);
    count_ += by;
    changed_.notify_all();
  }
  [[nodiscard]] std::size_t count() const {
    std::lock_guard lock(mutex_);
    return count_;
  }
  void wait(std::size_t value = 1) {
    std::unique_lock lock(mutex_);
    if (!changed_.wait_for(lock, patience, [&] { return count_ >= value; }))
      throw waited_too_long("an event did not come");
  }

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::size_t count_ = 0;
};

// What one thread tells another, in order.
template <class T>
class channel {
 public:
  void put(T value) {
    std::lock_guard lock(mutex_);
    values_.push_back(std::move(value));
    changed_.notify_all();
  }
  T take() {
    std::unique_lock lock(mutex_);
    if (!changed_.wait_for(lock, patience, [&] { return !values_.empty(); }))
      throw waited_too_long("a value did not come");
    T value = std::move(values_.front());
    values_.pop_front();
    return value;
  }
  [[nodiscard]] std::size_t size() const {
    std::lock_guard lock(mutex_);
    return values_.size();
  }

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<T> values_;
};

// For what tells nobody when it changes: counters of stats(), /proc. Looks every millisecond until `condition` holds;
// false when it never did.
template <std::predicate Condition>
bool eventually(Condition condition, std::chrono::milliseconds limit = patience) {
  const auto deadline = std::chrono::steady_clock::now() + limit;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

}  // namespace percore::test
