// Going over from plain to TLS inside a handler.
#include <doctest/doctest.h>

#include <chrono>
#include <string>
#include <thread>
#include <utility>

#include "tests/support/clean_process.hpp"
#include "tests/support/test_server.hpp"
#include "tests/support/tls_client.hpp"
#include "tests/support/tls_server.hpp"

namespace percore::test {
namespace {

using namespace std::chrono_literals;

// Lines until STARTTLS, then, when it is done, lines again. Each is told to the test with what it came in.
class line_server {
 public:
  explicit line_server(buffered_plaintext policy = buffered_plaintext::refuse, listen_options listening = {},
                       server_options options = one_core())
      : context_(server_tls()),
        server_([this, policy](connection& conn) { return serve(conn, policy); }, std::move(options),
                std::move(listening)) {}
  [[nodiscard]] client connect() const { return server_.connect(); }
  [[nodiscard]] core_stats total() const { return server_.total(); }
  std::string next() { return seen_.take(); }
  bool nothing_more() { return seen_.size() == 0; }
  server& host() { return *server_; }

 private:
  task<> serve(connection& conn, buffered_plaintext policy) {
    const alive frame;
    while (auto line = co_await conn.read_until("\n", 1000)) {
      const bool asked = line.text() == "STARTTLS\n";
      seen_.put((conn.tls() ? "secret " : "plain ") + std::string(line.text()));
      if (!co_await conn.write(asked ? "go ahead\n" : "ok\n")) break;
      if (!asked) continue;
      const bool done = co_await conn.start_tls(context_, policy);
      if (done) {
        seen_.put("upgraded");
      } else {
        seen_.put("refused: " + conn.error().message());
        if (conn.error() != errc::plaintext_injected) break;
      }
    }
    seen_.put("end: " + conn.error().message());
  }

