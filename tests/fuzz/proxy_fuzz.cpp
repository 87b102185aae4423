// What clients of the example proxy may send: every parser over any bytes. A message that is whole does not become another
// one by what follows it, and none reads beyond its bytes.

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "tests/examples/proxy/parsers.hpp"

namespace {

void check(bool holds) {
  if (!holds) std::abort();
}

template <class Message>
void try_socks(std::string_view bytes) {
  Message whole;
  std::size_t used = 0;
  const proxy::outcome made = proxy::socks::parse(bytes, whole, used);
  if (made != proxy::outcome::done) return;
  check(used <= bytes.size());
  Message again;
  std::size_t used_again = 0;
  const std::string exact(bytes.substr(0, used));  // of its own size, for the sanitizer
  check(proxy::socks::parse(exact, again, used_again) == proxy::outcome::done && used_again == used);
  for (std::size_t i = 0; i < used; ++i) {
    Message part;
    check(proxy::socks::parse(bytes.substr(0, i), part, used_again) != proxy::outcome::done);
  }
}

void try_http(std::string_view bytes) {
  proxy::http::request wanted;
  if (proxy::http::parse(bytes, wanted) == proxy::outcome::done) {
    check(!wanted.where.host.empty() && wanted.where.port != 0);
    if (!wanted.tunnel) {
      // What is sent on is one head: no line of it is empty but the last.
      check(wanted.head.find("\r\n\r\n") == wanted.head.size() - 4);
      check(wanted.head.find('\0') == std::string::npos);
    }
  }
  std::string user, password;
  (void)proxy::http::decode_basic(bytes, user, password);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string bytes(reinterpret_cast<const char*>(data), size);
  try_socks<proxy::socks::greeting>(bytes);
  try_socks<proxy::socks::credentials>(bytes);
  try_socks<proxy::socks::request>(bytes);
  try_http(bytes);
  try_http(bytes + "\r\n\r\n");
  try_http("GET http://a/ HTTP/1.1\r\n" + bytes + "\r\n\r\n");
  return 0;
}
