// The parts of the example proxy that decide: what is read from requests, and who may be reached.
#include <doctest/doctest.h>

#include <string>
#include <string_view>

#include "tests/examples/proxy/access.hpp"
#include "tests/examples/proxy/parsers.hpp"

namespace {

using proxy::outcome;
using std::string;
using std::string_view;

struct read_body {
  outcome made;
  string data;
  string behind;
};

read_body read_chunks(string_view bytes) {
  proxy::http::chunked_body body;
  read_body result{};
  result.made = body.take(bytes, result.data);
  result.behind = bytes;
  return result;
}

int status_of(const string& head) {
  proxy::http::request wanted;
  return proxy::http::parse(head + "\r\n", wanted) == outcome::done ? 200 : wanted.status;
}

string sent_on(const string& head) {
  proxy::http::request wanted;
  CHECK(proxy::http::parse(head + "\r\n", wanted) == outcome::done);
  return wanted.head;
}

}  // namespace

TEST_CASE("the example proxy reads chunked bodies") {
  const read_body whole = read_chunks("5\r\nhello\r\n00a;x=\"y\" \r\n0123456789\r\n0\r\nTrailer: 1\r\n\r\nGET");
  CHECK(whole.made == outcome::done);
  CHECK(whole.data == "hello0123456789");
  CHECK(whole.behind == "GET");
  CHECK(read_chunks("0\r\n\r\n").made == outcome::done);
  for (const string_view part :
       {"", "5", "5\r\n", "5\r\nhell", "5\r\nhello\r\n", "5\r\nhello\r\n0\r\n", "0\r\nA: b\r\n"}) {
    CAPTURE(part);
    CHECK(read_chunks(part).made == outcome::more);
  }
}

