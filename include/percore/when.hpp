// when_all and when_any: several tasks of one core at the same time.
#pragma once

#include <array>
#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <new>
#include <optional>
#include <span>
#include <stdexcept>
#include <tuple>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include <percore/detail/links.hpp>
#include <percore/task.hpp>

namespace percore {

namespace engine {
struct slot;
}

namespace detail {

// One of the tasks that run at the same time.
struct branch {
  promise_base* promise = nullptr;
  std::coroutine_handle<> handle;
  bool begun = false;

  [[nodiscard]] bool runs() const noexcept { return begun && !handle.done(); }
  // Until its first wait, as co_await would; one that is done already stays so.
  void begin() {
    begun = true;
    if (!handle.done()) handle.resume();
  }
};

struct fork_access;
struct cancel_node : ready_node {};
struct retry_node : timer_node {};

// Waits until one more branch is done; with `cancel` it cuts short whatever those that are left wait for.
class [[nodiscard]] fork : private cancel_node, private retry_node {
 public:
  fork(std::span<branch> branches, bool cancel) noexcept : branches_(branches), cancel_(cancel) {}
  bool await_ready() const noexcept { return false; }
  template <class Waiter>
  void await_suspend(std::coroutine_handle<Waiter> waiter) noexcept {
    waiter_ = &waiter.promise();
    waiter_->wait_for(reinterpret_cast<std::uintptr_t>(this) | promise_base::is_fork);
    for (branch& one : branches_) {
      if (one.runs()) one.promise->continuation = waiter;
    }
    if (cancel_) begin_to_cancel();
  }
  void await_resume() noexcept {
    waiter_->wait_for(0);
    cancel_node::unlink();
    retry_node::unlink();
  }

 private:
  friend struct fork_access;
  void begin_to_cancel() noexcept;

