// copy_to and relay: from one connection to another.

#include <percore/relay.hpp>

#include <algorithm>
#include <new>
#include <utility>

#include "engine/connection/milliseconds.hpp"
#include "engine/connection/outgoing.hpp"
#include "engine/connection/pipes.hpp"

namespace percore {

namespace engine {

namespace {

// What comes in smaller pieces than this is cheaper to read and to write: splice never knows that a socket is drained and
// has to ask once more.
constexpr std::size_t worth_a_pipe = 16 * 1024;

// Waits until the source has something to say, without taking it.
class [[nodiscard]] something_to_read {
 public:
  explicit something_to_read(slot& s) noexcept : s_(s) {}
  bool await_ready() const noexcept {
    s_.target_done = 0;
    return s_.start_read(read_kind::ready);
  }
  bool await_suspend(std::coroutine_handle<> waiter) const noexcept { return s_.suspend_read(waiter); }
  bool await_resume() const noexcept { return s_.target_done != 0; }

 private:
  slot& s_;
};

// Waits until the target has sent all it had. Only then is more read for it: what waits for a reader that is slow is in
// its tail, and not in a buffer or a pipe, which others need.
class [[nodiscard]] room_in : detail::write_source {
 public:
  explicit room_in(slot& to) noexcept : to_(to) {
    send = [](write_source&, slot&) noexcept { return outcome::done; };
  }
  bool await_ready() noexcept { return to_.start_source(*this); }
  bool await_suspend(std::coroutine_handle<> waiter) const noexcept { return to_.suspend_write(waiter); }
  bool await_resume() const noexcept { return to_.write_ok; }

 private:
  slot& to_;
};

// Writes what a pipe holds.
class [[nodiscard]] from_pipe : detail::write_source {
 public:
  from_pipe(slot& to, pipe_lease& pipe) noexcept : to_(to), pipe_(pipe) {
    send = [](write_source& self, slot& through) noexcept { return static_cast<from_pipe&>(self).step(through); };
  }
  bool await_ready() noexcept { return to_.start_source(*this); }
  bool await_suspend(std::coroutine_handle<> waiter) const noexcept { return to_.suspend_write(waiter); }
  bool await_resume() const noexcept { return to_.write_ok; }

 private:
  outcome step(slot& through) noexcept {
    const ssize_t result = through.sent(sys::splice(pipe_.read_end(), through.fd, pipe_.held, through.fd));
    if (result > 0) pipe_.held -= static_cast<std::size_t>(result);
    if (result == 0) through.io_failed(-EIO);  // a pipe that holds something gives something
    return pipe_.held == 0 ? outcome::done : outcome::more;
  }

  slot& to_;
  pipe_lease& pipe_;
};

struct activity {
  std::int64_t last_ns = 0;
};

std::error_code error_of(const slot& s) noexcept { return static_cast<const connection&>(s).error(); }

// True when the bytes must pass through the program, and while a shutdown waits for the source to be idle.
bool must_be_read(const slot& from, const slot& to) noexcept {
  return from.encrypted || to.encrypted || (from.core->stopping && !from.dialled && !from.relayed);
}

task<copied> copy(connection& source, connection& target, std::uint64_t limit, activity* seen) {
  co_await at_home();
  slot& from = slot::of(source);
  slot& to = slot::of(target);
  copied result;
  const auto source_failed = [&] {
    if (from.error_value != static_cast<int>(errc::end_of_stream)) result.error = error_of(from);
  };
  const auto target_failed = [&] {
    result.error = error_of(to);
    result.target_failed = true;
  };
  bool in_bulk = false;
  while (result.bytes < limit) {
    if (to.tail != nullptr || !to.writable) {
      source.release_view();
      const bool room = co_await room_in(to);
      if (!room) {
        target_failed();
        break;
      }
    }
    const std::uint64_t left = limit - result.bytes;
    if (in_bulk && from.begin == from.end && !must_be_read(from, to)) {
      if (!co_await something_to_read(from)) {
        source_failed();
        break;
      }
      pipe_lease pipe(from.core->pipe_reserve());
      if (pipe) {
        const bool fine = from.splice_into(pipe.write_end(), left, pipe.held);
        if (!fine) in_bulk = false;  // the read finds out what it is, if it is something
        if (pipe.held == 0) continue;
        const std::size_t size = pipe.held;
        const bool written = co_await from_pipe(to, pipe);
        result.bytes += size - pipe.held;
        if (seen != nullptr) seen->last_ns = from.core->now_ns;
        if (!written) {
          target_failed();
          break;
        }
        if (size < worth_a_pipe) in_bulk = false;
        continue;
      }
      ++from.core->counters.pipes_exhausted;
    }
    bytes_view data = co_await source.read();
    if (!data) {
      source_failed();
      break;
    }
    in_bulk = data.size() >= worth_a_pipe;
    if (data.size() > left) {
      source.unread(data.size() - static_cast<std::size_t>(left));
      data = bytes_view(data.data(), static_cast<std::size_t>(left));
    }
    const bool written = co_await target.write(data);
    if (!written) {
      target_failed();
      break;
    }
    result.bytes += data.size();
    if (seen != nullptr) seen->last_ns = from.core->now_ns;
  }
  co_return result;
}

// Waits until one of two tasks is done, or until a moment.
class [[nodiscard]] one_of : detail::timer_node {
 public:
  one_of(core_resources& core, const task<copied>& first, const task<copied>& second, std::int64_t until_ns) noexcept
      : core_(core), first_(first), second_(second), until_ns_(until_ns) {}
  bool await_ready() const noexcept { return false; }
  bool await_suspend(std::coroutine_handle<> waiter) {
    waiter_ = waiter;
    host_ = host_ref::of_running(core_);
    for (const task<copied>* one : {&first_, &second_}) {
      if (!one->handle().done()) one->handle().promise().continuation = waiter;
    }
    if (until_ns_ == 0) return true;
    fire = [](detail::timer_node& node) {
      auto& self = static_cast<one_of&>(node);
      self.host_.resume(self.core_, self.waiter_);
    };
    core_.timers.insert(*this, loop::timer_wheel::tick_from(until_ns_));
    return true;
  }
  void await_resume() noexcept { unlink(); }

