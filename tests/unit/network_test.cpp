#include <doctest/doctest.h>

#include <percore/network.hpp>

#include <stdexcept>

namespace percore::test {
namespace {

TEST_CASE("network: what a prefix holds") {
  CHECK(network("10.0.0.0/8").contains("10.255.0.1:80"));
  CHECK_FALSE(network("10.0.0.0/8").contains("11.0.0.1:80"));
  CHECK(network("192.168.16.0/20").contains("192.168.31.255:1"));
  CHECK_FALSE(network("192.168.16.0/20").contains("192.168.32.0:1"));
  CHECK(network("192.168.31.7/20").contains("192.168.16.0:1"));  // bits behind the prefix do not count
  CHECK(network("0.0.0.0/0").contains("1.2.3.4:5"));
  CHECK_FALSE(network("0.0.0.0/0").contains("[::1]:5"));
  CHECK(network("1.2.3.4").contains("1.2.3.4:5"));
  CHECK_FALSE(network("1.2.3.4/32").contains("1.2.3.5:5"));
  CHECK(network("2001:db8::/33").contains("[2001:db8:7fff::1]:5"));
  CHECK_FALSE(network("2001:db8::/33").contains("[2001:db8:8000::1]:5"));
  CHECK(network("::/0").contains("[::1]:5"));
  CHECK(network("127.0.0.0/8").contains("[::ffff:127.0.0.1]:5"));
  CHECK_FALSE(network("::/0").contains("[::ffff:127.0.0.1]:5"));
  CHECK(network("::ffff:10.0.0.0/104").contains("10.1.2.3:5"));
  CHECK(network("::ffff:10.0.0.0/104").contains("[::ffff:10.1.2.3]:5"));
  CHECK_FALSE(network("::ffff:10.0.0.0/104").contains("11.1.2.3:5"));
  CHECK(network("::ffff:10.0.0.1").to_string() == "10.0.0.1/32");
  CHECK_FALSE(network("::/0").contains("unix:@x"));
  CHECK_FALSE(network("0.0.0.0/0").contains(address()));
  CHECK(network("10.0.0.0/8").to_string() == "10.0.0.0/8");
}

TEST_CASE("network: what is none") {
  for (const char* text : {"", "/", "10.0.0.0/", "10.0.0.0/33", "::/129", "10.0.0.0/-1", "10.0.0.0/8x", "10.0.0/8",
                           "localhost", "10.0.0.0/8/8", " 10.0.0.0/8"}) {
    INFO(text);
    CHECK_THROWS_AS(network{text}, std::invalid_argument);
  }
}

}  // namespace
}  // namespace percore::test
