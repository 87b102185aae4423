// Writes whose bytes are not the caller's memory (a file, a pipe). They wait, time out and end as any write does; only the
// step that gives bytes to the socket is the source's own.

#include "engine/connection/slice.hpp"
#include "engine/connection/slot.hpp"

namespace percore::engine {

namespace {

// Steps of a source before others on the core get their turn: the peer may take bytes as fast as they are sent.
constexpr unsigned steps_in_a_row = 8;

}  // namespace

bool slot::start_source(detail::write_source& from) noexcept {
  check_use_in_debug_builds(*this);
  PERCORE_ASSERT(!writing, "a connection is written by two coroutines at once");
  const bool in_turn = ++operations <= core->operations_per_turn;
  if (ended || sending_done || is_shaking_hands()) {
    fail(ended ? end_reason : static_cast<int>(sending_done ? errc::closed : errc::limit_exceeded));
    write_ok = false;
    if (in_turn) return true;
    postponed = true;
    return false;
  }
  source = &from;
  piece_count = from_source;
  piece_offset = 0;
  write_remaining = 1;  // until it is done
  write_last = false;
  return begin_output(in_turn);
}

void slot::send_source() noexcept {
  using outcome = detail::write_source::outcome;
  for (unsigned steps = 0; writable && !ended && tail == nullptr; ++steps) {
    if (steps == steps_in_a_row) {
      // Before it is suspended there is no writer yet: suspend_write then sees to the rest.
      if (writer) {
        wake_soon();
      } else {
        postponed = true;
      }
      return;
    }
    const outcome made = source->send(*source, *this);
    if (made == outcome::more || ended) continue;
    const int why = error_value;
    write_remaining = 0;
    if (made == outcome::failed) {
      finish_write(true);  // for the connection it is done
      write_ok = false;
      fail(why);
    }
    return;
  }
}

bool slot::send_plaintext(const std::byte* data, std::size_t size) noexcept {
  const bool ok = secure->write({data, size}, core->now_ns);
  if (send_records(0) && !ok) records_failed();
  return !ended;
}

}  // namespace percore::engine
