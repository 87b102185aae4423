// dial, over real sockets.
#include <doctest/doctest.h>

#include <fcntl.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "tests/support/child_process.hpp"
#include "tests/support/clean_process.hpp"
#include "tests/support/test_server.hpp"
#include "tests/support/tls_server.hpp"

namespace percore::test {
namespace {

using namespace std::chrono_literals;

// A port on which nobody listens, as long as this lives.
struct dead_port {
  dead_port() : fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in any{};
    any.sin_family = AF_INET;
    any.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    REQUIRE(::bind(fd, reinterpret_cast<const sockaddr*>(&any), sizeof any) == 0);
  }
  dead_port(const dead_port&) = delete;
  dead_port& operator=(const dead_port&) = delete;
  ~dead_port() { ::close(fd); }
  [[nodiscard]] address where() const { return address_of(fd); }
  int fd;
};

// A listener that takes no more connections: the kernel drops further SYNs, as a black hole does.
struct black_hole {
  black_hole() : fd(listening_socket("127.0.0.1:0", 0)) {
    const address where = address_of(fd);
    sockaddr_storage to{};
    const socklen_t size = where.to_sockaddr(to);
    for (int i = 0; i < 4; ++i) {
      fillers.push_back(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
      (void)::connect(fillers.back(), reinterpret_cast<const sockaddr*>(&to), size);
    }
  }
  black_hole(const black_hole&) = delete;
  black_hole& operator=(const black_hole&) = delete;
  ~black_hole() {
    ::close(fd);
    for (const int filler : fillers) ::close(filler);
  }
  [[nodiscard]] address where() const { return address_of(fd); }
  int fd;
  std::vector<int> fillers;
};

TEST_CASE_FIXTURE(clean_process, "dial: a handler asks another server and passes its answer on") {
  test_server upstream([](connection& conn) -> task<> {
    while (auto data = co_await conn.read()) {
      const std::string answer = "<" + std::string(data.text()) + ">";
      if (!co_await conn.write(answer)) break;
    }
  });
  const address where = upstream.where();
  test_server server([&](connection& conn) -> task<> {
    outgoing up = co_await dial(where);
    if (!up) co_return;
    while (auto data = co_await conn.read()) {
      if (!co_await up->write(data)) break;
      auto answer = co_await up->read();
      if (!co_await conn.write(answer)) break;
    }
  });
  client peer = server.connect();
  for (int i = 0; i < 100; ++i) {
    const std::string text = std::to_string(i);
    peer.send_all(text);
    CHECK(peer.recv_exactly(text.size() + 2) == "<" + text + ">");
  }
  CHECK(server.total().active == 2);
  CHECK(server.total().dialled == 1);
  peer.half_close();
  CHECK(peer.recv_to_end().empty());
  CHECK(eventually([&] { return server.total().active == 0 && upstream.total().active == 0; }));
}

tls_context client_context(bool verified = true, std::vector<std::string> alpn = {}) {
  tls_options options;
  options.authorities_pem = verified ? authority().root.pem() : std::string();
  options.alpn = std::move(alpn);
  return tls_context(std::move(options), tls_role::client);
}

// What became of dialling.
struct dialled {
  bool made = false;
  std::error_code error;
  std::string reason;
};

task<> wait_a_little(connection& conn) { co_await conn.sleep_for(1ms); }

template <class... Args>
dialled try_dial(Args... args) {
  channel<dialled> result;
  test_server server(echo);
  server->post(0, [&] {
    spawn([](channel<dialled>& to, Args... where) -> task<> {
      outgoing made = co_await dial(where...);
      to.put({static_cast<bool>(made), made.error(), std::string(made.reason())});
    }(result, args...));
  });
  const dialled seen = result.take();
  CHECK(server.total().dials_failed == (seen.made ? 0 : 1));
  return seen;
}

std::error_code of_kernel(int error) { return {error, std::system_category()}; }

TEST_CASE_FIXTURE(clean_process, "dial: nobody listens") {
  const dead_port dead;
  const dialled seen = try_dial(dead.where());
  CHECK_FALSE(seen.made);
  CHECK(seen.error == of_kernel(ECONNREFUSED));
}

TEST_CASE_FIXTURE(clean_process, "dial: a target that does not answer is given up in time") {
  const black_hole hole;
  dial_options options;
  options.timeout = 50ms;
  const dialled seen = try_dial(hole.where(), options);
  CHECK_FALSE(seen.made);
  CHECK(seen.error == errc::timed_out);
}

// Its kernel answers, and nobody ever will.
TEST_CASE_FIXTURE(clean_process, "dial: a target that is only half there") {
  const int deaf = listening_socket("127.0.0.1:0", 8);
  const address where = address_of(deaf);
  channel<std::error_code> error;
  dial_options options;
  SUBCASE("the handshake of TLS has the dial's deadline") {
    options.tls = client_context();
    options.timeout = 50ms;
    CHECK(try_dial(where, options).error == errc::timed_out);
  }
  SUBCASE("a read has its own") {
    options.read_timeout = 20ms;
    test_server server([&](connection&) -> task<> {
      outgoing up = co_await dial(where, options);
      const bool written = co_await up->write("is anybody there?");
      CHECK(written);
      const bytes_view answer = co_await up->read();
      CHECK_FALSE(answer);
      error.put(up->error());
    });
    client peer = server.connect();
    CHECK(error.take() == errc::timed_out);
  }
  ::close(deaf);
}

TEST_CASE_FIXTURE(clean_process, "dial: addresses that cannot be dialled") {
  CHECK(try_dial(address()).error == of_kernel(EDESTADDRREQ));
  CHECK(try_dial(address("unix:@percore-nobody-listens-here")).error == of_kernel(ECONNREFUSED));
  dial_options options;
  options.source = "192.0.2.1:0";  // RFC 5737: not ours
  CHECK(try_dial(address("127.0.0.1:9"), options).error == of_kernel(EADDRNOTAVAIL));
}

TEST_CASE_FIXTURE(clean_process, "dial: over a unix socket") {
  test_server upstream(echo, one_core(), {}, "unix:@");
  CHECK(try_dial(upstream.where()).made);
}

TEST_CASE_FIXTURE(clean_process, "dial: names are resolved") {
  test_server upstream(echo);
  const std::uint16_t port = upstream.where().port();
  CHECK(try_dial(std::string("127.0.0.1"), port).made);
  CHECK(try_dial(std::string("localhost"), port).made);  // ::1 is refused first, where there is one
  const dialled unknown = try_dial(std::string("no-such-name.invalid"), port);
  CHECK(unknown.error == errc::no_address);
  CHECK_FALSE(unknown.reason.empty());
  CHECK(try_dial(std::string(), port).error == errc::no_address);
  CHECK(try_dial(std::string("a\0b", 3), port).error == errc::no_address);
}

TEST_CASE_FIXTURE(clean_process, "dial: the source address") {
  channel<address> from;
  test_server upstream([&](connection& conn) -> task<> {
    from.put(conn.peer_address());
    co_return;
  });
  dial_options options;
  options.source = "127.0.0.5:0";
  CHECK(try_dial(upstream.where(), options).made);
  CHECK(from.take().host() == "127.0.0.5");
}

TEST_CASE_FIXTURE(clean_process, "dial: with TCP Fast Open the bytes arrive all the same") {
  test_server upstream(echo);
  const address where = upstream.where();
  test_server server([&](connection& conn) -> task<> {
    dial_options options;
    options.fast_open = true;
    outgoing up = co_await dial(where, options);
    if (!up) co_return;
    if (!co_await up->write("hello")) co_return;
    auto answer = co_await up->read();
    co_await conn.write(answer);
  });
  for (int i = 0; i < 3; ++i) CHECK(server.connect().recv_to_end() == "hello");
}

TEST_CASE_FIXTURE(clean_process, "dial: limits of open connections count outgoing ones") {
  const dead_port nobody;
  test_server upstream(echo);
  const address where = upstream.where();
  server_options options = one_core();
  SUBCASE("of a core") { options.max_connections_per_core = 2; }
  SUBCASE("of the server") { options.max_connections = 2; }
  channel<std::error_code> error;
  test_server server(
      [&](connection& conn) -> task<> {
        for (int i = 0; i < 3; ++i) {  // places come back
          outgoing first = co_await dial(where);
          outgoing second = co_await dial(where);
          error.put(first.error());
          error.put(second.error());
          first.close();
          if (!co_await conn.sleep_for(1ms)) co_return;
        }
      },
      options);
  client peer = server.connect();
  for (int i = 0; i < 3; ++i) {
    CHECK_FALSE(error.take());
    CHECK(error.take() == errc::limit_exceeded);
  }
}

TEST_CASE_FIXTURE(clean_process, "dial: outgoing connections are moved, kept and used by other handlers") {
  std::atomic<int> accepted = 0;
  test_server upstream([&](connection& conn) -> task<> {
    ++accepted;
    co_await echo(conn);
  });
  const address where = upstream.where();
  auto pool = std::make_shared<std::vector<outgoing>>();
  test_server server([&, pool](connection& conn) -> task<> {
    while (auto data = co_await conn.read()) {
      outgoing up;
      if (pool->empty()) {
        up = co_await dial(where);
        if (!up) co_return;
      } else {
        up = std::move(pool->back());
        pool->pop_back();
      }
      if (!co_await up->write(data)) co_return;
      auto answer = co_await up->read();
      if (!co_await conn.write(answer)) co_return;
      pool->push_back(std::move(up));
    }
  });
  for (int i = 0; i < 20; ++i) {
    client peer = server.connect();
    peer.send_all("ping");
    CHECK(peer.recv_exactly(4) == "ping");
  }
  CHECK(accepted.load() == 1);
  // What lies in the pool does not keep the server from ending.
  server->shutdown();
  CHECK(pool->size() == 1);
  CHECK_FALSE(pool->front());
}

// Given away by one handler to another that has dialled nothing, and whose steps run on helpers.
void use_a_pooled_one(bool stays) {
  test_server upstream(echo);
  const address where = upstream.where();
  outgoing pooled;
  event ready;
  listen_options listening;
  listening.spill = spilling::always;
  test_server server(
      [&, stays](connection& conn) -> task<> {
        const bytes_view asked = co_await conn.read();
        if (stays) co_await stay_on_core();
        const bool written = co_await pooled->write(asked);
        if (!written) co_return;
        const bytes_view answer = co_await pooled->read();
        co_await conn.write(answer);
      },
      one_core(), listening);
  server->post(0, [&] {
    spawn([](outgoing& to, address target, event& done) -> task<> {
      outgoing made = co_await dial(target);
      to = std::move(made);
      done.set();
    }(pooled, where, ready));
  });
  ready.wait();
  client peer = server.connect();
  peer.send_all("ping");
  CHECK(peer.recv_exactly(4) == "ping");
  server->halt();
  server->wait();
}

TEST_CASE_FIXTURE(clean_process, "dial: an outgoing connection of others is used on the core, or not at all") {
  CHECK(ends_by_assertion([] { use_a_pooled_one(false); }));
  use_a_pooled_one(true);
}

TEST_CASE_FIXTURE(clean_process, "dial: a shutdown lets handlers that wait for an upstream finish") {
  event asked;
  std::atomic<bool> answer = false;
  test_server upstream([&](connection& conn) -> task<> {
    (void)co_await conn.read();
    asked.set();
    (void)co_await until(conn, answer);
    co_await conn.write("late");
  });
  const address where = upstream.where();
  test_server server([&](connection& conn) -> task<> {
    outgoing up = co_await dial(where);
    if (!up || !co_await up->write("x")) co_return;
    auto late = co_await up->read();
    co_await conn.write(late);
  });
  client peer = server.connect();
  asked.wait();
  server->begin_shutdown();
  answer = true;
  CHECK(peer.recv_to_end() == "late");
}

TEST_CASE_FIXTURE(clean_process, "dial: a halt, or the end of a grace, ends handlers and others that wait for an upstream") {
  event waiting;
  test_server upstream([&](connection& conn) -> task<> {
    (void)co_await conn.read();
    waiting.set();
    (void)co_await conn.read();
  });
  const address where = upstream.where();
  std::atomic<int> heard = 0;
  bool grace = false;
  SUBCASE("halt") {}
  SUBCASE("grace") { grace = true; }
  {
    test_server server([&](connection&) -> task<> {
      const alive frame;
      outgoing up = co_await dial(where);
      if (!up || !co_await up->write("x")) co_return;
      (void)co_await up->read();
      (void)co_await up->read();  // halted here at the latest
    });
    client peer = server.connect();
    server->post(0, [&] {
      spawn([](address to, std::atomic<int>& told) -> task<> {
        const alive frame;
        outgoing up = co_await dial(to);
        if (!up || !co_await up->write("x")) co_return;
        auto data = co_await up->read();
        if (!data && up->error() == errc::shutting_down) ++told;
        for (;;) {
          outgoing again = co_await dial(to);
          if (again) ++told;
        }
      }(where, heard));
      spawn([](address to) -> task<> {  // connected, and waiting for nothing that comes
        const alive frame;
        outgoing up = co_await dial(to);
        for (;;) co_await up->sleep_for(std::chrono::hours(1));
      }(where));
      [](address to, std::atomic<int>& told) -> lone_coroutine {
        const alive frame;
        outgoing up = co_await dial(to);
        if (!up || !co_await up->write("x")) co_return;
        auto data = co_await up->read();
        if (!data && up->error() == errc::shutting_down) ++told;
      }(where, heard);
    });
    waiting.wait(3);
    if (grace) {
      server->shutdown(10ms);
    } else {
      server->halt();
    }
  }
  CHECK(heard.load() == 2);
}

TEST_CASE_FIXTURE(clean_process, "dial: a connection that its owner drops is flushed") {
  const std::string text = numbered_text(3'000'000);
  channel<std::string> got;
  std::atomic<bool> go = false;
  test_server upstream([&](connection& conn) -> task<> {
    (void)co_await until(conn, go);
    std::string all;
    while (auto data = co_await conn.read()) all += data.text();
    got.put(all);
  });
  const address where = upstream.where();
  dial_options options;
  options.unsent_tail_bytes = 4'000'000;
  options.socket.send_buffer_bytes = 4096;
  {
    test_server server([&](connection&) -> task<> {
      outgoing up = co_await dial(where, options);
      if (!up) co_return;
      co_await up->write(text);
    });
    client peer = server.connect();
    CHECK(peer.recv_to_end().empty());
    go = true;
    CHECK((got.take() == text));
  }
}

TEST_CASE_FIXTURE(clean_process, "dial: write_last ends what is sent and the answer still comes") {
  test_server upstream([&](connection& conn) -> task<> {
    std::string all;
    while (auto data = co_await conn.read()) all += data.text();
    co_await conn.write(all);
  });
  const address where = upstream.where();
  test_server server([&](connection& conn) -> task<> {
    outgoing up = co_await dial(where);
    if (!up || !co_await up->write_last("all of it")) co_return;
    auto answer = co_await up->read();
    co_await conn.write(answer);
  });
  client peer = server.connect();
  CHECK(peer.recv_to_end() == "all of it");
}

TEST_CASE_FIXTURE(clean_process, "dial: offload, sleep and yield through an outgoing connection") {
  test_server upstream(echo);
  const address where = upstream.where();
  test_server server([&](connection& conn) -> task<> {
    outgoing up = co_await dial(where);
    if (!up) co_return;
    auto number = [] { return 42; };
    auto seen = co_await up->offload(number);
    co_await up->sleep_for(std::chrono::milliseconds(1));
    co_await up->yield();
    const std::string text = seen ? std::to_string(*seen) : "none";
    co_await conn.write(text);
  });
  CHECK(server.connect().recv_to_end() == "42");
}

TEST_CASE_FIXTURE(clean_process, "dial: handlers whose slices leave the core come back to it") {
  test_server upstream(echo);
  const address where = upstream.where();
  const std::string text = numbered_text(300'000);
  const int file = ::open("/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
  server_options options = one_core();
  listen_options listening;
  SUBCASE("to helpers") { listening.spill = spilling::always; }
  SUBCASE("to a takeover") { options.takeover.on = true; }
  test_server server(
      [&](connection& conn) -> task<> {
        if (!co_await conn.read_until("\n", 100)) co_return;
        const sent_file sent = co_await conn.send_file(file, 0, 1);
        auto none = co_await when_any(wait_a_little(conn), conn.copy_to(conn));
        outgoing up = co_await dial(where);
        if (!sent || none.index() != 0 || !up) co_return;
        if (!co_await conn.write("ready")) co_return;
        co_await relay(conn, *up);
      },
      options, listening);
  for (int i = 0; i < 3; ++i) {
    client peer = server.connect();
    peer.send_all("go\n");
    (void)peer.recv_exactly(1);
    CHECK(peer.recv_exactly(5) == "ready");
    peer.send_all(text);
    CHECK((peer.recv_exactly(text.size()) == text));
    peer.half_close();
    CHECK(peer.recv_to_end().empty());
  }
  ::close(file);
}

TEST_CASE_FIXTURE(clean_process, "dial: TLS with verification, SNI and ALPN") {
  tls_options how = server_tls();
  how.alpn = {"h2", "http/1.1"};
  channel<std::string> asked;
  test_server upstream(
      [&](connection& conn) -> task<> {
        asked.put(std::string(conn.tls()->server_name));
        co_await echo(conn);
      },
      one_core(), over_tls(std::move(how)));
  const address where = upstream.where();
  dial_options options;
  options.tls = client_context(true, {"http/1.1"});
  options.server_name = "localhost";
  channel<std::string> alpn;
  test_server server([&](connection& conn) -> task<> {
    outgoing up = co_await dial(where, options);
    if (!up) co_return;
    alpn.put(std::string(up->tls()->alpn));
    while (auto data = co_await conn.read()) {
      if (!co_await up->write(data)) break;
      auto answer = co_await up->read();
      if (!co_await conn.write(answer)) break;
    }
  });
  client peer = server.connect();
  peer.send_all("secret");
  CHECK(peer.recv_exactly(6) == "secret");
  CHECK(asked.take() == "localhost");
  CHECK(alpn.take() == "http/1.1");
}

TEST_CASE_FIXTURE(clean_process, "dial: TLS that is not as it must be") {
  test_server upstream(echo, one_core(), over_tls());
  dial_options options;
  options.tls = client_context();
  options.server_name = "localhost";
  SUBCASE("the name of another") {
    options.server_name = "example.org";
    const dialled seen = try_dial(upstream.where(), options);
    CHECK(seen.error == errc::tls_failed);
    CHECK(seen.reason == "certificate verify failed");
  }
  SUBCASE("an authority that nobody trusts") {
    options.tls = client_context(false);
    CHECK(try_dial(upstream.where(), options).error == errc::tls_failed);
  }
  SUBCASE("a server that is plain") {
    test_server plain(echo);
    CHECK(try_dial(plain.where(), options).error == errc::tls_failed);
  }
  SUBCASE("a server that says nothing") {
    test_server silent([](connection& conn) -> task<> {
      while (co_await conn.read()) {
      }
    });
    options.timeout = 50ms;
    CHECK(try_dial(silent.where(), options).error == errc::timed_out);
  }
  SUBCASE("the right one, at last") { CHECK(try_dial(upstream.where(), options).made); }
}

}  // namespace
}  // namespace percore::test
