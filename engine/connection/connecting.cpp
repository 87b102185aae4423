// dial: attempts to connect, who of several is first, and what follows on the connection that was made.

#include <algorithm>
#include <new>
#include <span>
#include <stdexcept>
#include <utility>
#include <vector>

#include "engine/connection/milliseconds.hpp"
#include "engine/connection/outgoing.hpp"
#include "engine/connection/resolving.hpp"
#include "engine/sys/socket_options.hpp"

namespace percore {

namespace engine {

namespace {

constexpr std::size_t no_listener = ~std::size_t{0};

std::uint32_t ms_until(std::int64_t deadline_ns) noexcept {
  if (deadline_ns == 0) return 0;
  const std::int64_t left = (deadline_ns - sys::monotonic_ns() + 999'999) / 1'000'000;
  return static_cast<std::uint32_t>(std::clamp<std::int64_t>(left, 1, ~std::uint32_t{0}));
}

outgoing_state* make_state(const dial_options& options) noexcept {
  auto* made = new (std::nothrow) outgoing_state;
  if (made == nullptr) return nullptr;
  made->index = no_listener;
  made->close_timeout_ms = to_ms(options.close_timeout);
  constexpr std::size_t most_unsent = std::size_t{1} << 30;  // as of listen_options
  made->unsent_tail_bytes = static_cast<std::uint32_t>(std::min(options.unsent_tail_bytes, most_unsent));
  constexpr std::size_t least_lent = 4096;
  const std::size_t from = options.zero_copy_from_bytes;
  if (from != 0) made->zero_copy_from_bytes = static_cast<std::uint32_t>(std::clamp(from, least_lent, most_unsent));
  return made;
}

int prepare(int fd, const address& where, const dial_options& options) noexcept {
  sys::apply_to_outgoing(fd, where.family(), options.socket, options.fast_open);
  if (options.source.family() == address_family::unspecified) return 0;
  sockaddr_storage from{};
  const socklen_t size = options.source.to_sockaddr(from);
  if (!options.source.is_unix() && options.source.port() == 0) sys::choose_port_late(fd);
  return sys::bind(fd, reinterpret_cast<const sockaddr*>(&from), size);
}

// A socket that connects: its descriptor, or -errno. `pending`: it is not connected yet.
int open_socket(const address& where, const dial_options& options, bool& pending) noexcept {
  sockaddr_storage to{};
  const socklen_t size = where.to_sockaddr(to);
  if (size == 0) return -EDESTADDRREQ;
  const int fd = sys::socket(to.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) return fd;
  int result = prepare(fd, where, options);
  if (result == 0) result = sys::connect(fd, reinterpret_cast<const sockaddr*>(&to), size);
  pending = result == -EINPROGRESS || result == -EINTR;  // an interrupted one goes on by itself (connect(2))
  if (result == 0 || pending) return fd;
  (void)sys::close(fd);
  return result;
}

// The socket has become writable, or so it was said: asking once more tells what has become of the attempt.
detail::write_source::outcome look_at_attempt(detail::write_source&, slot& through) noexcept {
  using outcome = detail::write_source::outcome;
  sockaddr_storage to{};
  const socklen_t size = address(through.peer).to_sockaddr(to);
  const int result = sys::connect(through.fd, reinterpret_cast<const sockaddr*>(&to), size);
  if (result == 0 || result == -EISCONN) return outcome::done;
  if (result == -EALREADY || result == -EINPROGRESS) {
    through.writable = false;
  } else if (result != -EINTR) {
    through.end_with(result);
  }
  return outcome::more;
}

}  // namespace

bool slot::begin_client_tls(const tls_context& with, const std::string& server_name) noexcept {
  reading = read_kind::start_tls;
  target_done = 0;
  view_size = 0;
  if (!ended && open_session(with.shared()) && secure->context().set_server_name(secure->ssl(), server_name)) {
    offer_resumption(server_name);
    return advance_read();
  }
  if (!ended) end_with(static_cast<int>(errc::no_memory));
  fail(end_reason);
  reading = read_kind::none;
  return true;
}

// Under the name that is verified, and the port: another service of the same host has tickets of its own.
void slot::offer_resumption(const std::string& server_name) noexcept {
  try {
    const address to(peer);
    std::string server = server_name + ' ' + (to.is_unix() ? std::string(to.path()) : std::to_string(to.port()));
    if (secure->resume(std::move(server))) ++core->counters.dials_offering;
  } catch (const std::bad_alloc&) {  // then it resumes nothing
  }
}

}  // namespace engine

using engine::core_resources;
using engine::slot;

// What dial() is made of.
struct dialling {
  static slot& of(const outgoing& made) noexcept { return slot::of(*made.connection_); }

  static void fail(outgoing& made, int reason) noexcept {
    made.error_ = reason > 0 ? std::error_code(static_cast<errc>(reason)) : std::error_code(-reason, std::system_category());
  }
  static void explain(outgoing& made, const char* why) noexcept { made.reason_ = why; }

