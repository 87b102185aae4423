// The unsent tail while sends are cut short, refused and interrupted.
#include <doctest/doctest.h>

#include <linux/sockios.h>
#include <sys/ioctl.h>

#include <array>
#include <atomic>
#include <chrono>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "tests/fault/injection.hpp"
#include "tests/support/clean_process.hpp"
#include "tests/support/test_server.hpp"

namespace percore::test {
namespace {

using namespace std::chrono_literals;

fault_plan stuttering() {
  fault_plan plan = no_faults();
  plan.short_write = plan.would_block = plan.interrupted = 0.3;
  return plan;
}

listen_options with_tail(std::size_t tail_bytes, int send_buffer_bytes = 4096) {
  listen_options options;
  options.socket.send_buffer_bytes = send_buffer_bytes;
  options.unsent_tail_bytes = tail_bytes;
  return options;
}

client slow_client(const test_server& server) {
  client::options options;
  options.receive_buffer_bytes = 4096;
  return client(server.where(), options);
}

enum class end_by { returning, close, half_close, write_last };

// Writes `text` in parts of every size and every way of writing, and notes when the tail was over its limit.
task<> write_in_all_ways(connection& conn, const std::string& text, std::size_t tail_bytes, end_by end,
                         std::atomic<std::size_t>& too_much) {
  const alive frame;
  std::mt19937_64 draw(seed() + tail_bytes);
  const bytes_view all(text);
  const std::size_t last = end == end_by::write_last ? text.size() - 9000 : text.size();
  for (std::size_t at = 0; at < last;) {
    const std::size_t size = std::min<std::size_t>(1 + draw() % (draw() % 4 == 0 ? 30'000 : 600), last - at);
    const bytes_view part = all.subview(at, size);
    bool written = false;
    switch (draw() % 4) {
      case 0:
        written = conn.try_write(part);
        if (!written && conn.error() != errc::limit_exceeded) co_return;
        break;
      case 1: {
        const std::array<bytes_view, 4> pieces = {part.subview(0, size / 2), bytes_view(),
                                                  part.subview(size / 2, size / 4),
                                                  part.subview(size / 2 + size / 4)};
        const std::span<const bytes_view> view(pieces);
        written = co_await conn.write(view);
        if (!written) co_return;
        break;
      }
      default:
        written = co_await conn.write(part);
        if (!written) co_return;
        break;
    }
    if (written) at += size;
    if (conn.unsent_bytes() > tail_bytes) ++too_much;
    if (draw() % 8 == 0) co_await conn.yield();
  }
  if (end == end_by::write_last) co_await conn.write_last(all.subview(last));
  if (end == end_by::close) conn.close();
  if (end == end_by::half_close) conn.shutdown_write();
}

TEST_CASE_FIXTURE(clean_process, "unsent: everything arrives once and in order whatever the tail may hold") {
  const std::string text = numbered_text(sanitized ? 100'000 : 400'000);
  std::size_t tail_bytes = 0;
  SUBCASE("no tail") {
    tail_bytes = 0;
  }
  SUBCASE("1 byte") {
    tail_bytes = 1;
  }
  SUBCASE("700 bytes") {
    tail_bytes = 700;
  }
  SUBCASE("10 kB") {
    tail_bytes = 10'000;
  }
  SUBCASE("64 kB") {
    tail_bytes = 64 * 1024;
  }
  for (const end_by end : {end_by::returning, end_by::close, end_by::half_close, end_by::write_last}) {
    INFO("end " << static_cast<int>(end));
    std::atomic<std::size_t> too_much{0};
    test_server server(
        [&](connection& conn) { return write_in_all_ways(conn, text, tail_bytes, end, too_much); },
        one_core(), with_tail(tail_bytes));
    injected faults(stuttering());
    client peer = slow_client(server);
    CHECK((peer.recv_to_end() == text));  // and then a FIN: a reset throws
    CHECK(too_much.load() == 0);
    CHECK(eventually([&] { return server.total().active == 0; }));
    if (tail_bytes == 0) CHECK(server.total().unsent_tails == 0);
    if (tail_bytes >= 10'000) CHECK(server.total().unsent_tails > 0);
    CHECK(server.total().bytes_sent == text.size());
  }
}

// Records of the handler and of other threads share the stream: each arrives whole, those of one writer in
// order, and all that were accepted arrive.
TEST_CASE_FIXTURE(clean_process, "unsent: posted writes and the handler's own keep their order") {
  constexpr unsigned records = sanitized ? 200 : 1000;
  constexpr unsigned writers = 3;
  const auto record = [](unsigned writer, unsigned number) {
    std::string text = std::to_string(writer) + ":" + std::to_string(number) + ":";
    text.append(number * 37 % 500, static_cast<char>('a' + writer));
    return text + "\n";
  };
  channel<connection_handle> handles;
  std::atomic<unsigned> writing{writers};
  std::atomic<unsigned> waiting_writes{0};
  test_server server(
      [&](connection& conn) -> task<> {
        const alive frame;
        for (unsigned i = 0; i < writers; ++i) handles.put(conn.handle());
        for (unsigned i = 0; i < records; ++i) {
          const std::string text = record(0, i);
          const bool written = co_await conn.write(text);
          CHECK(written);
          if (conn.unsent_bytes() > 0) ++waiting_writes;
        }
        while (writing.load() > 0) co_await conn.sleep_for(1ms);
      },
      one_core(), with_tail(8000));
  injected faults(stuttering());
  client peer = slow_client(server);
  std::vector<std::thread> threads;
  for (unsigned writer = 1; writer <= writers; ++writer) {
    threads.emplace_back([&, writer, handle = handles.take()] {
      channel<std::error_code> results;
      for (unsigned i = 0; i < records;) {
        const post_result posted =
            handle.write(record(writer, i), [&results](std::error_code error) { results.put(error); });
        const std::error_code error = posted == post_result::posted ? results.take() : errc::closed;
        // Full, or the handler's own write is waiting: again.
        if (!error) {
          ++i;
        } else if (error != errc::limit_exceeded) {
          CHECK(error == std::error_code());
          break;
        }
      }
      --writing;
    });
  }
  const std::string all = peer.recv_to_end();
  for (std::thread& thread : threads) thread.join();
  std::array<unsigned, writers + 1> next{};
  std::size_t at = 0;
  while (at < all.size()) {
    const std::size_t end = all.find('\n', at);
    REQUIRE(end != std::string::npos);
    const std::string text = all.substr(at, end + 1 - at);
    const auto writer = static_cast<std::size_t>(text[0] - '0');
    REQUIRE(writer <= writers);
    REQUIRE(text == record(static_cast<unsigned>(writer), next[writer]));
    ++next[writer];
    at = end + 1;
  }
  for (const unsigned count : next) CHECK(count == records);
  CHECK(waiting_writes.load() > 0);
}

// MSG_MORE holds a segment back until the next one: it must not be on when nothing follows.
TEST_CASE_FIXTURE(clean_process, "unsent: no bytes of a finished write are held back in the socket") {
  std::size_t full_pieces = 0;
  std::size_t empty_pieces = 0;
  SUBCASE("1 piece") {
    full_pieces = 1;
  }
  SUBCASE("2 pieces") {
    full_pieces = 2;
  }
  SUBCASE("64 pieces") {
    full_pieces = 64;
  }
  SUBCASE("65 pieces") {
    full_pieces = 65;
  }
  SUBCASE("64 pieces and an empty one") {
    full_pieces = 64;
    empty_pieces = 1;
  }
  SUBCASE("1 piece and 100 empty ones") {
    full_pieces = 1;
    empty_pieces = 100;
  }
  channel<int> unsent;
  test_server server([&](connection& conn) -> task<> {
    std::vector<bytes_view> pieces(full_pieces, bytes_view("x"));
    pieces.resize(full_pieces + empty_pieces);
    const std::span<const bytes_view> view(pieces);
    co_await conn.write(view);
    int held_back = -1;  // bytes that TCP has not sent for the first time, tcp(7)
    CHECK(::ioctl(conn.fd(), SIOCOUTQNSD, &held_back) == 0);
    unsent.put(held_back);
    co_await conn.read();
  });
  client peer = server.connect();
  CHECK(unsent.take() == 0);
  CHECK(peer.recv_exactly(full_pieces) == std::string(full_pieces, 'x'));
}

// While write waits, its bytes lie with the caller and not in the tail. Taking some of them is progress all
// the same.
TEST_CASE_FIXTURE(clean_process, "unsent: a write timeout is for no progress however large the write") {
  std::size_t tail_bytes = 0;
  SUBCASE("without a tail") {
    tail_bytes = 0;
  }
  SUBCASE("with a tail") {
    tail_bytes = 64 * 1024;
  }
  const std::string text = numbered_text(600'000);
  listen_options options = with_tail(tail_bytes);
  options.write_timeout = 1s;
  channel<bool> result;
  test_server server(
      [&](connection& conn) -> task<> {
        const bool written = co_await conn.write(text);
        result.put(written);
      },
      one_core(), options);
  client peer = slow_client(server);
  std::string all;
  // 1.5 s at 100 ms a step: longer than the timeout, each step much shorter.
  const auto start = std::chrono::steady_clock::now();
  while (all.size() < text.size() && std::chrono::steady_clock::now() - start < 1500ms) {
    all += peer.recv_exactly(std::min<std::size_t>(10'000, text.size() - all.size()));
    std::this_thread::sleep_for(100ms);
  }
  CHECK((all + peer.recv_to_end() == text));
  CHECK(result.take());
  CHECK(server.total().timeouts == 0);
}

TEST_CASE_FIXTURE(clean_process, "unsent: what makes no progress times out and is reset") {
  enum class way { write, tail_and_return, tail_and_close, tail_and_half_close } how = way::write;
  listen_options options = with_tail(64 * 1024);
  SUBCASE("a write that waits") {
    options.write_timeout = 50ms;
  }
  SUBCASE("a flush under the write timeout") {
    options.write_timeout = 50ms;
    how = way::tail_and_return;
  }
  SUBCASE("a flush under the close timeout") {
    options.close_timeout = 50ms;
    how = way::tail_and_return;
  }
  SUBCASE("a close under the close timeout") {
    options.close_timeout = 50ms;
    how = way::tail_and_close;
  }
  SUBCASE("a half-close under the write timeout") {
    options.write_timeout = 50ms;
    how = way::tail_and_half_close;
  }
  const std::string text = numbered_text(500'000);
  channel<std::error_code> error;
  test_server server(
      [&](connection& conn) -> task<> {
        const alive frame;
        if (how == way::write) {
          const bool written = co_await conn.write(text);
          CHECK_FALSE(written);
          error.put(conn.error());
          co_return;
        }
        CHECK(conn.try_write(bytes_view(text).subview(0, 50'000)));
        if (how == way::tail_and_close) {
          conn.close();
          // Whatever the handler does meanwhile.
          const bool slept = co_await conn.sleep_for(1h);
          CHECK_FALSE(slept);
        } else if (how == way::tail_and_half_close) {
          conn.shutdown_write();
          const bytes_view data = co_await conn.read();
          CHECK_FALSE(data);
          CHECK(conn.error() == errc::timed_out);
        }
        error.put(errc::timed_out);
      },
      one_core(), options);
  client peer = slow_client(server);
  CHECK(error.take() == errc::timed_out);
  CHECK(eventually([&] { return server.total().active == 0; }));
  CHECK(server.total().timeouts == 1);
  CHECK(peer.wait_for_end() == ending::reset);
}

// A failure in the middle loses bytes that write has accepted: the peer must see that its text is not whole.
TEST_CASE_FIXTURE(clean_process, "unsent: a tail that is lost ends with a reset") {
  const std::string text = numbered_text(50'000);
  bool returns = false;
  SUBCASE("while the handler waits") {}
  SUBCASE("after the handler has returned") {
    returns = true;
  }
  event ready;
  channel<std::error_code> error;
  test_server server(
      [&](connection& conn) -> task<> {
        const alive frame;
        const bool written = co_await conn.write(text);
        CHECK(written);
        CHECK(conn.unsent_bytes() > 0);
        ready.set();
        if (returns) co_return;
        const bytes_view data = co_await conn.read();
        CHECK_FALSE(data);
        error.put(conn.error());
      },
      one_core(), with_tail(64 * 1024));
  client peer = slow_client(server);
  ready.wait();
  injected faults(failing(call::send, ENOMEM));
  CHECK(peer.wait_for_end() == ending::reset);
  if (!returns) CHECK(error.take() == std::error_code(ENOMEM, std::system_category()));
  CHECK(eventually([&] { return server.total().active == 0; }));
}

}  // namespace
}  // namespace percore::test
