#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace floor_server {

struct options {
  std::string host;  // numeric
  std::string port;
  std::uint64_t body_bytes = 1024;
  bool keep_alive = true;
  std::vector<int> cpus;  // one loop each
  int defer_accept_s = 0;
  bool fin_with_data = false;
  bool accept_first_read = false;
  int backlog = 4096;
};

// Reads the command line. Ends the process with status 2 and one line on standard error on bad usage, with
// status 0 after --help.
options parse_options(int argc, char** argv);

[[noreturn]] void bad_usage(const std::string& why);

}  // namespace floor_server
