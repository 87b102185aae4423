// task<T>: the coroutine type of handlers and of the functions that they await.
#pragma once

#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <new>
#include <optional>
#include <type_traits>
#include <utility>

namespace percore {

class connection;

template <class T = void>
class task;

namespace detail {

// Frame memory. The first takes it from the connection's own slot and falls back to the heap (counted in
// stats().frames_on_heap) when the slot is full; the second is the heap. nullptr when there is none.
void* allocate_frame(connection& owner, std::size_t bytes) noexcept;
void* allocate_frame(std::size_t bytes) noexcept;
void release_frame(void* frame) noexcept;

// Resumes `handle` once the coroutine that runs now has suspended: on the same thread, from the bottom of the stack.
void resume_next(std::coroutine_handle<> handle) noexcept;

class fork;

struct promise_base {
  std::coroutine_handle<> continuation;  // who waits for this task; set only when it did not finish at once
  std::exception_ptr exception;
  // What this one waits for, if it is a task (its promise) or several (a fork, with bit 0 set): for when_any, which looks for
  // the end of the chain. 0: an operation, or nothing. Bit 1: `continuation` is a task. One word, since frames are to fit
  // their slots.
  std::uintptr_t awaited = 0;
  static constexpr std::uintptr_t is_fork = 1;
  static constexpr std::uintptr_t called_by_task = 2;
  void wait_for(std::uintptr_t what) noexcept { awaited = (awaited & called_by_task) | what; }
  [[nodiscard]] std::uintptr_t waits_for() const noexcept { return awaited & ~called_by_task; }

  // Symmetric transfer is no tail call under -O0, -O1 and the sanitizers of GCC 12 and would overflow the stack, so
  // a finished task only names who comes next.
  struct final_awaiter {
    bool await_ready() const noexcept { return false; }
    template <class Promise>
    void await_suspend(std::coroutine_handle<Promise> finished) const noexcept {
      promise_base& self = finished.promise();
      if ((self.awaited & called_by_task) != 0) {
        // Alike for all promises: none is aligned to more than the two pointers in front of it.
        std::coroutine_handle<promise_base>::from_address(self.continuation.address()).promise().wait_for(0);
      }
      if (self.continuation) resume_next(self.continuation);
    }
    void await_resume() const noexcept {}
  };

  std::suspend_always initial_suspend() const noexcept { return {}; }
  final_awaiter final_suspend() const noexcept { return {}; }
  void unhandled_exception() noexcept { exception = std::current_exception(); }

  // The frame of a coroutine that takes the connection as its first parameter (or as its first after the object
  // of a lambda or member function) lies in that connection's slot; any other is on the heap.
  // Inlined always: at -O0 GCC 12 takes the pair of a template and an ordinary function for a mismatch
  // (-Wmismatched-new-delete) in every user's file.
  template <class... Args>
  [[gnu::always_inline]] static void* operator new(std::size_t bytes, connection& owner, Args&&...) noexcept {
    return allocate_frame(owner, bytes);
  }
  template <class... Args>
  [[gnu::always_inline]] static void* operator new(std::size_t bytes, connection& owner, connection&,
                                                   Args&&...) noexcept {
    return allocate_frame(owner, bytes);
  }
  template <class Self, class... Args>
  [[gnu::always_inline]] static void* operator new(std::size_t bytes, Self&&, connection& owner,
                                                   Args&&...) noexcept {
    return allocate_frame(owner, bytes);
  }
  [[gnu::always_inline]] static void* operator new(std::size_t bytes) noexcept { return allocate_frame(bytes); }
  [[gnu::always_inline]] static void operator delete(void* frame) noexcept { release_frame(frame); }
};

template <class T>
struct promise : promise_base {
  static_assert(!std::is_reference_v<T>, "a task returns a value; for a reference return a pointer");
  static_assert(alignof(T) <= alignof(std::max_align_t), "frames have no larger alignment");
  std::optional<T> value;

