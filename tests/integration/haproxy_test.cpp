// The PROXY protocol with haproxy: in front of a server, and behind dial.
#include <doctest/doctest.h>

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <fstream>
#include <string>

#include "tests/support/clean_process.hpp"
#include "tests/support/relay_server.hpp"

extern char** environ;

namespace percore::test {
namespace {

const char* haproxy_program() {
  for (const char* path : {"/usr/sbin/haproxy", "/usr/local/sbin/haproxy"}) {
    if (::access(path, X_OK) == 0) return path;
  }
  MESSAGE("skipped: haproxy is not installed");
  return nullptr;
}

// haproxy as a relay from a socket of ours, which listens before it starts, to `to`.
class running_haproxy {
 public:
  running_haproxy(const char* program, const address& to, const std::string& bind_words,
                  const std::string& server_words) {
    const int listener = listening_socket("127.0.0.1:0");
    where_ = address_of(listener);
    char path[] = "/tmp/percore-haproxy-XXXXXX";
    const int made = ::mkstemp(path);
    REQUIRE(made >= 0);
    ::close(made);
    path_ = path;
    std::ofstream(path_) << "global\n  nbthread 1\n  maxconn 50\ndefaults\n  mode tcp\n  timeout connect 30s\n"
                            "  timeout client 60s\n  timeout server 60s\nfrontend in\n  bind fd@3 "
                         << bind_words << "\n  default_backend out\nbackend out\n  server one " << to.to_string() << ' '
                         << server_words << '\n';
    posix_spawn_file_actions_t actions;
    ::posix_spawn_file_actions_init(&actions);
    if (listener == 3) {
      ::fcntl(listener, F_SETFD, 0);
    } else {
      ::posix_spawn_file_actions_adddup2(&actions, listener, 3);
    }
    ::posix_spawn_file_actions_addopen(&actions, 2, "/dev/null", O_WRONLY, 0);
    // Ends with this process, also when that is killed for its time.
    const std::array<const char*, 9> words{"setpriv", "--pdeathsig", "KILL", program, "-db", "-q", "-f", path, nullptr};
    const int result =
        ::posix_spawnp(&pid_, words[0], &actions, nullptr, const_cast<char* const*>(words.data()), environ);
    ::posix_spawn_file_actions_destroy(&actions);
    ::close(listener);
    REQUIRE(result == 0);
  }
  running_haproxy(const running_haproxy&) = delete;
  running_haproxy& operator=(const running_haproxy&) = delete;
  ~running_haproxy() {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    ::unlink(path_.c_str());
  }
  [[nodiscard]] const address& where() const noexcept { return where_; }

 private:
  pid_t pid_ = -1;
  std::string path_;
  address where_;
};

listen_options behind_haproxy(bool tls) {
  listen_options options = upstream_over(tls);
  options.proxy_protocol.emplace();
  options.proxy_protocol->trusted = {"127.0.0.0/8"};
  options.proxy_protocol->timeout = std::chrono::seconds(20);
  return options;
}

// Who its client is and where that wanted to go, then an echo.
task<> say_both(connection& conn) {
  const proxy_header* header = conn.proxied();
  const std::string said = header == nullptr ? "nothing\n"
                                             : conn.peer_address().to_string() + ' ' + header->destination.to_string() +
                                                   " v" + std::to_string(header->version) + "\n";
  if (!co_await conn.write(said)) co_return;
  co_await echo(conn);
}

TEST_CASE_FIXTURE(clean_process, "haproxy in front: the server sees the client's address") {
  const char* program = haproxy_program();
  if (program == nullptr) return;
  bool tls = false;
  int version = 1;
  SUBCASE("send-proxy") {}
  SUBCASE("send-proxy-v2") {
    version = 2;
  }
  SUBCASE("send-proxy, before TLS") {
    tls = true;
  }
  SUBCASE("send-proxy-v2, before TLS") {
    tls = true, version = 2;
  }
  test_server server(say_both, one_core(), behind_haproxy(tls));
  const running_haproxy balancer(program, server.where(), "", version == 1 ? "send-proxy" : "send-proxy-v2");
  client socket(balancer.where());
  const std::string expected =
      socket.local_address().to_string() + ' ' + balancer.where().to_string() + " v" + std::to_string(version) + "\n";
  if (tls) {
    const tls_profile profile;
    tls_client peer(std::move(socket), profile);
    peer.handshake();
    peer.send_all("ping");
    CHECK(peer.recv_exactly(expected.size() + 4) == expected + "ping");
  } else {
    socket.send_all("ping");
    CHECK(socket.recv_exactly(expected.size() + 4) == expected + "ping");
  }
}

TEST_CASE_FIXTURE(clean_process, "haproxy behind: it takes the header that dial sends, and passes it on") {
  const char* program = haproxy_program();
  if (program == nullptr) return;
  dial_options options;
  options.proxy.emplace();
  SUBCASE("version 1") {
    options.proxy->version = 1;
    options.proxy->source = "192.0.2.7:1234";
    options.proxy->destination = "192.0.2.8:443";
  }
  SUBCASE("version 2, IPv6, with a field") {
    options.proxy->source = "[2001:db8::7]:99";
    options.proxy->destination = "[2001:db8::8]:443";
    options.proxy->fields = {{2, "example.org"}};
  }
  test_server last(say_both, one_core(), behind_haproxy(false));
  const running_haproxy balancer(program, last.where(), "accept-proxy", "send-proxy-v2");
  test_server first([&](connection& conn) -> task<> {
    outgoing up = co_await dial(balancer.where(), options);
    if (up) co_await relay(conn, *up);
  });
  client peer = first.connect();
  const std::string expected =
      options.proxy->source.to_string() + ' ' + options.proxy->destination.to_string() + " v2\n";
  peer.send_all("ping");
  CHECK(peer.recv_exactly(expected.size() + 4) == expected + "ping");
}

}  // namespace
}  // namespace percore::test
