// What a handler writes, over real sockets.
#include <doctest/doctest.h>

#include <atomic>
#include <span>
#include <string>
#include <vector>

#include "tests/support/clean_process.hpp"
#include "tests/support/test_server.hpp"

namespace percore::test {
namespace {

// With small_send_buffer() on the server's side: sockets that are soon full. The kernel makes at least 2.3 kB of this
// side's (socket(7)).
client slow_client(const test_server& server) {
  client::options options;
  options.receive_buffer_bytes = 4096;
  return client(server.where(), options);
}

TEST_CASE_FIXTURE(clean_process, "writing: a write larger than all buffers waits for the reader and arrives whole") {
  const std::string text = numbered_text(4'000'000);
  std::atomic<bool> written = false;
  channel<bool> result;
  test_server server(
      [&](connection& conn) -> task<> {
        const bool all = co_await conn.write(text);
        written = true;
        result.put(all);
      },
      one_core(), small_send_buffer());
  client peer = slow_client(server);
  const std::string start = peer.recv_exactly(1);
  CHECK_FALSE(written.load());  // nearly all of it is still unread
  CHECK((start + peer.recv_to_end() == text));
  CHECK(result.take());
}

TEST_CASE_FIXTURE(clean_process, "writing: a large write that its connection's budget puts off still waits for the socket") {
  server_options options = one_core();
  options.operations_per_turn = 1;
  const std::string text = numbered_text(2'000'000);
  test_server server(
      [&](connection& conn) -> task<> {
        co_await conn.write("x");
        co_await conn.write(text);
      },
      options, small_send_buffer());
  client peer = server.connect();
  CHECK((peer.recv_to_end() == "x" + text));
}

TEST_CASE_FIXTURE(clean_process, "writing: writes keep their order and their content over full sockets") {
  const std::string text = numbered_text(1'000'000);
  test_server server(
      [&](connection& conn) -> task<> {
        std::size_t length = 1;
        for (std::size_t at = 0; at < text.size(); at += length, length = length * 7 % 9973) {
          const std::string piece = text.substr(at, length);
          if (!co_await conn.write(piece)) co_return;
        }
      },
      one_core(), small_send_buffer());
  client peer = slow_client(server);
  CHECK((peer.recv_to_end() == text));
}

TEST_CASE_FIXTURE(clean_process, "writing: several pieces arrive as one text") {
  const std::string text = numbered_text(500'000);
  channel<bool> result;
  const auto handler = [&](connection& conn) -> task<> {
    // More pieces than one sendmsg takes (IOV_MAX, 1024), empty ones among them.
    std::vector<bytes_view> pieces;
    for (std::size_t at = 0; at < text.size(); at += 100) {
      pieces.push_back(bytes_view(std::string_view(text).substr(at, 100)));
      if (at % 700 == 0) pieces.push_back(bytes_view());
    }
    const bool all = co_await conn.write(std::span<const bytes_view>(pieces));
    result.put(all);
  };
  SUBCASE("into roomy sockets") {
    test_server server(handler);
    client peer = server.connect();
    CHECK((peer.recv_to_end() == text));
    CHECK(result.take());
  }
  SUBCASE("into full sockets") {
    test_server server(handler, one_core(), small_send_buffer());
    client peer = slow_client(server);
    CHECK((peer.recv_to_end() == text));
    CHECK(result.take());
  }
}

TEST_CASE_FIXTURE(clean_process, "writing: nothing to write is written at once") {
  channel<bool> result;
  test_server server([&](connection& conn) -> task<> {
    const bool nothing = co_await conn.write(bytes_view());
    result.put(nothing);
    const bool no_pieces = co_await conn.write(std::span<const bytes_view>());
    result.put(no_pieces);
    result.put(conn.try_write(bytes_view()));
    const bool something = co_await conn.write("x");
    result.put(something);
  });
  client peer = server.connect();
  CHECK(peer.recv_to_end() == "x");
  for (int i = 0; i < 4; ++i) CHECK(result.take());
}

TEST_CASE_FIXTURE(clean_process, "writing: write_last ends the stream and reading goes on") {
  channel<std::string> seen;
  channel<std::error_code> error;
  const std::vector<bytes_view> pieces = {bytes_view("la"), bytes_view("st")};
  bool whole = false;
  SUBCASE("in one piece") { whole = true; }
  SUBCASE("in several pieces") { whole = false; }
  test_server server([&](connection& conn) -> task<> {
    bool sent = false;
    if (whole) {
      sent = co_await conn.write_last("last");
    } else {
      sent = co_await conn.write_last(std::span<const bytes_view>(pieces));
    }
    auto data = co_await conn.read();
    seen.put(sent ? std::string(data.text()) : "not sent");
    const bool more = co_await conn.write("more");
    seen.put(more ? "sent" : "refused");
    error.put(conn.error());
    seen.put(conn.try_write("more") ? "sent" : "refused");
  });
  client peer = server.connect();
  CHECK(peer.recv_to_end() == "last");
  peer.send_all("still heard");
  CHECK(seen.take() == "still heard");
  CHECK(seen.take() == "refused");
  CHECK(error.take() == errc::closed);
  CHECK(seen.take() == "refused");
}

TEST_CASE_FIXTURE(clean_process, "writing: write_last of more than the sockets hold ends after the last byte") {
  const std::string text = numbered_text(1'000'000);
  test_server server([&](connection& conn) -> task<> { co_await conn.write_last(text); }, one_core(),
                     small_send_buffer());
  client peer = slow_client(server);
  CHECK((peer.recv_to_end() == text));
}

TEST_CASE_FIXTURE(clean_process, "writing: try_write keeps a bounded tail and the connection lives on") {
  const std::string block = numbered_text(1000);
  channel<std::size_t> accepted;
  channel<std::error_code> error;
  channel<std::size_t> unsent;
  listen_options options = small_send_buffer();
  options.unsent_tail_bytes = 20'000;
  std::atomic<bool> go_on = false;
  test_server server(
      [&](connection& conn) -> task<> {
        std::size_t count = 0;
        while (conn.try_write(block)) ++count;
        error.put(conn.error());
        unsent.put(conn.unsent_bytes());
        accepted.put(count);
        co_await until(conn, go_on);
        const bool later = co_await conn.write("later");  // waits for room, keeps the order
        if (!later) co_return;
        // The peer has read everything by the time it answers.
        co_await conn.read();
        unsent.put(conn.unsent_bytes());
      },
      one_core(), options);
  client peer = slow_client(server);
  CHECK(error.take() == errc::limit_exceeded);
  const std::size_t kept = unsent.take();
  CHECK(kept <= 20'000);
  CHECK(kept + block.size() > 20'000);  // all or nothing: the next block would not have fit
  const std::size_t count = accepted.take();
  CHECK(count >= 19);
  go_on = true;
  std::string expected;
  for (std::size_t i = 0; i < count; ++i) expected += block;
  CHECK((peer.recv_exactly(expected.size()) == expected));
  CHECK(peer.recv_exactly(5) == "later");
  peer.send_all("!");
  CHECK(unsent.take() == 0);
  CHECK(server.total().unsent_tails >= 1);
}

TEST_CASE_FIXTURE(clean_process, "writing: try_write gives way to a write that waits") {
  const std::string text = numbered_text(1'000'000);
  channel<bool> tried;
  channel<connection_handle> handles;
  test_server server(
      [&](connection& conn) -> task<> {
        handles.put(conn.handle());
        co_await conn.write(text);
      },
      one_core(), small_send_buffer());
  client peer = slow_client(server);
  const connection_handle handle = handles.take();
  const std::string start = peer.recv_exactly(1);
  CHECK(handle.post([&](connection& conn) { tried.put(conn.try_write("between")); }) == post_result::posted);
  CHECK_FALSE(tried.take());
  CHECK((start + peer.recv_to_end() == text));
}

TEST_CASE_FIXTURE(clean_process, "writing: a write whose rest fits the tail does not wait") {
  const std::string text = numbered_text(60'000);
  channel<std::size_t> unsent;
  std::atomic<bool> go_on = false;
  test_server server(
      [&](connection& conn) -> task<> {
        const bool taken = co_await conn.write(text);
        unsent.put(taken ? conn.unsent_bytes() : 0);
        co_await until(conn, go_on);
      },
      one_core(), small_send_buffer());
  client peer = slow_client(server);
  const std::size_t kept = unsent.take();  // before the client has read a byte
  CHECK(kept > 0);
  CHECK(kept < text.size());
  go_on = true;  // what is unsent when the handler returns is sent all the same
  CHECK((peer.recv_to_end() == text));
}

TEST_CASE_FIXTURE(clean_process, "writing: without a tail every write waits for the socket") {
  const std::string text = numbered_text(200'000);
  channel<std::size_t> unsent;
  listen_options options = small_send_buffer();
  options.unsent_tail_bytes = 0;
  test_server server(
      [&](connection& conn) -> task<> {
        co_await conn.write(text);
        unsent.put(conn.unsent_bytes());
      },
      one_core(), options);
  client peer = slow_client(server);
  CHECK((peer.recv_to_end() == text));
  CHECK(unsent.take() == 0);
}

TEST_CASE_FIXTURE(clean_process, "writing: what is unsent is sent before the end that the handler asks for") {
  const std::string text = numbered_text(60'000);
  void (*end)(connection&) = nullptr;
  SUBCASE("by returning") { end = [](connection&) {}; }
  SUBCASE("by close") { end = [](connection& conn) { conn.close(); }; }
  SUBCASE("by half-close") { end = [](connection& conn) { conn.shutdown_write(); }; }
  test_server server(
      [&](connection& conn) -> task<> {
        conn.try_write(text);
        end(conn);
        co_return;
      },
      one_core(), small_send_buffer());
  client peer = slow_client(server);
  CHECK((peer.recv_to_end() == text));
}

TEST_CASE_FIXTURE(clean_process, "writing: a reset drops what is unsent") {
  const std::string text = numbered_text(60'000);
  event done;
  test_server server(
      [&](connection& conn) -> task<> {
        conn.try_write(text);
        conn.reset();
        done.set();
        co_return;
      },
      one_core(), small_send_buffer());
  client peer = slow_client(server);
  done.wait();
  CHECK(peer.wait_for_end() == ending::reset);
}

TEST_CASE_FIXTURE(clean_process, "writing: reading and writing at the same time") {
  // Both directions full: the echo must go on reading while the client reads, and the other way round.
  const std::string text = numbered_text(3'000'000);
  test_server server(echo, one_core(), small_send_buffer());
  client peer = slow_client(server);
  std::thread sender([&] {
    peer.send_all(text);
    peer.half_close();
  });
  const std::string answer = peer.recv_to_end();
  sender.join();
  CHECK((answer == text));
}

TEST_CASE_FIXTURE(clean_process, "writing: any number of empty pieces stands in front of what is sent") {
  test_server server([](connection& conn) -> task<> {
    std::vector<bytes_view> pieces(200);
    pieces[150] = "all";
    pieces[199] = " of it";
    const std::span<const bytes_view> view(pieces);
    co_await conn.write(view);
  });
  client peer = server.connect();
  CHECK(peer.recv_to_end() == "all of it");
}

}  // namespace
}  // namespace percore::test
