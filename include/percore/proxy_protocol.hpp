// The PROXY protocol, versions 1 and 2: how a balancer tells whom it connects
// (haproxy.org/download/2.6/doc/proxy-protocol.txt). For listeners that stand behind one, and for dial.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <percore/address.hpp>
#include <percore/network.hpp>

namespace percore {

// A field of version 2 beyond the addresses: PP2_TYPE_ALPN (1), _AUTHORITY (2), _UNIQUE_ID (5), _SSL (0x20), ...
struct proxy_field {
  std::uint8_t type = 0;
  std::string value;
};

struct proxy_header {
  int version = 2;       // 1 is text and knows TCP addresses only
  address source;        // the client, as the balancer sees it. Unspecified: it has said nothing (UNKNOWN, LOCAL or a
  address destination;   // family that is none of ours); the connection then stands for itself, as a health check does.
  std::vector<proxy_field> fields;

  // The first field of a type, or nothing.
  [[nodiscard]] std::optional<std::string_view> field(std::uint8_t type) const noexcept;
};

struct proxy_protocol_options {
  proxy_protocol_options() {}

  // Who may say whom it brings. Only connections from here are served, and each must begin with a header; all others are
  // reset (stats: proxy_refused), since whoever can send a header can be anybody.
  std::vector<network> trusted;
  // Peers on unix sockets count as trusted.
  bool trust_unix = false;
  // From the accept to the whole header; at least 1 ms.
  std::chrono::milliseconds timeout{3'000};
};

// What parsing comes to.
enum class proxy_parse { more, done, wrong };
// `used`: the bytes of the header, when it is done. Headers of more than 4096 bytes, and those whose checksum (PP2_TYPE_CRC32C)
// is not right, are wrong.
proxy_parse parse_proxy_header(std::string_view bytes, proxy_header& into, std::size_t& used);
// The header as it is sent. Addresses of two families, or of none, are sent as UNKNOWN or UNSPEC. Throws std::length_error for
// fields of more than 3800 bytes in all.
std::string to_bytes(const proxy_header& header);

}  // namespace percore
