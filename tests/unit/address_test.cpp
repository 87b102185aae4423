#include <percore/address.hpp>

#include <doctest/doctest.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sys/un.h>

#include <cstddef>
#include <cstring>
#include <stdexcept>
#include <string>
#include <unordered_set>
#include <vector>

using percore::address;
using percore::address_family;
using percore::peer_address;

namespace {

address round_trip(const address& from) {
  sockaddr_storage raw{};
  const socklen_t length = from.to_sockaddr(raw);
  return address::from_sockaddr(reinterpret_cast<const sockaddr*>(&raw), length);
}

std::string complaint(std::string_view text) {
  try {
    const address parsed(text);
    return "accepted as " + parsed.to_string();
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
}

bool contains(const std::string& text, const char* part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("address: text forms are read and written") {
  struct form {
    const char* text;
    const char* written;
    address_family family;
    unsigned port;
  };
  const std::vector<form> forms = {
      {"127.0.0.1:5000", "127.0.0.1:5000", address_family::ipv4, 5000},
      {"0.0.0.0:0", "0.0.0.0:0", address_family::ipv4, 0},
      {":5000", "0.0.0.0:5000", address_family::ipv4, 5000},
      {"*:65535", "0.0.0.0:65535", address_family::ipv4, 65535},
      {"localhost:80", "127.0.0.1:80", address_family::ipv4, 80},
      {"[::1]:5000", "[::1]:5000", address_family::ipv6, 5000},
      {"[::]:5000", "[::]:5000", address_family::ipv6, 5000},
      {"[2001:DB8:0::1]:1", "[2001:db8::1]:1", address_family::ipv6, 1},
      {"[fe80::1%7]:80", "[fe80::1%7]:80", address_family::ipv6, 80},
      {"unix:/run/app.sock", "unix:/run/app.sock", address_family::unix_domain, 0},
      {"unix:relative:name", "unix:relative:name", address_family::unix_domain, 0},
      {"unix:@abstract", "unix:@abstract", address_family::unix_domain, 0},
      {"unix:@", "unix:@", address_family::unix_domain, 0},
  };
  for (const form& f : forms) {
    CAPTURE(f.text);
    const address parsed(f.text);
    CHECK(parsed.to_string() == f.written);
    CHECK(parsed.family() == f.family);
    CHECK(parsed.port() == f.port);
    CHECK(address(parsed.to_string()) == parsed);
    CHECK(round_trip(parsed) == parsed);
  }
}

TEST_CASE("address: a zone is an interface name or index") {
  const std::string index = std::to_string(::if_nametoindex("lo"));
  CHECK(address("[fe80::1%lo]:80").to_string() == "[fe80::1%" + index + "]:80");
  CHECK(address("[fe80::1%lo]:80").scope_id() == ::if_nametoindex("lo"));
}

TEST_CASE("address: what is refused says why and what is accepted") {
  const std::vector<std::pair<std::string, const char*>> cases = {
      {"", "port is missing"},
      {"127.0.0.1", "port is missing"},
      {"[::1]", "port is missing"},
      {"5000", "port is missing"},
      {"127.0.0.1:", "port is not a number"},
      {"127.0.0.1:65536", "port is not a number"},
      {"127.0.0.1:-1", "port is not a number"},
      {"127.0.0.1:+1", "port is not a number"},
      {"127.0.0.1: 1", "port is not a number"},
      {"127.0.0.1:80x", "port is not a number"},
      {"127.0.0.1:99999999999", "port is not a number"},
      {"::1:5000", "must stand in brackets"},
      {"127.0.0:80", "not an IP address"},
      {"127.0.0.256:80", "not an IP address"},
      {"example.org:80", "names other than localhost are not resolved"},
      {"[127.0.0.1]:80", "do not hold an IPv6 address"},
      {"[]:80", "do not hold an IPv6 address"},
      {"[::1:80", "closing bracket"},
      {"[::1]x:80", "closing bracket"},
      {"[fe80::1%]:80", "no network interface"},
      {"[fe80::1%no-such-interface]:80", "no network interface"},
      {std::string("127.0.0.1\0x:80", 14), "not an IP address"},
      {"[" + std::string(60, '1') + "]:80", "do not hold an IPv6 address"},
      {"unix:", "path is missing"},
      {"unix:/" + std::string(107, 'x'), "longer than the 107 bytes"},
      {"unix:@" + std::string(108, 'x'), "longer than the 107 bytes"},
      {std::string("unix:/a\0b", 9), "zero byte"},
  };
  for (const auto& [text, part] : cases) {
    CAPTURE(text);
    const std::string message = complaint(text);
    CAPTURE(message);
    CHECK(contains(message, part));
    CHECK(contains(message, "accepted are"));
  }
}

TEST_CASE("address: the longest unix names fit") {
  const address path("unix:" + std::string(107, 'p'));
  CHECK(path.path().size() == 107);
  CHECK(round_trip(path) == path);
  const address name("unix:@" + std::string(107, 'n'));
  CHECK(name.path().size() == 107);
  CHECK(name.is_abstract());
  CHECK(round_trip(name) == name);
}

TEST_CASE("address: unix names as the kernel reports them") {
  sockaddr_un un{};
  un.sun_family = AF_UNIX;
  const auto* const raw = reinterpret_cast<const sockaddr*>(&un);
  SUBCASE("an unnamed peer has only the family") {
    const address unnamed = address::from_sockaddr(raw, sizeof(sa_family_t));
    CHECK(unnamed.is_unix());
    CHECK(unnamed.path().empty());
    CHECK(unnamed == address("unix:@"));
  }
  SUBCASE("a path ends at its zero, whatever the length says") {
    std::strcpy(un.sun_path, "/tmp/x");
    CHECK(address::from_sockaddr(raw, sizeof un) == address("unix:/tmp/x"));
    CHECK(address::from_sockaddr(raw, offsetof(sockaddr_un, sun_path) + 6) == address("unix:/tmp/x"));
  }
  SUBCASE("an abstract name may hold zeros, which are not written raw") {
    std::memcpy(un.sun_path, "\0a\0\x1f", 4);
    const address abstract = address::from_sockaddr(raw, offsetof(sockaddr_un, sun_path) + 4);
    CHECK(abstract.is_abstract());
    CHECK(abstract.path() == std::string_view("a\0\x1f", 3));
    CHECK(abstract.to_string() == "unix:@a\\x00\\x1f");
    CHECK(round_trip(abstract) == abstract);
  }
}

TEST_CASE("address: short or foreign sockaddrs give an unspecified address") {
  sockaddr_in v4{};
  v4.sin_family = AF_INET;
  const auto* const raw = reinterpret_cast<const sockaddr*>(&v4);
  CHECK(address::from_sockaddr(raw, sizeof v4 - 1) == address());
  CHECK(address::from_sockaddr(raw, 0) == address());
  CHECK(address::from_sockaddr(nullptr, 16) == address());
  v4.sin_family = AF_INET6;  // longer than what is there
  CHECK(address::from_sockaddr(raw, sizeof v4) == address());
  v4.sin_family = AF_NETLINK;
  CHECK(address::from_sockaddr(raw, sizeof v4) == address());
  CHECK(address().to_string() == "unspecified");
  sockaddr_storage out{};
  CHECK(address().to_sockaddr(out) == 0);
}

TEST_CASE("address: kinds of address") {
  for (const char* text : {"127.0.0.1:1", "127.255.0.9:1", "[::1]:1", "[::ffff:127.0.0.1]:1"}) {
    CAPTURE(text);
    CHECK(address(text).is_loopback());
  }
  for (const char* text :
       {"128.0.0.1:1", "0.0.0.0:1", "[::]:1", "[::2]:1", "[::ffff:10.0.0.1]:1", "unix:@x"}) {
    CAPTURE(text);
    CHECK_FALSE(address(text).is_loopback());
  }
  CHECK(address(":1").is_wildcard());
  CHECK(address("[::]:1").is_wildcard());
  CHECK_FALSE(address("[::1]:1").is_wildcard());
  CHECK_FALSE(address("unix:@").is_wildcard());
  CHECK_FALSE(address().is_wildcard());
  CHECK(address("[::ffff:10.1.2.3]:9").unmapped() == address("10.1.2.3:9"));
  CHECK(address("[::1]:9").unmapped() == address("[::1]:9"));
  CHECK(address("10.0.0.1:1").with_port(2) == address("10.0.0.1:2"));
  CHECK(address("unix:@x").with_port(2) == address("unix:@x"));
}

TEST_CASE("address: equality, order and hash follow all parts") {
  const std::vector<address> different = {
      address(), "127.0.0.1:1", "127.0.0.1:2",       "127.0.0.2:1",    "127.0.0.1:256",
      "[::1]:1", "[::1%1]:1",   "[7f00:1::]:1",      "unix:x",         "unix:@x",
      "unix:@",  "unix:x/y",    "[::ffff:7f00:1]:1", "[fe80::1%2]:80",
  };
  std::unordered_set<address> set(different.begin(), different.end());
  CHECK(set.size() == different.size());
  for (const address& a : different) {
    CHECK(set.count(a) == 1);
    int smaller = 0;
    for (const address& b : different) {
      CHECK((a == b) == (&a == &b));
      CHECK((a < b) == (b > a));
      if (b < a) ++smaller;
    }
    CHECK(smaller < static_cast<int>(different.size()));
  }
}

TEST_CASE("peer_address: what a slot keeps converts to the address") {
  for (const char* text : {"10.1.2.3:4567", "[2001:db8::1]:1", "[fe80::1%3]:65535"}) {
    CAPTURE(text);
    const address from(text);
    const peer_address kept(from);
    CHECK(address(kept) == from);
    CHECK(kept.port() == from.port());
    CHECK(kept.family() == from.family());
    sockaddr_storage raw{};
    const socklen_t length = from.to_sockaddr(raw);
    CHECK(peer_address::from_sockaddr(reinterpret_cast<const sockaddr*>(&raw), length) == kept);
  }
  CHECK(address(peer_address(address("unix:/some/path"))) == address("unix:@"));
  CHECK(address(peer_address()) == address());
}
