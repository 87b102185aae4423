#pragma once

#include <array>
#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include <percore/detail/job.hpp>
#include <percore/detail/message.hpp>
#include <percore/offload.hpp>

#include "engine/base/assert.hpp"
#include "engine/base/cache_line.hpp"
#include "engine/base/intrusive_list.hpp"

namespace percore::engine {

struct slice_job;

// The slice that runs on this thread away from its core; nullptr: none.
extern constinit thread_local slice_job* slice_of_thread;

// Goes on with a coroutine, and those that follow it, without a word to the core: see core_resources::resume_lone.
[[gnu::hot]] void resume_without_connection(std::coroutine_handle<> handle);

// slot::operations while a slice is away: above every operations_per_turn, so that the operations that check against that need
// no other check.
inline constexpr std::uint32_t away_operations = 1u << 31;

// The request of a read: slot `self`, as far as the core must do it.
bool read_on(void* self, std::coroutine_handle<> waiter) noexcept;

// A slice: a step of a handler, from where it goes on to where it waits again. This is one that runs away from its core:
// on a helper (listen_options::spill), or on the core's own thread while another thread may take the core over
// (takeover_options). It touches its own connection only, and nothing of the core's: what it wants to wait for, and
// whatever else needs the core, is noted here and done by the core when the slice is back. Until then the core
// touches nothing of the connection but `slot::phase` (away), `doomed` and its descriptor's end, and notes here what
// happens to it. So neither side needs a lock.
struct alignas(base::cache_line_bytes) slice_job : detail::job {
  slice_job() noexcept;

  // Something to be done on the core: an operation that is awaited, or an ending.
  struct request {
    // True: it is done already, and `waiter` can go on.
    bool (*start)(void* what, std::coroutine_handle<> waiter) noexcept;
    void* what;
    std::coroutine_handle<> waiter;  // none: nobody waits
  };
  // Of one slice: a handler has one, and one more for each coroutine that it leaves waiting beside itself.
  static constexpr std::size_t most_requests = 32;

  enum class place : std::uint8_t { nowhere, on_core, with_helpers, running_here };

  // From what earlier connections of the core have left, or new; nullptr: there is no memory. Given back when the
  // connection ends, with nothing in it.
  static slice_job* take(slot& owner, core_resources& core) noexcept;
  static void give_back(slice_job* unused, core_resources& core) noexcept;
  // The same for one in which nothing is left.
  static void give_back_clean(slice_job* unused, core_resources& core) noexcept;
  static void discard(slice_job* unused) noexcept;
  static void free_idle(core_resources& core) noexcept;

  // The slice itself, on any thread: runs until the handler waits. Leaves slice_of_thread set, for the caller to clear.
  void run() noexcept {
    slice_of_thread = this;
    resume_without_connection(next);
  }

  // Before something rare is changed, and before something that has happened is noted.
  slice_job& rare() noexcept {
    anything_rare = true;
    return *this;
  }
  slice_job& note() noexcept {
    anything_happened = true;
    return *this;
  }

  // Nothing is left in it, nor is it away.
  [[nodiscard]] bool is_empty() const noexcept {
    return where == place::nowhere && !settling && !anything_happened && !anything_rare && request_count == 0 &&
           runnable_count == 0;
  }
  // It is back: what can go on, once all is settled.
  void add_runnable(std::coroutine_handle<> handle) noexcept {
    PERCORE_ASSERT(runnable_count < runnable.size(), "a connection has too many coroutines");
    runnable[runnable_count++] = handle;
  }

  // What the usual slice on the core's own thread uses comes first, on few lines.
  std::coroutine_handle<> next;  // what goes on

  // --- the slice's, while it is away ----------------------------------------------------------------------
  bool ending = false;           // one of the requests ends the connection or its sending
  bool write_requested = false;  // one of them is a write
  bool view_released = false;
  bool anything_rare = false;    // of what stands under `rare` below
  // --- the core's -----------------------------------------------------------------------------------------
  place where = place::nowhere;
  bool settling = false;          // it is back: what can go on is put into `runnable`
  bool anything_happened = false;  // meanwhile: what stands under `happened` below
  std::uint32_t operations = 0;   // since an event let the handler go on: see slot::operations
  std::size_t runnable_count = 0;
  std::int64_t turn_ns = 0;       // on the core's thread: when the turn began
  // --- the slice's again ----------------------------------------------------------------------------------
  helpers::helper* on = nullptr;  // none: the core's own thread
  std::int64_t ran_ns = 0;
  std::size_t bytes_sent = 0;
  std::size_t request_count = 0;
  std::array<request, most_requests> requests;
  // rare
  bool timeouts_changed = false;
  std::uint32_t frames_on_heap = 0;
  std::uint32_t contexts_on_heap = 0;
  std::vector<std::byte> kept;    // try_write
  std::vector<std::unique_ptr<detail::detached_job>> calls;  // offload_detached

  // --- the core's again -----------------------------------------------------------------------------------
  std::int64_t begun_at_ns = 0;  // when the core was taken over from it
  std::array<std::coroutine_handle<>, most_requests> runnable;
  // happened
  std::uint32_t events = 0;
  bool looked_for = false;  // its turn in core.ready came
  bool deadline = false;
  base::intrusive_list<detail::ready_node> put_off;
  base::intrusive_list<detail::timer_node> timers_due;
  std::vector<detail::message> messages;
};

// What changes a connection asks here whether its own handler runs, if anything runs away from the core. The operations that
// are awaited ask only in debug builds, and later in all of them if they have to wait (slot::check_running).
inline void check_use(const slot& used) noexcept {
  PERCORE_ASSERT(slice_of_thread == nullptr || slice_of_thread->owner == &used,
                 "a handler uses another connection while it runs away from its core: post to that one's handle");
}
inline void check_use_in_debug_builds([[maybe_unused]] const slot& used) noexcept {
#ifndef NDEBUG
  check_use(used);
#endif
}

}  // namespace percore::engine
