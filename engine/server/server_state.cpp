#include "engine/server/server_state.hpp"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <set>
#include <stdexcept>
#include <system_error>
#include <utility>

#include "engine/server/checked_options.hpp"
#include "engine/server/signals.hpp"

namespace percore::engine {

namespace {

// Which server's core this thread is.
constinit thread_local const server_state* server_of_thread = nullptr;

// Tells the listeners of this process apart: a session ticket of one is not good for another.
constinit std::atomic<std::uint64_t> next_tls_identity{1};

constexpr std::size_t most_connections_per_core = 262'144;

std::size_t slots_per_core(const server_options& options) {
  if (options.max_connections_per_core != 0) return options.max_connections_per_core;
  rlimit files{};
  if (sys::getrlimit(RLIMIT_NOFILE, &files) != 0) return most_connections_per_core;
  return std::clamp<std::size_t>(files.rlim_cur, 64, most_connections_per_core);
}

}  // namespace

server_state::server_state(server& face, server_options options)
    : face_(face),
      options_(checked(std::move(options))),
      limits_(options_.max_connections, options_.max_accepted),
      ended_(std::make_shared<loop::wakeup>()) {
  helpers_cap_.most = options_.helpers.most;
  limits_.on_last_accepted = [this] { begin_shutdown(options_.shutdown_grace); };
  limits_.on_room = [this] { signal_all(core::signal_room); };
  limits_.on_shared_pause = [this] { signal_all(core::signal_shared_pause); };
}

server_state::~server_state() {
  begin_halt();
  wait();
  close_adopted();
  for (auto& l : listeners_) l->group.reset();  // helpers that are stuck may keep the rest
  if (!loop::wakeup::thread_has_own_descriptors()) loop::wakeup::close_orphans();
}

std::size_t server_state::add_listener(const address* where, int fd, detail::handler handler, listen_options options,
                                       blocking_listener blocking) {
  if (started_) throw std::logic_error("percore: listen() after start()");
  auto made = std::make_shared<listener>();
  made->adopted_fd = fd;
  listeners_.reserve(listeners_.size() + 1);
  if (where != nullptr) made->where = *where;
  listener_config& config = made->config;
  config.handler = std::move(handler);
  config.blocking = std::move(blocking.handler);
  config.wait_for_client = blocking.start == handler_start::client_speaks;
  config.index = listeners_.size();
  configure(config, options, options_);
  config.tls_identity = next_tls_identity.fetch_add(1, std::memory_order_relaxed);
  made->options = options;
  listeners_.push_back(std::move(made));
  return listeners_.size() - 1;
}

void server_state::warn(const std::string& text) const {
  if (options_.on_warning) {
    options_.on_warning(text);
  } else {
    std::fprintf(stderr, "percore: %s\n", text.c_str());
  }
}

// Starting --------------------------------------------------------------------------------------------------

void server_state::start() {
  if (started_) throw std::logic_error("percore: start() was called before");
  if (listeners_.empty()) throw std::logic_error("percore: start() without a listener");
  plan_cores();
  try {
    bind_listeners();
    start_threads();
    wait_until_prepared();
    warn_of_distant_memory();
    start_watches();
    listen_all();
    if (options_.private_descriptors) {
      for (auto& l : listeners_) l->group->close_here();  // each core has its own by now
    }
    // Cores take up their listeners all together; if one cannot, none stays.
    started_ = true;  // before the first handler can ask for core_count() or post()
    {
      std::unique_lock lock(mutex_);
      gate_ = gate::open;
      gate_was_opened_ = true;
      changed_.notify_all();
      changed_.wait(lock, [this] { return listening_ == cores_.size() || failure_; });
      if (failure_) std::rethrow_exception(failure_);
    }
  } catch (...) {
    abort_start();
    throw;
  }
  if (!options_.on_started) return;
  try {
    options_.on_started(face_);
  } catch (...) {
    begin_halt();
    wait();
    throw;
  }
}

void server_state::plan_cores() {
  plan_ = plan_placement(discover_topology(), options_.placement);
  for (const auto& text : plan_.warnings) warn(text);
}

// One address for two listeners: the kernel would let the second join the first's group, or take its socket file for a
// stale one, since nobody listens there yet.
void server_state::refuse_shared_addresses() const {
  for (std::size_t i = 1; i < listeners_.size(); ++i) {
    const std::optional<address>& where = listeners_[i]->where;
    if (!where || (where->is_unix() ? where->path().empty() : where->port() == 0)) continue;  // the kernel chooses
    for (std::size_t earlier = 0; earlier < i; ++earlier) {
      const bool on_purpose = !where->is_unix() && listeners_[i]->options.socket.share_port &&
                              listeners_[earlier]->options.socket.share_port;
      if (listeners_[earlier]->where != where || on_purpose) continue;
      throw listen_error(*where, "bind", std::make_error_code(std::errc::address_in_use),
                         "listener " + std::to_string(earlier) + " of this server has the same address");
    }
  }
}

void server_state::bind_listeners() {
  refuse_shared_addresses();
  std::vector<int> cpus;
  for (const auto& place : plan_.cores) cpus.push_back(plan_.pin ? static_cast<int>(place.cpu) : -1);
  const auto callback = [this](const std::string& text) { warn(text); };
  for (auto& l : listeners_) {
    if (l->where) {
      l->group = sys::listen_group::bind(*l->where, l->options.socket, cpus, callback);
    } else {
      l->group = sys::listen_group::adopt(l->adopted_fd, l->options.socket, cpus.size(), callback);
      l->adopted_fd = -1;
    }
  }
}

void server_state::listen_all() {
  for (auto& l : listeners_) l->group->listen();
}

void server_state::start_threads() {
  // Made here, before any core has a descriptor table of its own, so that they are known in every one.
  wakeups_.clear();
  for (std::size_t i = 0; i < plan_.cores.size(); ++i) wakeups_.emplace_back();
  const std::string prefix = options_.thread_name.substr(0, 11);
  cores_.resize(plan_.cores.size());
  if (options_.takeover.on) deputies_.resize(plan_.cores.size());
  for (std::size_t i = 0; i < plan_.cores.size(); ++i) {
    std::vector<unsigned> cpus;
    if (plan_.pin) cpus.push_back(plan_.cores[i].cpu);
    sys::core_thread thread;
    {
      std::lock_guard lock(mutex_);
      ++running_;
    }
    try {
      thread.start([this, i] { run_core(i); }, prefix + "/" + std::to_string(i), cpus, options_.core_stack_bytes);
    } catch (...) {
      core_ended();
      throw;
    }
    threads_.push_back(std::move(thread));
  }
}

void server_state::start_watches() {
  if (options_.stalls.threshold->count() != 0) {
    watch_ = std::make_unique<stall_watch>(options_.stalls, options_.thread_name);
    for (auto& c : cores_) watch_->add(*c);
    watch_->start();
  }
  if (options_.takeover.on) {
    takeover_watch_ = std::make_unique<takeover_watch>(std::chrono::nanoseconds(options_.takeover.after).count());
    for (std::size_t i = 0; i < cores_.size(); ++i) takeover_watch_->add(*cores_[i], deputies_[i]);
    takeover_watch_->start(options_.thread_name);
  }
}

void server_state::stop_watches() noexcept {
  if (watch_) watch_->stop();
  takeover_watch_.reset();
}

void server_state::wait_until_prepared() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return prepared_ == cores_.size() || failure_; });
  if (failure_) std::rethrow_exception(failure_);
}

