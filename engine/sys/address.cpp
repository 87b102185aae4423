#include <percore/address.hpp>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/un.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <stdexcept>
#include <type_traits>

#include "engine/sys/calls.hpp"

namespace percore {
namespace {

static_assert(std::is_trivially_copyable_v<address>);
static_assert(sizeof(sockaddr_un::sun_path) == 108);

constexpr std::size_t path_offset = offsetof(sockaddr_un, sun_path);

// Any byte may stand in an abstract name and in a faulty text; a log line should hold none that is not
// printable.
void append_printable(std::string& target, std::string_view text) {
  constexpr char digits[] = "0123456789abcdef";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte != 0x7f) {
      target += c;
    } else {
      target.append("\\x").append(1, digits[byte >> 4]).append(1, digits[byte & 15]);
    }
  }
}

[[noreturn]] void refuse(std::string_view text, std::string_view why) {
  std::string message = "percore: address \"";
  append_printable(message, text);
  message.append("\": ").append(why);
  message +=
      "; accepted are 127.0.0.1:5000, [::1]:5000, [fe80::1%eth0]:80, :5000 or *:5000 (every IPv4 interface), "
      "localhost:5000, unix:/path and unix:@abstract";
  throw std::invalid_argument(message);
}

std::uint16_t parse_port(std::string_view text, std::string_view digits) {
  unsigned value = 0;
  const char* const end = digits.data() + digits.size();
  const auto [stop, error] = std::from_chars(digits.data(), end, value);
  if (digits.empty() || error != std::errc{} || stop != end || value > 65535) {
    refuse(text, "the port is not a number from 0 to 65535");
  }
  return static_cast<std::uint16_t>(value);
}

std::uint32_t parse_zone(std::string_view text, std::string_view zone) {
  std::uint32_t index = 0;
  const char* const end = zone.data() + zone.size();
  const auto [stop, error] = std::from_chars(zone.data(), end, index);
  if (!zone.empty() && error == std::errc{} && stop == end) return index;
  index = sys::interface_index(std::string(zone).c_str());
  if (index == 0) refuse(text, "no network interface has the name after '%'");
  return index;
}

// inet_pton wants a terminated string; nothing longer than INET6_ADDRSTRLEN can be an address.
bool parse_bytes(int family, std::string_view host, unsigned char* bytes) {
  char terminated[INET6_ADDRSTRLEN] = {};
  if (host.size() >= sizeof terminated) return false;
  host.copy(terminated, host.size());
  return std::strlen(terminated) == host.size() && ::inet_pton(family, terminated, bytes) == 1;
}

bool is_mapped(const unsigned char* v6) noexcept {
  return std::all_of(v6, v6 + 10, [](unsigned char b) { return b == 0; }) && v6[10] == 0xff && v6[11] == 0xff;
}

}  // namespace

address::address(std::string_view text) {
  if (text.starts_with("unix:")) {
    parse_unix(text);
  } else {
    parse_ip(text);
  }
}

void address::parse_unix(std::string_view text) {
  const std::string_view name = text.substr(5);
  if (name.empty()) refuse(text, "the path is missing");
  if (name.find('\0') != std::string_view::npos) refuse(text, "a path cannot hold a zero byte");
  // A path keeps one byte for its terminating zero; the '@' of an abstract name stands for its leading zero.
  const std::size_t room = name.front() == '@' ? bytes_.size() : bytes_.size() - 1;
  if (name.size() > room) refuse(text, "the path is longer than the 107 bytes of unix(7)");
  family_ = address_family::unix_domain;
  if (name == "@") return;
  std::copy(name.begin(), name.end(), bytes_.begin());
  if (name.front() == '@') bytes_[0] = 0;
  path_length_ = static_cast<std::uint8_t>(name.size());
}

