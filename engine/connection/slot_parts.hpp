// What a slot is made of, besides itself: the settings that it shares with others of its listener, and its phases.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include <percore/connection.hpp>
#include <percore/options.hpp>
#include <percore/proxy_protocol.hpp>
#include <percore/server.hpp>

#include "engine/connection/core_resources.hpp"

namespace percore::engine {

// Where the slices of a handler run (see slice.hpp).
enum class slice_home : std::uint8_t {
  core,     // on the core's thread and as part of the core
  timed,    // there, or on a helper when they are slow
  open,     // on the core's thread, but away from the core, which may be taken over meanwhile
  anywhere  // `open`, or on a helper when they are slow; or always on a helper
};

// What the connections of one listener have in common. Read by all cores, written by none once started.
struct listener_config {
  detail::handler handler;
  std::size_t index = 0;
  std::uint32_t read_timeout_ms = 0;
  std::uint32_t write_timeout_ms = 0;
  std::uint32_t idle_timeout_ms = 0;
  std::uint32_t lifetime_timeout_ms = 0;
  std::uint32_t close_timeout_ms = 0;
  std::uint32_t unsent_tail_bytes = 0;
  std::uint32_t zero_copy_from_bytes = 0;  // 0: never
  std::uint32_t handshake_timeout_ms = 0;
  std::shared_ptr<tls::shared_context> tls;  // none: plain
  detail::blocking_handler blocking;         // instead of `handler`
  std::shared_ptr<const proxy_protocol_options> proxy;  // none: clients come by themselves
  bool wait_for_client = true;               // a blocking handler starts when there is something to read
  spilling spill = spilling::never;
  std::int64_t spill_budget_ns = 0;
  slice_home slices = slice_home::core;
  std::uint64_t tls_identity = 0;            // of this listener in this process, for its tickets
};

// Bytes that write has accepted and the socket has not; they follow the header. From the heap.
struct unsent_tail {
  std::uint32_t begin;
  std::uint32_t end;
  std::uint32_t capacity;

  std::byte* data() noexcept { return reinterpret_cast<std::byte*>(this + 1); }
  [[nodiscard]] std::uint32_t size() const noexcept { return end - begin; }
};

struct blocking_job;
class zero_copy;
struct outgoing_state;
struct slice_job;

enum class read_kind : std::uint8_t { none, some, more, ready, until, into, full, start_tls };

// Nodes of a slot in lists of its core.
struct slot_timer : detail::timer_node {
  slot* owner = nullptr;
};
struct slot_ready : detail::ready_node {
  slot* owner = nullptr;
};

// Where a slot is in its life.
enum class slot_phase : std::uint8_t {
  free,     // no connection
  handshaking,  // TLS from the first byte: the handler has not been started yet
  running,  // its handler runs or waits
  flushing, // the handler has returned; the unsent tail is still being sent
  waiting,  // for the first bytes, before a blocking handler gets it
  blocking, // a helper serves it, or it waits for one: only the descriptor's end is the core's meanwhile
  away      // running, and a slice of the handler runs away from the core or is about to: see slice.hpp
};

// What becomes of a connection that is to end while helpers have a job of it: its frame, and what the job may refer to
// in it, must stay until the job is back.
enum class slot_doom : std::uint8_t {
  none,
  resume,      // the handler goes on once more; if it then waits again, it is halted
  last_words,  // it does so now, away from its core
  halt
};

}  // namespace percore::engine
