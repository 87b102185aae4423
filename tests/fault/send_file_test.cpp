// send_file while the kernel fails.
#include <doctest/doctest.h>

#include <fcntl.h>
#include <unistd.h>

#include <string>

#include "tests/fault/injection.hpp"
#include "tests/support/clean_process.hpp"
#include "tests/support/every_wire.hpp"

namespace percore::test {
namespace {

struct file_of {
  explicit file_of(const std::string& text) : fd(::open("/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600)) {
    REQUIRE(::write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size()));
  }
  file_of(const file_of&) = delete;
  file_of& operator=(const file_of&) = delete;
  ~file_of() { ::close(fd); }
  const int fd;
};

TEST_CASE_FIXTURE(clean_process, "send_file: every byte arrives once through short and refused calls") {
  const std::string text = numbered_text(300'000);
  const file_of file(text);
  over_every_wire([&](const wire& over) {
    channel<sent_file> result;
    server_options options = one_core();
    options.operations_per_turn = 2;
    test_server server(
        [&](connection& conn) -> task<> {
          for (int i = 0; i < 5; ++i) {
            const sent_file sent = co_await conn.send_file(file.fd, 0, text.size());
            result.put(sent);
            if (!co_await conn.write("!")) co_return;
          }
        },
        options, over.listening(small_send_buffer()));
    fault_plan plan = no_faults();
    plan.short_write = plan.would_block = plan.interrupted = 0.2;
    any_client peer = over.connect(server);
    std::string start = peer.recv_exactly(1);  // whether the kernel encrypts is decided by then
    const injected faults(plan);
    for (int i = 0; i < 5; ++i) {
      CHECK((start + peer.recv_exactly(text.size() + 1 - start.size()) == text + "!"));
      start.clear();
      const sent_file sent = result.take();
      CHECK(sent);
      CHECK(sent.bytes == text.size());
    }
  });
}

TEST_CASE_FIXTURE(clean_process, "send_file: a head and its file arrive once through short and refused calls") {
  const std::string text = numbered_text(60'000);
  const file_of file(text);
  const std::string head = numbered_text(3'000);
  over_every_wire([&](const wire& over) {
    channel<sent_file> result;
    server_options options = one_core();
    options.operations_per_turn = 2;
    test_server server(
        [&](connection& conn) -> task<> {
          for (int i = 0; i < 20; ++i) {
            const sent_file sent = co_await conn.send_file(head, file.fd, 0, text.size());
            result.put(sent);
            if (!co_await conn.write("!")) co_return;
          }
        },
        options, over.listening(small_send_buffer()));
    fault_plan plan = no_faults();
    plan.short_write = plan.would_block = plan.interrupted = 0.2;
    any_client peer = over.connect(server);
    std::string start = peer.recv_exactly(1);  // whether the kernel encrypts is decided by then
    const injected faults(plan);
    for (int i = 0; i < 20; ++i) {
      CHECK((start + peer.recv_exactly(head.size() + text.size() + 1 - start.size()) == head + text + "!"));
      start.clear();
      CHECK(result.take().bytes == text.size());
    }
  });
}

TEST_CASE_FIXTURE(clean_process, "send_file: a head whose file has nothing does not wait in the kernel") {
  const file_of file("");
  const call_counts counts;
  channel<std::uint64_t> pushes;
  test_server server([&](connection& conn) -> task<> {
    const std::uint64_t before = counts.of(call::setsockopt);
    co_await conn.send_file("head", file.fd, 0, 100);
    pushes.put(counts.of(call::setsockopt) - before);
    co_await conn.read();
  });
  client peer = server.connect();
  CHECK(peer.recv_exactly(4) == "head");
  CHECK(pushes.take() == 2);
}

TEST_CASE_FIXTURE(clean_process, "send_file: what sendfile refuses is copied") {
  const std::string text = numbered_text(300'000);
  const file_of file(text);
  test_server server([&](connection& conn) -> task<> { co_await conn.send_file(file.fd, 0, text.size()); });
  int error = 0;
  SUBCASE("EINVAL") { error = EINVAL; }
  SUBCASE("ENOSYS") { error = ENOSYS; }
  SUBCASE("EIO") { error = EIO; }
  SUBCASE("ENOMEM") { error = ENOMEM; }
  const call_counts counts;
  const injected faults(failing(call::sendfile, error, 1'000));
  client peer = server.connect();
  CHECK((peer.recv_to_end() == text));
  CHECK(counts.of(call::pread) > 0);
}

TEST_CASE_FIXTURE(clean_process, "send_file: a disk that fails does not end the connection") {
  const std::string text = numbered_text(300'000);
  const file_of file(text);
  over_every_wire([&](const wire& over) {
    channel<sent_file> result;
    channel<std::error_code> error;
    test_server server(
        [&](connection& conn) -> task<> {
          const sent_file sent = co_await conn.send_file(file.fd, 0, text.size());
          result.put(sent);
          error.put(conn.error());
          co_await conn.write("!");
        },
        one_core(), over.listening());
    fault_plan plan = failing(call::pread, EIO, 1'000, 3);
    plan.fail_next[static_cast<std::size_t>(call::sendfile)] = 1'000;
    plan.fail_errno[static_cast<std::size_t>(call::sendfile)] = EIO;
    const injected faults(plan);
    any_client peer = over.connect(server);
    const std::string got = all_of(peer);
    const sent_file sent = result.take();
    CHECK_FALSE(sent);
    CHECK((got == text.substr(0, sent.bytes) + "!"));
    CHECK(error.take() == std::error_code(EIO, std::system_category()));
  });
}

}  // namespace
}  // namespace percore::test
