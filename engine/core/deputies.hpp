#pragma once

#include <pthread.h>
#include <sys/types.h>

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "engine/core/core.hpp"
#include "engine/core/periodic_thread.hpp"

namespace percore::engine {

// The threads of one core when it is open to takeovers (takeover_options): one runs the core, the others stand by, or
// are still in the slice in which they have lost it. A lock guards who is who: it is taken when a core changes hands, never
// by one that serves.
//
// Threads hold this object, and with it the core's memory, until they end: a slice that never ends keeps both.
class deputies : public std::enable_shared_from_this<deputies> {
 public:
  struct settings {
    std::string name;                   // of the thread that runs the core
    std::vector<unsigned> core_cpus;    // where it runs; empty: anywhere
    std::vector<unsigned> helper_cpus;  // where who has lost it goes; empty: where it is
    unsigned most = 16;                 // threads that stand by or have lost it
    std::size_t stack_bytes = 1024 * 1024;
    int signal = 0;                     // to be let through; 0: none
    std::function<void()> on_taken;     // first, on the thread that has taken the core over
    std::function<void()> on_end;       // last, on the thread that runs the core when it ends
  };

  deputies(settings given, core& which, std::shared_ptr<void> memory)
      : settings_(std::move(given)), core_(which), memory_(std::move(memory)) {}
  deputies(const deputies&) = delete;
  deputies& operator=(const deputies&) = delete;

  // The core's life, on the thread that runs it first: returns when it has ended, whoever ran it then.
  void serve() noexcept;

  // The watch's thread: somebody that stands by, if there is anybody, takes the core from its slice `number`, if that
  // still runs.
  void call(std::uint64_t number) noexcept;

  // Any thread: the kernel has refused the one that was to stand by. To be mended on the core's thread.
  [[nodiscard]] bool lacks_one() const noexcept { return lacks_one_.load(std::memory_order_relaxed); }
  void mend() noexcept;

  // Once the core has ended: waits for all threads but those that are still in a slice, which are left to themselves.
  // False: the thread that called serve() is one of them.
  bool join() noexcept;

 private:
  enum class state : std::uint8_t { starting, standing_by, called, running, lost, ended };
  struct member {
    pthread_t thread{};
    pid_t id = 0;
    bool first = false;  // called serve(): somebody else's to join
    state now = state::starting;
    std::uint64_t number = 0;  // of the slice, when called
  };

  static void* thread_body(void* raw) noexcept;
  void serve_as(member& self, bool running) noexcept;
  bool wait_for_call(member& self) noexcept;  // false: the core has ended
  void take_charge(member& self) noexcept;
  [[nodiscard]] bool has_another(const member* self) const noexcept;  // that stands by, or will; under the lock
  void start_one() noexcept;

  const settings settings_;
  core& core_;
  const std::shared_ptr<void> memory_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::unique_ptr<member>> members_;
  bool ended_ = false;
  std::atomic<bool> lacks_one_{false};
};

// Looks which slices last too long. Nearly always none does, so it looks with the kernel's tick, and exactly only at a
// core whose turn has already lasted long.
class takeover_watch {
 public:
  explicit takeover_watch(std::int64_t after_ns) noexcept : after_ns_(after_ns) {}

  // Before start().
  void add(const core& which, const std::shared_ptr<deputies>& threads) { cores_.push_back({&which, threads}); }
  void start(const std::string& name);  // throws std::system_error
  void stop() noexcept { thread_.stop(); }

 private:
  struct watched {
    const core* which;
    std::shared_ptr<deputies> threads;
    std::uint64_t number = 0;  // of the slice, as last seen
    std::int64_t since_ns = 0;
    bool called = false;             // somebody, for this slice
    std::int64_t mended_at_ns = 0;   // or tried to
  };

  void look() noexcept;
  [[nodiscard]] std::int64_t look_at(watched& which, std::int64_t now_ns) const noexcept;

  // Between two looks, at least; and how much later the second may come.
  [[nodiscard]] std::int64_t period_ns() const noexcept { return after_ns_ / 2; }
  [[nodiscard]] std::int64_t slack_ns() const noexcept { return after_ns_ * 2 / 5; }

  const std::int64_t after_ns_;
  std::vector<watched> cores_;
  periodic_thread thread_;
};

}  // namespace percore::engine
