// Who may be reached through the proxy.
#pragma once

#include <percore/address.hpp>
#include <percore/network.hpp>

#include <cstdint>
#include <string_view>
#include <vector>

namespace proxy {

// Rules are asked in their order, the first that fits decides. Behind them stands a list of what is not the public
// Internet, which is denied, with this host's own addresses: a proxy that reaches the host's own services, or its
// network's, is a hole in both. So is port 25, through which others would send their mail in this host's name. What is
// left is allowed.
class access_list {
 public:
  // "NETWORK" or "NETWORK,PORT". Throw std::invalid_argument.
  void allow(std::string_view text) { add(text, true); }
  void deny(std::string_view text) { add(text, false); }

  // An address of this host's.
  void add_own(const percore::address& one) { own_.push_back(one); }
  // Those that its interfaces have now. Throws std::system_error.
  void add_all_own();

  [[nodiscard]] bool permits(const percore::address& target) const;

 private:
  struct rule {
    percore::network where;
    std::uint16_t port;  // 0: every one
    bool allowed;
  };
  void add(std::string_view text, bool allowed);

  std::vector<rule> rules_;
  std::vector<percore::address> own_;
};

}  // namespace proxy
