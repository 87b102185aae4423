// Blocking handlers and offloaded calls while the kernel fails at random: every byte of a connection that
// lives arrives once and in order, and every connection ends.
#include <doctest/doctest.h>

#include <array>
#include <atomic>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "tests/fault/injection.hpp"
#include "tests/support/any_client.hpp"
#include "tests/support/clean_process.hpp"
#include "tests/support/test_server.hpp"
#include "tests/support/tls_client.hpp"
#include "tests/support/tls_server.hpp"

namespace percore::test {
namespace {

// Lines back, through every kind of read.
void blocking_lines(blocking_connection& conn) {
  while (auto line = conn.read_until("\n", 4000)) {
    const std::size_t length = line.size();
    if (!conn.write(line)) return;
    std::string body(length, '\0');
    if (!conn.read_full(std::as_writable_bytes(std::span(body)))) return;
    const std::array<bytes_view, 2> pieces{bytes_view(body), bytes_view("\n")};
    if (!conn.write(std::span<const bytes_view>(pieces))) return;
  }
}

task<> offloaded_lines(connection& conn) {
  while (auto line = co_await conn.read_until("\n", 4000)) {
    const std::size_t length = line.size();
    const bool wrote = co_await conn.write(line);
    if (!wrote) co_return;
    std::string body(length, '\0');
    const bool whole = co_await conn.read_full(std::as_writable_bytes(std::span(body)));
    if (!whole) co_return;
    const auto add_end = [&body] { return body + "\n"; };
    auto answer = co_await conn.offload(add_end);
    if (!answer) co_return;
    const bool answered = co_await conn.write(*answer);
    if (!answered) co_return;
  }
}

struct tally {
  std::atomic<std::size_t> exchanges{0};
  std::atomic<std::size_t> broken{0};  // connections that ended early
  std::atomic<std::size_t> wrong{0};   // bytes that are not what they should be
};

void exchange(const test_server& server, bool encrypted, std::size_t connections, unsigned seed,
              tally& seen) {
  const tls_profile profile;
  for (std::size_t c = 0; c < connections; ++c) {
    try {
      auto peer = [&] {
        if (!encrypted) return any_client(server.connect());
        tls_client secure(server.where(), profile);
        secure.handshake();
        return any_client(std::move(secure));
      }();
      for (std::size_t i = 0; i < 20; ++i) {
        const std::size_t length = 1 + (seed + c * 131 + i * 977) % 3000;
        const std::string line = numbered_text(length) + "\n";
        const std::string body = numbered_text(line.size());
        peer.send_all(line);
        if (peer.recv_exactly(line.size()) != line) seen.wrong.fetch_add(1);
        peer.send_all(body);
        if (peer.recv_exactly(body.size() + 1) != body + "\n") seen.wrong.fetch_add(1);
        seen.exchanges.fetch_add(1);
      }
    } catch (const waited_too_long&) {
      seen.wrong.fetch_add(1);
    } catch (const std::exception&) {
      seen.broken.fetch_add(1);
    }
  }
}

void run_exchanges(test_server& server, bool encrypted, const fault_plan& plan, bool deadly) {
  tally seen;
  {
    const injected faults(plan);
    std::vector<std::thread> clients;
    for (unsigned i = 0; i < 4; ++i) {
      clients.emplace_back([&, i] { exchange(server, encrypted, sanitized ? 8 : 60, i * 7919, seen); });
    }
    for (auto& one : clients) one.join();
  }
  CHECK(seen.wrong == 0);
  CHECK((seen.broken == 0 || deadly));
  CHECK(seen.exchanges > 0);
  CHECK(eventually([&] { return server.total().active == 0; }));
  server->shutdown();
  CHECK(server.total().helpers.alive == 0);
}

void with_every_kind(const fault_plan& plan, bool deadly) {
  server_options options = all_cores();
  options.helpers.most_per_core = 3;
  options.helpers.queue = 2;
  SUBCASE("blocking") {
    test_server server(blocking(blocking_lines), options);
    run_exchanges(server, false, plan, deadly);
  }
  SUBCASE("blocking, over TLS") {
    test_server server(blocking(blocking_lines), options, over_tls());
    run_exchanges(server, true, plan, deadly);
  }
  SUBCASE("offload") {
    test_server server(offloaded_lines, options);
    run_exchanges(server, false, plan, deadly);
  }
}

TEST_CASE_FIXTURE(clean_process, "helpers: short transfers, EAGAIN and EINTR cost nothing but time") {
  fault_plan plan = no_faults();
  plan.short_read = plan.short_write = plan.would_block = plan.interrupted = 0.2;
  with_every_kind(plan, false);
}

TEST_CASE_FIXTURE(clean_process, "helpers: every fault at one percent") {
  fault_plan plan = no_faults();
  plan.short_read = plan.short_write = plan.would_block = plan.interrupted = 0.01;
  plan.connection_aborted = plan.too_many_files = plan.no_memory = plan.reset = 0.01;
  with_every_kind(plan, true);
}

TEST_CASE_FIXTURE(clean_process, "helpers: threads that cannot be had come later") {
  with_every_kind(failing(call::thread_create, EAGAIN, 3), false);
}

}  // namespace
}  // namespace percore::test
