// Writes that are lent to the kernel: listen_options::zero_copy_from_bytes. Over loopback the kernel copies them when it
// delivers them; what the peer has no room for stays lent, which is what most of these tests need.
#include <doctest/doctest.h>

#include <time.h>

#include <linux/errqueue.h>
#include <sys/socket.h>

#include <atomic>
#include <cstring>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "tests/fault/injection.hpp"
#include "tests/support/any_client.hpp"
#include "tests/support/clean_process.hpp"
#include "tests/support/test_server.hpp"
#include "tests/support/tls_server.hpp"

namespace percore::test {
namespace {

using namespace std::chrono_literals;

constexpr std::size_t large = 1'000'000;

listen_options lending(std::size_t from = 100'000) {
  listen_options options;
  options.zero_copy_from_bytes = from;
  options.socket.send_buffer_bytes = 4'000'000;  // one that takes a large write whole
  return options;
}

client slow_client(const test_server& server) {
  client::options socket;
  socket.receive_buffer_bytes = 65'536;  // with much less the kernel waits for its probes of the window
  return client(server.where(), socket);
}

struct outcome {
  bool written = false;
  std::error_code error;
};

// Writes, wipes the memory as soon as it may, and tells.
auto writing(const std::string& text, channel<outcome>& result, bool last = false) {
  return [&text, &result, last](connection& conn) -> task<> {
    const alive here;
    std::string copy = text;
    bool written = false;
    if (last) {
      written = co_await conn.write_last(copy);
    } else {
      written = co_await conn.write(copy);
    }
    const std::error_code error = written ? std::error_code() : conn.error();
    std::memset(copy.data(), '#', copy.size());
    result.put({written, error});
  };
}

bool lends_on(const test_server& server, std::uint64_t bytes = large) {
  return eventually([&] { return server.total().zero_copy_bytes >= bytes; });
}

TEST_CASE_FIXTURE(clean_process, "zero copy: a write is done when the peer has all of it, and not before") {
  const std::string text = numbered_text(large);
  channel<outcome> result;
  const bool last = [] {
    bool chosen = false;
    SUBCASE("write") { chosen = false; }
    SUBCASE("write_last") { chosen = true; }
    return chosen;
  }();
  test_server server(writing(text, result, last), one_core(), lending());
  client peer = slow_client(server);
  REQUIRE(lends_on(server));
  CHECK(result.size() == 0);  // the socket has taken it all
  CHECK(server.total().zero_copy_sends == 1);
  CHECK((peer.recv_to_end() == text));
  CHECK(result.take().written);
}

TEST_CASE_FIXTURE(clean_process, "zero copy: every byte arrives once, through short and refused calls") {
  const std::string text = numbered_text(3 * large);
  channel<bool> result;
  listen_options options = lending(20'000);
  options.socket.send_buffer_bytes = 100'000;
  spilling spill = spilling::never;
  std::string_view where = "127.0.0.1:0";
  SUBCASE("IPv4") {}
  SUBCASE("IPv6") { where = "[::1]:0"; }
  SUBCASE("with handlers on helpers") { spill = spilling::always; }
  options.spill = spill;
  server_options one = one_core();
  one.operations_per_turn = 2;
  test_server server(
      [&](connection& conn) -> task<> {
        std::string copy;
        bool all = true;
        for (std::size_t begin = 0, size = 1; begin < text.size(); begin += size, size = size * 7 % 400'009) {
          copy = text.substr(begin, size);
          const bytes_view half(copy.data(), copy.size() / 2);
          const bytes_view pieces[] = {half, bytes_view(), bytes_view(copy).subview(half.size())};
          const std::span<const bytes_view> view(pieces);
          const bool written = co_await conn.write(view);
          std::memset(copy.data(), '#', copy.size());
          size = copy.size();
          all = all && written;
        }
        result.put(all);
      },
      one, options, where);
  fault_plan plan = no_faults();
  plan.short_write = plan.would_block = plan.interrupted = 0.1;
  const injected faults(plan);
  client peer = server.connect();
  CHECK((peer.recv_to_end() == text));
  CHECK(result.take());
  CHECK(server.total().zero_copy_sends > 0);
}

TEST_CASE_FIXTURE(clean_process, "zero copy: a connection on which the kernel copies gives it up") {
  const std::string text = numbered_text(200'000);
  test_server server(
      [&](connection& conn) -> task<> {
        for (int i = 0; i < 30; ++i) {
          const bool written = co_await conn.write(text);
          if (!written) break;
        }
      },
      one_core(), lending());
  client peer = server.connect();
  std::string all;
  for (int i = 0; i < 30; ++i) all += text;
  CHECK((peer.recv_to_end() == all));
  const core_stats total = server.total();
  CHECK(total.zero_copy_off == 1);
  CHECK(total.zero_copy_copied >= 8);
  CHECK(total.zero_copy_sends < 20);
}

// The error queue in the test's own words: how many calls are done, told in ranges that the test chooses.
struct told {
  std::mutex lock;
  std::vector<std::pair<std::uint32_t, std::uint32_t>> ranges;
  bool copied = false;
  std::atomic<unsigned> asked{0};

  static told& only() {
    static told one;
    return one;
  }
  told() = default;
  void add(std::uint32_t from, std::uint32_t to) {
    const std::lock_guard hold(lock);
    ranges.emplace_back(from, to);
  }
  static ssize_t answer(int, msghdr* message) {
    told& self = only();
    ++self.asked;
    const std::lock_guard hold(self.lock);
    if (self.ranges.empty()) return -EAGAIN;
    const auto [from, to] = self.ranges.front();
    self.ranges.erase(self.ranges.begin());
    sock_extended_err what{};
    what.ee_origin = SO_EE_ORIGIN_ZEROCOPY;
    what.ee_code = self.copied ? SO_EE_CODE_ZEROCOPY_COPIED : 0;
    what.ee_info = from;
    what.ee_data = to;
    cmsghdr* part = CMSG_FIRSTHDR(message);
    part->cmsg_level = SOL_IP;
    part->cmsg_type = IP_RECVERR;
    part->cmsg_len = CMSG_LEN(sizeof what);
    std::memcpy(CMSG_DATA(part), &what, sizeof what);
    message->msg_controllen = part->cmsg_len;
    return 0;
  }
};

struct error_queue {
  error_queue() {
    told::only().ranges.clear();
    told::only().asked = 0;
    sys::set_notification_stand_in(&told::answer);
  }
  error_queue(const error_queue&) = delete;
  error_queue& operator=(const error_queue&) = delete;
  ~error_queue() { sys::set_notification_stand_in(nullptr); }
};

TEST_CASE_FIXTURE(clean_process, "zero copy: notifications may come together, in parts and in any order") {
  const error_queue queue;
  const std::string text = numbered_text(400'000);
  channel<outcome> result;
  test_server server(
      [&](connection& conn) -> task<> {
        const bool written = co_await conn.write(text);
        result.put({written, {}});
        co_await conn.read();
      },
      one_core(), lending());
  fault_plan plan = no_faults();
  plan.short_write = 1;  // so that one write is many calls
  injected faults(plan);
  client peer = server.connect();
  CHECK((peer.recv_exactly(text.size()) == text));
  faults.end();
  // What the kernel really says stands in the queue, so that each event of the socket says EPOLLERR.
  const auto look = [&] {
    const unsigned asked = told::only().asked;
    peer.send_all("x");
    REQUIRE(eventually([&] { return told::only().asked > asked; }));
  };
  look();
  CHECK(result.size() == 0);
  const auto calls = static_cast<std::uint32_t>(server.total().zero_copy_sends);
  REQUIRE(calls >= 3);
  told::only().add(2, calls - 1);
  look();
  CHECK(result.size() == 0);
  told::only().add(1, 1);
  look();
  CHECK(result.size() == 0);
  told::only().add(0, 0);
  look();
  CHECK(result.take().written);
  CHECK(server.total().zero_copy_copied == 0);
  CHECK(server.total().zero_copy_off == 0);
}

TEST_CASE_FIXTURE(clean_process, "zero copy: numbers of calls wrap around") {
  const error_queue queue;
  const std::string text = numbered_text(200'000);
  test_server server(
      [&](connection& conn) -> task<> {
        const bool written = co_await conn.write(text);
        if (written) co_await conn.write("!");
      },
      one_core(), lending());
  client peer = server.connect();
  CHECK((peer.recv_exactly(text.size()) == text));
  REQUIRE(lends_on(server, text.size()));
  const auto calls = static_cast<std::uint32_t>(server.total().zero_copy_sends);
  const std::uint32_t first = ~std::uint32_t{0} - calls / 2;
  told::only().add(first, first + calls - 1);
  peer.send_all("x");
  CHECK(peer.recv_exactly(1) == "!");
}

TEST_CASE_FIXTURE(clean_process, "zero copy: what the kernel does not give back is waited for, also when the connection ends") {
  const error_queue queue;
  const std::string text = numbered_text(large);
  channel<outcome> result;
  channel<connection_handle> who;
  test_server server(
      [&](connection& conn) -> task<> {
        who.put(conn.handle());
        co_await writing(text, result)(conn);
      },
      one_core(), lending());
  client peer = slow_client(server);
  REQUIRE(lends_on(server));
  const unsigned asked = told::only().asked;
  const auto waits_in_vain = [&](unsigned times) {
    REQUIRE(eventually([&] { return told::only().asked > asked + times; }));
    CHECK(result.size() == 0);
    CHECK(alive::count() == 1);
  };
  SUBCASE("by its own reset: asked again and again, without an event") {
    who.take().post([](connection* conn) { conn->reset(); });
    waits_in_vain(5);
    CHECK(peer.wait_for_end() == ending::reset);
    told::only().add(0, static_cast<std::uint32_t>(server.total().zero_copy_sends) - 1);
    CHECK(!result.take().written);
  }
  SUBCASE("by a timeout") {
    who.take().post([](connection* conn) { conn->set_lifetime_timeout(1ms); });
    waits_in_vain(5);
    told::only().add(0, static_cast<std::uint32_t>(server.total().zero_copy_sends) - 1);
    CHECK(result.take().error == errc::timed_out);
  }
}

TEST_CASE_FIXTURE(clean_process, "zero copy: memory that a device keeps does not keep a halt for ever") {
  const error_queue queue;
  const std::string text = numbered_text(large);
  channel<outcome> result;
  test_server server(writing(text, result), one_core(), lending());
  client peer = slow_client(server);
  REQUIRE(lends_on(server));
  server->halt();
  server->wait();
  CHECK(alive::count() == 0);
  CHECK(server.total().zero_copy_overdue == 1);
  CHECK(peer.wait_for_end() == ending::reset);
}

TEST_CASE_FIXTURE(clean_process, "zero copy: limits of lent memory, and memory that cannot be lent") {
  const std::string text = numbered_text(3 * large);
  channel<outcome> result;
  int error = 0;
  SUBCASE("ENOBUFS") { error = ENOBUFS; }
  SUBCASE("EFAULT") { error = EFAULT; }
  test_server server(writing(text, result), one_core(), lending());
  const injected faults(failing(call::sendmsg, error, 1));
  client peer = server.connect();
  CHECK((peer.recv_to_end() == text));
  CHECK(result.take().written);
  CHECK(server.total().zero_copy_refused == 1);
}

TEST_CASE_FIXTURE(clean_process, "zero copy: a write that no memory at all can be had for fails") {
  const std::string text = numbered_text(large);
  channel<outcome> result;
  test_server server(writing(text, result), one_core(), lending());
  const injected faults(failing(call::sendmsg, ENOBUFS, 2));
  client peer = server.connect();
  CHECK(peer.wait_for_end() == ending::reset);
  CHECK(result.take().error == std::error_code(ENOBUFS, std::system_category()));
}

TEST_CASE_FIXTURE(clean_process, "zero copy: a kernel that knows none, and sockets that have none, get copies") {
  const std::string text = numbered_text(3 * large);
  channel<outcome> result;
  SUBCASE("old kernel") {
    test_server server(writing(text, result), one_core(), lending());
    const injected faults(failing(call::setsockopt, ENOPROTOOPT, 1'000));
    client peer = server.connect();
    CHECK((peer.recv_to_end() == text));
    CHECK(result.take().written);
    CHECK(server.total().zero_copy_sends == 0);
  }
  SUBCASE("unix socket") {
    test_server server(writing(text, result), one_core(), lending(), "unix:@percore-zero-copy");
    client peer = server.connect();
    CHECK((peer.recv_to_end() == text));
    CHECK(result.take().written);
    CHECK(server.total().zero_copy_sends == 0);
  }
  SUBCASE("TLS") {
    test_server server(writing(text, result), one_core(), over_tls(server_tls(), lending()));
    tls_client tls(server.where(), tls_profile());
    tls.handshake();
    any_client peer(std::move(tls));
    CHECK((peer.recv_to_end() == text));
    CHECK(result.take().written);
    CHECK(server.total().zero_copy_sends == 0);
  }
}

TEST_CASE_FIXTURE(clean_process, "zero copy: a peer that does not read runs into the write timeout") {
  const std::string text = numbered_text(large);
  channel<outcome> result;
  listen_options options = lending();
  SUBCASE("all of it in the socket") {}
  SUBCASE("some of it") { options.socket.send_buffer_bytes = 100'000; }
  options.write_timeout = 50ms;
  test_server server(writing(text, result), one_core(), options);
  client peer = slow_client(server);
  const outcome seen = result.take();
  CHECK(!seen.written);
  CHECK(seen.error == errc::timed_out);
  CHECK(peer.wait_for_end() == ending::reset);
  CHECK(server.total().zero_copy_overdue == 0);
}

TEST_CASE_FIXTURE(clean_process, "zero copy: a peer that reads slowly does not run into the write timeout") {
  const std::string text = numbered_text(large);
  channel<outcome> result;
  listen_options options = lending();
  options.write_timeout = 1s;
  test_server server(writing(text, result), one_core(), options);
  client peer = slow_client(server);
  REQUIRE(lends_on(server));
  const call_counts calls;
  std::string all;
  // Until the deadline has passed at least twice.
  while (calls.of(call::ioctl) < 3 && result.size() == 0) {
    all += peer.recv_some(10'000);
    std::this_thread::sleep_for(20ms);
  }
  all += peer.recv_to_end();
  CHECK((all == text));
  CHECK(result.take().written);
}

TEST_CASE_FIXTURE(clean_process, "zero copy: a reset in the midst, and the memory is free") {
  const std::string text = numbered_text(3 * large);
  channel<outcome> result;
  listen_options options = lending();
  options.socket.send_buffer_bytes = 100'000;
  test_server server(writing(text, result), one_core(), options);
  client peer = slow_client(server);
  REQUIRE(lends_on(server, 1));
  peer.reset();
  const outcome seen = result.take();
  CHECK(!seen.written);
  CHECK(seen.error == errc::connection_reset);
}

TEST_CASE_FIXTURE(clean_process, "zero copy: faults, resets and small limits by chance") {
  const std::string text = numbered_text(400'000);
  listen_options options = lending(10'000);
  options.socket.send_buffer_bytes = 50'000;
  test_server server(
      [&](connection& conn) -> task<> {
        const alive here;
        std::string copy = text;
        for (int i = 0; i < 3; ++i) {
          const bool written = co_await conn.write(copy);
          if (!written) break;
        }
      },
      one_core(), options);
  fault_plan plan = no_faults();
  plan.short_write = plan.would_block = plan.interrupted = 0.05;
  plan.reset = plan.no_memory = 0.01;
  const injected faults(plan);
  for (int i = 0; i < 30; ++i) {
    client peer = server.connect();
    (void)peer.wait_for_end();
  }
  CHECK(eventually([&] { return server.total().active == 0; }));
}

TEST_CASE_FIXTURE(clean_process, "zero copy: the poller refuses the connection under a write") {
  const std::string text = numbered_text(large);
  channel<outcome> result;
  test_server server(writing(text, result), one_core(), lending());
  const injected faults(failing(call::epoll_ctl_add, ENOMEM, 1));
  client peer = slow_client(server);
  CHECK(result.take().error == std::error_code(ENOMEM, std::system_category()));
  CHECK(peer.wait_for_end() == ending::reset);
}

TEST_CASE_FIXTURE(clean_process, "zero copy: a halt in the midst waits for the memory") {
  const std::string text = numbered_text(large);
  channel<outcome> result;
  test_server server(writing(text, result), one_core(), lending());
  client peer = slow_client(server);
  REQUIRE(lends_on(server));
  SUBCASE("halt") { server->halt(); }
  SUBCASE("end of the grace") { server->shutdown(1ms); }
  server->wait();
  CHECK(alive::count() == 0);
  CHECK(server.total().zero_copy_overdue == 0);
  CHECK(peer.wait_for_end() == ending::reset);
}

TEST_CASE_FIXTURE(clean_process, "zero copy: close, reset and shutdown_write under a write") {
  const std::string text = numbered_text(large);
  channel<outcome> result;
  channel<connection_handle> who;
  test_server server(
      [&](connection& conn) -> task<> {
        who.put(conn.handle());
        co_await writing(text, result)(conn);
        co_await conn.write("!");
      },
      one_core(), lending());
  client peer = slow_client(server);
  REQUIRE(lends_on(server));
  // Done before the peer begins to read, and with it the write could end.
  const auto at_once = [handle = who.take()](void (*what)(connection&)) {
    event done;
    handle.post([what, &done](connection* conn) {
      if (conn != nullptr) what(*conn);
      done.set();
    });
    done.wait();
  };
  SUBCASE("close: what the socket has taken still arrives") {
    at_once([](connection& conn) { conn.close(); });
    CHECK((peer.recv_to_end() == text));
    CHECK(result.take().error == errc::closed);
  }
  SUBCASE("reset") {
    at_once([](connection& conn) { conn.reset(); });
    CHECK(result.take().error == errc::closed);
    CHECK(peer.wait_for_end() == ending::reset);
  }
  SUBCASE("shutdown_write") {
    at_once([](connection& conn) { conn.shutdown_write(); });
    CHECK((peer.recv_to_end() == text));
    CHECK(result.take().written);
  }
}

TEST_CASE_FIXTURE(clean_process, "zero copy: close under a write has the close timeout") {
  const std::string text = numbered_text(large);
  channel<outcome> result;
  channel<connection_handle> who;
  listen_options options = lending();
  options.close_timeout = 50ms;
  test_server server(
      [&](connection& conn) -> task<> {
        who.put(conn.handle());
        co_await writing(text, result)(conn);
      },
      one_core(), options);
  client peer = slow_client(server);
  REQUIRE(lends_on(server));
  who.take().post([](connection* conn) { conn->close(); });
  CHECK(!result.take().written);
  CHECK(peer.wait_for_end() == ending::reset);
}

// The number of its descriptor is a helper's business too then.
TEST_CASE_FIXTURE(clean_process, "zero copy: close under a write and an offloaded call has the close timeout") {
  const std::string text = numbered_text(large);
  channel<outcome> result;
  channel<connection_handle> who;
  event begun;
  event go_on;
  listen_options options = lending();
  options.close_timeout = 50ms;
  test_server server(
      [&](connection& conn) -> task<> {
        const auto waiting = [](connection& through, event& has_begun, event& until) -> task<> {
          const auto wait = [&] {
            has_begun.set();
            until.wait();
          };
          (void)co_await through.offload(wait);
        };
        who.put(conn.handle());
        co_await when_all(writing(text, result)(conn), waiting(conn, begun, go_on));
      },
      one_core(), options);
  client peer = slow_client(server);
  REQUIRE(lends_on(server));
  begun.wait();
  who.take().post([](connection* conn) { conn->close(); });
  const bool ended = eventually([&] { return result.size() != 0; });
  CHECK(ended);
  if (ended) CHECK(!result.take().written);
  go_on.set();
  CHECK(peer.wait_for_end() == ending::reset);
}

enum class test_end { none_left, halt, short_grace };

// Writers beside offloaded calls, sleeps and reads, with every ending; who gets bytes gets those that were
// written, never what the memory held after the write.
void end_by_chance(test_end end, const server_options& settings, listen_options options) {
  const std::string text = numbered_text(300'000);
  options.zero_copy_from_bytes = 10'000;
  options.write_timeout = 30ms;
  options.close_timeout = 20ms;
  options.socket.send_buffer_bytes = 400'000;
  std::atomic<unsigned> number{0};
  test_server server(
      [&](connection& conn) -> task<> {
        const alive here;
        const unsigned mine = number.fetch_add(1);
        std::string copy = text;
        const auto write = [](connection& through, const std::string& what, bool last) -> task<bool> {
          bool written = false;
          if (last) {
            written = co_await through.write_last(what);
          } else {
            written = co_await through.write(what);
          }
          co_return written;
        };
        const auto beside = [](connection& of, unsigned kind) -> task<bool> {
          if (kind % 3 == 0) {
            const auto work = [] { std::this_thread::sleep_for(3ms); };
            (void)co_await of.offload(work);
          } else if (kind % 3 == 1) {
            co_await of.sleep_for(2ms);
          } else {
            (void)co_await of.read();
          }
          if (kind % 5 == 1) of.close();
          if (kind % 5 == 2) of.reset();
          if (kind % 5 == 3) of.shutdown_write();
          co_return true;
        };
        if (mine % 4 == 0) {
          co_await write(conn, copy, mine % 8 == 0);
        } else if (mine % 4 == 1) {
          co_await when_any(write(conn, copy, false), beside(conn, mine / 4));
        } else {
          co_await when_all(write(conn, copy, mine % 8 == 2), beside(conn, mine / 4));
        }
        std::memset(copy.data(), '#', copy.size());
        if (mine % 16 == 5) throw std::runtime_error("as it may");
        if (mine % 3 == 0) std::this_thread::sleep_for(2ms);
        co_await conn.write(std::string_view("!"));
      },
      settings, options);
  std::vector<client> silent;
  for (unsigned i = 0; i < 120; ++i) {
    client peer = slow_client(server);
    std::string got;
    if (i % 6 == 0) {
      peer.reset();
      continue;
    }
    if (i % 6 == 1) {
      silent.push_back(std::move(peer));
      continue;
    }
    try {
      std::string part = "x";
      peer.send_all(part);
      while (!part.empty() && (i % 6 != 2 || got.size() < 100'000)) {
        part = peer.recv_some();
        got += part;
      }
    } catch (const std::system_error&) {  // reset
    }
    if (got.ends_with('!')) got.pop_back();
    CHECK((got == std::string_view(text).substr(0, got.size())));
  }
  for (int i = 0; i < 20; ++i) silent.push_back(slow_client(server));
  switch (end) {
    case test_end::none_left:
      silent.clear();
      CHECK(eventually([&] { return server.total().active == 0; }));
      break;
    case test_end::halt:
      server->halt();
      break;
    case test_end::short_grace:
      server->shutdown(1ms);
      break;
  }
  if (end != test_end::none_left) server->wait();
  CHECK(alive::count() == 0);
  CHECK(server.total().zero_copy_overdue == 0);
  CHECK(server.total().zero_copy_sends > 0);
}

TEST_CASE_FIXTURE(clean_process, "zero copy: endings by chance, of handlers that leave their core") {
  listen_options options;
  server_options settings = one_core();
  SUBCASE("on the core") {}
  SUBCASE("on helpers") { options.spill = spilling::always; }
  SUBCASE("with a takeover") { settings.takeover.on = true; }
  SUBCASE("with a takeover, when slow") {
    settings.takeover.on = true;
    options.spill = spilling::when_slow;
  }
  for (const test_end end : {test_end::none_left, test_end::halt, test_end::short_grace}) {
    CAPTURE(static_cast<int>(end));
    end_by_chance(end, settings, options);
  }
}

TEST_CASE_FIXTURE(clean_process, "zero copy: a read beside it is not disturbed, and a loser is cancelled") {
  const std::string text = numbered_text(large);
  channel<bool> result;
  test_server server(
      [&](connection& conn) -> task<> {
        const auto write = [](connection& through, const std::string& what) -> task<bool> {
          const std::string copy = what;
          const bool written = co_await through.write(copy);
          co_return written;
        };
        const auto read = [](connection& from) -> task<std::string> {
          const bytes_view data = co_await from.read();
          co_return std::string(data.text());
        };
        auto first = co_await when_any(write(conn, text), read(conn));
        result.put(first.index() == 1 && std::get<1>(first) == "stop");
      },
      one_core(), lending());
  client peer = slow_client(server);
  REQUIRE(lends_on(server));
  peer.send_all("stop");
  CHECK(result.take());
  CHECK(peer.wait_for_end() == ending::reset);
}

TEST_CASE_FIXTURE(clean_process, "zero copy: on connections that were dialled, and as set for one connection") {
  const std::string text = numbered_text(large);
  channel<outcome> result;
  channel<std::string> received;
  test_server server(
      [&](connection& conn) -> task<> {
        if (conn.listener() == 0) {
          std::string all;
          while (const bytes_view data = co_await conn.read()) all += data.text();
          received.put(all);
          co_return;
        }
      },
      one_core());
  const address target = server.where();
  bool by_option = true;
  SUBCASE("dial_options") {}
  SUBCASE("set_zero_copy_from") { by_option = false; }
  test_server dialler([&](connection&) -> task<> {
    dial_options options;
    if (by_option) options.zero_copy_from_bytes = 100'000;
    outgoing made = co_await dial(target, options);
    if (!by_option) made->set_zero_copy_from(100'000);
    co_await writing(text, result)(*made);
  });
  client peer = dialler.connect();
  CHECK(result.take().written);
  CHECK((received.take() == text));
  CHECK(dialler.total().zero_copy_sends > 0);
}

TEST_CASE_FIXTURE(clean_process, "zero copy: an owner that goes takes the memory back") {
  const std::string text = numbered_text(large);
  event read_on;
  test_server server([&](connection& conn) -> task<> { co_await conn.sleep_for(1h); }, one_core(), [] {
    listen_options small;
    small.socket.receive_buffer_bytes = 4096;
    return small;
  }());
  const address target = server.where();
  test_server dialler([&](connection&) -> task<> {
    const alive here;
    const std::string copy = text;
    dial_options options;
    options.zero_copy_from_bytes = 100'000;
    options.socket.send_buffer_bytes = 4'000'000;
    outgoing made = co_await dial(target, options);
    co_await made->write(copy);
  });
  client peer = dialler.connect();
  REQUIRE(eventually([&] { return dialler.total().zero_copy_sends > 0; }));
  dialler->halt();
  dialler->wait();
  CHECK(alive::count() == 0);
  CHECK(dialler.total().zero_copy_overdue == 0);
}

TEST_CASE_FIXTURE(clean_process, "zero copy: the core's read buffers are not lent") {
  server_options options = one_core();
  options.read_buffer_bytes = 256 * 1024;
  test_server server(echo, options, lending(4096));
  client peer = server.connect();
  const std::string text = numbered_text(100'000);
  std::thread sender([&] { peer.send_all(text); });
  CHECK((peer.recv_exactly(text.size()) == text));
  sender.join();
  CHECK(server.total().zero_copy_sends == 0);
}

TEST_CASE("zero copy: sizes that make no sense") {
  server made(one_core());
  listen_options options;
  options.zero_copy_from_bytes = 4095;
  CHECK_THROWS_AS(made.listen("127.0.0.1:0", echo, options), std::invalid_argument);
  options.zero_copy_from_bytes = (std::size_t{1} << 30) + 1;
  CHECK_THROWS_AS(made.listen("127.0.0.1:0", echo, options), std::invalid_argument);
}

}  // namespace
}  // namespace percore::test
