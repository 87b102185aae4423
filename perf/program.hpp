// What the programs under perf/ have in common that do without the library: their command lines and a few system
// calls. Where the user is wrong, the process ends with status 2, where the system refuses, with status 1; each with one
// line on standard error.
#pragma once

#include <errno.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include <array>
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

namespace program {

[[noreturn]] inline void bad_usage(const std::string& why) {
  std::fprintf(stderr, "%s: %s (see --help)\n", program_invocation_short_name, why.c_str());
  std::exit(2);
}

// `what` has failed, errno says why.
[[noreturn]] inline void die(const std::string& what) {
  std::fprintf(stderr, "%s: %s: %s\n", program_invocation_short_name, what.c_str(),
               std::system_category().message(errno).c_str());
  std::exit(1);
}

// As short as it can be: 0.1 and not 0.100000.
template <class Number>
std::string text_of(Number value) {
  std::array<char, 32> text;
  return {text.data(), std::to_chars(text.data(), text.data() + text.size(), value).ptr};
}

// The whole of `text`, from `low` to `high`; `name` is the option's, as in "--body".
template <class Number>
Number parse_number(std::string_view text, std::string_view name, Number low, Number high) {
  Number value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size() || !(value >= low && value <= high)) {
    bad_usage(std::string(name) + ": a number from " + text_of(low) + " to " + text_of(high) + " expected, not '" +
              std::string(text) + "'");
  }
  return value;
}

inline bool parse_switch(std::string_view text, std::string_view name) {
  if (text == "on") return true;
  if (text == "off") return false;
  bad_usage(std::string(name) + ": on or off expected, not '" + std::string(text) + "'");
}

inline cpu_set_t affinity() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) != 0) bad_usage("cannot tell which CPUs it may run on");
  return set;
}

inline std::vector<int> members(const cpu_set_t& set) {
  std::vector<int> cpus;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
    if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
  return cpus;
}

// Those that the process may run on, in ascending order.
inline std::vector<int> allowed_cpus() { return members(affinity()); }

// A list such as 0-3,8, each CPU once, in ascending order; only those that the process may run on.
inline std::vector<int> parse_cpus(std::string_view text, std::string_view name) {
  const cpu_set_t allowed = affinity();
  cpu_set_t chosen;
  CPU_ZERO(&chosen);
  while (true) {
    const std::string_view item = text.substr(0, text.find(','));
    const std::size_t dash = item.find('-');
    const int first = parse_number(item.substr(0, dash), name, 0, CPU_SETSIZE - 1);
    int last = first;
    if (dash != std::string_view::npos) last = parse_number(item.substr(dash + 1), name, first, CPU_SETSIZE - 1);
    for (int cpu = first; cpu <= last; ++cpu) {
      if (!CPU_ISSET(cpu, &allowed)) bad_usage(std::string(name) + ": may not run on CPU " + std::to_string(cpu));
      CPU_SET(cpu, &chosen);
    }
    if (item.size() == text.size()) return members(chosen);
    text.remove_prefix(item.size() + 1);
  }
}

// The calling thread.
inline void pin_to(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  if (sched_setaffinity(0, sizeof set, &set) != 0) die("sched_setaffinity");
}

// A socket option that is an int; `what` is its name.
inline void set_option(int fd, int level, int name, int value, const char* what) {
  if (setsockopt(fd, level, name, &value, sizeof value) != 0) die(what);
}

// As many descriptors as the process may have.
inline void raise_descriptor_limit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

}  // namespace program
