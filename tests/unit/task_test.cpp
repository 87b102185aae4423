#include <percore/task.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <coroutine>
#include <cstdint>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "tests/support/bare_core.hpp"
#include "tests/support/clean_process.hpp"
#include "tests/support/waiting.hpp"

namespace percore::test {
namespace {

using engine::slot;

// --- values ----------------------------------------------------------------------------------------------

task<int> number(int value) {
  co_return value;
}
task<std::unique_ptr<int>> pointer(int value) {
  co_return std::make_unique<int>(value);
}
task<std::string> text(std::string value) {
  co_return value;
}
task<std::pair<int, std::string>> braces() {
  co_return {1, "one"};
}
task<std::string> converted() {
  co_return "from a literal";
}
task<bool> truth(bool value) {
  co_return value;
}
task<int*> address_of(int& value) {
  co_return &value;
}

struct no_default {
  explicit no_default(int n) : value(n) {}
  no_default(no_default&&) = default;
  no_default& operator=(no_default&&) = delete;
  int value;
};
task<no_default> awkward(int value) {
  co_return no_default(value);
}

struct large {
  std::array<std::uint64_t, 512> words;
};
task<large> many_words(std::uint64_t value) {
  large made{};
  made.words.fill(value);
  co_return made;
}

TEST_CASE_FIXTURE(clean_process, "task: hands back values of every kind") {
  bare_core core;
  bool done = false;
  core.run([&](connection&) -> task<> {
    const int n = co_await number(42);
    CHECK(n == 42);
    const auto p = co_await pointer(7);
    CHECK(*p == 7);
    const auto s = co_await text("a text that is too long for the small buffer of std::string");
    CHECK(s == "a text that is too long for the small buffer of std::string");
    const auto pair = co_await braces();
    CHECK(pair.first == 1);
    CHECK(pair.second == "one");
    const auto c = co_await converted();
    CHECK(c == "from a literal");
    const bool t = co_await truth(true);
    const bool f = co_await truth(false);
    CHECK(t);
    CHECK_FALSE(f);
    int local = 1;
    int* where = co_await address_of(local);
    CHECK(where == &local);
    const auto a = co_await awkward(3);
    CHECK(a.value == 3);
    const auto l = co_await many_words(9);
    CHECK(std::all_of(l.words.begin(), l.words.end(), [](std::uint64_t word) { return word == 9; }));
    done = true;
  });
  CHECK(done);
}

task<alive> a_life() {
  co_return alive();
}

TEST_CASE_FIXTURE(clean_process, "task: a value is destroyed as often as it was made") {
  bare_core core;
  core.run([&](connection&) -> task<> {
    {
      const alive got = co_await a_life();
      CHECK(alive::count() == 1);
    }
    CHECK(alive::count() == 0);
    co_await a_life();  // nobody wants it
    CHECK(alive::count() == 0);
  });
  CHECK(alive::count() == 0);
}

// --- life ------------------------------------------------------------------------------------------------

task<> counts(int& runs) {
  const alive local;
  ++runs;
  co_return;
}
task<> counts_parameter(int& runs, alive parameter) {
  ++runs;
  co_return;
  (void)parameter;
}

TEST_CASE_FIXTURE(clean_process, "task: runs when it is awaited and not before") {
  bare_core core;
  int runs = 0;
  core.run([&](connection&) -> task<> {
    task<> lazy = counts(runs);
    CHECK(lazy);
    CHECK(runs == 0);
    CHECK(alive::count() == 0);
    co_await lazy;
    CHECK(runs == 1);
    co_await counts(runs);
    CHECK(runs == 2);
  });
  CHECK(runs == 2);
}

TEST_CASE_FIXTURE(clean_process, "task: one that is never awaited is destroyed unstarted") {
  int runs = 0;
  {
    const task<> never = counts_parameter(runs, alive());
    CHECK(alive::count() == 1);  // the parameter's copy in the frame
  }
  CHECK(alive::count() == 0);
  CHECK(runs == 0);
}

TEST_CASE_FIXTURE(clean_process, "task: can be moved and an assignment destroys what it replaces") {
  int runs = 0;
  task<> empty;
  CHECK_FALSE(empty);
  {
    task<> first = counts_parameter(runs, alive());
    task<> second = counts_parameter(runs, alive());
    CHECK(alive::count() == 2);
    second = std::move(first);
    CHECK_FALSE(first);
    CHECK(second);
    CHECK(alive::count() == 1);
    task<>& same = second;
    second = std::move(same);
    CHECK(second);
    CHECK(alive::count() == 1);
    const task<> third(std::move(second));
    CHECK_FALSE(second);
    CHECK(third);
  }
  CHECK(alive::count() == 0);
}

TEST_CASE_FIXTURE(clean_process, "task: an empty one answers bad_alloc") {
  bare_core core;
  bool caught = false;
  core.run([&](connection&) -> task<> {
    try {
      co_await task<int>();
    } catch (const std::bad_alloc&) {
      caught = true;
    }
  });
  CHECK(caught);
}

TEST_CASE_FIXTURE(clean_process, "task: release gives up the frame") {
  int runs = 0;
  task<> made = counts(runs);
  const auto handle = made.release();
  CHECK_FALSE(made);
  REQUIRE(handle);
  handle.resume();
  CHECK(handle.done());
  CHECK(runs == 1);
  handle.destroy();
}

// --- exceptions ------------------------------------------------------------------------------------------

struct failure : std::runtime_error {
  using std::runtime_error::runtime_error;
  alive probe;
};

task<int> throws_at_once() {
  const alive local;
  throw failure("at once");
  co_return 0;
}
task<int> throws_after(gate& wait) {
  const alive local;
  co_await wait;
  throw failure("after a wait");
}
task<int> passes_on(gate* wait) {
  const alive local;
  const int value = wait ? co_await throws_after(*wait) : co_await throws_at_once();
  co_return value + 1;
}
task<std::string> catches(gate* wait) {
  std::string what = "nothing";
  try {
    co_await passes_on(wait);
  } catch (const failure& caught) {
    what = caught.what();
  }
  co_return what;
}

TEST_CASE_FIXTURE(clean_process,
                  "task: an exception goes up to whoever catches it and ends what lies between") {
  bare_core core;
  std::string what;
  bool resumed_at_once = false;
  gate wait;
  SUBCASE("thrown before any wait") {
    core.run([&](connection&) -> task<> { what = co_await catches(nullptr); });
    CHECK(what == "at once");
  }
  SUBCASE("thrown after a wait") {
    slot& s = core.run([&](connection&) -> task<> {
      what = co_await catches(&wait);
      resumed_at_once = true;
    });
    CHECK(what.empty());
    CHECK(alive::count() == 2);
    wait.open(s);
    CHECK(what == "after a wait");
    CHECK(resumed_at_once);
  }
  CHECK(alive::count() == 0);
}

TEST_CASE_FIXTURE(clean_process,
                  "task: an exception that leaves a handler is reported once and ends the connection") {
  bare_core core;
  int reports = 0;
  std::string what;
  core->on_exception = [&](std::exception_ptr reported) {
    ++reports;
    try {
      std::rethrow_exception(std::move(reported));
    } catch (const failure& caught) {
      what = caught.what();
    }
  };
  gate wait;
  slot& s = core.run([&](connection&) -> task<> { co_await passes_on(&wait); });
  CHECK(reports == 0);
  CHECK(core->slots.in_use() == 1);
  wait.open(s);
  CHECK(reports == 1);
  CHECK(what == "after a wait");
  CHECK(core->counters.handler_errors.get() == 1);
  CHECK(core->slots.in_use() == 0);
  core.run([](connection&) -> task<> { co_await throws_at_once(); });
  CHECK(reports == 2);
  CHECK(what == "at once");
  CHECK(alive::count() == 0);
}

// --- waiting ---------------------------------------------------------------------------------------------

task<int> waits(connection&, gate& g, int value) {
  const alive local;
  co_await g;
  co_return value;
}
task<int> adds(connection& conn, gate& g, int value) {
  const alive local;
  const int first = co_await waits(conn, g, value);
  const int second = co_await waits(conn, g, value);
  co_return first + second;
}

TEST_CASE_FIXTURE(clean_process, "task: a chain of tasks goes on where it waited") {
  bare_core core;
  gate g;
  int result = 0;
  slot& s = core.run([&](connection& conn) -> task<> {
    const int once = co_await adds(conn, g, 10);
    const int twice = co_await adds(conn, g, 1);
    result = once + twice;
  });
  for (int wait = 0; wait < 4; ++wait) {
    CHECK(result == 0);
    CHECK(alive::count() == 2);
    g.open(s);
  }
  CHECK(result == 22);
  CHECK_FALSE(g.waiter);
  CHECK(s.phase == engine::slot_phase::free);
}

TEST_CASE_FIXTURE(clean_process,
                  "task: frames that wait are destroyed with the handler from the inside out") {
  bare_core core;
  gate g;
  std::vector<int> order;
  struct note {
    std::vector<int>& order;
    int level;
    ~note() { order.push_back(level); }
  };
  const auto inner = [&](connection&) -> task<> {
    const note end{order, 3};
    co_await g;
    order.push_back(-1);
  };
  const auto middle = [&](connection& conn) -> task<> {
    const note end{order, 2};
    co_await inner(conn);
    order.push_back(-2);
  };
  slot& s = core.run([&](connection& conn) -> task<> {
    const note end{order, 1};
    co_await middle(conn);
    order.push_back(-3);
  });
  CHECK(order.empty());
  CHECK(s.arena.used() > 0);
  s.halt();
  CHECK(order.size() == 3);
  CHECK(std::find_if(order.begin(), order.end(), [](int level) { return level < 0; }) == order.end());
  CHECK(s.arena.used() == 0);
  CHECK(core->slots.in_use() == 0);
}

// --- stack -----------------------------------------------------------------------------------------------

// How far apart the stack frames of the calls to look() lie.
class stack_range {
 public:
  [[gnu::noinline]] void look() {
    const auto here = reinterpret_cast<std::uintptr_t>(__builtin_frame_address(0));
    low_ = std::min(low_, here);
    high_ = std::max(high_, here);
    ++looks_;
  }
  [[nodiscard]] std::size_t bytes() const { return high_ - low_; }
  [[nodiscard]] unsigned looks() const { return looks_; }

