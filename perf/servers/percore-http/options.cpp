#include "perf/servers/percore-http/options.hpp"

#include <getopt.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string_view>

namespace percore_http {

const char* const usage_text =
    "usage: percore-http [options]\n"
    "\n"
    "The benchmark HTTP/1.1 server: answers every request with the same body. Prints\n"
    "\"listening on ADDR\" for each address once it serves; SIGINT and SIGTERM drain it, a second\n"
    "one ends it at once. Then it prints for each core \"core N cpu C accepted A requests R\".\n"
    "\n"
    "Responses\n"
    "  --body BYTES                length of the body (default 1024, at most 1 GiB)\n"
    "  --keep-alive on|off         off: close after each response (default on)\n"
    "  --sleep-ms N                wait before each response (default 0)\n"
    "  --sleep-how HOW             by a timer of the core (the default); offload: a helper thread sleeps;\n"
    "                              blocking: a helper thread serves the whole connection; inline: the thread of the\n"
    "                              core sleeps, or with --spill that of a helper\n"
    "  --sleep-target PATH         only before the responses to requests for PATH (default: to all)\n"
    "  --aes128                    send the body encrypted with AES-128-CBC and PKCS#7 padding, behind a\n"
    "                              fresh random initialisation vector of 16 bytes; the key is the 16\n"
    "                              characters 0123456789ABCDEF\n"
    "  --sha256                    send the SHA-256 of the body, in hexadecimal, instead of the body\n"
    "  --max-header-bytes BYTES    request line and fields, 64 to 1 MiB (default 8192); more: 414 or 431\n"
    "  --max-body-bytes BYTES      body of a request (default 1 MiB); more: 413\n"
    "\n"
    "Listening\n"
    "  --listen ADDR               127.0.0.1:8080 (the default), [::1]:8080, :8080, unix:/path, unix:@name;\n"
    "                              port 0 lets the kernel choose; may be given several times\n"
    "  --backlog N                 of each listening socket (default 0: what net.core.somaxconn allows)\n"
    "  --defer-accept SECONDS      TCP_DEFER_ACCEPT: accept only what has sent data (default 0: off)\n"
    "  --fin-with-data on|off      the last response carries the FIN (default on)\n"
    "  --steering MODE             which core gets a connection: automatic, hash, incoming_cpu or cbpf\n"
    "                              (default automatic)\n"
    "  --max-connections N         open connections of the server; more wait (default 0: no limit)\n"
    "  --max-connections-per-core N  the same for each core (default 0: as many as descriptors allow)\n"
    "\n"
    "TLS\n"
    "  --tls                       on all addresses\n"
    "  --cert FILE, --key FILE     certificate chain and key in PEM; without them a self-signed pair is made\n"
    "  --key-type TYPE             of that pair: ecdsa (P-256, the default), rsa2048 or rsa4096\n"
    "  --tls-min V, --tls-max V    1.2 or 1.3 (default 1.2 to 1.3)\n"
    "  --ciphers LIST, --ciphersuites LIST, --groups LIST\n"
    "                              OpenSSL's lists for TLS 1.2, for TLS 1.3, and of the key exchange groups\n"
    "  --tickets on|off            resumption (default on)\n"
    "  --kernel-tls on|off         the kernel encrypts what is sent, if it can (default off)\n"
    "\n"
    "Time limits, in seconds such as 30 or 0.5; 0, the default, is none\n"
    "  --read-timeout S            for the next bytes, an idle keep-alive connection included\n"
    "  --write-timeout S           while the client takes no byte of a response\n"
    "  --idle-timeout S            without a byte in either direction\n"
    "  --lifetime-timeout S        of a connection\n"
    "  --grace S                   for open connections when the server ends\n"
    "\n"
    "Cores\n"
    "  --unit core|thread          one core thread per physical core (default) or hardware thread\n"
    "  --cores N                   so many of them (default: all, or what the cgroup's quota allows)\n"
    "  --cpus LIST                 exactly these CPUs, as in 0-3,8\n"
    "  --numa-nodes LIST|all       only the CPUs of these NUMA nodes, filled in this order, as in 1,0\n"
    "                              (default all)\n"
    "  --plan                      print where the cores would run, and end\n"
    "  --topology NAME             with --plan: on another machine, such as c5.metal or an hwloc "
    "description\n"
    "\n"
    "  --helpers N                 threads beside each core for offload and blocking, at most (default 64)\n"
    "  --helper-floor N            so many of them stay when idle (default 0)\n"
    "  --spill never|when_slow|always  steps of handlers run on helper threads (default never)\n"
    "  --spill-budget-us N         when_slow: what a step may take, 10 to 1000000 (default 500)\n"
    "  --takeover on|off           another thread goes on with a core that a handler keeps (default off)\n"
    "  --takeover-after-ms N       for so long, 1 to 3600000 (default 5)\n"
    "  --private-descriptors on|off  a descriptor table for each core (default on)\n"
    "\n"
    "  --stats                     at the end print how listeners are steered and the engine's counters\n"
    "  --help, --version\n";

namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

std::uint64_t parse_number(const std::string& name, std::string_view text, std::uint64_t low,
                           std::uint64_t high) {
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size() || value < low || value > high) {
    throw usage_error(name + ": a number from " + std::to_string(low) + " to " + std::to_string(high) +
                      " expected, not '" + std::string(text) + "'");
  }
  return value;
}

