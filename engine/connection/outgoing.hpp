#pragma once

#include <cstdint>
#include <utility>

#include <percore/dial.hpp>

#include "engine/connection/slot.hpp"

namespace percore::engine {

// In whose handler a coroutine waits, so that it goes on there; or in nobody's.
struct host_ref {
  slot* where = nullptr;
  std::uint32_t generation = 0;

  static host_ref of_running(const core_resources& core) noexcept {
    return {core.running, core.running == nullptr ? 0 : core.running->generation};
  }
  // The handler has not returned.
  [[nodiscard]] bool alive() const noexcept {
    return where != nullptr && where->generation == generation && where->root;
  }
  // A handler that has returned may have left a coroutine: that goes on as nobody's.
  void resume(core_resources& core, std::coroutine_handle<> handle) const noexcept {
    if (alive()) {
      where->resume(handle);
    } else {
      core.resume_lone(handle);
    }
  }
  friend bool operator==(const host_ref&, const host_ref&) noexcept = default;
};

// What a connection that was dialled has beyond its slot: settings of its own in the place of a listener's, its owner,
// and who waits for its operations. From the heap; goes when the slot is recycled.
struct outgoing_state : listener_config, detail::link {
  slot* self = nullptr;
  outgoing* owner = nullptr;  // none: it is only flushed still
  host_ref host;
  outgoing_state* next_hosted = nullptr;  // in core_resources::by_host
  detail::write_source connecting;
};

template <class F>
void slot::for_each_hosted(F f) noexcept {
  const host_ref self{this, generation};
  for (outgoing_state* one = core->by_host[index % core_resources::host_buckets]; one != nullptr;) {
    outgoing_state& state = *std::exchange(one, one->next_hosted);
    if (state.host == self) f(state);
  }
}

// Brings the handler that runs back to its core if it is away (see slice.hpp), and keeps it there: outgoing connections, and
// what copies between two, belong to the core.
class [[nodiscard]] at_home {
 public:
  bool await_ready() const noexcept;
  bool await_suspend(std::coroutine_handle<> waiter) const noexcept;
  void await_resume() const noexcept {}
};

}  // namespace percore::engine
