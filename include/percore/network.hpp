// network: a set of IP addresses with a common prefix, for lists of who may do what.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include <percore/address.hpp>

namespace percore {

// "10.0.0.0/8", "2001:db8::/32", or one address ("192.0.2.1", "::1"). Bits behind the prefix are ignored.
class network {
 public:
  // Not explicit, so that lists read as they should. Throw std::invalid_argument that says what is wrong.
  network(std::string_view text);
  network(const char* text) : network(std::string_view(text)) {}
  network(const std::string& text) : network(std::string_view(text)) {}

  // An IPv4-mapped IPv6 address (::ffff:a.b.c.d) counts as IPv4, and a network of such addresses is one of IPv4. False
  // for all that is no IP address.
  [[nodiscard]] bool contains(const address& which) const noexcept;

  [[nodiscard]] std::string to_string() const;

 private:
  std::array<unsigned char, 16> bytes_{};
  std::uint8_t bits_ = 0;
  address_family family_ = address_family::unspecified;
};

}  // namespace percore