// The engine's longest timeout is 2^32 - 1 ms.
milliseconds parse_seconds(const std::string& name, std::string_view text) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size() || !(value >= 0 && value <= 4'000'000)) {
    throw usage_error(name + ": seconds from 0 to 4000000 expected, not '" + std::string(text) + "'");
  }
  return milliseconds(static_cast<std::int64_t>(std::ceil(value * 1000)));
}

bool parse_choice(const std::string& name, std::string_view text, std::string_view yes, std::string_view no) {
  if (text == yes) return true;
  if (text == no) return false;
  throw usage_error(name + ": " + std::string(yes) + " or " + std::string(no) + " expected, not '" +
                    std::string(text) + "'");
}

percore::tls_version parse_tls_version(const std::string& name, std::string_view text) {
  return parse_choice(name, text, "1.2", "1.3") ? percore::tls_version::v1_2 : percore::tls_version::v1_3;
}

self_signed::key_type parse_key_type(const std::string& name, std::string_view text) {
  if (const auto known = self_signed::parse_key_type(text)) return *known;
  throw usage_error(name + ": ecdsa, rsa2048 or rsa4096 expected, not '" + std::string(text) + "'");
}

sleep_kind parse_sleep_kind(const std::string& name, std::string_view text) {
  if (text == "timer") return sleep_kind::timer;
  if (text == "offload") return sleep_kind::offload;
  if (text == "blocking") return sleep_kind::block;
  if (text == "inline") return sleep_kind::inlined;
  throw usage_error(name + ": timer, offload, blocking or inline expected, not '" + std::string(text) + "'");
}

percore::spilling parse_spilling(const std::string& name, std::string_view text) {
  if (text == "never") return percore::spilling::never;
  if (text == "when_slow") return percore::spilling::when_slow;
  if (text == "always") return percore::spilling::always;
  throw usage_error(name + ": never, when_slow or always expected, not '" + std::string(text) + "'");
}

percore::steering parse_steering(const std::string& name, std::string_view text) {
  using percore::steering;
  for (const steering mode : {steering::automatic, steering::hash, steering::incoming_cpu, steering::cbpf}) {
    if (text == to_string(mode)) return mode;
  }
  throw usage_error(name + ": automatic, hash, incoming_cpu or cbpf expected, not '" + std::string(text) +
                    "'");
}

// Empty, which the library takes for all.
std::vector<unsigned> parse_nodes(const std::string& name, std::string_view text) {
  if (text == "all") return {};
  try {
    return percore::parse_cpu_list(text);  // kernel numbers in the same notation
  } catch (const std::invalid_argument&) {
    throw usage_error(name + ": all or numbers of NUMA nodes such as 0,2-3 expected, not '" + std::string(text) + "'");
  }
}

// An option that takes a value, and what it does with it.
struct value_option {
  const char* name;
  void (*apply)(options& opt, const std::string& name, const char* value);
};

constexpr std::uint64_t gigabyte = std::uint64_t{1} << 30;
constexpr std::uint64_t megabyte = std::uint64_t{1} << 20;

