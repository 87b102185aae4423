// A start that fails at any of its system calls says why and leaves nothing behind.
#include <doctest/doctest.h>

#include <stdlib.h>
#include <unistd.h>

#include <string>
#include <system_error>

#include "tests/fault/injection.hpp"
#include "tests/support/clean_process.hpp"
#include "tests/support/test_server.hpp"

namespace percore::test {
namespace {

class temporary_folder {
 public:
  temporary_folder() { REQUIRE(::mkdtemp(name_) != nullptr); }
  temporary_folder(const temporary_folder&) = delete;
  temporary_folder& operator=(const temporary_folder&) = delete;
  ~temporary_folder() { CHECK(::rmdir(name_) == 0); }
  [[nodiscard]] std::string file(const std::string& name) const { return std::string(name_) + "/" + name; }

 private:
  char name_[32] = "/tmp/percore-XXXXXX";
};

server_options two_cores(std::string& warnings, bool private_descriptors) {
  server_options options = one_core();
  options.on_warning = [&warnings](const std::string& text) { warnings += text; };
  options.placement.cores = static_cast<unsigned>(std::min<std::size_t>(2, discover_topology().cpus.size()));
  options.max_connections_per_core = 100;
  options.private_descriptors = private_descriptors;
  return options;
}

void add_listeners(server& target, const std::string& path) {
  listen_options options;
  options.socket.keepalive.on = true;
  target.listen("127.0.0.1:0", echo, options);
  target.listen("[::1]:0", echo);
  target.listen("unix:" + path, echo);
}

void check_serves(server& target) {
  for (std::size_t listener = 0; listener < 3; ++listener) {
    client peer(target.local_address(listener));
    peer.send_all("hello");
    CHECK(peer.recv_exactly(5) == "hello");
  }
}

struct step {
  call which;
  int error;
  bool needed;  // a start cannot do without this call, whichever of them it is
};

// False when a start makes fewer such calls.
bool check_step(const step& failed, std::uint32_t occurrence, const std::string& path,
                bool private_descriptors) {
  INFO("occurrence " << occurrence << ", private descriptors " << private_descriptors);
  sys::reset_call_counters();
  const clean_process nothing_left;
  std::string warnings;
  bool threw = false;
  {
    injected faults(failing(failed.which, failed.error, 1, occurrence));
    try {
      server first(two_cores(warnings, private_descriptors));
      add_listeners(first, path);
      try {
        first.start();
      } catch (...) {
        CHECK(first.core_count() == 0);
        CHECK(first.stats().total.accepted == 0);
        faults.end();
        // The same server may be started once the cause is gone.
        first.start();
        check_serves(first);
        throw;
      }
      faults.end();
      check_serves(first);
    } catch (const std::system_error& failure) {
      threw = true;
      INFO(failure.what());
      CHECK(failure.code().value() == failed.error);
      CHECK(std::string(failure.what()).size() > 20);
    }
  }
  const bool reached = sys::faults_injected(failed.which) > 0;
  if (reached && failed.needed) CHECK(threw);
  if (reached && !failed.needed && !threw) CHECK_FALSE(warnings.empty());
  CHECK(::access(path.c_str(), F_OK) != 0);
  return reached;
}

TEST_CASE("start: fails cleanly at any call that the kernel refuses") {
  const temporary_folder folder;
  const std::string path = folder.file("socket");
  step failed{call::socket, EMFILE, true};
  SUBCASE("socket") {
    failed = {call::socket, EMFILE, true};
  }
  SUBCASE("bind") {
    failed = {call::bind, EACCES, true};
  }
  SUBCASE("listen") {
    failed = {call::listen, ENOBUFS, true};
  }
  SUBCASE("getsockname") {
    failed = {call::getsockname, ENOBUFS, true};
  }
  SUBCASE("setsockopt") {
    failed = {call::setsockopt, EOPNOTSUPP, false};
  }
  SUBCASE("epoll_create1") {
    failed = {call::epoll_create1, EMFILE, true};
  }
  SUBCASE("epoll_ctl") {
    failed = {call::epoll_ctl_add, ENOSPC, true};
  }
  SUBCASE("eventfd") {
    failed = {call::eventfd, ENFILE, true};
  }
  SUBCASE("mmap") {
    failed = {call::mmap, ENOMEM, true};
  }
  SUBCASE("unshare") {
    failed = {call::unshare, ENOMEM, true};
  }
  std::uint32_t occurrences = 0;
  for (const bool private_descriptors : {false, true}) {
    if (private_descriptors && test::under_tsan) continue;
    for (std::uint32_t i = 0; check_step(failed, i, path, private_descriptors); ++i) ++occurrences;
  }
  if (failed.which != call::unshare || !test::under_tsan) CHECK(occurrences > 0);
}

TEST_CASE_FIXTURE(clean_process, "start: says so when there is no room for a stack") {
  server_options options = one_core();
  options.core_stack_bytes = std::size_t{1} << 50;  // more than the address space of a process has
  server target(options);
  target.listen("127.0.0.1:0", echo);
  CHECK_THROWS_AS(target.start(), std::system_error);
  CHECK(target.core_count() == 0);
}

}  // namespace
}  // namespace percore::test
