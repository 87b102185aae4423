#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>

#include <percore/connection_handle.hpp>
#include <percore/detail/job.hpp>
#include <percore/detail/message.hpp>

#include "engine/base/mpsc_ring.hpp"
#include "engine/loop/wakeup.hpp"

namespace percore::detail {

// How other threads reach a core: messages, what helpers give back, urgent signals, and a wake-up when it sleeps. Shared
// by the core and all connection handles, so it may outlive the core; it then answers `stopped`.
//
// A core that is awake is never woken: before it blocks it sets `sleeping_` and looks at the ring and the signals
// once more, and a producer publishes before it looks at `sleeping_`. Both sides use sequentially consistent
// operations, so in their single order either the producer sees the flag and wakes, or the core sees the message.
class mailbox_link {
 public:
  // Signals are bits of the caller's choosing; unlike messages they always fit and coalesce.
  using signals = std::uint32_t;

  mailbox_link(std::size_t capacity, loop::wakeup&& wake) : ring_(capacity), wakeup_(std::move(wake)) {}

  // Any thread.
  post_result post(message&& what) noexcept {
    switch (ring_.push(std::move(what))) {
      case base::push_result::pushed:
        wake_if_sleeping();
        return post_result::posted;
      case base::push_result::full:
        return post_result::queue_full;
      case base::push_result::closed:
        break;
    }
    return post_result::stopped;
  }
  void signal(signals bits) noexcept {
    signals_.fetch_or(bits, std::memory_order_seq_cst);
    wake_if_sleeping();
  }

  // Gives back what the core had given away; always finds room. Also after close(): then nobody takes it any more.
  void complete(completion& done) noexcept {
    completion* first = completed_.load(std::memory_order_relaxed);
    do {
      done.next_completed = first;
    } while (!completed_.compare_exchange_weak(first, &done, std::memory_order_seq_cst, std::memory_order_relaxed));
    wake_if_sleeping();
  }

  // The rest: the core's thread only.
  [[nodiscard]] int wakeup_fd() const noexcept { return wakeup_.fd(); }
  // False when there is something to do instead of sleeping.
  bool prepare_to_sleep() noexcept {
    sleeping_.store(true, std::memory_order_seq_cst);
    if (ring_.empty() && signals_.load(std::memory_order_seq_cst) == 0 &&
        completed_.load(std::memory_order_seq_cst) == nullptr) {
      return true;
    }
    sleeping_.store(false, std::memory_order_relaxed);
    return false;
  }
  void awake() noexcept { sleeping_.store(false, std::memory_order_relaxed); }
  void drain_wakeup() noexcept { wakeup_.drain(); }

  [[nodiscard]] signals take_signals() noexcept {
    if (signals_.load(std::memory_order_relaxed) == 0) return 0;
    return signals_.exchange(0, std::memory_order_acquire);
  }
  // All that was given back, the first one first, linked by next_completed; nullptr when there is nothing.
  [[nodiscard]] completion* take_completed() noexcept {
    if (completed_.load(std::memory_order_relaxed) == nullptr) return nullptr;
    // The list is taken whole and by this thread only, so no node can come back under a compare-and-swap (ABA).
    completion* last = completed_.exchange(nullptr, std::memory_order_acquire);
    completion* first = nullptr;
    while (last != nullptr) {
      completion* before = last->next_completed;
      last->next_completed = first;
      first = last;
      last = before;
    }
    return first;
  }
  std::optional<message> pop() noexcept { return ring_.pop(); }
  [[nodiscard]] bool empty() const noexcept { return ring_.empty(); }
  void close() noexcept { ring_.close(); }
  [[nodiscard]] bool drained() const noexcept { return ring_.drained(); }

 private:
  void wake_if_sleeping() noexcept {
    // Only one of several producers pays for the write to the eventfd.
    if (sleeping_.load(std::memory_order_seq_cst) && sleeping_.exchange(false, std::memory_order_seq_cst)) {
      wakeup_.wake();
    }
  }

  base::mpsc_ring<message> ring_;
  loop::wakeup wakeup_;
  alignas(base::cache_line_bytes) std::atomic<bool> sleeping_{false};
  std::atomic<signals> signals_{0};
  std::atomic<completion*> completed_{nullptr};  // the last one first
};

}  // namespace percore::detail

namespace percore::loop {
using mailbox = detail::mailbox_link;
}
