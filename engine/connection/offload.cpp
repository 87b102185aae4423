// Calls on helper threads: offload and offload_detached.

#include <percore/offload.hpp>

#include <algorithm>
#include <memory>
#include <utility>

#include "engine/connection/slice.hpp"
#include "engine/connection/slot.hpp"

namespace percore {

using engine::core_resources;
using engine::slot;
using helpers::pool;

detail::offload_piece::~offload_piece() {
  PERCORE_ASSERT(!is_with_helpers(), "a coroutine is destroyed while a helper works for it");
}

bool detail::offload_piece::submit(std::coroutine_handle<> waiter) noexcept {
  if (engine::slice_of_thread != nullptr) return submit_away(*engine::slice_of_thread, waiter);
  core_resources* core = engine::core_of_thread;
  PERCORE_ASSERT(core != nullptr, "offload on a thread that is no core's");
  waiter_ = waiter;
  slot* s = core->running;
  if (bound_to_ != nullptr && slot::of(*bound_to_).dialled) bound_to_ = s;  // whose handler it is that waits
  if (bound_to_ != nullptr) {
    s = &slot::of(*bound_to_);
    s->check_running();
  }
  owner = s;
  generation_ = s == nullptr ? 0 : s->generation;
  if (s != nullptr) {
    PERCORE_ASSERT(bound_to_ == nullptr || s->piece == nullptr,
                   "a connection's handler offloads in two coroutines at once");
    if (s->piece == nullptr) {
      waits_ = s;
      s->piece = this;
    }
    if (bound_to_ != nullptr && s->ended) {
      answer_soon(*core, s->end_reason);
      return true;
    }
  }
  deliver = [](completion& done, core_resources& on) {
    auto& self = static_cast<offload_piece&>(static_cast<job&>(done));
    if (self.taken_back) {
      self.error_ = static_cast<int>(errc::shutting_down);
    } else {
      on.helpers->delivered(on.now_ns);
    }
    self.go_on(on);
  };
  // A turn's wait is the least: a handler that goes on offloading in vain must not keep its core.
  const pool::submission submitted = core->helpers->submit(*this, core->now_ns);
  if (submitted == pool::submission::refused) {
    answer_soon(*core, static_cast<int>(core->helpers->ended() ? errc::shutting_down : errc::queue_full));
    return true;
  }
  place_ = place::with_helpers;
  if (timeout_.count() > 0) {
    constexpr std::chrono::nanoseconds longest = std::chrono::hours(24 * 365 * 100);
    deadline_.fire = [](timer_node& node) {
      offload_piece& self = *static_cast<deadline&>(node).piece;
      core_resources& on = *engine::core_of_thread;
      self.cancelled_.store(true, std::memory_order_relaxed);
      if (self.is_with_helpers() && on.helpers->withdraw(self)) {
        self.error_ = static_cast<int>(errc::timed_out);
        self.go_on(on);
      }
    };
    core->timers.insert(
        deadline_, loop::timer_wheel::tick_from(sys::monotonic_ns() + std::min(timeout_, longest).count()));
  }
  // One that is not begun at once may wait long, and should hear of its peer's reset.
  if (bound_to_ != nullptr && s->fd >= 0 && submitted != pool::submission::handed)
    (void)s->ensure_registered();
  return true;
}

// From a slice that runs away from its core. One that has a helper to itself already makes the call at once.
bool detail::offload_piece::submit_away(engine::slice_job& slice, std::coroutine_handle<> waiter) noexcept {
  slot& s = *slice.owner;
  PERCORE_ASSERT(bound_to_ == nullptr || &slot::of(*bound_to_) == &s,
                 "an operation of a connection is awaited by another's handler");
  if (slice.on != nullptr && !(bound_to_ != nullptr && s.ended)) {
    work(*this, *slice.on);
    return false;
  }
  s.request(
      [](void* self, std::coroutine_handle<> resumed) noexcept {
        return !static_cast<offload_piece*>(self)->submit(resumed);
      },
      this, waiter);
  return true;
}

// This, for a list of the core's whose turn lets the waiter go on.
detail::ready_node& detail::offload_piece::go_on_node() noexcept {
  run = [](ready_node& node) {
    static_cast<offload_piece&>(static_cast<job&>(node)).go_on(*engine::core_of_thread);
  };
  return *this;
}

void detail::offload_piece::answer_soon(core_resources& core, int reason) noexcept {
  place_ = place::answered;
  error_ = reason;
  core.ready.push_back(go_on_node());
}

void detail::offload_piece::go_on(core_resources& core) noexcept {
  deadline_.unlink();
  if (owner != nullptr && owner->generation == generation_ && owner->is_away()) {  // with another coroutine's slice
    place_ = place::answered;
    owner->put_off(go_on_node());
    return;
  }
  place_ = place::nowhere;
  if (waits_ == nullptr) {
    core.resume_lone(waiter_);
    return;
  }
  waits_->piece_is_back(waiter_);
}

std::error_code detail::offload_piece::why_not() const noexcept {
  if (bound_to_ != nullptr) slot::of(*bound_to_).fail(error_);
  if (error_ > 0) return static_cast<errc>(error_);
  return {-error_, std::system_category()};
}

bool detail::submit_detached(std::unique_ptr<detached_job> call, bool may_wait) {
  if (engine::slice_of_thread != nullptr) {
    engine::slice_of_thread->rare().calls.push_back(std::move(call));
    return true;
  }
  core_resources* core = engine::core_of_thread;
  PERCORE_ASSERT(core != nullptr, "offload_detached on a thread that is no core's");
  call->deliver = [](completion& done, core_resources& on) {
    const std::unique_ptr<detached_job> ended(static_cast<detached_job*>(static_cast<job*>(&done)));
    if (!ended->taken_back) on.helpers->delivered(on.now_ns);
    if (ended->exception) on.report(std::exchange(ended->exception, nullptr));
  };
  // Nobody waits for it, so it does not wait either, unless it was promised to run.
  const auto policy = may_wait ? helpers::admission::wait : helpers::admission::refuse;
  if (core->helpers->submit(*call, core->now_ns, policy) == pool::submission::refused) return false;
  (void)call.release();
  return true;
}

namespace engine {

void slot::interrupt_piece() noexcept {
  if (!piece->is_with_helpers() || piece->bound_to_ == nullptr) return;
  piece->cancelled_.store(true, std::memory_order_relaxed);
  if (core->helpers->withdraw(*piece)) piece->answer_soon(*core, end_reason);
}

// The handler has returned; a coroutine that it has begun and left may still wait. It is nobody's from here on.
void slot::leave_piece() noexcept {
  if (piece == nullptr) return;
  piece->waits_ = nullptr;
  piece->bound_to_ = nullptr;
  piece = nullptr;
}

bool slot::recall_piece() noexcept {
  using place = detail::offload_piece::place;
  piece->cancelled_.store(true, std::memory_order_relaxed);
  if (piece->is_with_helpers() && !core->helpers->withdraw(*piece)) return false;
  piece->unlink();
  piece->place_ = place::nowhere;
  piece->deadline_.unlink();
  piece = nullptr;
  return true;
}

bool slot::answer_piece(int reason) noexcept {
  detail::offload_piece& recalled = *piece;
  if (!recall_piece()) return false;
  recalled.error_ = reason;
  resume(recalled.waiter_);
  return true;
}

void slot::piece_is_back(std::coroutine_handle<> waiter) noexcept {
  piece = nullptr;
  const slot_doom doom = std::exchange(doomed, slot_doom::none);
  if (doom == slot_doom::halt) {
    halt();
    return;
  }
  const std::uint32_t seen = generation;
  if (ended) fail(end_reason);
  resume(waiter);
  if (doom != slot_doom::resume || generation != seen) return;
  if (is_away()) {
    doomed = slot_doom::last_words;
  } else {
    halt();
  }
}

void slot::look_for_reset() noexcept {
  int error = 0;
  socklen_t size = sizeof error;
  if (fd >= 0 && sys::getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) == 0 && error != 0)
    io_failed(-error);
}

}  // namespace engine

}  // namespace percore
