#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "engine/connection/core_resources.hpp"
#include "engine/core/acceptor.hpp"
#include "engine/sys/numa_memory.hpp"

namespace percore::engine {

// One core: its memory, its connections, its listeners, and the loop that its thread runs.
class core {
 public:
  // Bits for mailbox::signal.
  enum : std::uint32_t { signal_shutdown = 1, signal_halt = 2, signal_room = 4, signal_shared_pause = 8 };

  struct settings {
    unsigned index = 0;
    std::optional<unsigned> numa_node;  // none: wherever the thread touches it first
    core_resources::limits limits;
    std::size_t mailbox_messages = 0;
    std::size_t pipes = 0;
    std::size_t pipe_bytes = 0;
    std::shared_ptr<const std::atomic<bool>> stop_requested;
    server* owner = nullptr;
    shared_limits* shared = nullptr;
    std::function<void(std::exception_ptr)> on_exception;
    std::function<void(tls_failure, std::string_view, const address&)> on_tls_failure;
    // When the grace of a shutdown ends, in CLOCK_MONOTONIC nanoseconds; 0: it does not. Shared by all cores.
    const std::atomic<std::int64_t>* grace_end_ns = nullptr;
    helpers::pool_settings helpers;
    std::int64_t helper_patience_ns = 0;
    std::function<void(const stuck_helper&)> on_stuck_helper;
  };

  // On the thread that will run it, so that its memory is near. Throws std::system_error.
  core(const settings& given, loop::wakeup&& wake);
  core(const core&) = delete;
  core& operator=(const core&) = delete;
  ~core();

  void add_listener(acceptor::settings listener);
  // What its connections will need of TLS, so that what is lacking is found now. Throws tls_error or std::bad_alloc.
  void prepare_tls(const std::shared_ptr<tls::shared_context>& context);
  // 0, or a negative errno: then nothing listens.
  int start_listeners() noexcept;
  // Gives up all listeners of a start that failed elsewhere.
  void close_listeners() noexcept;

  // The loop: true when a shutdown is complete or a halt was signalled, with all connections ended and every message
  // that was posted run. False when another thread has taken the core over: then this one may touch it no more.
  [[gnu::hot]] bool run() noexcept;

  // Takeovers. While a slice runs on the core's thread but away from the core (slice.hpp), any other thread may make
  // the core its own, with one compare-and-swap: what the core's thread has written before the slice is then seen
  // (it has released the number, which this acquires), and the core's thread, whose own compare-and-swap at the end of
  // the slice fails, touches nothing but the slice's own state and the mailbox, through which it gives it back. The
  // thread that has it then calls run(), which goes on where the other has left: every step of a turn keeps in the core
  // what it still has to do.
  //
  // 0: no such slice runs. Numbers are not used again.
  [[nodiscard]] std::uint64_t slice_number() const noexcept { return slice_.load(std::memory_order_acquire); }
  [[nodiscard]] bool take_over(std::uint64_t number) noexcept;
  // Any thread: since when this slice is known to run, if it runs now: if the first event of a turn has brought it, since
  // the turn began; else since `now_ns`.
  [[nodiscard]] std::int64_t slice_runs_since(std::uint64_t number, std::int64_t now_ns) const noexcept {
    return first_of_turn_.load(std::memory_order_acquire) == number ? turn_began_ns_.load(std::memory_order_relaxed) : now_ns;
  }
  // Any thread: how long this turn of the loop has lasted.
  [[nodiscard]] std::int64_t turn_lasts_ns(std::int64_t now_ns) const noexcept {
    return now_ns - turn_began_ns_.load(std::memory_order_relaxed);
  }
  // On the core's thread.
  void count_refused_deputy() noexcept { ++resources_.counters.takeover_refused; }
  // Before run(): the slices of coroutine handlers are open to takeovers.
  void open_to_takeover() noexcept { resources_.open_to_takeover = true; }
  void run_by(pid_t thread) noexcept { thread_.store(thread, std::memory_order_relaxed); }
  [[nodiscard]] pid_t thread() const noexcept { return thread_.load(std::memory_order_relaxed); }
  [[nodiscard]] bool given_up() const noexcept { return given_up_; }  // on its thread, or after its end
  // The last act on the core's thread: what only it may close.
  void close_poller() noexcept;

  // What has to stay in memory, besides this core, for helpers that do not come back; asked for on the core's thread.
  std::function<std::shared_ptr<void>()> held_with_it;