 private:
  std::uintptr_t low_ = UINTPTR_MAX;
  std::uintptr_t high_ = 0;
  unsigned looks_ = 0;
};

// Room for the few calls that lie between one look and another, at -O0 and under a sanitizer too. A hundred
// thousand calls with a stack frame each would take megabytes.
constexpr std::size_t few_stack_bytes = 16 * 1024;
constexpr unsigned many = 100'000;

task<int> looks(connection&, stack_range& stack, int value) {
  stack.look();
  co_return value;
}
task<int> looks_deeper(connection& conn, stack_range& stack, int value) {
  stack.look();
  const int got = co_await looks(conn, stack, value);
  co_return got;
}

TEST_CASE_FIXTURE(clean_process,
                  "task: a hundred thousand awaits that never wait need no more stack than one") {
  bare_core core;
  stack_range stack;
  long sum = 0;
  core.run([&](connection& conn) -> task<> {
    for (unsigned i = 0; i < many; ++i) sum += co_await looks_deeper(conn, stack, 1);
  });
  CHECK(sum == many);
  CHECK(stack.looks() == 2 * many);
  CHECK(stack.bytes() < few_stack_bytes);
  CHECK(core->counters.frames_on_heap.get() == 0);
}

task<int> looks_after(connection&, gate& g, stack_range& stack) {
  co_await g;
  stack.look();
  co_return 1;
}
task<int> looks_after_deeper(connection& conn, gate& g, stack_range& stack) {
  const int got = co_await looks_after(conn, g, stack);
  stack.look();
  co_return got;
}

TEST_CASE_FIXTURE(clean_process, "task: a hundred thousand awaits that wait need no more stack than one") {
  bare_core core;
  gate g;
  stack_range stack;
  long sum = 0;
  slot& s = core.run([&](connection& conn) -> task<> {
    for (unsigned i = 0; i < many; ++i) sum += co_await looks_after_deeper(conn, g, stack);
  });
  while (g.waiter) g.open(s);
  CHECK(sum == many);
  CHECK(stack.looks() == 2 * many);
  CHECK(stack.bytes() < few_stack_bytes);
}

// Every second one waits, so that both ways of going on follow each other.
TEST_CASE_FIXTURE(clean_process, "task: awaits of both kinds in turn need no more stack than one") {
  bare_core core;
  gate g;
  stack_range stack;
  long sum = 0;
  slot& s = core.run([&](connection& conn) -> task<> {
    for (unsigned i = 0; i < many; ++i) {
      sum += co_await looks_deeper(conn, stack, 1);
      if (i % 2 == 0) sum += co_await looks_after_deeper(conn, g, stack);
    }
  });
  while (g.waiter) g.open(s);
  CHECK(sum == many + many / 2);
  CHECK(stack.bytes() < few_stack_bytes);
}

task<int> descends(connection& conn, gate& g, stack_range& stack, int levels) {
  if (levels == 0) {
    co_await g;
    co_return 0;
  }
  const int below = co_await descends(conn, g, stack, levels - 1);
  stack.look();
  co_return below + 1;
}

TEST_CASE_FIXTURE(clean_process, "task: a deep chain of waiting tasks completes at one level of the stack") {
  constexpr int levels = 500;  // the way down is ordinary recursion and takes its share of the stack
  bare_core core;
  gate g;
  stack_range stack;
  int result = 0;
  slot& s = core.run([&](connection& conn) -> task<> { result = co_await descends(conn, g, stack, levels); });
  CHECK(core->counters.frames_on_heap.get() > 0);  // far more than fit the slot
  CHECK(stack.looks() == 0);
  g.open(s);
  CHECK(result == levels);
  CHECK(stack.looks() == levels);
  CHECK(stack.bytes() < few_stack_bytes);
}

}  // namespace
}  // namespace percore::test
