// The engine's threads: named, pinned before they run, with a stack of chosen size, deaf to signals.
#pragma once

#include <pthread.h>
#include <sys/types.h>

#include <cstddef>
#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace percore::sys {

// Owns one thread. Not itself thread-safe: start, join and moves belong to one thread at a time.
class core_thread {
 public:
  core_thread() noexcept = default;
  core_thread(core_thread&& other) noexcept { swap(other); }
  core_thread& operator=(core_thread&& other) noexcept;  // joins the thread that it had
  ~core_thread();                                        // joins: tell the body to end first

  // Starts `body` and returns once the thread is named and pinned; `body` has not necessarily begun.
  //
  // name         at most 15 bytes, the kernel's limit (pthread_setname_np(3)); shown by top -H and debuggers
  // cpus         the CPUs that the thread may run on; empty: those of the calling thread. The kernel drops
  //              CPUs outside of the process's cpuset and refuses when none is left.
  // stack_bytes  raised to PTHREAD_STACK_MIN and rounded up to pages; the C library adds a guard page below
  //
  // In the thread all signals are blocked except those that a fault of its own raises (SIGSEGV, SIGBUS,
  // SIGFPE, SIGILL, SIGTRAP, SIGSYS) and SIGABRT, so the signals of the process go to the program's own
  // threads. A wait can still end with EINTR: stopping and continuing the process does that (signal(7)).
  // An exception that leaves `body` ends the process.
  //
  // Throws std::system_error that names the thread and what failed (name, stack, creation, pinning, or a
  // thread already running here); then no thread is left.
  void start(std::function<void()> body, const std::string& name, const std::vector<unsigned>& cpus,
             std::size_t stack_bytes);

  // Waits until the body has returned and has been destroyed; without a thread, returns at once. Throws
  // std::system_error (EDEADLK) when called by the thread itself.
  void join();

  // Leaves the thread to itself.
  void detach() noexcept;

  [[nodiscard]] bool joinable() const noexcept { return running_; }
  [[nodiscard]] pid_t kernel_id() const noexcept { return kernel_id_; }  // gettid(2); 0 unless joinable()

 private:
  void swap(core_thread& other) noexcept {
    std::swap(thread_, other.thread_);
    std::swap(kernel_id_, other.kernel_id_);
    std::swap(running_, other.running_);
  }

  pthread_t thread_{};
  pid_t kernel_id_ = 0;
  bool running_ = false;
};

// Starts a thread of the process without waiting until it runs, as a core does for its helpers: 0, or a negative errno.
// It shares the calling thread's descriptor table. Signals are blocked in it as in a core_thread. Somebody must join or
// detach it.
//
// first_cpus   where it is to begin; empty, or none of them allowed: where the calling thread may run
// stack_bytes  as for core_thread
int start_thread(pthread_t& made, void* (*body)(void*), void* argument, const std::vector<unsigned>& first_cpus,
                 std::size_t stack_bytes) noexcept;
// Of the calling thread: its name (cut to 15 bytes), and the CPUs it may run on from now on; as far as the kernel
// agrees.
void name_this_thread(const std::string& name) noexcept;
void move_this_thread(const std::vector<unsigned>& cpus) noexcept;
void move_thread(pid_t thread, const std::vector<unsigned>& cpus) noexcept;  // another one, by its gettid(2)
void let_signal_through(int signal) noexcept;
// How much later than asked for a sleep of the calling thread may end (PR_SET_TIMERSLACK, prctl(2)): with the clock's tick
// or another timer, if one comes, for which no timer needs to be set.
void set_timer_slack(std::int64_t ns) noexcept;
inline constexpr std::int64_t usual_timer_slack_ns = 50'000;  // the kernel's default

}  // namespace percore::sys