  [[nodiscard]] const std::shared_ptr<loop::mailbox>& mailbox() const noexcept { return resources_.mailbox; }
  // The kernel refused to bind the slots or the buffers to settings::numa_node.
  [[nodiscard]] bool memory_binding_refused() const noexcept {
    return slot_memory_.binding() == sys::numa_binding::refused ||
           buffer_memory_.binding() == sys::numa_binding::refused;
  }
  [[nodiscard]] core_stats stats() const noexcept;

  // Before run(): what the watch's signal fills in on this core's thread.
  void watch_stalls(stall_snapshot* into) noexcept { resources_.stalled = into; }
  // Any thread: odd while a handler or a posted function runs.
  [[nodiscard]] connection_handle handle_of(std::uint32_t slot_index, std::uint32_t generation) const;
  [[nodiscard]] std::uint64_t steps() const noexcept { return resources_.steps.get(); }

 private:
  // Tokens of what is no connection have generation 0, which no connection has.
  static constexpr std::uint64_t wakeup_token = 0xffff'ffff;

  [[gnu::hot]] bool turn() noexcept;  // false: taken over; so the other functions
  [[gnu::hot]] void begin_turn() noexcept;
  [[gnu::hot]] bool dispatch_batch() noexcept;
  [[gnu::hot]] bool run_slices() noexcept { return resources_.slices.empty() || run_waiting_slices(); }
  [[gnu::hot]] bool run_waiting_slices() noexcept;
  [[gnu::hot]] bool run_slice(slice_job& slice) noexcept;
  bool run_timed_slice(slice_job& slice) noexcept;
  [[nodiscard]] bool run_open(slice_job& slice) noexcept;
  void take_back(slot& owner) noexcept;  // whose slice has run, and the core is not lost
  [[gnu::hot]] std::int64_t sleep_limit() noexcept;
  void prefetch(const epoll_event& event) const noexcept;
  void dispatch(const epoll_event& event) noexcept;
  [[gnu::hot]] void run_messages(std::size_t most) noexcept;
  [[gnu::hot]] void run_ready() noexcept;
  [[gnu::hot]] void run_handshakes() noexcept;
  [[gnu::hot]] void end_of_turn() noexcept;
  void obey(loop::mailbox::signals signals) noexcept;
  void begin_shutdown() noexcept;
  void halt() noexcept;
  template <class Action>
  void for_each_connection(Action action) noexcept;
  [[nodiscard]] bool drained() const noexcept;
  [[gnu::hot]] void run_completed() noexcept;
  [[nodiscard]] bool jobs_left() const noexcept {
    return resources_.slots.in_use() != resources_.outgoing_count || resources_.helpers->outstanding() != 0;
  }
  void drop_queued_jobs() noexcept;
  void be_patient() noexcept;
  void give_up() noexcept;
  void report_stuck(const slot* serves, std::int64_t for_ns) const;
  void end_helpers() noexcept;

  const settings settings_;
  sys::numa_region slot_memory_;
  sys::numa_region buffer_memory_;
  core_resources resources_;
  std::vector<std::unique_ptr<acceptor>> acceptors_;
  std::span<const epoll_event> batch_;  // events of this turn,
  std::size_t next_event_ = 0;          // and the first that is not served yet
  bool turn_interrupted_ = false;       // by a takeover
  bool begun_ = false;
  std::uint64_t slices_run_ = 0;
  alignas(base::cache_line_bytes) std::atomic<std::uint64_t> slice_{0};
  // Of this turn, if the core is open to takeovers: its first slice, if an event brings it, and when the turn began.
  std::atomic<std::uint64_t> first_of_turn_{0};
  std::atomic<std::int64_t> turn_began_ns_{0};
  std::atomic<pid_t> thread_{0};
  bool halting_ = false;   // what is left waits for helpers
  bool given_up_ = false;  // and was given up

  struct own_timer : detail::timer_node {
    core* owner = nullptr;
  };
  own_timer grace_timer_;
  own_timer patience_timer_;
};

template <class Action>
void core::for_each_connection(Action action) noexcept {
  for (std::uint32_t i = 0; i < resources_.slots.touched(); ++i) {
    slot& s = resources_.slots.at(i);
    if (s.phase != slot_phase::free) action(s);
  }
}

}  // namespace percore::engine
