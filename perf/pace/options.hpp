#pragma once

#include <netinet/in.h>

#include <string>

namespace pace {

struct options {
  sockaddr_in address{};
  double rate = 0;        // requests per second, of all threads
  int connections = 100;  // open at the same time, at most
  double duration_s = 10;
  double warm_up_s = 1;  // requests intended in it are sent but not counted
  int threads = 1;       // each pinned to one of the CPUs that the process may use
  std::string target = "/";
  bool close = false;    // a connection for each request
  bool tls = false;
  bool resume = true;  // TLS: offer the session of the connection before
  int idle = 0;        // open so many connections, one request on each, and keep them
};

// Ends the process with status 2 and one line on standard error on bad usage, with status 0 after --help.
options parse_options(int argc, char** argv);

}  // namespace pace
