#include <doctest/doctest.h>

#include <percore/proxy_protocol.hpp>

#include <stdexcept>
#include <string>
#include <vector>

namespace percore::test {
namespace {

// All of it in every length: nothing shorter is a header, and what follows does not change one.
proxy_header parsed(const std::string& bytes) {
  proxy_header result;
  std::size_t used = 0;
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    INFO(i);
    CHECK(parse_proxy_header(std::string_view(bytes).substr(0, i), result, used) == proxy_parse::more);
  }
  CHECK(parse_proxy_header(bytes + "GET / HTTP/1.1", result, used) == proxy_parse::done);
  CHECK(used == bytes.size());
  CHECK(parse_proxy_header(bytes, result, used) == proxy_parse::done);
  return result;
}

bool is_wrong(const std::string& bytes) {
  proxy_header into;
  std::size_t used = 0;
  return parse_proxy_header(bytes, into, used) == proxy_parse::wrong;
}

const std::string signature("\r\n\r\n\0\r\nQUIT\n", 12);

std::string binary(int command, int family, const std::string& body) {
  std::string result = signature;
  result += static_cast<char>(command);
  result += static_cast<char>(family);
  result += static_cast<char>(body.size() >> 8);
  result += static_cast<char>(body.size() & 0xff);
  return result + body;
}

const std::string ipv4_body("\xc0\x00\x02\x01\xc0\x00\x02\x02\x12\x34\x01\xbb", 12);

TEST_CASE("proxy_header: version 1") {
  proxy_header four = parsed("PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n");
  CHECK(four.version == 1);
  CHECK(four.source == address("192.0.2.1:56324"));
  CHECK(four.destination == address("192.0.2.2:443"));
  proxy_header six = parsed("PROXY TCP6 2001:db8::1 ::1 1 65535\r\n");
  CHECK(six.source == address("[2001:db8::1]:1"));
  CHECK(six.destination == address("[::1]:65535"));
  CHECK(parsed("PROXY UNKNOWN\r\n").source == address());
  CHECK(parsed("PROXY UNKNOWN ffff::1 whatever it is\r\n").source == address());
}

TEST_CASE("proxy_header: what version 1 is not") {
  for (const char* text :
       {"PROXY \r\n", "PROXY TCP4\r\n", "PROXY TCP5 1.1.1.1 1.1.1.1 1 1\r\n", "PROXY TCP4 1.1.1.1 1.1.1.1 1\r\n",
        "PROXY TCP4 1.1.1.1 1.1.1.1 1 1 1\r\n", "PROXY TCP4 1.1.1.1 1.1.1.1 1 70000\r\n",
        "PROXY TCP4 1.1.1.1 1.1.1.1 01 1\r\n", "PROXY TCP4 1.1.1.1 1.1.1.1 +1 1\r\n", "PROXY TCP4 1.1.1.1  1.1.1.1 1 1\r\n",
        "PROXY TCP4 ::1 ::1 1 1\r\n", "PROXY TCP6 1.1.1.1 1.1.1.1 1 1\r\n", "PROXY TCP4 1.1.1.1 1.1.1.1 1 1 \r\n",
        "proxy TCP4 1.1.1.1 1.1.1.1 1 1\r\n", "GET / HTTP/1.1\r\n", "\r\n\r\nx", "P\r\n"}) {
    INFO(text);
    CHECK(is_wrong(text));
  }
  CHECK(is_wrong("PROXY UNKNOWN " + std::string(100, 'x') + "\r\n"));
}

TEST_CASE("proxy_header: version 2") {
  proxy_header four = parsed(binary(0x21, 0x11, ipv4_body));
  CHECK(four.version == 2);
  CHECK(four.source == address("192.0.2.1:4660"));
  CHECK(four.destination == address("192.0.2.2:443"));
  // A balancer's own check, datagrams, and families of which nobody knows anything: no client.
  CHECK(parsed(binary(0x20, 0x00, "")).source == address());
  CHECK(parsed(binary(0x20, 0x11, ipv4_body)).source == address());
  CHECK(parsed(binary(0x21, 0x12, ipv4_body)).source == address());
  CHECK(parsed(binary(0x21, 0x51, "anything")).source == address());
  CHECK(parsed(binary(0x21, 0x31, "/a" + std::string(106, '\0') + "/b" + std::string(106, '\0'))).source ==
        address("unix:/a"));
}

TEST_CASE("proxy_header: fields") {
  const proxy_header header =
      parsed(binary(0x21, 0x11, ipv4_body + std::string("\x02\x00\x03" "abc" "\x05\x00\x00" "\xea\x00\x01z", 13)));
  CHECK(header.fields.size() == 3);
  CHECK(header.field(2) == "abc");
  CHECK(header.field(5) == "");
  CHECK(header.field(0xea) == "z");
  CHECK_FALSE(header.field(1).has_value());
  CHECK(is_wrong(binary(0x21, 0x11, ipv4_body + std::string("\x02\x00", 2))));
  CHECK(is_wrong(binary(0x21, 0x11, ipv4_body + std::string("\x02\x00\x02z", 4))));
}

TEST_CASE("proxy_header: a checksum is checked") {
  // RFC 3720 B.4 has test vectors for CRC-32C; this header's was computed with another program.
  std::string body = ipv4_body + std::string("\x03\x00\x04\x00\x00\x00\x00", 7);
  CHECK(is_wrong(binary(0x21, 0x11, body)));
  std::uint32_t crc = ~0U;
  for (const char c : binary(0x21, 0x11, body)) {
    crc ^= static_cast<unsigned char>(c);
    for (int bit = 0; bit < 8; ++bit) crc = (crc & 1U) != 0 ? crc >> 1 ^ 0x82f63b78U : crc >> 1;
  }
  crc = ~crc;
  for (int i = 0; i < 4; ++i) body[body.size() - 4 + static_cast<std::size_t>(i)] = static_cast<char>(crc >> (24 - 8 * i) & 0xff);
  CHECK(parsed(binary(0x21, 0x11, body)).source == address("192.0.2.1:4660"));
  body.front() ^= 1;
  CHECK(is_wrong(binary(0x21, 0x11, body)));
}

TEST_CASE("proxy_header: what version 2 is not") {
  CHECK(is_wrong(binary(0x11, 0x11, ipv4_body)));             // another version
  CHECK(is_wrong(binary(0x22, 0x11, ipv4_body)));             // another command
  CHECK(is_wrong(binary(0x21, 0x11, ipv4_body.substr(1))));   // too short for its family
  CHECK(is_wrong(binary(0x21, 0x21, ipv4_body)));
  CHECK(is_wrong(binary(0x21, 0x11, std::string(4096, 'x'))));
}

TEST_CASE("proxy_header: what is written is read") {
  for (const int version : {1, 2}) {
    for (const char* source : {"192.0.2.1:1", "[2001:db8::1]:65535"}) {
      proxy_header header;
      header.version = version;
      header.source = source;
      header.destination = address(source).with_port(443);
      if (version == 2) header.fields = {{1, "h2"}, {2, std::string(300, 'n')}};
      const proxy_header back = parsed(to_bytes(header));
      CHECK(back.version == version);
      CHECK(back.source == header.source);
      CHECK(back.destination == header.destination);
      CHECK(back.fields.size() == header.fields.size());
    }
    proxy_header nobody;
    nobody.version = version;
    CHECK(parsed(to_bytes(nobody)).source == address());
    nobody.source = "1.1.1.1:1";
    nobody.destination = "[::1]:1";
    CHECK(parsed(to_bytes(nobody)).source == address());
  }
  proxy_header unixes;
  unixes.source = "unix:@a";
  unixes.destination = "unix:/b";
  CHECK(parsed(to_bytes(unixes)).destination == address("unix:/b"));
  proxy_header large;
  large.fields = {{1, std::string(3801, 'x')}};
  CHECK_THROWS_AS(to_bytes(large), std::length_error);
}

}  // namespace
}  // namespace percore::test
