#include "perf/pace/options.hpp"

#include <arpa/inet.h>
#include <getopt.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>

#include "perf/program.hpp"

namespace pace {
namespace {

constexpr const char* usage_text =
    "usage: pace --address ADDR:PORT --rate N [options]\n"
    "       pace --address ADDR:PORT --idle N [--tls]\n"
    "\n"
    "Sends GET requests at a constant rate, whatever the server does, and prints one JSON object. A latency "
    "counts from\n"
    "the time at which the request should have been sent: waiting for a connection to get free is part of "
    "it.\n"
    "\n"
    "  --rate N           requests per second\n"
    "  --connections N    at most so many at the same time (default 100)\n"
    "  --duration S       seconds that count (default 10)\n"
    "  --warm-up S        seconds before them (default 1)\n"
    "  --threads N        each with its share of rate and connections, pinned (default 1)\n"
    "  --target PATH      what is asked for (default /)\n"
    "  --close            a connection for each request, with 'Connection: close'\n"
    "  --tls              without a look at the certificate\n"
    "  --full-handshakes  with --tls: resume no session\n"
    "  --idle N           open N connections, send one request on each, print \"idle N\" when all are "
    "answered, and\n"
    "                     keep them until SIGTERM\n"
    "  --help             this text\n";

using program::bad_usage;
using program::parse_number;

int parse_count(std::string_view text, const char* name) {
  return parse_number(text, name, 1, 1'000'000);
}

void parse_address(const std::string& text, sockaddr_in& address) {
  const std::size_t colon = text.rfind(':');
  address.sin_family = AF_INET;
  if (colon == std::string::npos ||
      inet_pton(AF_INET, text.substr(0, colon).c_str(), &address.sin_addr) != 1) {
    bad_usage("--address: a numeric IPv4 address and a port expected, not '" + text + "'");
  }
  const int port = parse_number(std::string_view(text).substr(colon + 1), "--address", 1, 65535);
  address.sin_port = htons(static_cast<std::uint16_t>(port));
}

enum flag {
  address_ = 256,
  rate_,
  connections_,
  duration_,
  warm_up_,
  threads_,
  target_,
  close_,
  tls_,
  full_,
  idle_,
  help_
};

constexpr option flags[] = {{"address", required_argument, nullptr, address_},
                            {"rate", required_argument, nullptr, rate_},
                            {"connections", required_argument, nullptr, connections_},
                            {"duration", required_argument, nullptr, duration_},
                            {"warm-up", required_argument, nullptr, warm_up_},
                            {"threads", required_argument, nullptr, threads_},
                            {"target", required_argument, nullptr, target_},
                            {"close", no_argument, nullptr, close_},
                            {"tls", no_argument, nullptr, tls_},
                            {"full-handshakes", no_argument, nullptr, full_},
                            {"idle", required_argument, nullptr, idle_},
                            {"help", no_argument, nullptr, help_},
                            {nullptr, 0, nullptr, 0}};

void apply(int found, options& opt) {
  switch (found) {
    case address_:
      parse_address(optarg, opt.address);
      break;
    case rate_:
      opt.rate = parse_number(optarg, "--rate", 1.0, 1e8);
      break;
    case connections_:
      opt.connections = parse_count(optarg, "--connections");
      break;
    case duration_:
      opt.duration_s = parse_number(optarg, "--duration", 0.1, 86'400.0);
      break;
    case warm_up_:
      opt.warm_up_s = parse_number(optarg, "--warm-up", 0.0, 3600.0);
      break;
    case threads_:
      opt.threads = parse_count(optarg, "--threads");
      break;
    case target_:
      opt.target = optarg;
      if (opt.target[0] != '/' || opt.target.find_first_of(" \r\n") != std::string::npos) {
        bad_usage("--target: a path expected, not '" + opt.target + "'");
      }
      break;
    case close_:
      opt.close = true;
      break;
    case tls_:
      opt.tls = true;
      break;
    case full_:
      opt.resume = false;
      break;
    case idle_:
      opt.idle = parse_count(optarg, "--idle");
      break;
    case help_:
      std::fputs(usage_text, stdout);
      std::exit(0);
    default:
      std::exit(2);  // getopt_long has said why
  }
}

}  // namespace

options parse_options(int argc, char** argv) {
  options opt;
  for (int found; (found = getopt_long(argc, argv, "", flags, nullptr)) != -1;) apply(found, opt);
  if (optind < argc) bad_usage(std::string("unexpected argument '") + argv[optind] + "'");
  if (opt.address.sin_family == 0) bad_usage("--address is required");
  if ((opt.rate > 0) == (opt.idle > 0)) bad_usage("either --rate or --idle is required");
  if (opt.threads > opt.connections) bad_usage("--threads: more than connections");
  return opt;
}

}  // namespace pace
