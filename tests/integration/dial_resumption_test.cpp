// Dials that resume TLS sessions, against our own server and openssl s_server.
#include <doctest/doctest.h>

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstdio>
#include <optional>
#include <string>
#include <vector>

#include "tests/support/clean_process.hpp"
#include "tests/support/test_server.hpp"
#include "tests/support/tls_server.hpp"

namespace percore::test {
namespace {

using namespace std::chrono_literals;

struct handshake {
  bool made = false;
  bool resumed = false;
  std::size_t certificates = 0;
  std::string answer;
};

// A server with one core from which the test dials; its sessions last from one dial to the next.
class dialler {
 public:
  handshake dial_once(const address& where, const dial_options& options, std::string request = "ping") {
    server_->post(0, [this, where, options, request] {
      spawn([](dialler& self, address to, dial_options how, std::string text) -> task<> {
        handshake seen;
        outgoing up = co_await dial(to, how);
        seen.made = static_cast<bool>(up);
        if (up) {
          seen.resumed = up->tls()->resumed;
          const bool written = co_await up->write(text);
          // With the answer the tickets have come.
          while (written) {
            const bytes_view data = co_await up->read();
            seen.answer += data.text();
            if (!data || text == "ping") break;
          }
          seen.certificates = up->peer_certificates().size();
        }
        self.seen_.put(seen);
      }(*this, where, options, request));
    });
    return seen_.take();
  }
  [[nodiscard]] core_stats total() const { return server_.total(); }

