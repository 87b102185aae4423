#include "engine/tls/session_cache.hpp"

#include <doctest/doctest.h>

#include <string>

namespace percore::tls {
namespace {

session_cache::entry made(std::string key, std::int64_t expires, authenticated by = {100, 0}) {
  return {std::move(key), ssl_session_ptr(SSL_SESSION_new()), by, expires};
}

TEST_CASE("session cache: each is given out once, the newest first") {
  session_cache cache(10, 1000);
  cache.put(made("a 443", 500), 100);
  cache.put(made("a 443", 600), 100);
  cache.put(made("a 444", 700), 100);
  auto found = cache.take("a 443", 200);
  REQUIRE(found);
  CHECK(found->expires == 600);
  CHECK(cache.take("a 443", 200)->expires == 500);
  CHECK(!cache.take("a 443", 200));
  CHECK(!cache.take("b 443", 200));
  CHECK(cache.size() == 1);
}

TEST_CASE("session cache: bounded, for each key and in all") {
  session_cache cache(6, 1000);
  for (int i = 0; i < 10; ++i) cache.put(made("a", 500 + i), 100);
  CHECK(cache.size() == 4);
  CHECK(cache.take("a", 100)->expires == 509);
  for (int i = 0; i < 10; ++i) cache.put(made("other " + std::to_string(i), 500), 100);
  CHECK(cache.size() == 6);
  CHECK(!cache.take("a", 100));
  CHECK(cache.take("other 9", 100));
  session_cache none(0, 1000);
  none.put(made("a", 500), 100);
  CHECK(none.size() == 0);
}

TEST_CASE("session cache: what is too old is not given out, and goes") {
  session_cache cache(10, 1000);
  SUBCASE("the ticket") {
    cache.put(made("a", 500), 100);
    CHECK(!cache.take("a", 500));
  }
  SUBCASE("the server's certificate") {
    cache.put(made("a", 500, {100, 300}), 100);
    CHECK(!cache.take("a", 300));
  }
  SUBCASE("the chain of resumptions") {
    cache.put(made("a", 5000, {100, 0}), 100);
    CHECK(!cache.take("a", 1100));
  }
  SUBCASE("by a clock that was set back") {
    cache.put(made("a", 500), 100);
    CHECK(!cache.take("a", 99));
  }
  CHECK(cache.size() == 0);
  cache.put(made("b", 500), 500);
  CHECK(cache.size() == 0);
}

}  // namespace
}  // namespace percore::tls
