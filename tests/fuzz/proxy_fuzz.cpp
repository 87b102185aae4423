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

std::size_t count(std::string_view text, std::string_view what) {
  std::size_t found = 0;
  for (std::size_t at = 0; (at = text.find(what, at)) != std::string_view::npos; ++at) ++found;
  return found;
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
      // One way to find the end of the body, and every line feed behind its carriage return.
      check(count(wanted.head, "\r\nTransfer-Encoding: ") == (wanted.chunked ? 1 : 0));
      check(!wanted.chunked || (wanted.body_bytes == 0 && count(wanted.head, "\r\nContent-Length: ") == 0));
      check(count(wanted.head, "\n") == count(wanted.head, "\r\n") &&
            count(wanted.head, "\r") == count(wanted.head, "\r\n"));
    }
  }
  proxy::http::reply given;
  if (proxy::http::parse(bytes, given) == proxy::outcome::done) {
    check(given.head.find("\r\n\r\n") == given.head.size() - 4 && given.status >= 100 && given.status <= 999);
    check(count(given.head, "\n") == count(given.head, "\r\n") && count(given.head, "\r") == count(given.head, "\r\n"));
    check(count(given.head, "\r\nConnection: ") == (given.status < 200 ? 0 : 1));
  }
  std::string user, password;
  (void)proxy::http::decode_basic(bytes, user, password);
}

// Byte by byte and all at once a chunked body is the same one, and what is made of it is one again.
void try_chunks(std::string_view bytes) {
  proxy::http::chunked_body at_once, by_byte, again;
  std::string data, same_data, copied_data;
  std::string_view rest = bytes;
  const proxy::outcome made = at_once.take(rest, data);
  check(data.size() <= bytes.size() - rest.size());
  proxy::outcome last = proxy::outcome::more;
  std::size_t used = 0;
  for (; used < bytes.size() && last == proxy::outcome::more; ++used) {
    std::string_view one = bytes.substr(used, 1);
    last = by_byte.take(one, same_data);
  }
  check(last == made && data == same_data);
  if (made != proxy::outcome::done) return;
  check(used == bytes.size() - rest.size());
  std::string written;
  if (!data.empty()) proxy::http::add_chunk(data, written);
  written += proxy::http::last_chunk;
  std::string_view left = written;
  check(again.take(left, copied_data) == proxy::outcome::done && left.empty() && copied_data == data);
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
  try_http("PUT http://a/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\n" + bytes + "\r\n\r\n");
  try_http("HTTP/1.1 200 OK\r\n" + bytes + "\r\n\r\n");
  try_chunks(bytes);
  try_chunks("5\r\nhello\r\n" + bytes + "\r\n0\r\n\r\n");
  return 0;
}
