// relay: two connections of one core, each fed with what the other receives; and what connection::copy_to answers.
#pragma once

#include <chrono>
#include <cstdint>
#include <limits>
#include <system_error>

#include <percore/task.hpp>

namespace percore {

class connection;

inline constexpr std::uint64_t no_limit = std::numeric_limits<std::uint64_t>::max();

struct copied {
  std::uint64_t bytes = 0;          // that the target has taken (its socket or its unsent tail)
  std::error_code error;            // none: the source's stream has ended, or the limit is reached
  bool target_failed = false;       // it is the target's error; else the source's
  explicit operator bool() const noexcept { return !error; }
};

struct relay_options {
  relay_options() {}  // no aggregate: g++ 12 destroys temporary ones twice in a co_await expression

  // No byte in either direction for so long ends both (errc::timed_out); 0: never. Beside it the connections' own read,
  // write, idle and lifetime timeouts apply to each as always.
  std::chrono::milliseconds idle_timeout{0};
  // After so many bytes of the first connection its direction has ended, without a FIN to the second: for one request that
  // is passed on, of which the length is known.
  std::uint64_t forth_limit = no_limit;
  // A shutdown lets the relay go on until it ends by itself or the grace is over. Off: it ends, as a handler that waits for
  // a new message, as soon as an accepted connection has nothing more to give (errc::shutting_down).
  bool outlives_shutdown = true;
};

struct relayed {
  std::uint64_t forth = 0;  // bytes from the first to the second
  std::uint64_t back = 0;
  // None: both streams have ended. Else what ended both: reset, timed out, truncated TLS, ...
  std::error_code error;
  explicit operator bool() const noexcept { return !error; }
};

// Copies in both directions until both streams have ended. A FIN of one side is passed on (with TLS, close_notify) and the
// other direction flows on. What ends one side badly (a reset, a timeout, a TLS stream without close_notify) ends both, and
// resets the other, so that nobody takes a half for the whole. A side that reads slowly slows the other down: what lies
// between them is at most what the sockets hold, a pipe (server_options::pipe_bytes) or a read buffer for each
// direction, and the unsent tails.
//
// Between plain sockets bulk data goes through a pipe of the core's and never enters the program (splice(2)); what comes in
// small pieces, TLS, and all else when no pipe is left (server_options::pipes_per_core) is read and written.
//
// Both must be connections of this core that the calling coroutine may await: its own, and dialled ones. Neither is closed.
task<relayed> relay(connection& first, connection& second, relay_options options = {});

}  // namespace percore
