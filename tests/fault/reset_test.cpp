// A reset at every stage of a connection, by the peer and by an injected failure of the next transfer.
#include <doctest/doctest.h>

#include <array>
#include <atomic>
#include <chrono>
#include <span>
#include <string>
#include <vector>

#include "tests/fault/injection.hpp"
#include "tests/support/clean_process.hpp"
#include "tests/support/test_server.hpp"

namespace percore::test {
namespace {

using namespace std::chrono_literals;

// What a stage's handler tells the test.
struct report {
  event ready;  // it is about to wait
  channel<std::error_code> end;
  std::string text = numbered_text(1'000'000);
  std::atomic<bool> go_on{false};
};

using stage_function = task<> (*)(connection&, report&);

struct stage {
  const char* name;
  stage_function run;
  bool writes;  // its next transfer is a send: it needs a peer that reads, else one that writes
};

task<> in_read(connection& conn, report& to) {
  const alive frame;
  to.ready.set();
  const bytes_view data = co_await conn.read();
  CHECK_FALSE(data);
  to.end.put(conn.error());
}

task<> in_read_into(connection& conn, report& to) {
  const alive frame;
  std::array<std::byte, 10> room;
  to.ready.set();
  const std::size_t count = co_await conn.read(room);
  CHECK(count == 0);
  to.end.put(conn.error());
}

task<> in_read_full(connection& conn, report& to) {
  const alive frame;
  std::array<std::byte, 10> room;
  conn.try_write("?");
  const bytes_view part = co_await conn.read();
  conn.unread(part);
  to.ready.set();
  const bool all = co_await conn.read_full(room);
  CHECK_FALSE(all);
  CHECK(conn.bytes_of_failed_read() == part.size());
  to.end.put(conn.error());
}

task<> in_read_until(connection& conn, report& to) {
  const alive frame;
  conn.try_write("?");
  const bytes_view part = co_await conn.read();
  conn.unread(part);
  to.ready.set();
  const bytes_view line = co_await conn.read_until("\n", 100);
  CHECK_FALSE(line);
  to.end.put(conn.error());
}

task<> in_write(connection& conn, report& to) {
  const alive frame;
  to.ready.set();
  const bool written = co_await conn.write(to.text);
  CHECK_FALSE(written);
  to.end.put(conn.error());
}

task<> in_write_pieces(connection& conn, report& to) {
  const alive frame;
  std::vector<bytes_view> pieces;
  for (std::size_t at = 0; at < to.text.size(); at += 1000)
    pieces.push_back(bytes_view(to.text).subview(at, 1000));
  to.ready.set();
  const std::span<const bytes_view> view(pieces);
  const bool written = co_await conn.write(view);
  CHECK_FALSE(written);
  to.end.put(conn.error());
}

task<> in_write_last(connection& conn, report& to) {
  const alive frame;
  to.ready.set();
  const bool written = co_await conn.write_last(to.text);
  CHECK_FALSE(written);
  to.end.put(conn.error());
}

// Behind a tail that is already there.
task<> in_write_behind_a_tail(connection& conn, report& to) {
  const alive frame;
  CHECK(conn.try_write(bytes_view(to.text).subview(0, 50'000)));
  CHECK(conn.unsent_bytes() > 0);
  to.ready.set();
  const bool written = co_await conn.write(to.text);
  CHECK_FALSE(written);
  CHECK(conn.unsent_bytes() == 0);
  to.end.put(conn.error());
}

// The tail's failure is what interrupts it.
task<> asleep_with_a_tail(connection& conn, report& to) {
  const alive frame;
  CHECK(conn.try_write(bytes_view(to.text).subview(0, 50'000)));
  to.ready.set();
  const bool slept = co_await conn.sleep_for(1h);
  CHECK_FALSE(slept);
  const bool written = co_await conn.write("more");
  CHECK_FALSE(written);
  to.end.put(conn.error());
}

task<> reading_with_a_tail(connection& conn, report& to) {
  const alive frame;
  CHECK(conn.try_write(bytes_view(to.text).subview(0, 50'000)));
  to.ready.set();
  const bytes_view data = co_await conn.read();
  CHECK_FALSE(data);
  to.end.put(conn.error());
}

task<> half_closed_with_a_tail(connection& conn, report& to) {
  const alive frame;
  CHECK(conn.try_write(bytes_view(to.text).subview(0, 50'000)));
  conn.shutdown_write();
  to.ready.set();
  const bytes_view data = co_await conn.read();
  CHECK_FALSE(data);
  to.end.put(conn.error());
}

task<> closed_with_a_tail(connection& conn, report& to) {
  const alive frame;
  CHECK(conn.try_write(bytes_view(to.text).subview(0, 50'000)));
  conn.close();
  to.ready.set();
  const bool written = co_await conn.write("more");
  CHECK_FALSE(written);
  CHECK(conn.error() == errc::closed);
  to.end.put(errc::connection_reset);  // as the others; nobody is left to be told
}

// The handler has returned: only the counters tell.
task<> flushing(connection& conn, report& to) {
  const alive frame;
  CHECK(conn.try_write(bytes_view(to.text).subview(0, 50'000)));
  to.end.put(errc::connection_reset);
  to.ready.set();
  co_return;
}

constexpr std::array stages = {
    stage{"read", in_read, false},
    stage{"read into a span", in_read_into, false},
    stage{"read_full with a part", in_read_full, false},
    stage{"read_until with a part", in_read_until, false},
    stage{"write", in_write, true},
    stage{"write of pieces", in_write_pieces, true},
    stage{"write_last", in_write_last, true},
    stage{"write behind a tail", in_write_behind_a_tail, true},
    stage{"sleep with a tail", asleep_with_a_tail, true},
    stage{"read with a tail", reading_with_a_tail, true},
    stage{"half-closed with a tail", half_closed_with_a_tail, true},
    stage{"closed with a tail", closed_with_a_tail, true},
    stage{"flush after the return", flushing, true},
};

enum class cause { peer, injected };

void check_stage(const stage& at, cause why, bool while_shutting_down) {
  INFO(std::string(at.name));
  const clean_process nothing_left;
  report to;
  test_server server([&](connection& conn) { return at.run(conn, to); }, one_core(), small_send_buffer());
  client::options how;
  how.receive_buffer_bytes = 4096;
  client peer(server.where(), how);
  if (at.run == in_read_full || at.run == in_read_until) {
    CHECK(peer.recv_exactly(1) == "?");
    peer.send_all("part");
  }
  to.ready.wait();
  // The handler has said that it is about to wait; once the core runs something else, it does.
  event waits;
  server->post(0, [&] { waits.set(); });
  waits.wait();
  if (while_shutting_down) server->begin_shutdown();
  if (why == cause::peer) {
    peer.reset();
  } else {
    fault_plan plan = no_faults();
    plan.reset = 1;
    injected faults(plan);
    if (!at.writes) peer.send_all("x");
    CHECK(peer.wait_for_end() == ending::reset);
  }
  CHECK(to.end.take() == errc::connection_reset);
  if (while_shutting_down) server->wait();
  CHECK(eventually([&] { return server.total().active == 0; }));
  CHECK(server.total().resets_received == 1);
}

TEST_CASE("reset: by the peer at every stage") {
  for (const stage& at : stages) check_stage(at, cause::peer, false);
}

TEST_CASE("reset: by the next transfer at every stage") {
  for (const stage& at : stages) check_stage(at, cause::injected, false);
}

// A shutdown lets these go on: a reset is then what ends the server, without any grace.
TEST_CASE("reset: while the server shuts down") {
  for (const stage& at : stages) {
    const bool waits_for_a_message = at.run == in_read || at.run == in_read_into ||
                                     at.run == reading_with_a_tail || at.run == half_closed_with_a_tail;
    if (waits_for_a_message) continue;
    check_stage(at, cause::peer, true);
    check_stage(at, cause::injected, true);
  }
}

TEST_CASE_FIXTURE(clean_process, "reset: a handler that sleeps meets it when it wakes") {
  report to;
  test_server server([&](connection& conn) -> task<> {
    const alive frame;
    to.ready.set();
    const bool slept = co_await until(conn, to.go_on);
    CHECK(slept);
    const bytes_view data = co_await conn.read();
    CHECK_FALSE(data);
    to.end.put(conn.error());
  });
  client peer = server.connect();
  to.ready.wait();
  peer.reset();
  to.go_on = true;
  CHECK(to.end.take() == errc::connection_reset);
}

// EPIPE is what the kernel answers to a send after it has reported the reset; to a handler both are the same.
TEST_CASE_FIXTURE(clean_process, "reset: EPIPE is a reset too") {
  report to;
  test_server server([&](connection& conn) -> task<> {
    const alive frame;
    const bytes_view data = co_await conn.read();
    const bool written = co_await conn.write(data);
    CHECK_FALSE(written);
    to.end.put(conn.error());
  });
  client peer = server.connect();
  injected faults(failing(call::send, EPIPE));
  peer.send_all("hello");
  CHECK(to.end.take() == errc::connection_reset);
  CHECK(peer.wait_for_end() == ending::reset);
  CHECK(server.total().resets_received == 1);
}

void check_other_error(call which, int error) {
  INFO(std::string(sys::call_name(which)) << " " << error);
  report to;
  test_server server([&](connection& conn) -> task<> {
    const alive frame;
    while (auto data = co_await conn.read()) {
      const bool written = co_await conn.write(data);
      if (!written) break;
    }
    to.end.put(conn.error());
  });
  client peer = server.connect();
  peer.send_all("one");
  CHECK(peer.recv_exactly(3) == "one");
  const injected faults(failing(which, error));
  peer.send_all("two");
  CHECK(to.end.take() == std::error_code(error, std::system_category()));
  CHECK(peer.wait_for_end() == ending::reset);
  CHECK(server.total().resets_received == 0);
}

// What the kernel reports beyond resets arrives as it is; the peer, whose answer is not whole, sees a reset.
TEST_CASE_FIXTURE(clean_process, "reset: other errors of a transfer keep their name and end with a reset") {
  for (const call which : {call::recv, call::send}) {
    for (const int error : {ENOMEM, ENOBUFS, ETIMEDOUT, EHOSTUNREACH}) check_other_error(which, error);
  }
}

}  // namespace
}  // namespace percore::test
