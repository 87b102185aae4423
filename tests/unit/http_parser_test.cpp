// What percore-http makes of bytes: request heads, chunked bodies, dates. Its parsers are headers without a
// library.
#include <doctest/doctest.h>

#include <cstdint>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "perf/servers/percore-http/request_parser.hpp"

namespace {

using percore_http::parse_request;
using percore_http::parse_result;
using percore_http::request;
using percore_http::request_limits;
using std::string;
using std::string_view;
using namespace std::string_literals;

constexpr request_limits limits;

parse_result parse(string_view text, request& out) {
  return parse_request(text, limits, out);
}

// What the head means, in one line.
string describe(const request& r) {
  string text(r.method);
  text += ' ';
  text += r.target;
  text += r.is_http_1_1 ? " 1.1" : " 1.0";
  if (r.keep_alive) text += " keep-alive";
  if (r.is_head) text += " head";
  if (r.chunked) text += " chunked";
  if (r.expect_continue) text += " expect";
  if (r.content_length != 0) text += " length=" + std::to_string(r.content_length);
  return text;
}

// A well-formed request line and Host, for cases about the other fields.
string with(string_view fields, string_view version = "1.1") {
  return "GET / HTTP/" + string(version) + "\r\nHost: h\r\n" + string(fields) + "\r\n";
}

struct good_case {
  string head;
  const char* meaning;
};

const std::vector<good_case>& good_cases() {
  static const std::vector<good_case> cases = {
      {"GET / HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n\r\n", "GET / 1.1 keep-alive"},
      {"GET /a/b?c=%20d|e HTTP/1.1\r\nHost: x\r\nUser-Agent: a b\tc (\xc3\xa4)\r\n\r\n",
       "GET /a/b?c=%20d|e 1.1 keep-alive"},
      {"HEAD / HTTP/1.1\r\nhOsT:x\r\n\r\n", "HEAD / 1.1 keep-alive head"},
      {"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", "OPTIONS * 1.1 keep-alive"},
      {"GET http://x.example:80/p HTTP/1.1\r\nHost: x.example:80\r\n\r\n",
       "GET http://x.example:80/p 1.1 keep-alive"},
      {"GET HTTPS://x HTTP/1.1\r\nHost: x\r\n\r\n", "GET HTTPS://x 1.1 keep-alive"},
      {"CONNECT x:443 HTTP/1.1\r\nHost: x:443\r\n\r\n", "CONNECT x:443 1.1 keep-alive"},
      {"M-SEARCH / HTTP/1.1\r\nHost: x\r\n\r\n", "M-SEARCH / 1.1 keep-alive"},
      {"\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n", "GET / 1.1 keep-alive"},
      {"GET / HTTP/1.1\r\nHost:\r\n\r\n", "GET / 1.1 keep-alive"},
      {"GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", "GET / 1.1 keep-alive"},
      {"GET / HTTP/1.1\r\nHost:\t h \t\r\nX:\r\nY: \r\n\r\n", "GET / 1.1 keep-alive"},
      {"GET / HTTP/1.0\r\n\r\n", "GET / 1.0"},
      {"GET / HTTP/1.9\r\nHost: x\r\n\r\n", "GET / 1.1 keep-alive"},
      {with("Connection: close\r\n"), "GET / 1.1"},
      {with("connection:CLOSE\r\n"), "GET / 1.1"},
      {with("Connection: Upgrade , ,\tClose\r\n"), "GET / 1.1"},
      {with("Connection: keep-alive\r\nConnection: close\r\n"), "GET / 1.1"},
      {with("Connection: closed\r\n"), "GET / 1.1 keep-alive"},
      {with("Connection: \r\n"), "GET / 1.1 keep-alive"},
      {with("Connection: Keep-Alive\r\n", "1.0"), "GET / 1.0 keep-alive"},
      {with("Connection: keep-alive, close\r\n", "1.0"), "GET / 1.0"},
      {with("Content-Length: 0\r\n"), "GET / 1.1 keep-alive"},
      {with("Content-Length:  12 \r\n"), "GET / 1.1 keep-alive length=12"},
      {with("Content-Length: 00012\r\n"), "GET / 1.1 keep-alive length=12"},
      {with("Content-Length: 1048576\r\n"), "GET / 1.1 keep-alive length=1048576"},
      {with("Content-Lengths: x\r\n"), "GET / 1.1 keep-alive"},
      {with("Transfer-Encoding: chunked\r\n"), "GET / 1.1 keep-alive chunked"},
      {with("transfer-encoding: , Chunked ,\r\n"), "GET / 1.1 keep-alive chunked"},
      {with("Expect: 100-Continue\r\nContent-Length: 3\r\n"), "GET / 1.1 keep-alive expect length=3"},
      {with("Expect: 100-continue\r\n", "1.0"), "GET / 1.0"},
      {with("Expect: nonsense\r\n", "1.0"), "GET / 1.0"},
  };
  return cases;
}

struct bad_case {
  string input;
  std::uint16_t status;
};

const std::vector<bad_case>& bad_cases() {
  static const std::vector<bad_case> cases = {
      // line ends and forbidden characters
      {"\n", 400},
      {"GET / HTTP/1.1\nHost: x\n\n", 400},
      {"GET / HTTP/1.1\r\nHost: x\n\r\n", 400},
      {"GET / HTTP/1.1\r\nHost: x\r\n\n", 400},
      {"GET / HTTP/1.1\rHost: x\r\n\r\n", 400},
      {"GET / HTTP/1.1\r\nHost: x\rY: z\r\n\r\n", 400},
      {"GET / HTTP/1.1\r\nHost: x\r\n\rX", 400},
      {"GET / HTTP/1.1\r\r\n", 400},
      {"GET / HTTP/1.1\r\nHost: x\r\nX: a\0b\r\n\r\n"s, 400},
      {"GET / HTTP/1.1\r\nHost: x\r\nX: a\x7f\r\n\r\n", 400},
      {"GET / HTTP/1.1\r\nHost: x\r\nX: a\x1b[0m\r\n\r\n", 400},
      {"\0GET / HTTP/1.1\r\n"s, 400},
      {"\x16\x03\x01\x02", 400},  // a TLS client
      // request line
      {" GET / HTTP/1.1\r\n", 400},
      {"GET  / HTTP/1.1\r\n", 400},
      {"GET /  HTTP/1.1\r\n", 400},
      {"GET / HTTP/1.1 \r\n", 400},
      {"GET\t/ HTTP/1.1\r\n", 400},
      {"GET /\r\n", 400},
      {"GET\r\n", 400},
      {"G(T / HTTP/1.1\r\n", 400},
      {"GET /a#b HTTP/1.1\r\n", 400},
      {"GET /\xc3\xa4 HTTP/1.1\r\n", 400},
      {"GET a HTTP/1.1\r\n", 400},
      {"GET * HTTP/1.1\r\n", 400},
      {"GET http:// HTTP/1.1\r\n", 400},
      {"GET / http/1.1\r\n", 400},
      {"GET / HTTP/1\r\n", 400},
      {"GET / HTTP/11.1\r\n", 400},
      {"GET / HTTP/1.10\r\n", 400},
      {"GET / HTTP/x.1\r\n", 400},
      {"GET / HTTP/2.0\r\n", 505},
      {"GET / HTTP/0.9\r\n", 505},
      {"PRI * HTTP/2.0\r\n", 400},
      {string(33, 'A') + " / HTTP/1.1\r\n", 501},
      // field lines
      {"GET / HTTP/1.1\r\n Host: x\r\n\r\n", 400},
      {"GET / HTTP/1.1\r\nHost: x\r\nX: a\r\n b\r\n\r\n", 400},
      {"GET / HTTP/1.1\r\nHost: x\r\nX: a\r\n\tb\r\n\r\n", 400},
      {"GET / HTTP/1.1\r\nHost : x\r\n\r\n", 400},
      {"GET / HTTP/1.1\r\n: x\r\n\r\n", 400},
      {"GET / HTTP/1.1\r\nHost\r\n\r\n", 400},
      {"GET / HTTP/1.1\r\nHo st: x\r\n\r\n", 400},
      // Host
      {"GET / HTTP/1.1\r\n\r\n", 400},
      {"GET / HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n", 400},
      {"GET / HTTP/1.0\r\nHost: x\r\nHost: x\r\n\r\n", 400},
      {"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400},
      {"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400},
      {"GET / HTTP/1.1\r\nHost: a@b\r\n\r\n", 400},
      // framing
      {with("Content-Length:\r\n"), 400},
      {with("Content-Length: -1\r\n"), 400},
      {with("Content-Length: +1\r\n"), 400},
      {with("Content-Length: 1 1\r\n"), 400},
      {with("Content-Length: 0x1\r\n"), 400},
      {with("Content-Length: 1, 1\r\n"), 400},
      {with("Content-Length: 1\r\nContent-Length: 1\r\n"), 400},
      {with("Content-Length: 1048577\r\n"), 413},
      {with("Content-Length: 18446744073709551616\r\n"), 413},
      {with("Content-Length: 99999999999999999999999999\r\n"), 413},
      {with("Content-Length: 1\r\nTransfer-Encoding: chunked\r\n"), 400},
      {with("Transfer-Encoding: chunked\r\nContent-Length: 1\r\n"), 400},
      {with("Transfer-Encoding: chunked\r\n", "1.0"), 400},
      {with("Transfer-Encoding:\r\n"), 400},
      {with("Transfer-Encoding: gzip\r\n"), 400},
      {with("Transfer-Encoding: identity\r\n"), 400},
      {with("Transfer-Encoding: chunked, gzip\r\n"), 400},
      {with("Transfer-Encoding: chunked, chunked\r\n"), 400},
      {with("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"), 400},
      {with("Transfer-Encoding: chunked;q=1\r\n"), 400},
      {with("Transfer-Encoding: xchunked\r\n"), 400},
      {with("Transfer-Encoding: gzip, chunked\r\n"), 501},
      {with("Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n"), 501},
      {with("Expect: 200-ok\r\n"), 417},
  };
  return cases;
}

}  // namespace

TEST_CASE("http parser: well-formed heads") {
  for (const good_case& c : good_cases()) {
    CAPTURE(c.head);
    request out;
    REQUIRE(parse(c.head, out).is_complete());
    CHECK(out.head_bytes == c.head.size());
    CHECK(describe(out) == c.meaning);
  }
}

TEST_CASE("http parser: a head cut at any byte needs more and what follows it changes nothing") {
  for (const good_case& c : good_cases()) {
    CAPTURE(c.head);
    for (std::size_t cut = 0; cut < c.head.size(); ++cut) {
      // A copy of just that size, so that the sanitizers see a read behind the end.
      const std::vector<char> prefix(c.head.begin(), c.head.begin() + static_cast<std::ptrdiff_t>(cut));
      request out;
      REQUIRE(parse({prefix.data(), prefix.size()}, out).needs_more());
    }
    for (const string& rest : {"GET / HTTP/1.1\r\n"s, "\0\n"s, "\r\n\r\n"s, c.head}) {
      request out;
      const string input = c.head + rest;  // the views of `out` point into it
      REQUIRE(parse(input, out).is_complete());
      CHECK(out.head_bytes == c.head.size());
      CHECK(describe(out) == c.meaning);
    }
  }
}

TEST_CASE("http parser: malformed heads") {
  for (const bad_case& c : bad_cases()) {
    CAPTURE(c.input);
    request out;
    const parse_result result = parse(c.input, out);
    REQUIRE(result.is_error());
    CHECK(result.error_status() == c.status);
  }
}

TEST_CASE("http parser: an error is the same however the bytes arrive and it stays") {
  for (const bad_case& c : bad_cases()) {
    CAPTURE(c.input);
    bool failed = false;
    for (std::size_t cut = 0; cut <= c.input.size(); ++cut) {
      const std::vector<char> prefix(c.input.begin(), c.input.begin() + static_cast<std::ptrdiff_t>(cut));
      request out;
      const parse_result result = parse({prefix.data(), prefix.size()}, out);
      if (failed || !result.needs_more()) {
        failed = true;
        REQUIRE(result == parse_result::error(c.status));
      }
    }
    CHECK(failed);
  }
}

TEST_CASE("http parser: any byte anywhere") {
  // Against a plain statement of the rule: in a field value every byte but control characters other than the
  // tab.
  for (int byte = 0; byte < 256; ++byte) {
    for (std::size_t length = 0; length < 20; ++length) {
      string value(length, 'v');
      value += static_cast<char>(byte);
      value += "0123456789";
      request out;
      const bool allowed = byte == '\t' || (byte >= 0x20 && byte != 0x7f);
      CAPTURE(byte);
      CAPTURE(length);
      REQUIRE(parse(with("X: " + value + "\r\n"), out).is_complete() == allowed);
    }
  }
  // And no byte may lead to more than a refusal: seeded noise on a good head.
  std::mt19937 random(20240607);
  for (int i = 0; i < 50'000; ++i) {
    string head = good_cases()[random() % good_cases().size()].head;
    for (unsigned change = random() % 4; change != 0; --change) {
      head[random() % head.size()] = static_cast<char>(random());
    }
    const std::vector<char> exact(head.begin(), head.end());
    request out;
    const parse_result result = parse({exact.data(), exact.size()}, out);
    if (result.is_complete()) REQUIRE(out.head_bytes <= head.size());
  }
}

TEST_CASE("http parser: pipelined requests") {
  string input;
  std::vector<const good_case*> sent;
  for (const good_case& c : good_cases()) {
    input += c.head;
    sent.push_back(&c);
  }
  string_view rest = input;
  for (const good_case* c : sent) {
    request out;
    REQUIRE(parse(rest, out).is_complete());
    CHECK(describe(out) == c->meaning);
    rest.remove_prefix(out.head_bytes);
  }
  CHECK(rest.empty());
}

TEST_CASE("http parser: limits") {
  const auto head_of = [](std::size_t bytes) {
    const string frame = with("X: \r\n");
    return with("X: " + string(bytes - frame.size(), 'v') + "\r\n");
  };
  constexpr request_limits small{.head_bytes = 100, .body_bytes = 10};
  request out;
  CHECK(parse_request(head_of(100), small, out).is_complete());
  CHECK(parse_request(head_of(101), small, out) == parse_result::error(431));
  CHECK(parse_request(head_of(500), small, out) == parse_result::error(431));
  // Told as soon as the limit is reached, and not a byte earlier.
  CHECK(parse_request(head_of(500).substr(0, 99), small, out).needs_more());
  CHECK(parse_request(head_of(500).substr(0, 100), small, out) == parse_result::error(431));

  const string long_target = "GET /" + string(200, 'a');
  CHECK(parse_request(long_target.substr(0, 99), small, out).needs_more());
  CHECK(parse_request(long_target, small, out) == parse_result::error(414));
  string empty_lines;
  while (empty_lines.size() < 100) empty_lines += "\r\n";
  CHECK(parse_request(empty_lines, small, out) == parse_result::error(414));

  CHECK(parse_request(with("Content-Length: 10\r\n"), small, out).is_complete());
  CHECK(parse_request(with("Content-Length: 11\r\n"), small, out) == parse_result::error(413));
  // The default head limit is 8 KiB.
  CHECK(parse(head_of(8192), out).is_complete());
  CHECK(parse(head_of(8193), out) == parse_result::error(431));
}

TEST_CASE("http parser: after an error it is still known that the response to HEAD has no body") {
  request out;
  CHECK(parse("HEAD / HTTP/1.1\r\n\r\n", out).is_error());
  CHECK(out.is_head);
  CHECK(parse("GET / HTTP/1.1\r\n\r\n", out).is_error());
  CHECK_FALSE(out.is_head);
}
