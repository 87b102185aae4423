// The command line of percore-http.
#pragma once

#include <percore/address.hpp>
#include <percore/options.hpp>

#include <cstddef>
#include <stdexcept>
#include <string>
#include <vector>

#include "perf/servers/percore-http/handler.hpp"
#include "perf/servers/self_signed.hpp"

namespace percore_http {

// what() says what is wrong with the command line.
class usage_error : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The handlers open nothing and use nothing that another thread opens.
inline percore::server_options own_descriptors() {
  percore::server_options result;
#if !defined(__SANITIZE_THREAD__)  // it knows one descriptor table only
  result.private_descriptors = true;
#endif
  return result;
}

struct options {
  enum class action : unsigned char { serve, print_plan, print_help, print_version };

  action what = action::serve;
  std::vector<percore::address> addresses;
  body_kind kind = body_kind::plain;
  std::size_t body_bytes = 1024;
  handler_options handler;
  percore::server_options server = own_descriptors();
  percore::listen_options listener;
  bool tls = false;
  percore::tls_options tls_settings;  // with `tls`: without a certificate, one is made
  self_signed::key_type key_type = self_signed::key_type::ecdsa_p256;
  bool key_type_given = false;
  std::string certificate_file;
  std::string key_file;
  std::string topology;  // with print_plan: of a machine that is not there; empty: of this one
  bool print_stats = false;
};

// Throws usage_error. getopt_long(3) keeps its state in global variables: call it once.
options parse_options(int argc, char** argv);

extern const char* const usage_text;

}  // namespace percore_http
