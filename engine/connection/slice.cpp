// Slices that run away from their core: leaving, coming back, and what happens to the connection meanwhile.

#include "engine/connection/slice.hpp"

#include <algorithm>
#include <exception>
#include <new>
#include <stdexcept>
#include <utility>

#include "engine/connection/slot.hpp"

namespace percore::engine {

namespace {

constexpr std::size_t most_put_off_messages = 4096;

// Kept by a core for its next connections, about 1 kB each.
constexpr std::size_t most_idle = 1024;
// What one keeps for its next try_write, while it waits and when it is idle.
constexpr std::size_t most_kept_bytes = 4096;

}  // namespace

constinit thread_local slice_job* slice_of_thread = nullptr;

slice_job::slice_job() noexcept {
  always_runs = true;
  work = [](detail::job& base, helpers::helper& self) noexcept {
    auto& slice = static_cast<slice_job&>(base);
    const std::int64_t begun = slice.begun_ns.load(std::memory_order_relaxed);
    sys::lost_time::prepare(begun);
    slice.on = &self;
    slice.run();
    slice_of_thread = nullptr;
    slice.on = nullptr;
    const std::int64_t now = sys::monotonic_ns();
    slice.ran_ns = now - begun;
    if (slice.ran_ns > slice.owner->listener->spill_budget_ns) slice.ran_ns = sys::lost_time::without(slice.ran_ns, now);
  };
  deliver = [](detail::completion& done, core_resources& core) {
    auto& back = static_cast<slice_job&>(static_cast<detail::job&>(done));
    if (back.where == place::with_helpers && !back.taken_back) core.helpers->delivered(core.now_ns);
    back.owner->slice_is_back();
  };
}

[[gnu::always_inline]] inline slice_job* slice_job::take(slot& owner, core_resources& core) noexcept {
  slice_job* taken = core.idle_slices;
  if (taken != nullptr) [[likely]] {
    core.idle_slices = static_cast<slice_job*>(static_cast<detail::job*>(taken->next_completed));
    --core.idle_slice_count;
  } else {
    taken = new (std::nothrow) slice_job();
    if (taken == nullptr) return nullptr;
  }
  taken->owner = &owner;
  return taken;
}

[[gnu::always_inline]] inline void slice_job::give_back_clean(slice_job* unused, core_resources& core) noexcept {
  if (core.idle_slice_count >= most_idle) [[unlikely]] {
    discard(unused);
    return;
  }
  unused->next_completed = core.idle_slices;
  core.idle_slices = unused;
  ++core.idle_slice_count;
}

[[gnu::cold, gnu::noinline]] void slice_job::discard(slice_job* unused) noexcept { delete unused; }

void slice_job::give_back(slice_job* unused, core_resources& core) noexcept {
  unused->request_count = unused->runnable_count = 0;
  unused->ending = unused->write_requested = unused->timeouts_changed = unused->view_released = false;
  unused->looked_for = unused->deadline = unused->anything_happened = unused->anything_rare = false;
  unused->events = unused->operations = 0;
  unused->ran_ns = 0;
  unused->kept.clear();
  unused->calls.clear();
  unused->messages = std::vector<detail::message>();
  give_back_clean(unused, core);
}

void slice_job::free_idle(core_resources& core) noexcept {
  while (slice_job* idle = core.idle_slices) {
    core.idle_slices = static_cast<slice_job*>(static_cast<detail::job*>(idle->next_completed));
    delete idle;
  }
}

// Leaving ---------------------------------------------------------------------------------------------------

// False: there is no memory for it.
bool slot::leave_core(std::coroutine_handle<> handle) noexcept {
  if (slice == nullptr) slice = slice_job::take(*this, *core);
  if (slice == nullptr) [[unlikely]] return false;
  wait_for_the_loop(handle);
  return true;
}

[[gnu::always_inline]] inline void slot::wait_for_the_loop(std::coroutine_handle<> handle) noexcept {
  slice_job& leaving = *slice;
  leaving.next = handle;
  leaving.where = slice_job::place::on_core;
  phase = slot_phase::away;
  operations = away_operations;
  core->slices.push_back(leaving);
}

// The usual slices of each home take few steps.
void slot::resume_detachable(std::coroutine_handle<> handle) noexcept {
  core_resources& on = *core;
  if (slices == slice_home::timed && !on.timing.singly() && slice == nullptr) [[likely]] {
    if (on.timing.full()) [[unlikely]] {
      look_and_run(handle);
    } else {
      on.timing.count();
      run_here(handle);
    }
    return;
  }
  if (slice != nullptr || slices != slice_home::open || core->idle_slices == nullptr) [[unlikely]] {
    resume_anywhere(handle);
    return;
  }
  slice = slice_job::take(*this, *core);
  wait_for_the_loop(handle);
}

// Not part of the above, which then needs no frame of its own.
[[gnu::noinline]] void slot::look_and_run(std::coroutine_handle<> handle) noexcept {
  core->count_slice();
  run_here(handle);
}

void slot::resume_anywhere(std::coroutine_handle<> handle) noexcept {
  if (slice != nullptr) {
    slice->operations = 0;
    if (slice->settling) {
      slice->add_runnable(handle);
      return;
    }
    if (slices == slice_home::timed && !core->timing.singly() && slice->is_empty()) {
      slice_job::give_back(std::exchange(slice, nullptr), *core);  // short again: the usual way from here on
    }
  }
  go_on(handle);
}

// Where the handler runs on: with the helpers, here but away, or here.
void slot::go_on(std::coroutine_handle<> handle) noexcept {
  core_resources& on = *core;
  if (slices == slice_home::core) {
    run_here(handle);
  } else if (slices_are_spilled() && go_to_helpers(handle)) {
    ++on.counters.spilled;
  } else if (on.open_to_takeover && leave_core(handle)) {
    // It runs when the loop comes to it.
  } else if (listener->spill != spilling::when_slow) {
    run_here(handle);
  } else if (on.timing.singly()) {
    run_measured(handle);
  } else {
    on.count_slice();
    run_here(handle);
  }
}

bool slot::slices_are_spilled() const noexcept {
  if (listener->spill == spilling::never) return false;
  return listener->spill == spilling::always || (core->timing.singly() && core->listener_is_slow(listener->index));
}

void slot::run_measured(std::coroutine_handle<> handle) noexcept {
  core_resources& on = *core;
  const listener_config& its = *listener;
  const std::int64_t begun = on.beginning_of_slice();
  run_here(handle);
  const std::int64_t ran = on.end_of_slice(begun, its.spill_budget_ns);
  on.note_slice(its.index, ran, on.measured_at_ns);
}

// False: there is no memory for it, or no helper will come any more.
bool slot::go_to_helpers(std::coroutine_handle<> handle) noexcept {
  if (slice == nullptr) slice = slice_job::take(*this, *core);
  if (slice == nullptr) return false;
  slice_job& leaving = *slice;
  leaving.next = handle;
  leaving.where = slice_job::place::with_helpers;
  phase = slot_phase::away;
  operations = away_operations;
  // However full the queue is: run here, it would keep others waiting that have nothing to do with it.
  if (core->helpers->submit(leaving, core->now_ns, helpers::admission::always) != helpers::pool::submission::refused) {
    return true;
  }
  leaving.where = slice_job::place::nowhere;
  phase = slot_phase::running;
  operations = leaving.operations;
  return false;
}

// What happens meanwhile -------------------------------------------------------------------------------------

void slot::note_while_away(std::uint32_t events) noexcept {
  slice->note().events |= events;
  if (events == 0) slice->looked_for = true;
}

void slot::put_off(detail::timer_node& node) noexcept { slice->note().timers_due.push_back(node); }

void slot::put_off(detail::ready_node& node) noexcept { slice->note().put_off.push_back(node); }

void slot::put_off(detail::message&& message) {
  if (slice->messages.size() >= most_put_off_messages) {
    throw std::length_error("percore: too much is posted to a connection whose handler does not come back");
  }
  slice->note().messages.push_back(std::move(message));
}

// True: nobody has begun with it. It is then the first of what can go on.
bool slot::take_back_slice() noexcept {
  slice_job& job = *slice;
  if (job.where == slice_job::place::on_core) {
    job.unlink();
  } else if (job.where != slice_job::place::with_helpers || !core->helpers->withdraw(job)) {
    return false;
  }
  job.where = slice_job::place::nowhere;
  phase = slot_phase::running;
  operations = job.operations;
  std::copy_backward(job.runnable.begin(), job.runnable.begin() + job.runnable_count,
                     job.runnable.begin() + job.runnable_count + 1);
  job.runnable[0] = job.next;
  ++job.runnable_count;
  let_others_on();
  return true;
}

// What was posted to a connection that is no more is told so.
void slot::tell_late() noexcept {
  try {
    for (detail::message& message : slice->messages) core->late_messages.push_back(std::move(message));
  } catch (const std::bad_alloc&) {
    core->report(std::current_exception());
  }
  slice->messages.clear();
}

void slot::end_slices() noexcept {
  tell_late();
  let_others_on();
  slice_job::give_back(std::exchange(slice, nullptr), *core);
}

// Other coroutines of the connection, which could go on but for the slice.
void slot::let_others_on() noexcept {
  core->ready.take(slice->put_off);
  while (detail::timer_node* due = slice->timers_due.pop_front()) core->timers.insert(*due, 0);  // at the next tick
}

// Coming back -------------------------------------------------------------------------------------------------

// The usual slice of a handler that answers a request. It leaves nothing behind, so the next slice of the core has its job,
// and the memory of few jobs stays in the cache.
bool slot::take_up_reading() noexcept {
  slice_job& job = *slice;
  core_resources& on = *core;
  const bool anything_else = job.anything_rare | job.anything_happened | (job.ran_ns != 0) | (job.runnable_count != 0) |
                             (doomed != slot_doom::none) | fin_pending | on.stopping;
  if (anything_else || job.request_count != 1 || job.requests[0].start != read_on || begin != end || root.done()) return false;
  phase = slot_phase::running;
  job.request_count = 0;
  job.view_released = false;  // reading releases it
  if (job.bytes_sent != 0) {
    on.counters.bytes_sent.add(std::exchange(job.bytes_sent, 0));
    note_activity();
  }
  const std::coroutine_handle<> waiter = job.requests[0].waiter;
  if (!wait_to_read(waiter)) [[unlikely]] {
    operations = job.operations + (operations - away_operations);
    if (read_on(this, waiter)) {
      on.running = nullptr;
      job.operations = operations;
      job.add_runnable(waiter);
      go_on_with_runnable();
      return true;
    }
  }
  on.running = nullptr;
  operations = job.operations = 0;  // what it goes on with begins anew
  slice_job::give_back_clean(std::exchange(slice, nullptr), on);
  return true;
}

// What read_on does when there is nothing to read, in few steps. False: it must look.
bool slot::wait_to_read(std::coroutine_handle<> waiter) noexcept {
  if (readable | ended | end_seen | !registered | (reading != read_kind::none)) return false;
  reading = read_kind::some;
  view_size = 0;
  if (buffer != nullptr) {
    core->buffers.give_back(std::exchange(buffer, nullptr), core->ready);
    begin = end = 0;
  }
  reader = waiter;
  arm_for_read();
  return true;
}

void slot::slice_is_back() noexcept {
  slice_job& job = *slice;
  const slot_doom doom = std::exchange(doomed, slot_doom::none);
  phase = slot_phase::running;
  job.where = slice_job::place::nowhere;
  note_slice(std::exchange(job.ran_ns, 0));
  if (doom == slot_doom::halt) {
    halt();
    return;
  }
  const std::uint32_t seen = generation;
  const bool returned = root.done();
  if (fin_pending && !returned) {  // as in run_here
    fin_pending = false;
    if (fd >= 0) (void)sys::shutdown(fd, SHUT_WR);
  }
  if (doom == slot_doom::resume) {
    resetting = true;
    end_with(static_cast<int>(errc::shutting_down));
  }
  job.settling = true;
  settle_slice();
  if (!returned && (job.anything_happened || core->stopping)) note_what_happened();
  job.settling = false;
  if (returned) {
    const std::uint32_t events = job.events;
    const bool deadline = job.deadline;
    tell_late();
    if (job.runnable_count == 0) {
      handler_returned();
    } else {
      go_on_with_runnable();
    }
    if (generation != seen || is_away()) return;
    if (events != 0) on_event(events);  // what is unsent may wait for just that
    if (generation == seen && deadline) on_deadline();
    return;
  }
  if (doom == slot_doom::resume) {
    hear_last_words();
    return;
  }
  if (job.runnable_count != 0) go_on_with_runnable();
  if (doom != slot_doom::last_words || generation != seen) return;
  if (is_away()) {
    doomed = slot_doom::last_words;
  } else {
    halt();
  }
}

void slot::note_slice(std::int64_t ran_ns) noexcept {
  slice_job& job = *slice;
  if (job.bytes_sent != 0) {
    core->counters.bytes_sent.add(std::exchange(job.bytes_sent, 0));
    note_activity();
  }
  if (ran_ns != 0 && listener->spill == spilling::when_slow) core->note_slice(listener->index, ran_ns, core->now_ns);
}

void slot::settle_rare() noexcept {
  slice_job& job = *slice;
  core->counters.frames_on_heap.add(std::exchange(job.frames_on_heap, 0));
  core->counters.contexts_on_heap.add(std::exchange(job.contexts_on_heap, 0));
  if (std::exchange(job.timeouts_changed, false)) timeouts_changed();
  if (!job.kept.empty()) {
    (void)try_write_now(job.kept);
    job.kept.clear();
  }
  if (job.kept.capacity() > most_kept_bytes) job.kept = std::vector<std::byte>();
  for (auto& call : job.calls) (void)detail::submit_detached(std::move(call), true);
  job.calls.clear();
}

// Does what the slice has asked for.
void slot::settle_slice() noexcept {
  slice_job& job = *slice;
  if (std::exchange(job.view_released, false) && begin == end) drop_buffer();
  if (std::exchange(job.anything_rare, false)) settle_rare();
  job.ending = false;
  job.write_requested = false;
  core->running = this;
  operations = job.operations + (operations - away_operations);
  const std::size_t count = std::exchange(job.request_count, 0);
  for (std::size_t i = 0; i < count; ++i) {
    const slice_job::request wanted = job.requests[i];
    if (wanted.start(wanted.what, wanted.waiter) && wanted.waiter) job.add_runnable(wanted.waiter);
  }
  job.operations = operations;
  core->running = nullptr;
}

void slot::note_what_happened() noexcept {
  slice_job& job = *slice;
  job.anything_happened = false;
  if (const std::uint32_t events = std::exchange(job.events, 0)) on_event(events);
  if (std::exchange(job.looked_for, false)) wake_soon();
  if (std::exchange(job.deadline, false)) on_deadline();
  let_others_on();
  std::vector<detail::message> posted = std::exchange(job.messages, {});
  for (detail::message& message : posted) core->run_message(message);
  if (core->stopping) begin_drain();  // it may have begun meanwhile
}

void slot::go_on_with_runnable() noexcept {
  const std::uint32_t seen = generation;
  while (slice->runnable_count > 0) {
    slice_job& job = *slice;
    const std::coroutine_handle<> next = job.runnable[0];
    std::copy(job.runnable.begin() + 1, job.runnable.begin() + job.runnable_count, job.runnable.begin());
    --job.runnable_count;
    operations = job.operations;
    go_on(next);
    if (generation != seen || is_away() || !root) return;
  }
  if (root && root.done()) handler_returned();
}

}  // namespace percore::engine
