// when_all and when_any: waiting for several tasks, and ending those that have lost.
//
// A task that waits is the first of a chain of tasks that await each other, and the coroutine at its end is the one that some
// operation is to resume. So whoever wants to end the task looks which operation knows that coroutine: one of the handler's
// connection or of those that it has dialled. Operations pay nothing for it.

#include <percore/when.hpp>

#include <utility>

#include "engine/connection/outgoing.hpp"

namespace percore {

namespace {

constexpr std::int64_t retry_ns = 1'000'000;  // for what cannot be cut short

}  // namespace

struct detail::fork_access {
  using core_resources = engine::core_resources;
  using slot = engine::slot;

  static void begin(fork& self, core_resources& core) noexcept {
    static_cast<cancel_node&>(self).run = [](ready_node& node) {
      step(static_cast<fork&>(static_cast<cancel_node&>(node)), *engine::core_of_thread);
    };
    static_cast<retry_node&>(self).fire = [](timer_node& node) {
      step(static_cast<fork&>(static_cast<retry_node&>(node)), *engine::core_of_thread);
    };
    core.ready.push_back(static_cast<cancel_node&>(self));
  }

  // Cuts one wait short. Whoever it was may go on now and end all of this: nothing is touched afterwards.
  static void step(fork& self, core_resources& core) noexcept {
    static_cast<cancel_node&>(self).unlink();
    static_cast<retry_node&>(self).unlink();
    for (const branch& one : self.branches_) {
      if (!one.runs()) continue;
      const std::coroutine_handle<> last = end_of_chain(one);
      slot* found = find(core, self.where_, last);
      if (found == nullptr) continue;
      core.ready.push_back(static_cast<cancel_node&>(self));  // for the next one, or this one's next wait
      cut_short(*found, last);
      return;
    }
    core.timers.insert(static_cast<retry_node&>(self), loop::timer_wheel::tick_from(sys::monotonic_ns() + retry_ns));
  }

  // The coroutine that is resumed when what a task waits for has happened; of several tasks that it waits for, one.
  static std::coroutine_handle<> end_of_chain(const branch& from) noexcept {
    promise_base* last = from.promise;
    while (const std::uintptr_t awaited = last->waits_for()) {
      if ((awaited & promise_base::is_fork) == 0) {
        last = reinterpret_cast<promise_base*>(awaited);
        continue;
      }
      const fork& inner = *reinterpret_cast<const fork*>(awaited & ~promise_base::is_fork);
      promise_base* next = nullptr;
      for (const branch& one : inner.branches_) {
        if (one.runs()) next = one.promise;
      }
      if (next == nullptr) break;
      last = next;
    }
    // As in promise_base::final_awaiter.
    return std::coroutine_handle<promise_base>::from_promise(*last);
  }

  static slot* find(core_resources& core, slot* host, std::coroutine_handle<> last) noexcept {
    slot* found = nullptr;
    const auto look = [&](slot& s) {
      if (s.reader == last || s.writer == last || s.sleeps_in(last) || s.offloads_in(last)) found = &s;
    };
    if (host != nullptr) {
      look(*host);
      host->for_each_hosted([&](engine::outgoing_state& state) { look(*state.self); });
    } else {
      core.outgoing.for_each([&](link& node) { look(*static_cast<engine::outgoing_state&>(node).self); });
    }
    return found;
  }

  static void cut_short(slot& s, std::coroutine_handle<> last) noexcept {
    constexpr int cancelled = static_cast<int>(errc::cancelled);
    if (s.reader == last && s.reading != engine::read_kind::start_tls) {
      s.unqueue_reader();
      s.fail_reader(cancelled);
    } else if (s.reader == last || s.writer == last) {
      s.resetting = true;  // cut in its midst
      s.end_with(cancelled);
    } else if (s.sleeps_in(last)) {
      s.resume_sleeper();
    } else {
      (void)s.answer_piece(cancelled);
    }
  }
};

void detail::fork::begin_to_cancel() noexcept {
  engine::core_resources& core = *engine::core_of_thread;
  where_ = core.running;
  fork_access::begin(*this, core);
}

bool detail::to_the_core::await_ready() const noexcept { return engine::at_home().await_ready(); }

bool detail::to_the_core::await_suspend(std::coroutine_handle<> waiter) const noexcept {
  return engine::at_home().await_suspend(waiter);
}

void detail::report_unheard(std::exception_ptr exception) noexcept {
  engine::core_of_thread->report(std::move(exception));
}

// One that a helper has begun is only told that nobody needs it any more.
bool engine::slot::offloads_in(std::coroutine_handle<> waiter) const noexcept {
  if (piece == nullptr || piece->waiter_ != waiter) return false;
  if (!piece->is_with_helpers() || piece->begun_ns.load(std::memory_order_relaxed) == 0) return true;
  piece->cancelled_.store(true, std::memory_order_relaxed);
  return false;
}

}  // namespace percore