  tls_context context_;
  channel<std::string> seen_;
  test_server server_;
};

client asked_for_tls(line_server& server) {
  client peer = server.connect();
  peer.send_all("hello\n");
  CHECK(peer.recv_until("\n") == "ok\n");
  peer.send_all("STARTTLS\n");
  CHECK(peer.recv_until("\n") == "go ahead\n");
  CHECK(server.next() == "plain hello\n");
  CHECK(server.next() == "plain STARTTLS\n");
  return peer;
}

TEST_CASE_FIXTURE(clean_process, "starttls: a clean upgrade") {
  listen_options listening;
  listening.handshake_timeout = 300ms;
  line_server server(buffered_plaintext::refuse, listening);
  for (const int version : {TLS1_2_VERSION, TLS1_3_VERSION}) {
    CAPTURE(version);
    tls_client_options how;
    how.min_version = how.max_version = version;
    tls_client peer(asked_for_tls(server), tls_profile(how));
    peer.handshake();
    CHECK(server.next() == "upgraded");
    std::this_thread::sleep_for(400ms);  // the handshake's deadline is over and was for the handshake only
    peer.send_all("password\n");
    CHECK(peer.recv_exactly(3) == "ok\n");
    CHECK(server.next() == "secret password\n");
    peer.half_close();
    CHECK(server.next() == "end: the peer has ended its stream");
    CHECK(peer.ended_cleanly());
  }
  CHECK(server.total().tls_handshakes == 2);
  CHECK(server.total().timeouts == 0);
}

TEST_CASE_FIXTURE(clean_process, "starttls: a client's context is the handler's fault") {
  const tls_context context({}, tls_role::client);
  test_server server([&](connection& conn) -> task<> {
    const alive frame;
    CHECK_FALSE(co_await conn.start_tls(context));
  });
  client peer = server.connect();
  CHECK(peer.recv_to_end().empty());
  CHECK(eventually([&] { return server.total().handler_errors == 1; }));
  CHECK(server.total().tls_failed_internal == 0);
}

TEST_CASE_FIXTURE(clean_process, "starttls: a request in one segment with the handshake's last flight") {
  line_server server;
  tls_client peer(asked_for_tls(server), tls_profile());
  std::string flight;
  for (flight = peer.handshake_step(); !peer.handshake_done(); flight = peer.handshake_step()) {
    peer.socket().send_all(flight);
    REQUIRE(peer.receive());
  }
  peer.socket().send_all(flight + peer.encrypt("at once\n"));
  CHECK(server.next() == "upgraded");
  CHECK(server.next() == "secret at once\n");
  CHECK(peer.recv_exactly(3) == "ok\n");
}

TEST_CASE_FIXTURE(clean_process, "starttls: a ClientHello that comes with the command is plaintext, too") {
  // A client has to wait for the answer. One that does not cannot be told from one whose bytes were added to.
  line_server server;
  client socket = server.connect();
  tls_client peer(std::move(socket), tls_profile());
  peer.socket().send_all("STARTTLS\n" + peer.handshake_step());
  CHECK(peer.socket().recv_until("\n") == "go ahead\n");
  CHECK(server.next() == "plain STARTTLS\n");
  CHECK(server.next() == "refused: the peer sent plaintext behind its request for TLS");
}

TEST_CASE_FIXTURE(clean_process,
                  "starttls: injected plaintext is refused, and the connection goes on in plain") {
  line_server server;
  client socket = server.connect();
  tls_client peer(std::move(socket), tls_profile());
  // The attack of CVE-2011-0411: a command in plain, before the ClientHello, in one segment.
  peer.socket().send_all("STARTTLS\ninjected\n" + peer.handshake_step() + "\n");
  CHECK(peer.socket().recv_until("\n") == "go ahead\n");
  CHECK(server.next() == "plain STARTTLS\n");
  CHECK(server.next() == "refused: the peer sent plaintext behind its request for TLS");
  CHECK(server.next() == "plain injected\n");  // in plain: no one takes it for a secret
  CHECK(server.total().tls_handshakes == 0);
  CHECK(tls_failures(server.total()) == 0);
}

TEST_CASE_FIXTURE(clean_process, "starttls: injected plaintext is dropped when the handler says so") {
  line_server server(buffered_plaintext::discard);
  client peer = server.connect();
  peer.send_all("STARTTLS\ninjected\nand more");
  CHECK(peer.recv_until("\n") == "go ahead\n");
  CHECK(server.next() == "plain STARTTLS\n");
  tls_client secure(std::move(peer), tls_profile());
  secure.handshake().send_all("genuine\n");
  CHECK(server.next() == "upgraded");
  CHECK(server.next() == "secret genuine\n");
  CHECK(secure.recv_exactly(3) == "ok\n");
  CHECK(server.nothing_more());
}

TEST_CASE_FIXTURE(clean_process, "starttls: unread bytes count as plaintext") {
  const tls_context context(server_tls());
  channel<std::string> seen;
  test_server server([&](connection& conn) -> task<> {
    auto data = co_await conn.read();
    conn.unread(data.size());
    const bool done = co_await conn.start_tls(context);
    seen.put(done                                       ? "upgraded"
             : conn.error() == errc::plaintext_injected ? "refused"
                                                        : conn.error().message());
    data = co_await conn.read();
    seen.put(std::string(data.text()));
    const bool written = co_await conn.write("plain");
    seen.put(written ? "written" : "not written");
  });
  client peer = server.connect();
  peer.send_all("text");
  CHECK(seen.take() == "refused");
  CHECK(seen.take() == "text");
  CHECK(seen.take() == "written");
  CHECK(peer.recv_to_end() == "plain");
}

TEST_CASE_FIXTURE(clean_process, "starttls: what was written before is sent in plain first") {
  const tls_context context(server_tls());
  const std::string text = numbered_text(1'000'000);
  listen_options listening;
  listening.socket.send_buffer_bytes = 4096;
  listening.unsent_tail_bytes = 2'000'000;
  test_server server(
      [&](connection& conn) -> task<> {
        co_await conn.write(text);
        const bool done = co_await conn.start_tls(context);
        if (done) co_await conn.write("secret");
      },
      one_core(), listening);
  client::options small;
  small.receive_buffer_bytes = 4096;
  client socket(server.where(), small);
  CHECK((socket.recv_exactly(text.size()) == text));
  tls_client peer(std::move(socket), tls_profile());
  CHECK(peer.handshake().recv_to_end() == "secret");
  CHECK(peer.close_received());
}

TEST_CASE_FIXTURE(clean_process, "starttls: clients that stall are timed out and end the connection") {
  listen_options listening;
  listening.handshake_timeout = 100ms;
  line_server server(buffered_plaintext::refuse, listening);
  std::uint64_t expected = 0;
  for (const std::size_t part : {0U, 1U, 100U, 100'000U}) {
    CAPTURE(part);
    tls_client peer(asked_for_tls(server), tls_profile());
    const std::string hello = peer.handshake_step();
    peer.socket().send_all(std::string_view(hello).substr(0, part));
    CHECK(server.next() == "refused: timed out");
    CHECK(server.next() == "end: timed out");
    (void)peer.socket().wait_for_end();
    CHECK(server.total().tls_failed_timed_out == ++expected);
  }
}

TEST_CASE_FIXTURE(clean_process, "starttls: whatever ends the handshake, it is counted and told as timed out") {
  listen_options listening = small_send_buffer();
  listening.handshake_timeout = 0ms;
  std::string before = "go ahead\n";
  bool reads = true;
  SUBCASE("the connection's lifetime") {
    listening.lifetime_timeout = 300ms;
  }
  SUBCASE("its idle time") {
    listening.idle_timeout = 100ms;
  }
  SUBCASE("unsent plaintext that the peer does not take: the handshake's own deadline") {
    listening.handshake_timeout = 200ms;
    before = numbered_text(60'000);
  }
  SUBCASE("unsent plaintext that the peer does not take: the deadline of writes") {
    listening.write_timeout = 200ms;
    before = numbered_text(60'000);
  }
  reads = before.size() < 100;
  const tls_context context(server_tls());
  channel<std::error_code> end;
  channel<tls_failure> failures;
  server_options options = one_core();
  options.on_tls_failure = [&](tls_failure cause, std::string_view, const address&) { failures.put(cause); };
  test_server server(
      [&](connection& conn) -> task<> {
        co_await conn.read();
        co_await conn.write(before);
        const bool done = co_await conn.start_tls(context);
        end.put(done ? std::error_code() : conn.error());
      },
      options, listening);
  client::options small;
  small.receive_buffer_bytes = 4096;
  client peer(server.where(), small);
  peer.send_all("STARTTLS\n");
  if (reads) CHECK(peer.recv_until("\n") == before);
  CHECK(end.take() == errc::timed_out);
  CHECK(failures.take() == tls_failure::timed_out);
  (void)peer.wait_for_end();
  CHECK(eventually([&] { return server.total().active == 0; }, 10s));
  CHECK(server.total().tls_failed_timed_out == 1);
  CHECK(server.total().timeouts == 1);
  CHECK(failures.size() == 0);
}

TEST_CASE_FIXTURE(clean_process, "starttls: shutdown_write in the middle of the handshake waits for its end") {
  for (const int version : {TLS1_2_VERSION, TLS1_3_VERSION}) {
    CAPTURE(version);
    const tls_context context(server_tls());
    channel<connection_handle> handles;
    channel<std::string> seen;
    test_server server([&](connection& conn) -> task<> {
      auto data = co_await conn.read();
      handles.put(conn.handle());
      co_await conn.write("go ahead\n");
      const bool done = co_await conn.start_tls(context);
      seen.put(done ? "upgraded" : conn.error().message());
      const bool written = co_await conn.write("never");
      seen.put(written ? "written" : conn.error() == errc::closed ? "closed" : conn.error().message());
      while ((data = co_await conn.read())) seen.put(std::string(data.text()));
      seen.put(conn.error() == errc::end_of_stream ? "end" : conn.error().message());
    });
    client socket = server.connect();
    socket.send_all("STARTTLS\n");
    CHECK(socket.recv_until("\n") == "go ahead\n");
    tls_client_options how;
    how.min_version = how.max_version = version;
    tls_client peer(std::move(socket), tls_profile(how));
    peer.socket().send_all(peer.handshake_step());
    REQUIRE(peer.receive());  // the server's first flight: it waits for ours
    event done;
    CHECK(handles.take().post([&](connection& conn) {
      conn.shutdown_write();
      done.set();
    }) == post_result::posted);
    done.wait();
    peer.handshake();
    CHECK(seen.take() == "upgraded");
    CHECK(seen.take() == "closed");
    CHECK(peer.ended_cleanly());
    peer.send_all("still heard");
    CHECK(seen.take() == "still heard");
    peer.half_close();
    CHECK(seen.take() == "end");
  }
}

TEST_CASE_FIXTURE(clean_process, "starttls: handshakes that fail end the connection") {
  line_server server;
  SUBCASE("garbage") {
    client peer = asked_for_tls(server);
    peer.send_all("EHLO example.org\r\n");
    CHECK(server.next() == "refused: TLS failed");
    CHECK(server.next() == "end: TLS failed");
    (void)peer.wait_for_end();
    CHECK(server.total().tls_failed_not_tls == 1);
  }
  SUBCASE("a peer that leaves") {
    asked_for_tls(server).half_close();
    CHECK(server.next() == "refused: TLS failed");
    CHECK(server.next() == "end: TLS failed");
    CHECK(server.total().tls_failed_peer_gone == 1);
  }
  SUBCASE("a peer that resets") {
    asked_for_tls(server).reset();
    CHECK(server.next().starts_with("refused: "));
    CHECK(server.next().starts_with("end: "));
    CHECK(server.total().tls_failed_peer_gone == 1);
  }
  SUBCASE("a client that does not trust us") {
    client socket = asked_for_tls(server);
    tls_client_options how;
    how.max_version = TLS1_2_VERSION;
    how.ciphers = "AES128-SHA";
    tls_client peer(std::move(socket), tls_profile(how));
    CHECK_THROWS_AS(peer.handshake(), tls_went_wrong);
    CHECK(server.next() == "refused: TLS failed");
    CHECK(server.next() == "end: TLS failed");
    CHECK(server.total().tls_failed_nothing_shared == 1);
  }
  CHECK(eventually([&] { return server.total().active == 0; }));
}

TEST_CASE_FIXTURE(clean_process, "starttls: after a failure nothing is sent or read in plain") {
  const tls_context context(server_tls());
  channel<std::string> seen;
  test_server server([&](connection& conn) -> task<> {
    auto data = co_await conn.read();
    const bool done = co_await conn.start_tls(context);
    seen.put(done ? "upgraded" : std::string(conn.tls_error()));
    const bool written = co_await conn.write("plain");
    seen.put(written ? "written" : "not written");
    seen.put(conn.try_write("plain") ? "written" : "not written");
    data = co_await conn.read();
    seen.put(data ? std::string(data.text()) : "nothing");
    const bool again = co_await conn.sleep_for(1h);
    seen.put(again ? "slept" : "interrupted");
  });
  client peer = server.connect();
  peer.send_all("STARTTLS");
  CHECK(eventually([&] { return server.total().bytes_received == 8; }));
  peer.send_all("no TLS\n");
  CHECK(seen.take() == "wrong version number");
  CHECK(seen.take() == "not written");
  CHECK(seen.take() == "not written");
  CHECK(seen.take() == "nothing");
  CHECK(seen.take() == "interrupted");
  (void)peer.wait_for_end();
}

TEST_CASE_FIXTURE(clean_process, "starttls: the server ends while handshakes stall") {
  listen_options listening;
  listening.handshake_timeout = 300ms;
  line_server server(buffered_plaintext::refuse, listening);
  client silent = asked_for_tls(server);
  tls_client begun(asked_for_tls(server), tls_profile());
  begun.socket().send_all(begun.handshake_step());
  REQUIRE(begun.receive());
  SUBCASE("by halt") {
    server.host().halt();
  }
  SUBCASE("by a shutdown with a grace") {
    server.host().shutdown(50ms);
  }
  SUBCASE("by a shutdown: they have their deadline") {
    server.host().shutdown();
  }
  (void)silent.wait_for_end();
  (void)begun.socket().wait_for_end();
  server.host().wait();
  CHECK(server.total().active == 0);
}

// Whoever has not proved yet who he is must not be told anything.
TEST_CASE_FIXTURE(clean_process, "starttls: nothing is written before it is done") {
  const tls_context context(server_tls());
  channel<connection_handle> handles;
  test_server server([&](connection& conn) -> task<> {
    handles.put(conn.handle());
    const bool done = co_await conn.start_tls(context);
    if (done) co_await echo(conn);
  });
  client plain = server.connect();
  channel<std::string> seen;
  handles.take().post([&](connection& conn) {
    auto early = conn.write("early");
    const bool refused = early.await_ready() && !early.await_resume();
    seen.put(refused ? conn.error().message() : "written");
  });
  CHECK(seen.take() == std::error_code(errc::limit_exceeded).message());
  tls_client peer(std::move(plain), tls_profile());
  peer.handshake().send_all("ping");
  CHECK(peer.recv_exactly(4) == "ping");
}

TEST_CASE_FIXTURE(clean_process, "starttls: many on one core with a small budget") {
  server_options options = one_core();
  options.handshake_budget = 1us;
  line_server server(buffered_plaintext::refuse, {}, options);
  std::vector<tls_client> crowd;
  const tls_profile profile;
  for (int i = 0; i < 30; ++i) {
    crowd.emplace_back(asked_for_tls(server), profile);
    crowd.back().socket().send_all(crowd.back().handshake_step());
  }
  for (auto& peer : crowd) {
    REQUIRE(peer.receive());
    peer.handshake().send_all("x\n");
    CHECK(peer.recv_exactly(3) == "ok\n");
  }
  CHECK(server.total().tls_handshakes == crowd.size());
}

}  // namespace
}  // namespace percore::test
