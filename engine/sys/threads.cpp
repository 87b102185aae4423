#include "engine/sys/threads.hpp"

#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <percore/placement.hpp>
#include <system_error>

#include "engine/sys/faults.hpp"
#include "engine/sys/numa_memory.hpp"
#include "engine/sys/topology.hpp"

namespace percore::sys {
namespace {

constexpr std::size_t longest_name = 15;

[[noreturn]] void fail(int error, const std::string& what) {
  throw std::system_error(error, std::generic_category(), what);
}

// What starter and thread share until the thread is pinned. Both own it: either may be the last to look.
struct start_state {
  std::function<void()> body;
  std::string name;
  std::vector<unsigned> cpus;

  std::mutex mutex;
  std::condition_variable settled;
  bool is_settled = false;  // this and below under the mutex
  int pin_error = 0;
  pid_t kernel_id = 0;
};

// Calls `use` with a set of these CPUs and its size in bytes, and answers what it answers. Without CPUs: 0.
template <class Use>
int with_cpu_set(const std::vector<unsigned>& cpus, Use use) noexcept {
  if (cpus.empty()) return 0;
  const unsigned highest = *std::max_element(cpus.begin(), cpus.end());
  if (highest >= cpu_index_limit) return EINVAL;
  // cpu_set_t ends at CPU 1023, machines do not.
  const std::unique_ptr<cpu_set_t, void (*)(cpu_set_t*)> set(
      CPU_ALLOC(highest + 1), [](cpu_set_t* allocated) { CPU_FREE(allocated); });
  if (set == nullptr) return ENOMEM;
  const std::size_t bytes = CPU_ALLOC_SIZE(highest + 1);
  CPU_ZERO_S(bytes, set.get());
  for (const unsigned cpu : cpus) CPU_SET_S(cpu, bytes, set.get());
  return use(bytes, set.get());
}

int pin_calling_thread(const std::vector<unsigned>& cpus) noexcept {
  return with_cpu_set(cpus, [](std::size_t bytes, const cpu_set_t* set) {
    return pthread_setaffinity_np(pthread_self(), bytes, set);
  });
}

// noexcept: an exception from the body ends the process here, with the thread's stack still there to look at.
void* run_thread(void* raw) noexcept {
  const std::shared_ptr<start_state> state = std::move(
      *std::unique_ptr<std::shared_ptr<start_state>>(static_cast<std::shared_ptr<start_state>*>(raw)));
  (void)pthread_setname_np(pthread_self(), state->name.c_str());
  const int pin_error = pin_calling_thread(state->cpus);
  {
    const std::lock_guard lock(state->mutex);
    state->pin_error = pin_error;
    state->kernel_id = ::gettid();
    state->is_settled = true;
    state->settled.notify_one();
  }
  if (pin_error == 0) state->body();
  state->body =
      nullptr;  // what the body owns is gone when join returns, even if the starter still holds the state
  return nullptr;
}

class thread_attributes {
 public:
  thread_attributes(const std::string& name, std::size_t stack_bytes) {
    if (const int error = pthread_attr_init(&attributes_)) fail(error, "thread " + name + ": attributes");
    if (const int error = pthread_attr_setstacksize(&attributes_, stack_bytes)) {
      (void)pthread_attr_destroy(&attributes_);
      fail(error, "thread " + name + ": a stack of " + std::to_string(stack_bytes) + " bytes");
    }
  }
  ~thread_attributes() { (void)pthread_attr_destroy(&attributes_); }
  thread_attributes(const thread_attributes&) = delete;
  thread_attributes& operator=(const thread_attributes&) = delete;
  [[nodiscard]] const pthread_attr_t* get() const noexcept { return &attributes_; }