  std::span<branch> branches_;
  bool cancel_;
  promise_base* waiter_ = nullptr;
  engine::slot* where_ = nullptr;  // whose handler waits; it outlives this
};

// Several tasks of a handler need their core: it stays there from now on (listen_options::spill).
struct [[nodiscard]] to_the_core {
  bool await_ready() const noexcept;
  bool await_suspend(std::coroutine_handle<> waiter) const noexcept;
  void await_resume() const noexcept {}
};

// Of a task whose result nobody gets: counted and reported as if it had left a handler.
void report_unheard(std::exception_ptr exception) noexcept;

template <class T>
using value_or_nothing = std::conditional_t<std::is_void_v<T>, std::monostate, T>;

template <class T>
value_or_nothing<T> take_value(const task<T>& done) {
  if constexpr (std::is_void_v<T>) {
    done.handle().promise().take();
    return {};
  } else {
    return done.handle().promise().take();
  }
}

template <class... Ts>
std::array<branch, sizeof...(Ts)> branches_of(const task<Ts>&... tasks) {
  if (!(static_cast<bool>(tasks) && ...)) throw std::bad_alloc();
  return {branch{&tasks.handle().promise(), tasks.handle(), false}...};
}

template <std::size_t... I, class... Ts>
void take_winner(std::index_sequence<I...>, std::size_t winner, std::optional<std::variant<value_or_nothing<Ts>...>>& into,
                 const task<Ts>&... tasks) {
  const auto take_one = [&]<std::size_t Number>(std::integral_constant<std::size_t, Number>, const auto& one) {
    if (Number == winner) {
      into.emplace(std::in_place_index<Number>, take_value(one));
    } else if (one.handle().done() && one.handle().promise().exception) {
      report_unheard(std::exchange(one.handle().promise().exception, nullptr));
    }
  };
  (take_one(std::integral_constant<std::size_t, I>(), tasks), ...);
}

}  // namespace detail

// Runs all of them, one beside the other, and answers when all are done: a tuple of their values (std::monostate for void).
// An exception is thrown once all are done; of several, that of the first task in the list.
//
// The tasks run in the same handler: each operation of a connection may be awaited by one of them at a time.
template <class... Ts>
task<std::tuple<detail::value_or_nothing<Ts>...>> when_all(task<Ts>... tasks) {
  co_await detail::to_the_core();
  std::array<detail::branch, sizeof...(Ts)> branches = detail::branches_of(tasks...);
  for (detail::branch& one : branches) one.begin();
  for (;;) {
    bool some_run = false;
    for (const detail::branch& one : branches) some_run = some_run || one.runs();
    if (!some_run) break;
    co_await detail::fork(branches, false);
  }
  co_return std::tuple<detail::value_or_nothing<Ts>...>{detail::take_value(tasks)...};
}

// Runs them until the first is done, ends the others, and answers with the first one's value: a variant whose index() tells which
// it was (std::monostate for void). They are begun in their order; one that is done without a wait wins, and those behind it
// are never begun.
//
// The others are ended by their own code: what they wait for fails with errc::cancelled, once and whenever they wait again, and
// when_any waits until they have returned. A read that is cut short loses nothing: the next one goes on. A write, a
// handshake or a dial that is cut short ends its connection. sleep_for answers false. An offloaded call that a helper has
// begun, and the resolver, are waited for. What a loser returns is dropped; what it throws is reported
// (server_options::on_exception).
template <class... Ts>
task<std::variant<detail::value_or_nothing<Ts>...>> when_any(task<Ts>... tasks) {
  static_assert(sizeof...(Ts) != 0);
  co_await detail::to_the_core();
  std::array<detail::branch, sizeof...(Ts)> branches = detail::branches_of(tasks...);
  std::size_t winner = branches.size();
  for (std::size_t i = 0; i < branches.size() && winner == branches.size(); ++i) {
    branches[i].begin();
    if (!branches[i].runs()) winner = i;
  }
  if (winner == branches.size()) {
    co_await detail::fork(branches, false);
    winner = 0;
    while (branches[winner].runs()) ++winner;
  }
  for (;;) {
    bool some_run = false;
    for (const detail::branch& one : branches) some_run = some_run || one.runs();
    if (!some_run) break;
    co_await detail::fork(branches, true);
  }
  std::optional<std::variant<detail::value_or_nothing<Ts>...>> result;
  detail::take_winner(std::index_sequence_for<Ts...>(), winner, result, tasks...);
  co_return std::move(*result);
}

// The same for a list that is made at run time, of at most most_tasks_at_once tasks (std::length_error). Each task that ends
// costs a look at all of them.
inline constexpr std::size_t most_tasks_at_once = 1024;

namespace detail {

template <class T>
std::vector<branch> branches_of(std::span<const task<T>> tasks) {
  if (tasks.size() > most_tasks_at_once) throw std::length_error("percore: too many tasks at once");
  std::vector<branch> result;
  result.reserve(tasks.size());
  for (const task<T>& one : tasks) {
    if (!one) throw std::bad_alloc();
    result.push_back(branch{&one.handle().promise(), one.handle(), false});
  }
  return result;
}

inline bool some_run(std::span<const branch> branches) noexcept {
  for (const branch& one : branches) {
    if (one.runs()) return true;
  }
  return false;
}

}  // namespace detail

// Which one was first, and what it answered.
template <class T>
struct first_done {
  first_done(std::size_t which, detail::value_or_nothing<T>&& what) : index(which), value(std::move(what)) {}
  std::size_t index;
  detail::value_or_nothing<T> value;
};

// Their values, in the order of the list. The tasks stay the caller's, and must live until this is done.
template <class T>
task<std::vector<detail::value_or_nothing<T>>> when_all(std::span<const task<T>> tasks) {
  co_await detail::to_the_core();
  std::vector<detail::branch> branches = detail::branches_of(tasks);
  for (detail::branch& one : branches) one.begin();
  while (detail::some_run(branches)) co_await detail::fork(branches, false);
  std::vector<detail::value_or_nothing<T>> values;
  values.reserve(tasks.size());
  for (const task<T>& one : tasks) values.push_back(detail::take_value(one));
  co_return values;
}
template <class T>
task<std::vector<detail::value_or_nothing<T>>> when_all(std::vector<task<T>> tasks) {
  const std::span<const task<T>> all(tasks);
  auto values = co_await when_all(all);
  co_return values;
}

// The tasks stay the caller's; those behind one that was done at once are not begun. Throws std::invalid_argument for an empty list.
template <class T>
task<first_done<T>> when_any(std::span<const task<T>> tasks) {
  co_await detail::to_the_core();
  if (tasks.empty()) throw std::invalid_argument("percore: when_any() of no tasks");
  std::vector<detail::branch> branches = detail::branches_of(tasks);
  std::size_t winner = branches.size();
  for (std::size_t i = 0; i < branches.size() && winner == branches.size(); ++i) {
    branches[i].begin();
    if (!branches[i].runs()) winner = i;
  }
  if (winner == branches.size()) {
    co_await detail::fork(branches, false);
    winner = 0;
    while (branches[winner].runs()) ++winner;
  }
  while (detail::some_run(branches)) co_await detail::fork(branches, true);
  for (std::size_t i = 0; i < branches.size(); ++i) {
    auto& promise = tasks[i].handle().promise();
    const bool unheard = i != winner && branches[i].begun && promise.exception;
    if (unheard) detail::report_unheard(std::exchange(promise.exception, nullptr));
  }
  first_done<T> result(winner, detail::take_value(tasks[winner]));
  co_return std::move(result);
}
template <class T>
task<first_done<T>> when_any(std::vector<task<T>> tasks) {
  const std::span<const task<T>> all(tasks);
  first_done<T> result = co_await when_any(all);
  co_return std::move(result);
}

}  // namespace percore
