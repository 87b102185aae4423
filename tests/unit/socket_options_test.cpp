#include "engine/sys/socket_options.hpp"

#include <doctest/doctest.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <functional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

using namespace std::chrono_literals;
using percore::address;
using percore::listen_error;
using percore::socket_option;
using percore::socket_options;
using percore::sys::option_report;

namespace {

class owned_fd {
 public:
  explicit owned_fd(int fd) : fd_(fd) { REQUIRE(fd >= 0); }
  owned_fd(const owned_fd&) = delete;
  owned_fd& operator=(const owned_fd&) = delete;
  ~owned_fd() { ::close(fd_); }
  operator int() const { return fd_; }

 private:
  int fd_;
};

int number(int fd, int level, int name) {
  int value = -1;
  socklen_t length = sizeof value;
  REQUIRE(::getsockopt(fd, level, name, &value, &length) == 0);
  return value;
}

long read_setting(const char* path) {
  std::ifstream file(path);
  long value = 0;
  file >> value;
  return value;
}

// A listener with the options set, and one connection through it.
struct pair_through_listener {
  pair_through_listener(const address& where, const socket_options& options, option_report& report)
      : listener(::socket(where.is_unix() ? AF_UNIX : AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)),
        client(::socket(where.is_unix() ? AF_UNIX : AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    percore::sys::apply_to_listener(listener, where.family(), options, report);
    sockaddr_storage raw{};
    socklen_t length = where.to_sockaddr(raw);
    auto* const name = reinterpret_cast<sockaddr*>(&raw);
    REQUIRE(::bind(listener, name, length) == 0);
    REQUIRE(::listen(listener, 8) == 0);
    length = sizeof raw;
    REQUIRE(::getsockname(listener, name, &length) == 0);
    REQUIRE(::connect(client, name, length) == 0);
    REQUIRE(::send(client, "x", 1, MSG_NOSIGNAL) == 1);  // for defer_accept
    accepted = ::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
    REQUIRE(accepted >= 0);
  }
  pair_through_listener(const pair_through_listener&) = delete;
  pair_through_listener& operator=(const pair_through_listener&) = delete;
  ~pair_through_listener() { ::close(accepted); }

  owned_fd listener;
  owned_fd client;
  int accepted = -1;
};

bool named_in(const std::vector<std::string>& warnings, const char* option) {
  return std::any_of(warnings.begin(), warnings.end(),
                     [&](const std::string& text) { return text.find(option) != std::string::npos; });
}

}  // namespace

TEST_CASE("socket_options: an accepted TCP connection inherits everything from its listener") {
  socket_options options;
  options.keepalive = {.on = true, .idle = 77s, .interval = 11s, .count = 4};
  options.user_timeout = 12345ms;
  options.receive_buffer_bytes = 60000;
  options.send_buffer_bytes = 70000;
  options.linger = 5s;
  options.busy_poll = 50us;
  std::vector<std::string> warnings;
  const address where("127.0.0.1:0");
  option_report report(where, {}, [&](const std::string& text) { warnings.push_back(text); });
  const pair_through_listener pair(where, options, report);

  CHECK_FALSE(percore::sys::needs_per_connection_setup(where.family(), options));
  CHECK(percore::sys::apply_to_connection(pair.accepted, where.family(), options) == 0);
  CHECK(number(pair.accepted, IPPROTO_TCP, TCP_NODELAY) == 1);
  CHECK(number(pair.accepted, SOL_SOCKET, SO_KEEPALIVE) == 1);
  CHECK(number(pair.accepted, IPPROTO_TCP, TCP_KEEPIDLE) == 77);
  CHECK(number(pair.accepted, IPPROTO_TCP, TCP_KEEPINTVL) == 11);
  CHECK(number(pair.accepted, IPPROTO_TCP, TCP_KEEPCNT) == 4);
  CHECK(number(pair.accepted, IPPROTO_TCP, TCP_USER_TIMEOUT) == 12345);
  CHECK(number(pair.accepted, SOL_SOCKET, SO_RCVBUF) == 2 * 60000);
  CHECK(number(pair.accepted, SOL_SOCKET, SO_SNDBUF) == 2 * 70000);
  ::linger lingering{};
  socklen_t length = sizeof lingering;
  REQUIRE(::getsockopt(pair.accepted, SOL_SOCKET, SO_LINGER, &lingering, &length) == 0);
  CHECK(lingering.l_onoff == 1);
  CHECK(lingering.l_linger == 5);
  if (warnings.empty()) {
    CHECK(number(pair.accepted, SOL_SOCKET, SO_BUSY_POLL) == 50);
  } else {
    CHECK(warnings.size() == 1);
    CHECK(named_in(warnings, "busy_poll"));
  }
}

TEST_CASE("socket_options: the defaults change only TCP_NODELAY") {
  const address where("127.0.0.1:0");
  option_report report(where, {}, [](const std::string& text) { FAIL_CHECK(text); });
  const pair_through_listener pair(where, {}, report);
  const owned_fd plain(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  CHECK(number(pair.accepted, IPPROTO_TCP, TCP_NODELAY) == 1);
  CHECK(number(pair.accepted, SOL_SOCKET, SO_KEEPALIVE) == 0);
  CHECK(number(pair.accepted, IPPROTO_TCP, TCP_USER_TIMEOUT) == 0);
  CHECK(number(pair.listener, IPPROTO_TCP, TCP_DEFER_ACCEPT) == number(plain, IPPROTO_TCP, TCP_DEFER_ACCEPT));
  CHECK(number(pair.listener, SOL_SOCKET, SO_RCVBUF) == number(plain, SOL_SOCKET, SO_RCVBUF));
  socket_options off;
  off.no_delay = false;
  const pair_through_listener slow(where, off, report);
  CHECK(number(slow.accepted, IPPROTO_TCP, TCP_NODELAY) == 0);
}

TEST_CASE("socket_options: defer_accept holds a silent connection back") {
  socket_options options;
  options.defer_accept = 3s;
  const address where("127.0.0.1:0");
  option_report report(where, {}, [](const std::string& text) { FAIL_CHECK(text); });
  const pair_through_listener pair(where, options, report);
  CHECK(number(pair.listener, IPPROTO_TCP, TCP_DEFER_ACCEPT) >= 3);
  sockaddr_storage raw{};
  socklen_t length = sizeof raw;
  REQUIRE(::getsockname(pair.listener, reinterpret_cast<sockaddr*>(&raw), &length) == 0);
  const owned_fd silent(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  REQUIRE(::connect(silent, reinterpret_cast<sockaddr*>(&raw), length) == 0);
  pollfd entry{pair.listener, POLLIN, 0};
  CHECK(::poll(&entry, 1, 0) == 0);  // connected, yet nothing to accept
  REQUIRE(::send(silent, "x", 1, MSG_NOSIGNAL) == 1);
  CHECK(::poll(&entry, 1, 5000) == 1);
}

TEST_CASE("socket_options: fast open warns when the kernel has it off for servers") {
  socket_options options;
  options.fast_open_queue = 16;
  std::vector<std::string> warnings;
  const address where("127.0.0.1:0");
  option_report report(where, {}, [&](const std::string& text) { warnings.push_back(text); });
  const pair_through_listener pair(where, options, report);
  CHECK(number(pair.listener, IPPROTO_TCP, TCP_FASTOPEN) == 16);
  const bool on = (read_setting("/proc/sys/net/ipv4/tcp_fastopen") & 2) != 0;
  REQUIRE(warnings.size() == (on ? 0 : 1));
  if (on) return;
  CHECK(warnings[0].find("fast_open_queue") != std::string::npos);
  CHECK(warnings[0].find("net.ipv4.tcp_fastopen") != std::string::npos);
  option_report strict(where, {socket_option::fast_open_queue}, {});
  CHECK_THROWS_AS(percore::sys::apply_to_listener(pair.client, where.family(), options, strict),
                  listen_error);
}

TEST_CASE("socket_options: a fast open queue that the kernel cuts down warns once, and fails if required") {
  socket_options options;
  options.fast_open_queue = 2'000'000'000;
  const address where("127.0.0.1:0");
  std::vector<std::string> warnings;
  option_report report(where, {}, [&](const std::string& text) { warnings.push_back(text); });
  const pair_through_listener pair(where, options, report);
  REQUIRE(warnings.size() == 1);
  CHECK(warnings[0].find("fast_open_queue") != std::string::npos);
  CHECK(warnings[0].find("net.core.somaxconn") != std::string::npos);
  const owned_fd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  option_report strict(where, {socket_option::fast_open_queue}, {});
  CHECK_THROWS_AS(percore::sys::apply_to_listener(fd, where.family(), options, strict), listen_error);
}

TEST_CASE("socket_options: a buffer that the kernel cuts down warns once, and fails if required") {
  socket_options options;
  options.receive_buffer_bytes = 1'000'000'000;
  const address where("127.0.0.1:0");
  std::vector<std::string> warnings;
  option_report report(where, {}, [&](const std::string& text) { warnings.push_back(text); });
  const owned_fd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (read_setting("/proc/sys/net/core/rmem_max") >= options.receive_buffer_bytes) return;
  percore::sys::apply_to_listener(fd, where.family(), options, report);
  percore::sys::apply_to_listener(fd, where.family(), options, report);
  REQUIRE(warnings.size() == 1);
  CHECK(warnings[0].find("127.0.0.1:0: option receive_buffer_bytes") != std::string::npos);
  CHECK(warnings[0].find("net.core.rmem_max") != std::string::npos);

  option_report strict(where, {socket_option::no_delay, socket_option::receive_buffer_bytes}, {});
  try {
    percore::sys::apply_to_listener(fd, where.family(), options, strict);
    FAIL("no exception");
  } catch (const listen_error& error) {
    const std::string text = error.what();
    CAPTURE(text);
    CHECK(text.find("127.0.0.1:0") != std::string::npos);
    CHECK(text.find("receive_buffer_bytes") != std::string::npos);
    CHECK(text.find("net.core.rmem_max") != std::string::npos);
    CHECK(std::string(error.step()) == "receive_buffer_bytes");
    CHECK(error.where() == where);
  }
}

TEST_CASE("socket_options: what the kernel refuses degrades, naming the reason") {
  const address where("127.0.0.1:0");
  std::vector<std::string> warnings;
  option_report report(where, {}, [&](const std::string& text) { warnings.push_back(text); });
  const owned_fd no_tcp(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  percore::sys::apply_to_listener(no_tcp, where.family(), {}, report);
  REQUIRE(warnings.size() == 1);
  CHECK(warnings[0].find("no_delay") != std::string::npos);
  CHECK(warnings[0].find("Operation not supported") != std::string::npos);
}

TEST_CASE("socket_options: unix listeners name the options they lack") {
  socket_options options;
  options.defer_accept = 1s;
  options.fast_open_queue = 1;
  options.keepalive.on = true;
  options.user_timeout = 1s;
  options.linger = 0s;
  options.busy_poll = 1us;
  options.receive_buffer_bytes = 50000;
  options.send_buffer_bytes = 50000;
  std::vector<std::string> warnings;
  const address where("unix:@");
  option_report report(where, {}, [&](const std::string& text) { warnings.push_back(text); });
  const pair_through_listener pair(where, options, report);
  CHECK(warnings.size() == 7);
  CHECK_FALSE(named_in(warnings, "no_delay"));
  CHECK_FALSE(named_in(warnings, "send_buffer_bytes"));
  CHECK(number(pair.accepted, SOL_SOCKET, SO_SNDBUF) != 2 * 50000);
  CHECK(percore::sys::needs_per_connection_setup(where.family(), options));
  CHECK(percore::sys::apply_to_connection(pair.accepted, where.family(), options) == 0);
  CHECK(number(pair.accepted, SOL_SOCKET, SO_SNDBUF) == 2 * 50000);
  CHECK(percore::sys::apply_to_connection(-1, where.family(), options) == -EBADF);
  CHECK_FALSE(percore::sys::needs_per_connection_setup(where.family(), {}));
}

TEST_CASE("socket_options: values out of range are refused by name") {
  using change = std::function<void(socket_options&)>;
  const std::vector<std::pair<const char*, change>> cases = {
      {"backlog", [](socket_options& o) { o.backlog = -1; }},
      {"fast_open_queue", [](socket_options& o) { o.fast_open_queue = -1; }},
      {"defer_accept", [](socket_options& o) { o.defer_accept = -1s; }},
      {"keepalive.idle", [](socket_options& o) { o.keepalive.idle = 32768s; }},
      {"keepalive.interval", [](socket_options& o) { o.keepalive.interval = -1s; }},
      {"keepalive.count", [](socket_options& o) { o.keepalive.count = 128; }},
      {"user_timeout", [](socket_options& o) { o.user_timeout = 24h * 365; }},
      {"receive_buffer_bytes", [](socket_options& o) { o.receive_buffer_bytes = -1; }},
      {"send_buffer_bytes", [](socket_options& o) { o.send_buffer_bytes = 0x7fffffff; }},
      {"linger", [](socket_options& o) { o.linger = -1s; }},
      {"busy_poll", [](socket_options& o) { o.busy_poll = -1us; }},
      {"unix_permissions", [](socket_options& o) { o.unix_permissions = 01777; }},
      {"share_port", [](socket_options& o) { o.share_port = true, o.reuse_port = false; }},
  };
  for (const auto& [field, change_one] : cases) {
    CAPTURE(field);
    socket_options options;
    change_one(options);
    try {
      percore::sys::validate(options);
      FAIL_CHECK("no exception");
    } catch (const std::invalid_argument& error) {
      CHECK(std::string(error.what()).find(field) != std::string::npos);
    }
  }
  percore::sys::validate({});
}

TEST_CASE("socket_options: every option has a name") {
  for (unsigned i = 0; i <= static_cast<unsigned>(socket_option::unix_permissions); ++i) {
    CHECK(to_string(static_cast<socket_option>(i)) != "unknown");
  }
  CHECK(to_string(socket_option::v6_only) == "v6_only");
  CHECK(to_string(socket_option::unix_permissions) == "unix_permissions");
  CHECK(to_string(percore::steering::cbpf) == "cbpf");
  percore::socket_option_set set{socket_option::linger, socket_option::backlog};
  CHECK(set.contains(socket_option::linger));
  CHECK_FALSE(set.contains(socket_option::no_delay));
}
