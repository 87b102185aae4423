// The typed context of a connection.
#include <doctest/doctest.h>

#include <array>
#include <atomic>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>

#include "tests/support/clean_process.hpp"
#include "tests/support/test_server.hpp"

namespace percore::test {
namespace {

struct session {
  std::string user;
  int messages = 0;
  alive probe{};
};

// Says when it is destroyed.
class farewell {
 public:
  farewell(channel<std::string>& to, std::string text) : to_(&to), text_(std::move(text)) {}
  farewell(const farewell&) = delete;
  farewell& operator=(const farewell&) = delete;
  ~farewell() { to_->put(text_); }

 private:
  channel<std::string>* to_;
  std::string text_;
};

TEST_CASE_FIXTURE(clean_process, "context: is one per connection and found by its type") {
  channel<std::string> seen;
  test_server server([&](connection& conn) -> task<> {
    seen.put(conn.context<session>() == nullptr ? "none" : "some");
    session& mine = conn.emplace_context<session>("a user name that is not small at all");
    seen.put(conn.context<session>() == &mine ? "same" : "other");
    seen.put(conn.context<std::string>() == nullptr ? "none" : "some");
    while (co_await conn.read()) {
      ++conn.context<session>()->messages;
      seen.put(mine.user + std::to_string(mine.messages));
    }
  });
  for (int i = 0; i < 5; ++i) {
    client peer = server.connect();
    CHECK(seen.take() == "none");
    CHECK(seen.take() == "same");
    CHECK(seen.take() == "none");
    for (int message = 1; message <= 2; ++message) {
      peer.send_all("x");
      CHECK(seen.take() == "a user name that is not small at all" + std::to_string(message));
    }
  }
}

TEST_CASE_FIXTURE(clean_process, "context: a second one is refused and the first stays") {
  channel<std::string> seen;
  test_server server([&](connection& conn) -> task<> {
    conn.emplace_context<session>("first");
    try {
      conn.emplace_context<session>("second");
      seen.put("taken");
    } catch (const std::logic_error&) {
      seen.put("refused");
    }
    seen.put(conn.context<session>()->user);
    co_return;
  });
  client peer = server.connect();
  CHECK(seen.take() == "refused");
  CHECK(seen.take() == "first");
}

TEST_CASE_FIXTURE(clean_process, "context: is destroyed after the handler's frame however the connection ends") {
  channel<std::string> seen;
  event started;
  test_server server([&](connection& conn) -> task<> {
    const farewell local(seen, "frame");
    conn.emplace_context<farewell>(seen, "context");
    started.set();
    auto data = co_await conn.read();
    if (data.text() == "throw") throw std::runtime_error("on request");
  });
  client peer = server.connect();
  started.wait();
  SUBCASE("by returning") { peer.send_all("return"); }
  SUBCASE("by an exception") { peer.send_all("throw"); }
  SUBCASE("by a reset") { peer.reset(); }
  SUBCASE("by halt") { server->halt(); }
  CHECK(seen.take() == "frame");
  CHECK(seen.take() == "context");
}

TEST_CASE_FIXTURE(clean_process, "context: one that does not fit the slot is on the heap and counted") {
  struct large {
    std::array<char, 10'000> bytes{};
    alive probe{};
  };
  test_server server([](connection& conn) -> task<> {
    large& context = conn.emplace_context<large>();
    context.bytes.fill('y');
    co_await conn.yield();
    co_await conn.write(bytes_view(std::string_view(context.bytes.data(), context.bytes.size())));
  });
  for (int i = 0; i < 3; ++i) CHECK(server.connect().recv_to_end() == std::string(10'000, 'y'));
  CHECK(server.total().contexts_on_heap == 3);
}

TEST_CASE_FIXTURE(clean_process, "context: a small one is in the slot") {
  test_server server([](connection& conn) -> task<> {
    conn.emplace_context<session>("user");
    co_await conn.write("done");
  });
  for (int i = 0; i < 3; ++i) CHECK(server.connect().recv_to_end() == "done");
  CHECK(server.total().contexts_on_heap == 0);
}

template <std::size_t Bytes>
struct unwilling {
  std::array<char, Bytes> bytes{};
  unwilling() { throw std::runtime_error("not today"); }
};

TEST_CASE_FIXTURE(clean_process, "context: one whose constructor throws leaves room for another") {
  test_server server([](connection& conn) -> task<> {
    std::string answer;
    try {
      conn.emplace_context<unwilling<16>>();
    } catch (const std::runtime_error&) {
      answer += "small ";
    }
    try {
      conn.emplace_context<unwilling<10'000>>();
    } catch (const std::runtime_error&) {
      answer += "large ";
    }
    answer += conn.emplace_context<session>("user").user;
    co_await conn.write(answer);
  });
  CHECK(server.connect().recv_to_end() == "small large user");
}

TEST_CASE_FIXTURE(clean_process, "context: posted functions find it") {
  channel<connection_handle> handles;
  channel<std::string> seen;
  test_server server([&](connection& conn) -> task<> {
    conn.emplace_context<session>("user");
    handles.put(conn.handle());
    co_await conn.read();
  });
  client peer = server.connect();
  handles.take().post([&](connection& conn) { seen.put(conn.context<session>()->user); });
  CHECK(seen.take() == "user");
}

}  // namespace
}  // namespace percore::test
