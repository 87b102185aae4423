#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "perf/servers/self_signed.hpp"

namespace floor_server {

using self_signed::key_type;
enum class tls_form { off, fd, shared };

struct tls_options {
  tls_form form = tls_form::off;
  std::string certificate_file;  // PEM, as the key; both empty: a self-signed pair is made
  std::string key_file;
  key_type key = key_type::ecdsa_p256;  // of the self-signed pair
  int min_version = 0;  // TLS1_2_VERSION, TLS1_3_VERSION; 0: OpenSSL's default
  int max_version = 0;
  bool tickets = true;  // off: no resumption at all
};

struct options {
  std::string host;  // numeric
  std::string port;
  std::uint64_t body_bytes = 1024;
  bool keep_alive = true;
  bool aes = false;  // the body encrypted for each response
  int sleep_ms = 0;  // before each response
  std::vector<int> cpus;  // one loop each
  int defer_accept_s = 0;
  bool fin_with_data = false;
  bool accept_first_read = false;
  int backlog = 4096;
  tls_options tls;
};

// Reads the command line. Ends the process with status 2 and one line on standard error on bad usage, with
// status 0 after --help.
options parse_options(int argc, char** argv);

}  // namespace floor_server
