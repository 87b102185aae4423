// TLS for test servers.
#pragma once

#include <percore/percore.hpp>

#include <string>
#include <utility>

#include "tests/support/certificates.hpp"

namespace percore::test {

inline tls_certificate shown(const certificate& which) {
  tls_certificate result;
  result.chain_pem = which.chain_pem();
  result.key_pem = which.key_pem();
  return result;
}

// Shows `which`, by default the one for localhost; a warning fails the construction.
inline tls_options server_tls(const certificate& which = authority().localhost) {
  tls_options result;
  result.certificates.push_back(shown(which));
  result.on_warning = [](const std::string& text) { throw tls_error("unexpected warning: " + text); };
  return result;
}

inline listen_options over_tls(const tls_context& context, listen_options others = {}) {
  others.tls = context;
  return others;
}
inline listen_options over_tls(tls_options options = server_tls(), listen_options others = {}) {
  return over_tls(tls_context(std::move(options)), std::move(others));
}

// Handshakes that have failed, whatever the cause.
inline std::uint64_t tls_failures(const core_stats& stats) noexcept {
  return stats.tls_failed_timed_out + stats.tls_failed_peer_gone + stats.tls_failed_not_tls +
         stats.tls_failed_plain_http + stats.tls_failed_nothing_shared + stats.tls_failed_certificate +
         stats.tls_failed_alert + stats.tls_failed_protocol + stats.tls_failed_internal;
}

}  // namespace percore::test
