// What percore-http makes of the bytes of one read, and its memory of the last head: whatever came before,
// the answer must be that of a parser that sees the bytes for the first time.
#include <doctest/doctest.h>

#include <chrono>
#include <cstddef>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "perf/servers/percore-http/handler.hpp"

namespace {

using percore_http::body_kind;
using percore_http::core_state;
using percore_http::handler_options;
using percore_http::known_head;
using percore_http::request_batch;
using percore_http::response_layout;
using std::string;
using std::string_view;
using then = request_batch::then;

// As many as fit 32 KiB, at most 32, get their answers in one write.
const response_layout& layout() {
  static const response_layout made(body_kind::plain, 16);
  return made;
}

struct fresh_core : core_state {
  explicit fresh_core(const handler_options& options = {}) : core_state(options, layout(), false) {}
};

const string get = "GET / HTTP/1.1\r\nHost: h\r\n\r\n";
const string closing = "GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
const string head_request = "HEAD" + get.substr(3);
const string with_body = "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc";

// A head of so many bytes, at least 31.
string head_of(std::size_t bytes) {
  const string_view frame = "GET / HTTP/1.1\r\nHost: h\r\nA:\r\n\r\n";
  string text(frame.substr(0, frame.size() - 4));
  text.append(bytes - frame.size(), 'v');
  return text + "\r\n\r\n";
}

string repeat(string_view text, int times) {
  string all;
  for (int i = 0; i < times; ++i) all += text;
  return all;
}

string describe(const request_batch& batch) {
  constexpr const char* names[] = {"read on", "close", "read more", "ask slow"};
  return std::to_string(batch.answers) + " answers, " + std::to_string(batch.bytes) + " bytes, " +
         names[static_cast<std::size_t>(batch.next)];
}

// All that a core makes of `data`, batch by batch, as the handler asks for it.
string all_batches(core_state& core, string_view data, bool stopping = false) {
  string text;
  while (true) {
    const request_batch batch = core.find_requests(data, stopping);
    text += describe(batch) + "; ";
    data.remove_prefix(batch.bytes);
    if (batch.next != then::read_on || data.empty()) return text;
  }
}

string by_parser_alone(string_view data, bool stopping = false) {
  string text;
  while (true) {
    fresh_core core;
    const request_batch batch = core.find_requests(data, stopping);
    text += describe(batch) + "; ";
    data.remove_prefix(batch.bytes);
    if (batch.next != then::read_on || data.empty()) return text;
  }
}

}  // namespace

TEST_CASE("http_requests: a known head is found by all of its bytes") {
  for (std::size_t bytes = 16; bytes <= 64; ++bytes) {  // every length of the overlap of the last two words
    CAPTURE(bytes);
    string head;
    for (std::size_t i = 0; i < bytes; ++i) head += static_cast<char>('A' + i);
    known_head known;
    CHECK_FALSE(known.begins(head));
    known.learn(head, true);
    CHECK(known.size() == bytes);
    CHECK(known.begins(head));
    CHECK(known.begins(head + "x"));
    CHECK(known.begins(head + head));
    CHECK_FALSE(known.begins("x" + head));
    for (std::size_t shorter = 0; shorter < bytes; ++shorter)
      CHECK_FALSE(known.begins(string(head, 0, shorter)));
    for (std::size_t place = 0; place < bytes; ++place) {
      for (const int bit : {1, 0x80}) {
        string other = head;
        other[place] = static_cast<char>(other[place] ^ bit);
        CAPTURE(place);
        CHECK_FALSE(known.begins(other));
        CHECK_FALSE(known.begins(other + head));
      }
    }
  }
}

TEST_CASE("http_requests: the head that was learned last counts, up to 512 bytes") {
  known_head known;
  known.learn(get, true);
  known.learn(closing, false);
  CHECK(known.begins(closing));
  CHECK_FALSE(known.keep_alive());
  CHECK_FALSE(known.begins(get));
  known.learn(get, true);  // shorter than the one before
  CHECK(known.begins(get));
  CHECK(known.keep_alive());
  CHECK_FALSE(known.begins(closing));
  known.learn(string(513, 'x'), false);
  CHECK(known.begins(get));
  CHECK(known.keep_alive());
  known.learn(string(512, 'x'), false);
  CHECK(known.begins(string(512, 'x')));
  CHECK_FALSE(known.begins(string(511, 'x') + 'y'));
}

