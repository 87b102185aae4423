#pragma once

#include <percore/stats.hpp>

#include "engine/base/counter.hpp"

namespace percore::engine {

// The live counters of one core, written by its thread only. What each one counts is said in stats.hpp.
struct core_counters {
  base::counter accepted;
  base::counter active;
  base::counter refused_limit;
  base::counter refused_memory;
  base::counter accept_aborted;
  base::counter accept_paused_files;
  base::counter accept_paused_memory;
  base::counter accept_paused_limit;
  base::counter bytes_received;
  base::counter bytes_sent;
  base::counter handler_errors;
  base::counter resets_received;
  base::counter timeouts;
  base::counter buffers_exhausted;
  base::counter frames_on_heap;
  base::counter contexts_on_heap;
  base::counter unsent_tails;
  base::counter first_read_hits;
  base::counter wakeups;
  base::counter events;
  base::counter messages;
  base::counter halted;

  [[nodiscard]] core_stats snapshot() const noexcept;
};

}  // namespace percore::engine
