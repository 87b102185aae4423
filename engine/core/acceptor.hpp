#pragma once

#include <cstdint>

#include <percore/options.hpp>

#include "engine/connection/slot.hpp"
#include "engine/core/limits.hpp"
#include "engine/sys/listen_group.hpp"

namespace percore::engine {

// A listener as one core has it: takes connections from the kernel's accept queue, gives each a slot and starts its
// handler. Used by the core's thread only.
class acceptor {
 public:
  struct settings {
    sys::listen_group* group = nullptr;
    const listener_config* config = nullptr;
    shared_limits* limits = nullptr;
    limit_policy at_limit = limit_policy::pause;
    unsigned accepts_per_turn = 64;
    bool client_speaks_first = false;  // TCP_DEFER_ACCEPT: what is accepted can be read at once
  };

  acceptor(core_resources& core, const settings& given, std::uint64_t token) noexcept;
  acceptor(const acceptor&) = delete;
  acceptor& operator=(const acceptor&) = delete;
  ~acceptor() { close(); }

  // 0, or the negative errno of the poller.
  int start() noexcept { return arm(); }
  // Connections wait in the accept queue.
  void on_event() noexcept;
  // A connection of this core, or of another while this one pauses, has ended.
  void on_room() noexcept;
  // Another core has stopped accepting from its shared socket, perhaps with the wake-up for a connection in hand: an
  // exclusive one (EPOLLEXCLUSIVE) that no other core has had.
  void on_shared_pause() noexcept {
    if (settings_.group->shared()) on_event();
  }
  // A shutdown: takes what the accept queue holds and then closes. When a limit or a lack of descriptors stands in
  // the way, it goes on as soon as that is over.
  void drain() noexcept;
  void close() noexcept;
  [[nodiscard]] bool closed() const noexcept { return state_ == state::closed; }

 private:
  enum class state { armed, paused_for_limit, paused_for_resources, closed };
  enum class outcome { accepted, aborted, empty, no_ticket, no_room, no_resources };

  struct retry_timer : detail::timer_node {
    acceptor* owner = nullptr;
  };

  int arm() noexcept;
  void disarm(state why) noexcept;
  void resume() noexcept;
  void drain_on() noexcept;
  outcome accept_one() noexcept;
  outcome accept_into(slot& target) noexcept;
  outcome refuse_one() noexcept;
  outcome classify(int error) noexcept;
  bool settle(outcome last) noexcept;
  void serve(slot& target, int fd, const percore::peer_address& peer) noexcept;

  core_resources& core_;
  const settings settings_;
  const std::uint64_t token_;
  state state_ = state::armed;
  bool draining_ = false;
  bool counted_as_paused_ = false;
  unsigned batch_ = 1;        // accepts to try in the next turn
  unsigned full_batches_ = 0; // in a row
  unsigned missed_ = 0;       // first reads in a row that found nothing
  unsigned until_probe_ = 0;  // accepts until the first read is tried again
  retry_timer retry_;
};

}  // namespace percore::engine
