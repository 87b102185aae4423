// copy_to and relay while the kernel fails.
#include <doctest/doctest.h>

#include <string>
#include <thread>

#include "tests/fault/injection.hpp"
#include "tests/support/clean_process.hpp"
#include "tests/support/relay_server.hpp"

namespace percore::test {
namespace {

// What was received until the end, whatever it was.
struct ended_stream {
  std::string text;
  bool whole = false;
};

ended_stream send_and_receive(any_client& peer, const std::string& text) {
  ended_stream result;
  std::thread sending([&] {
    try {
      peer.socket().send_all(text);
      peer.socket().half_close();
    } catch (const waited_too_long&) {
      std::terminate();
    } catch (const std::exception&) {  // reset
    }
  });
  try {
    for (;;) {
      const std::string more = peer.recv_some();
      if (more.empty()) break;
      result.text += more;
    }
    result.whole = true;
  } catch (const waited_too_long&) {
    sending.join();
    throw;
  } catch (const std::exception&) {
  }
  sending.join();
  return result;
}

TEST_CASE_FIXTURE(clean_process, "relay: every byte arrives once through short and refused calls") {
  const std::string text = numbered_text(3'000'000);
  test_server upstream(echo);
  server_options options = one_core();
  SUBCASE("") {}
  SUBCASE("with the tightest limits") {
    options.operations_per_turn = 1;
    options.read_buffers_per_core = 1;
    options.pipes_per_core = 1;
    options.pipe_bytes = 4096;
    options.slot_bytes = 512;
  }
  relay_server server(upstream.where(), {}, {}, options, small_send_buffer());
  fault_plan plan = no_faults();
  plan.short_read = plan.short_write = plan.would_block = plan.interrupted = 0.2;
  const injected faults(plan);
  any_client peer = server.connect();
  const ended_stream back = send_and_receive(peer, text);
  CHECK(back.whole);
  CHECK((back.text == text));
  CHECK(server.outcomes.take());
}

TEST_CASE_FIXTURE(clean_process, "relay: with every fault nothing is mixed up, and no half is taken for the whole") {
  const std::string text = numbered_text(300'000);
  test_server upstream(echo);
  relay_server server(upstream.where(), {}, {}, all_cores());
  fault_plan plan = no_faults();
  plan.short_read = plan.short_write = plan.would_block = plan.interrupted = 0.1;
  plan.connection_aborted = plan.too_many_files = plan.no_memory = plan.reset = 0.003;
  const injected faults(plan);
  int whole = 0;
  for (int i = 0; i < 60; ++i) {
    any_client peer = server.connect();
    const ended_stream back = send_and_receive(peer, text);
    CHECK((back.text == text.substr(0, back.text.size())));
    if (back.text.size() == text.size()) ++whole;
  }
  CHECK(whole > 0);
  CHECK(eventually([&] { return server.total().active == 0; }));
}

TEST_CASE_FIXTURE(clean_process, "relay: without pipes, or with sockets that know no splice, bytes are copied") {
  const std::string text = numbered_text(3'000'000);
  test_server upstream(echo);
  relay_server server(upstream.where());
  fault_plan plan = no_faults();
  SUBCASE("no descriptors for pipes") { plan = failing(call::pipe2, EMFILE, 1'000'000); }
  SUBCASE("no splice") { plan = failing(call::splice, EINVAL, 1'000'000); }
  SUBCASE("no larger pipes") { plan = failing(call::fcntl, EPERM, 1'000'000); }
  const injected faults(plan);
  any_client peer = server.connect();
  const ended_stream back = send_and_receive(peer, text);
  CHECK(back.whole);
  CHECK((back.text == text));
}

TEST_CASE_FIXTURE(clean_process, "relay: bulk goes through pipes, small pieces do not") {
  test_server upstream(echo);
  relay_server server(upstream.where());
  any_client peer = server.connect();
  const call_counts counts;
  for (int i = 0; i < 20; ++i) {
    peer.send_all("ping");
    CHECK(peer.recv_exactly(4) == "ping");
  }
  CHECK(counts.of(call::splice) == 0);
  const std::string text = numbered_text(3'000'000);
  const ended_stream back = send_and_receive(peer, text);
  CHECK((back.text == text));
  CHECK(counts.of(call::splice) > 0);
  CHECK(counts.of(call::pipe2) <= 2);  // one for each direction
}

}  // namespace
}  // namespace percore::test
