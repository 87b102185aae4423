#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>

#include <percore/address.hpp>
#include <percore/tls.hpp>

#include "engine/base/intrusive_list.hpp"
#include "engine/connection/counters.hpp"
#include "engine/connection/read_buffers.hpp"
#include "engine/connection/slot_pool.hpp"
#include "engine/helpers/pool.hpp"
#include "engine/loop/mailbox.hpp"
#include "engine/loop/poller.hpp"
#include "engine/loop/timer_wheel.hpp"
#include "engine/tls/core_state.hpp"

namespace percore {
class server;
}

namespace percore::engine {

struct stall_snapshot;
class pipe_pool;

// A coroutine that was spawned, in the list of its core.
struct spawned_link : detail::link {
  void (*destroy)(spawned_link&) noexcept = nullptr;
};

// What one core gives its connections. Written and read by the core's thread only, but for the counters (read by
// stats()) and the mailbox.
struct core_resources {
  struct limits {
    std::size_t slots = 0;
    std::size_t slot_bytes = 0;
    std::size_t buffers = 0;
    std::size_t buffer_bytes = 0;
    unsigned operations_per_turn = 0;
    std::int64_t handshake_budget_ns = 0;
  };

  // `slot_memory` and `buffer_memory` as slot_pool and read_buffer_pool want them.
  core_resources(const limits& limit, std::byte* slot_memory, std::byte* buffer_memory,
                 std::shared_ptr<loop::mailbox> box)
      : now_ns(sys::monotonic_ns()),
        slots(slot_memory, limit.slot_bytes, limit.slots),
        operations_per_turn(limit.operations_per_turn),
        buffers(buffer_memory, limit.buffer_bytes, limit.buffers),
        mailbox(std::move(box)),
        handshake_budget_ns(limit.handshake_budget_ns),
        handshake_left_ns(limit.handshake_budget_ns),
        timers(loop::timer_wheel::tick_of(now_ns)) {}

  // What every turn and every request touch comes first and close together; the large members (the timers' lists, the
  // poller's events) come last, so that all of it lies on few pages.
  std::int64_t now_ns;  // of this turn of the loop: the one clock read
  const std::uint64_t descriptors = loop::wakeup::table();  // in whose table the connections' are
  slot* running = nullptr;  // whose handler runs now; nullptr: none
  base::counter steps;      // odd while a handler or a posted function runs; for the stall watch
  slot_pool slots;
  unsigned operations_per_turn;
  unsigned index = 0;
  bool stopping = false;  // this core has begun its shutdown: no reader waits for a new message
  const std::atomic<bool>* stop_requested = nullptr;  // of the server
  read_buffer_pool buffers;
  base::intrusive_list<detail::ready_node> ready;  // runs in this turn's last step or in the next turn
  std::shared_ptr<loop::mailbox> mailbox;
  alignas(base::cache_line_bytes) core_counters counters;
  // TLS: its memory on this core; handshakes that wait for their turn, and how long those
  // of this turn may still take.
  std::unique_ptr<tls::core_state> secure;
  base::intrusive_list<detail::ready_node> handshakes;
  std::int64_t handshake_budget_ns;
  std::int64_t handshake_left_ns;
  bool serving_handshakes = false;
  std::function<void(tls_failure, std::string_view, const address&)> on_tls_failure;
  server* owner = nullptr;
  std::function<void(std::exception_ptr)> on_exception;
  std::shared_ptr<helpers::pool> helpers;
  // Readable once this core drains: what helpers that wait for a client look at besides its descriptor; -1 before the
  // first blocking connection.
  int drain_fd = -1;
  stall_snapshot* stalled = nullptr;  // for the watch's signal; none: there is no watch
  // Connections that were dialled and have an owner (outgoing_state), their number, and coroutines that were spawned.
  base::intrusive_list<detail::link> outgoing;
  std::uint32_t outgoing_count = 0;
  base::intrusive_list<spawned_link> spawned;
  // For copying from socket to socket; made when it is first needed.
  std::shared_ptr<pipe_pool> pipes;
  std::size_t pipe_limit = 0;
  std::size_t pipe_bytes = 0;
  bool dialling_ended = false;  // a halt, or the end of the grace: nothing is dialled any more
  // The limit of open connections that all cores share: takes a place, or gives one back.
  std::function<bool()> reserve_open;
  std::function<void()> release_open;
  loop::timer_wheel timers;
  loop::poller poller;

  // Made when it is first needed. Throws std::bad_alloc, or tls_error when OpenSSL cannot load its provider.
  tls::core_state& tls_state() {
    if (secure == nullptr) secure = std::make_unique<tls::core_state>();
    return *secure;
  }

  pipe_pool& pipe_reserve();

  bool open_drain_fd() noexcept {
    if (drain_fd >= 0) return true;
    drain_fd = sys::eventfd(stopping ? 1 : 0, EFD_CLOEXEC | EFD_NONBLOCK);
    return drain_fd >= 0;
  }

  void report(std::exception_ptr exception) noexcept {
    ++counters.handler_errors;
    if (on_exception) on_exception(std::move(exception));
  }
};

// The end of the core: coroutines that wait for outgoing connections hear of it, spawned ones are destroyed, and owners
// lose what they own.
void end_outgoing(core_resources& core) noexcept;
void end_spawned(core_resources& core) noexcept;

// The core whose thread this is; nullptr on any other thread.
extern constinit thread_local core_resources* core_of_thread;

}  // namespace percore::engine
