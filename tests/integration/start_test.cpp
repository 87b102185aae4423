// Starts that fail, and what they leave behind: nothing.
#include <doctest/doctest.h>

#include <unistd.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "tests/support/clean_process.hpp"
#include "tests/support/test_server.hpp"

namespace percore::test {
namespace {

// An address of this process only, so that tests at the same time do not take each other's ports.
address own_address() {
  const unsigned id = static_cast<unsigned>(::getpid());
  const std::string host = "127." + std::to_string(64 + (id >> 14 & 127)) + '.' + std::to_string(id >> 7 & 127) +
                           '.' + std::to_string(1 + (id & 127));
  const int fd = listening_socket(host + ":0");
  const address free = address_of(fd);
  ::close(fd);
  return free;
}

TEST_CASE_FIXTURE(clean_process, "start: fails on an address in use and leaves nothing behind") {
  const address first = own_address();
  const int foreign = listening_socket("127.0.0.1:0");
  const address taken = address_of(foreign);
  {
    server host(all_cores());
    const std::size_t descriptors = open_descriptors();
    host.listen(first, echo);
    host.listen(taken, echo);
    try {
      host.start();
      FAIL("it started");
    } catch (const listen_error& failure) {
      CHECK(failure.where() == taken);
      CHECK(failure.code() == std::errc::address_in_use);
      CHECK(std::string(failure.what()).find(taken.to_string()) != std::string::npos);
    }
    CHECK(open_descriptors() == descriptors);
    CHECK(eventually([] { return running_threads() <= (sanitized ? 2U : 1U); }));
    CHECK(connection_refused(first));
    const int again = listening_socket(first);
    ::close(again);
    CHECK(host.core_count() == 0);
  }
  ::close(foreign);
  test_server other(echo, one_core(), {}, first.to_string());
  CHECK(other.where() == first);
}

TEST_CASE_FIXTURE(clean_process, "start: one address for two listeners is refused") {
  const address port = own_address();
  const std::string path = "/tmp/percore-start-" + std::to_string(::getpid());
  for (const address& where : {port, address("unix:" + path), address("unix:@" + path)}) {
    CAPTURE(where.to_string());
    server host(all_cores());
    host.listen(where, echo);
    host.listen("127.0.0.1:0", echo);
    host.listen(where, echo);
    try {
      host.start();
      FAIL("it started");
    } catch (const listen_error& failure) {
      CHECK(failure.where() == where);
      CHECK(failure.code() == std::errc::address_in_use);
      CHECK(std::string(failure.what()).find("listener 0 of this server") != std::string::npos);
    }
    CHECK(::access(path.c_str(), F_OK) != 0);
  }
  // Where the kernel chooses there are no two the same, and a group may be shared on purpose.
  server host(all_cores());
  listen_options shared;
  shared.socket.share_port = true;
  host.listen(port, echo, shared);
  host.listen(port, echo, shared);
  for (const char* where : {"127.0.0.1:0", "127.0.0.1:0", "unix:@", "unix:@"}) host.listen(where, echo);
  host.start();
}

TEST_CASE_FIXTURE(clean_process, "start: fails on a required option that the kernel does not grant in full") {
  listen_options listening;
  listening.socket.send_buffer_bytes = (1 << 30) - 1;  // far above net.core.wmem_max
  std::vector<std::string> warnings;
  server_options options = one_core();
  options.on_warning = [&](const std::string& line) { warnings.push_back(line); };
  {
    server host(options);
    host.listen("127.0.0.1:0", echo, listening);
    host.start();
    CHECK(warnings.size() == 1);
    if (!warnings.empty()) CHECK(warnings[0].find("send_buffer_bytes") != std::string::npos);
  }
  listening.socket.required = {socket_option::send_buffer_bytes};
  server host(options);
  host.listen("127.0.0.1:0", echo, listening);
  CHECK_THROWS_AS(host.start(), listen_error);
}

TEST_CASE_FIXTURE(clean_process, "start: fails on a placement that cannot be") {
  server_options options;
  options.placement.cpus = {8000};
  server host(options);
  host.listen("127.0.0.1:0", echo);
  CHECK_THROWS_AS(host.start(), std::invalid_argument);
}

TEST_CASE_FIXTURE(clean_process, "start: bad addresses and options are told at once or at the start") {
  server host(one_core());
  CHECK_THROWS_AS(host.listen("nonsense", echo), std::invalid_argument);
  CHECK_THROWS_AS(host.listen("127.0.0.1:70000", echo), std::invalid_argument);
  CHECK_THROWS_AS(host.listen("example.org:80", echo), std::invalid_argument);
  listen_options bad;
  bad.socket.keepalive.on = true;
  bad.socket.keepalive.count = 1000;
  CHECK_THROWS_AS(([&] {
                    host.listen("127.0.0.1:0", echo, bad);
                    host.start();
                  }()),
                  std::invalid_argument);
}

TEST_CASE_FIXTURE(clean_process, "start: options out of range are refused") {
  const auto starts = [](auto change) {
    server_options options = one_core();
    change(options);
    server host(options);
    host.listen("127.0.0.1:0", echo);
    host.start();
  };
  CHECK_THROWS_AS(starts([](server_options& o) { o.slot_bytes = 100; }), std::invalid_argument);
  CHECK_THROWS_AS(starts([](server_options& o) { o.slot_bytes = 1000; }), std::invalid_argument);
  CHECK_THROWS_AS(starts([](server_options& o) { o.slot_bytes = 1 << 20; }), std::invalid_argument);
  CHECK_THROWS_AS(starts([](server_options& o) { o.read_buffer_bytes = 100; }), std::invalid_argument);
  CHECK_THROWS_AS(starts([](server_options& o) { o.read_buffer_bytes = 1 << 30; }), std::invalid_argument);
  starts([](server_options& o) { o.slot_bytes = 512; });
  starts([](server_options& o) { o.slot_bytes = 65'536; });
  starts([](server_options& o) { o.read_buffer_bytes = 1024; });
}

TEST_CASE_FIXTURE(clean_process, "start: twice and listening afterwards are refused") {
  test_server server(echo);
  CHECK_THROWS_AS(server->start(), std::logic_error);
  CHECK_THROWS_AS(server->listen("127.0.0.1:0", echo), std::logic_error);
  server->shutdown();
  CHECK_THROWS_AS(server->start(), std::logic_error);
}

}  // namespace
}  // namespace percore::test