constexpr value_option value_options[] = {
    {"listen", [](options& o, const std::string&, const char* v) { o.addresses.emplace_back(v); }},
    {"body",
     [](options& o, const std::string& n, const char* v) { o.body_bytes = parse_number(n, v, 0, gigabyte); }},
    {"keep-alive", [](options& o, const std::string& n,
                      const char* v) { o.handler.keep_alive = parse_choice(n, v, "on", "off"); }},
    {"sleep-ms", [](options& o, const std::string& n,
                    const char* v) { o.handler.sleep = milliseconds(parse_number(n, v, 0, 3'600'000)); }},
    {"sleep-target",
     [](options& o, const std::string& n, const char* v) {
       o.handler.sleep_target = v;
       if (*v != '/') throw usage_error(n + ": a path expected, not '" + o.handler.sleep_target + "'");
     }},
    {"sleep-how", [](options& o, const std::string& n, const char* v) { o.handler.how = parse_sleep_kind(n, v); }},
    {"helpers",
     [](options& o, const std::string& n, const char* v) {
       o.server.helpers.most_per_core = static_cast<unsigned>(parse_number(n, v, 1, 4096));
     }},
    {"helper-floor",
     [](options& o, const std::string& n, const char* v) {
       o.server.helpers.floor = static_cast<unsigned>(parse_number(n, v, 0, 4096));
     }},
    {"spill", [](options& o, const std::string& n, const char* v) { o.listener.spill = parse_spilling(n, v); }},
    {"spill-budget-us",
     [](options& o, const std::string& n, const char* v) {
       o.listener.spill_budget = std::chrono::microseconds(parse_number(n, v, 10, 1'000'000));
     }},
    {"takeover", [](options& o, const std::string& n,
                    const char* v) { o.server.takeover.on = parse_choice(n, v, "on", "off"); }},
    {"takeover-after-ms",
     [](options& o, const std::string& n, const char* v) {
       o.server.takeover.after = milliseconds(parse_number(n, v, 1, 3'600'000));
     }},
    {"max-header-bytes",
     [](options& o, const std::string& n, const char* v) {
       o.handler.limits.head_bytes = parse_number(n, v, 64, megabyte);
     }},
    {"max-body-bytes",
     [](options& o, const std::string& n, const char* v) {
       o.handler.limits.body_bytes = parse_number(n, v, 0, std::numeric_limits<std::uint64_t>::max() / 2);
     }},
    {"backlog",
     [](options& o, const std::string& n, const char* v) {
       o.listener.socket.backlog = static_cast<int>(parse_number(n, v, 0, std::numeric_limits<int>::max()));
     }},
    {"defer-accept",
     [](options& o, const std::string& n, const char* v) {
       o.listener.socket.defer_accept = seconds(parse_number(n, v, 0, 32'767));
     }},
    {"private-descriptors", [](options& o, const std::string& n,
                               const char* v) { o.server.private_descriptors = parse_choice(n, v, "on", "off"); }},
    {"fin-with-data", [](options& o, const std::string& n,
                         const char* v) { o.handler.fin_with_data = parse_choice(n, v, "on", "off"); }},
    {"steering", [](options& o, const std::string& n,
                    const char* v) { o.listener.socket.steering = parse_steering(n, v); }},
    {"max-connections", [](options& o, const std::string& n,
                           const char* v) { o.server.max_connections = parse_number(n, v, 0, gigabyte); }},
    {"max-connections-per-core",
     [](options& o, const std::string& n, const char* v) {
       o.server.max_connections_per_core = parse_number(n, v, 0, gigabyte);
     }},
    {"cert", [](options& o, const std::string&, const char* v) { o.certificate_file = v; }},
    {"key", [](options& o, const std::string&, const char* v) { o.key_file = v; }},
    {"key-type",
     [](options& o, const std::string& n, const char* v) {
       o.key_type = parse_key_type(n, v);
       o.key_type_given = true;
     }},
    {"tls-min", [](options& o, const std::string& n,
                   const char* v) { o.tls_settings.min_version = parse_tls_version(n, v); }},
    {"tls-max", [](options& o, const std::string& n,
                   const char* v) { o.tls_settings.max_version = parse_tls_version(n, v); }},
    {"ciphers", [](options& o, const std::string&, const char* v) { o.tls_settings.ciphers = v; }},
    {"ciphersuites", [](options& o, const std::string&, const char* v) { o.tls_settings.ciphersuites = v; }},
    {"groups", [](options& o, const std::string&, const char* v) { o.tls_settings.groups = v; }},
    {"tickets", [](options& o, const std::string& n,
                   const char* v) { o.tls_settings.tickets = parse_choice(n, v, "on", "off"); }},
    {"kernel-tls",
     [](options& o, const std::string& n, const char* v) {
       o.tls_settings.kernel =
           parse_choice(n, v, "on", "off") ? percore::kernel_tls::when_possible : percore::kernel_tls::never;
     }},
    {"read-timeout",
     [](options& o, const std::string& n, const char* v) { o.listener.read_timeout = parse_seconds(n, v); }},
    {"write-timeout",
     [](options& o, const std::string& n, const char* v) { o.listener.write_timeout = parse_seconds(n, v); }},
    {"idle-timeout",
     [](options& o, const std::string& n, const char* v) { o.listener.idle_timeout = parse_seconds(n, v); }},
    {"lifetime-timeout", [](options& o, const std::string& n,
                            const char* v) { o.listener.lifetime_timeout = parse_seconds(n, v); }},
    {"grace",
     [](options& o, const std::string& n, const char* v) { o.server.shutdown_grace = parse_seconds(n, v); }},
    {"unit",
     [](options& o, const std::string& n, const char* v) {
       o.server.placement.unit = parse_choice(n, v, "core", "thread") ? percore::core_unit::physical_core
                                                                      : percore::core_unit::hardware_thread;
     }},
    {"cores",
     [](options& o, const std::string& n, const char* v) {
       o.server.placement.cores = static_cast<unsigned>(parse_number(n, v, 1, 8192));
     }},
    {"cpus", [](options& o, const std::string&,
                const char* v) { o.server.placement.cpus = percore::parse_cpu_list(v); }},
    {"numa-nodes", [](options& o, const std::string& n,
                      const char* v) { o.server.placement.numa_nodes = parse_nodes(n, v); }},
    {"topology", [](options& o, const std::string&, const char* v) { o.topology = v; }},
};

struct flag_option {
  const char* name;
  void (*apply)(options& opt);
};

void set_kind(options& opt, body_kind kind) {
  if (opt.kind != body_kind::plain && opt.kind != kind)
    throw usage_error("--aes128 and --sha256 exclude each other");
  opt.kind = kind;
}

constexpr flag_option flag_options[] = {
    {"aes128", [](options& o) { set_kind(o, body_kind::aes128); }},
    {"sha256", [](options& o) { set_kind(o, body_kind::sha256); }},
    {"tls", [](options& o) { o.tls = true; }},
    {"plan", [](options& o) { o.what = options::action::print_plan; }},
    {"stats", [](options& o) { o.print_stats = true; }},
    {"help", [](options& o) { o.what = options::action::print_help; }},
    {"version", [](options& o) { o.what = options::action::print_version; }},
};

// getopt_long's table: first the options with a value, then the flags; `val` is 1 + the place in this order,
// since 0 and '?' are taken.
std::vector<option> getopt_table() {
  constexpr int first = 256;
  std::vector<option> table;
  for (const value_option& o : value_options) {
    table.push_back({o.name, required_argument, nullptr, first + static_cast<int>(table.size())});
  }
  for (const flag_option& o : flag_options) {
    table.push_back({o.name, no_argument, nullptr, first + static_cast<int>(table.size())});
  }
  table.push_back({});
  return table;
}

void apply(options& opt, std::size_t place, const char* value) {
  constexpr std::size_t values = std::size(value_options);
  if (place >= values) {
    flag_options[place - values].apply(opt);
    return;
  }
  const std::string name = std::string("--") + value_options[place].name;
  try {
    value_options[place].apply(opt, name, value);
  } catch (const std::invalid_argument& e) {  // of the library's own parsers
    throw usage_error(name + ": " + e.what());
  }
}

// What only the whole command line can tell.
void complete(options& opt) {
  if (!opt.topology.empty() && opt.what == options::action::serve)
    throw usage_error("--topology needs --plan");
  if (opt.server.placement.cores != 0 && !opt.server.placement.cpus.empty()) {
    throw usage_error("--cores and --cpus exclude each other");
  }
  if (opt.certificate_file.empty() != opt.key_file.empty()) throw usage_error("--cert and --key need each other");
  if (opt.key_type_given && !opt.key_file.empty()) throw usage_error("--key-type and --key exclude each other");
  if (!opt.tls && (opt.key_type_given || !opt.key_file.empty())) {
    throw usage_error("--cert, --key and --key-type need --tls");
  }
  if (!opt.server.placement.numa_nodes.empty() && !opt.server.placement.cpus.empty()) {
    throw usage_error("--numa-nodes and --cpus exclude each other");
  }
  if (opt.addresses.empty()) opt.addresses.emplace_back("127.0.0.1:8080");
  // A head must fit one read buffer. 16 MiB are the engine's limit.
  opt.server.read_buffer_bytes = std::max(opt.server.read_buffer_bytes, opt.handler.limits.head_bytes);
}

}  // namespace

options parse_options(int argc, char** argv) {
  const std::vector<option> table = getopt_table();
  options opt;
  opterr = 0;  // the messages are ours, on one line with the exit status to match
  while (true) {
    const int found = getopt_long(argc, argv, ":", table.data(), nullptr);
    if (found == -1) break;
    if (found == ':') throw usage_error(std::string(argv[optind - 1]) + ": a value is missing");
    if (found == '?') throw usage_error(std::string("unknown option '") + argv[optind - 1] + "'");
    apply(opt, static_cast<std::size_t>(found - table.front().val), optarg);
  }
  if (optind < argc) throw usage_error(std::string("unexpected argument '") + argv[optind] + "'");
  complete(opt);
  return opt;
}

}  // namespace percore_http
