// Connections that this side ends, inside every kind of callback.
#include <doctest/doctest.h>

#include <array>
#include <atomic>
#include <functional>
#include <string>
#include <vector>

#include "tests/support/clean_process.hpp"
#include "tests/support/test_server.hpp"

namespace percore::test {
namespace {

using namespace std::chrono_literals;

// A handler that waits in `stage` until something ends its connection.
task<> wait_in(connection& conn, char stage, channel<std::error_code>& ends) {
  const std::string large(4'000'000, 'x');
  std::array<std::byte, 100> target;
  if (stage == 'r') co_await conn.read();
  if (stage == 't') co_await conn.read(target);
  if (stage == 'f') co_await conn.read_full(target);
  if (stage == 'u') co_await conn.read_until("\n", 100);
  if (stage == 'w') co_await conn.write(large);
  if (stage == 's')
    while (conn.fd() >= 0) co_await conn.sleep_for(1ms);
  if (stage == 'y')
    while (conn.fd() >= 0) co_await conn.yield();
  auto after = co_await conn.read();
  ends.put(after ? std::error_code() : conn.error());
}

TEST_CASE_FIXTURE(clean_process, "closing: a posted function ends a connection whatever its handler waits in") {
  struct way {
    const char* name;
    void (*end)(connection&);
    ending seen_by_client;
  };
  const std::array<way, 2> ways = {way{"close", [](connection& conn) { conn.close(); }, ending::fin},
                                   way{"reset", [](connection& conn) { conn.reset(); }, ending::reset}};
  for (const way& how : ways) {
    for (const char stage : {'r', 't', 'f', 'u', 'w', 's', 'y'}) {
      CAPTURE(how.name);
      CAPTURE(stage);
      channel<std::error_code> ends;
      channel<connection_handle> handles;
      test_server server(
          [&](connection& conn) -> task<> {
            const alive frame;
            handles.put(conn.handle());
            co_await wait_in(conn, stage, ends);
          },
          one_core(), small_send_buffer());
      client peer = server.connect();
      if (stage == 'w') peer.recv_exactly(1);  // a writer has to be stuck first
      handles.take().post(how.end);
      CHECK(ends.take() == errc::closed);
      CHECK(peer.wait_for_end() == how.seen_by_client);
    }
  }
}

TEST_CASE_FIXTURE(clean_process, "closing: close in a handler ends the connection before the handler returns") {
  std::atomic<bool> go_on = false;
  channel<std::error_code> errors;
  test_server server([&](connection& conn) -> task<> {
    conn.try_write("bye");
    conn.close();
    conn.close();
    conn.shutdown_write();
    auto data = co_await conn.read();
    errors.put(data ? std::error_code() : conn.error());
    const bool written = co_await conn.write("more");
    errors.put(written ? std::error_code() : conn.error());
    while (!go_on) co_await conn.yield();
    errors.put({});
  });
  client peer = server.connect();
  CHECK(peer.recv_to_end() == "bye");
  CHECK(errors.take() == errc::closed);
  CHECK(errors.take() == errc::closed);
  CHECK(errors.size() == 0);
  go_on = true;
  CHECK_FALSE(errors.take());
}

TEST_CASE_FIXTURE(clean_process, "closing: reset in a handler is seen at once and can be repeated") {
  channel<bool> seen;
  test_server server([&](connection& conn) -> task<> {
    co_await conn.read();
    conn.reset();
    conn.reset();
    conn.close();
    seen.put(conn.fd() == -1);
    seen.put(conn.local_address() == address());
    seen.put(conn.peer_address().is_loopback());
    seen.put(!conn.try_write("x"));
    seen.put(bool(co_await conn.write("x")) == false);
    seen.put(bool(co_await conn.read()) == false);
  });
  client peer = server.connect();
  peer.send_all("go");
  CHECK(peer.wait_for_end() == ending::reset);
  for (int i = 0; i < 6; ++i) CHECK(seen.take());
}

TEST_CASE_FIXTURE(clean_process, "closing: shutdown_write sends the FIN and reading goes on") {
  channel<std::string> seen;
  channel<std::error_code> error;
  test_server server([&](connection& conn) -> task<> {
    conn.shutdown_write();
    conn.shutdown_write();
    const bool written = co_await conn.write("more");
    if (!written) error.put(conn.error());
    auto data = co_await conn.read();
    seen.put(std::string(data.text()));
  });
  client peer = server.connect();
  CHECK(peer.recv_to_end().empty());
  CHECK(error.take() == errc::closed);
  peer.send_all("still heard");
  CHECK(seen.take() == "still heard");
}

TEST_CASE_FIXTURE(clean_process, "closing: one handler ends all others of its core without running them inside the call") {
  std::vector<connection*> members;  // of the one core
  std::atomic<int> waiting = 0;
  channel<std::string> seen;
  std::atomic<bool> inside = false;
  struct member {
    std::vector<connection*>& all;
    connection* self;
    member(std::vector<connection*>& list, connection& conn) : all(list), self(&conn) { all.push_back(self); }
    ~member() { std::erase(all, self); }
  };
  test_server server([&](connection& conn) -> task<> {
    auto data = co_await conn.read();
    if (data.text() == "end all") {
      inside = true;
      for (connection* other : members) other == members.front() ? other->close() : other->reset();
      inside = false;
      co_return;
    }
    const member here(members, conn);
    ++waiting;
    co_await conn.read();
    seen.put(inside ? "inside" : conn.error() == errc::closed ? "closed" : "another error");
  });
  std::vector<client> peers;
  for (int i = 0; i < 20; ++i) {
    peers.push_back(server.connect());
    peers.back().send_all("wait");
  }
  CHECK(eventually([&] { return waiting == 20; }));
  client last = server.connect();
  last.send_all("end all");
  for (int i = 0; i < 20; ++i) CHECK(seen.take() == "closed");
  int resets = 0;
  for (client& peer : peers) resets += peer.wait_for_end() == ending::reset;
  CHECK(resets == 19);
}

// What can be done to a connection or its server from a callback; the caller's thread is the core's.
struct action {
  const char* name;
  void (*run)(connection&);
  bool ends_server;
};
const std::array<action, 5> actions = {
    action{"close", [](connection& conn) { conn.close(); }, false},
    action{"reset", [](connection& conn) { conn.reset(); }, false},
    action{"shutdown_write", [](connection& conn) { conn.shutdown_write(); }, false},
    action{"shutdown", [](connection& conn) { conn.owner().shutdown(1ms); }, true},
    action{"halt", [](connection& conn) { conn.owner().halt(); }, true},
};

class action_on_destruction {
 public:
  action_on_destruction(connection& conn, const action& what) : conn_(&conn), what_(&what) {}
  action_on_destruction(const action_on_destruction&) = delete;
  action_on_destruction& operator=(const action_on_destruction&) = delete;
  ~action_on_destruction() { what_->run(*conn_); }

