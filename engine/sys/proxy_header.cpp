// The bytes of the PROXY protocol. Pure functions.

#include <percore/proxy_protocol.hpp>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/un.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <stdexcept>

namespace percore {

namespace {

constexpr std::string_view signature("\r\n\r\n\0\r\nQUIT\n", 12);
constexpr std::size_t longest_text = 107;  // 2.1: with CR LF
constexpr std::size_t longest = 4096;
constexpr std::size_t fixed_bytes = 16;
constexpr std::uint8_t crc_type = 0x03;
constexpr std::size_t unix_bytes = 108;

std::uint8_t at(std::string_view bytes, std::size_t index) noexcept {
  return static_cast<std::uint8_t>(bytes[index]);
}
std::uint16_t number_at(std::string_view bytes, std::size_t index) noexcept {
  return static_cast<std::uint16_t>(at(bytes, index) << 8 | at(bytes, index + 1));
}
void append_number(std::string& to, std::size_t value) {
  to += static_cast<char>(value >> 8 & 0xffU);
  to += static_cast<char>(value & 0xffU);
}

address ip_address(int family, const void* bytes, std::uint16_t port) noexcept {
  if (family == AF_INET) {
    sockaddr_in made{};
    made.sin_family = AF_INET;
    made.sin_port = htons(port);
    std::memcpy(&made.sin_addr, bytes, 4);
    return address::from_sockaddr(reinterpret_cast<const sockaddr*>(&made), sizeof made);
  }
  sockaddr_in6 made{};
  made.sin6_family = AF_INET6;
  made.sin6_port = htons(port);
  std::memcpy(&made.sin6_addr, bytes, 16);
  return address::from_sockaddr(reinterpret_cast<const sockaddr*>(&made), sizeof made);
}

address unix_address(std::string_view bytes) noexcept {
  sockaddr_un made{};
  made.sun_family = AF_UNIX;
  std::memcpy(made.sun_path, bytes.data(), unix_bytes);
  const std::size_t used = bytes.front() == '\0' ? 0 : std::min(bytes.find('\0'), unix_bytes);
  return address::from_sockaddr(reinterpret_cast<const sockaddr*>(&made),
                                static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + used));
}

// CRC-32C (RFC 3720, appendix B.4), a bit at a time: a header is short.
std::uint32_t checksum(std::string_view bytes, std::size_t hole) noexcept {
  std::uint32_t crc = ~0U;
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    crc ^= i >= hole && i < hole + 4 ? 0U : at(bytes, i);  // the field itself counts as zeros
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (0x82f63b78U & (0U - (crc & 1U)));
  }
  return ~crc;
}

// Version 1 ---------------------------------------------------------------------------------------------------

bool take_word(std::string_view& rest, std::string_view& word) noexcept {
  const std::size_t space = rest.find(' ');
  word = rest.substr(0, space);
  rest.remove_prefix(space == std::string_view::npos ? rest.size() : space + 1);
  return !word.empty();
}

bool parse_port(std::string_view text, std::uint16_t& port) noexcept {
  if (text.size() > 1 && text.front() == '0') return false;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), port);
  return error == std::errc() && end == text.data() + text.size();
}

proxy_parse parse_text(std::string_view bytes, proxy_header& into, std::size_t& used) {
  const std::size_t end = bytes.substr(0, longest_text).find("\r\n");
  if (end == std::string_view::npos) return bytes.size() >= longest_text ? proxy_parse::wrong : proxy_parse::more;
  used = end + 2;
  into.version = 1;
  std::string_view rest = bytes.substr(6, end - 6);
  std::string_view family, from, to, from_port, to_port;
  if (!take_word(rest, family)) return proxy_parse::wrong;
  if (family == "UNKNOWN") return proxy_parse::done;
  const int known = family == "TCP4" ? AF_INET : family == "TCP6" ? AF_INET6 : AF_UNSPEC;
  if (known == AF_UNSPEC || !take_word(rest, from) || !take_word(rest, to) || !take_word(rest, from_port)) {
    return proxy_parse::wrong;
  }
  to_port = rest;
  std::uint16_t ports[2] = {};
  unsigned char addresses[2][16] = {};
  if (::inet_pton(known, std::string(from).c_str(), addresses[0]) != 1 ||
      ::inet_pton(known, std::string(to).c_str(), addresses[1]) != 1 || !parse_port(from_port, ports[0]) ||
      !parse_port(to_port, ports[1])) {
    return proxy_parse::wrong;
  }
  into.source = ip_address(known, addresses[0], ports[0]);
  into.destination = ip_address(known, addresses[1], ports[1]);
  return proxy_parse::done;
}

// Version 2 ---------------------------------------------------------------------------------------------------

bool parse_fields(std::string_view header, std::size_t begin, proxy_header& into) {
  while (begin < header.size()) {
    if (header.size() - begin < 3) return false;
    const std::size_t size = number_at(header, begin + 1);
    if (header.size() - begin - 3 < size) return false;
    const std::uint8_t type = at(header, begin);
    const std::string_view value = header.substr(begin + 3, size);
    if (type == crc_type) {
      if (size != 4) return false;
      const std::uint32_t given = static_cast<std::uint32_t>(number_at(value, 0)) << 16 | number_at(value, 2);
      if (checksum(header, begin + 3) != given) return false;
    }
    into.fields.push_back({type, std::string(value)});
    begin += 3 + size;
  }
  return true;
}