void address::parse_ip(std::string_view text) {
  const std::size_t colon = text.rfind(':');
  const bool bracketed = text.starts_with('[');
  const std::size_t bracket = text.find(']');
  const bool in_brackets = bracketed && bracket != std::string_view::npos && colon < bracket;
  if (colon == std::string_view::npos || in_brackets) refuse(text, "the port is missing");
  std::string_view host = text.substr(0, colon);
  if (bracketed) {
    if (!host.ends_with(']')) refuse(text, "the closing bracket is not before the last ':'");
    host = host.substr(1, host.size() - 2);
    family_ = address_family::ipv6;
    if (const std::size_t percent = host.find('%'); percent != std::string_view::npos) {
      scope_id_ = parse_zone(text, host.substr(percent + 1));
      host = host.substr(0, percent);
    }
    if (!parse_bytes(AF_INET6, host, bytes_.data())) refuse(text, "the brackets do not hold an IPv6 address");
  } else {
    if (host.find(':') != std::string_view::npos) refuse(text, "an IPv6 address must stand in brackets");
    family_ = address_family::ipv4;
    if (host == "localhost") host = "127.0.0.1";
    if (host.empty() || host == "*") host = "0.0.0.0";
    if (!parse_bytes(AF_INET, host, bytes_.data())) {
      refuse(text, "the host is not an IP address, and names other than localhost are not resolved");
    }
  }
  port_ = parse_port(text, text.substr(colon + 1));
}

address::address(const peer_address& peer) noexcept
    : family_(peer.family_), port_(peer.port_), scope_id_(peer.scope_id_) {
  std::copy(peer.bytes_.begin(), peer.bytes_.end(), bytes_.begin());
}

address address::from_sockaddr(const sockaddr* source, socklen_t length) noexcept {
  address result;
  if (source == nullptr || length < sizeof(sa_family_t)) return result;
  if (source->sa_family == AF_UNIX) {
    result.family_ = address_family::unix_domain;
    const std::size_t used = std::min<std::size_t>(length, sizeof(sockaddr_un));
    if (used <= path_offset) return result;
    const char* const path = reinterpret_cast<const char*>(source) + path_offset;
    // A path ends at its first zero byte, which the kernel may count or not; an abstract name may hold zero
    // bytes.
    const std::size_t room = used - path_offset;
    const std::size_t bytes = path[0] == 0 ? room : ::strnlen(path, room);
    std::memcpy(result.bytes_.data(), path, bytes);
    result.path_length_ = static_cast<std::uint8_t>(bytes);
    return result;
  }
  return address(peer_address::from_sockaddr(source, length));
}

socklen_t address::to_sockaddr(sockaddr_storage& target) const noexcept {
  target = {};
  switch (family_) {
    case address_family::ipv4: {
      sockaddr_in v4{};
      v4.sin_family = AF_INET;
      v4.sin_port = htons(port_);
      std::memcpy(&v4.sin_addr, bytes_.data(), sizeof v4.sin_addr);
      std::memcpy(&target, &v4, sizeof v4);
      return sizeof v4;
    }
    case address_family::ipv6: {
      sockaddr_in6 v6{};
      v6.sin6_family = AF_INET6;
      v6.sin6_port = htons(port_);
      v6.sin6_scope_id = scope_id_;
      std::memcpy(&v6.sin6_addr, bytes_.data(), sizeof v6.sin6_addr);
      std::memcpy(&target, &v6, sizeof v6);
      return sizeof v6;
    }
    case address_family::unix_domain: {
      sockaddr_un un{};
      un.sun_family = AF_UNIX;
      std::memcpy(un.sun_path, bytes_.data(), path_length_);
      std::memcpy(&target, &un, sizeof un);
      // A path is counted with its terminating zero, an abstract name must not be (unix(7)).
      const bool terminated = path_length_ != 0 && bytes_[0] != 0;
      return static_cast<socklen_t>(path_offset + path_length_ + (terminated ? 1 : 0));
    }
    case address_family::unspecified:
      break;
  }
  return 0;
}

std::string address::host() const {
  char text[INET6_ADDRSTRLEN] = {};
  if (family_ == address_family::ipv4) ::inet_ntop(AF_INET, bytes_.data(), text, sizeof text);
  if (family_ == address_family::ipv6) ::inet_ntop(AF_INET6, bytes_.data(), text, sizeof text);
  return text;
}

