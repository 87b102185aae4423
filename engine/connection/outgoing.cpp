// Connections that were dialled: they have an owner instead of a handler, and coroutines of others wait for their
// operations.

#include "engine/connection/outgoing.hpp"

#include <utility>

#include "engine/connection/slice.hpp"

namespace percore {

void outgoing::check_thread() noexcept {
  PERCORE_ASSERT(engine::slice_of_thread == nullptr,
                 "an outgoing connection is used away from its core: co_await percore::stay_on_core() first");
}

void outgoing::take(outgoing& other) noexcept {
  connection_ = std::exchange(other.connection_, nullptr);
  error_ = other.error_;
  reason_ = other.reason_;
  if (connection_ == nullptr) return;
  check_thread();
  engine::slot::of(*connection_).out().owner = this;
}

void outgoing::close() noexcept {
  if (connection_ == nullptr) return;
  check_thread();
  engine::slot::of(*std::exchange(connection_, nullptr)).let_go();
}

namespace engine {

outgoing_state& slot::out() const noexcept {
  // Made as one that can be changed: see open_outgoing.
  return const_cast<outgoing_state&>(static_cast<const outgoing_state&>(*listener));
}

void slot::open_outgoing(int connected_fd, const percore::peer_address& to, outgoing_state& state,
                         outgoing& owner) noexcept {
  open(connected_fd, to, state, false);
  dialled = true;
  relayed = false;
  state.self = this;
  state.owner = &owner;
  core->outgoing.push_back(state);
  ++core->outgoing_count;
  owner.connection_ = this;
}

// An operation is about to be waited for, in whatever runs now.
void slot::note_host() noexcept {
  check_use(*this);
  PERCORE_ASSERT(dialled, "an operation of a connection is awaited by another's handler");
  const host_ref waiter = host_ref::of_running(*core);
  PERCORE_ASSERT(out().host == waiter || !is_waited_for() || !out().host.alive(),
                 "operations of one connection are awaited in two handlers at once");
  if (out().host == waiter) return;
  leave_host();
  out().host = waiter;
  if (waiter.where == nullptr) return;
  outgoing_state*& first = core->by_host[waiter.where->index % core_resources::host_buckets];
  out().next_hosted = std::exchange(first, &out());
}

void slot::leave_host() noexcept {
  const host_ref host = std::exchange(out().host, host_ref());
  if (host.where == nullptr) return;
  outgoing_state** next = &core->by_host[host.where->index % core_resources::host_buckets];
  while (*next != &out()) next = &(*next)->next_hosted;
  *next = out().next_hosted;
}

void slot::resume_host(std::coroutine_handle<> handle) noexcept {
  operations = 0;
  const host_ref host = out().host;  // a copy: this connection may be gone with the first step
  host.resume(*core, handle);
}

void slot::forget_waiters() noexcept {
  if (writing) resetting = true;  // cut in its midst
  take_back_lent();
  reader = writer = {};
  reading = read_kind::none;
  writing = postponed = starved = false;
  sleeper = nullptr;
  unqueue();
}

bool at_home::await_ready() const noexcept {
  if (slice_of_thread != nullptr) return false;
  // Its slices so far were not away: from here on none is.
  if (core_of_thread != nullptr && core_of_thread->running != nullptr) core_of_thread->running->slices = slice_home::core;
  return true;
}

bool at_home::await_suspend(std::coroutine_handle<> waiter) const noexcept {
  slice_of_thread->owner->request(
      [](void*, std::coroutine_handle<>) noexcept {
        core_of_thread->running->slices = slice_home::core;
        return true;
      },
      nullptr, waiter);
  return true;
}

// The handler's frames are about to be destroyed.
void slot::forget_hosted_waits() noexcept {
  for_each_hosted([](outgoing_state& state) { state.self->forget_waiters(); });
}

void slot::let_go() noexcept {
  disown();
  forget_waiters();
  flush_or_close();
}

void slot::disown() noexcept {
  outgoing_state& state = out();
  if (state.owner == nullptr) return;
  state.owner->connection_ = nullptr;
  state.owner = nullptr;
  state.unlink();
  --core->outgoing_count;
}

// A halt, or the end of the grace. Who waits in a handler is halted with it; who waits elsewhere hears of it. The slot
// stays until its owner goes.
void slot::halt_outgoing() noexcept {
  const std::uint32_t seen = generation;
  resetting = true;
  end_with(static_cast<int>(errc::shutting_down));
  if (!out().host.alive()) {
    unqueue();
    run_ready();
    if (generation == seen && sleeper != nullptr) resume_sleeper();
  }
  if (generation == seen) close_descriptor();
}

void slot::release_outgoing() noexcept {
  disown();
  leave_host();
  dialled = relayed = false;
  delete &out();
  listener = nullptr;
}

void slot::take_from_owner() noexcept {
  resetting = true;
  forget_waiters();
  close_descriptor();
  recycle();
}

void end_outgoing(core_resources& core) noexcept {
  base::intrusive_list<detail::link> left;
  left.take(core.outgoing);
  while (detail::link* node = left.pop_front()) {
    core.outgoing.push_back(*node);
    static_cast<outgoing_state&>(*node).self->halt_outgoing();
  }
  core.outgoing.for_each([](detail::link& node) { static_cast<outgoing_state&>(node).self->forget_waiters(); });
  end_spawned(core);
  while (detail::link* node = core.outgoing.pop_front()) static_cast<outgoing_state&>(*node).self->take_from_owner();
}

}  // namespace engine

}  // namespace percore
