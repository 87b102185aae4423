// dial while the kernel fails, and names with addresses that do not answer.
#include <doctest/doctest.h>

#include <netdb.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "engine/connection/resolving.hpp"
#include "tests/fault/injection.hpp"
#include "tests/support/clean_process.hpp"
#include "tests/support/test_server.hpp"

namespace percore::test {
namespace {

using namespace std::chrono_literals;

// Dials for each new client, and answers what became of it.
class dialling_server {
 public:
  explicit dialling_server(address target, dial_options options = {}, server_options how = one_core())
      : server_(
            [target, options](connection& conn) -> task<> {
              outgoing made = co_await dial(target, options);
              const std::string answer = made ? "made" : made.error().message();
              co_await conn.write(answer);
            },
            std::move(how)) {}
  test_server& operator*() { return server_; }

 private:
  test_server server_;
};

std::string message_of(int error) { return std::error_code(error, std::system_category()).message(); }

TEST_CASE_FIXTURE(clean_process, "dial: what the kernel refuses is told, and nothing is lost") {
  const int upstream = listening_socket("127.0.0.1:0");
  server_options how = one_core();
  how.max_connections = 2;  // of which none may be lost either
  dialling_server server(address_of(upstream), {}, how);
  std::string expected = "made";
  fault_plan plan = no_faults();
  SUBCASE("no socket") {
    plan = failing(call::socket, EMFILE);
    expected = message_of(EMFILE);
  }
  SUBCASE("no options") { plan = failing(call::setsockopt, ENOPROTOOPT, 100); }
  SUBCASE("no connection") {
    plan = failing(call::connect, ENETUNREACH);
    expected = message_of(ENETUNREACH);
  }
  SUBCASE("an interrupted beginning") { plan = failing(call::connect, EINTR); }
  SUBCASE("an interrupted end") { plan = failing(call::connect, EINTR, 1, 1); }
  SUBCASE("a refusal afterwards") {
    plan = failing(call::connect, ECONNREFUSED, 1, 1);
    expected = message_of(ECONNREFUSED);
  }
  SUBCASE("no entry in the poller") {
    plan = failing(call::epoll_ctl_add, ENOMEM);
    expected = message_of(ENOMEM);
  }
  for (int i = 0; i < 3; ++i) {
    const address where = (*server).where();
    const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_storage to{};
    const socklen_t size = where.to_sockaddr(to);
    const injected faults(plan);
    REQUIRE(::connect(fd, reinterpret_cast<const sockaddr*>(&to), size) == 0);
    char answer[200];
    const ssize_t got = ::recv(fd, answer, sizeof answer, 0);
    ::close(fd);
    REQUIRE(got > 0);
    CHECK(std::string(answer, static_cast<std::size_t>(got)) == expected);
  }
  CHECK(eventually([&] { return (*server).total().active == 0; }));
  ::close(upstream);
}

TEST_CASE_FIXTURE(clean_process, "dial: exchanges over two connections with every fault") {
  test_server upstream(echo);
  const address where = upstream.where();
  std::atomic<int> mixed_up = 0;
  test_server server(
      [&](connection& conn) -> task<> {
        outgoing up = co_await dial(where);
        if (!up) co_return;
        while (auto data = co_await conn.read()) {
          const std::string sent(data.text());
          if (!co_await up->write(sent)) co_return;
          std::string back(sent.size(), ' ');
          if (!co_await up->read_full(std::as_writable_bytes(std::span(back)))) co_return;
          if (back != sent) ++mixed_up;
          if (!co_await conn.write(back)) co_return;
        }
      },
      all_cores());
  fault_plan plan = no_faults();
  plan.short_read = plan.short_write = plan.would_block = plan.interrupted = 0.1;
  plan.too_many_files = plan.no_memory = plan.reset = 0.01;
  const injected faults(plan);
  int exchanged = 0;
  for (int i = 0; i < 300; ++i) {
    try {
      client peer = server.connect();
      const std::string text = numbered_text(static_cast<std::size_t>(1 + i * 7));
      for (int j = 0; j < 3; ++j) {
        peer.send_all(text);
        CHECK(peer.recv_exactly(text.size()) == text);
        ++exchanged;
      }
    } catch (const waited_too_long&) {
      throw;
    } catch (const std::exception&) {  // one of the connections was reset
    }
  }
  CHECK(exchanged > 0);
  CHECK(mixed_up.load() == 0);
  CHECK(server.total().dialled > 0);
  CHECK(eventually([&] { return server.total().active == 0; }));
}

// Names ---------------------------------------------------------------------------------------------------

std::vector<std::string> answers;  // of the resolver
std::atomic<bool> resolver_hangs = false;

int answer_from_list(const char*, const addrinfo* hints, addrinfo** found) {
  while (resolver_hangs.load()) std::this_thread::sleep_for(1ms);
  addrinfo* first = nullptr;
  addrinfo** next = &first;
  for (const std::string& one : answers) {
    addrinfo how = *hints;
    how.ai_flags = AI_NUMERICHOST;
    if (::getaddrinfo(one.c_str(), nullptr, &how, next) != 0) return EAI_FAIL;
    while (*next != nullptr) next = &(*next)->ai_next;
  }
  *found = first;
  return first == nullptr ? EAI_NONAME : 0;
}

struct resolver_for_test {
  explicit resolver_for_test(std::vector<std::string> list) {
    answers = std::move(list);
    sys::set_resolver_stand_in(answer_from_list);
  }
  resolver_for_test(const resolver_for_test&) = delete;
  resolver_for_test& operator=(const resolver_for_test&) = delete;
  ~resolver_for_test() { sys::set_resolver_stand_in(nullptr); }
};

// Dials "name" and answers whom it has reached.
auto reached(std::uint16_t port, dial_options options) {
  return [port, options](connection& conn) -> task<> {
    outgoing made = co_await dial("name", port, options);
    const std::string answer = made ? made->peer_address().host() : made.error().message();
    co_await conn.write(answer);
  };
}

TEST_CASE_FIXTURE(clean_process, "dial: the next address is tried while the first does not answer") {
  test_server live(echo, one_core(), {}, "127.0.0.2:0");
  const std::uint16_t port = live.where().port();
  // A full accept queue: further SYNs are dropped.
  const int silent = listening_socket(address("127.0.0.3:0").with_port(port), 0);
  std::vector<client> fillers;
  std::vector<int> half_open;
  sockaddr_storage to{};
  const socklen_t size = address_of(silent).to_sockaddr(to);
  for (int i = 0; i < 4; ++i) {
    half_open.push_back(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    (void)::connect(half_open.back(), reinterpret_cast<const sockaddr*>(&to), size);
  }
  dial_options options;
  std::string expected = "127.0.0.2";
  std::vector<std::string> list;
  SUBCASE("after a while") {
    list = {"127.0.0.3", "127.0.0.2"};
    options.attempt_delay = 10ms;
  }
  SUBCASE("at once when it is refused") {
    list = {"127.0.0.4", "::1", "127.0.0.2"};
    options.attempt_delay = std::chrono::hours(1);
    options.timeout = std::chrono::hours(1);
  }
  SUBCASE("and a dead address of the other family does not matter") {
    list = {"100::1", "127.0.0.2"};  // RFC 6666: discarded, if there is a route at all
    options.attempt_delay = 10ms;
  }
  SUBCASE("until the time is over") {
    list = {"127.0.0.3"};
    options.timeout = 20ms;
    expected = make_error_code(errc::timed_out).message();
  }
  const resolver_for_test names(list);
  test_server server(reached(port, options));
  CHECK(server.connect().recv_to_end() == expected);
  CHECK(eventually([&] { return server.total().active == 0; }));  // the slower attempt is given up
  ::close(silent);
  for (const int fd : half_open) ::close(fd);
}

TEST_CASE_FIXTURE(clean_process, "dial: a resolver that hangs is not waited for") {
  const resolver_for_test names({"127.0.0.1"});
  dial_options options;
  bool halted = false;
  SUBCASE("over the time") { options.timeout = 20ms; }
  SUBCASE("by a handler that is halted") { halted = true; }
  resolver_hangs = true;
  {
    test_server server(reached(1, options));
    client peer = server.connect();
    if (halted) {
      CHECK(eventually([&] { return server.total().helpers.submitted == 1; }));
      server->post(0, [] { resolver_hangs = false; });
      server->halt();
    } else {
      CHECK(peer.recv_to_end() == make_error_code(errc::timed_out).message());
      resolver_hangs = false;
    }
  }
}

TEST_CASE("dial: addresses of two families take turns") {
  std::vector<address> list = {"[::1]:1", "[::2]:1", "[::3]:1", "1.1.1.1:1", "1.1.1.2:1"};
  engine::interleave(list);
  CHECK(list == std::vector<address>{"[::1]:1", "1.1.1.1:1", "[::2]:1", "1.1.1.2:1", "[::3]:1"});
}

TEST_CASE_FIXTURE(clean_process, "dial: a resolver that fails") {
  test_server server(reached(1, {}));
  const injected faults(failing(call::getaddrinfo, 0));
  CHECK(server.connect().recv_to_end() == make_error_code(errc::no_address).message());
}

}  // namespace
}  // namespace percore::test
