// Slots that are too small, and allocations that fail.
#include <doctest/doctest.h>

#include <sys/resource.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "tests/fault/injection.hpp"
#include "tests/support/clean_process.hpp"
#include "tests/support/test_server.hpp"

namespace percore::test {
namespace {

using namespace std::chrono_literals;

void send_and_hear(client& peer, const std::string& text) {
  peer.send_all(text);
  CHECK(peer.recv_exactly(text.size()) == text);
}

task<bool> echo_once(connection& conn) {
  const alive frame;
  const bytes_view data = co_await conn.read();
  if (!data) co_return false;
  const bool written = co_await conn.write(data);
  co_return written;
}

TEST_CASE_FIXTURE(clean_process, "memory: frames that do not fit their slot are on the heap and counted") {
  server_options options = one_core();
  options.slot_bytes = 512;
  fault_plan plan = no_faults();
  SUBCASE("undisturbed") {}
  SUBCASE("with short and late transfers") {
    plan.short_read = plan.short_write = plan.would_block = 0.3;
  }
  test_server server(
      [](connection& conn) -> task<> {
        const alive frame;
        std::array<char, 2000> room{};
        for (;;) {
          room[0] = 'x';
          const bool echoed = co_await echo_once(conn);
          CHECK(room[0] == 'x');
          if (!echoed) break;
        }
      },
      options);
  injected faults(plan);
  constexpr std::uint64_t count = 20;
  {
    std::vector<client> peers;
    for (std::uint64_t i = 0; i < count; ++i) peers.push_back(server.connect());
    for (client& peer : peers) send_and_hear(peer, "hello");
    CHECK(server.total().frames_on_heap >= count);
  }
  CHECK(eventually([&] { return server.total().active == 0; }));
  CHECK(server.total().handler_errors == 0);
}

#ifndef PERCORE_TEST_SANITIZED

// More than the address space of a process has (47 bits on x86-64, 48 on arm64): no setting of overcommit
// makes an allocation of it succeed.
constexpr std::size_t impossible_bytes = std::size_t{1} << 50;
struct impossible {
  char bytes[impossible_bytes];
};

// Never inlined: clang would make its frame a part of the caller's, and the caller's would be the one that does not fit.
[[gnu::noinline]] task<> impossible_handler(connection& conn) {
  impossible room;
  char* volatile first = room.bytes;
  co_await conn.read();
  *first = 'x';
}

TEST_CASE_FIXTURE(clean_process, "memory: a connection whose handler gets no frame is refused") {
  server target(one_core());
  target.listen("127.0.0.1:0", impossible_handler);
  target.listen("127.0.0.1:0", echo);
  target.start();
  client living(target.local_address(1));
  send_and_hear(living, "one");
  for (int i = 0; i < 3; ++i) {
    client refused(target.local_address(0));
    CHECK(refused.wait_for_end() == ending::reset);
  }
  send_and_hear(living, "two");
  const core_stats total = target.stats().total;
  CHECK(total.refused_memory == 3);
  CHECK(total.accepted == 1);
  CHECK(total.active == 1);
  CHECK(total.handler_errors == 0);
}

void check_failed_allocation(bool of_context, bool caught) {
  INFO("context " << of_context << ", caught " << caught);
  test_server server([&](connection& conn) -> task<> {
    const alive frame;
    bool failed = false;
    try {
      if (of_context) {
        conn.emplace_context<impossible>();
      } else {
        co_await impossible_handler(conn);
      }
    } catch (const std::bad_alloc&) {
      failed = true;
      if (!caught) throw;
    }
    CHECK(failed);
    co_await echo(conn);
  });
  client peer = server.connect();
  if (caught) {
    send_and_hear(peer, "hello");
  } else {
    CHECK(peer.recv_to_end().empty());
  }
  peer.close();
  CHECK(eventually([&] { return server.total().active == 0; }));
  CHECK(server.total().handler_errors == (caught ? 0 : 1));
  CHECK(server.total().frames_on_heap == 0);
  CHECK(server.total().contexts_on_heap == 0);
}

TEST_CASE_FIXTURE(clean_process,
                  "memory: a nested task or a context that gets no memory throws into the handler") {
  for (const bool of_context : {false, true}) {
    for (const bool caught : {false, true}) check_failed_allocation(of_context, caught);
  }
}

// Lets the process map no more than some megabytes beyond what it has.
class no_more_memory {
 public:
  no_more_memory() {
    ::getrlimit(RLIMIT_AS, &before_);
    rlimit limit = before_;
    unsigned long pages = 0;
    FILE* file = std::fopen("/proc/self/statm", "r");
    REQUIRE(file != nullptr);
    REQUIRE(std::fscanf(file, "%lu", &pages) == 1);
    std::fclose(file);
    limit.rlim_cur = pages * static_cast<rlim_t>(::sysconf(_SC_PAGESIZE)) + (4 << 20);
    REQUIRE(::setrlimit(RLIMIT_AS, &limit) == 0);
  }
  no_more_memory(const no_more_memory&) = delete;
  no_more_memory& operator=(const no_more_memory&) = delete;
  ~no_more_memory() { ::setrlimit(RLIMIT_AS, &before_); }

 private:
  rlimit before_{};
};

// The heap of one thread has at most 64 MiB reserved in advance (malloc(3), HEAP_MAX_SIZE of glibc).
TEST_CASE_FIXTURE(clean_process, "memory: a tail that gets none ends its connection with a reset") {
  const std::string text(100 << 20, 'x');
  bool tried = false;
  SUBCASE("of write") {}
  SUBCASE("of try_write") {
    tried = true;
  }
  channel<std::error_code> errors;
  listen_options options;
  options.unsent_tail_bytes = 128 << 20;
  std::atomic<bool> failing_one = true;
  test_server server(
      [&](connection& conn) -> task<> {
        const alive frame;
        if (failing_one.exchange(false)) {
          co_await conn.read();
          bool written = false;
          if (tried) {
            written = conn.try_write(text);
          } else {
            written = co_await conn.write(text);
          }
          CHECK_FALSE(written);
          errors.put(conn.error());
        } else {
          co_await echo(conn);
        }
      },
      one_core(), options);
  client peer = server.connect();
  {
    const no_more_memory from_here;
    peer.send_all("go");
    CHECK(errors.take() == errc::no_memory);
  }
  CHECK(peer.wait_for_end() == ending::reset);
  client next = server.connect();
  send_and_hear(next, "hello");
}

// Without memory for a copy of its own size, half a message keeps the whole buffer.
TEST_CASE_FIXTURE(clean_process, "memory: half a message that cannot be set aside stays where it is") {
  server_options options = one_core();
  options.read_buffer_bytes = 16 << 20;
  options.read_buffers_per_core = 1;
  event whole;
  test_server server(
      [&](connection& conn) -> task<> {
        const alive frame;
        const bytes_view line = co_await conn.read_until("\n", 16 << 20);
        CHECK(line.size() == (9u << 20) + 1);
        whole.set();
      },
      options);
  const std::string text(9 << 20, 'x');
  const no_more_memory from_here;
  client peer = server.connect();
  peer.send_all(text);
  REQUIRE(eventually([&] { return server.total().bytes_received == text.size(); }));
  peer.send_all("\n");
  whole.wait();
}

#endif  // PERCORE_TEST_SANITIZED

}  // namespace
}  // namespace percore::test