 private:
  channel<handshake> seen_;
  test_server server_{echo};
};

tls_options client_options(tls_version version) {
  tls_options options;
  options.authorities_pem = authority().root.pem();
  options.min_version = options.max_version = version;
  return options;
}

dial_options through(const tls_context& context, std::string name = "localhost") {
  dial_options options;
  options.tls = context;
  options.server_name = std::move(name);
  return options;
}


auto noting(channel<bool>& resumed) {
  return [&resumed](connection& conn) -> task<> {
    resumed.put(conn.tls()->resumed);
    co_await echo(conn);
  };
}

template <class Test>
void with_both_versions(Test test) {
  SUBCASE("TLS 1.2") { test(tls_version::v1_2); }
  SUBCASE("TLS 1.3") { test(tls_version::v1_3); }
}

TEST_CASE_FIXTURE(clean_process, "dial: the second handshake with a server resumes the first, as both sides see") {
  with_both_versions([](tls_version version) {
    channel<bool> resumed;
    test_server upstream(noting(resumed), one_core(), over_tls());
    const tls_context context(client_options(version), tls_role::client);
    dialler from;
    for (int i = 0; i < 5; ++i) {
      const handshake seen = from.dial_once(upstream.where(), through(context));
      CHECK(seen.made);
      CHECK(seen.answer == "ping");
      CHECK(seen.resumed == (i > 0));
      CHECK(seen.certificates > 0);
      CHECK(resumed.take() == (i > 0));
    }
    CHECK(from.total().dials_offering == 4);
    CHECK(from.total().dials_resuming == 4);
    CHECK(upstream.total().tls_resumptions == 4);
  });
}

TEST_CASE_FIXTURE(clean_process, "dial: nothing is resumed under other terms") {
  with_both_versions([](tls_version version) {
    channel<bool> resumed;
    test_server upstream(noting(resumed), one_core(), over_tls());
    test_server other(noting(resumed), one_core(), over_tls());
    tls_context context(client_options(version), tls_role::client);
    dialler from;
    CHECK(from.dial_once(upstream.where(), through(context)).made);
    CHECK(!resumed.take());
    // Another port of the host.
    CHECK(!from.dial_once(other.where(), through(context)).resumed);
    CHECK(!resumed.take());
    // Another name, for which the certificate is good too.
    CHECK(!from.dial_once(upstream.where(), through(context, "127.0.0.1")).resumed);
    CHECK(!resumed.take());
    // A context of its own, and the same one with settings read anew.
    const tls_context stranger(client_options(version), tls_role::client);
    CHECK(!from.dial_once(upstream.where(), through(stranger)).resumed);
    CHECK(!resumed.take());
    context.reload();
    CHECK(!from.dial_once(upstream.where(), through(context)).resumed);
    CHECK(!resumed.take());
    CHECK(from.dial_once(upstream.where(), through(context)).resumed);
    CHECK(resumed.take());
    CHECK(from.total().dials_offering == 1);
  });
}

// What one who verifies nothing has learnt is nothing to one who does.
TEST_CASE_FIXTURE(clean_process, "dial: a session without verification is no way around it") {
  test_server upstream(echo, one_core(), over_tls());
  tls_options careless;
  careless.verify_server = false;
  tls_context context(careless, tls_role::client);
  dialler from;
  CHECK(from.dial_once(upstream.where(), through(context, "example.org")).made);
  tls_options careful;
  careful.authorities_pem = authority().root.pem();
  context.reload(careful);
  CHECK(!from.dial_once(upstream.where(), through(context, "example.org")).made);
  CHECK(from.total().dials_offering == 0);
}

TEST_CASE_FIXTURE(clean_process, "dial: resumption can be turned off") {
  with_both_versions([](tls_version version) {
    test_server upstream(echo, one_core(), over_tls());
    tls_options options = client_options(version);
    // Both, one after the other.
    for (const bool tickets : {true, false}) {
      options.tickets = tickets;
      options.client_sessions = tickets ? 0 : 256;
      const tls_context context(options, tls_role::client);
      dialler from;
      for (int i = 0; i < 3; ++i) CHECK(!from.dial_once(upstream.where(), through(context)).resumed);
      CHECK(from.total().dials_offering == 0);
    }
  });
}

TEST_CASE_FIXTURE(clean_process, "dial: a server that has forgotten its keys gets a full handshake") {
  with_both_versions([](tls_version version) {
    tls_context serving(server_tls());
    test_server upstream(echo, one_core(), over_tls(serving));
    const tls_context context(client_options(version), tls_role::client);
    dialler from;
    CHECK(!from.dial_once(upstream.where(), through(context)).resumed);
    serving.rotate_ticket_keys();
    serving.rotate_ticket_keys();
    const handshake second = from.dial_once(upstream.where(), through(context));
    CHECK(second.made);
    CHECK(!second.resumed);
    CHECK(from.dial_once(upstream.where(), through(context)).resumed);
    CHECK(from.total().dials_offering == 2);
    CHECK(from.total().dials_resuming == 1);
  });
}

TEST_CASE("dial: more sessions than a core may keep are refused") {
  tls_options options;
  options.client_sessions = 4097;
  CHECK_THROWS_AS(tls_context(options, tls_role::client), tls_error);
}

// openssl s_server with a status page, on a port that the kernel gives out.
class s_server {
 public:
  s_server() : certificate_(authority().localhost.chain_pem()), key_(authority().localhost.key_pem()) {
    int out[2];
    REQUIRE(::pipe(out) == 0);
    child_ = ::fork();
    if (child_ == 0) {
      ::dup2(out[1], 1);
      ::close(out[0]);
      ::close(out[1]);
      ::execlp("openssl", "openssl", "s_server", "-accept", "127.0.0.1:0", "-www", "-cert", certificate_.path().c_str(),
               "-key", key_.path().c_str(), nullptr);
      ::_exit(127);
    }
    ::close(out[1]);
    FILE* lines = ::fdopen(out[0], "r");
    std::array<char, 256> line;
    while (std::fgets(line.data(), line.size(), lines) != nullptr) {
      const std::string_view text(line.data());
      if (!text.starts_with("ACCEPT ")) continue;
      port_ = std::stoi(std::string(text.substr(text.rfind(':') + 1)));
      break;
    }
    std::fclose(lines);
  }
  s_server(const s_server&) = delete;
  s_server& operator=(const s_server&) = delete;
  ~s_server() {
    ::kill(child_, SIGKILL);
    ::waitpid(child_, nullptr, 0);
  }
  [[nodiscard]] address where() const { return address("127.0.0.1:" + std::to_string(port_)); }
  [[nodiscard]] int port() const noexcept { return port_; }

 private:
  temporary_file certificate_;
  temporary_file key_;
  pid_t child_ = -1;
  int port_ = 0;
};

TEST_CASE_FIXTURE(clean_process, "dial: openssl s_server sees sessions resumed") {
  with_both_versions([](tls_version version) {
    const s_server upstream;
    REQUIRE(upstream.port() != 0);
    const tls_context context(client_options(version), tls_role::client);
    dialler from;
    for (int i = 0; i < 4; ++i) {
      const handshake seen = from.dial_once(upstream.where(), through(context), "GET / HTTP/1.0\r\n\r\n");
      CHECK(seen.resumed == (i > 0));
      CHECK((seen.answer.find(i > 0 ? "\nReused, TLSv1" : "\nNew, TLSv1") != std::string::npos));
    }
  });
}

}  // namespace
}  // namespace percore::test