// Once for each node. Without a binding the kernel takes a page from the node of the thread that touches it first,
// here the core's own, unless a policy of the process or NUMA balancing decides otherwise (numa(7)).
void server_state::warn_of_distant_memory() const {
  std::set<unsigned> refused;
  for (std::size_t i = 0; i < cores_.size(); ++i) {
    if (cores_[i]->memory_binding_refused()) refused.insert(plan_.cores[i].numa_node);
  }
  for (const unsigned node : refused) {
    warn("the kernel refuses to bind memory to NUMA node " + std::to_string(node) +
         ": the slots and buffers of its cores may lie on another node");
  }
}

void server_state::abort_start() noexcept {
  {
    std::lock_guard lock(mutex_);
    gate_ = gate::aborted;
    changed_.notify_all();
  }
  stop_watches();
  watch_.reset();
  for (auto& thread : threads_) thread.join();  // none serves yet: they stop at the gate
  started_ = false;
  threads_.clear();
  deputies_.clear();
  cores_.clear();
  wakeups_.clear();
  loop::wakeup::close_orphans();
  for (auto& l : listeners_) l->group.reset();
  close_adopted();
  std::lock_guard lock(mutex_);
  gate_ = gate::closed;
  gate_was_opened_ = false;
  prepared_ = listening_ = 0;
  failure_ = nullptr;
}

void server_state::close_adopted() noexcept {
  for (auto& l : listeners_) {
    if (l->adopted_fd >= 0) (void)sys::close(std::exchange(l->adopted_fd, -1));
  }
}

// The cores' threads ----------------------------------------------------------------------------------------

