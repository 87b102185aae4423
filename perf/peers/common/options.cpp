// The command line, with the names that percore-http gives the same things.

#include <arpa/inet.h>
#include <getopt.h>
#include <netinet/in.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>

#include "perf/program.hpp"
#include "perf/peers/common/peer.hpp"

namespace peer {
namespace {

constexpr const char* usage_text =
    "usage: %s --listen ADDR:PORT [options]\n"
    "\n"
    "A benchmark server of another library, with the responses of percore-http. Prints \"listening on "
    "ADDR:PORT\"\n"
    "when it serves; ends on SIGINT and SIGTERM with status 0.\n"
    "\n"
    "  --listen ADDR:PORT       numeric IPv4 address; port 0 lets the kernel choose\n"
    "  --body BYTES             length of the body (default 1024, at most 1 GiB)\n"
    "  --keep-alive on|off      off: close after the response (default on)\n"
    "  --aes128                 the body encrypted with AES-128-CBC, behind its initialisation vector\n"
    "  --sleep-ms N             wait before the response\n"
    "  --cpus LIST              one pinned loop per CPU, as in 0-3,8 (default: the CPUs it may run on)\n"
    "  --defer-accept SECONDS   TCP_DEFER_ACCEPT (default 0: off)\n"
    "  --fin-with-data on|off   MSG_MORE on the last send, where the library lets the program choose "
    "(default off)\n"
    "  --tls --cert FILE --key FILE  serve TLS with this PEM pair, if the library brings TLS\n"
    "  --tickets on|off         off: every handshake is full (default on)\n"
    "  --help                   this text\n";

using program::bad_usage;
using program::parse_number;
using program::parse_switch;

void parse_listen(std::string_view text, options& opt) {
  const std::size_t colon = text.rfind(':');
  if (colon == std::string_view::npos) bad_usage("--listen: ADDR:PORT expected");
  opt.host = text.substr(0, colon);
  in_addr address{};
  if (inet_pton(AF_INET, opt.host.c_str(), &address) != 1)
    bad_usage("--listen: a numeric IPv4 address expected");
  opt.port = parse_number(text.substr(colon + 1), "--listen", 0, 65535);
}

enum flag {
  listen_ = 256,
  body_,
  keep_alive_,
  aes_,
  sleep_,
  cpus_,
  defer_,
  fin_,
  tls_,
  cert_,
  key_,
  tickets_,
  help_
};

constexpr option flags[] = {{"listen", required_argument, nullptr, listen_},
                            {"body", required_argument, nullptr, body_},
                            {"keep-alive", required_argument, nullptr, keep_alive_},
                            {"aes128", no_argument, nullptr, aes_},
                            {"sleep-ms", required_argument, nullptr, sleep_},
                            {"cpus", required_argument, nullptr, cpus_},
                            {"defer-accept", required_argument, nullptr, defer_},
                            {"fin-with-data", required_argument, nullptr, fin_},
                            {"tls", no_argument, nullptr, tls_},
                            {"cert", required_argument, nullptr, cert_},
                            {"key", required_argument, nullptr, key_},
                            {"tickets", required_argument, nullptr, tickets_},
                            {"help", no_argument, nullptr, help_},
                            {nullptr, 0, nullptr, 0}};

void apply(int found, options& opt, floor_server::tls_options& tls) {
  switch (found) {
    case listen_:
      parse_listen(optarg, opt);
      break;
    case body_:
      opt.body_bytes = static_cast<std::size_t>(parse_number(optarg, "--body", 0, 1 << 30));
      break;
    case keep_alive_:
      opt.keep_alive = parse_switch(optarg, "--keep-alive");
      break;
    case aes_:
      opt.aes = true;
      break;
    case sleep_:
      opt.sleep_ms = parse_number(optarg, "--sleep-ms", 0, 3'600'000);
      break;
    case cpus_:
      opt.cpus = program::parse_cpus(optarg, "--cpus");
      break;
    case defer_:
      opt.defer_accept_s = parse_number(optarg, "--defer-accept", 0, 3600);
      break;
    case fin_:
      opt.fin_with_data = parse_switch(optarg, "--fin-with-data");
      break;
    case cert_:
      tls.certificate_file = optarg;
      break;
    case key_:
      tls.key_file = optarg;
      break;
    case tickets_:
      tls.tickets = parse_switch(optarg, "--tickets");
      break;
    case help_:
      std::printf(usage_text, program_invocation_short_name);
      std::exit(0);
    default:
      std::exit(2);  // getopt_long has said why
  }
}

}  // namespace

options parse_options(int argc, char** argv, bool can_tls) {
  options opt;
  floor_server::tls_options tls;
  bool with_tls = false;
  for (int found; (found = getopt_long(argc, argv, "", flags, nullptr)) != -1;) {
    if (found == tls_) {
      with_tls = true;
    } else {
      apply(found, opt, tls);
    }
  }
  if (optind < argc) bad_usage(std::string("unexpected argument '") + argv[optind] + "'");
  if (opt.host.empty()) bad_usage("--listen is required");
  if (with_tls && !can_tls) bad_usage("--tls: this library brings none");
  if (with_tls && (tls.certificate_file.empty() || tls.key_file.empty()))
    bad_usage("--tls needs --cert and --key");
  if (with_tls) opt.tls = tls;
  if (opt.cpus.empty()) opt.cpus = program::allowed_cpus();
  return opt;
}

}  // namespace peer
