// Listening: address families, several listeners, adopted descriptors, socket options, steering.
#include <doctest/doctest.h>

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <set>
#include <string>
#include <vector>

#include "tests/support/clean_process.hpp"
#include "tests/support/test_server.hpp"

namespace percore::test {
namespace {

using namespace std::chrono_literals;

std::string exchange(client peer, std::string_view text) {
  peer.send_all(text);
  peer.half_close();
  return peer.recv_to_end();
}

bool has_ipv6() {
  try {
    ::close(listening_socket("[::1]:0"));
    return true;
  } catch (const std::system_error&) {
    MESSAGE("this machine has no IPv6: not tested");
    return false;
  }
}

class temporary_folder {
 public:
  temporary_folder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "percore-XXXXXX").string();
    REQUIRE(::mkdtemp(pattern.data()) != nullptr);
    path_ = pattern;
  }
  temporary_folder(const temporary_folder&) = delete;
  temporary_folder& operator=(const temporary_folder&) = delete;
  ~temporary_folder() { std::filesystem::remove_all(path_); }
  [[nodiscard]] std::string file(const char* name) const { return path_ + '/' + name; }

 private:
  std::string path_;
};

TEST_CASE_FIXTURE(clean_process, "listeners: IPv4 with a port of the kernel's choice") {
  test_server server(echo, all_cores());
  CHECK(server.where().family() == address_family::ipv4);
  CHECK(server.where().port() != 0);
  CHECK(exchange(server.connect(), "over IPv4") == "over IPv4");
}

TEST_CASE_FIXTURE(clean_process, "listeners: IPv6 takes only IPv6 unless told otherwise") {
  if (!has_ipv6()) return;
  listen_options both;
  both.socket.v6_only = false;
  server host(all_cores());
  host.listen("[::]:0", echo);
  host.listen("[::]:0", echo, both);
  host.listen("[::1]:0", echo);
  host.start();
  const auto ipv4 = [&](std::size_t i) { return address("127.0.0.1:0").with_port(host.local_address(i).port()); };
  const auto ipv6 = [&](std::size_t i) { return address("[::1]:0").with_port(host.local_address(i).port()); };
  for (std::size_t i = 0; i < 3; ++i) CHECK(exchange(client(ipv6(i)), "over IPv6") == "over IPv6");
  CHECK(connection_refused(ipv4(0)));
  CHECK(exchange(client(ipv4(1)), "over IPv4") == "over IPv4");
}

TEST_CASE_FIXTURE(clean_process, "listeners: a socket file is there while served and gone afterwards") {
  const temporary_folder folder;
  const std::string path = folder.file("socket");
  listen_options options;
  options.socket.unix_permissions = 0600;
  for (int i = 0; i < 2; ++i) {
    test_server server(echo, all_cores(), options, "unix:" + path);
    CHECK(server.where().to_string() == "unix:" + path);
    struct stat found {};
    CHECK(::stat(path.c_str(), &found) == 0);
    CHECK(S_ISSOCK(found.st_mode));
    CHECK((found.st_mode & 0777) == 0600);
    CHECK(exchange(server.connect(), "over a file") == "over a file");
    server->shutdown();
    CHECK_FALSE(std::filesystem::exists(path));
  }
}

TEST_CASE_FIXTURE(clean_process, "listeners: a socket file that a dead server left is replaced and a living one is not") {
  const temporary_folder folder;
  const std::string path = folder.file("socket");
  const int fd = listening_socket("unix:" + path);
  {
    server host(one_core());
    host.listen("unix:" + path, echo);
    CHECK_THROWS_AS(host.start(), listen_error);
    CHECK(std::filesystem::exists(path));
  }
  ::close(fd);
  CHECK(std::filesystem::exists(path));
  test_server server(echo, one_core(), {}, "unix:" + path);
  CHECK(exchange(server.connect(), "again") == "again");
}

TEST_CASE_FIXTURE(clean_process, "listeners: abstract names") {
  const std::string name = "unix:@percore-test-" + std::to_string(::getpid());
  test_server named(echo, all_cores(), {}, name);
  CHECK(named.where().to_string() == name);
  CHECK(exchange(named.connect(), "named") == "named");
  test_server chosen(echo, all_cores(), {}, "unix:@");
  CHECK(chosen.where().is_abstract());
  CHECK_FALSE(chosen.where().path().empty());
  CHECK(exchange(chosen.connect(), "chosen") == "chosen");
}

