// One connection to the proxy.
#pragma once

#include <percore/percore.hpp>

#include <chrono>
#include <map>
#include <string>

#include "access.hpp"

namespace proxy {

struct settings {
  access_list access;
  std::map<std::string, std::string> users;      // with passwords; none: everybody is served
  std::chrono::seconds request_timeout{15};      // from the first byte to the whole request
  std::chrono::milliseconds dial_timeout{10'000};
  std::chrono::seconds idle_timeout{300};
};

// SOCKS5 when the first byte says so, else HTTP. `how` must outlive the server.
percore::task<> serve(percore::connection& conn, const settings& how);

}  // namespace proxy
