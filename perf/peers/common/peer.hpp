// What the servers of other libraries have in common: the command line, the listening sockets, the pinned
// threads, and the responses, which are those of percore-http but for Date and Server.
#pragma once

#include <chrono>
#include <cstddef>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "perf/servers/floor/tls.hpp"
#include "perf/servers/percore-http/crypto.hpp"
#include "perf/servers/percore-http/http_date.hpp"

namespace peer {

struct options {
  std::string host;  // numeric IPv4
  int port = 0;
  std::size_t body_bytes = 1024;
  bool keep_alive = true;
  bool aes = false;
  int sleep_ms = 0;
  std::vector<int> cpus;  // one loop each
  int defer_accept_s = 0;
  bool fin_with_data = false;  // where the library lets the program choose the flags of a send
  std::optional<floor_server::tls_options> tls;
};

// Reads the command line; ends the process with status 2 and one line on standard error on bad usage, with
// status 0 after --help. `can_tls`: the library brings TLS.
options parse_options(int argc, char** argv, bool can_tls);

// One loop's listening socket, non-blocking. Ends the process with status 1 when it cannot be had.
struct loop_setting {
  const options& opt;
  int listener_fd;
  const floor_server::tls_material* tls;  // null without TLS
};

// Opens a SO_REUSEPORT listener for each CPU, in their order; calls `serve`, which does not return, on a
// thread pinned to each; prints "listening on ADDR:PORT"; returns after SIGINT or SIGTERM: the caller ends
// the process at once.
void run(const options& opt, const std::function<void(const loop_setting&)>& serve);

// The responses of one loop.
class responder {
 public:
  explicit responder(const options& opt);

  // The next response. It lies in `own` if its body is made for this request, else in the responder, where
  // only its date may change meanwhile.
  std::string_view next(std::string& own);

  // The number of whole request heads (GET: no bodies) at the start of `data`, whose bytes are counted in
  // `used`.
  static int count_requests(std::string_view data, std::size_t& used) noexcept;

 private:
  std::string response_;
  std::string plain_body_;
  std::size_t head_bytes_ = 0;
  std::size_t date_offset_ = 0;
  std::time_t dated_ = -1;
  percore_http::second_clock clock_;
  std::optional<percore_http::aes128_cbc> cipher_;
};

constexpr std::size_t request_bytes = 2048;  // a connection whose head is longer is closed
constexpr int accept_batch = 64;             // accepts per event, as the floor's

}  // namespace peer
