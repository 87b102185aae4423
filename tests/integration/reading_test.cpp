// What a handler reads, over real sockets.
#include <doctest/doctest.h>

#include <array>
#include <atomic>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "tests/support/clean_process.hpp"
#include "tests/support/test_server.hpp"

namespace percore::test {
namespace {

using namespace std::chrono_literals;

struct reading {
  std::string text;
  std::error_code error;
};

std::span<std::byte> bytes_of(std::string& text) { return std::as_writable_bytes(std::span(text)); }

TEST_CASE_FIXTURE(clean_process, "reading: read hands over what came and then the end of the stream") {
  channel<reading> seen;
  test_server server([&](connection& conn) -> task<> {
    for (;;) {
      auto data = co_await conn.read();
      seen.put({std::string(data.text()), conn.error()});
      if (!data) co_return;
    }
  });
  client peer = server.connect();
  peer.send_all("first");
  CHECK(seen.take().text == "first");
  peer.send_all("second");
  const reading second = seen.take();
  CHECK(second.text == "second");
  CHECK_FALSE(second.error);
  peer.half_close();
  const reading last = seen.take();
  CHECK(last.text.empty());
  CHECK(last.error == errc::end_of_stream);
  CHECK(peer.wait_for_end() == ending::fin);
}

TEST_CASE_FIXTURE(clean_process, "reading: read_more waits for more than was put back") {
  channel<reading> seen;
  server_options options = one_core();
  options.read_buffer_bytes = 1024;
  test_server server(
      [&](connection& conn) -> task<> {
        auto data = co_await conn.read();
        while (data) {
          seen.put({std::string(data.text()), conn.error()});
          conn.unread(data);
          data = co_await conn.read_more();
        }
        seen.put({"", conn.error()});
        data = co_await conn.read();  // what was put back is still there
        seen.put({std::string(data.text()), {}});
      },
      options);
  SUBCASE("until the end of the stream") {
    client peer = server.connect();
    peer.send_all("one");
    CHECK(seen.take().text == "one");
    peer.send_all("two");
    CHECK(seen.take().text == "onetwo");
    peer.half_close();
    CHECK(seen.take().error == errc::end_of_stream);
    CHECK(seen.take().text == "onetwo");
    CHECK(peer.wait_for_end() == ending::fin);
  }
  SUBCASE("until the buffer is full") {
    const std::string text = numbered_text(1024);
    client peer = server.connect();
    peer.send_all(text);
    reading last;
    do {
      last = seen.take();
    } while (!last.error);
    CHECK(last.error == errc::limit_exceeded);
    CHECK(seen.take().text == text);
  }
}

TEST_CASE_FIXTURE(clean_process, "reading: a view is valid until the next read while other connections read") {
  std::atomic<bool> others_done = false;
  channel<std::string> kept;
  event has_view;
  test_server server([&](connection& conn) -> task<> {
    auto data = co_await conn.read();
    if (data.text().starts_with("keep")) {
      has_view.set();
      co_await until(conn, others_done);
      kept.put(std::string(data.text()));
    } else {
      co_await conn.write(data);
    }
  });
  const std::string text = "keep" + numbered_text(5000);
  client holder = server.connect();
  holder.send_all(text);
  has_view.wait();
  for (int i = 0; i < 20; ++i) {
    client other = server.connect();
    other.send_all(std::string(6000, 'x'));
    CHECK(other.recv_exactly(10) == "xxxxxxxxxx");
  }
  others_done = true;
  CHECK(kept.take() == text);
}

TEST_CASE_FIXTURE(clean_process, "reading: a read into a small target leaves the rest for the next one") {
  channel<std::string> seen;
  test_server server([&](connection& conn) -> task<> {
    std::array<std::byte, 3> target;
    for (;;) {
      const std::size_t count = co_await conn.read(target);
      seen.put(std::string(reinterpret_cast<const char*>(target.data()), count));
      if (count == 0) co_return;
    }
  });
  client peer = server.connect();
  peer.send_all("abcdefgh");
  peer.half_close();
  std::string all;
  for (std::string part = seen.take(); !part.empty(); part = seen.take()) {
    CHECK(part.size() <= 3);
    all += part;
  }
  CHECK(all == "abcdefgh");
}

TEST_CASE_FIXTURE(clean_process, "reading: read_full waits for every byte and says how many came when they did not") {
  channel<reading> seen;
  channel<std::size_t> length_of_failed;
  test_server server([&](connection& conn) -> task<> {
    std::string target(10, '\0');
    for (;;) {
      const bool whole = co_await conn.read_full(bytes_of(target));
      seen.put({whole ? target : std::string(), conn.error()});
      if (whole) continue;
      length_of_failed.put(conn.bytes_of_failed_read());
      seen.put({target.substr(0, conn.bytes_of_failed_read()), conn.error()});
      co_return;
    }
  });
  client peer = server.connect();
  for (const char* part : {"0", "12", "345", "6789ABCDE", "FGHIJ", "KLM"}) peer.send_all(part);
  peer.half_close();
  CHECK(seen.take().text == "0123456789");
  CHECK(seen.take().text == "ABCDEFGHIJ");
  CHECK(seen.take().error == errc::end_of_stream);
  CHECK(length_of_failed.take() == 3);
  CHECK(seen.take().text == "KLM");
}

TEST_CASE_FIXTURE(clean_process, "reading: read_full fills a target larger than a read buffer") {
  const std::string text = numbered_text(1'000'000);
  channel<std::string> seen;
  server_options options = one_core();
  options.read_buffer_bytes = 4096;
  test_server server(
      [&](connection& conn) -> task<> {
        std::string target(text.size(), '\0');
        const bool whole = co_await conn.read_full(bytes_of(target));
        seen.put(whole ? target : "failed");
      },
      options);
  client peer = server.connect();
  peer.send_all(text);
  CHECK((seen.take() == text));
}

TEST_CASE_FIXTURE(clean_process, "reading: read_until finds a delimiter wherever the stream is split") {
  test_server server([](connection& conn) -> task<> {
    while (auto message = co_await conn.read_until("\r\n\r\n", 1000)) {
      const std::string answer = "<" + std::string(message.text()) + ">";
      if (!co_await conn.write(answer)) co_return;
    }
  });
  const std::string stream = "one\r\n\r\n\r\n\r\ntwo\r\n\r\r\n\r\n";
  const std::string answers = "<one\r\n\r\n><\r\n\r\n><two\r\n\r\r\n\r\n>";
  for (std::size_t cut = 0; cut <= stream.size(); ++cut) {
    client peer = server.connect();
    peer.send_all(std::string_view(stream).substr(0, cut));
    // The answer to what is complete shows that the first part was read before the second is sent.
    const std::string_view complete = cut < 7 ? "" : cut < 11 ? "<one\r\n\r\n>" : "<one\r\n\r\n><\r\n\r\n>";
    const std::size_t early = cut == stream.size() ? 0 : complete.size();
    CHECK(peer.recv_exactly(early) == complete.substr(0, early));
    peer.send_all(std::string_view(stream).substr(cut));
    peer.half_close();
    CHECK(peer.recv_to_end() == std::string_view(answers).substr(early));
  }
}

TEST_CASE_FIXTURE(clean_process, "reading: read_until counts the delimiter into its limit") {
  channel<reading> seen;
  test_server server([&](connection& conn) -> task<> {
    auto message = co_await conn.read_until("\n", 8);
    seen.put({std::string(message.text()), conn.error()});
    if (message) co_return;
    // What was received stays.
    auto rest = co_await conn.read();
    seen.put({std::string(rest.text()), conn.error()});
  });
  SUBCASE("just fits") {
    client peer = server.connect();
    peer.send_all("1234567\n");
    CHECK(seen.take().text == "1234567\n");
  }
  SUBCASE("one too many") {
    client peer = server.connect();
    peer.send_all("12345678\n");
    CHECK(seen.take().error == errc::limit_exceeded);
    CHECK(seen.take().text == "12345678\n");
  }
  SUBCASE("one too many in two parts") {
    client peer = server.connect();
    peer.send_all("1234567");
    peer.send_all("8");
    CHECK(seen.take().error == errc::limit_exceeded);
    CHECK(seen.take().text == "12345678");
  }
}

TEST_CASE_FIXTURE(clean_process, "reading: read_until with a limit above the buffer counts as the buffer size") {
  channel<reading> seen;
  server_options options = one_core();
  options.read_buffer_bytes = 2048;
  test_server server(
      [&](connection& conn) -> task<> {
        auto message = co_await conn.read_until("\n", 1'000'000);
        seen.put({std::string(message.text()), conn.error()});
      },
      options);
  client fitting = server.connect();
  fitting.send_all(std::string(2047, 'a') + "\n");
  CHECK(seen.take().text.size() == 2048);
  client larger = server.connect();
  larger.send_all(std::string(2048, 'a') + "\n");
  CHECK(seen.take().error == errc::limit_exceeded);
}

TEST_CASE_FIXTURE(clean_process, "reading: read_until at the end of the stream leaves what came to read") {
  channel<reading> seen;
  test_server server([&](connection& conn) -> task<> {
    auto message = co_await conn.read_until("\n", 100);
    seen.put({std::string(message.text()), conn.error()});
    auto rest = co_await conn.read();
    seen.put({std::string(rest.text()), {}});
    auto nothing = co_await conn.read();
    seen.put({std::string(nothing.text()), conn.error()});
  });
  client peer = server.connect();
  peer.send_all("no end");
  peer.half_close();
  CHECK(seen.take().error == errc::end_of_stream);
  CHECK(seen.take().text == "no end");
  const reading last = seen.take();
  CHECK(last.text.empty());
  CHECK(last.error == errc::end_of_stream);
}

TEST_CASE_FIXTURE(clean_process, "reading: unread bytes are what the next read answers first") {
  channel<std::string> seen;
  test_server server([&](connection& conn) -> task<> {
    auto data = co_await conn.read();
    conn.unread(data.subview(5));
    seen.put(std::to_string(conn.buffered_bytes()));
    auto again = co_await conn.read_until(" ", 100);
    seen.put(std::string(again.text()));
    conn.unread(2);
    std::array<std::byte, 3> target;
    const std::size_t count = co_await conn.read(target);
    seen.put(std::string(reinterpret_cast<const char*>(target.data()), count));
  });
  client peer = server.connect();
  peer.send_all("helloworld xyz");
  CHECK(seen.take() == "9");
  CHECK(seen.take() == "world ");
  const std::string back = seen.take();  // "d ", or with what follows: a read may answer less than there is
  CHECK(std::string("d x").starts_with(back));
  CHECK_FALSE(back.empty());
}

TEST_CASE_FIXTURE(clean_process, "reading: unread of more than the last view is refused") {
  channel<std::string> seen;
  test_server server([&](connection& conn) -> task<> {
    const auto try_unread = [&](std::size_t count) {
      try {
        conn.unread(count);
        seen.put("taken");
      } catch (const std::length_error&) {
        seen.put("refused");
      }
    };
    try_unread(1);  // no view yet
    auto data = co_await conn.read();
    try_unread(data.size() + 1);
    conn.release_view();
    try_unread(1);
    std::array<std::byte, 3> target;
    co_await conn.read(target);
    try_unread(1);  // read into the caller's memory: there is no view
  });
  client peer = server.connect();
  peer.send_all("12345");
  for (int i = 0; i < 3; ++i) CHECK(seen.take() == "refused");
  peer.send_all("678");
  CHECK(seen.take() == "refused");
}

TEST_CASE_FIXTURE(clean_process, "reading: buffered_bytes counts what a message left over") {
  channel<std::size_t> seen;
  test_server server([&](connection& conn) -> task<> {
    seen.put(conn.buffered_bytes());
    while (co_await conn.read_until("\n", 100)) seen.put(conn.buffered_bytes());
  });
  client peer = server.connect();
  CHECK(seen.take() == 0);
  peer.send_all("one\ntwo\nthr");  // one segment, hence one recv
  CHECK(seen.take() == 7);
  CHECK(seen.take() == 3);
}

TEST_CASE_FIXTURE(clean_process, "reading: a core that has lent its last buffer lends it again once released") {
  server_options options = one_core();
  options.read_buffers_per_core = 1;
  std::atomic<bool> release = false;
  event has_view;
  test_server server(
      [&](connection& conn) -> task<> {
        auto data = co_await conn.read();
        if (data.text() == "hold") {
          has_view.set();
          co_await until(conn, release);
          conn.release_view();
          co_await conn.read();  // stays open: only release_view can have given the buffer back
        } else {
          co_await conn.write(data);
        }
      },
      options);
  client holder = server.connect();
  holder.send_all("hold");
  has_view.wait();
  client second = server.connect();
  client third = server.connect();
  second.send_all("two");
  third.send_all("three");
  CHECK(eventually([&] { return server.total().buffers_exhausted >= 1; }));
  release = true;
  CHECK(second.recv_exactly(3) == "two");
  CHECK(third.recv_exactly(5) == "three");
}

// Every way to read, at random, against the stream that is known to come.
TEST_CASE_FIXTURE(clean_process, "reading: random reads see the stream that was sent") {
  const unsigned seed = std::random_device()();
  CAPTURE(seed);
  std::string stream;
  for (std::mt19937 random(seed); stream.size() < 300'000;) {
    for (auto left = random() % 200; left > 0; --left)
      stream += static_cast<char>('a' + random() % 26);
    stream += '\n';
  }
  channel<std::string> result;
  server_options options = one_core();
  options.read_buffer_bytes = 1024;
  test_server server(
      [&](connection& conn) -> task<> {
        std::mt19937 random(seed + 1);
        std::size_t position = 0;
        std::string target;
        while (position < stream.size()) {
          const std::string_view expected = std::string_view(stream).substr(position);
          std::string got;
          const unsigned way = random() % 4;
          if (way == 0) {
            auto data = co_await conn.read();
            got = data.text();
            if (!got.empty() && random() % 3 == 0) {
              const std::size_t back = random() % got.size();
              conn.unread(back);
              got.resize(got.size() - back);
            }
          } else if (way == 1) {
            auto line = co_await conn.read_until("\n", 256);
            got = line.text();
            if (got.size() != expected.find('\n') + 1) break;
          } else {
            target.assign(std::min<std::size_t>(expected.size(), 1 + random() % 3000), '\0');
            if (way == 2) {
              const std::size_t count = co_await conn.read(bytes_of(target));
              got = target.substr(0, count);
            } else {
              const bool whole = co_await conn.read_full(bytes_of(target));
              if (whole) got = target;
            }
          }
          if (got.empty() || !expected.starts_with(got)) break;
          position += got.size();
        }
        result.put(position == stream.size() ? "same" : "differs at " + std::to_string(position));
      },
      options);
  client peer = server.connect();
  std::mt19937 random(seed + 2);
  for (std::size_t sent = 0; sent < stream.size();) {
    const std::size_t count = std::min<std::size_t>(stream.size() - sent, 1 + random() % 5000);
    peer.send_all(std::string_view(stream).substr(sent, count));
    sent += count;
  }
  CHECK(result.take() == "same");
}

}  // namespace
}  // namespace percore::test
