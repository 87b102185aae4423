// From accept to reuse: opening a slot, running its handler, events, and what is done when it has returned.

#include <exception>
#include <new>
#include <utility>

#include "engine/connection/slice.hpp"
#include "engine/connection/zero_copy.hpp"

namespace percore {

namespace {

// Who runs next on this thread, named by a task that has finished (see promise_base::final_awaiter).
constinit thread_local std::coroutine_handle<> next_to_resume;

void resume_chain(std::coroutine_handle<> handle) {
  do {
    handle.resume();
    handle = std::exchange(next_to_resume, {});
  } while (handle);
}

}  // namespace

void detail::resume_next(std::coroutine_handle<> handle) noexcept { next_to_resume = handle; }

namespace engine {

constinit thread_local core_resources* core_of_thread = nullptr;

void resume_without_connection(std::coroutine_handle<> handle) { resume_chain(handle); }

void core_resources::resume_lone(std::coroutine_handle<> handle) {
  running = nullptr;
  const bool within = steps.get() % 2 != 0;  // of a posted function
  if (!within) ++steps;
  resume_chain(handle);
  if (!within) ++steps;
}

slot::slot(core_resources& owner, std::uint32_t number) noexcept : core(&owner), index(number) {
  deadline_timer.owner = this;
  deadline_timer.fire = [](detail::timer_node& node) { static_cast<slot_timer&>(node).owner->on_deadline(); };
  ready_node.owner = this;
  ready_node.run = [](detail::ready_node& node) { static_cast<slot_ready&>(node).owner->run_ready(); };
}

void slot::open(int accepted_fd, const percore::peer_address& from, const listener_config& config,
                bool try_first_read) noexcept {
  ++core->counters.active;
  fd = accepted_fd;
  phase = slot_phase::running;
  registered = false;
  readable = try_first_read;
  writable = true;
  short_read_drains = true;
  end_seen = ended = sending_done = fin_pending = fin_after_tail = closing = resetting = false;
  postponed = starved = writing = queued = false;
  doomed = slot_doom::none;
  slices = config.slices;
  slice = nullptr;
  reading = read_kind::none;
  begin = end = view_size = 0;
  target_done = 0;
  listener = &config;
  zero_copy_from = config.zero_copy_from_bytes;
  indirect = zero_copy_from != 0;
  start_ns = last_activity_ns = core->now_ns;
  read_deadline_ns = write_deadline_ns = 0;
  read_timeout_ms = config.read_timeout_ms;
  write_timeout_ms = config.write_timeout_ms;
  idle_timeout_ms = config.idle_timeout_ms;
  lifetime_timeout_ms = config.lifetime_timeout_ms;
  error_value = end_reason = 0;
  peer = from;
  sleeper = nullptr;
  arena.reset(arena_memory(), core->slots.slot_bytes() - sizeof(slot));
  timeouts_changed();
}

void slot::start_handler() noexcept {
  task<> made;
  try {
    made = listener->proxy ? serve_proxied(*this, *listener) : listener->handler(*this);
  } catch (...) {  // a function that is no coroutine itself and throws before it has made one
    ++core->counters.accepted;
    core->report(std::current_exception());
    flush_or_close();
    return;
  }
  if (!made) {
    ++core->counters.refused_memory;
    resetting = true;
    flush_or_close();
    return;
  }
  ++core->counters.accepted;
  root = made.release();
  resume(root);
}

void slot::resume(std::coroutine_handle<> handle) noexcept {
  if (!root) [[unlikely]] {
    resume_host(handle);
    return;
  }
  operations = 0;
  if (slices == slice_home::core) [[likely]] {
    run_here(handle);
  } else {
    resume_detachable(handle);
  }
}

void slot::run_here(std::coroutine_handle<> handle) noexcept {
  core->running = this;
  ++core->steps;
  resume_chain(handle);
  ++core->steps;
  core->running = nullptr;
  if (root.done()) {
    handler_returned();
  } else if (fin_pending) {
    // write_last() was not the handler's last word: its FIN must not wait for what comes next.
    fin_pending = false;
    if (fd >= 0) (void)sys::shutdown(fd, SHUT_WR);
  }
}

void slot::handler_returned() noexcept {
  // Other coroutines that it has begun come first: what they wait for is done.
  if (slice != nullptr && slice->runnable_count != 0) return;
  if (auto& exception = root.promise().exception) core->report(std::exchange(exception, nullptr));
  std::exchange(root, {}).destroy();
  leave_piece();
  flush_or_close();
}

// The handler is gone. The slot lives on only as long as its tail can be sent.
void slot::flush_or_close() noexcept {
  if (encrypted && fd >= 0 && !resetting && !ended) say_goodbye(MSG_MORE);
  if (fd >= 0 && tail != nullptr && !resetting && (!ended || closing) && ensure_registered()) {
    if (phase != slot_phase::flushing) {
      phase = slot_phase::flushing;
      drop_buffer();
      unqueue();
      arm_for_write();
    }
    return;
  }
  close_descriptor();
  recycle();
}

void slot::close_descriptor() noexcept {
  drop_tail();
  if (fd < 0) return;
  if (lending != nullptr && lends()) [[unlikely]] {
    lending->close_later();  // when the write has ended, or in recycle()
    return;
  }
  if (piece != nullptr && doomed == slot_doom::none && piece->is_with_helpers()) {
    // A helper may know the number, which must not become another connection's: closed when the handler goes on.
    if (resetting) {
      sever();
    } else {
      (void)sys::shutdown(fd, SHUT_RDWR);
    }
    return;
  }
  if (resetting) {
    const linger abort{1, 0};  // tcp(7), socket(7): close sends a RST and drops what is unsent
    (void)sys::setsockopt(fd, SOL_SOCKET, SO_LINGER, &abort, sizeof abort);
  }
  (void)sys::close(std::exchange(fd, -1));
}

void slot::recycle() noexcept {
  ended = true;  // for what the destructor of a context may still call
  reader = writer = {};
  writing = false;
  sleeper = nullptr;
  piece = nullptr;
  if (lending != nullptr) [[unlikely]] end_lending();
  if (context != nullptr) {
    destroy_context(context);
    if (context_on_heap) ::operator delete(context);
    context = nullptr;
  }
  PERCORE_ASSERT(arena.used() == 0, "a coroutine outlives the connection that its frame belongs to");
  close_session();
  drop_buffer();
  deadline_timer.unlink();
  ready_node.unlink();
  queued = false;
  if (slice != nullptr) [[unlikely]] end_slices();
  phase = slot_phase::free;
  if (dialled) release_outgoing();
  if (++generation == 0) generation = 1;
  --core->counters.active;
  core->slots.give_back(*this);
}

bool slot::ensure_registered() noexcept {
  if (registered) return true;
  if (fd < 0) return false;
  const int result = core->poller.add_connection(fd, token());
  if (result == 0) {
    registered = true;
    return true;
  }
  ++core->counters.refused_memory;  // ENOMEM, or ENOSPC for fs.epoll.max_user_watches (epoll(7))
  resetting = true;
  end_with(result);
  return false;
}

void slot::on_event(std::uint32_t events) noexcept {
  const std::uint32_t seen = generation;
  if (phase >= slot_phase::waiting) [[unlikely]] {
    if (is_away()) {
      note_while_away(events);
    } else {
      blocking_event();
    }
    return;
  }
  if (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR | EPOLLPRI)) {
    // EPOLLERR alone says only that lent memory comes back: an error of the socket comes with EPOLLHUP.
    if ((events & ~std::uint32_t{EPOLLERR | EPOLLIN | EPOLLOUT}) != 0 || !lends()) short_read_drains = false;
  }
  if (events & loop::poller::readable_events) readable = true;
  if (events & loop::poller::writable_events) {
    writable = true;
    if (tail != nullptr || writer) {
      continue_output();
      if (generation != seen) return;
      if (is_away()) {
        if (reader && readable) note_while_away(0);
        return;
      }
      if (tail == nullptr && closing) close_descriptor();
      if (phase == slot_phase::flushing) {
        flush_or_close();
        return;
      }
    }
  }
  if (reader) {
    if (readable && !queued) continue_read();
  } else if (phase == slot_phase::handshaking && !queued) {
    continue_handshake();
  } else if (piece != nullptr && (events & EPOLLERR) != 0) {
    look_for_reset();
  }
}

void slot::wake_soon() noexcept {
  ready_node.unlink();
  core->ready.push_back(ready_node);
  queued = true;
}

// Both operations are looked at again: after a postponement, a lent buffer's return, or end_with().
void slot::run_ready() noexcept {
  queued = false;
  if (phase == slot_phase::handshaking) {
    continue_handshake();
    return;
  }
  if (phase >= slot_phase::waiting) {
    if (is_away()) {
      note_while_away(0);
    } else {
      blocking_event();
    }
    return;
  }
  const std::uint32_t seen = generation;
  if (writer) {
    continue_output();
    if (generation != seen) return;
    if (is_away()) {
      if (reader) note_while_away(0);
      return;
    }
  }
  if (reader) continue_read();
}

}  // namespace engine

// Frames --------------------------------------------------------------------------------------------------

void* detail::allocate_frame(connection& owner, std::size_t bytes) noexcept {
  engine::slot& s = engine::slot::of(owner);
  void* frame = s.arena.allocate(bytes);
  if (frame == nullptr) {
    frame = engine::frame_arena::heap_frame(bytes);
    if (frame != nullptr) {
      if (s.is_away()) {
        ++s.slice->rare().frames_on_heap;
      } else {
        ++s.core->counters.frames_on_heap;
      }
    }
  }
  return frame;
}

void* detail::allocate_frame(std::size_t bytes) noexcept { return engine::frame_arena::heap_frame(bytes); }

void detail::release_frame(void* frame) noexcept { engine::frame_arena::release(frame); }

}  // namespace percore