 private:
  pthread_attr_t attributes_;
};

// A new thread inherits its creator's mask, so the creator carries the mask for a moment: no signal can slip
// in between the thread's start and a mask that it would set itself.
class inherited_signal_mask {
 public:
  inherited_signal_mask() noexcept {
    sigset_t blocked;
    (void)sigfillset(&blocked);
    for (const int own_fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS, SIGABRT}) {
      (void)sigdelset(&blocked, own_fault);
    }
    (void)pthread_sigmask(SIG_SETMASK, &blocked, &before_);
  }
  ~inherited_signal_mask() { (void)pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  inherited_signal_mask(const inherited_signal_mask&) = delete;
  inherited_signal_mask& operator=(const inherited_signal_mask&) = delete;

 private:
  sigset_t before_;
};

pthread_t create(const std::shared_ptr<start_state>& state, const thread_attributes& attributes,
                 std::size_t stack_bytes) {
  auto handed_over = std::make_unique<std::shared_ptr<start_state>>(state);
  pthread_t thread{};
  int error = 0;
  {
    const inherited_signal_mask mask;
    error = pthread_create(&thread, attributes.get(), run_thread, handed_over.get());
  }
  if (error != 0) {
    fail(error,
         "cannot start thread " + state->name + " with a stack of " + std::to_string(stack_bytes) + " bytes");
  }
  (void)handed_over.release();  // now the thread's
  return thread;
}

}  // namespace

void core_thread::start(std::function<void()> body, const std::string& name,
                        const std::vector<unsigned>& cpus, std::size_t stack_bytes) {
  if (running_) fail(EBUSY, "cannot start thread " + name + ": this object already has a thread");
  if (name.size() > longest_name || name.find('\0') != std::string::npos) {
    fail(EINVAL, "thread name \"" + name + "\": at most 15 bytes, none of them zero");
  }
  const std::size_t stack =
      round_up_to_pages(std::max(stack_bytes, static_cast<std::size_t>(PTHREAD_STACK_MIN)));
  const thread_attributes attributes(name, stack);
  const auto state = std::make_shared<start_state>();
  state->body = std::move(body);
  state->name = name;
  state->cpus = cpus;
  const pthread_t thread = create(state, attributes, stack);

  std::unique_lock lock(state->mutex);
  state->settled.wait(lock, [&] { return state->is_settled; });
  if (state->pin_error != 0) {
    const int error = state->pin_error;
    lock.unlock();
    (void)pthread_join(thread, nullptr);
    fail(error, "cannot pin thread " + name + " to cpu " + format_cpu_list(cpus));
  }
  thread_ = thread;
  kernel_id_ = state->kernel_id;
  running_ = true;
}

void core_thread::join() {
  if (!running_) return;
  if (const int error = pthread_join(thread_, nullptr)) fail(error, "cannot join a thread");
  running_ = false;
  kernel_id_ = 0;
}

void core_thread::detach() noexcept {
  if (!running_) return;
  (void)pthread_detach(thread_);
  running_ = false;
  kernel_id_ = 0;
}

int start_thread(pthread_t& made, void* (*body)(void*), void* argument, const std::vector<unsigned>& first_cpus,
                 std::size_t stack_bytes) noexcept {
#ifdef PERCORE_FAULTS
  if (const auto verdict = before_call(call::thread_create, -1, 0); verdict.injected) {
    return static_cast<int>(verdict.result);
  }
#endif
  const std::size_t stack =
      round_up_to_pages(std::max(stack_bytes, static_cast<std::size_t>(PTHREAD_STACK_MIN)));
  const auto create_on = [&](const std::vector<unsigned>& cpus) {
    pthread_attr_t attributes;
    if (const int error = pthread_attr_init(&attributes)) return error;
    int error = pthread_attr_setstacksize(&attributes, stack);
    if (error == 0) {
      // So that it need not wait for the calling thread's CPU before it can leave it.
      (void)with_cpu_set(cpus, [&attributes](std::size_t bytes, const cpu_set_t* set) {
        return pthread_attr_setaffinity_np(&attributes, bytes, set);
      });
      const inherited_signal_mask mask;
      error = pthread_create(&made, &attributes, body, argument);
    }
    (void)pthread_attr_destroy(&attributes);
    return error;
  };
  int error = create_on(first_cpus);
  if (error == EINVAL && !first_cpus.empty()) error = create_on({});
  return -error;
}

void name_this_thread(const std::string& name) noexcept {
  char text[longest_name + 1] = {};
  name.copy(text, longest_name);
  (void)pthread_setname_np(pthread_self(), text);
}

void move_this_thread(const std::vector<unsigned>& cpus) noexcept { (void)pin_calling_thread(cpus); }

void move_thread(pid_t thread, const std::vector<unsigned>& cpus) noexcept {
  (void)with_cpu_set(cpus, [thread](std::size_t bytes, const cpu_set_t* set) {
    return ::sched_setaffinity(thread, bytes, set) == 0 ? 0 : errno;
  });
}

void let_signal_through(int signal) noexcept {
  sigset_t one;
  (void)sigemptyset(&one);
  (void)sigaddset(&one, signal);
  (void)pthread_sigmask(SIG_UNBLOCK, &one, nullptr);
}

void set_timer_slack(std::int64_t ns) noexcept { (void)::prctl(PR_SET_TIMERSLACK, static_cast<unsigned long>(ns)); }

core_thread& core_thread::operator=(core_thread&& other) noexcept {
  if (this != &other) {
    join();
    swap(other);
  }
  return *this;
}

core_thread::~core_thread() {
  join();
}

}  // namespace percore::sys
