// offload: work that blocks or burns CPU, on the helper threads of a core instead of on the core itself.
#pragma once

#include <atomic>
#include <chrono>
#include <coroutine>
#include <cstdint>
#include <exception>
#include <memory>
#include <optional>
#include <system_error>
#include <type_traits>
#include <utility>

#include <percore/detail/job.hpp>

namespace percore {

class connection;

// What a call on a helper has come to: its value, or why it was not made. What it has thrown is thrown where
// it is awaited. As a condition: whether it was made.
template <class T>
class [[nodiscard]] offloaded {
 public:
  explicit offloaded(T&& value) : value_(std::move(value)) {}
  explicit offloaded(std::error_code why_not) noexcept : error_(why_not) {}

  explicit operator bool() const noexcept { return value_.has_value(); }
  // Only with a value.
  T& operator*() & noexcept { return *value_; }
  T&& operator*() && noexcept { return std::move(*value_); }
  T* operator->() noexcept { return &*value_; }
  [[nodiscard]] std::error_code error() const noexcept { return error_; }

 private:
  std::optional<T> value_;
  std::error_code error_;
};

template <>
class [[nodiscard]] offloaded<void> {
 public:
  offloaded() noexcept : made_(true) {}
  explicit offloaded(std::error_code why_not) noexcept : error_(why_not) {}

  explicit operator bool() const noexcept { return made_; }
  [[nodiscard]] std::error_code error() const noexcept { return error_; }

 private:
  bool made_ = false;
  std::error_code error_;
};

// What a call on a helper may ask.
class offload_token {
 public:
  explicit offload_token(const std::atomic<bool>& cancelled) noexcept : cancelled_(&cancelled) {}
  // The connection has ended, the time is over, or the server halts: nobody needs the result. Any thread.
  [[nodiscard]] bool cancelled() const noexcept { return cancelled_->load(std::memory_order_relaxed); }

 private:
  const std::atomic<bool>* cancelled_;
};

namespace detail {

// The part of an offloaded call that does not depend on its type. Lies in the frame of the coroutine that
// waits.
class offload_piece : protected job {
 public:
  offload_piece(const offload_piece&) = delete;
  offload_piece& operator=(const offload_piece&) = delete;

  [[nodiscard]] bool is_with_helpers() const noexcept { return place_ == place::with_helpers; }

 protected:
  offload_piece(connection* bound_to, std::chrono::nanoseconds timeout) noexcept
      : bound_to_(bound_to), timeout_(timeout) {
    deadline_.piece = this;
  }
  ~offload_piece();

  bool submit(std::coroutine_handle<> waiter) noexcept;
  // When it was not made: why, and so said to the connection.
  [[nodiscard]] std::error_code why_not() const noexcept;

  bool made_ = false;
  std::atomic<bool> cancelled_{false};
  std::exception_ptr exception_;

 private:
  friend struct engine::slot;
  enum class place : unsigned char { nowhere, with_helpers, answered };
  struct deadline : timer_node {
    offload_piece* piece = nullptr;
  };

  bool submit_away(engine::slice_job& slice, std::coroutine_handle<> waiter) noexcept;
  ready_node& go_on_node() noexcept;
  void answer_soon(engine::core_resources& core, int reason) noexcept;
  void go_on(engine::core_resources& core) noexcept;

  connection* bound_to_;  // its end cancels this
  // Whose handler waits for this; none: a coroutine of nobody's, or the handler has returned. `owner`, which helpers
  // read, only says who has asked.
  engine::slot* waits_ = nullptr;
  std::uint32_t generation_ = 0;  // of the connection that `owner` was then
  std::chrono::nanoseconds timeout_;
  std::coroutine_handle<> waiter_;
  deadline deadline_;
  place place_ = place::nowhere;
  int error_ = 0;
};

template <class F>
using offload_result =
    typename std::conditional_t<std::is_invocable_v<std::remove_reference_t<F>&, const offload_token&>,
                                std::invoke_result<std::remove_reference_t<F>&, const offload_token&>,
                                std::invoke_result<std::remove_reference_t<F>&>>::type;

template <class F>
class [[nodiscard("co_await it")]] offload_awaiter : private offload_piece {
  using function = std::remove_reference_t<F>;
  using result = offload_result<F>;
  static constexpr bool is_temporary = std::is_rvalue_reference_v<F>;
  static_assert(!is_temporary || std::is_trivially_destructible_v<function>,
                "offload takes a named function object, or a temporary one without destructor: in a co_await "
                "expression "
                "g++ 12 destroys others twice");
  static_assert(!std::is_reference_v<result>,
                "an offloaded call returns a value; for a reference return a pointer");

