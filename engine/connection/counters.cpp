#include "engine/connection/counters.hpp"

namespace percore {

namespace {

// One list for the snapshot and the sum, so that a counter cannot be in one and not in the other.
template <class Visitor>
void for_each_counter(Visitor&& visit) {
  using live = engine::core_counters;
  using plain = core_stats;
  visit(&live::accepted, &plain::accepted);
  visit(&live::active, &plain::active);
  visit(&live::refused_limit, &plain::refused_limit);
  visit(&live::refused_memory, &plain::refused_memory);
  visit(&live::accept_aborted, &plain::accept_aborted);
  visit(&live::accept_paused_files, &plain::accept_paused_files);
  visit(&live::accept_paused_memory, &plain::accept_paused_memory);
  visit(&live::accept_paused_limit, &plain::accept_paused_limit);
  visit(&live::bytes_received, &plain::bytes_received);
  visit(&live::bytes_sent, &plain::bytes_sent);
  visit(&live::handler_errors, &plain::handler_errors);
  visit(&live::resets_received, &plain::resets_received);
  visit(&live::timeouts, &plain::timeouts);
  visit(&live::buffers_exhausted, &plain::buffers_exhausted);
  visit(&live::frames_on_heap, &plain::frames_on_heap);
  visit(&live::contexts_on_heap, &plain::contexts_on_heap);
  visit(&live::unsent_tails, &plain::unsent_tails);
  visit(&live::first_read_hits, &plain::first_read_hits);
  visit(&live::wakeups, &plain::wakeups);
  visit(&live::events, &plain::events);
  visit(&live::messages, &plain::messages);
  visit(&live::halted, &plain::halted);
}

}  // namespace

core_stats engine::core_counters::snapshot() const noexcept {
  core_stats result;
  for_each_counter([&](auto live, auto plain) { result.*plain = (this->*live).get(); });
  return result;
}

core_stats& core_stats::operator+=(const core_stats& other) noexcept {
  for_each_counter([&](auto, auto plain) { this->*plain += other.*plain; });
  return *this;
}

}  // namespace percore
