// send_file, over real sockets and real files.
#include <doctest/doctest.h>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <string>
#include <thread>

#include "tests/support/clean_process.hpp"
#include "tests/support/every_wire.hpp"
#include "tests/support/test_server.hpp"

namespace percore::test {
namespace {

// A file without a name, gone with this object.
class temporary_file {
 public:
  explicit temporary_file(std::string_view content) : fd_(::open("/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600)) {
    REQUIRE(fd_ >= 0);
    append(content);
  }
  temporary_file(const temporary_file&) = delete;
  temporary_file& operator=(const temporary_file&) = delete;
  ~temporary_file() { ::close(fd_); }

  void append(std::string_view more) {
    while (!more.empty()) {
      const ssize_t written = ::write(fd_, more.data(), more.size());
      REQUIRE(written > 0);
      more.remove_prefix(static_cast<std::size_t>(written));
    }
  }
  void resize(off_t size) { REQUIRE(::ftruncate(fd_, size) == 0); }
  [[nodiscard]] int fd() const noexcept { return fd_; }

 private:
  int fd_;
};

struct outcome {
  sent_file sent;
  std::error_code error;
  bool still_writes = false;  // "!" behind it
};

// Sends a part of a file, then "!".
auto sending(const temporary_file& file, std::uint64_t offset, std::uint64_t length, channel<outcome>& result) {
  return [&file, offset, length, &result](connection& conn) -> task<> {
    outcome seen;
    seen.sent = co_await conn.send_file(file.fd(), offset, length);
    if (!seen.sent) seen.error = conn.error();
    seen.still_writes = co_await conn.write("!");
    result.put(seen);
  };
}

TEST_CASE_FIXTURE(clean_process, "send_file: a part of a file arrives whole, between other writes") {
  const std::string text = numbered_text(3'000'000);
  const temporary_file file(text);
  channel<outcome> result;
  over_every_wire([&](const wire& over) {
    test_server server(sending(file, 1000, 2'500'000, result), one_core(), over.listening(small_send_buffer()));
    any_client peer = over.connect(server, 4096);
    CHECK((all_of(peer) == text.substr(1000, 2'500'000) + "!"));
    const outcome seen = result.take();
    CHECK(seen.sent);
    CHECK(seen.sent.bytes == 2'500'000);
    CHECK(seen.still_writes);
  });
}

TEST_CASE_FIXTURE(clean_process, "send_file: to the end of the file, nothing from behind it") {
  const std::string text = numbered_text(2'000'000);
  const temporary_file file(text);
  channel<outcome> result;
  std::uint64_t offset = 0;
  SUBCASE("from its beginning") { offset = 0; }
  SUBCASE("from the midst") { offset = 1'234'567; }
  SUBCASE("from its end") { offset = 2'000'000; }
  SUBCASE("from behind its end") { offset = 2'000'001; }
  over_every_wire([&](const wire& over) {
    test_server server(sending(file, offset, to_end_of_file, result), one_core(), over.listening());
    any_client peer = over.connect(server);
    const std::string expected = offset > text.size() ? "" : text.substr(offset);
    CHECK((all_of(peer) == expected + "!"));
    const outcome seen = result.take();
    CHECK(seen.sent);
    CHECK(seen.sent.bytes == expected.size());
  });
}

TEST_CASE_FIXTURE(clean_process, "send_file: a head comes first, whatever the file has") {
  const std::string text = numbered_text(100'000);
  const temporary_file file(text);
  std::string head = "head";
  std::uint64_t length = 0;
  std::uint64_t expected = 0;
  bool whole = true;
  SUBCASE("a part") {
    length = expected = 50'000;
  }
  SUBCASE("nothing") {
    length = 0;
  }
  SUBCASE("to the end") {
    length = to_end_of_file, expected = 100'000;
  }
  SUBCASE("more than there is") {
    length = 100'001, expected = 100'000, whole = false;
  }
  SUBCASE("a head that no socket takes at once") {
    head = numbered_text(5'000'000), length = expected = 50'000;
  }
  over_every_wire([&](const wire& over) {
    channel<outcome> result;
    test_server server(
        [&](connection& conn) -> task<> {
          outcome seen;
          seen.sent = co_await conn.send_file(head, file.fd(), 0, length);
          seen.still_writes = co_await conn.write("!");
          result.put(seen);
        },
        one_core(), over.listening(small_send_buffer()));
    any_client peer = over.connect(server, 4096);
    CHECK((all_of(peer) == head + text.substr(0, expected) + "!"));
    const outcome seen = result.take();
    CHECK(seen.sent.whole == whole);
    CHECK(seen.sent.bytes == expected);
    CHECK(seen.still_writes);
  });
}

TEST_CASE_FIXTURE(clean_process, "send_file: holes are zeros") {
  temporary_file file("head");
  file.resize(1'000'000);
  channel<outcome> result;
  over_every_wire([&](const wire& over) {
    test_server server(sending(file, 0, 1'000'000, result), one_core(), over.listening());
    any_client peer = over.connect(server);
    CHECK((all_of(peer) == "head" + std::string(999'996, '\0') + "!"));
    CHECK(result.take().sent);
  });
}

TEST_CASE_FIXTURE(clean_process, "send_file: a file that is too short is told apart, and the connection lives on") {
  const std::string text = numbered_text(100'000);
  const temporary_file file(text);
  channel<outcome> result;
  over_every_wire([&](const wire& over) {
    test_server server(sending(file, 0, 100'001, result), one_core(), over.listening());
    any_client peer = over.connect(server);
    CHECK((all_of(peer) == text + "!"));
    const outcome seen = result.take();
    CHECK_FALSE(seen.sent);
    CHECK(seen.sent.bytes == 100'000);
    CHECK(seen.error == errc::file_ended);
    CHECK(seen.still_writes);
  });
}

TEST_CASE_FIXTURE(clean_process, "send_file: a file that is cut while it is sent") {
  const std::string text = numbered_text(8'000'000);
  temporary_file file(text);
  channel<outcome> result;
  over_every_wire([&](const wire& over) {
    test_server server(sending(file, 0, text.size(), result), one_core(), over.listening(small_send_buffer()));
    any_client peer = over.connect(server, 4096);
    const std::string start = peer.recv_exactly(1);
    file.resize(1000);  // much less than is on its way already
    const std::string all = start + all_of(peer);
    const outcome seen = result.take();
    CHECK_FALSE(seen.sent);
    CHECK(seen.error == errc::file_ended);
    CHECK(all.size() == seen.sent.bytes + 1);
    CHECK(seen.sent.bytes < text.size());
  });
}

TEST_CASE_FIXTURE(clean_process, "send_file: a file that grows is sent as far as was asked for") {
  const std::string text = numbered_text(1'000'000);
  temporary_file file(text);
  channel<outcome> result;
  test_server server(sending(file, 0, text.size(), result), one_core(), small_send_buffer());
  client peer = server.connect();
  const std::string start = peer.recv_exactly(1);
  file.append(text);
  CHECK((start + peer.recv_to_end() == text + "!"));
  CHECK(result.take().sent.bytes == text.size());
}

TEST_CASE_FIXTURE(clean_process, "send_file: what is no file that can be read fails without harm") {
  const temporary_file file("x");
  channel<sent_file> sent;
  channel<std::error_code> error;
  int which = -1;
  int expected = EBADF;
  SUBCASE("no descriptor at all") {}
  SUBCASE("a pipe") {
    int ends[2];
    REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
    ::close(ends[1]);
    which = ends[0];
    expected = ESPIPE;
  }
  SUBCASE("a directory") {
    which = ::open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    expected = EISDIR;
  }
  over_every_wire([&](const wire& over) {
    test_server server(
        [&](connection& conn) -> task<> {
          const sent_file result = co_await conn.send_file(which, 0, 100);
          sent.put(result);
          error.put(conn.error());
          co_await conn.write("!");
        },
        one_core(), over.listening());
    any_client peer = over.connect(server);
    CHECK(all_of(peer) == "!");
    const sent_file result = sent.take();
    CHECK_FALSE(result);
    CHECK(result.bytes == 0);
    CHECK(error.take() == std::error_code(expected, std::system_category()));
  });
  if (which >= 0) ::close(which);
}

TEST_CASE_FIXTURE(clean_process, "send_file: files of the kernel, which know no sendfile") {
  const int file = ::open("/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
  REQUIRE(file >= 0);
  char content[512];
  const ssize_t size = ::pread(file, content, sizeof content, 0);
  REQUIRE(size > 0);
  channel<sent_file> sent;
  test_server server([&](connection& conn) -> task<> {
    const sent_file result = co_await conn.send_file(file, 0, to_end_of_file);
    sent.put(result);
  });
  client peer = server.connect();
  CHECK((peer.recv_to_end().substr(0, sizeof content) == std::string(content, static_cast<std::size_t>(size))));
  CHECK(sent.take());
  ::close(file);
}

TEST_CASE_FIXTURE(clean_process, "send_file: progress is told when the peer goes") {
  const std::string text = numbered_text(8'000'000);
  const temporary_file file(text);
  channel<outcome> result;
  over_every_wire([&](const wire& over) {
    test_server server(sending(file, 0, text.size(), result), one_core(), over.listening(small_send_buffer()));
    any_client peer = over.connect(server, 4096);
    (void)peer.recv_exactly(200'000);
    peer.socket().reset();
    const outcome seen = result.take();
    CHECK_FALSE(seen.sent);
    CHECK(seen.error == errc::connection_reset);
    CHECK(seen.sent.bytes >= 100'000);  // but for what was about to be sent
    CHECK(seen.sent.bytes < text.size());
    CHECK_FALSE(seen.still_writes);
  });
}

TEST_CASE_FIXTURE(clean_process, "send_file: the write timeout counts") {
  const std::string text = numbered_text(8'000'000);
  const temporary_file file(text);
  channel<outcome> result;
  listen_options options = small_send_buffer();
  options.write_timeout = std::chrono::milliseconds(20);
  test_server server(sending(file, 0, text.size(), result), one_core(), options);
  client peer = server.connect();
  CHECK(result.take().error == errc::timed_out);
}

TEST_CASE_FIXTURE(clean_process, "send_file: others are served while a fast peer takes a large file") {
  const temporary_file file("x");
  temporary_file large("");
  large.resize(off_t{1} << 30);
  std::atomic<bool> stop = false;
  test_server server([&](connection& conn) -> task<> {
    auto data = co_await conn.read();
    if (data.text() == "ping") co_await conn.write("ping");
    if (data.text() != "send") co_return;
    while (!stop.load()) {
      if (!co_await conn.send_file(large.fd(), 0, to_end_of_file)) co_return;
    }
  });
  client taking = server.connect();
  taking.send_all("send");
  std::thread taker([&] {
    try {
      while (!taking.recv_some().empty()) {
      }
    } catch (const std::system_error&) {  // halted in its midst
    }
  });
  for (int i = 0; i < 5; ++i) CHECK(still_serves(server));
  stop = true;
  server->halt();
  taker.join();
}

}  // namespace
}  // namespace percore::test
