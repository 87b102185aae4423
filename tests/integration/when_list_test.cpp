// when_all and when_any over lists that are made at run time, over real sockets.
#include <doctest/doctest.h>

#include <chrono>
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

task<std::string> ask(connection& up, std::string what) {
  const alive frame;
  const bool written = co_await up.write(what);
  if (!written) co_return "not written";
  const bytes_view data = co_await up.read();
  std::string answer(data.text());
  if (!data) answer = up.error().message();
  co_return answer;
}

task<int> answer_at_once(int value) {
  const alive frame;
  co_return value;
}

task<int> fail_later(connection& conn, int after_ms) {
  const alive frame;
  co_await conn.sleep_for(std::chrono::milliseconds(after_ms));
  throw std::runtime_error(std::to_string(after_ms));
}

task<> nothing(connection& conn) {
  const alive frame;
  co_await conn.yield();
}

// Runs a test in a handler that has dialled some connections of an echo server.
template <class Body>
void with_upstreams(std::size_t count, Body body, listen_options listening = {}) {
  test_server upstream(echo);
  const address where = upstream.where();
  event done;
  test_server server(
      [&](connection& conn) -> task<> {
        std::vector<outgoing> ups;
        for (std::size_t i = 0; i < count; ++i) {
          outgoing made = co_await dial(where);
          ups.push_back(std::move(made));
        }
        co_await body(conn, ups);
        done.set();
      },
      one_core(), listening);
  client peer = server.connect();
  done.wait();
  CHECK(server.total().handler_errors == 0);
}

TEST_CASE_FIXTURE(clean_process, "when_all: a list") {
  listen_options listening;
  SUBCASE("on the core") {}
  SUBCASE("of a handler whose slices leave it") { listening.spill = spilling::always; }
  const auto body = [](connection& conn, std::vector<outgoing>& ups) -> task<> {
    std::vector<task<std::string>> questions;
    for (std::size_t i = 0; i < ups.size(); ++i) questions.push_back(ask(*ups[i], std::to_string(i)));
    const std::span<const task<std::string>> list(questions);
    const std::vector<std::string> answers = co_await when_all(list);
    CHECK(answers.size() == ups.size());
    for (std::size_t i = 0; i < answers.size(); ++i) CHECK(answers[i] == std::to_string(i));
    std::vector<task<>> rest;
    for (int i = 0; i < 5; ++i) rest.push_back(nothing(conn));
    const auto values = co_await when_all(std::move(rest));
    CHECK(values.size() == 5);
    std::vector<task<int>> none;
    const auto empty = co_await when_all(std::move(none));
    CHECK(empty.empty());
  };
  with_upstreams(20, body, listening);
}

TEST_CASE_FIXTURE(clean_process, "when_any: a list, and who has lost is ended") {
  const auto body = [](connection&, std::vector<outgoing>& ups) -> task<> {
    for (std::size_t winner = 0; winner < ups.size(); ++winner) {
      std::vector<task<std::string>> questions;
      for (std::size_t i = 0; i < ups.size(); ++i) questions.push_back(ask(*ups[i], i == winner ? "me" : ""));
      first_done<std::string> first = co_await when_any(std::move(questions));
      CHECK(first.index == winner);
      CHECK(first.value == "me");
    }
    CHECK(alive::count() == 0);
    // Reads that were cut short have lost nothing.
    for (std::size_t i = 0; i < ups.size(); ++i) {
      const std::string answer = co_await ask(*ups[i], "again");
      CHECK(answer == "again");
    }
  };
  with_upstreams(10, body);
}

TEST_CASE_FIXTURE(clean_process, "when_any: of a list, what is done at once wins, and what stands behind is not begun") {
  const auto body = [](connection& conn, std::vector<outgoing>&) -> task<> {
    std::vector<task<int>> list;
    list.push_back(fail_later(conn, 100'000));
    list.push_back(answer_at_once(1));
    list.push_back(answer_at_once(2));
    const std::span<const task<int>> view(list);
    const first_done<int> first = co_await when_any(view);
    CHECK(first.index == 1);
    CHECK(first.value == 1);
    CHECK(list[0].handle().done());
    CHECK(!list[2].handle().done());
    // What the loser has thrown is reported; this test wants none left.
  };
  test_server upstream(echo);
  event done;
  test_server server([&](connection& conn) -> task<> {
    std::vector<outgoing> none;
    co_await body(conn, none);
    done.set();
  });
  client peer = server.connect();
  done.wait();
  CHECK(server.total().handler_errors == 1);
}

TEST_CASE_FIXTURE(clean_process, "when_all and when_any: lists that are too long, empty, or throw") {
  const auto body = [](connection& conn, std::vector<outgoing>&) -> task<> {
    std::string what;
    try {
      std::vector<task<int>> list;
      const auto first = co_await when_any(std::move(list));
      what = std::to_string(first.index);
    } catch (const std::invalid_argument&) {
      what = "empty";
    }
    CHECK(what == "empty");
    try {
      std::vector<task<int>> list;
      for (std::size_t i = 0; i <= most_tasks_at_once; ++i) list.push_back(answer_at_once(1));
      const auto all = co_await when_all(std::move(list));
      what = std::to_string(all.size());
    } catch (const std::length_error&) {
      what = "too long";
    }
    CHECK(what == "too long");
    try {
      std::vector<task<int>> list;
      list.push_back(answer_at_once(1));
      list.push_back(fail_later(conn, 2));
      const auto all = co_await when_all(std::move(list));
      what = std::to_string(all.size());
    } catch (const std::runtime_error& error) {
      what = error.what();
    }
    CHECK(what == "2");
    std::vector<task<int>> most;
    for (std::size_t i = 0; i < most_tasks_at_once; ++i) most.push_back(answer_at_once(1));
    const auto all = co_await when_all(std::move(most));
    CHECK(all.size() == most_tasks_at_once);
  };
  with_upstreams(0, body);
}

// As co_await does: it answers at once.
TEST_CASE_FIXTURE(clean_process, "when_all and when_any: tasks that are done already") {
  const auto body = [](connection& conn, std::vector<outgoing>&) -> task<> {
    std::vector<task<int>> list;
    for (int i = 0; i < 3; ++i) list.push_back(answer_at_once(i));
    const std::span<const task<int>> view(list);
    const std::vector<int> once = co_await when_all(view);
    const std::vector<int> twice = co_await when_all(view);
    CHECK(once == twice);
    const first_done<int> first = co_await when_any(view);
    CHECK(first.index == 0);
    CHECK(first.value == 0);
    const auto both = co_await when_all(std::move(list[1]), nothing(conn));
    CHECK(std::get<0>(both) == 1);
  };
  with_upstreams(0, body);
}

TEST_CASE_FIXTURE(clean_process, "when_any: a halt while the tasks of a list wait") {
  test_server upstream(echo);
  const address where = upstream.where();
  event waits;
  test_server server([&](connection&) -> task<> {
    std::vector<outgoing> ups;
    for (int i = 0; i < 10; ++i) {
      outgoing made = co_await dial(where);
      ups.push_back(std::move(made));
    }
    std::vector<task<std::string>> questions;
    for (outgoing& up : ups) questions.push_back(ask(*up, ""));
    waits.set();
    const auto first = co_await when_any(std::move(questions));
    CHECK(first.index == ups.size());
  });
  client peer = server.connect();
  waits.wait();
  server->halt();
  server->wait();
  CHECK(alive::count() == 0);
}

}  // namespace
}  // namespace percore::test