proxy_parse parse_binary(std::string_view bytes, proxy_header& into, std::size_t& used) {
  if (bytes.size() < fixed_bytes) return proxy_parse::more;
  const std::uint8_t version_and_command = at(bytes, 12);
  const std::uint8_t family = at(bytes, 13);
  const std::size_t size = number_at(bytes, 14);
  if (version_and_command >> 4 != 2 || (version_and_command & 0xfU) > 1 || fixed_bytes + size > longest) {
    return proxy_parse::wrong;
  }
  if (bytes.size() < fixed_bytes + size) return proxy_parse::more;
  used = fixed_bytes + size;
  into.version = 2;
  const std::string_view header = bytes.substr(0, used);
  const bool local = (version_and_command & 0xfU) == 0;
  std::size_t addresses = 0;
  switch (family >> 4) {
    case 1:
      addresses = 12;
      break;
    case 2:
      addresses = 36;
      break;
    case 3:
      addresses = 2 * unix_bytes;
      break;
    default:
      // Without a family nobody knows where fields would begin (2.2: "the receiver should ignore" what it holds).
      return proxy_parse::done;
  }
  if (size < addresses) return proxy_parse::wrong;
  const char* first = header.data() + fixed_bytes;
  const bool stream = (family & 0xfU) == 1;
  if (!local && stream && family >> 4 == 3) {
    into.source = unix_address(header.substr(fixed_bytes, unix_bytes));
    into.destination = unix_address(header.substr(fixed_bytes + unix_bytes, unix_bytes));
  } else if (!local && stream) {
    const int known = family >> 4 == 1 ? AF_INET : AF_INET6;
    const std::size_t one = known == AF_INET ? 4 : 16;
    into.source = ip_address(known, first, number_at(header, fixed_bytes + 2 * one));
    into.destination = ip_address(known, first + one, number_at(header, fixed_bytes + 2 * one + 2));
  }
  return parse_fields(header, fixed_bytes + addresses, into) ? proxy_parse::done : proxy_parse::wrong;
}

std::string to_text(const proxy_header& header, bool known) {
  if (!known || header.source.is_unix()) return "PROXY UNKNOWN\r\n";
  return std::string("PROXY ") + (header.source.family() == address_family::ipv4 ? "TCP4 " : "TCP6 ") +
         header.source.host() + ' ' + header.destination.host() + ' ' + std::to_string(header.source.port()) + ' ' +
         std::to_string(header.destination.port()) + "\r\n";
}

void append_address(std::string& to, const address& which) {
  sockaddr_storage storage{};
  (void)which.to_sockaddr(storage);
  const char* bytes = nullptr;
  std::size_t size = 0;
  switch (which.family()) {
    case address_family::ipv4:
      bytes = reinterpret_cast<const char*>(&reinterpret_cast<const sockaddr_in&>(storage).sin_addr);
      size = 4;
      break;
    case address_family::ipv6:
      bytes = reinterpret_cast<const char*>(&reinterpret_cast<const sockaddr_in6&>(storage).sin6_addr);
      size = 16;
      break;
    default:
      bytes = reinterpret_cast<const sockaddr_un&>(storage).sun_path;
      size = unix_bytes;
      break;
  }
  to.append(bytes, size);
}

}  // namespace

std::optional<std::string_view> proxy_header::field(std::uint8_t type) const noexcept {
  for (const proxy_field& one : fields) {
    if (one.type == type) return one.value;
  }
  return std::nullopt;
}

proxy_parse parse_proxy_header(std::string_view bytes, proxy_header& into, std::size_t& used) {
  constexpr std::string_view text = "PROXY ";
  into = {};
  if (bytes.substr(0, signature.size()) == signature.substr(0, bytes.size())) return parse_binary(bytes, into, used);
  if (bytes.substr(0, text.size()) != text.substr(0, bytes.size())) return proxy_parse::wrong;
  return bytes.size() < text.size() ? proxy_parse::more : parse_text(bytes, into, used);
}

std::string to_bytes(const proxy_header& header) {
  const bool known =
      header.source.family() == header.destination.family() && header.source.family() != address_family::unspecified;
  if (header.version == 1) return to_text(header, known);
  std::string fields;
  for (const proxy_field& one : header.fields) {
    if (one.value.size() > 3800) throw std::length_error("percore: a field of a PROXY header is too long");
    fields += static_cast<char>(one.type);
    append_number(fields, one.value.size());
    fields += one.value;
  }
  if (fields.size() > 3800) throw std::length_error("percore: the fields of a PROXY header are too long");
  std::string body;
  char family = 0;
  if (known) {
    append_address(body, header.source);
    append_address(body, header.destination);
    if (!header.source.is_unix()) {
      append_number(body, header.source.port());
      append_number(body, header.destination.port());
    }
    family = header.source.is_unix() ? 0x31 : header.source.family() == address_family::ipv4 ? 0x11 : 0x21;
    body += fields;
  }
  std::string result(signature);
  result += known ? '\x21' : '\x20';
  result += family;
  append_number(result, body.size());
  return result + body;
}

}  // namespace percore
