// Timeouts. One timer per connection serves them all: arming for a later moment than it already waits for costs one
// comparison, and when it fires it looks which deadlines have really passed and waits for the next. A keep-alive
// connection thus touches the wheel once per timeout, not once per request.

#include <algorithm>
#include <limits>

#include "engine/connection/milliseconds.hpp"
#include "engine/connection/slice.hpp"
#include "engine/connection/slot.hpp"
#include "engine/connection/zero_copy.hpp"

namespace percore::engine {

namespace {

constexpr std::int64_t no_deadline = std::numeric_limits<std::int64_t>::max();

}  // namespace

void slot::arm(std::int64_t deadline_ns) noexcept {
  const std::uint64_t tick = loop::timer_wheel::tick_from(deadline_ns);
  if (deadline_timer.linked()) {
    if (deadline_timer.deadline <= tick) return;
    deadline_timer.unlink();
  }
  core->timers.insert(deadline_timer, tick);
}

void slot::timeouts_changed() noexcept {
  if (is_away()) {
    slice->rare().timeouts_changed = true;
    return;
  }
  timed = read_timeout_ms != 0 || idle_timeout_ms != 0;
  if (read_timeout_ms == 0 && reading != read_kind::start_tls) read_deadline_ns = 0;
  if (lifetime_timeout_ms != 0) arm(start_ns + to_ns(lifetime_timeout_ms));
}

void slot::arm_read_deadline(std::uint32_t timeout_ms) noexcept {
  read_deadline_ns = 0;
  if (timeout_ms == 0) return;
  read_deadline_ns = core->now_ns + to_ns(timeout_ms);
  arm(read_deadline_ns);
}

void slot::arm_idle_timeout() noexcept {
  if (idle_timeout_ms == 0) return;
  last_activity_ns = core->now_ns;
  arm(last_activity_ns + to_ns(idle_timeout_ms));
}

void slot::arm_read_timeouts() noexcept {
  arm_read_deadline(read_timeout_ms);
  arm_idle_timeout();
}

// Called when something is left unsent, and when some of it was sent.
void slot::arm_for_write() noexcept {
  write_deadline_ns = 0;
  std::uint32_t timeout_ms = write_timeout_ms;
  if (timeout_ms == 0 && (closing || phase == slot_phase::flushing)) timeout_ms = listener->close_timeout_ms;
  if (timeout_ms != 0) {
    write_deadline_ns = core->now_ns + to_ns(timeout_ms);
    arm(write_deadline_ns);
  }
  arm_idle_timeout();
}

void slot::on_deadline() noexcept {
  constexpr int timed_out = static_cast<int>(errc::timed_out);
  if (is_away()) {
    slice->note().deadline = true;
    return;
  }
  if (phase >= slot_phase::waiting) {
    on_blocking_deadline();
    return;
  }
  const std::uint32_t seen = generation;
  const std::int64_t now = core->now_ns;
  const auto passed = [now](std::int64_t deadline) { return deadline != 0 && deadline <= now; };
  const auto idle_deadline = [this] {
    return idle_timeout_ms == 0 ? 0 : last_activity_ns + to_ns(idle_timeout_ms);
  };
  const auto lifetime_deadline = [this] {
    return lifetime_timeout_ms == 0 || ended ? 0 : start_ns + to_ns(lifetime_timeout_ms);
  };
  const auto unsent = [this] { return tail != nullptr || writer; };

  bool stuck = unsent() && (passed(write_deadline_ns) || passed(idle_deadline()));
  // What is lent comes back in large parts; what the peer acknowledges of them is progress too.
  if (stuck && lends() && lending->has_moved()) {
    arm_for_write();
    stuck = false;
  }
  if (phase == slot_phase::handshaking && (stuck || passed(read_deadline_ns) || passed(lifetime_deadline()))) {
    handshake_timed_out();
    return;
  }

  if (passed(lifetime_deadline()) || stuck) {
    ++core->counters.timeouts;
    resetting = true;
    if (phase == slot_phase::flushing) {
      flush_or_close();
      return;
    }
    const bool was_closing = closing;
    end_with(timed_out);
    if (was_closing) close_descriptor();
    return;  // whoever waited is woken, and nothing can be waited for any more
  } else if (reader && (passed(read_deadline_ns) || passed(idle_deadline()))) {
    if (reading == read_kind::start_tls) {
      handshake_timed_out();
      return;
    }
    ++core->counters.timeouts;
    unqueue_reader();
    fail_reader(timed_out);
    if (generation != seen) return;
    if (is_away()) {
      slice->note().deadline = true;  // the others are looked at when it is back
      return;
    }
  }

  std::int64_t next = no_deadline;
  const auto consider = [&next](bool active, std::int64_t deadline) {
    if (active && deadline != 0) next = std::min(next, deadline);
  };
  consider(reader || phase == slot_phase::handshaking, read_deadline_ns);
  consider(unsent(), write_deadline_ns);
  consider(reader || unsent(), idle_deadline());
  consider(true, lifetime_deadline());
  if (next != no_deadline) arm(next);
}

}  // namespace percore::engine
