// Who may be reached through the proxy.
#pragma once

#include <percore/address.hpp>
#include <percore/network.hpp>

#include <cstdint>
#include <string_view>
#include <vector>

namespace proxy {

// Rules are asked in their order, the first that fits decides. Behind them stands a list of what is not the public
// Internet, which is denied: a proxy that reaches the host's own services, or its network's, is a hole in both. What is left
// is allowed.
class access_list {
 public:
  // "NETWORK" or "NETWORK,PORT". Throw std::invalid_argument.
  void allow(std::string_view text) { add(text, true); }
  void deny(std::string_view text) { add(text, false); }

  [[nodiscard]] bool permits(const percore::address& target) const;

 private:
  struct rule {
    percore::network where;
    std::uint16_t port;  // 0: every one
    bool allowed;
  };
  void add(std::string_view text, bool allowed);

  std::vector<rule> rules_;
};

}  // namespace proxy
