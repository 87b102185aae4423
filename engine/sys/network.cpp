#include <percore/network.hpp>

#include <arpa/inet.h>
#include <netinet/in.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <stdexcept>

namespace percore {

namespace {

[[noreturn]] void refuse(std::string_view text, const char* why) {
  throw std::invalid_argument("percore: network \"" + std::string(text) + "\": " + why);
}

}  // namespace

network::network(std::string_view text) {
  const std::size_t slash = text.find('/');
  const std::string host(text.substr(0, slash));
  if (::inet_pton(AF_INET, host.c_str(), bytes_.data()) == 1) {
    family_ = address_family::ipv4;
    bits_ = 32;
  } else if (::inet_pton(AF_INET6, host.c_str(), bytes_.data()) == 1) {
    family_ = address_family::ipv6;
    bits_ = 128;
  } else {
    refuse(text, "not an IP address, or one with /BITS behind it");
  }
  if (slash != std::string_view::npos) {
    const std::string_view bits = text.substr(slash + 1);
    unsigned value = 0;
    const auto [end, error] = std::from_chars(bits.data(), bits.data() + bits.size(), value);
    if (error != std::errc() || end != bits.data() + bits.size() || bits.empty() || value > bits_) {
      refuse(text, "the length of the prefix is none");
    }
    bits_ = static_cast<std::uint8_t>(value);
  }
  constexpr std::array<unsigned char, 12> mapped{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
  if (family_ == address_family::ipv6 && bits_ >= 96 && std::equal(mapped.begin(), mapped.end(), bytes_.begin())) {
    // contains() takes what is mapped for IPv4, so it would never match.
    std::copy(bytes_.begin() + 12, bytes_.end(), bytes_.begin());
    bits_ = static_cast<std::uint8_t>(bits_ - 96);
    family_ = address_family::ipv4;
  }
}

bool network::contains(const address& which) const noexcept {
  const address plain = which.unmapped();
  if (plain.family() != family_) return false;
  sockaddr_storage storage{};
  if (plain.to_sockaddr(storage) == 0) return false;
  const void* bytes = family_ == address_family::ipv4
                          ? static_cast<const void*>(&reinterpret_cast<const sockaddr_in&>(storage).sin_addr)
                          : static_cast<const void*>(&reinterpret_cast<const sockaddr_in6&>(storage).sin6_addr);
  std::array<unsigned char, 16> other{};
  std::memcpy(other.data(), bytes, family_ == address_family::ipv4 ? 4 : 16);
  const std::size_t whole = bits_ / 8U;
  if (std::memcmp(other.data(), bytes_.data(), whole) != 0) return false;
  const unsigned rest = bits_ % 8U;
  if (rest == 0) return true;
  const unsigned mask = 0xffU << (8 - rest) & 0xffU;
  return ((other[whole] ^ bytes_[whole]) & mask) == 0;
}

std::string network::to_string() const {
  char text[INET6_ADDRSTRLEN] = {};
  ::inet_ntop(family_ == address_family::ipv4 ? AF_INET : AF_INET6, bytes_.data(), text, sizeof text);
  return std::string(text) + '/' + std::to_string(bits_);
}

}  // namespace percore
