#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <optional>
#include <string>

#include "engine/tls/openssl.hpp"

namespace percore::tls {

using ssl_session_ptr = std::unique_ptr<SSL_SESSION, freed_by<SSL_SESSION_free>>;

// When and until when a server was authenticated, in seconds since 1970: a session that was resumed bears what its full
// handshake has found.
struct authenticated {
  std::int64_t done = 0;         // the full handshake
  std::int64_t valid_until = 0;  // the first certificate of the verified path expires; 0: none was verified
};

// What a client has to resume sessions with, on one core and under one version of one context's settings: whatever was
// verified in the full handshake is what would be verified now. Each is given out once: TLS 1.3 wants it so, or else those who
// listen can tell that two connections are the same client's (RFC 8446 C.4); for TLS 1.2 it is put back after the handshake.
class session_cache {
 public:
  struct entry {
    std::string key;  // the name that was verified, and the port
    ssl_session_ptr session;
    authenticated by;
    std::int64_t expires = 0;  // seconds since 1970
  };

  // At most `most` in all. A chain of resumptions is at most `longest_chain` seconds long.
  session_cache(std::size_t most, std::int64_t longest_chain) noexcept : most_(most), longest_chain_(longest_chain) {}

  void put(entry&& what, std::int64_t now) noexcept;
  // The newest for this key that is still good.
  std::optional<entry> take(const std::string& key, std::int64_t now) noexcept;
  [[nodiscard]] std::size_t size() const noexcept { return entries_.size(); }

 private:
  // Of one key: a server of TLS 1.3 gives two at a time, and who dials twice at a time needs two.
  static constexpr std::size_t most_of_a_key = 4;

  [[nodiscard]] bool good(const entry& one, std::int64_t now) const noexcept;

  std::size_t most_;
  std::int64_t longest_chain_;
  std::list<entry> entries_;  // the newest first
};

}  // namespace percore::tls
