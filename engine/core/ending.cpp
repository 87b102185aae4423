// How a core ends: shutdown, halt, and helpers that do not come back.

#include <chrono>
#include <cstdio>
#include <new>
#include <string>

#include "engine/connection/slice.hpp"
#include "engine/core/core.hpp"

namespace percore::engine {

void core::begin_shutdown() noexcept {
  if (!resources_.stopping) {
    resources_.stopping = true;
    for (auto& listener : acceptors_) listener->drain();
    if (resources_.drain_fd >= 0) {
      const std::uint64_t one = 1;
      (void)sys::write(resources_.drain_fd, &one, sizeof one);
    }
    for_each_connection([](slot& s) { s.begin_drain(); });
  }
  if (const std::int64_t grace_end = settings_.grace_end_ns->load(std::memory_order_acquire); grace_end != 0) {
    grace_timer_.unlink();
    resources_.timers.insert(grace_timer_, loop::timer_wheel::tick_from(grace_end));
  }
}

void core::halt() noexcept {
  close_listeners();
  grace_timer_.unlink();
  resources_.helpers->close();  // what is to be dropped must not come back
  resources_.dialling_ended = true;
  for_each_connection([](slot& s) { s.halt(); });
  settings_.shared->release_open(resources_.slots.end_of_turn());
  resources_.stopping = halting_ = true;
  drop_queued_jobs();
  be_patient();
}

// Those that no helper has had, and no connection waits for any more.
void core::drop_queued_jobs() noexcept {
  base::intrusive_list<detail::ready_node> kept;
  while (detail::job* job = resources_.helpers->take_back()) {
    if (job->always_runs) {
      kept.push_back(*job);
    } else {
      job->deliver(*job, resources_);
    }
  }
  while (detail::ready_node* node = kept.pop_front()) {
    (void)resources_.helpers->submit(static_cast<detail::job&>(*node), resources_.now_ns, helpers::admission::always);
  }
}

// From here on connections end only when helpers come back, and some may never. Who halts again does not make it last
// longer.
void core::be_patient() noexcept {
  if (jobs_left() && !patience_timer_.linked()) {
    resources_.timers.insert(patience_timer_,
                             loop::timer_wheel::tick_from(sys::monotonic_ns() + settings_.helper_patience_ns));
  }
}

void core::give_up() noexcept {
  resources_.helpers->for_each_busy(sys::monotonic_ns(), [this](const slot* serves, std::int64_t for_ns) {
    try {
      report_stuck(serves, for_ns);
    } catch (const std::bad_alloc&) {
    }
  });
  const std::int64_t now = sys::monotonic_ns();
  for_each_connection([&](const slot& s) {
    if (!s.is_away() || s.slice->where != slice_job::place::running_here) return;
    try {
      report_stuck(&s, now - s.slice->begun_at_ns);
    } catch (const std::bad_alloc&) {
    }
  });
  given_up_ = true;
}

void core::report_stuck(const slot* serves, std::int64_t for_ns) const {
  stuck_helper report;
  report.core = resources_.index;
  report.running = std::chrono::nanoseconds(for_ns);
  if (serves != nullptr) {
    report.serves_connection = true;
    report.listener = serves->listener->index;
    report.peer = serves->peer;
  }
  if (settings_.on_stuck_helper) {
    settings_.on_stuck_helper(report);
    return;
  }
  const std::string whom = serves != nullptr ? "the connection from " + report.peer.to_string() + " to listener " +
                                                   std::to_string(report.listener)
                                             : std::string("no connection");
  std::fprintf(stderr, "percore: core %zu ends without a helper thread that has worked for %s for %lld ms\n",
               report.core, whom.c_str(), static_cast<long long>(for_ns / 1'000'000));
}

void core::end_helpers() noexcept {
  constexpr std::int64_t to_leave_ns = 5'000'000'000;  // with nothing left to do
  constexpr std::int64_t to_leave_stuck_ns = 20'000'000;  // when others will not
  const unsigned left =
      resources_.helpers->end(sys::monotonic_ns() + (given_up_ ? to_leave_stuck_ns : to_leave_ns));
  if (left == 0 && !given_up_) return;
  run_completed();  // of those that came back in the last moment
  settings_.shared->release_open(resources_.slots.end_of_turn());
  for_each_connection([](slot& s) { s.abandon(); });
  resources_.given_up = true;
  run_messages(0);
  if (left != 0) resources_.helpers->abandon(held_with_it());
}

}  // namespace percore::engine
