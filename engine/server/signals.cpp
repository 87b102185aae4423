#include "engine/server/signals.hpp"

#include <array>
#include <mutex>
#include <stdexcept>
#include <system_error>

#include "engine/sys/calls.hpp"

namespace percore::engine {

namespace {

// What the signal handler may touch: lock-free atomics only (signal-safety(7)).
struct watcher {
  std::atomic<const loop::wakeup*> woken{nullptr};
  std::atomic<unsigned> received{0};
};
static_assert(std::atomic<const loop::wakeup*>::is_always_lock_free && std::atomic<unsigned>::is_always_lock_free);

std::array<watcher, 64> watchers;
// Handlers at work on another thread while a watcher leaves: it waits for them, since they may hold its wake-up.
std::atomic<unsigned> handling{0};

std::mutex install_mutex;
std::size_t installed = 0;
constexpr std::array caught = {SIGINT, SIGTERM};
std::array<struct sigaction, caught.size()> previous;

void on_signal(int) {
  const int saved = errno;
  handling.fetch_add(1, std::memory_order_seq_cst);
  for (watcher& w : watchers) {
    if (const loop::wakeup* woken = w.woken.load(std::memory_order_seq_cst)) {
      w.received.fetch_add(1, std::memory_order_relaxed);
      woken->wake();
    }
  }
  handling.fetch_sub(1, std::memory_order_seq_cst);
  errno = saved;
}

void restore(std::size_t count) noexcept {
  for (std::size_t i = 0; i < count; ++i) (void)sys::sigaction(caught[i], &previous[i], nullptr);
}

void install() {
  struct sigaction action {};
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESTART;
  sigemptyset(&action.sa_mask);
  for (std::size_t i = 0; i < caught.size(); ++i) {
    if (const int result = sys::sigaction(caught[i], &action, &previous[i]); result < 0) {
      restore(i);
      throw std::system_error(-result, std::system_category(), "percore: cannot catch signals");
    }
  }
}

}  // namespace

signal_watch::signal_watch(const loop::wakeup& woken) {
  std::lock_guard lock(install_mutex);
  while (place_ < watchers.size() && watchers[place_].woken.load() != nullptr) ++place_;
  if (place_ == watchers.size()) throw std::runtime_error("percore: more than 64 servers wait for signals");
  if (installed == 0) install();
  ++installed;
  watchers[place_].received.store(0);
  watchers[place_].woken.store(&woken);
}

signal_watch::~signal_watch() {
  std::lock_guard lock(install_mutex);
  if (--installed == 0) restore(caught.size());
  watchers[place_].woken.store(nullptr, std::memory_order_seq_cst);
  while (handling.load(std::memory_order_seq_cst) != 0) {
  }
}

unsigned signal_watch::received() const noexcept {
  return watchers[place_].received.load(std::memory_order_relaxed);
}

}  // namespace percore::engine