TEST_CASE_FIXTURE(clean_process, "listeners: several with handlers and options of their own") {
  server host(all_cores());
  listen_options impatient;
  impatient.read_timeout = 20ms;
  const auto tell = [](connection& conn) -> task<> {
    co_await conn.read();
    const std::string answer = std::to_string(conn.listener()) + ' ' + conn.error().message();
    co_await conn.write(answer);
  };
  CHECK(host.listen("127.0.0.1:0", echo) == 0);
  CHECK(host.listen("127.0.0.1:0", tell) == 1);
  CHECK(host.listen("unix:@", tell, impatient) == 2);
  host.start();
  CHECK(host.local_address(0) != host.local_address(1));
  CHECK(exchange(client(host.local_address(0)), "x") == "x");
  CHECK(exchange(client(host.local_address(1)), "x").starts_with("1 "));
  CHECK(client(host.local_address(2)).recv_to_end() == "2 " + make_error_code(errc::timed_out).message());
}

TEST_CASE_FIXTURE(clean_process, "listeners: a connection knows both of its ends") {
  for (const char* where : {"127.0.0.1:0", "unix:@"}) {
    channel<std::pair<address, address>> ends;
    test_server server(
        [&](connection& conn) -> task<> {
          ends.put({conn.peer_address(), conn.local_address()});
          CHECK(conn.fd() >= 0);
          co_await conn.read();
        },
        one_core(), {}, where);
    client peer = server.connect();
    const auto [remote, local] = ends.take();
    CHECK(local == server.where());
    if (remote.is_unix()) {
      CHECK(remote.path().empty());
    } else {
      CHECK(remote == peer.local_address());
    }
  }
}

TEST_CASE_FIXTURE(clean_process, "listeners: adopted descriptors") {
  for (const char* where : {"127.0.0.1:0", "unix:@"}) {
    CAPTURE(where);
    const int fd = listening_socket(where);
    const address expected = address_of(fd);
    server host(all_cores());
    host.listen_fd(fd, echo);
    host.start();
    CHECK(host.local_address() == expected);
    for (int i = 0; i < 20; ++i) CHECK(exchange(client(expected), "adopted") == "adopted");
    host.shutdown();
    CHECK(connection_refused(expected));
  }
}

TEST_CASE_FIXTURE(clean_process, "listeners: adopted descriptors are closed when the server never runs") {
  const std::size_t before = open_descriptors();
  {
    server host(one_core());
    host.listen_fd(listening_socket("127.0.0.1:0"), echo);
  }
  CHECK(open_descriptors() == before);
  const int foreign = listening_socket("127.0.0.1:0");
  server host(one_core());
  const std::size_t constructed = open_descriptors();
  host.listen_fd(listening_socket("127.0.0.1:0"), echo);
  host.listen(address_of(foreign), echo);
  CHECK_THROWS_AS(host.start(), listen_error);
  CHECK(open_descriptors() == constructed);
  ::close(foreign);
}

TEST_CASE_FIXTURE(clean_process, "listeners: what cannot be adopted is refused") {
  const auto adopt = [](int fd) {
    server host(one_core());
    host.listen_fd(fd, echo);
    host.start();
  };
  int pipe_ends[2];
  REQUIRE(::pipe(pipe_ends) == 0);
  CHECK_THROWS((adopt(pipe_ends[0])));
  ::close(pipe_ends[1]);
  CHECK_THROWS((adopt(::socket(AF_INET, SOCK_STREAM, 0))));  // does not listen
  CHECK_THROWS((adopt(-1)));
}

int option_of(connection& conn, int level, int name) {
  int value = -1;
  std::size_t bytes = sizeof value;
  if (conn.get_option(level, name, &value, bytes)) return -1;
  return value;
}

TEST_CASE_FIXTURE(clean_process, "listeners: socket options reach the accepted connections") {
  channel<std::vector<int>> values;
  const auto tell = [&](connection& conn) -> task<> {
    values.put({option_of(conn, IPPROTO_TCP, TCP_NODELAY), option_of(conn, SOL_SOCKET, SO_KEEPALIVE),
                option_of(conn, IPPROTO_TCP, TCP_KEEPIDLE), option_of(conn, IPPROTO_TCP, TCP_KEEPINTVL),
                option_of(conn, IPPROTO_TCP, TCP_KEEPCNT), option_of(conn, IPPROTO_TCP, TCP_USER_TIMEOUT),
                option_of(conn, SOL_SOCKET, SO_RCVBUF), option_of(conn, SOL_SOCKET, SO_SNDBUF)});
    co_return;
  };
  listen_options chosen;
  chosen.socket.no_delay = false;
  chosen.socket.keepalive = {true, 50s, 20s, 4};
  chosen.socket.user_timeout = 7000ms;
  chosen.socket.receive_buffer_bytes = 10'000;
  chosen.socket.send_buffer_bytes = 12'000;
  server host(one_core());
  host.listen("127.0.0.1:0", tell);
  host.listen("127.0.0.1:0", tell, chosen);
  host.start();
  client plain(host.local_address(0));
  const std::vector<int> defaults = values.take();
  CHECK(defaults[0] == 1);  // TCP_NODELAY is on
  CHECK(defaults[1] == 0);
  client changed(host.local_address(1));
  // The kernel doubles the buffer sizes (socket(7)).
  CHECK(values.take() == std::vector<int>{0, 1, 50, 20, 4, 7000, 20'000, 24'000});
}