TEST_CASE("http_requests: the same head again, alone and pipelined") {
  fresh_core core;
  for (int i = 0; i < 3; ++i) {
    CHECK(describe(core.find_requests(get, false)) == describe({get.size(), 1, then::read_on}));
    CHECK(core.last_head().begins(get));
  }
  for (const int count : {2, 5, 32}) {
    const string data = repeat(get, count);
    CHECK(describe(core.find_requests(data, false)) ==
          describe({data.size(), static_cast<std::uint32_t>(count), then::read_on}));
  }
  // More than one write answers: the rest is for the next batch.
  CHECK(describe(core.find_requests(repeat(get, 40), false)) ==
        describe({32 * get.size(), 32, then::read_on}));
  CHECK(describe(core.find_requests(repeat(get, 2) + get.substr(0, 20), false)) ==
        describe({2 * get.size(), 2, then::read_more}));
  CHECK(describe(core.find_requests({}, false)) == describe({0, 0, then::read_on}));
}

TEST_CASE("http_requests: close and keep-alive are not taken for each other") {
  fresh_core core;
  const string close_alone = describe({closing.size(), 1, then::close});
  for (int i = 0; i < 2; ++i) {
    CHECK(describe(core.find_requests(closing, false)) == close_alone);
    CHECK(describe(core.find_requests(closing, false)) == close_alone);  // known by now
    CHECK(describe(core.find_requests(get, false)) == describe({get.size(), 1, then::read_on}));
    CHECK(describe(core.find_requests(get, false)) == describe({get.size(), 1, then::read_on}));
  }
  // What follows the last request of a connection is not answered, and its answer is not in one write with
  // others.
  CHECK(describe(core.find_requests(closing + get, false)) == close_alone);
  CHECK(describe(core.find_requests(get + closing, false)) == describe({get.size(), 1, then::read_on}));
  CHECK(describe(core.find_requests(closing, false)) == close_alone);
  CHECK(describe(core.find_requests(repeat(closing, 3), false)) == close_alone);
}

TEST_CASE("http_requests: without keep-alive a known head closes too") {
  handler_options options;
  options.keep_alive = false;
  fresh_core core(options);
  for (int i = 0; i < 3; ++i) {
    CHECK(describe(core.find_requests(get + get, false)) == describe({get.size(), 1, then::close}));
  }
}

TEST_CASE("http_requests: one byte that differs from the known head is seen wherever it is") {
  for (std::size_t bytes = 32; bytes < 48; ++bytes) {
    const string head = head_of(bytes);
    REQUIRE(head.size() == bytes);
    for (std::size_t place = 0; place < bytes; ++place) {
      for (const char other : {'\0', 'x', 'E', '9', ' '}) {
        string changed = head;
        changed[place] = other;
        fresh_core core;
        REQUIRE(core.find_requests(head, false).answers == 1);
        REQUIRE(core.last_head().begins(head));
        CAPTURE(bytes);
        CAPTURE(place);
        CHECK(all_batches(core, changed) == by_parser_alone(changed));
        fresh_core pipelining;
        CHECK(all_batches(pipelining, head + changed + head) == by_parser_alone(head + changed + head));
      }
    }
  }
}

TEST_CASE("http_requests: the beginning of the known head waits for its rest") {
  fresh_core core;
  REQUIRE(core.find_requests(get, false).answers == 1);
  for (std::size_t bytes = 1; bytes < get.size(); ++bytes) {
    CAPTURE(bytes);
    CHECK(describe(core.find_requests(get.substr(0, bytes), false)) == describe({0, 0, then::read_more}));
    // Bytes behind the view that was given are not looked at, though they would complete the head.
    CHECK(describe(core.find_requests(string_view(get).substr(0, bytes), false)) ==
          describe({0, 0, then::read_more}));
  }
}

TEST_CASE("http_requests: a head of more than 512 bytes is served and not learned") {
  fresh_core core;
  REQUIRE(core.find_requests(get, false).answers == 1);
  for (const std::size_t bytes : {std::size_t{513}, std::size_t{514}, std::size_t{4000}}) {
    const string large = head_of(bytes);
    for (int i = 0; i < 2; ++i) {
      CHECK(describe(core.find_requests(large + large, false)) == describe({2 * bytes, 2, then::read_on}));
      CHECK(core.last_head().begins(get));
    }
  }
  const string largest = head_of(512);
  for (int i = 0; i < 2; ++i) {
    CHECK(describe(core.find_requests(largest + largest, false)) == describe({1024, 2, then::read_on}));
    CHECK(core.last_head().begins(largest));
  }
}

