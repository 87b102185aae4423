#include "engine/core/stall_watch.hpp"

#include <execinfo.h>
#include <signal.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <system_error>

#include "engine/connection/slice.hpp"
#include "engine/core/core.hpp"

namespace percore::engine {

namespace {

constexpr std::int64_t between_reports_ns = 1'000'000'000;
// For the signal to be answered: a thread that waits for a disk does not.
constexpr std::int64_t answer_ns = 200'000'000;

struct sigaction previous_action;
int installed_signal = 0;
std::mutex installing;
std::size_t watches = 0;

void on_signal(int number, siginfo_t* info, void* context) {
  const int saved = errno;
  core_resources* core = core_of_thread;
  stall_snapshot* into = core == nullptr ? nullptr : core->stalled;
  auto wanted = stall_snapshot::state::wanted;
  if (into != nullptr &&
      into->now.compare_exchange_strong(wanted, stall_snapshot::state::filling, std::memory_order_acq_rel)) {
    // A slice that is open to a takeover: then the core may be another thread's already.
    const slot* running = slice_of_thread != nullptr ? slice_of_thread->owner : core->running;
    into->in_handler = running != nullptr;
    if (into->in_handler) {
      const slot& s = *running;
      into->listener = s.listener->index;
      into->slot = s.index;
      into->generation = s.generation;
      into->peer = s.peer;
    }
    into->depth = ::backtrace(into->frames.data(), static_cast<int>(into->frames.size()));
    into->now.store(stall_snapshot::state::filled, std::memory_order_release);
  } else if (previous_action.sa_flags & SA_SIGINFO) {
    previous_action.sa_sigaction(number, info, context);
  } else if (previous_action.sa_handler != SIG_DFL && previous_action.sa_handler != SIG_IGN) {
    previous_action.sa_handler(number);
  }
  errno = saved;
}

}  // namespace

stall_watch::stall_watch(const stall_options& options, const std::string& thread_name)
    : options_(options),
      name_(thread_name.substr(0, 9) + "/watch"),
      threshold_ns_(std::chrono::nanoseconds(*options.threshold).count()) {
  // The first call loads a library, which a signal handler must not.
  std::array<void*, 4> frames{};
  (void)::backtrace(frames.data(), static_cast<int>(frames.size()));
  const std::lock_guard lock(installing);
  if (watches != 0 && installed_signal != options.signal) {
    throw std::invalid_argument("percore: servers of one process must have the same stalls.signal");
  }
  if (watches == 0) {
    struct sigaction action {};
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_RESTART;
    if (const int result = sys::sigaction(options.signal, &action, &previous_action); result < 0) {
      throw std::system_error(-result, std::system_category(), "percore: stalls.signal");
    }
    installed_signal = options.signal;
  }
  ++watches;
}

stall_watch::~stall_watch() {
  stop();
  const std::lock_guard lock(installing);
  if (--watches == 0) (void)sys::sigaction(installed_signal, &previous_action, nullptr);
}

void stall_watch::add(core& which) {
  auto& made = *cores_.emplace_back(std::make_unique<watched>());
  made.which = &which;
  which.watch_stalls(&made.snapshot);
}

void stall_watch::start() {
  thread_.start([this] { look(); }, threshold_ns_ / 2, sys::usual_timer_slack_ns, name_);
}

void stall_watch::look() noexcept {
  const std::int64_t now = sys::monotonic_ns();
  for (std::size_t i = 0; i < cores_.size() && !thread_.stopping(); ++i) {
    try {
      look_at(i, now);
    } catch (const std::bad_alloc&) {
    }
  }
}

void stall_watch::look_at(std::size_t index, std::int64_t now_ns) {
  watched& w = *cores_[index];
  const std::uint64_t step = w.which->steps();
  if (step != w.step) {
    w.step = step;
    w.since_ns = now_ns;
    w.noted = false;
    return;
  }
  if (step % 2 == 0 || w.noted || now_ns - w.since_ns < threshold_ns_) return;
  w.noted = true;
  ++w.stalls;
  if (w.reported_ns != 0 && now_ns - w.reported_ns < between_reports_ns) {
    ++w.unreported;
    return;
  }
  w.reported_ns = now_ns;
  report(index, now_ns - w.since_ns);
}

// False when the core has gone on meanwhile, or does not answer.
bool stall_watch::take_snapshot(watched& of) const noexcept {
  using state = stall_snapshot::state;
  of.snapshot.now.store(state::wanted, std::memory_order_release);
  const std::int64_t limit = sys::monotonic_ns() + answer_ns;
  if (sys::signal_thread(of.which->thread(), options_.signal) == 0) {
    while (of.snapshot.now.load(std::memory_order_acquire) != state::filled && sys::monotonic_ns() < limit) {
      thread_.sleep(1'000'000);
    }
  }
  state wanted = state::wanted;
  const bool unanswered =
      of.snapshot.now.compare_exchange_strong(wanted, state::idle, std::memory_order_acq_rel);
  return !unanswered && of.which->steps() == of.step;
}

void stall_watch::report(std::size_t index, std::int64_t duration_ns) {
  watched& w = *cores_[index];
  stall told;
  told.core = index;
  told.duration = std::chrono::nanoseconds(duration_ns);
  told.unreported = std::exchange(w.unreported, 0);
  if (take_snapshot(w)) {
    const stall_snapshot& seen = w.snapshot;
    told.in_handler = seen.in_handler;
    if (seen.in_handler) {
      told.listener = seen.listener;
      told.peer = seen.peer;
      told.connection = w.which->handle_of(seen.slot, seen.generation);
    }
    told.frames.assign(seen.frames.begin(), seen.frames.begin() + seen.depth);
    if (char** names = ::backtrace_symbols(seen.frames.data(), seen.depth)) {
      told.symbols.assign(names, names + seen.depth);
      std::free(names);
    }
  }
  if (options_.on_stall) {
    options_.on_stall(told);
    return;
  }
  std::fprintf(stderr, "percore: core %zu has been kept for %lld ms by %s\n", told.core,
               static_cast<long long>(duration_ns / 1'000'000),
               told.in_handler ? ("the handler of " + told.peer.to_string() + " (listener " +
                                  std::to_string(told.listener) + ")")
                                     .c_str()
                               : "something that is no handler");
  for (const std::string& frame : told.symbols) std::fprintf(stderr, "percore:   %s\n", frame.c_str());
}

}  // namespace percore::engine
