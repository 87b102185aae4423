// What can be a handler, what it can await, and what happens to the exceptions that leave it.
#include <doctest/doctest.h>

#include <array>
#include <atomic>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "tests/support/clean_process.hpp"
#include "tests/support/test_server.hpp"

namespace percore::test {
namespace {

using namespace std::chrono_literals;

std::string ask(const address& where, std::string_view question) {
  client peer(where);
  peer.send_all(question);
  peer.half_close();
  return peer.recv_to_end();
}

struct greeter {
  std::string greeting;
  task<> operator()(connection& conn) const { co_await conn.write(greeting); }
};

struct service {
  std::string name;
  std::atomic<int> served = 0;
  task<> serve(connection& conn) {
    ++served;
    co_await conn.write(name);
  }
};

TEST_CASE_FIXTURE(clean_process, "handlers: functions and objects and lambdas and members") {
  service object{"member of an object that is large enough not to be small"};  // outlives the server
  server host(all_cores());
  const std::string captured = "a captured string that does not fit the small buffer";
  auto owned = std::make_unique<std::string>("owned by the closure");
  const auto named = [](connection& conn) -> task<> { co_await conn.write("named lambda"); };
  host.listen("127.0.0.1:0", echo);
  host.listen("127.0.0.1:0", &echo);
  host.listen("127.0.0.1:0", greeter{captured});
  host.listen("127.0.0.1:0", object, &service::serve);
  host.listen("127.0.0.1:0", named);
  host.listen("127.0.0.1:0", [captured](connection& conn) -> task<> { co_await conn.write(captured); });
  host.listen("127.0.0.1:0", [owned = std::move(owned)](connection& conn) -> task<> {
    co_await conn.yield();
    co_await conn.write(*owned);
  });
  host.start();
  for (int round = 0; round < 10; ++round) {
    CHECK(ask(host.local_address(0), "echo") == "echo");
    CHECK(ask(host.local_address(1), "echo") == "echo");
    CHECK(ask(host.local_address(2), "") == captured);
    CHECK(ask(host.local_address(3), "") == object.name);
    CHECK(ask(host.local_address(4), "") == "named lambda");
    CHECK(ask(host.local_address(5), "") == captured);
    CHECK(ask(host.local_address(6), "") == "owned by the closure");
  }
  CHECK(object.served.load() == 10);
}

struct named {
  std::string name;
  task<> unchanging(connection& conn) const { co_await conn.write(name + " const"); }
  task<> unthrowing(connection& conn) noexcept { co_await conn.write(name + " noexcept"); }
  task<> both(connection& conn) const noexcept { co_await conn.write(name + " both"); }
  int number(connection&) { return 0; }
};
struct derived : named {};

// What would dangle or cannot be called is refused by the compiler.
template <class T, class M>
concept can_listen = requires(server& host, T&& object, M member) {
  host.listen(address(), std::forward<T>(object), member);
};
template <class T, class M>
concept can_adopt = requires(server& host, T&& object, M member) {
  host.listen_fd(0, std::forward<T>(object), member);
};
static_assert(can_listen<service&, decltype(&service::serve)> && can_adopt<service&, decltype(&service::serve)>);
static_assert(!can_listen<service, decltype(&service::serve)> && !can_adopt<service, decltype(&service::serve)>);
static_assert(!can_listen<const named&, decltype(&named::unthrowing)>);
static_assert(!can_listen<named&, decltype(&named::number)>);
static_assert(!can_listen<service&, decltype(&named::both)>);

TEST_CASE_FIXTURE(clean_process, "handlers: const and noexcept members, with every way to listen") {
  server host(one_core());
  named object{"object"};
  const named fixed{"const object"};
  derived child{{"derived"}};
  const std::vector<std::pair<std::string, std::size_t>> listeners = {
      {"object const", host.listen("127.0.0.1:0", object, &named::unchanging)},
      {"object noexcept", host.listen("127.0.0.1:0", object, &named::unthrowing)},
      {"object both", host.listen("127.0.0.1:0", object, &named::both, listen_options())},
      {"const object const", host.listen("127.0.0.1:0", fixed, &named::unchanging)},
      {"const object both", host.listen("127.0.0.1:0", fixed, &named::both)},
      {"derived noexcept", host.listen("127.0.0.1:0", child, &derived::unthrowing)},
      {"object const", host.listen_fd(listening_socket("127.0.0.1:0"), object, &named::unchanging)},
      {"object noexcept", host.listen_fd(listening_socket("127.0.0.1:0"), object, &named::unthrowing)},
      {"const object both",
       host.listen_fd(listening_socket("127.0.0.1:0"), fixed, &named::both, listen_options())}};
  host.start();
  for (const auto& [answer, listener] : listeners) CHECK(ask(host.local_address(listener), "") == answer);
}

TEST_CASE_FIXTURE(clean_process, "handlers: a handler lives as long as its server and is destroyed once") {
  {
    const alive probe;
    server host(one_core());
    host.listen("127.0.0.1:0", [probe](connection& conn) -> task<> { co_await conn.read(); });
    CHECK(alive::count() == 2);
    host.start();
    client peer(host.local_address());
    CHECK(eventually([&] { return host.stats().total.active == 1; }));
    host.halt();
  }
  CHECK(alive::count() == 0);
}

// --- nested tasks ----------------------------------------------------------------------------------------

task<int> number(connection& conn, int value) {
  if (value % 2 == 0) co_await conn.yield();
  co_return value;
}

task<std::string> line(connection& conn) {
  auto data = co_await conn.read_until("\n", 1000);
  co_return std::string(data.text());
}

task<std::unique_ptr<int>> pointer(connection& conn, int value) {
  co_await conn.sleep_for(1ms);
  co_return std::make_unique<int>(value);
}

task<int> sum_below(connection& conn, int n) {
  const alive frame;
  if (n == 0) co_return 0;
  const int rest = co_await sum_below(conn, n - 1);
  co_return rest + n;
}

task<int> no_connection(int value) { co_return value + 1; }

struct calculator {
  int base = 0;
  task<int> add(connection& conn, int value) {
    co_await conn.yield();
    co_return base + value;
  }
};

TEST_CASE_FIXTURE(clean_process, "handlers: nested tasks give back values of every kind") {
  test_server server([](connection& conn) -> task<> {
    const int one = co_await number(conn, 1);
    const int two = co_await number(conn, 2);
    const std::string text = co_await line(conn);
    const std::unique_ptr<int> three = co_await pointer(conn, 3);
    calculator sums{10};
    const int thirteen = co_await sums.add(conn, *three);
    const auto lambda = [&conn](connection& inner, int value) -> task<int> {
      co_await inner.yield();
      co_return &inner == &conn ? value : 0;
    };
    const int five = co_await lambda(conn, 5);
    const int eight = co_await no_connection(7);
    task<int> kept = number(conn, 6);
    task<int> moved = std::move(kept);
    const int six = co_await moved;
    std::string answer = text;
    for (const int value : {one, two, thirteen, five, eight, six}) answer += std::to_string(value) + ' ';
    co_await conn.write(answer);
  });
  CHECK(ask(server.where(), "numbers\n") == "numbers\n1 2 13 5 8 6 ");
}

TEST_CASE_FIXTURE(clean_process, "handlers: a task that nobody awaits does not run") {
  std::atomic<bool> ran = false;
  test_server server([&](connection& conn) -> task<> {
    {
      const auto unused = [](connection&, alive, std::atomic<bool>& flag) -> task<> {
        flag = true;
        co_return;
      }(conn, alive(), ran);
      CHECK(static_cast<bool>(unused));
    }
    co_await conn.write("done");
  });
  CHECK(ask(server.where(), "") == "done");
  CHECK_FALSE(ran);
}

TEST_CASE_FIXTURE(clean_process, "handlers: deep nesting goes to the heap and is counted") {
  test_server server([](connection& conn) -> task<> {
    const int sum = co_await sum_below(conn, 200);
    const std::string answer = std::to_string(sum);
    co_await conn.write(answer);
  });
  for (int i = 0; i < 3; ++i) CHECK(ask(server.where(), "") == "20100");
  CHECK(server.total().frames_on_heap > 300);
}

TEST_CASE_FIXTURE(clean_process, "handlers: a large frame works and is counted") {
  test_server server([](connection& conn) -> task<> {
    std::array<char, 20'000> local;
    local.fill('x');
    co_await conn.yield();
    co_await conn.write(bytes_view(std::string_view(local.data(), local.size())));
  });
  CHECK(ask(server.where(), "") == std::string(20'000, 'x'));
  CHECK(server.total().frames_on_heap == 1);
}

TEST_CASE_FIXTURE(clean_process, "handlers: an ordinary handler with a nested task stays in its slot") {
  test_server server([](connection& conn) -> task<> {
    const std::string text = co_await line(conn);
    co_await conn.write(text);
  });
  for (int i = 0; i < 10; ++i) CHECK(ask(server.where(), "text\n") == "text\n");
  CHECK(server.total().frames_on_heap == 0);
}

// With symmetric transfer this would overflow the stack where it is no tail call.
TEST_CASE_FIXTURE(clean_process, "handlers: long loops over nested tasks use no stack") {
  server_options options = one_core();
  options.core_stack_bytes = 256 * 1024;
  test_server server(
      [](connection& conn) -> task<> {
        long sum = 0;
        for (int i = 0; i < 100'000; ++i) sum += co_await number(conn, 1);
        for (int i = 0; i < 20'000; ++i) sum += co_await number(conn, 2);
        const std::string answer = std::to_string(sum);
        co_await conn.write(answer);
      },
      options);
  CHECK(ask(server.where(), "") == "140000");
}

TEST_CASE_FIXTURE(clean_process, "handlers: a busy connection does not keep the others of its core waiting") {
  // One client has so much to be echoed that its handler would hardly ever have to wait.
  test_server server(echo);
  std::atomic<bool> stop = false;
  client busy = server.connect();
  std::thread sender([&] {
    const std::string block(60'000, 'x');
    while (!stop) busy.send_all(block);
    busy.half_close();
  });
  std::thread receiver([&] { (void)busy.recv_to_end(); });
  for (int i = 0; i < 100; ++i) CHECK(ask(server.where(), "me too") == "me too");
  stop = true;
  sender.join();
  receiver.join();
}

// --- exceptions ------------------------------------------------------------------------------------------

task<int> thrower(connection& conn, bool late) {
  const alive frame;
  if (late) co_await conn.yield();
  throw std::runtime_error("from a nested task");
}

TEST_CASE_FIXTURE(clean_process, "handlers: a nested task's exception reaches who awaits it") {
  test_server server([](connection& conn) -> task<> {
    std::string answer;
    for (const bool late : {false, true}) {
      try {
        co_await thrower(conn, late);
      } catch (const std::runtime_error& failure) {
        answer += failure.what();
      }
    }
    co_await conn.write(answer);
  });
  CHECK(ask(server.where(), "") == "from a nested taskfrom a nested task");
  CHECK(server.total().handler_errors == 0);
}

TEST_CASE_FIXTURE(clean_process, "handlers: an exception ends its own connection and is counted and reported") {
  channel<std::string> reported;
  server_options options = all_cores();
  options.on_exception = [&](std::exception_ptr thrown) {
    try {
      std::rethrow_exception(thrown);
    } catch (const std::exception& failure) {
      reported.put(failure.what());
    } catch (int value) {
      reported.put(std::to_string(value));
    }
  };
  test_server server(
      [](connection& conn) -> task<> {
        const alive frame;
        while (auto command = co_await conn.read_until("\n", 100)) {
          if (command.text() == "runtime\n") throw std::runtime_error("from the handler");
          if (command.text() == "nested\n") co_await thrower(conn, true);
          if (command.text() == "number\n") throw 42;
          co_await conn.write(command);
        }
      },
      options);
  client steady = server.connect();
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"runtime\n", "from the handler"}, {"nested\n", "from a nested task"}, {"number\n", "42"}};
  std::uint64_t errors = 0;
  for (int round = 0; round < 5; ++round) {
    for (const auto& [command, what] : cases) {
      client peer = server.connect();
      peer.send_all(command);
      CHECK(reported.take() == what);
      (void)peer.wait_for_end();
      ++errors;
      CHECK(eventually([&] { return server.total().handler_errors == errors; }));
      steady.send_all("still here\n");
      CHECK(steady.recv_exactly(11) == "still here\n");
    }
  }
  CHECK(eventually([&] { return server.total().active == 1; }));
}

TEST_CASE_FIXTURE(clean_process, "handlers: an exception before the first wait and without a hook") {
  test_server server([](connection&) -> task<> {
    throw std::runtime_error("at once");
    co_return;
  });
  for (int i = 0; i < 10; ++i) {
    client peer = server.connect();
    (void)peer.wait_for_end();
  }
  CHECK(eventually([&] { return server.total().handler_errors == 10 && server.total().active == 0; }));
}

TEST_CASE_FIXTURE(clean_process, "handlers: a handler that throws before it is a coroutine") {
  channel<std::string> reported;
  server_options options = one_core();
  options.on_exception = [&](std::exception_ptr) { reported.put("reported"); };
  test_server server(
      [](connection& conn) -> task<> {
        if (conn.core_index() == 0) throw std::runtime_error("no coroutine at all");
        return echo(conn);
      },
      options);
  client peer = server.connect();
  CHECK(reported.take() == "reported");
  (void)peer.wait_for_end();
  CHECK(eventually([&] { return server.total().handler_errors == 1 && server.total().active == 0; }));
}

TEST_CASE_FIXTURE(clean_process, "handlers: a plain function may choose the coroutine that serves") {
  test_server server([](connection& conn) -> task<> {
    if (conn.listener() == 0) return echo(conn);
    return task<>();
  });
  CHECK(ask(server.where(), "chosen") == "chosen");
}

}  // namespace
}  // namespace percore::test
