#include "perf/servers/floor/options.hpp"

#include <getopt.h>
#include <openssl/ssl.h>

#include <cstdio>
#include <cstdlib>
#include <string_view>

#include "perf/program.hpp"

namespace floor_server {
namespace {

constexpr std::uint64_t max_body_bytes = 1u << 30;

constexpr const char* usage_text =
    "usage: floor --listen ADDR:PORT [options]\n"
    "\n"
    "Answers every recv with one prepared HTTP/1.1 response: the limit to compare servers with.\n"
    "Prints \"listening on ADDR:PORT\" when it serves; ends on SIGINT and SIGTERM with status 0.\n"
    "\n"
    "  --listen ADDR:PORT          numeric IPv4 or [IPv6] address; port 0 lets the kernel choose\n"
    "  --body BYTES                length of the response body (default 1024, at most 1 GiB)\n"
    "  --keep-alive on|off         off: close after the response (default on)\n"
    "  --aes128                    encrypt the body for each response, as percore-http does\n"
    "  --sleep-ms N                wait before each response (default 0)\n"
    "  --cpus LIST                 one pinned loop per CPU, as in 0-3,8 (default: the CPUs it may run on)\n"
    "  --defer-accept SECONDS      TCP_DEFER_ACCEPT: accept only what has sent data (default 0: off)\n"
    "  --fin-with-data             MSG_MORE on the send, so that the close puts its FIN on the last data\n"
    "                              segment; with --keep-alive off only\n"
    "  --accept-first-read on|off  on: recv at once after accept, epoll ADD only if that would block;\n"
    "                              off: epoll ADD, recv when the event comes\n"
    "                              (default on with --defer-accept, else off: perf/README.md has the "
    "figures)\n"
    "  --backlog N                 of each listener, capped by net.core.somaxconn (default 4096)\n"
    "  --tls fd|shared             serve TLS. fd: OpenSSL used plainly, on the socket; shared: one recv and "
    "one\n"
    "                              send per event, through a BIO that all connections of a loop share\n"
    "  --cert FILE --key FILE      the certificate chain and its key, PEM (default: a self-signed pair made "
    "at\n"
    "                              start)\n"
    "  --key-type TYPE             of the self-signed pair: ecdsa (P-256; default), rsa2048 or rsa4096\n"
    "  --tls-min 1.2|1.3           lowest version (default: OpenSSL's, with its configuration)\n"
    "  --tls-max 1.2|1.3           highest version\n"
    "  --tickets on|off            off: no session tickets and no session cache, so every handshake is full\n"
    "                              (default on)\n"
    "  --help                      this text\n";

using program::bad_usage;
using program::parse_number;
using program::parse_switch;

void parse_listen(std::string_view text, options& opt) {
  const std::size_t colon = text.rfind(':');
  if (colon == std::string_view::npos || colon == 0) bad_usage("--listen: ADDR:PORT expected");
  std::string_view host = text.substr(0, colon);
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
  opt.host = host;
  opt.port = std::to_string(parse_number(text.substr(colon + 1), "--listen", 0, 65535));
}

tls_form parse_form(std::string_view text) {
  if (text == "fd") return tls_form::fd;
  if (text == "shared") return tls_form::shared;
  bad_usage("--tls: fd or shared expected, not '" + std::string(text) + "'");
}

key_type parse_key_type(std::string_view text) {
  if (const auto known = self_signed::parse_key_type(text)) return *known;
  bad_usage("--key-type: ecdsa, rsa2048 or rsa4096 expected, not '" + std::string(text) + "'");
}

int parse_version(std::string_view text, const char* name) {
  if (text == "1.2") return TLS1_2_VERSION;
  if (text == "1.3") return TLS1_3_VERSION;
  bad_usage(std::string(name) + ": 1.2 or 1.3 expected, not '" + std::string(text) + "'");
}

enum flag {
  listen_,
  body_,
  keep_alive_,
  aes_,
  sleep_,
  cpus_,
  defer_accept_,
  fin_with_data_,
  first_read_,
  backlog_,
  help_,
  tls_,
  cert_,
  key_,
  key_type_,
  tls_min_,
  tls_max_,
  tickets_
};

constexpr option flags[] = {{"listen", required_argument, nullptr, listen_},
                            {"body", required_argument, nullptr, body_},
                            {"keep-alive", required_argument, nullptr, keep_alive_},
                            {"aes128", no_argument, nullptr, aes_},
                            {"sleep-ms", required_argument, nullptr, sleep_},
                            {"cpus", required_argument, nullptr, cpus_},
                            {"defer-accept", required_argument, nullptr, defer_accept_},
                            {"fin-with-data", no_argument, nullptr, fin_with_data_},
                            {"accept-first-read", required_argument, nullptr, first_read_},
                            {"backlog", required_argument, nullptr, backlog_},
                            {"help", no_argument, nullptr, help_},
                            {"tls", required_argument, nullptr, tls_},
                            {"cert", required_argument, nullptr, cert_},
                            {"key", required_argument, nullptr, key_},
                            {"key-type", required_argument, nullptr, key_type_},
                            {"tls-min", required_argument, nullptr, tls_min_},
                            {"tls-max", required_argument, nullptr, tls_max_},
                            {"tickets", required_argument, nullptr, tickets_},
                            {nullptr, 0, nullptr, 0}};

// True when `c` was one of TLS's flags.
bool parse_tls_flag(int c, tls_options& tls) {
  switch (c) {
    case tls_:
      tls.form = parse_form(optarg);
      return true;
    case cert_:
      tls.certificate_file = optarg;
      return true;
    case key_:
      tls.key_file = optarg;
      return true;
    case key_type_:
      tls.key = parse_key_type(optarg);
      return true;
    case tls_min_:
      tls.min_version = parse_version(optarg, "--tls-min");
      return true;
    case tls_max_:
      tls.max_version = parse_version(optarg, "--tls-max");
      return true;
    case tickets_:
      tls.tickets = parse_switch(optarg, "--tickets");
      return true;
    default:
      return false;
  }
}

// `given`: the last of TLS's flags that is not --tls, or null; `key_type_given`: --key-type was.
void check_tls(const tls_options& tls, const char* given, bool key_type_given) {
  if (tls.form == tls_form::off && given != nullptr) bad_usage(std::string("--") + given + " needs --tls");
  if (tls.certificate_file.empty() != tls.key_file.empty()) bad_usage("--cert and --key need each other");
  if (key_type_given && !tls.key_file.empty())
    bad_usage("--key-type is for a self-signed pair, not for --key");
  if (tls.max_version != 0 && tls.min_version > tls.max_version) bad_usage("--tls-min is above --tls-max");
}

void check(const options& opt) {
  if (opt.port.empty()) bad_usage("--listen is required");
  if (opt.tls.form != tls_form::off && (opt.aes || opt.sleep_ms > 0)) {
    bad_usage("--aes128 and --sleep-ms are for plain connections");
  }
  if (opt.fin_with_data && opt.keep_alive) bad_usage("--fin-with-data needs --keep-alive off");
}

}  // namespace

options parse_options(int argc, char** argv) {
  options opt;
  std::optional<bool> first_read;
  const char* tls_given = nullptr;
  bool key_type_given = false;
  for (int c, i = 0; (c = getopt_long(argc, argv, "", flags, &i)) != -1;) {
    if (parse_tls_flag(c, opt.tls) && c != tls_) tls_given = flags[i].name;
    if (c == key_type_) key_type_given = true;
    if (c == listen_) parse_listen(optarg, opt);
    if (c == body_) opt.body_bytes = parse_number<std::uint64_t>(optarg, "--body", 0, max_body_bytes);
    if (c == keep_alive_) opt.keep_alive = parse_switch(optarg, "--keep-alive");
    if (c == aes_) opt.aes = true;
    if (c == sleep_) opt.sleep_ms = parse_number(optarg, "--sleep-ms", 0, 60'000);
    if (c == cpus_) opt.cpus = program::parse_cpus(optarg, "--cpus");
    if (c == defer_accept_) opt.defer_accept_s = parse_number(optarg, "--defer-accept", 0, 3600);
    if (c == fin_with_data_) opt.fin_with_data = true;
    if (c == first_read_) first_read = parse_switch(optarg, "--accept-first-read");
    if (c == backlog_) opt.backlog = parse_number(optarg, "--backlog", 1, 65535);
    if (c == '?') std::exit(2);  // getopt_long has said why
    if (c == help_) {
      std::fputs(usage_text, stdout);
      std::exit(0);
    }
  }
  if (optind < argc) bad_usage(std::string("unexpected argument '") + argv[optind] + "'");
  check(opt);
  check_tls(opt.tls, tls_given, key_type_given);
  if (opt.cpus.empty()) opt.cpus = program::allowed_cpus();
  opt.accept_first_read = first_read.value_or(opt.defer_accept_s > 0);
  return opt;
}

}  // namespace floor_server
