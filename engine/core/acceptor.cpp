#include "engine/core/acceptor.hpp"

#include <algorithm>

namespace percore::engine {

namespace {

// After EMFILE and the like: how long until accepting is tried again.
constexpr std::int64_t retry_ns = 100'000'000;

// When so many first reads in a row have found nothing, new connections wait for their event instead; every so often
// one is tried again. The failed recv costs about as much as 2 % of a short connection.
constexpr unsigned misses_to_stop = 8;
constexpr unsigned accepts_to_probe = 64;

constexpr unsigned small_batch = 8;
constexpr unsigned turns_to_grow_small = 4;

// Connections taken from a queue that is drained, before others get their turn.
constexpr unsigned most_drained_at_once = 1024;

}  // namespace

acceptor::acceptor(core_resources& core, const settings& given, std::uint64_t token) noexcept
    : core_(core), settings_(given), token_(token) {
  retry_.owner = this;
  retry_.fire = [](detail::timer_node& node) { static_cast<retry_timer&>(node).owner->resume(); };
}

int acceptor::arm() noexcept {
  const int result =
      core_.poller.add_listener(settings_.group->fd(core_.index), token_, settings_.group->shared());
  if (result == 0) state_ = state::armed;
  return result;
}

void acceptor::disarm(state why) noexcept {
  const bool was_armed = state_ == state::armed;
  if (was_armed) (void)core_.poller.remove(settings_.group->fd(core_.index));
  state_ = why;
  if (was_armed && why != state::closed && settings_.group->shared()) settings_.limits->on_shared_pause();
}

void acceptor::on_event() noexcept {
  if (state_ != state::armed) return;
  // Accepting until EAGAIN would cost one useless call per turn. The listener is level-triggered, so stopping early
  // loses nothing: the batch shrinks to what was there and doubles when the queue goes on outlasting it, a small
  // one only after some turns, lest every other connection of a slow trickle pays for the look behind it.
  outcome last = outcome::accepted;
  unsigned tried = 0;
  for (; tried < batch_; ++tried) {
    last = accept_one();
    if (last != outcome::accepted && last != outcome::aborted) break;
  }
  if (last == outcome::empty || last == outcome::no_ticket) {
    batch_ = std::max(tried, 1u);
    full_batches_ = 0;
  } else if (++full_batches_ >= (batch_ < small_batch ? turns_to_grow_small : 1)) {
    batch_ = std::min(batch_ * 2, settings_.accepts_per_turn);
    full_batches_ = 0;
  }
  (void)settle(last);
}

// Acts on what stopped a batch. True when the queue was found empty.
bool acceptor::settle(outcome last) noexcept {
  switch (last) {
    case outcome::accepted:
    case outcome::aborted:
      return false;
    case outcome::empty:
      return true;
    case outcome::no_ticket:
      // All are given out, but one may come back. The level-triggered listener asks again; who drains asks itself.
      if (!draining_ || settings_.limits->all_tickets_used()) return true;
      drain_on();
      return false;
    case outcome::no_room:
      if (state_ != state::paused_for_limit) ++core_.counters.accept_paused_limit;
      disarm(state::paused_for_limit);
      if (!counted_as_paused_) {
        counted_as_paused_ = true;
        settings_.limits->pause();
      }
      // Whoever released a place before the pause was counted has told nobody.
      if (settings_.limits->has_room() && core_.slots.in_use() < core_.slots.count()) {
        retry_.unlink();
        core_.timers.insert(retry_, 0);
      }
      return false;
    case outcome::no_resources:
      disarm(state::paused_for_resources);
      retry_.unlink();
      core_.timers.insert(retry_, loop::timer_wheel::tick_from(core_.now_ns + retry_ns));
      return false;
  }
  return false;
}

void acceptor::on_room() noexcept {
  if (state_ == state::paused_for_limit && settings_.limits->has_room()) resume();
}

void acceptor::resume() noexcept {
  retry_.unlink();
  if (state_ == state::closed) return;
  if (counted_as_paused_) {
    counted_as_paused_ = false;
    settings_.limits->resume();
  }
  if (draining_) {
    drain();
  } else if (state_ != state::armed && arm() != 0) {
    (void)settle(outcome::no_resources);
  }
}

void acceptor::drain() noexcept {
  if (state_ == state::closed) return;
  draining_ = true;
  for (unsigned tried = 0; tried < most_drained_at_once; ++tried) {
    const outcome last = accept_one();
    if (last == outcome::accepted || last == outcome::aborted) continue;
    if (settle(last)) close();
    return;
  }
  drain_on();  // there may be more
}

// At the next tick.
void acceptor::drain_on() noexcept {
  retry_.unlink();
  core_.timers.insert(retry_, 0);
}

void acceptor::close() noexcept {
  if (state_ == state::closed) return;
  retry_.unlink();
  if (counted_as_paused_) {
    counted_as_paused_ = false;
    settings_.limits->resume();
  }
  disarm(state::closed);
  settings_.group->release(core_.index);
}

acceptor::outcome acceptor::accept_one() noexcept {
  slot* target = core_.slots.take(core_);
  if (target == nullptr) return refuse_one();
  if (!settings_.limits->reserve_open()) {
    core_.slots.put_back(*target);
    return refuse_one();
  }
  if (!settings_.limits->take_ticket()) {
    core_.slots.put_back(*target);
    settings_.limits->release_open(1);
    return outcome::no_ticket;
  }
  const outcome result = accept_into(*target);
  if (result != outcome::accepted) {
    core_.slots.put_back(*target);
    settings_.limits->return_ticket();
    settings_.limits->release_open(1);
  }
  return result;
}

acceptor::outcome acceptor::accept_into(slot& target) noexcept {
  union {
    sockaddr any;
    sockaddr_in6 ip;  // the longest that a slot keeps
  } from;
  socklen_t length = sizeof from;
  target.prefetch_for_open();
  // A blocking handler's descriptor is a plain blocking one; the engine's own calls on it never wait.
  const int flags = settings_.config->blocking ? SOCK_CLOEXEC : SOCK_NONBLOCK | SOCK_CLOEXEC;
  const int fd = sys::accept4(settings_.group->fd(core_.index), &from.any, &length, flags);
  if (fd < 0) return classify(fd);
  settings_.limits->use_ticket();
  const socklen_t known = std::min<socklen_t>(length, sizeof from);
  serve(target, fd, percore::peer_address::from_sockaddr(&from.any, known));
  return outcome::accepted;
}

void acceptor::serve(slot& target, int fd, const percore::peer_address& peer) noexcept {
  if (settings_.group->needs_per_connection_setup()) (void)settings_.group->apply_to_connection(fd);
  const bool try_first_read = settings_.client_speaks_first || core_.stopping || missed_ < misses_to_stop ||
                              ++until_probe_ == accepts_to_probe;
  if (until_probe_ == accepts_to_probe) until_probe_ = 0;
  const std::uint64_t received = core_.counters.bytes_received.get();
  const std::uint32_t generation = target.generation;
  target.open(fd, peer, *settings_.config, try_first_read);
  if (settings_.config->blocking) {
    target.start_blocking();
    return;
  }
  if (settings_.config->tls && !settings_.config->proxy) {
    target.start_handshake();
  } else {
    target.start_handler();
  }
  if (!try_first_read) return;
  if (core_.counters.bytes_received.get() != received) {
    ++core_.counters.first_read_hits;
    missed_ = 0;
  } else if (target.generation == generation && !target.readable) {
    missed_ = std::min(missed_ + 1, misses_to_stop);
  }
}

// At a limit of open connections.
acceptor::outcome acceptor::refuse_one() noexcept {
  if (settings_.at_limit == limit_policy::pause || draining_) return outcome::no_room;
  const int fd = sys::accept4(settings_.group->fd(core_.index), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
  if (fd < 0) return classify(fd);
  const linger abort{1, 0};
  (void)sys::setsockopt(fd, SOL_SOCKET, SO_LINGER, &abort, sizeof abort);
  (void)sys::close(fd);
  ++core_.counters.refused_limit;
  return outcome::aborted;
}

acceptor::outcome acceptor::classify(int error) noexcept {
  switch (-error) {
    case EAGAIN:
      return outcome::empty;
    case EMFILE:
    case ENFILE:
      ++core_.counters.accept_paused_files;
      return outcome::no_resources;
    case ENOMEM:
    case ENOBUFS:
      ++core_.counters.accept_paused_memory;
      return outcome::no_resources;
    case EINTR:
      return outcome::aborted;
    case EBADF:
    case EINVAL:
    case ENOTSOCK:
      // The socket no longer listens: somebody who shares an adopted one has shut it down. Not a reason to spin.
      ++core_.counters.accept_aborted;
      return draining_ ? outcome::empty : outcome::no_resources;
    default:
      // ECONNABORTED, EPERM of a firewall, and the network errors that accept(2) passes on from the new connection:
      // that one is gone, the next may be well.
      ++core_.counters.accept_aborted;
      return outcome::aborted;
  }
}

}  // namespace percore::engine
