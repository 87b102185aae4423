// How percore-http reads chunked bodies and writes dates. Both are headers without a library.
#include <doctest/doctest.h>

#include <chrono>
#include <cstdint>
#include <ctime>
#include <string>
#include <string_view>
#include <vector>

#include "perf/servers/percore-http/chunked_decoder.hpp"
#include "perf/servers/percore-http/http_date.hpp"

namespace {

using percore_http::chunked_decoder;
using percore_http::parse_result;
using percore_http::request_limits;
using std::string;
using std::string_view;
using namespace std::string_literals;

struct chunked_case {
  string body;
  std::uint16_t status;  // 200: complete
};

const std::vector<chunked_case>& chunked_cases() {
  static const std::vector<chunked_case> cases = {
      {"0\r\n\r\n", 200},
      {"5\r\nhello\r\n0\r\n\r\n", 200},
      {"A\r\n0123456789\r\na\r\n\r\n\r\n\r\n0\n\0\0\r\n0\r\n\r\n"s, 200},
      {"0005;name=value\r\nhello\r\n000\r\n\r\n", 200},
      {"5 ; name=\"a b\"\r\nhello\r\n0;x\r\n\r\n", 200},
      {"5\r\nhello\r\n0\r\nX-Sum: 12\r\nY:\r\n\r\n", 200},
      {"\r\n", 400},
      {"g\r\n", 400},
      {"-1\r\n", 400},
      {"0x5\r\nhello\r\n", 400},
      {" 5\r\nhello\r\n", 400},
      {"5 \r\nhello\r\n", 400},
      {"5\nhello\r\n", 400},
      {"5\r\nhello0\r\n", 400},
      {"5\r\nhello\n0\r\n", 400},
      {"5\r\nhell\r\n0\r\n\r\n", 400},
      {"5;a\nb\r\nhello\r\n", 400},
      {"5;a\0b\r\nhello\r\n"s, 400},
      {"0\r\nX Y: 1\r\n\r\n", 400},
      {"0\r\n: 1\r\n\r\n", 400},
      {"0\r\nX: 1\n\r\n", 400},
      {"0\r\n folded\r\n\r\n", 400},
      {"0\r\n\rX", 400},
      {"65\r\n", 413},
      {"FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF\r\n", 413},
      {"64\r\n" + string(100, 'x') + "\r\n1\r\n", 413},
      {string(200, '0'), 431},
      {"5;" + string(200, 'x'), 431},
      {"0\r\nX: " + string(200, 'x'), 431},
  };
  return cases;
}

constexpr request_limits chunked_limits{.head_bytes = 100, .body_bytes = 100};

// Feeds `body` in pieces of `step` bytes; the index of the first byte that was not taken goes to `end`.
parse_result feed(string_view body, std::size_t step, std::size_t& end) {
  chunked_decoder decoder(chunked_limits);
  end = 0;
  while (end < body.size()) {
    string_view piece = body.substr(end, step);
    end += piece.size();
    const parse_result result = decoder.feed(piece);
    end -= piece.size();
    if (!result.needs_more()) return result;
    REQUIRE(piece.empty());
  }
  return parse_result::need_more();
}

}  // namespace

TEST_CASE("http chunked bodies: complete or refused in pieces of any size") {
  for (const chunked_case& c : chunked_cases()) {
    CAPTURE(c.body);
    for (std::size_t step = 1; step <= c.body.size(); ++step) {
      std::size_t end = 0;
      const parse_result result = feed(c.body, step, end);
      REQUIRE(result == (c.status == 200 ? parse_result::complete() : parse_result::error(c.status)));
      if (result.is_complete()) REQUIRE(end == c.body.size());
    }
  }
}

TEST_CASE("http chunked bodies: need more until the end and leave what follows") {
  for (const chunked_case& c : chunked_cases()) {
    if (c.status != 200) continue;
    CAPTURE(c.body);
    std::size_t end = 0;
    CHECK(feed(c.body.substr(0, c.body.size() - 1), 7, end).needs_more());
    const string followed = c.body + "GET / HTTP/1.1\r\n";
    for (std::size_t step = 1; step <= followed.size(); ++step) {
      REQUIRE(feed(followed, step, end).is_complete());
      REQUIRE(end == c.body.size());
    }
  }
}

TEST_CASE("http date: IMF-fixdate") {
  const auto text = [](std::time_t when) {
    const percore_http::date_text date = percore_http::format_date(when);
    return string(date.data(), date.size());
  };
  CHECK(text(784111777) == "Sun, 06 Nov 1994 08:49:37 GMT");  // the example of RFC 9110 5.6.7
  CHECK(text(0) == "Thu, 01 Jan 1970 00:00:00 GMT");
  CHECK(text(1709210096) == "Thu, 29 Feb 2024 12:34:56 GMT");
  CHECK(text(4102444799) == "Thu, 31 Dec 2099 23:59:59 GMT");
}

TEST_CASE("http date: the wall clock is read when the monotonic one says that a second is over") {
  percore_http::second_clock clock;
  const auto start = std::chrono::steady_clock::now();
  const std::time_t before = std::time(nullptr);
  clock.advance(start);
  const std::time_t first = clock.second();
  CHECK(first >= before);
  CHECK(first <= std::time(nullptr));
  CHECK(clock.text() == percore_http::format_date(first));
  clock.advance(start);  // the same turn: nothing is read
  CHECK(clock.second() == first);
  clock.advance(start + std::chrono::seconds(2));  // over in any case: read again
  CHECK(clock.second() >= first);
  CHECK(clock.second() <= std::time(nullptr));
  CHECK(clock.text() == percore_http::format_date(clock.second()));
}
