// Records of any type and content on an established TLS connection: what no TLS library would send.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "tests/support/tls_client.hpp"

namespace percore::test {

enum class record_type : unsigned char { alert = 21, handshake = 22, application_data = 23 };

// A handshake of this version with a cipher that forged_records knows, AES-128-GCM with SHA-256. Made once per client: its
// SSL_CTX hands the secrets on.
tls_profile forgeable_profile(int version);

// Takes the place of a client that has shaken hands with such a profile and has sent no application data. Nothing may be
// sent through the client itself afterwards.
class forged_records {
 public:
  explicit forged_records(const tls_client& peer);
  // The next record: encrypted, authenticated and numbered as the protocol wants it.
  std::string make(record_type type, std::string_view content);

 private:
  bool old_version_;
  std::string key_;
  std::string iv_;
  std::uint64_t number_;
};

}  // namespace percore::test
