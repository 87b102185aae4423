// All the ways to end before the handler has returned: failures, close and halt, drains and the end of a grace.

#include <utility>

#include "engine/connection/outgoing.hpp"
#include "engine/connection/slice.hpp"
#include "engine/connection/slot.hpp"

namespace percore::engine {

void slot::end_with(int reason) noexcept {
  if (ended && !closing) return;
  ended = true;
  closing = false;
  end_reason = reason;
  fin_after_tail = false;
  drop_tail();
  if (reader || writer) wake_soon();
  if (sleeper != nullptr) interrupt_sleep();
  if (piece != nullptr) interrupt_piece();
}

void slot::io_failed(int result) noexcept {
  resetting = true;  // bytes that were accepted may be lost: the peer must not take the end for a clean one
  if (result == -ECONNRESET || result == -EPIPE) {
    ++core->counters.resets_received;
    end_with(static_cast<int>(errc::connection_reset));
  } else {
    end_with(result);
  }
}

void slot::begin_close() noexcept {
  if (ended || fd < 0) return;
  if (encrypted) say_goodbye(MSG_MORE);
  if (ended) return;
  ended = closing = sending_done = true;
  end_reason = static_cast<int>(errc::closed);
  if (tail == nullptr) {
    close_descriptor();
  } else {
    arm_for_write();
  }
  if (reader || writer) wake_soon();
  if (sleeper != nullptr) interrupt_sleep();
  if (piece != nullptr) interrupt_piece();
}

void slot::halt() noexcept {
  if (phase == slot_phase::free) return;
  if (is_away() && !take_back_slice()) {
    doomed = slot_doom::halt;
    sever();
    return;
  }
  if (phase >= slot_phase::waiting) {
    end_blocking(static_cast<int>(errc::shutting_down));
    return;
  }
  if (piece != nullptr && !recall_piece()) {
    doomed = slot_doom::halt;
    resetting = true;
    end_with(static_cast<int>(errc::shutting_down));
    sever();  // and closed when the helper, which may know its number, is back
    return;
  }
  if (dialled && out().owner != nullptr) {
    halt_outgoing();
    return;
  }
  if (root) {
    take_back_lent();
    forget_hosted_waits();
    // Destructors of the frame's locals may still call the connection: nothing may point to an awaiter then.
    ended = true;
    closing = false;
    reader = writer = {};
    sleeper = nullptr;
    ++core->counters.halted;
    std::exchange(root, {}).destroy();
  }
  resetting = true;
  close_descriptor();
  recycle();
}

void slot::abandon() noexcept {
  if (dialled) disown();
  resetting = true;
  sever();  // the helper may still use its number: not closed
  if (is_away()) {
    tell_late();  // the rest is the slice's, which may come back at any moment: see forget
  } else {
    drop_tail();
    close_session();
  }
  deadline_timer.unlink();
  ready_node.unlink();
  --core->counters.active;
}

void slot::forget() noexcept {
  drop_tail();
  drop_lending();
  close_session();
}

void slot::begin_drain() noexcept {
  if (phase == slot_phase::waiting) {
    blocking_event();
  } else if (phase == slot_phase::handshaking || (reader && reading == read_kind::start_tls)) {
    drain_handshake();
  } else if (phase == slot_phase::running && reader && waits_for_new_message() && !queued) {
    continue_read();
  }
}

void slot::end_grace() noexcept {
  if (phase == slot_phase::free) return;
  if (is_away() && !take_back_slice()) {
    if (doomed != slot_doom::halt) doomed = slot_doom::resume;
    sever();
    return;
  }
  resetting = true;
  if (phase >= slot_phase::waiting) {
    end_blocking(static_cast<int>(errc::shutting_down));
  } else if (phase == slot_phase::running) {
    hear_last_words();
  } else {
    halt();
  }
}

// Whoever waits is told that all is over and may go on once more, without waiting again.
void slot::hear_last_words() noexcept {
  const std::uint32_t seen = generation;
  // Gone, or what it has to say is said away from the core.
  const auto has_left = [&] {
    if (generation != seen) return true;
    if (!is_away()) return false;
    doomed = slot_doom::last_words;
    sever();  // for the peer, all is over now
    return true;
  };
  resetting = true;
  end_with(static_cast<int>(errc::shutting_down));
  take_back_lent();
  if (slice != nullptr) go_on_with_runnable();
  if (has_left()) return;
  unqueue();
  run_ready();
  if (has_left()) return;
  if (sleeper != nullptr) resume_sleeper();
  if (has_left()) return;
  if (piece != nullptr && !answer_piece(static_cast<int>(errc::shutting_down))) {
    doomed = slot_doom::resume;
    sever();
    return;
  }
  if (has_left()) return;
  halt();
}

}  // namespace percore::engine