TEST_CASE_FIXTURE(clean_process, "listeners: a handler can set options of its connection") {
  channel<bool> seen;
  test_server server([&](connection& conn) -> task<> {
    const int off = 0;
    seen.put(!conn.set_option(IPPROTO_TCP, TCP_NODELAY, &off, sizeof off));
    seen.put(option_of(conn, IPPROTO_TCP, TCP_NODELAY) == 0);
    seen.put(conn.set_option(IPPROTO_TCP, 9999, &off, sizeof off) == std::errc::no_protocol_option);
    conn.close();
    co_await conn.yield();
    co_return;
  });
  client peer = server.connect();
  for (int i = 0; i < 3; ++i) CHECK(seen.take());
}

TEST_CASE_FIXTURE(clean_process, "listeners: where the client speaks first the first read finds its data") {
  listen_options options;
  options.socket.defer_accept = 30s;
  test_server server(echo, all_cores(), options);
  client silent = server.connect();
  for (int i = 0; i < 20; ++i) CHECK(exchange(server.connect(), "first") == "first");
  const core_stats seen = server.total();
  CHECK(seen.accepted == 20);  // the silent one is not there yet
  CHECK(seen.first_read_hits == 20);
}

TEST_CASE_FIXTURE(clean_process, "listeners: options that unix sockets do not have do no harm") {
  std::vector<std::string> warnings;
  server_options options = all_cores();
  options.on_warning = [&](const std::string& line) { warnings.push_back(line); };
  listen_options listening;
  listening.socket.no_delay = false;
  listening.socket.keepalive.on = true;
  listening.socket.v6_only = false;
  test_server server(echo, options, listening, "unix:@");
  CHECK(exchange(server.connect(), "x") == "x");
}

TEST_CASE_FIXTURE(clean_process, "listeners: every way of steering serves every client") {
  for (const steering mode : {steering::automatic, steering::hash, steering::incoming_cpu, steering::cbpf}) {
    for (const char* where : {"127.0.0.1:0", "[::1]:0"}) {
      CAPTURE(to_string(mode));
      CAPTURE(where);
      if (where[0] == '[' && !has_ipv6()) continue;
      std::vector<std::string> warnings;
      server_options options = all_cores();
      options.on_warning = [&](const std::string& line) { warnings.push_back(line); };
      listen_options listening;
      listening.socket.steering = mode;
      test_server server(echo, options, listening, where);
      for (int i = 0; i < 50; ++i) CHECK(exchange(server.connect(), "steered") == "steered");
      CHECK(server.total().accepted == 50);
    }
  }
}

TEST_CASE_FIXTURE(clean_process, "listeners: hashed connections reach every core") {
  listen_options listening;
  listening.socket.steering = steering::hash;
  test_server server(
      [](connection& conn) -> task<> {
        const std::string core = std::to_string(conn.core_index());
        co_await conn.write(core);
      },
      all_cores(), listening);
  std::set<std::string> cores;
  // Each connection is hashed on its own: with 64 cores the chance that 2000 of them miss one is below 1e-11.
  for (int i = 0; i < 2000 && cores.size() < server->core_count(); ++i) cores.insert(server.connect().recv_to_end());
  CHECK(cores.size() == std::min<std::size_t>(server->core_count(), 64));
}

TEST_CASE_FIXTURE(clean_process, "listeners: one socket for all cores") {
  listen_options listening;
  listening.socket.reuse_port = false;
  test_server server(echo, all_cores(), listening);
  for (int i = 0; i < 50; ++i) CHECK(exchange(server.connect(), "shared") == "shared");
}

TEST_CASE_FIXTURE(clean_process, "listeners: an adopted socket that no longer listens does not keep a shutdown") {
  const int listening = listening_socket(address("127.0.0.1:0"));
  server adopter(one_core());
  adopter.listen_fd(listening, echo);
  adopter.start();
  REQUIRE(::shutdown(listening, SHUT_RD) == 0);  // as another process that shares it may do
  adopter.shutdown();
  CHECK(adopter.stats().total.active == 0);
}

}  // namespace
}  // namespace percore::test
