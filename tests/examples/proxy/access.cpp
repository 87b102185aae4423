#include "access.hpp"

#include <ifaddrs.h>
#include <netinet/in.h>

#include <cerrno>
#include <charconv>
#include <memory>
#include <stdexcept>
#include <string>
#include <system_error>

namespace proxy {

namespace {

// The special-purpose address registries (RFC 6890) as far as they are not reachable for everybody, and what wraps an
// IPv4 address into IPv6 (but for IPv4-mapped addresses, which percore::network takes for the IPv4 addresses that they
// are).
const std::vector<percore::network>& not_public() {
  static const std::vector<percore::network> all = {
      "0.0.0.0/8",        // "this host": Linux connects to itself
      "10.0.0.0/8",       // private
      "100.64.0.0/10",    // carriers' NAT
      "127.0.0.0/8",      // loopback
      "169.254.0.0/16",   // link-local, and the metadata services of clouds
      "172.16.0.0/12",    // private
      "192.0.0.0/24",     // protocol assignments
      "192.0.2.0/24",     // documentation
      "192.88.99.0/24",   // 6to4 relays
      "192.168.0.0/16",   // private
      "198.18.0.0/15",    // benchmarks
      "198.51.100.0/24",  // documentation
      "203.0.113.0/24",   // documentation
      "224.0.0.0/3",      // multicast, reserved, broadcast
      "::/96",            // loopback, unspecified, IPv4-compatible
      "64:ff9b::/96",     // NAT64
      "64:ff9b:1::/48",   // NAT64, local
      "100::/64",         // discard
      "2001::/23",        // protocol assignments: Teredo, benchmarking, ORCHID
      "2001:db8::/32",    // documentation
      "2002::/16",        // 6to4
      "3fff::/20",        // documentation
      "5f00::/16",        // segment routing
      "fc00::/7",         // unique local
      "fe80::/9",         // link-local, and the former site-local
      "ff00::/8",         // multicast
  };
  return all;
}

}  // namespace

void access_list::add(std::string_view text, bool allowed) {
  const std::size_t comma = text.find(',');
  std::uint16_t port = 0;
  if (comma != std::string_view::npos) {
    const std::string_view digits = text.substr(comma + 1);
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), port);
    if (error != std::errc() || end != digits.data() + digits.size() || port == 0) {
      throw std::invalid_argument("not a port: " + std::string(digits));
    }
  }
  rules_.push_back({percore::network(text.substr(0, comma)), port, allowed});
}

bool access_list::permits(const percore::address& target) const {
  if (target.is_unix()) return false;
  for (const rule& one : rules_) {
    if (one.where.contains(target) && (one.port == 0 || one.port == target.port())) return one.allowed;
  }
  for (const percore::network& one : not_public()) {
    if (one.contains(target)) return false;
  }
  for (const percore::address& one : own_) {
    if (one.unmapped().host() == target.unmapped().host()) return false;  // whatever the port and the zone
  }
  constexpr std::uint16_t smtp = 25;
  return target.port() != 0 && target.port() != smtp;
}

void access_list::add_all_own() {
  ifaddrs* all = nullptr;
  if (::getifaddrs(&all) != 0) throw std::system_error(errno, std::system_category(), "getifaddrs");
  const std::unique_ptr<ifaddrs, decltype(&::freeifaddrs)> held(all, ::freeifaddrs);
  for (const ifaddrs* one = all; one != nullptr; one = one->ifa_next) {
    if (one->ifa_addr == nullptr) continue;
    const int family = one->ifa_addr->sa_family;
    if (family == AF_INET) add_own(percore::address::from_sockaddr(one->ifa_addr, sizeof(sockaddr_in)));
    if (family == AF_INET6) add_own(percore::address::from_sockaddr(one->ifa_addr, sizeof(sockaddr_in6)));
  }
}

}  // namespace proxy