 public:
  offload_awaiter(connection * bound_to, F f, std::chrono::nanoseconds timeout) noexcept
      : offload_piece(bound_to, timeout), function_(hold(static_cast<F>(f))) {
    work = [](job& base, helpers::helper&) noexcept { static_cast<offload_awaiter&>(base).call(); };
  }

  bool await_ready() const noexcept {
    return false;
  }
  bool await_suspend(std::coroutine_handle<> waiter) noexcept {
    return submit(waiter);
  }
  offloaded<result> await_resume() {
    if (exception_) std::rethrow_exception(std::exchange(exception_, nullptr));
    if constexpr (std::is_void_v<result>) {
      return made_ ? offloaded<void>() : offloaded<void>(why_not());
    } else {
      return made_ ? offloaded<result>(std::move(*value_)) : offloaded<result>(why_not());
    }
  }

 private:
  using held = std::conditional_t<is_temporary, function, function*>;
  struct nothing {};

  static held hold(F f) noexcept {
    if constexpr (is_temporary) {
      return std::move(f);
    } else {
      return &f;
    }
  }
  function& callee() noexcept {
    if constexpr (is_temporary) {
      return function_;
    } else {
      return *function_;
    }
  }
  decltype(auto) invoke() {
    if constexpr (std::is_invocable_v<function&, const offload_token&>) {
      return callee()(offload_token(cancelled_));
    } else {
      return callee()();
    }
  }
  void call() noexcept {
    try {
      if constexpr (std::is_void_v<result>) {
        invoke();
      } else {
        value_.emplace(invoke());
      }
    } catch (...) {
      exception_ = std::current_exception();
    }
    made_ = true;
  }

  held function_;
  [[no_unique_address]] std::conditional_t<std::is_void_v<result>, nothing, std::optional<result>> value_;
};

// A call that nobody waits for. From the heap; the core frees it.
struct detached_job : job {
  detached_job() {
    drop = [](job& base) noexcept { delete static_cast<detached_job*>(&base); };
  }
  virtual ~detached_job() = default;
  std::exception_ptr exception;
};

template <class F>
struct detached_call final : detached_job {
  template <class G>
  explicit detached_call(G&& f) : function(std::forward<G>(f)) {
    work = [](job& base, helpers::helper&) noexcept {
      auto& self = static_cast<detached_call&>(base);
      try {
        self.function();
      } catch (...) {
        self.exception = std::current_exception();
      }
    };
  }
  F function;
};

// may_wait: for room in the queue.
bool submit_detached(std::unique_ptr<detached_job> call, bool may_wait = false);

}  // namespace detail

// As connection::offload, for code that has no connection at hand: a coroutine that runs on a core's thread.
// The end of the connection whose handler it may belong to does not cancel it; a halt and the end of a
// shutdown's grace do (errc::shutting_down).
template <class F>
auto offload(F&& f, std::chrono::nanoseconds timeout = std::chrono::nanoseconds{0}) noexcept {
  return detail::offload_awaiter<F&&>(nullptr, static_cast<F&&>(f), timeout);
}

// Runs f() on a helper thread of the core whose thread calls this, and lets nobody wait for it. f is moved or
// copied. A shutdown waits for it; a halt, and the end of a shutdown's grace, drop those that have not begun.
// False when it will not run: the queue is full, whatever helper_options::at_full says, or the core has ended. What it
// throws is counted and reported as if it had left a handler (server_options::on_exception). Throws
// std::bad_alloc. It is destroyed on the core's thread.
template <class F>
bool offload_detached(F&& f) {
  return detail::submit_detached(
      std::make_unique<detail::detached_call<std::decay_t<F>>>(std::forward<F>(f)));
}

}  // namespace percore