  // A connection that connects or is connected, or why there is none.
  static outgoing attempt(core_resources& core, const address& where, const dial_options& options) noexcept {
    outgoing made;
    slot* s = core.dialling_ended ? nullptr : core.slots.take(core);
    if (s == nullptr || !core.reserve_open()) {
      if (s != nullptr) core.slots.put_back(*s);
      fail(made, static_cast<int>(core.dialling_ended ? errc::shutting_down : errc::limit_exceeded));
      return made;
    }
    bool pending = false;
    engine::outgoing_state* state = engine::make_state(options);
    const int fd = state == nullptr ? -ENOMEM : engine::open_socket(where, options, pending);
    if (fd < 0) {
      delete state;
      core.slots.put_back(*s);
      core.release_open();
      fail(made, fd);
      return made;
    }
    s->open_outgoing(fd, percore::peer_address(where), *state, made);
    if (pending) {
      s->writable = false;
      state->connecting.send = engine::look_at_attempt;
      (void)s->start_source(state->connecting);
    }
    return made;
  }

  // Waits for the first of some attempts that succeeds or fails, until a moment.
  class [[nodiscard]] first_of : detail::timer_node {
   public:
    first_of(std::span<outgoing> attempts, std::int64_t deadline_ns, std::int64_t wake_ns) noexcept
        : attempts_(attempts), deadline_ns_(deadline_ns), wake_ns_(wake_ns) {}
    bool await_ready() const noexcept {
      for (outgoing& attempt : attempts_) {
        slot& s = of(attempt);
        if (s.writing) s.continue_output();
        if (!s.writing) return true;
      }
      return false;
    }
    bool await_suspend(std::coroutine_handle<> waiter) noexcept {
      for (outgoing& attempt : attempts_) {
        slot& s = of(attempt);
        s.write_timeout_ms = engine::ms_until(deadline_ns_);
        if (!s.suspend_write(waiter)) return false;
      }
      if (wake_ns_ == 0) return true;
      core_resources& core = *engine::core_of_thread;
      waiter_ = waiter;
      host_ = engine::host_ref::of_running(core);
      fire = [](timer_node& node) {
        auto& self = static_cast<first_of&>(node);
        self.host_.resume(*engine::core_of_thread, self.waiter_);
      };
      core.timers.insert(*this, loop::timer_wheel::tick_from(wake_ns_));
      return true;
    }
    void await_resume() noexcept {
      unlink();
      for (outgoing& attempt : attempts_) {
        if (attempt) of(attempt).writer = {};
      }
    }

   private:
    std::span<outgoing> attempts_;
    std::int64_t deadline_ns_;
    std::int64_t wake_ns_;
    std::coroutine_handle<> waiter_;
    engine::host_ref host_;
  };

  // What failed at once still waits for the next step: one who tries again and again must not keep the core.
  class [[nodiscard]] next_step : detail::ready_node {
   public:
    bool await_ready() const noexcept { return false; }
    void await_suspend(std::coroutine_handle<> waiter) noexcept {
      waiter_ = waiter;
      host_ = engine::host_ref::of_running(*engine::core_of_thread);
      run = [](ready_node& node) {
        auto& self = static_cast<next_step&>(node);
        self.host_.resume(*engine::core_of_thread, self.waiter_);
      };
      engine::core_of_thread->ready.push_back(*this);
    }
    void await_resume() const noexcept {}

   private:
    std::coroutine_handle<> waiter_;
    engine::host_ref host_;
  };

  class [[nodiscard]] client_tls {
   public:
    client_tls(slot& s, const tls_context& with, const std::string& name) noexcept : s_(s), with_(with), name_(name) {}
    bool await_ready() const noexcept { return s_.begin_client_tls(with_, name_); }
    bool await_suspend(std::coroutine_handle<> waiter) const noexcept { return s_.suspend_start_tls(waiter); }
    bool await_resume() const noexcept { return s_.target_done != 0; }

   private:
    slot& s_;
    const tls_context& with_;
    const std::string& name_;
  };

  // An attempt that has ended: true when it is connected; else it is closed and says why.
  static bool settle(outgoing& attempt) noexcept {
    slot& s = of(attempt);
    if (!s.ended) return true;
    fail(attempt, s.end_reason);
    attempt.close();
    return false;
  }

