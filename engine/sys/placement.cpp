// The planner: pure functions from plain data to plain data. Nothing here asks the machine.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <iomanip>
#include <map>
#include <percore/placement.hpp>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>

#include "engine/sys/topology.hpp"

namespace percore {
namespace {

using cpu = cpu_topology::cpu;

// A CPU that may become a core.
struct candidate {
  const cpu* where;
  std::size_t node_position;  // of its NUMA node in the order of filling
  unsigned rank;              // among the allowed hardware threads of its physical core
};

std::string counted(std::size_t count, const std::string& noun) {
  return std::to_string(count) + " " + noun + (count == 1 ? "" : "s");
}

std::string format_quota(double quota) {
  char text[32];
  (void)std::snprintf(text, sizeof text, "%.4g", quota);
  return std::string(text) + (quota == 1 ? " CPU" : " CPUs");
}

std::string unit_noun(core_unit unit) {
  return unit == core_unit::physical_core ? "physical core" : "hardware thread";
}

// All CPUs by number, whatever order the topology came in.
std::vector<const cpu*> sorted_cpus(const cpu_topology& topology) {
  std::vector<const cpu*> result;
  for (const cpu& one : topology.cpus) result.push_back(&one);
  std::sort(result.begin(), result.end(),
            [](const cpu* a, const cpu* b) { return a->os_index < b->os_index; });
  return result;
}

const cpu* find_cpu(const cpu_topology& topology, unsigned os_index) {
  const auto found = std::find_if(topology.cpus.begin(), topology.cpus.end(),
                                  [&](const cpu& one) { return one.os_index == os_index; });
  return found == topology.cpus.end() ? nullptr : &*found;
}

std::vector<unsigned> numbers(const std::vector<const cpu*>& cpus, bool only_allowed) {
  std::vector<unsigned> result;
  for (const cpu* one : cpus) {
    if (one->allowed || !only_allowed) result.push_back(one->os_index);
  }
  return result;
}

std::vector<unsigned> usable_nodes(const cpu_topology& topology) {
  std::set<unsigned> nodes;
  for (const cpu& one : topology.cpus) {
    if (one.allowed) nodes.insert(one.numa_node);
  }
  return {nodes.begin(), nodes.end()};
}

// The order of filling. Ascending by default, so that fewer cores than the machine has keep to node 0 first:
// one node's cores share a last-level cache and local memory, and published benchmarks put the server on node
// 0 and the load on the other.
std::vector<unsigned> nodes_to_fill(const cpu_topology& topology, const placement_options& options) {
  const std::vector<unsigned> usable = usable_nodes(topology);
  if (options.numa_nodes.empty()) return usable;
  std::set<unsigned> present(topology.numa_nodes.begin(), topology.numa_nodes.end());
  for (const cpu& one : topology.cpus) present.insert(one.numa_node);
  std::set<unsigned> seen;
  for (const unsigned node : options.numa_nodes) {
    const std::string name = "NUMA node " + std::to_string(node);
    if (!present.contains(node)) {
      throw std::invalid_argument(name + " is not in this machine, which has node " +
                                  format_cpu_list({present.begin(), present.end()}));
    }
    if (!seen.insert(node).second) throw std::invalid_argument(name + " is named twice");
    if (std::find(usable.begin(), usable.end(), node) == usable.end()) {
      throw std::invalid_argument(name + " has no CPU that this process may use; node " +
                                  format_cpu_list(usable) + " has");
    }
  }
  return options.numa_nodes;
}

std::vector<candidate> find_candidates(const cpu_topology& topology, const std::vector<unsigned>& nodes,
                                       core_unit unit) {
  std::vector<candidate> result;
  std::map<unsigned, unsigned> threads_of_core;
  for (const cpu* one : sorted_cpus(topology)) {
    const auto node = std::find(nodes.begin(), nodes.end(), one->numa_node);
    if (!one->allowed || node == nodes.end()) continue;
    const unsigned rank = threads_of_core[one->core]++;
    if (unit == core_unit::physical_core && rank > 0) continue;
    result.push_back({one, static_cast<std::size_t>(node - nodes.begin()), rank});
  }
  return result;
}

[[noreturn]] void refuse_count(const cpu_topology& topology, const placement_options& options,
                               const std::vector<unsigned>& nodes, std::size_t available) {
  std::string message = counted(options.cores, "core") + " asked for, but this process may use " +
                        counted(available, unit_noun(options.unit));
  if (!options.numa_nodes.empty()) message += " on NUMA node " + format_cpu_list(nodes);
  message += ": ask for at most " + std::to_string(available);
  if (options.unit == core_unit::physical_core) {
    const std::size_t threads = find_candidates(topology, nodes, core_unit::hardware_thread).size();
    if (threads > available) {
      message += ", or place by hardware thread, of which there are " + std::to_string(threads);
    }
  }
  throw std::invalid_argument(message);
}

std::size_t quota_cores(double quota) {
  return static_cast<std::size_t>(std::clamp(std::ceil(quota), 1.0, double{sys::cpu_index_limit}));
}

// Takes `count` candidates, node after node. Within a node a hardware thread that has its physical core to
// itself is better than a second one on a core already taken, on machines that number siblings side by side
// as well. The CPUs then ascend within each node, however they were chosen.
std::vector<const cpu*> choose(std::vector<candidate> from, std::size_t count) {
  std::sort(from.begin(), from.end(), [](const candidate& a, const candidate& b) {
    return std::tuple(a.node_position, a.rank, a.where->os_index) <
           std::tuple(b.node_position, b.rank, b.where->os_index);
  });
  from.resize(count);
  std::sort(from.begin(), from.end(), [](const candidate& a, const candidate& b) {
    return std::tuple(a.node_position, a.where->os_index) < std::tuple(b.node_position, b.where->os_index);
  });
  std::vector<const cpu*> result;
  for (const candidate& one : from) result.push_back(one.where);
  return result;
}

std::vector<const cpu*> choose_by_count(const cpu_topology& topology, const placement_options& options,
                                        std::vector<std::string>& warnings) {
  const std::vector<unsigned> nodes = nodes_to_fill(topology, options);
  std::vector<candidate> candidates = find_candidates(topology, nodes, options.unit);
  if (options.cores > candidates.size()) refuse_count(topology, options, nodes, candidates.size());
  std::size_t count = options.cores != 0 ? options.cores : candidates.size();
  const double quota = topology.cpu_quota;
  if (options.cores == 0 && options.respect_quota && quota > 0 && quota_cores(quota) < count) {
    warnings.push_back("the cgroup grants " + format_quota(quota) + ": " +
                       counted(quota_cores(quota), "core thread") + " instead of " + std::to_string(count));
    count = quota_cores(quota);
  }
  return choose(std::move(candidates), count);
}

std::vector<const cpu*> choose_by_list(const cpu_topology& topology, const placement_options& options) {
  if (options.cores != 0) throw std::invalid_argument("give a list of CPUs or a number of cores, not both");
  if (!options.numa_nodes.empty())
    throw std::invalid_argument("give a list of CPUs or of NUMA nodes, not both");
  std::vector<const cpu*> result;
  for (const unsigned number : options.cpus) {
    const cpu* const found = find_cpu(topology, number);
    const std::string name = "cpu " + std::to_string(number);
    if (found == nullptr) {
      throw std::invalid_argument(name + " is not in this machine, which has cpu " +
                                  format_cpu_list(numbers(sorted_cpus(topology), false)));
    }
    if (!found->allowed) {
      throw std::invalid_argument(name +
                                  " is not allowed to this process, whose cpuset and affinity leave cpu " +
                                  format_cpu_list(numbers(sorted_cpus(topology), true)));
    }
    if (std::find(result.begin(), result.end(), found) != result.end()) {
      throw std::invalid_argument(name + " is named twice");
    }
    result.push_back(found);
  }
  return result;
}

// What the core threads occupy.
struct occupied {
  std::set<unsigned> cpus;
  std::set<unsigned> physical_cores;
};

// See core_placement::helper_cpus for the rule.
std::vector<unsigned> find_helpers(const std::vector<const cpu*>& machine, const occupied& taken,
                                   const cpu& own) {
  std::vector<unsigned> siblings, untouched, shared, other_cores;
  for (const cpu* one : machine) {
    if (!one->allowed || one->numa_node != own.numa_node || one == &own) continue;
    if (taken.cpus.contains(one->os_index)) {
      other_cores.push_back(one->os_index);
    } else if (one->core == own.core) {
      siblings.push_back(one->os_index);
    } else if (taken.physical_cores.contains(one->core)) {
      shared.push_back(one->os_index);
    } else {
      untouched.push_back(one->os_index);
    }
  }
  std::vector<unsigned> result = std::move(siblings);
  result.insert(result.end(), untouched.begin(), untouched.end());
  result.insert(result.end(), shared.begin(), shared.end());
  if (result.empty()) result = std::move(other_cores);
  if (result.empty()) result.push_back(own.os_index);
  return result;
}

}  // namespace

placement_plan plan_placement(const cpu_topology& topology, const placement_options& options) {
  if (usable_nodes(topology).empty())
    throw std::invalid_argument("this process may use no CPU of this machine");
  placement_plan plan;
  plan.pin = options.pin;
  const std::vector<const cpu*> chosen = options.cpus.empty()
                                             ? choose_by_count(topology, options, plan.warnings)
                                             : choose_by_list(topology, options);
  const double quota = topology.cpu_quota;
  if (options.respect_quota && quota > 0 && chosen.size() > quota_cores(quota)) {
    plan.warnings.push_back("the cgroup grants " + format_quota(quota) + ", fewer than the " +
                            counted(chosen.size(), "core thread") +
                            " asked for: all will stand still whenever the quota is used up");
  }
  occupied taken;
  for (const cpu* own : chosen) {
    taken.cpus.insert(own->os_index);
    taken.physical_cores.insert(own->core);
  }
  const std::vector<const cpu*> machine = sorted_cpus(topology);
  for (const cpu* own : chosen) {
    plan.cores.push_back({own->os_index, own->numa_node, find_helpers(machine, taken, *own)});
  }
  return plan;
}

namespace {

std::string head_line(const cpu_topology& topology) {
  std::set<unsigned> packages, cores;
  std::set<unsigned> nodes(topology.numa_nodes.begin(), topology.numa_nodes.end());
  std::size_t allowed = 0;
  for (const cpu& one : topology.cpus) {
    packages.insert(one.package);
    cores.insert(one.core);
    nodes.insert(one.numa_node);
    allowed += one.allowed ? 1 : 0;
  }
  std::string line = topology.description + ": " + counted(packages.size(), "package") + ", " +
                     counted(nodes.size(), "NUMA node") + ", " + counted(cores.size(), "physical core") +
                     ", " + counted(topology.cpus.size(), "hardware thread");
  if (allowed != topology.cpus.size()) line += " of which this process may use " + std::to_string(allowed);
  if (topology.cpu_quota > 0) line += ", cgroup quota " + format_quota(topology.cpu_quota);
  return line;
}

}  // namespace

std::string format_plan(const cpu_topology& topology, const placement_plan& plan) {
  unsigned highest = 0;
  for (const core_placement& core : plan.cores) highest = std::max(highest, core.cpu);
  const int core_width = static_cast<int>(std::to_string(plan.cores.size()).size());
  const int cpu_width = static_cast<int>(std::to_string(highest).size());

  std::ostringstream out;
  out << head_line(topology) << '\n';
  out << counted(plan.cores.size(), "core thread") << (plan.pin ? ", pinned\n" : ", not pinned\n");
  for (std::size_t i = 0; i < plan.cores.size(); ++i) {
    const core_placement& core = plan.cores[i];
    const cpu* const found = find_cpu(topology, core.cpu);
    out << "core " << std::setw(core_width) << i << ": cpu " << std::setw(cpu_width) << core.cpu
        << ", package " << (found == nullptr ? "?" : std::to_string(found->package)) << ", NUMA node "
        << core.numa_node << ", helper cpus " << format_cpu_list(core.helper_cpus) << '\n';
  }
  for (const std::string& warning : plan.warnings) out << "warning: " << warning << '\n';
  return out.str();
}

namespace {

[[noreturn]] void refuse_list(std::string_view text, const std::string& why) {
  throw std::invalid_argument("cpu list \"" + std::string(text) + "\": " + why +
                              "; expected numbers and ranges such as 0-3,8,10-12");
}

// Takes a CPU number off the front of `rest`.
unsigned take_number(std::string_view text, std::string_view& rest) {
  unsigned value = 0;
  const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), value);
  if (error == std::errc::invalid_argument) {
    refuse_list(text, rest.empty() ? "a number is missing at the end"
                                   : "a number is missing before \"" + std::string(rest) + "\"");
  }
  if (error != std::errc{} || value >= sys::cpu_index_limit) {
    refuse_list(text, "a number is above " + std::to_string(sys::cpu_index_limit - 1));
  }
  rest.remove_prefix(static_cast<std::size_t>(end - rest.data()));
  return value;
}

}  // namespace

std::vector<unsigned> parse_cpu_list(std::string_view text) {
  std::vector<unsigned> result;
  std::string_view rest = text;
  for (;;) {
    const unsigned first = take_number(text, rest);
    unsigned last = first;
    if (rest.starts_with('-')) {
      rest.remove_prefix(1);
      last = take_number(text, rest);
      if (last < first) {
        refuse_list(text, "the range " + std::to_string(first) + "-" + std::to_string(last) + " descends");
      }
    }
    for (unsigned number = first; number <= last; ++number) result.push_back(number);
    if (rest.empty()) return result;
    if (!rest.starts_with(',')) refuse_list(text, "unexpected \"" + std::string(rest) + "\"");
    rest.remove_prefix(1);
  }
}

std::string format_cpu_list(const std::vector<unsigned>& cpus) {
  std::string result;
  for (std::size_t i = 0; i < cpus.size();) {
    std::size_t end = i + 1;
    while (end < cpus.size() && cpus[end] == cpus[end - 1] + 1) ++end;
    if (!result.empty()) result += ',';
    result += std::to_string(cpus[i]);
    if (end - i > 1) result += '-' + std::to_string(cpus[end - 1]);
    i = end;
  }
  return result.empty() ? "none" : result;
}

}  // namespace percore