 private:
  core_resources& core_;
  const task<copied>& first_;
  const task<copied>& second_;
  std::int64_t until_ns_;
  std::coroutine_handle<> waiter_;
  host_ref host_;
};

// Marks an accepted connection whose reads a shutdown must not end.
class outliving {
 public:
  outliving(slot& s, bool on) noexcept : s_(s), generation_(s.generation), before_(s.relayed) {
    if (on) s.relayed = true;
  }
  outliving(const outliving&) = delete;
  outliving& operator=(const outliving&) = delete;
  ~outliving() {
    if (s_.generation == generation_) s_.relayed = before_;
  }

 private:
  slot& s_;
  std::uint32_t generation_;
  bool before_;
};

}  // namespace

// Into an empty pipe, without waiting. False when splice cannot be used; what ends the stream is left to the next read.
bool slot::splice_into(int pipe, std::uint64_t most, std::size_t& done) noexcept {
  done = 0;
  constexpr std::uint64_t most_at_once = 1024 * 1024;
  if (ended || end_seen || !readable) return !end_seen;
  const ssize_t result = sys::splice(fd, pipe, static_cast<std::size_t>(std::min(most, most_at_once)), fd);
  if (result > 0) {
    done = static_cast<std::size_t>(result);
    core->counters.bytes_received.add(done);
    note_activity();
    return true;
  }
  if (result == -EAGAIN) readable = false;  // the pipe is empty: it is the socket that has nothing
  return result == -EAGAIN || result == -EINTR;
}

pipe_pool& core_resources::pipe_reserve() {
  if (pipes == nullptr) pipes = std::make_shared<pipe_pool>(pipe_limit, pipe_bytes);
  return *pipes;
}

}  // namespace engine

using engine::slot;

task<copied> connection::copy_to(connection& other, std::uint64_t limit) {
  return engine::copy(*this, other, limit, nullptr);
}

task<relayed> relay(connection& first, connection& second, relay_options options) {
  co_await engine::at_home();
  slot& a = slot::of(first);
  slot& b = slot::of(second);
  engine::core_resources& core = *a.core;
  const engine::outliving keep_a(a, options.outlives_shutdown);
  const engine::outliving keep_b(b, options.outlives_shutdown);
  const std::int64_t idle_ns = engine::to_ns(engine::to_ms(options.idle_timeout));
  engine::activity seen{core.now_ns};
  relayed result;
  const auto end_both = [&](std::error_code why, int reason) {
    if (!result.error) result.error = why;
    for (slot* s : {&a, &b}) {
      if (s->ended) continue;
      s->resetting = true;
      s->end_with(reason);
    }
  };
  task<copied> forth = engine::copy(first, second, options.forth_limit, &seen);
  task<copied> back = engine::copy(second, first, no_limit, &seen);
  if (!forth || !back) throw std::bad_alloc();
  bool forth_open = true;
  bool back_open = true;
  const auto look_at = [&](const task<copied>& which, bool& open, std::uint64_t& bytes, connection& target) {
    if (!open || !which.handle().done()) return;
    open = false;
    const copied outcome = which.handle().promise().take();
    bytes = outcome.bytes;
    if (!outcome.error) {
      const bool at_limit = &target == &second && outcome.bytes == options.forth_limit;
      if (!at_limit) target.shutdown_write();
    } else {
      end_both(outcome.error, static_cast<int>(errc::closed));
    }
  };
  // Each runs until its first wait; from then on the loop goes on with them.
  forth.handle().resume();
  look_at(forth, forth_open, result.forth, second);
  back.handle().resume();
  look_at(back, back_open, result.back, first);
  while (forth_open || back_open) {
    co_await engine::one_of(core, forth, back, idle_ns == 0 ? 0 : seen.last_ns + idle_ns);
    look_at(forth, forth_open, result.forth, second);
    look_at(back, back_open, result.back, first);
    if (idle_ns != 0 && (forth_open || back_open) && core.now_ns >= seen.last_ns + idle_ns) {
      ++core.counters.timeouts;
      seen.last_ns = core.now_ns;
      end_both(errc::timed_out, static_cast<int>(errc::timed_out));
    }
  }
  co_return result;
}

}  // namespace percore