TEST_CASE("the example proxy refuses chunked bodies that two programs could read in two ways") {
  for (const string_view bad : {"\r\n",
                                "g\r\n",
                                "-1\r\n",
                                "+1\r\n",
                                " 1\r\n",
                                "1 \r\n",
                                "0x1\r\n",
                                "1\n",
                                "1\rA",
                                "1\r\nab",
                                "1\r\na\n",
                                "1\r\na\r\r",
                                "10000000000000000\r\n",
                                "00000000000000001\r\n",
                                "0\r\n x: folded\r\n",
                                "0\r\n: nameless\r\n",
                                "0\r\nno colon\r\n",
                                "0\r\nA: b\n",
                                "1;a\x01\r\n",
                                "0\r\n\rX"}) {
    CAPTURE(bad);
    CHECK(read_chunks(bad).made == outcome::wrong);
  }
  CHECK(read_chunks("1;" + string(20'000, 'x') + "\r\n").made == outcome::wrong);
  CHECK(read_chunks("0\r\nA: " + string(20'000, 'x') + "\r\n").made == outcome::wrong);
  string zeros;
  for (int i = 0; i < 3000; ++i) zeros += "0000000000000001\r\nx\r\n";  // 8 bytes of overhead each
  CHECK(read_chunks(zeros).made == outcome::wrong);
  string usual;
  for (int i = 0; i < 100'000; ++i) usual += "1\r\nx\r\n";
  CHECK(read_chunks(usual).made == outcome::more);
}

TEST_CASE("the example proxy is sure where a request's body ends") {
  const string put = "PUT http://a/ HTTP/1.1\r\n";
  CHECK(status_of(put + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n") == 400);
  CHECK(status_of(put + "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n") == 400);
  CHECK(status_of(put + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n") == 400);
  CHECK(status_of(put + "Transfer-Encoding: gzip, chunked\r\n") == 501);
  CHECK(status_of(put + "Transfer-Encoding: chunked, chunked\r\n") == 501);
  CHECK(status_of(put + "Transfer-Encoding: identity\r\n") == 501);
  CHECK(status_of(put + "Transfer-Encoding: \x0b"
                        "chunked\r\n") == 501);
  CHECK(status_of(put + "Transfer-Encoding : chunked\r\n") == 400);
  CHECK(status_of("PUT http://a/ HTTP/1.0\r\nTransfer-Encoding: chunked\r\n") == 400);
  CHECK(status_of(put + "Content-Length: 5, 5\r\n") == 400);
  CHECK(status_of(put + "Content-Length: 0x5\r\n") == 400);
  CHECK(status_of(put + "Content-Length: 99999999999999999999\r\n") == 400);
  CHECK(status_of(put + "Content-Length: 5\r\nContent-Length: 6\r\n") == 400);
  CHECK(status_of(put + "X: a\nContent-Length: 5\r\n") == 400);
  CHECK(status_of(put + "X: 1\r\n Content-Length: 5\r\n") == 400);
  CHECK(status_of(put + "Host: a\r\nHost: b\r\n") == 400);
  const string end = "Via: 1.1 proxy\r\nConnection: close\r\n\r\n";
  CHECK(sent_on(put + "transfer-encoding: Chunked\r\nTrailer: x\r\n") ==
        "PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n" + end);
  CHECK(sent_on(put + "Content-Length: 005\r\nContent-Length: 5\r\n") ==
        "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n" + end);
  // The framing stays, whatever Connection names.
  CHECK(sent_on(put + "Connection: content-length, transfer-encoding, host, x\r\nContent-Length: 5\r\nX: 1\r\n") ==
        "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n" + end);
  CHECK(sent_on(put +
                "Upgrade: h2c\r\nConnection: upgrade\r\nKeep-Alive: 1\r\nTE: trailers\r\nExpect: 100-continue\r\n") ==
        "PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n" + end);
  CHECK(sent_on("OPTIONS http://a:81 HTTP/1.0\r\n") ==
        "OPTIONS * HTTP/1.0\r\nHost: a:81\r\nVia: 1.0 proxy\r\nConnection: close\r\n\r\n");
}

TEST_CASE("the example proxy's answers end the connection, whatever the server says") {
  const auto brought = [](const string& head) {
    proxy::http::reply given;
    const outcome made = proxy::http::parse(head + "\r\n", given);
    return made == outcome::done ? given.head : "wrong";
  };
  const string end = "Via: 1.1 proxy\r\nConnection: close\r\n\r\n";
  CHECK(brought("HTTP/1.1 200 OK\r\nConnection: keep-alive, X\r\nKeep-Alive: 5\r\nX: 1\r\nContent-Length: 2\r\n") ==
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n" + end);
  CHECK(brought("HTTP/1.0 404\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n") ==
        "HTTP/1.0 404\r\nTransfer-Encoding: chunked\r\n" + end);
  CHECK(brought("HTTP/1.1 100 Continue\r\n") == "HTTP/1.1 100 Continue\r\n\r\n");
  for (const char* bad :
       {"HTTP/1.1 101 Switching\r\n", "HTTP/2 200\r\n", "HTTP/1.1 99 x\r\n", "HTTP/1.1 2000\r\n", "HTTP/1.1\r\n",
        "HTTP/1.1 +20 x\r\n", "<html>\r\n", "HTTP/1.1 200 OK\r\nX : 1\r\n", "HTTP/1.1 200 OK\r\n folded\r\n", ""}) {
    CAPTURE(bad);
    CHECK(brought(bad) == "wrong");
  }
}

TEST_CASE("the example proxy reads one host from a URI") {
  for (const string bad : {"a@b", "a#b", "a\\b", "a b", "a\tb", "[a]", "[::1", "::1", "a:1:2", "", ":80", "a:0",
                           "a:65536", "a:+1", "a%2eb", "\xc3\xa4", "a\"b", "[::1]x"}) {
    CAPTURE(bad);
    CHECK(status_of("GET http://" + bad + "/ HTTP/1.1\r\n") == 400);
    CHECK(status_of("CONNECT " + bad + " HTTP/1.1\r\n") == 400);
  }
  CHECK(status_of("GET http://[::1]/ HTTP/1.1\r\n") == 200);
  CHECK(status_of("GET http://[fe80::1%25eth0]:8/ HTTP/1.1\r\n") == 200);
  CHECK(status_of("CONNECT a_b-c.d:443 HTTP/1.1\r\n") == 200);
}

TEST_CASE("the example proxy reaches nothing that is not public") {
  proxy::access_list access;
  access.add_own("203.1.2.3:0");
  access.add_own("[2a00::5]:0");
  for (const char* target : {"127.0.0.1:80",
                             "127.255.1.1:80",
                             "0.0.0.0:80",
                             "0.1.2.3:80",
                             "10.1.1.1:80",
                             "100.64.0.1:80",
                             "169.254.169.254:80",
                             "172.31.0.1:80",
                             "192.168.1.1:80",
                             "192.88.99.1:80",
                             "198.18.0.1:80",
                             "224.0.0.1:80",
                             "255.255.255.255:80",
                             "[::]:80",
                             "[::1]:80",
                             "[::ffff:127.0.0.1]:80",
                             "[::ffff:10.0.0.1]:80",
                             "[::127.0.0.1]:80",
                             "[64:ff9b::7f00:1]:80",
                             "[64:ff9b::a00:1]:80",
                             "[64:ff9b:1::1]:80",
                             "[2002:7f00:1::]:80",
                             "[2001::1]:80",
                             "[fe80::1]:80",
                             "[fec0::1]:80",
                             "[fc00::1]:80",
                             "[fd00::1]:80",
                             "[ff02::1]:80",
                             "203.1.2.3:80",
                             "[::ffff:203.1.2.3]:80",
                             "[2a00::5]:80",
                             "9.9.9.9:0",
                             "9.9.9.9:25",
                             "unix:/run/socket"}) {
    CAPTURE(target);
    CHECK_FALSE(access.permits(target));
  }
  for (const char* target : {"9.9.9.9:443", "[::ffff:9.9.9.9]:443", "[2a00::6]:443", "203.1.2.4:80"}) {
    CAPTURE(target);
    CHECK(access.permits(target));
  }
}

TEST_CASE("the example proxy asks the rules in their order") {
  proxy::access_list access;
  access.deny("10.1.0.0/16,443");
  access.allow("10.0.0.0/8");
  access.deny("::ffff:9.9.9.0/120");
  access.allow("192.0.2.1,25");
  CHECK_FALSE(access.permits("10.1.2.3:443"));
  CHECK(access.permits("10.1.2.3:80"));
  CHECK(access.permits("[::ffff:10.1.2.3]:80"));
  CHECK_FALSE(access.permits("9.9.9.9:443"));
  CHECK(access.permits("192.0.2.1:25"));
}
