// when_all and when_any, over real sockets.
#include <doctest/doctest.h>

#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <stdexcept>
#include <string>
#include <thread>
#include <tuple>
#include <variant>
#include <vector>

#include "tests/support/clean_process.hpp"
#include "tests/support/test_server.hpp"

namespace percore::test {
namespace {

using namespace std::chrono_literals;

task<std::string> read_text(connection& conn) {
  const alive frame;
  auto data = co_await conn.read();
  std::string text(data.text());
  if (!data) text = conn.error().message();
  co_return text;
}

task<> wait_for(connection& conn, std::chrono::milliseconds time) {
  const alive frame;
  co_await conn.sleep_for(time);
}

task<int> answer_at_once(int value) { co_return value; }

task<int> fail_with(connection& conn, const char* what) {
  co_await conn.yield();
  throw std::runtime_error(what);
}

task<> answer_and_nothing() { co_return; }

task<> note_that(std::atomic<bool>& begun) {
  begun = true;
  co_return;
}

task<std::string> first_when_second(connection& conn, std::atomic<bool>& then) {
  std::string text = co_await read_text(conn);
  then = true;
  co_return text;
}

const std::string cut_short = make_error_code(errc::cancelled).message();

// Goes on after each wait that is cut short, until it has tried everything.
task<> stubborn(connection& conn, connection& up, const std::string& text, channel<std::string>& heard) {
  const alive frame;
  const std::string read = co_await read_text(conn);
  heard.put("read: " + read);
  auto both = co_await when_all(read_text(conn), read_text(up));
  const bool all = std::get<0>(both) == cut_short && std::get<1>(both) == cut_short;
  heard.put("nested: " + (all ? cut_short : std::get<0>(both) + std::get<1>(both)));
  const bool slept = co_await conn.sleep_for(std::chrono::hours(1));
  heard.put("slept: " + std::to_string(slept));
  auto work = [] { std::this_thread::sleep_for(5ms); };
  (void)co_await conn.offload(work);  // made or not: a helper may have been there first
  heard.put("offloaded");
  const bool written = co_await conn.write(text);
  heard.put(written ? std::string("wrote all") : "wrote: " + conn.error().message());
}

task<> first_answer(address one, address two, std::atomic<bool>& go, channel<std::string>& result) {
  outgoing a = co_await dial(one);
  outgoing b = co_await dial(two);
  if (!a || !b) co_return;
  go = true;
  auto first = co_await when_any(read_text(*a), read_text(*b));
  result.put(std::to_string(first.index()) + " " + (first.index() == 0 ? std::get<0>(first) : std::get<1>(first)));
}

task<> throw_when_cut_short(connection& conn) {
  auto data = co_await conn.read();
  if (!data) throw std::runtime_error("cut short");
}

task<> in_a_helper(connection& conn, std::atomic<bool>& go, event& begun) {
  auto work = [&] {
    begun.set();
    while (!go.load()) std::this_thread::sleep_for(1ms);
  };
  (void)co_await conn.offload(work);
}

task<> until_set(connection& conn, event& which) {
  while (which.count() == 0) co_await conn.sleep_for(1ms);
}

// Answers "one" as soon as `first` is set, and so on.
struct two_upstreams {
  std::atomic<bool> first = false;
  std::atomic<bool> second = false;
  test_server one{[this](connection& conn) -> task<> {
    if (co_await until(conn, first)) co_await conn.write("one");
    (void)co_await conn.read();
  }};
  test_server two{[this](connection& conn) -> task<> {
    if (co_await until(conn, second)) co_await conn.write("two");
    (void)co_await conn.read();
  }};
};

TEST_CASE_FIXTURE(clean_process, "when_all: all values, those that were there at once too") {
  channel<std::tuple<int, std::string, std::monostate>> result;
  test_server server([&](connection& conn) -> task<> {
    auto all = co_await when_all(answer_at_once(7), read_text(conn), answer_and_nothing());
    result.put(std::move(all));
  });
  client peer = server.connect();
  peer.send_all("ping");
  const auto [number, text, nothing] = result.take();
  CHECK(number == 7);
  CHECK(text == "ping");
}

TEST_CASE_FIXTURE(clean_process, "when_all: two upstreams at the same time") {
  two_upstreams upstreams;
  const address one = upstreams.one.where();
  const address two = upstreams.two.where();
  test_server server([&](connection& conn) -> task<> {
    auto both = co_await when_all(dial(one), dial(two));
    outgoing& a = std::get<0>(both);
    outgoing& b = std::get<1>(both);
    if (!a || !b) co_return;
    upstreams.second = true;
    auto texts = co_await when_all(read_text(*a), first_when_second(*b, upstreams.first));
    const std::string text = std::get<0>(texts) + "," + std::get<1>(texts);
    co_await conn.write(text);
  });
  CHECK(server.connect().recv_to_end() == "one,two");
}

TEST_CASE_FIXTURE(clean_process, "when_all: an exception comes when all are done, the others are told of") {
  channel<std::string> thrown;
  std::atomic<int> reported = 0;
  server_options options = one_core();
  options.on_exception = [&](std::exception_ptr) { ++reported; };
  test_server server(
      [&](connection& conn) -> task<> {
        std::string what = "nothing";
        try {
          (void)co_await when_all(wait_for(conn, 5ms), fail_with(conn, "first"), fail_with(conn, "second"));
        } catch (const std::runtime_error& failure) {
          what = failure.what();
        }
        thrown.put(what);
      },
      options);
  client peer = server.connect();
  CHECK(thrown.take() == "first");
}

TEST_CASE_FIXTURE(clean_process, "when_any: the first of two upstreams, and the loser's read loses nothing") {
  two_upstreams upstreams;
  const address one = upstreams.one.where();
  const address two = upstreams.two.where();
  channel<std::size_t> winner;
  test_server server([&](connection& conn) -> task<> {
    outgoing a = co_await dial(one);
    outgoing b = co_await dial(two);
    if (!a || !b) co_return;
    upstreams.second = true;
    auto first = co_await when_any(read_text(*a), read_text(*b));
    winner.put(first.index());
    upstreams.first = true;
    const std::string late = co_await read_text(*a);
    const std::string text = std::get<1>(first) + "," + late;
    co_await conn.write(text);
  });
  CHECK(server.connect().recv_to_end() == "two,one");
  CHECK(winner.take() == 1);
}

TEST_CASE_FIXTURE(clean_process, "when_any: a time limit for a read") {
  channel<std::size_t> winner;
  test_server server([&](connection& conn) -> task<> {
    for (;;) {
      auto first = co_await when_any(read_text(conn), wait_for(conn, 5ms));
      winner.put(first.index());
      if (first.index() == 0) break;
    }
    co_await conn.write("!");
  });
  client peer = server.connect();
  CHECK(winner.take() == 1);
  peer.send_all("x");
  CHECK(peer.recv_to_end() == "!");
}

TEST_CASE_FIXTURE(clean_process, "when_any: what is done at once wins, and what stands behind is never begun") {
  std::atomic<bool> begun = false;
  test_server server([&](connection& conn) -> task<> {
    auto first = co_await when_any(read_text(conn), answer_at_once(1), note_that(begun));
    const std::string text = std::to_string(first.index()) + (begun ? " begun" : " not begun");
    co_await conn.write(text);
  });
  CHECK(server.connect().recv_to_end() == "1 not begun");
}

TEST_CASE_FIXTURE(clean_process, "when_any: losers that wait for all kinds of things are ended") {
  two_upstreams upstreams;
  const address silent = upstreams.one.where();
  const std::string text = numbered_text(5'000'000);
  channel<std::string> heard;
  test_server server(
      [&](connection& conn) -> task<> {
        outgoing up = co_await dial(silent);
        if (!up) co_return;
        auto first = co_await when_any(stubborn(conn, *up, text, heard), wait_for(*up, 20ms));
        heard.put(std::to_string(first.index()));
      },
      one_core(), small_send_buffer());
  client peer = server.connect();
  CHECK(heard.take() == "read: " + cut_short);
  CHECK(heard.take() == "nested: " + cut_short);
  CHECK(heard.take() == "slept: 0");
  CHECK(heard.take() == "offloaded");
  CHECK(heard.take() == "wrote: " + cut_short);
  CHECK(heard.take() == "1");
  CHECK(peer.wait_for_end() == ending::reset);  // the write was cut in its midst
}

TEST_CASE_FIXTURE(clean_process, "when_any: dialling that takes too long") {
  // A full accept queue: further SYNs are dropped.
  const int silent = listening_socket("127.0.0.1:0", 0);
  const address where = address_of(silent);
  std::vector<int> fillers;
  sockaddr_storage to{};
  const socklen_t size = where.to_sockaddr(to);
  for (int i = 0; i < 4; ++i) {
    fillers.push_back(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    (void)::connect(fillers.back(), reinterpret_cast<const sockaddr*>(&to), size);
  }
  test_server server([&](connection& conn) -> task<> {
    auto first = co_await when_any(dial(where), wait_for(conn, 10ms));
    const std::string text = std::to_string(first.index());
    co_await conn.write(text);
  });
  CHECK(server.connect().recv_to_end() == "1");
  CHECK(eventually([&] { return server.total().active == 0; }));
  ::close(silent);
  for (const int filler : fillers) ::close(filler);
}

TEST_CASE_FIXTURE(clean_process, "when_any: in a coroutine that was spawned") {
  two_upstreams upstreams;
  const address one = upstreams.one.where();
  const address two = upstreams.two.where();
  channel<std::string> result;
  test_server server(echo);
  server->post(0, [&] { spawn(first_answer(one, two, upstreams.second, result)); });
  CHECK(result.take() == "1 two");
}

TEST_CASE_FIXTURE(clean_process, "when_any: what a loser throws is reported") {
  event reported;
  server_options options = one_core();
  options.on_exception = [&](std::exception_ptr) { reported.set(); };
  test_server server(
      [&](connection& conn) -> task<> {
        (void)co_await when_any(wait_for(conn, 1ms), throw_when_cut_short(conn));
        co_await conn.write("on");
      },
      options);
  CHECK(server.connect().recv_to_end() == "on");
  reported.wait();
}

TEST_CASE_FIXTURE(clean_process, "when_any: a halt while tasks wait, or are being ended") {
  event waiting;
  bool in_helper = false;
  SUBCASE("wait") {}
  SUBCASE("are being ended") { in_helper = true; }
  std::atomic<bool> go = false;
  {
    test_server server([&](connection& conn) -> task<> {
      const alive frame;
      if (in_helper) {
        (void)co_await when_any(until_set(conn, waiting), in_a_helper(conn, go, waiting));
      } else {
        waiting.set();
        (void)co_await when_all(read_text(conn), wait_for(conn, std::chrono::hours(1)));
      }
    });
    client peer = server.connect();
    waiting.wait();
    std::thread opener([&] {
      std::this_thread::sleep_for(20ms);
      go = true;
    });
    server->halt();
    opener.join();
  }
}

}  // namespace
}  // namespace percore::test
