// Listeners behind a balancer, and dial in the place of one.
#include <doctest/doctest.h>

#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "tests/support/clean_process.hpp"
#include "tests/support/relay_server.hpp"

namespace percore::test {
namespace {

using namespace std::chrono_literals;

listen_options behind(std::vector<network> trusted, bool tls = false) {
  listen_options options = upstream_over(tls);
  options.proxy_protocol.emplace();
  options.proxy_protocol->trusted = std::move(trusted);
  return options;
}

// Answers whom it takes its client for, then echoes.
task<> say_who(connection& conn) {
  const proxy_header* header = conn.proxied();
  const std::string who =
      conn.peer_address().to_string() + (header == nullptr ? " none" : " v" + std::to_string(header->version)) + "\n";
  if (!co_await conn.write(who)) co_return;
  co_await echo(conn);
}

const std::string text_header = "PROXY TCP4 192.0.2.1 192.0.2.2 1234 443\r\n";

std::string binary_header() {
  proxy_header header;
  header.source = "[2001:db8::7]:99";
  header.destination = "[2001:db8::8]:443";
  header.fields = {{2, "example.org"}};
  return to_bytes(header);
}

TEST_CASE_FIXTURE(clean_process, "proxy_protocol: a client is who the header says it is") {
  test_server server(say_who, one_core(), behind({"127.0.0.0/8"}));
  client peer = server.connect();
  SUBCASE("version 1") {
    peer.send_all(text_header + "ping");
    CHECK(peer.recv_until("\n") == "192.0.2.1:1234 v1\n");
  }
  SUBCASE("version 2") {
    peer.send_all(binary_header() + "ping");
    CHECK(peer.recv_until("\n") == "[2001:db8::7]:99 v2\n");
  }
  SUBCASE("in single bytes") {
    for (const char c : binary_header() + "ping") peer.send_all(std::string(1, c));
    CHECK(peer.recv_until("\n") == "[2001:db8::7]:99 v2\n");
  }
  SUBCASE("about nobody") {
    peer.send_all("PROXY UNKNOWN\r\nping");
    CHECK(peer.recv_until("\n") == peer.local_address().to_string() + " v1\n");
  }
  CHECK(peer.recv_exactly(4) == "ping");
}

TEST_CASE_FIXTURE(clean_process, "proxy_protocol: before TLS") {
  test_server server(say_who, one_core(), behind({"127.0.0.1"}, true));
  const tls_profile profile;
  client socket = server.connect();
  bool with_the_hello = false;
  SUBCASE("by itself") {}
  SUBCASE("with the first flight") { with_the_hello = true; }
  if (!with_the_hello) {
    socket.send_all(binary_header());
    tls_client peer(std::move(socket), profile);
    peer.handshake();
    peer.send_all("ping");
    CHECK(peer.recv_exactly(24) == "[2001:db8::7]:99 v2\nping");
  } else {
    tls_client peer(std::move(socket), profile);
    peer.socket().send_all(binary_header() + peer.handshake_step());
    while (!peer.handshake_done()) {
      REQUIRE(peer.receive());
      peer.socket().send_all(peer.handshake_step());
    }
    CHECK(peer.recv_exactly(20) == "[2001:db8::7]:99 v2\n");
    peer.send_all("ping");
    CHECK(peer.recv_exactly(4) == "ping");
  }
  CHECK(server.total().tls_handshakes == 1);
}

TEST_CASE_FIXTURE(clean_process, "proxy_protocol: who is not trusted, or says no header, is refused") {
  std::vector<network> trusted = {"127.0.0.0/8"};
  std::string said = text_header;
  bool half_closes = false;
  SUBCASE("not trusted") { trusted = {"10.0.0.0/8", "::/0"}; }
  SUBCASE("nobody is trusted") { trusted.clear(); }
  SUBCASE("another protocol") { said = "GET / HTTP/1.1\r\n\r\n"; }
  SUBCASE("half of it") {
    said = text_header.substr(0, 20);
    half_closes = true;
  }
  test_server server(say_who, one_core(), behind(std::move(trusted)));
  client peer = server.connect();
  try {
    peer.send_all(said);
    if (half_closes) peer.half_close();
    CHECK(peer.wait_for_end() == ending::reset);
  } catch (const std::system_error&) {  // reset already, which is told once
  }
  CHECK(eventually([&] { return server.total().proxy_refused == 1; }));
  CHECK(server.total().bytes_sent == 0);
}

TEST_CASE_FIXTURE(clean_process, "proxy_protocol: the header has its time") {
  listen_options options = behind({"127.0.0.0/8"});
  options.proxy_protocol->timeout = 30ms;
  test_server server(say_who, one_core(), options);
  client silent = server.connect();
  CHECK(silent.wait_for_end() == ending::reset);
  client slow = server.connect();
  slow.send_all("PROXY ");
  CHECK(slow.wait_for_end() == ending::reset);
  client quick = server.connect();  // whose connection has its own afterwards
  quick.send_all(text_header);
  CHECK(quick.recv_until("\n") == "192.0.2.1:1234 v1\n");
  std::this_thread::sleep_for(50ms);
  quick.send_all("ping");
  CHECK(quick.recv_exactly(4) == "ping");
}

TEST_CASE_FIXTURE(clean_process, "proxy_protocol: over unix sockets, when they are trusted") {
  listen_options options = behind({});
  bool trusted = false;
  SUBCASE("trusted") { trusted = true; }
  SUBCASE("not trusted") {}
  options.proxy_protocol->trust_unix = trusted;
  test_server server(say_who, one_core(), options, "unix:@");
  client peer = server.connect();
  if (trusted) {
    peer.send_all(text_header);
    CHECK(peer.recv_until("\n") == "192.0.2.1:1234 v1\n");
  } else {
    (void)peer.wait_for_end();
    CHECK(server.total().proxy_refused == 1);
  }
}

TEST_CASE_FIXTURE(clean_process, "proxy_protocol: a shutdown does not wait for a header") {
  test_server server(say_who, one_core(), behind({"127.0.0.0/8"}));
  client peer = server.connect();
  CHECK(eventually([&] { return server.total().active == 1; }));
  server->shutdown();
}

TEST_CASE_FIXTURE(clean_process, "proxy_protocol: blocking handlers have none") {
  server one(one_core());
  CHECK_THROWS_AS(one.listen("127.0.0.1:0", blocking([](blocking_connection&) {}), behind({})), std::invalid_argument);
}

TEST_CASE_FIXTURE(clean_process, "proxy_protocol: what came with the header is served where the listener's handlers run") {
  listen_options listening = behind({"127.0.0.0/8"});
  listening.spill = spilling::always;
  channel<std::thread::id> served;
  test_server server(
      [&](connection& conn) -> task<> {
        served.put(std::this_thread::get_id());
        const bytes_view data = co_await conn.read();
        served.put(std::this_thread::get_id());
        co_await conn.write(data);
      },
      one_core(), listening);
  client peer = server.connect();
  peer.send_all(text_header + "ping");
  CHECK(peer.recv_exactly(4) == "ping");
  const std::thread::id core = thread_of_core(server);
  CHECK(served.take() != core);
  CHECK(served.take() != core);
}

TEST_CASE_FIXTURE(clean_process, "proxy_protocol: dial says on whose behalf") {
  bool tls = false;
  int version = 2;
  SUBCASE("version 1") { version = 1; }
  SUBCASE("version 2") {}
  SUBCASE("version 2 and TLS") { tls = true; }
  test_server upstream(say_who, one_core(), behind({"127.0.0.0/8"}, tls));
  const address where = upstream.where();
  test_server server([&, version](connection& conn) -> task<> {
    dial_options options = dial_over(tls);
    options.proxy.emplace();
    options.proxy->version = version;
    options.proxy->source = conn.peer_address();
    options.proxy->destination = conn.local_address();
    outgoing up = co_await dial(where, options);
    if (!up) co_return;
    co_await relay(conn, *up);
  });
  client peer = server.connect();
  CHECK(peer.recv_until("\n") == peer.local_address().to_string() + " v" + std::to_string(version) + "\n");
}

}  // namespace
}  // namespace percore::test
