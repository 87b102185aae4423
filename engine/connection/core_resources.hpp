#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <coroutine>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include <percore/address.hpp>
#include <percore/tls.hpp>

#include "engine/base/intrusive_list.hpp"
#include "engine/connection/counters.hpp"
#include "engine/connection/read_buffers.hpp"
#include "engine/connection/slot_pool.hpp"
#include "engine/connection/spill_gauge.hpp"
#include "engine/helpers/pool.hpp"
#include "engine/loop/mailbox.hpp"
#include "engine/loop/poller.hpp"
#include "engine/loop/timer_wheel.hpp"
#include "engine/sys/run_queue.hpp"
#include "engine/tls/core_state.hpp"

namespace percore {
class server;
}

namespace percore::engine {

struct slice_job;
struct stall_snapshot;
struct outgoing_state;
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
  slot* running = nullptr;  // whose handler runs now; nullptr: none
  base::counter steps;      // odd while a handler or a posted function runs; for the stall watch
  slot_pool slots;
  unsigned operations_per_turn;
  unsigned index = 0;
  bool stopping = false;  // this core has begun its shutdown: no reader waits for a new message
  slice_timing timing;    // of slices that may be spilled when they are slow
  const std::shared_ptr<loop::descriptor_table> descriptors = loop::wakeup::table();  // where the connections' are
  std::shared_ptr<const std::atomic<bool>> stop_requested;  // of the server, which a handler that is kept may outlive
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
  // Slices that run on this thread, but away from the core: at the loop's next chance. See core::run_slices.
  base::intrusive_list<detail::ready_node> slices;
  std::vector<detail::message> late_messages;  // to connections that have ended while they were away
  // For the next connections whose slices go away, linked by next_completed.
  slice_job* idle_slices = nullptr;
  std::size_t idle_slice_count = 0;
  bool given_up = false;            // what is away will not come back
  bool open_to_takeover = false;    // slices of coroutine handlers run so
  std::vector<spill_gauge> gauges;  // of the listeners, by their numbers
  // The clock as read at the end of the last measured slice, and `steps` then: it is the beginning of the next one if
  // nothing else has run between.
  std::int64_t measured_at_ns = 0;
  std::uint64_t measured_steps = 0;
  // Readable once this core drains: what helpers that wait for a client look at besides its descriptor; -1 before the
  // first blocking connection.
  int drain_fd = -1;
  stall_snapshot* stalled = nullptr;  // for the watch's signal; none: there is no watch
  // Connections that were dialled and have an owner (outgoing_state), their number, and coroutines that were spawned.
  base::intrusive_list<detail::link> outgoing;
  std::uint32_t outgoing_count = 0;
  // The same by the handler that was the last to wait for them: chains, by the number of its slot.
  static constexpr std::size_t host_buckets = 1024;
  std::array<outgoing_state*, host_buckets> by_host{};
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

  void run_message(detail::message& what) noexcept {
    ++counters.messages;
    ++steps;
    try {
      what(*this);
    } catch (...) {
      report(std::current_exception());
    }
    ++steps;
  }

  // Goes on with a coroutine that no connection's handler waits for, between two steps of those.
  void resume_lone(std::coroutine_handle<> handle);

  // An untimed slice begins.
  void count_slice() noexcept {
    if (timing.full()) [[unlikely]] look_at_slices();
    timing.count();
  }
  // At those that have ended.
  [[gnu::hot, gnu::noinline]] void look_at_slices() noexcept {
    const std::int64_t now = sys::monotonic_ns();
    timing.look(now_ns, now, [now](std::int64_t took) { return sys::lost_time::without(took, now); });
    sys::lost_time::prepare(now);
  }
  // Whether slices of this listener are to be spilled now, and before that, whether they are still to be timed.
  bool listener_is_slow(std::size_t number) noexcept {
    if (timing.over(now_ns) && std::none_of(gauges.begin(), gauges.end(), [&](auto& g) { return g.slow(now_ns); })) {
      timing.end();
      return false;
    }
    return gauges[number].slow(now_ns);
  }
  // One has taken so long, wherever it ran, and has ended about now.
  void note_slice(std::size_t number, std::int64_t ran_ns, std::int64_t ended_ns) noexcept {
    spill_gauge& gauge = gauges[number];
    if (ran_ns <= gauge.budget_ns()) return;
    if (gauge.note(ran_ns, ended_ns)) ++counters.spill_begins;
    timing.long_one(gauge.owed_ns(), ended_ns);
  }

  // For a slice that is to be timed and begins now, without reading the clock if that can be.
  [[nodiscard]] std::int64_t beginning_of_slice() const noexcept {
    const std::int64_t now = measured_steps == steps.get() ? std::max(measured_at_ns, now_ns) : sys::monotonic_ns();
    sys::lost_time::prepare(now);
    return now;
  }
  // It has ended: how long it ran, as far as that is its own doing.
  [[nodiscard]] std::int64_t end_of_slice(std::int64_t begun_ns, std::int64_t budget_ns) noexcept {
    measured_at_ns = sys::monotonic_ns();
    measured_steps = steps.get();
    const std::int64_t ran = measured_at_ns - begun_ns;
    return ran <= budget_ns ? ran : sys::lost_time::without(ran, measured_at_ns);
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
