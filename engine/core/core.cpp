#include "engine/core/core.hpp"

#include <system_error>
#include <utility>

#include "engine/connection/pipes.hpp"
#include "engine/connection/slice.hpp"

namespace percore::engine {

namespace {

// Messages run in one turn before connections get their share again.
constexpr std::size_t messages_per_turn = 256;

}  // namespace

core::core(const settings& given, loop::wakeup&& wake)
    : settings_(given),
      slot_memory_(given.limits.slots * given.limits.slot_bytes, given.numa_node),
      buffer_memory_(read_buffer_pool::region_bytes(given.limits.buffer_bytes, given.limits.buffers),
                     given.numa_node),
      resources_(given.limits, slot_memory_.data(), buffer_memory_.data(),
                 std::make_shared<loop::mailbox>(given.mailbox_messages, std::move(wake))) {
  resources_.index = given.index;
  resources_.owner = given.owner;
  resources_.stop_requested = given.stop_requested;
  resources_.on_exception = given.on_exception;
  resources_.on_tls_failure = given.on_tls_failure;
  resources_.pipe_limit = given.pipes;
  resources_.pipe_bytes = given.pipe_bytes;
  resources_.reserve_open = [shared = given.shared] { return shared->reserve_open(); };
  resources_.release_open = [shared = given.shared] { shared->release_open(1); };
  grace_timer_.owner = this;
  patience_timer_.owner = this;
  patience_timer_.fire = [](detail::timer_node& node) { static_cast<own_timer&>(node).owner->give_up(); };
  resources_.helpers = std::make_shared<helpers::pool>(given.helpers, resources_.mailbox, resources_.timers);
  grace_timer_.fire = [](detail::timer_node& node) {
    core& self = *static_cast<own_timer&>(node).owner;
    // The listeners first: one that still waits for room or for descriptors would take what nobody ends any more.
    self.close_listeners();
    self.resources_.helpers->close();
    self.resources_.dialling_ended = true;
    self.for_each_connection([](slot& s) { s.end_grace(); });
    self.drop_queued_jobs();
    self.be_patient();
  };
  const int result = resources_.poller.add_listener(resources_.mailbox->wakeup_fd(), wakeup_token, false);
  if (result != 0) {
    throw std::system_error(-result, std::system_category(), "percore: cannot watch a core's wake-up");
  }
}

// What came back after the core had given up on it.
core::~core() {
  for_each_connection([](slot& s) { s.forget(); });
  detail::completion* next = resources_.mailbox->take_completed();
  while (next != nullptr) {
    auto& job = static_cast<detail::job&>(*next);
    next = next->next_completed;
    if (job.drop != nullptr) job.drop(job);
  }
  slice_job::free_idle(resources_);
}

void core::add_listener(acceptor::settings listener) {
  acceptors_.push_back(std::make_unique<acceptor>(resources_, listener, acceptors_.size()));
  resources_.gauges.emplace_back(listener.config->spill_budget_ns);
  if (listener.config->spill == spilling::when_slow) resources_.timing.add(listener.config->spill_budget_ns);
}

void core::prepare_tls(const std::shared_ptr<tls::shared_context>& context) {
  resources_.tls_state().prepare(context);
}

int core::start_listeners() noexcept {
  for (auto& listener : acceptors_) {
    if (const int result = listener->start(); result != 0) {
      close_listeners();
      return result;
    }
  }
  return 0;
}

void core::close_listeners() noexcept {
  for (auto& listener : acceptors_) listener->close();
}

bool core::run() noexcept {
  core_of_thread = &resources_;
  if (!std::exchange(begun_, true)) resources_.helpers->start(resources_.now_ns);
  while (!given_up_ && !(halting_ ? !jobs_left() : drained())) {
    if (!turn()) {
      core_of_thread = nullptr;
      return false;
    }
  }
  resources_.helpers->close();
  resources_.dialling_ended = true;
  // Whoever posts from here on is told that the server has ended; what was posted before still runs.
  resources_.mailbox->close();
  while (!resources_.mailbox->drained() || !resources_.late_messages.empty()) run_messages(messages_per_turn);
  if (!given_up_) {
    end_outgoing(resources_);
    settings_.shared->release_open(resources_.slots.end_of_turn());
  }
  end_helpers();
  core_of_thread = nullptr;
  return true;
}

bool core::take_over(std::uint64_t number) noexcept {
  if (!slice_.compare_exchange_strong(number, 0, std::memory_order_acq_rel)) return false;
  turn_interrupted_ = true;
  ++resources_.counters.takeovers;
  ++resources_.steps;
  slice_job& slice = *std::exchange(resources_.running, nullptr)->slice;
  slice.begun_at_ns = sys::monotonic_ns();
  return true;
}

void core::close_poller() noexcept {
  if (resources_.drain_fd >= 0) (void)sys::close(std::exchange(resources_.drain_fd, -1));
  if (resources_.pipes != nullptr) resources_.pipes->close();
  resources_.poller.close();
}

connection_handle core::handle_of(std::uint32_t slot_index, std::uint32_t generation) const {
  return {resources_.mailbox, resources_.index, slot_index, generation};
}

core_stats core::stats() const noexcept {
  core_stats result = resources_.counters.snapshot();
  const helpers::pool& pool = *resources_.helpers;
  result.helpers = pool.stats();
  result.bytes_received += pool.bytes_received();
  result.bytes_sent += pool.bytes_sent();
  return result;
}

bool core::drained() const noexcept {
  if (!resources_.stopping || jobs_left()) return false;
  for (const auto& listener : acceptors_) {
    if (!listener->closed()) return false;
  }
  return true;
}

// Always inlined, as slot::prefetch.
[[gnu::always_inline]] inline void core::prefetch(const epoll_event& event) const noexcept {
  if (event.data.u64 >> 32 != 0) resources_.slots.at(static_cast<std::uint32_t>(event.data.u64)).prefetch();
}

bool core::turn() noexcept {
  begin_turn();
  if (!dispatch_batch()) return false;
  if (const auto signals = resources_.mailbox->take_signals()) obey(signals);
  run_completed();
  run_messages(messages_per_turn);
  resources_.timers.advance(loop::timer_wheel::tick_of(resources_.now_ns));
  if (!run_slices()) return false;
  run_ready();
  run_handshakes();
  if (!run_slices()) return false;
  end_of_turn();
  if (resources_.timing.pending()) [[unlikely]] resources_.look_at_slices();
  if (resources_.helpers->growing()) resources_.helpers->grow(resources_.now_ns);
  return true;
}

void core::begin_turn() noexcept {
  // Else the thread that has lost this core has left events, or what comes behind them.
  const bool interrupted = std::exchange(turn_interrupted_, false);
  if (!interrupted) {
    const std::int64_t limit = sleep_limit();
    batch_ = resources_.poller.wait(limit);
    next_event_ = 0;
    if (!batch_.empty()) prefetch(batch_[0]);
    if (limit != 0) resources_.mailbox->awake();
    ++resources_.counters.wakeups;
    resources_.counters.events.add(batch_.size());
  }
  const std::int64_t before_ns = std::exchange(resources_.now_ns, sys::monotonic_ns());
  if (resources_.timing.begin_turn(before_ns, resources_.now_ns)) [[unlikely]] sys::lost_time::prepare(resources_.now_ns);
  if (resources_.open_to_takeover) {
    turn_began_ns_.store(resources_.now_ns, std::memory_order_relaxed);
    first_of_turn_.store(interrupted || batch_.empty() ? 0 : slices_run_ + 1, std::memory_order_release);
  }
}

bool core::dispatch_batch() noexcept {
  while (next_event_ < batch_.size()) {
    const epoll_event& event = batch_[next_event_++];
    if (next_event_ < batch_.size()) prefetch(batch_[next_event_]);
    dispatch(event);
    if (!run_slices()) return false;
    // What comes between here and the next slice may take long, and is not that slice's doing.
    if (resources_.open_to_takeover) first_of_turn_.store(0, std::memory_order_relaxed);
  }
  return true;
}

bool core::run_waiting_slices() noexcept {
  while (detail::ready_node* node = resources_.slices.pop_front()) {
    if (!run_slice(static_cast<slice_job&>(static_cast<detail::job&>(*node)))) return false;
  }
  return true;
}

// On this thread, and away from the core. False: the core is lost.
[[gnu::always_inline]] inline bool core::run_open(slice_job& slice) noexcept {
  slice.where = slice_job::place::running_here;
  slice.turn_ns = resources_.now_ns;
  resources_.running = slice.owner;
  ++resources_.steps;
  std::uint64_t number = ++slices_run_;
  slice_.store(number, std::memory_order_release);
  slice.run();
  const bool lost = !slice_.compare_exchange_strong(number, 0, std::memory_order_acq_rel);
  slice_of_thread = nullptr;  // not before: the stall watch's signal may ask what this thread does
  if (lost) [[unlikely]] return false;
  ++resources_.steps;
  return true;
}

[[gnu::always_inline]] inline void core::take_back(slot& owner) noexcept {
  if (owner.take_up_reading()) return;
  resources_.running = nullptr;
  owner.slice_is_back();
}

bool core::run_slice(slice_job& slice) noexcept {
  slot& owner = *slice.owner;
  if (owner.slices == slice_home::anywhere) [[unlikely]] return run_timed_slice(slice);
  if (!run_open(slice)) [[unlikely]] {
    resources_.mailbox->complete(slice);
    return false;
  }
  take_back(owner);
  return true;
}

// The same of one that may be spilled the next time. Before that, none is timed that is spilled in any case.
bool core::run_timed_slice(slice_job& slice) noexcept {
  slot& owner = *slice.owner;
  const bool watched = owner.listener->spill == spilling::when_slow;
  const bool timed = watched && resources_.timing.singly();
  const std::int64_t begun = timed ? resources_.beginning_of_slice() : resources_.now_ns;
  if (watched && !timed) resources_.count_slice();
  if (!run_open(slice)) {
    if (watched) slice.ran_ns = sys::monotonic_ns() - begun;
    resources_.mailbox->complete(slice);
    return false;
  }
  if (timed) slice.ran_ns = resources_.end_of_slice(begun, owner.listener->spill_budget_ns);
  take_back(owner);
  return true;
}

// How long the poller may wait; when it may wait at all, the mailbox has been told that this core sleeps.
std::int64_t core::sleep_limit() noexcept {
  if (!resources_.ready.empty() || !resources_.handshakes.empty() || !resources_.slices.empty() ||
      !resources_.late_messages.empty() || resources_.helpers->growing()) {
    return 0;
  }
  std::int64_t limit = -1;
  if (const std::uint64_t tick = resources_.timers.next_tick(); tick != loop::timer_wheel::never) {
    limit = static_cast<std::int64_t>(tick << loop::timer_wheel::tick_shift) - resources_.now_ns;
    if (limit <= 0) return 0;
  }
  return resources_.mailbox->prepare_to_sleep() ? limit : 0;
}

void core::dispatch(const epoll_event& event) noexcept {
  const std::uint64_t token = event.data.u64;
  const auto generation = static_cast<std::uint32_t>(token >> 32);
  if (generation != 0) [[likely]] {
    slot& target = resources_.slots.at(static_cast<std::uint32_t>(token));
    // An event of this very batch may be meant for a connection that the batch has already ended.
    if (target.generation == generation) target.on_event(event.events);
  } else if (token == wakeup_token) {
    resources_.mailbox->drain_wakeup();
  } else {
    acceptors_[token]->on_event();
  }
}

// What helpers give back: each was given away once, so their number is bounded by what connections have asked for.
void core::run_completed() noexcept {
  detail::completion* next = resources_.mailbox->take_completed();
  while (next != nullptr) {
    detail::completion& done = *next;
    next = done.next_completed;
    done.deliver(done, resources_);
  }
}

void core::run_messages(std::size_t most) noexcept {
  if (!resources_.late_messages.empty()) [[unlikely]] {
    std::vector<detail::message> late = std::exchange(resources_.late_messages, {});
    for (detail::message& message : late) resources_.run_message(message);
  }
  for (; most > 0; --most) {
    auto message = resources_.mailbox->pop();
    if (!message) return;
    resources_.run_message(*message);
  }
}

void core::run_ready() noexcept {
  // What becomes ready meanwhile waits for the next turn, behind fresh events.
  base::intrusive_list<detail::ready_node> now;
  now.take(resources_.ready);
  while (detail::ready_node* node = now.pop_front()) node->run(*node);
  resources_.buffers.wake_waiter(resources_.ready);
}

// In the order in which they came: while some wait, none that comes later is served before them.
void core::run_handshakes() noexcept {
  if (resources_.handshake_left_ns == resources_.handshake_budget_ns && resources_.handshakes.empty()) return;
  resources_.serving_handshakes = true;
  while (resources_.handshake_left_ns > 0) {
    detail::ready_node* node = resources_.handshakes.pop_front();
    if (node == nullptr) break;
    node->run(*node);
  }
  resources_.serving_handshakes = false;
  resources_.handshake_left_ns = resources_.handshake_budget_ns;
}

void core::end_of_turn() noexcept {
  const std::uint32_t freed = resources_.slots.end_of_turn();
  if (freed == 0) return;
  settings_.shared->release_open(freed);
  for (auto& listener : acceptors_) listener->on_room();
}

void core::obey(loop::mailbox::signals signals) noexcept {
  if (signals & signal_halt) {
    halt();
    return;
  }
  if (signals & signal_shutdown) begin_shutdown();
  if (signals & signal_room) {
    for (auto& listener : acceptors_) listener->on_room();
  }
  if (signals & signal_shared_pause) {
    for (auto& listener : acceptors_) listener->on_shared_pause();
  }
}

}  // namespace percore::engine