void server_state::prepare_core(std::size_t index) {
  if (options_.private_descriptors) {
    if (const int result = loop::wakeup::unshare_descriptors(); result < 0) {
      throw std::system_error(-result, std::system_category(), "percore: private_descriptors: unshare");
    }
    for (auto& l : listeners_) l->group->close_others_here(index);
  }
  core::settings settings;
  settings.index = static_cast<unsigned>(index);
  if (plan_.pin) settings.numa_node = plan_.cores[index].numa_node;
  settings.limits = {slots_per_core(options_), options_.slot_bytes, options_.read_buffers_per_core,
                     options_.read_buffer_bytes, options_.operations_per_turn,
                     std::chrono::nanoseconds(options_.handshake_budget).count()};
  settings.mailbox_messages = options_.mailbox_messages;
  settings.pipes = options_.pipes_per_core;
  settings.pipe_bytes = options_.pipe_bytes;
  settings.owner = &face_;
  settings.shared = &limits_;
  settings.on_exception = options_.on_exception;
  settings.on_tls_failure = options_.on_tls_failure;
  settings.grace_end_ns = &grace_end_ns_;
  settings.stop_requested = stopping_;
  settings.helpers = helper_settings(index);
  settings.helper_patience_ns = std::chrono::nanoseconds(options_.helpers.patience).count();
  settings.on_stuck_helper = options_.helpers.on_stuck;
  auto made = std::make_shared<core>(settings, std::move(wakeups_[index]));
  made->held_with_it = [this, index] {
    // What a handler may still use: the core's memory and its listener's settings.
    return std::make_shared<std::pair<std::shared_ptr<core>, std::vector<std::shared_ptr<listener>>>>(cores_[index],
                                                                                                      listeners_);
  };
  for (auto& l : listeners_) {
    if (l->config.tls) made->prepare_tls(l->config.tls);
    acceptor::settings listening;
    listening.group = l->group.get();
    listening.config = &l->config;
    listening.limits = &limits_;
    listening.at_limit = options_.at_limit;
    listening.accepts_per_turn = l->options.accepts_per_turn;
    listening.client_speaks_first = l->options.socket.defer_accept.count() > 0;
    made->add_listener(listening);
  }
  made->run_by(::gettid());
  std::lock_guard lock(mutex_);
  cores_[index] = std::move(made);
  if (options_.takeover.on) prepare_deputies(index);
  ++prepared_;
  changed_.notify_all();
}

void server_state::prepare_deputies(std::size_t index) {
  core& self = *cores_[index];
  deputies::settings settings;
  settings.name = options_.thread_name.substr(0, 11) + "/" + std::to_string(index);
  if (plan_.pin) settings.helper_cpus = plan_.cores[index].helper_cpus;
  settings.most = options_.takeover.most_threads;
  if (plan_.pin) settings.core_cpus.push_back(plan_.cores[index].cpu);
  settings.stack_bytes = options_.core_stack_bytes;
  if (options_.stalls.threshold->count() != 0) settings.signal = options_.stalls.signal;
  settings.on_taken = [this] { server_of_thread = this; };
  settings.on_end = [this, index] {
    end_core(index);
    core_ended();
  };
  deputies_[index] = std::make_shared<deputies>(std::move(settings), self, self.held_with_it());
  self.open_to_takeover();
}

helpers::pool_settings server_state::helper_settings(std::size_t index) {
  const helper_options& wanted = options_.helpers;
  helpers::pool_settings result;
  result.name = options_.thread_name.substr(0, 7) + "/" + std::to_string(index);
  if (plan_.pin) result.cpus = plan_.cores[index].helper_cpus;
  result.floor = wanted.floor;
  result.most = wanted.most_per_core;
  result.queue = wanted.queue;
  result.wait_when_full = wanted.at_full == full_queue::wait;
  result.idle_lifetime_ns = std::chrono::nanoseconds(wanted.idle_lifetime).count();
  result.stack_bytes = wanted.stack_bytes;
  result.cap = &helpers_cap_;
  result.server = this;
  return result;
}

void server_state::run_core(std::size_t index) noexcept {
  server_of_thread = this;
  try {
    prepare_core(index);
    bool go = false;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return gate_ != gate::closed; });
      go = gate_ == gate::open;
    }
    core& self = *cores_[index];
    if (go) {
      if (const int result = self.start_listeners(); result != 0) {
        throw std::system_error(-result, std::system_category(), "percore: cannot watch a listening socket");
      }
      {
        std::unique_lock lock(mutex_);
        ++listening_;
        changed_.notify_all();
        changed_.wait(lock, [this] { return listening_ == cores_.size() || gate_ == gate::aborted; });
        go = gate_ != gate::aborted;
      }
      if (go) {
        if (options_.takeover.on) {
          const auto threads = deputies_[index];
          threads->serve();  // what is left to do is done by whichever thread ends the core; `this` may be gone
          return;
        }
        if (options_.stalls.threshold->count() != 0) sys::let_signal_through(options_.stalls.signal);
        (void)self.run();
      }
    }
    end_core(index);
  } catch (...) {
    end_core(index);
    std::lock_guard lock(mutex_);
    if (!failure_) failure_ = std::current_exception();
    changed_.notify_all();
  }
  core_ended();
}