std::string address::to_string() const {
  char text[INET6_ADDRSTRLEN] = {};
  switch (family_) {
    case address_family::ipv4:
      ::inet_ntop(AF_INET, bytes_.data(), text, sizeof text);
      return std::string(text) + ':' + std::to_string(port_);
    case address_family::ipv6: {
      ::inet_ntop(AF_INET6, bytes_.data(), text, sizeof text);
      const std::string zone = scope_id_ == 0 ? std::string() : '%' + std::to_string(scope_id_);
      return '[' + std::string(text) + zone + "]:" + std::to_string(port_);
    }
    case address_family::unix_domain: {
      std::string result = is_abstract() ? "unix:@" : "unix:";
      append_printable(result, path());
      return result;
    }
    case address_family::unspecified:
      break;
  }
  return "unspecified";
}

address address::with_port(std::uint16_t port) const noexcept {
  address result = *this;
  if (family_ == address_family::ipv4 || family_ == address_family::ipv6) result.port_ = port;
  return result;
}

std::string_view address::path() const noexcept {
  if (!is_unix() || path_length_ == 0) return {};
  const std::size_t skip = bytes_[0] == 0 ? 1 : 0;
  return {reinterpret_cast<const char*>(bytes_.data()) + skip, path_length_ - skip};
}

bool address::is_loopback() const noexcept {
  if (family_ == address_family::ipv4) return bytes_[0] == 127;
  if (family_ != address_family::ipv6) return false;
  if (is_mapped(bytes_.data())) return bytes_[12] == 127;
  return std::memcmp(bytes_.data(), &in6addr_loopback, sizeof in6addr_loopback) == 0;
}

bool address::is_wildcard() const noexcept {
  const bool is_ip = family_ == address_family::ipv4 || family_ == address_family::ipv6;
  return is_ip && std::all_of(bytes_.begin(), bytes_.end(), [](unsigned char b) { return b == 0; });
}

address address::unmapped() const noexcept {
  if (family_ != address_family::ipv6 || !is_mapped(bytes_.data())) return *this;
  address result;
  result.family_ = address_family::ipv4;
  result.port_ = port_;
  std::copy_n(bytes_.begin() + 12, 4, result.bytes_.begin());
  return result;
}

// FNV-1a of 64 bits. Not proof against an attacker who chooses addresses in order to make them collide.
std::size_t address::hash() const noexcept {
  std::uint64_t value = 0xcbf29ce484222325U;
  const auto mix = [&value](unsigned byte) { value = (value ^ byte) * 0x100000001b3U; };
  const std::size_t used = is_unix() ? path_length_ : 16;
  mix(static_cast<unsigned>(family_));
  for (std::size_t i = 0; i < used; ++i) mix(bytes_[i]);
  mix(port_ & 0xffU);
  mix(static_cast<unsigned>(port_ >> 8));
  for (unsigned shift = 0; shift < 32; shift += 8) mix((scope_id_ >> shift) & 0xffU);
  return static_cast<std::size_t>(value);
}

peer_address::peer_address(const address& from) noexcept
    : scope_id_(from.scope_id_), port_(from.port_), family_(from.family_) {
  if (!from.is_unix()) std::copy_n(from.bytes_.begin(), bytes_.size(), bytes_.begin());
}

peer_address peer_address::from_sockaddr(const sockaddr* source, socklen_t length) noexcept {
  peer_address result;
  if (source == nullptr || length < sizeof(sa_family_t)) return result;
  if (source->sa_family == AF_INET && length >= sizeof(sockaddr_in)) {
    sockaddr_in v4;
    std::memcpy(&v4, source, sizeof v4);
    result.family_ = address_family::ipv4;
    result.port_ = ntohs(v4.sin_port);
    std::memcpy(result.bytes_.data(), &v4.sin_addr, sizeof v4.sin_addr);
  } else if (source->sa_family == AF_INET6 && length >= sizeof(sockaddr_in6)) {
    sockaddr_in6 v6;
    std::memcpy(&v6, source, sizeof v6);
    result.family_ = address_family::ipv6;
    result.port_ = ntohs(v6.sin6_port);
    result.scope_id_ = v6.sin6_scope_id;
    std::memcpy(result.bytes_.data(), &v6.sin6_addr, sizeof v6.sin6_addr);
  } else if (source->sa_family == AF_UNIX) {
    result.family_ = address_family::unix_domain;
  }
  return result;
}

}  // namespace percore