  task<T> get_return_object() noexcept;
  static task<T> get_return_object_on_allocation_failure() noexcept;
  template <class U = T>
  void return_value(U&& result) {
    value.emplace(std::forward<U>(result));
  }
  T take() {
    if (exception) std::rethrow_exception(exception);
    return std::move(*value);
  }
};

template <>
struct promise<void> : promise_base {
  task<void> get_return_object() noexcept;
  static task<void> get_return_object_on_allocation_failure() noexcept;
  void return_void() const noexcept {}
  void take() const {
    if (exception) std::rethrow_exception(exception);
  }
};

}  // namespace detail

// With g++ 12 a `co_await` in the condition of a while or for loop is awaited even when what stands left of its && or || has
// decided: `while (go && co_await f())` calls f. In an if it is not; write one, or the loop's condition alone.
//
// A lazily started coroutine: it runs when it is awaited, inline on the same core, and hands back its value or its
// exception. Owns the frame; move-only. Awaiting costs no allocation beyond the frame (see detail::allocate_frame)
// and no trip through the event loop when the task never has to wait.
template <class T>
class [[nodiscard("a task runs only when it is awaited")]] task {
 public:
  using promise_type = detail::promise<T>;
  using handle_type = std::coroutine_handle<promise_type>;

  task() noexcept = default;
  explicit task(handle_type handle) noexcept : handle_(handle) {}
  task(task&& other) noexcept : handle_(std::exchange(other.handle_, {})) {}
  task& operator=(task&& other) noexcept {
    if (this != &other) {
      if (handle_) handle_.destroy();
      handle_ = std::exchange(other.handle_, {});
    }
    return *this;
  }
  task(const task&) = delete;
  task& operator=(const task&) = delete;
  ~task() {
    if (handle_) handle_.destroy();
  }

  // False for a moved-from task and for one whose frame could not be allocated.
  explicit operator bool() const noexcept { return static_cast<bool>(handle_); }

  class awaiter {
   public:
    explicit awaiter(handle_type handle) noexcept : handle_(handle) {}
    // A task runs once: awaiting it again answers at once, with what the first time has left.
    bool await_ready() const noexcept { return !handle_ || handle_.done(); }
    // Runs the task until its first wait. Without one there is nothing to suspend for.
    template <class Waiter>
    bool await_suspend(std::coroutine_handle<Waiter> waiter) const {
      handle_.resume();
      if (handle_.done()) return false;
      handle_.promise().continuation = waiter;
      if constexpr (std::is_base_of_v<detail::promise_base, Waiter>) {
        handle_.promise().awaited |= detail::promise_base::called_by_task;
        waiter.promise().wait_for(
            reinterpret_cast<std::uintptr_t>(static_cast<detail::promise_base*>(&handle_.promise())));
      }
      return true;
    }
    // Throws std::bad_alloc when the frame could not be allocated.
    T await_resume() const {
      if (!handle_) throw std::bad_alloc();
      return handle_.promise().take();
    }

   private:
    handle_type handle_;
  };

  awaiter operator co_await() const& noexcept { return awaiter(handle_); }
  awaiter operator co_await() const&& noexcept { return awaiter(handle_); }

  // For the engine.
  [[nodiscard]] handle_type handle() const noexcept { return handle_; }

  // Gives the frame to the caller, who must destroy it. For the engine.
  [[nodiscard]] handle_type release() noexcept { return std::exchange(handle_, {}); }

 private:
  handle_type handle_;
};

namespace detail {

template <class T>
task<T> promise<T>::get_return_object() noexcept {
  return task<T>(std::coroutine_handle<promise<T>>::from_promise(*this));
}
template <class T>
task<T> promise<T>::get_return_object_on_allocation_failure() noexcept {
  return task<T>();
}
inline task<void> promise<void>::get_return_object() noexcept {
  return task<void>(std::coroutine_handle<promise<void>>::from_promise(*this));
}
inline task<void> promise<void>::get_return_object_on_allocation_failure() noexcept { return task<void>(); }

}  // namespace detail

}  // namespace percore
