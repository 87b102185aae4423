#include "engine/core/acceptor.hpp"

#include <doctest/doctest.h>

#include <array>

#include "tests/support/bare_core.hpp"
#include "tests/support/clean_process.hpp"
#include "tests/support/client.hpp"
#include "tests/support/waiting.hpp"

namespace percore::test {
namespace {

// What the loop of a core does with its timers.
void run_timers(bare_core& core) {
  core->now_ns = sys::monotonic_ns();
  core->timers.advance(loop::timer_wheel::tick_of(core->now_ns));
}

TEST_CASE_FIXTURE(clean_process, "acceptor: a drain waits for a ticket that another core may give back") {
  bare_core core;
  engine::shared_limits limits(0, 1);
  bool last_was_accepted = false;
  limits.on_last_accepted = [&] { last_was_accepted = true; };
  REQUIRE(limits.take_ticket());  // by the other core, whose accept4 is under way

  engine::listener_config config;
  config.handler = detail::handler([](connection&) -> task<> { co_return; });
  const std::array<int, 1> cpus{-1};
  const auto group = sys::listen_group::bind(address("127.0.0.1:0"), {}, cpus);
  group->listen();
  engine::acceptor::settings settings;
  settings.group = group.get();
  settings.config = &config;
  settings.limits = &limits;
  engine::acceptor listener(*core, settings, 0);
  REQUIRE(listener.start() == 0);
  client peer(group->bound_address());

  SUBCASE("it comes back: the client is served") {
    listener.drain();
    run_timers(core);
    CHECK_FALSE(listener.closed());
    limits.return_ticket();
    CHECK(eventually([&] {
      run_timers(core);
      return listener.closed();
    }));
    CHECK(last_was_accepted);
    core.end_of_turn();
    CHECK(peer.wait_for_end() == ending::fin);
  }
  SUBCASE("it is used: the client comes too late") {
    listener.drain();
    CHECK_FALSE(listener.closed());
    limits.use_ticket();
    CHECK(eventually([&] {
      run_timers(core);
      return listener.closed();
    }));
    CHECK(peer.wait_for_end() == ending::reset);
  }
}

}  // namespace
}  // namespace percore::test
