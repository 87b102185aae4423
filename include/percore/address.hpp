// Endpoints: what a server listens on and where a connection comes from.
#pragma once

#include <sys/socket.h>

#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

namespace percore {

// Not called `unix`: that name is a macro in the GNU dialects of C++.
enum class address_family : std::uint8_t { unspecified, ipv4, ipv6, unix_domain };

class peer_address;

// An IPv4, IPv6 or unix endpoint. A trivially copyable value of 116 bytes: copying it never allocates.
//
// Text forms, read by the constructors and written by to_string():
//   127.0.0.1:5000         IPv4
//   [::1]:5000             IPv6
//   [fe80::1%eth0]:80      IPv6 with a zone: an interface name or index (RFC 4007); written as the index
//   :5000  *:5000          every IPv4 interface, the same as 0.0.0.0:5000. Every IPv6 interface is
//                          [::]:5000, which takes IPv4 too if socket_options::v6_only is off.
//   localhost:5000         127.0.0.1. No other name is resolved.
//   unix:/run/app.sock     a socket file, at most 107 bytes, absolute or relative
//   unix:@name             the abstract namespace of Linux (unix(7)), at most 107 bytes
//   unix:@                 listening on it lets the kernel pick an abstract name; as a peer: an
//                          unnamed socket
// Port 0 lets the kernel pick a port.
class address {
 public:
  constexpr address() noexcept = default;

  // Not explicit, so that listen("127.0.0.1:5000", handler) reads as it should. Throw std::invalid_argument
  // that says what is wrong and what is accepted.
  address(std::string_view text);
  address(const char* text) : address(std::string_view(text)) {}
  address(const std::string& text) : address(std::string_view(text)) {}

  address(const peer_address& peer) noexcept;

  // An unknown family or a length too small for its family gives an unspecified address.
  static address from_sockaddr(const sockaddr* source, socklen_t length) noexcept;

  // Fills `target` and returns the length to hand to the kernel; 0 for an unspecified address.
  socklen_t to_sockaddr(sockaddr_storage& target) const noexcept;

  std::string to_string() const;

  address_family family() const noexcept { return family_; }
  bool is_unix() const noexcept { return family_ == address_family::unix_domain; }

  // 0 for a unix address.
  std::uint16_t port() const noexcept { return port_; }
  address with_port(std::uint16_t port) const noexcept;

  // The IP address alone, as inet_pton(3) reads it; empty for any other family.
  std::string host() const;

  // Interface index of an IPv6 zone; 0 if there is none.
  std::uint32_t scope_id() const noexcept { return scope_id_; }

  // Path of the socket file; of an abstract name what follows the '@'. Empty for IP and for an unnamed
  // socket.
  std::string_view path() const noexcept;
  bool is_abstract() const noexcept { return is_unix() && bytes_[0] == 0; }

  // 127.0.0.0/8, ::1 and IPv4-mapped 127.0.0.0/8. A unix address is not a loopback address.
  bool is_loopback() const noexcept;

  // 0.0.0.0 or ::
  bool is_wildcard() const noexcept;

  // ::ffff:a.b.c.d, which a socket with v6_only off reports for its IPv4 peers, as IPv4; all else unchanged.
  address unmapped() const noexcept;

  std::size_t hash() const noexcept;

  friend bool operator==(const address&, const address&) noexcept = default;
  friend auto operator<=>(const address&, const address&) noexcept = default;

 private:
  friend class peer_address;

  void parse_ip(std::string_view text);
  void parse_unix(std::string_view text);

  // Bytes that the family does not use are zero, so that memberwise comparison is comparison of endpoints.
  address_family family_ = address_family::unspecified;
  std::uint8_t path_length_ = 0;  // bytes of sun_path in use, the leading zero of an abstract name included
  std::uint16_t port_ = 0;
  std::uint32_t scope_id_ = 0;
  std::array<unsigned char, 108> bytes_{};  // 4 or 16 bytes in network order, or sun_path
};

// What a connection slot keeps of an endpoint: 24 bytes. Of a unix endpoint it keeps only the family, since
// the clients of unix sockets are nearly always unnamed.
class peer_address {
 public:
  constexpr peer_address() noexcept = default;
  explicit peer_address(const address& from) noexcept;

  // As address::from_sockaddr. What accept4 filled in can be passed as it is.
  static peer_address from_sockaddr(const sockaddr* source, socklen_t length) noexcept;

  address_family family() const noexcept { return family_; }
  std::uint16_t port() const noexcept { return port_; }

  friend bool operator==(const peer_address&, const peer_address&) noexcept = default;

 private:
  friend class address;

  std::array<unsigned char, 16> bytes_{};
  std::uint32_t scope_id_ = 0;
  std::uint16_t port_ = 0;
  address_family family_ = address_family::unspecified;
};

static_assert(sizeof(peer_address) <= 28);

}  // namespace percore

template <>
struct std::hash<percore::address> {
  std::size_t operator()(const percore::address& value) const noexcept { return value.hash(); }
};
