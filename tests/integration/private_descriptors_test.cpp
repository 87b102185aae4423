// Cores with descriptor tables of their own: what stays the same, and what the tables must not break.
#include <doctest/doctest.h>

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tests/support/clean_process.hpp"
#include "tests/support/test_server.hpp"

namespace percore::test {
namespace {

server_options with_own_tables(server_options options = one_core()) {
  options.private_descriptors = true;
  return options;
}

TEST_CASE_FIXTURE(clean_process, "private descriptors: connections do not appear in the process's table" *
                                     doctest::skip(under_tsan)) {
  test_server server(echo, with_own_tables(all_cores()));
  const std::size_t before = open_descriptors();
  std::vector<client> peers;
  for (int i = 0; i < 40; ++i) {
    peers.push_back(server.connect());
    peers.back().send_all("here");
    CHECK(peers.back().recv_exactly(4) == "here");
  }
  CHECK(open_descriptors() == before + peers.size());  // the clients' own ends only
  peers.clear();
  server->shutdown();
  CHECK(connection_refused(server.where()));
}

TEST_CASE_FIXTURE(clean_process, "private descriptors: shared listeners serve and close too" * doctest::skip(under_tsan)) {
  const int listening = listening_socket(address("127.0.0.1:0"));
  const address where = address_of(listening);
  server both(with_own_tables(all_cores()));
  both.listen_fd(listening, echo);
  both.listen("unix:@", echo);
  both.start();
  for (const address& target : {where, both.local_address(1)}) {
    client peer(target);
    peer.send_all("through a shared socket");
    CHECK(peer.recv_exactly(23) == "through a shared socket");
  }
  both.shutdown();
  CHECK(connection_refused(where));
}

TEST_CASE_FIXTURE(clean_process, "private descriptors: what was open at start can be used in handlers" *
                                     doctest::skip(under_tsan)) {
  int ends[2];
  REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
  {
    test_server server(
        [out = ends[1]](connection& conn) -> task<> {
          const auto data = co_await conn.read();
          const ssize_t written = ::write(out, data.data(), data.size());
          CHECK(written == static_cast<ssize_t>(data.size()));
        },
        with_own_tables());
    client peer = server.connect();
    peer.send_all("logged");
    CHECK(peer.wait_for_end() == ending::fin);
  }
  char text[6];
  CHECK(::read(ends[0], text, sizeof text) == 6);
  CHECK(std::string(text, 6) == "logged");
  ::close(ends[0]);
  ::close(ends[1]);
}

// The wake-up of the later server is in no table of the earlier one's cores: its number there is free, or worse, the
// connection that the handler serves.
TEST_CASE_FIXTURE(clean_process, "private descriptors: a core wakes a server that was made after it" *
                                     doctest::skip(under_tsan)) {
  std::optional<server> later;
  event arrived;
  test_server earlier(
      [&](connection& conn) -> task<> {
        while (auto data = co_await conn.read()) {
          const post_result posted = later->post(0, [&arrived] { arrived.set(); });
          CHECK(posted == post_result::posted);
          co_await conn.write(data);
        }
      },
      with_own_tables());
  later.emplace(one_core());
  later->listen("127.0.0.1:0", echo);
  later->start();
  client peer = earlier.connect();
  for (std::size_t i = 1; i <= 20; ++i) {
    peer.send_all("wake");
    CHECK(peer.recv_exactly(4) == "wake");  // and not 8 bytes of an eventfd's counter
    arrived.wait(i);
  }
  later->halt();
  earlier->halt();
}

TEST_CASE_FIXTURE(clean_process, "private descriptors: a core without descriptors left wakes a later server" *
                                     doctest::skip(under_tsan)) {
  std::optional<server> later;
  event arrived;
  test_server earlier(
      [&](connection& conn) -> task<> {
        std::vector<int> filler;
        for (int fd = 0; (fd = ::open("/dev/null", O_RDONLY | O_CLOEXEC)) >= 0;) filler.push_back(fd);
        CHECK(errno == EMFILE);
        while (auto data = co_await conn.read()) {
          const post_result posted = later->post(0, [&arrived] { arrived.set(); });
          CHECK(posted == post_result::posted);
          co_await conn.write(data);
        }
        for (const int fd : filler) ::close(fd);
      },
      with_own_tables());
  later.emplace(one_core());
  later->listen("127.0.0.1:0", echo);
  later->start();
  client peer = earlier.connect();
  for (std::size_t i = 1; i <= 20; ++i) {
    peer.send_all("wake");
    CHECK(peer.recv_exactly(4) == "wake");
    arrived.wait(i);
  }
  later->halt();
  peer.half_close();
  CHECK(peer.wait_for_end() == ending::fin);
}

TEST_CASE_FIXTURE(clean_process, "private descriptors: a handle that dies on such a core leaves nothing open" *
                                     doctest::skip(under_tsan)) {
  auto shared = std::make_shared<connection_handle>();
  {
    test_server holder(echo, with_own_tables());
    {
      channel<connection_handle> handles;
      test_server gone([&](connection& conn) -> task<> {
        handles.put(conn.handle());
        co_await conn.read();
      });
      client peer = gone.connect();
      *shared = handles.take();
    }
    event dropped;
    holder->post(0, [&] {
      *shared = connection_handle();  // the last reference to the mailbox of `gone`
      dropped.set();
    });
    dropped.wait();
    client peer = holder.connect();
    peer.send_all("alive");
    CHECK(peer.recv_exactly(5) == "alive");
  }
}

TEST_CASE_FIXTURE(clean_process, "private descriptors: such a core refuses to make a server" * doctest::skip(under_tsan)) {
  channel<std::string> refusals;
  test_server outer(echo, with_own_tables());
  outer->post(0, [&] {
    try {
      server inner;
      refusals.put("none");
    } catch (const std::logic_error& refused) {
      refusals.put(refused.what());
    }
  });
  CHECK(refusals.take().find("private_descriptors") != std::string::npos);
}

}  // namespace
}  // namespace percore::test
