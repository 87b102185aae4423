#include "parsers.hpp"

#include <arpa/inet.h>

namespace proxy::socks {

namespace {

unsigned char at(std::string_view bytes, std::size_t index) { return static_cast<unsigned char>(bytes[index]); }

constexpr unsigned char no_authentication = 0;
constexpr unsigned char user_and_password = 2;

std::string ip_text(int family, std::string_view bytes) {
  char text[INET6_ADDRSTRLEN] = {};
  ::inet_ntop(family, bytes.data(), text, sizeof text);
  return text;
}

}  // namespace

outcome parse(std::string_view bytes, greeting& into, std::size_t& used) {
  if (!bytes.empty() && at(bytes, 0) != version) return outcome::wrong;
  if (bytes.size() < 2) return outcome::more;
  const std::size_t count = at(bytes, 1);
  if (bytes.size() < 2 + count) return outcome::more;
  for (std::size_t i = 0; i < count; ++i) {
    if (at(bytes, 2 + i) == no_authentication) into.without_authentication = true;
    if (at(bytes, 2 + i) == user_and_password) into.with_password = true;
  }
  used = 2 + count;
  return outcome::done;
}

outcome parse(std::string_view bytes, credentials& into, std::size_t& used) {
  if (!bytes.empty() && at(bytes, 0) != 1) return outcome::wrong;
  if (bytes.size() < 2) return outcome::more;
  const std::size_t user = at(bytes, 1);
  if (bytes.size() < 3 + user) return outcome::more;
  const std::size_t password = at(bytes, 2 + user);
  if (bytes.size() < 3 + user + password) return outcome::more;
  into.user = bytes.substr(2, user);
  into.password = bytes.substr(3 + user, password);
  used = 3 + user + password;
  return outcome::done;
}

outcome parse(std::string_view bytes, request& into, std::size_t& used) {
  into.problem = reply::general_failure;
  if (!bytes.empty() && at(bytes, 0) != version) return outcome::wrong;
  if (bytes.size() < 5) return outcome::more;
  into.wanted = at(bytes, 1);
  const unsigned char type = at(bytes, 3);
  constexpr unsigned char ipv4 = 1;
  constexpr unsigned char name = 3;
  constexpr unsigned char ipv6 = 4;
  std::size_t begin = 4;
  std::size_t size = 0;
  if (type == ipv4) {
    size = 4;
  } else if (type == ipv6) {
    size = 16;
  } else if (type == name) {
    begin = 5;
    size = at(bytes, 4);
  } else {
    into.problem = reply::address_type_not_supported;
    return outcome::wrong;
  }
  if (bytes.size() < begin + size + 2) return outcome::more;
  const std::string_view host = bytes.substr(begin, size);
  into.where.host = type == name ? std::string(host) : ip_text(type == ipv4 ? AF_INET : AF_INET6, host);
  into.where.port = static_cast<std::uint16_t>(at(bytes, begin + size) << 8 | at(bytes, begin + size + 1));
  used = begin + size + 2;
  if (host.empty() || host.find('\0') != std::string_view::npos) {
    if (type == name) return outcome::wrong;
  }
  into.problem = reply::succeeded;
  return outcome::done;
}

std::string answer(reply code) {
  constexpr char ipv4 = 1;
  return {version, static_cast<char>(code), 0, ipv4, 0, 0, 0, 0, 0, 0};
}

}  // namespace proxy::socks