// On the core's thread, whose descriptors may be its own. Listeners that were never taken up are closed where they were
// opened, by abort_start, unless the process's table no longer has them.
void server_state::end_core(std::size_t index) noexcept {
  core* self = nullptr;
  bool listeners_are_here = false;
  {
    std::lock_guard lock(mutex_);
    self = cores_[index].get();
    listeners_are_here = gate_was_opened_;
  }
  if (self == nullptr) return;
  if (listeners_are_here) self->close_listeners();
  self->close_poller();
}

void server_state::core_ended() noexcept {
  std::lock_guard lock(mutex_);
  if (--running_ == 0) {
    changed_.notify_all();
    ended_->wake();
  }
}

bool server_state::on_own_thread() const noexcept {
  return server_of_thread == this || helpers::server_of_helper == this;
}

// Ending ----------------------------------------------------------------------------------------------------

void server_state::signal_all(loop::mailbox::signals bits) noexcept {
  for (auto& c : cores_) {
    if (c) c->mailbox()->signal(bits);
  }
}

void server_state::begin_shutdown(std::chrono::milliseconds grace) noexcept {
  if (!started_) return;
  stopping_->store(true, std::memory_order_release);
  if (grace.count() != 0) {
    // The earliest end that anybody asked for.
    constexpr std::chrono::milliseconds none{0};
    constexpr std::chrono::milliseconds longest = std::chrono::hours(24 * 365 * 100);
    const std::chrono::nanoseconds left = std::clamp(grace, none, longest);
    const std::int64_t end = sys::monotonic_ns() + left.count();
    std::int64_t known = grace_end_ns_.load(std::memory_order_relaxed);
    while ((known == 0 || end < known) &&
           !grace_end_ns_.compare_exchange_weak(known, end, std::memory_order_release)) {
    }
  }
  signal_all(core::signal_shutdown);
}

void server_state::begin_halt() noexcept {
  if (!started_) return;
  stopping_->store(true, std::memory_order_release);
  signal_all(core::signal_halt);
}

void server_state::wait() {
  if (on_own_thread()) {
    throw std::logic_error("percore: a thread of a server, a core's or a helper, cannot wait for the server's end");
  }
  {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return running_ == 0; });
  }
  std::lock_guard joining(join_mutex_);
  stop_watches();
  for (std::size_t i = 0; i < threads_.size(); ++i) {
    if (i < deputies_.size() && !deputies_[i]->join()) threads_[i].detach();
    threads_[i].join();
  }
  deputies_.clear();
}

void server_state::serve() {
  std::optional<signal_watch> watch;
  if (options_.handle_signals) watch.emplace(*ended_);
  if (!started_) start();
  unsigned obeyed = 0;
  for (;;) {
    {
      std::lock_guard lock(mutex_);
      if (running_ == 0) break;
    }
    (void)sys::poll_readable(ended_->fd());
    ended_->drain();
    const unsigned received = watch ? watch->received() : 0;
    if (received > 0 && obeyed == 0) begin_shutdown(options_.shutdown_grace);
    if (received > 1) begin_halt();
    obeyed = received;
  }
  wait();
}

// Questions -------------------------------------------------------------------------------------------------

post_result server_state::post(std::size_t index, detail::message&& what) {
  if (!started_) return post_result::stopped;
  if (index >= cores_.size()) {
    throw std::out_of_range("percore: post() to core " + std::to_string(index) + " of a server with " +
                            std::to_string(cores_.size()) + " cores");
  }
  return cores_[index]->mailbox()->post(std::move(what));
}

server_stats server_state::stats() const {
  server_stats result;
  if (!started_) return result;
  for (const auto& c : cores_) {
    result.cores.push_back(c->stats());
    if (watch_) result.cores.back().stalls = watch_->stalls(result.cores.size() - 1);
    result.total += result.cores.back();
  }
  for (const auto& l : listeners_) {
    const sys::steering_decision& steering = l->group->steered_by();
    result.listeners.push_back({l->group->bound_address(), steering.method, steering.reason});
  }
  return result;
}

address server_state::local_address(std::size_t index) const {
  if (!started_) throw std::logic_error("percore: local_address() before start()");
  if (index >= listeners_.size()) throw std::out_of_range("percore: no such listener");
  return listeners_[index]->group->bound_address();
}

const placement_plan& server_state::placement() const {
  if (!started_) throw std::logic_error("percore: placement() before start()");
  return plan_;
}

}  // namespace percore::engine