  static task<outgoing> first_connected(std::vector<address> where, const dial_options& options,
                                        std::int64_t deadline_ns);
  static task<outgoing> finish(outgoing made, const dial_options& options, const std::string& host,
                               std::int64_t deadline_ns);
  static core_resources& core(const dial_options& options);
  static std::int64_t deadline(const dial_options& options) noexcept {
    return options.timeout.count() == 0 ? 0 : sys::monotonic_ns() + engine::to_ns(engine::to_ms(options.timeout));
  }
};

core_resources& dialling::core(const dial_options& options) {
  if (engine::core_of_thread == nullptr) throw std::logic_error("percore: dial() on a thread that is no core's");
  if (options.tls && options.tls->role() != tls_role::client) {
    throw std::invalid_argument("percore: dial() needs a client's tls_context");
  }
  return *engine::core_of_thread;
}

task<outgoing> dialling::first_connected(std::vector<address> where, const dial_options& options,
                                         std::int64_t deadline_ns) {
  core_resources& core = *engine::core_of_thread;
  std::vector<outgoing> attempts;
  outgoing failed;
  if (options.permit) {
    std::erase_if(where, [&options](const address& one) { return !options.permit(one); });
    fail(failed, static_cast<int>(errc::not_permitted));  // unless one is left
  }
  attempts.reserve(where.size());
  std::int64_t next_ns = 0;
  for (std::size_t next = 0;;) {
    if (next < where.size() && (attempts.empty() || sys::monotonic_ns() >= next_ns)) {
      attempts.push_back(attempt(core, where[next++], options));
      next_ns = sys::monotonic_ns() + std::chrono::nanoseconds(options.attempt_delay).count();
      if (!attempts.back()) {
        failed = std::move(attempts.back());
        attempts.pop_back();
        next_ns = 0;
        continue;
      }
    }
    if (attempts.empty()) break;
    co_await first_of(attempts, deadline_ns, next < where.size() ? next_ns : 0);
    for (auto it = attempts.begin(); it != attempts.end();) {
      if (*it && of(*it).writing) {
        ++it;
      } else if (*it && settle(*it)) {
        co_return std::move(*it);
      } else {
        if (!it->error()) fail(*it, static_cast<int>(errc::shutting_down));
        failed = std::move(*it);
        it = attempts.erase(it);
        next_ns = 0;
      }
    }
    if (deadline_ns != 0 && sys::monotonic_ns() >= deadline_ns) {
      fail(failed, static_cast<int>(errc::timed_out));
      break;
    }
  }
  co_await next_step();
  co_return std::move(failed);
}

task<outgoing> dialling::finish(outgoing made, const dial_options& options, const std::string& host,
                                std::int64_t deadline_ns) {
  core_resources& core = *engine::core_of_thread;
  if (made && options.proxy) {
    const std::string header = to_bytes(*options.proxy);
    of(made).write_timeout_ms = engine::ms_until(deadline_ns);
    const bool sent = co_await made->write(header);
    if (!sent) {
      fail(made, made ? of(made).error_value : static_cast<int>(errc::shutting_down));
      made.close();
    }
  }
  if (made && options.tls) {
    slot& s = of(made);
    s.out().handshake_timeout_ms = engine::ms_until(deadline_ns);
    const std::string& name = options.server_name.empty() ? host : options.server_name;
    const bool secured = co_await client_tls(s, *options.tls, name);
    if (!made) {
      fail(made, static_cast<int>(errc::shutting_down));
    } else if (!secured) {
      fail(made, s.error_value);
      if (s.secure != nullptr) explain(made, s.secure->reason().data());
      made.close();
    }
  }
  if (!made) {
    ++core.counters.dials_failed;
    co_return std::move(made);
  }
  ++core.counters.dialled;
  slot& s = of(made);
  if (s.secure != nullptr && SSL_session_reused(s.secure->ssl()) == 1) ++core.counters.dials_resuming;
  s.read_timeout_ms = engine::to_ms(options.read_timeout);
  s.write_timeout_ms = engine::to_ms(options.write_timeout);
  s.idle_timeout_ms = engine::to_ms(options.idle_timeout);
  s.lifetime_timeout_ms = engine::to_ms(options.lifetime_timeout);
  s.out().handshake_timeout_ms = engine::to_ms(options.timeout);
  s.timeouts_changed();
  co_return std::move(made);
}

task<outgoing> dial(address where, dial_options options) {
  co_await engine::at_home();
  (void)dialling::core(options);
  const std::int64_t deadline_ns = dialling::deadline(options);
  std::vector<address> only{where};
  outgoing made = co_await dialling::first_connected(std::move(only), options, deadline_ns);
  std::string host = where.is_unix() ? std::string(where.path()) : where.host();
  outgoing finished = co_await dialling::finish(std::move(made), options, host, deadline_ns);
  co_return std::move(finished);
}

task<outgoing> dial(std::string host, std::uint16_t port, dial_options options) {
  co_await engine::at_home();
  core_resources& core = dialling::core(options);
  const std::int64_t deadline_ns = dialling::deadline(options);
  engine::resolution found;
  if (!engine::resolve_here(host, port, found)) {
    co_await engine::resolved(core, host, port, deadline_ns, found);
  }
  outgoing made;
  if (options.source.family() != address_family::unspecified) {
    std::erase_if(found.addresses, [&](const address& one) { return one.family() != options.source.family(); });
  }
  if (found.addresses.empty()) {
    dialling::fail(made, found.error != 0 ? found.error : static_cast<int>(errc::no_address));
    dialling::explain(made, found.reason);
    ++core.counters.dials_failed;
    co_return std::move(made);
  }
  made = co_await dialling::first_connected(std::move(found.addresses), options, deadline_ns);
  outgoing finished = co_await dialling::finish(std::move(made), options, host, deadline_ns);
  co_return std::move(finished);
}

}  // namespace percore