TEST_CASE("http_requests: what is not answered from its head alone is not learned") {
  fresh_core core;
  REQUIRE(core.find_requests(get, false).answers == 1);
  CHECK(describe(core.find_requests(with_body, false)) == describe({with_body.size(), 1, then::read_on}));
  CHECK(core.last_head().begins(get));
  string other_body = with_body;
  other_body.replace(other_body.size() - 3, 3, "GET");
  CHECK(all_batches(core, with_body + other_body + get) == by_parser_alone(with_body + other_body + get));
  CHECK(describe(core.find_requests(with_body.substr(0, with_body.size() - 1), false)) ==
        describe({0, 0, then::ask_slow}));
  for (const string& slow :
       {head_request, string("BREW / HTTP/1.1\r\nHost: h\r\n\r\n"),
        string("GET / HTTP/1.1\r\nHost: h\r\nHost: h\r\n\r\n"),
        string("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")}) {
    CAPTURE(slow);
    for (int i = 0; i < 2; ++i) {
      CHECK(describe(core.find_requests(slow, false)) == describe({0, 0, then::ask_slow}));
      CHECK(describe(core.find_requests(get + slow, false)) == describe({get.size(), 1, then::ask_slow}));
      CHECK(core.last_head().begins(get));
    }
  }
  // A body that is announced as empty is none.
  const string empty_body = "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n";
  CHECK(describe(core.find_requests(repeat(empty_body, 3), false)) ==
        describe({3 * empty_body.size(), 3, then::read_on}));
  CHECK(core.last_head().begins(empty_body));
}

TEST_CASE("http_requests: a core that answers slowly throughout learns nothing") {
  core_state core({}, layout(), true);
  for (int i = 0; i < 2; ++i)
    CHECK(describe(core.find_requests(get, false)) == describe({0, 0, then::ask_slow}));
  CHECK(core.last_head().size() == 0);
}

TEST_CASE("http_requests: a server that waits before each response answers one request at a time") {
  handler_options options;
  options.sleep = std::chrono::milliseconds(1);
  fresh_core core(options);
  const string one = describe({get.size(), 1, then::read_on}) + "; ";
  CHECK(all_batches(core, get + get) == one + one);
  CHECK(core.last_head().begins(get));  // quick all the same
}

TEST_CASE("http_requests: while stopping the last request that is here closes, known or not") {
  for (const bool known : {false, true}) {
    CAPTURE(known);
    fresh_core core;
    if (known) REQUIRE(core.find_requests(get, false).answers == 1);
    CHECK(describe(core.find_requests(get, true)) == describe({get.size(), 1, then::close}));
    CHECK(describe(core.find_requests(get + get, true)) == describe({get.size(), 1, then::read_on}));
    CHECK(describe(core.find_requests(get + get.substr(0, 5), true)) ==
          describe({get.size(), 1, then::read_on}));
    CHECK(describe(core.find_requests(get.substr(0, 5), true)) == describe({0, 0, then::read_more}));
    CHECK(describe(core.find_requests(closing + get, true)) == describe({closing.size(), 1, then::close}));
    CHECK(describe(core.find_requests(get, false)) == describe({get.size(), 1, then::read_on}));
  }
}

TEST_CASE("http_requests: whatever came before, a core answers as one that has seen nothing") {
  const std::vector<string> pieces = {get,
                                      closing,
                                      head_request,
                                      with_body,
                                      head_of(40),
                                      head_of(41),
                                      head_of(512),
                                      head_of(600),
                                      "\r\n" + get,
                                      "nonsense ",
                                      get.substr(0, 11),
                                      "GET / HTTP/1.0\r\n\r\n",
                                      "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"};
  std::mt19937 random(20'240'501);
  const auto below = [&](std::size_t limit) { return random() % limit; };
  fresh_core core;
  for (int round = 0; round < 20'000; ++round) {
    string data;
    const std::string& favourite = pieces[below(pieces.size())];
    for (std::size_t count = 1 + below(4); count > 0; --count) {
      data += below(2) == 0 ? favourite : pieces[below(pieces.size())];
    }
    if (below(4) == 0) data[below(data.size())] = static_cast<char>(below(256));
    const bool stopping = below(8) == 0;
    CAPTURE(round);
    REQUIRE(all_batches(core, data, stopping) == by_parser_alone(data, stopping));
  }
}
