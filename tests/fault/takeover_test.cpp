// Takeovers when the kernel gives no thread.
#include <doctest/doctest.h>

#include <chrono>

#include "tests/fault/injection.hpp"
#include "tests/support/clean_process.hpp"
#include "tests/support/test_server.hpp"

namespace percore::test {
namespace {

using namespace std::chrono_literals;

TEST_CASE_FIXTURE(clean_process, "takeover: a thread that the kernel refuses is counted and tried again") {
  std::uint32_t refusals = 1;
  SUBCASE("once") {}
  SUBCASE("again") { refusals = 2; }
  server_options options = one_core();
  options.takeover.on = true;
  options.takeover.after = 1ms;
  const injected faults(failing(call::thread_create, EAGAIN, refusals));
  const call_counts calls;
  event entered, opened;
  test_server server(
      [&](connection& conn) -> task<> {
        while (auto data = co_await conn.read()) {
          if (data.text() == "keep") {
            entered.set();
            opened.wait();
          }
          if (!co_await conn.write(data)) break;
        }
      },
      options);
  CHECK(eventually([&] { return calls.of(call::thread_create) > refusals; }));
  CHECK(server.total().takeover_refused == refusals);
  client slow = server.connect();
  slow.send_all("keep");
  entered.wait();
  CHECK(still_serves(server));
  CHECK(server.total().takeovers == 1);
  opened.set();
  CHECK(slow.recv_exactly(4) == "keep");
}

}  // namespace
}  // namespace percore::test
