// copy_to and relay, over real sockets.
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

// Runs the test for each mixture of plain and TLS.
template <class Test>
void over_all_mixtures(Test test) {
  SUBCASE("plain to plain") {
    test(relay_wires{false, false});
  }
  SUBCASE("plain to TLS") {
    test(relay_wires{false, true});
  }
  SUBCASE("TLS to plain") {
    test(relay_wires{true, false});
  }
  SUBCASE("TLS to TLS") {
    test(relay_wires{true, true});
  }
}

TEST_CASE_FIXTURE(clean_process, "relay: bulk data in both directions at once arrives whole") {
  const std::string text = numbered_text(10'000'000);
  server_options options = one_core();
  SUBCASE("") {}
  SUBCASE("without pipes") { options.pipes_per_core = 0; }
  SUBCASE("through the smallest pipe") { options.pipe_bytes = 4096; }
  over_all_mixtures([&](relay_wires wires) {
    test_server upstream(echo, one_core(), upstream_over(wires.to_upstream_tls));
    relay_server server(upstream.where(), wires, {}, options);
    any_client peer = server.connect();
    std::string back;
    constexpr std::size_t piece = 100'000;
    for (std::size_t at = 0; at < text.size(); at += piece) {
      peer.send_all(text.substr(at, piece));
      back += peer.recv_exactly(piece);
    }
    CHECK((back == text));
    peer.half_close();
    CHECK(peer.recv_to_end().empty());
    CHECK(peer.ended_cleanly());
    const relayed outcome = server.outcomes.take();
    CHECK(outcome);
    CHECK(outcome.forth == text.size());
    CHECK(outcome.back == text.size());
  });
}

TEST_CASE_FIXTURE(clean_process, "relay: a stream of which the reader is slow is slowed down, and arrives whole") {
  const std::string text = numbered_text(20'000'000);
  over_all_mixtures([&](relay_wires wires) {
    std::atomic<bool> written = false;
    test_server upstream(
        [&](connection& conn) -> task<> {
          co_await conn.write(text);
          written = true;
        },
        one_core(), upstream_over(wires.to_upstream_tls, small_send_buffer()));
    relay_server server(upstream.where(), wires, {}, one_core(), small_send_buffer());
    any_client peer = server.connect(4096);
    const std::string start = peer.recv_exactly(1);
    CHECK_FALSE(written.load());  // what lies between is bounded
    CHECK(server.total().bytes_received < 15'000'000);
    CHECK((start + peer.recv_to_end() == text));
    CHECK(peer.ended_cleanly());
    peer.half_close();
    CHECK(server.outcomes.take().back == text.size());
  });
}

TEST_CASE_FIXTURE(clean_process, "relay: a FIN is passed on and the other direction flows on") {
  over_all_mixtures([&](relay_wires wires) {
    channel<std::string> asked;
    test_server upstream(
        [&](connection& conn) -> task<> {
          std::string all;
          while (auto data = co_await conn.read()) all += data.text();
          asked.put(all);  // the client has said everything
          co_await conn.write("one ");
          co_await conn.sleep_for(1ms);
          co_await conn.write("two");
        },
        one_core(), upstream_over(wires.to_upstream_tls));
    relay_server server(upstream.where(), wires);
    any_client peer = server.connect();
    peer.send_all("question");
    peer.half_close();
    CHECK(asked.take() == "question");
    CHECK(peer.recv_to_end() == "one two");
    CHECK(peer.ended_cleanly());
    const relayed outcome = server.outcomes.take();
    CHECK(outcome);
    CHECK(outcome.forth == 8);
    CHECK(outcome.back == 7);
  });
}

TEST_CASE_FIXTURE(clean_process, "relay: a FIN of the upstream is passed on while the client sends on") {
  over_all_mixtures([&](relay_wires wires) {
    channel<std::string> got;
    test_server upstream(
        [&](connection& conn) -> task<> {
          co_await conn.write("hello");
          conn.shutdown_write();
          std::string all;
          while (auto data = co_await conn.read()) all += data.text();
          got.put(all);
        },
        one_core(), upstream_over(wires.to_upstream_tls));
    relay_server server(upstream.where(), wires);
    any_client peer = server.connect();
    CHECK(peer.recv_to_end() == "hello");
    CHECK(peer.ended_cleanly());
    peer.send_all("and on");
    peer.half_close();
    CHECK(got.take() == "and on");
    CHECK(server.outcomes.take());
  });
}