 private:
  connection* conn_;
  const action* what_;
};

// Serves one client with `handler` and sees that the server, or only that client's connection, has ended.
template <connection_handler F>
void run_action(const action& what, F handler, server_options options = one_core(),
                const std::function<void()>& after_connect = [] {}) {
  CAPTURE(what.name);
  test_server server(
      [&handler](connection& conn) -> task<> {
        const alive frame;
        auto data = co_await conn.read();
        if (data.text() == "ping") {
          co_await conn.write(data);
        } else {
          co_await handler(conn);
        }
      },
      std::move(options));
  client peer = server.connect();
  peer.send_all("go");
  after_connect();
  (void)peer.wait_for_end();
  if (what.ends_server) {
    server->wait();
  } else {
    CHECK(still_serves(server));
    server->shutdown();
  }
  CHECK(server.total().active == 0);
}

TEST_CASE_FIXTURE(clean_process, "closing: every action from inside a handler") {
  for (const action& what : actions) {
    run_action(what, [&](connection& conn) -> task<> {
      what.run(conn);
      if (!what.ends_server) co_await conn.yield();
    });
  }
}

TEST_CASE_FIXTURE(clean_process, "closing: every action from inside a nested task") {
  for (const action& what : actions) {
    run_action(what, [&](connection& conn) -> task<> {
      co_await [](connection& inner, const action& which) -> task<> {
        co_await inner.yield();
        which.run(inner);
        co_await inner.yield();
      }(conn, what);
    });
  }
}

TEST_CASE_FIXTURE(clean_process, "closing: every action from inside a posted function") {
  for (const action& what : actions) {
    channel<connection_handle> handles;
    run_action(
        what,
        [&](connection& conn) -> task<> {
          handles.put(conn.handle());
          while (co_await conn.sleep_for(1ms)) {
            if (!conn.try_write("x")) break;  // it no longer sends
          }
        },
        one_core(), [&] { handles.take().post([&](connection& conn) { what.run(conn); }); });
  }
}

TEST_CASE_FIXTURE(clean_process, "closing: every action from inside the callback of a posted write") {
  for (const action& what : actions) {
    run_action(what, [&](connection& conn) -> task<> {
      std::atomic<bool> done = false;
      connection* self = &conn;  // the callback runs on this core while the handler waits here
      conn.handle().write("text", [&](std::error_code) {
        what.run(*self);
        done = true;
      });
      while (!done) co_await conn.yield();
    });
  }
}

TEST_CASE_FIXTURE(clean_process, "closing: every action from the destructor of a local of the handler") {
  for (const action& what : actions) {
    run_action(what, [&](connection& conn) -> task<> {
      const action_on_destruction local(conn, what);
      co_await conn.yield();
    });
  }
}

TEST_CASE_FIXTURE(clean_process, "closing: every action from the destructor of the context") {
  for (const action& what : actions) {
    run_action(what, [&](connection& conn) -> task<> {
      conn.emplace_context<action_on_destruction>(conn, what);
      co_await conn.yield();
    });
  }
}

TEST_CASE_FIXTURE(clean_process, "closing: every action from inside the exception hook") {
  for (const action& what : actions) {
    struct failure {
      connection* conn;  // of the handler that threw: the hook runs on its core before the connection ends
    };
    server_options options = one_core();
    options.on_exception = [&what](std::exception_ptr thrown) {
      try {
        std::rethrow_exception(thrown);
      } catch (const failure& which) {
        what.run(*which.conn);
      }
    };
    run_action(
        what,
        [](connection& conn) -> task<> {
          co_await conn.yield();
          throw failure{&conn};
        },
        options);
  }
}

TEST_CASE_FIXTURE(clean_process, "closing: close() from elsewhere ends a sleep") {
  channel<connection_handle> handles;
  channel<std::error_code> ends;
  test_server server([&](connection& conn) -> task<> {
    handles.put(conn.handle());
    const bool slept = co_await conn.sleep_for(std::chrono::hours(1));
    CHECK_FALSE(slept);
    ends.put(conn.error());
  });
  client peer = server.connect();
  handles.take().post([](connection& conn) { conn.close(); });
  CHECK(ends.take() == errc::closed);
  CHECK(peer.wait_for_end() == ending::fin);
}

TEST_CASE_FIXTURE(clean_process, "closing: a halt after close() while a local of the handler resets too") {
  struct resetter {
    connection* conn;
    ~resetter() { conn->reset(); }
  };
  channel<connection_handle> handles;
  test_server server([&](connection& conn) -> task<> {
    const resetter guard{&conn};
    handles.put(conn.handle());
    co_await conn.sleep_for(std::chrono::hours(1));
  });
  client peer = server.connect();
  handles.take().post([&](connection& conn) {
    conn.close();
    conn.owner().halt();
  });
  server->wait();
}

}  // namespace
}  // namespace percore::test