TEST_CASE_FIXTURE(clean_process, "relay: a reset of the client resets the upstream") {
  const std::string text = numbered_text(5'000'000);
  bool in_midst = false;
  bool half_closed = false;
  SUBCASE("while nothing flows") {}
  SUBCASE("while it is fed") { in_midst = true; }
  SUBCASE("after the upstream's FIN") { half_closed = true; }
  over_all_mixtures([&](relay_wires wires) {
    channel<std::error_code> error;
    event ready;
    test_server upstream(
        [&](connection& conn) -> task<> {
          if (in_midst) {
            co_await conn.write(text);
          } else {
            co_await conn.write("x");
          }
          if (half_closed) conn.shutdown_write();
          while (co_await conn.read()) {
          }
          error.put(conn.error());
        },
        one_core(), upstream_over(wires.to_upstream_tls, small_send_buffer()));
    relay_server server(upstream.where(), wires, {}, one_core(), small_send_buffer());
    any_client peer = server.connect(4096);
    (void)peer.recv_exactly(1);
    if (half_closed) CHECK(peer.recv_to_end().empty());
    peer.socket().reset();
    CHECK(error.take() == errc::connection_reset);
    CHECK(server.outcomes.take().error == errc::connection_reset);
  });
}

TEST_CASE_FIXTURE(clean_process, "relay: a reset of the upstream resets the client") {
  std::string request = "go";
  bool half_closed = false;
  bool feeds = false;
  SUBCASE("while nothing flows") {}
  SUBCASE("while it is fed") { request = numbered_text(300'000); }
  SUBCASE("while it feeds") { feeds = true; }
  SUBCASE("after the client's FIN") { half_closed = true; }
  over_all_mixtures([&](relay_wires wires) {
    test_server upstream(
        [&](connection& conn) -> task<> {
          co_await conn.write("x");
          bytes_view data = co_await conn.read();
          while (half_closed && data) data = co_await conn.read();
          if (feeds) (void)conn.try_write(std::string(50'000, 'x'));
          conn.reset();
        },
        one_core(), upstream_over(wires.to_upstream_tls));
    relay_server server(upstream.where(), wires);
    any_client peer = server.connect();
    (void)peer.recv_exactly(1);
    peer.send_all(request);
    if (half_closed) peer.half_close();
    CHECK(peer.socket().wait_for_end() == ending::reset);
    CHECK(server.outcomes.take().error == errc::connection_reset);
  });
}

TEST_CASE_FIXTURE(clean_process, "relay: TLS that is cut off is no end that is passed on") {
  channel<std::error_code> error;
  test_server upstream([&](connection& conn) -> task<> {
    while (co_await conn.read()) {
    }
    error.put(conn.error());
  });
  relay_server server(upstream.where(), {true, false});
  any_client peer = server.connect();
  peer.send_all("half of it");
  peer.socket().half_close();
  CHECK(error.take() == errc::connection_reset);
  CHECK(server.outcomes.take().error == errc::truncated);
}

TEST_CASE_FIXTURE(clean_process, "relay: silence in both directions ends it, bytes in one keep it") {
  over_all_mixtures([&](relay_wires wires) {
    test_server upstream(
        [&](connection& conn) -> task<> {
          for (int i = 0; i < 12; ++i) {
            if (!co_await conn.write("x")) co_return;
            co_await conn.sleep_for(25ms);
          }
          while (co_await conn.read()) {
          }
        },
        one_core(), upstream_over(wires.to_upstream_tls));
    relay_options how;
    how.idle_timeout = 250ms;
    relay_server server(upstream.where(), wires, how);
    any_client peer = server.connect();
    CHECK(peer.recv_exactly(12) == std::string(12, 'x'));
    const relayed outcome = server.outcomes.take();
    CHECK(outcome.error == errc::timed_out);
    CHECK(outcome.back == 12);
    CHECK(peer.socket().wait_for_end() == ending::reset);
  });
}

TEST_CASE_FIXTURE(clean_process, "relay: a shutdown waits for it, or ends it when it is idle") {
  over_all_mixtures([&](relay_wires wires) {
    bool outlives = true;
    SUBCASE("outlives") {}
    SUBCASE("ends") { outlives = false; }
    test_server upstream(echo, one_core(), upstream_over(wires.to_upstream_tls));
    relay_options how;
    how.outlives_shutdown = outlives;
    relay_server server(upstream.where(), wires, how);
    any_client peer = server.connect();
    peer.send_all("ping");
    CHECK(peer.recv_exactly(4) == "ping");
    server->begin_shutdown();
    if (outlives) {
      for (int i = 0; i < 3; ++i) {
        peer.send_all("pong");
        CHECK(peer.recv_exactly(4) == "pong");
      }
      peer.half_close();
      CHECK(peer.recv_to_end().empty());
      CHECK(server.outcomes.take());
    } else {
      CHECK(server.outcomes.take().error == errc::shutting_down);
    }
    server->wait();
  });
}

TEST_CASE_FIXTURE(clean_process, "relay: a halt in its midst leaves nothing behind") {
  const std::string text = numbered_text(5'000'000);
  over_all_mixtures([&](relay_wires wires) {
    test_server upstream([&](connection& conn) -> task<> { co_await conn.write(text); }, one_core(),
                         upstream_over(wires.to_upstream_tls));
    relay_server server(upstream.where(), wires, {}, one_core(), small_send_buffer());
    std::vector<any_client> peers;
    for (int i = 0; i < 5; ++i) {
      peers.push_back(server.connect(4096));
      (void)peers.back().recv_exactly(1);
    }
    server->halt();
  });
}

// A handler that copies between its connection and another, and says what came of it.
TEST_CASE_FIXTURE(clean_process, "copy_to: an echo, and a limit") {
  const std::string text = numbered_text(1'000'000);
  channel<copied> result;
  test_server server([&](connection& conn) -> task<> {
    const copied first = co_await conn.copy_to(conn, 10);
    result.put(first);
    co_await conn.write("|");
    const copied second = co_await conn.copy_to(conn, 700'000);
    result.put(second);
    co_await conn.write("|");
    const copied rest = co_await conn.copy_to(conn);
    result.put(rest);
    const copied nothing = co_await conn.copy_to(conn, 0);
    result.put(nothing);
  });
  client peer = server.connect();
  std::string all;
  std::thread reading([&] { all = peer.recv_to_end(); });
  peer.send_all(text);
  peer.half_close();
  reading.join();
  CHECK((all == text.substr(0, 10) + "|" + text.substr(10, 700'000) + "|" + text.substr(700'010)));
  CHECK(result.take().bytes == 10);
  CHECK(result.take().bytes == 700'000);
  const copied rest = result.take();
  CHECK(rest);
  CHECK(rest.bytes == 299'990);
  CHECK(result.take().bytes == 0);
}

TEST_CASE_FIXTURE(clean_process, "copy_to: tells which of the two has failed") {
  channel<copied> result;
  event connected;
  bool of_target = false;
  SUBCASE("the source") {}
  SUBCASE("the target") { of_target = true; }
  test_server upstream([&](connection& conn) -> task<> {
    if (of_target) {
      (void)co_await conn.read();
      conn.reset();
    } else {
      while (co_await conn.read()) {
      }
    }
  });
  const address where = upstream.where();
  test_server server([&](connection& conn) -> task<> {
    outgoing up = co_await dial(where);
    if (!up) co_return;
    const copied outcome = co_await conn.copy_to(*up);
    result.put(outcome);
  });
  client peer = server.connect();
  peer.send_all("x");
  if (of_target) {
    // Each byte may still find a socket that does not know yet.
    try {
      for (;;) {
        peer.send_all("x");
        std::this_thread::sleep_for(1ms);
      }
    } catch (const std::exception&) {
    }
  } else {
    CHECK(eventually([&] { return upstream.total().bytes_received == 1; }));
    peer.reset();
  }
  const copied outcome = result.take();
  CHECK_FALSE(outcome);
  CHECK(outcome.target_failed == of_target);
  CHECK(outcome.error == errc::connection_reset);
}

TEST_CASE_FIXTURE(clean_process, "copy_to: a shutdown ends an idle echo") {
  const std::string text = numbered_text(1'000'000);
  channel<copied> result;
  test_server server([&](connection& conn) -> task<> {
    const copied outcome = co_await conn.copy_to(conn);
    result.put(outcome);
  });
  client peer = server.connect();
  bool in_bulk = false;
  SUBCASE("of small pieces") {}
  SUBCASE("of bulk") { in_bulk = true; }
  if (in_bulk) {
    std::thread sending([&] { peer.send_all(text); });
    CHECK((peer.recv_exactly(text.size()) == text));
    sending.join();
  } else {
    peer.send_all("ping");
    CHECK(peer.recv_exactly(4) == "ping");
  }
  server->shutdown();
  CHECK(result.take().error == errc::shutting_down);
}

TEST_CASE_FIXTURE(clean_process, "relay: hundreds of peers that do not read hold bounded memory") {
  // Each upstream sends as much as it can; nobody reads. What the relay holds are pipes, buffers and tails.
  const std::string text(1'000'000, 'x');
  test_server upstream([&](connection& conn) -> task<> {
    while (co_await conn.write(text)) {
    }
  });
  server_options options = one_core();
  options.pipes_per_core = 8;
  options.read_buffers_per_core = 16;
  relay_server server(upstream.where(), {}, {}, options, small_send_buffer());
  std::vector<any_client> peers;
  for (int i = 0; i < 200; ++i) peers.push_back(server.connect(4096));
  CHECK(eventually([&] { return server.total().dialled == 200; }));
  std::uint64_t before = 0;
  CHECK(eventually([&] {  // nothing moves any more
    const std::uint64_t now = server.total().bytes_received;
    const bool same = now == before && now != 0;
    before = now;
    if (!same) std::this_thread::sleep_for(20ms);
    return same;
  }));
  // 64 KiB of tail for each client, a socket's few kilobytes, and what the pipes and buffers hold.
  CHECK(before < 200 * (64 * 1024 + 64 * 1024) + 8 * 256 * 1024 + 16 * 32 * 1024);
  for (any_client& peer : peers) CHECK(peer.recv_exactly(10) == std::string(10, 'x'));
  server->halt();
}

}  // namespace
}  // namespace percore::test
