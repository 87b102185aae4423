#include "engine/sys/topology.hpp"

#include <hwloc.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <map>
#include <memory>
#include <new>
#include <percore/placement.hpp>
#include <stdexcept>
#include <string>

#include "engine/sys/cgroup.hpp"

namespace percore {
namespace {

struct free_topology {
  void operator()(hwloc_topology_t topology) const noexcept { hwloc_topology_destroy(topology); }
};
using topology_owner = std::unique_ptr<hwloc_topology, free_topology>;

struct free_bitmap {
  void operator()(hwloc_bitmap_t bitmap) const noexcept { hwloc_bitmap_free(bitmap); }
};
using bitmap_owner = std::unique_ptr<hwloc_bitmap_s, free_bitmap>;

// Loads this machine, or the machine of a synthetic description; null when hwloc refuses, with errno set.
topology_owner load(const char* synthetic) {
  hwloc_topology_t raw = nullptr;
  if (hwloc_topology_init(&raw) != 0) return nullptr;
  topology_owner topology(raw);
  // hwloc drops CPUs outside of the process's cpuset unless told otherwise; the planner wants them, so as to
  // tell "not in this machine" from "not allowed". The object filters stay at their defaults (no devices):
  // without groups hwloc 2.9 attaches a package's several nodes to the machine and forgets their CPUs.
  if (hwloc_topology_set_flags(raw, HWLOC_TOPOLOGY_FLAG_INCLUDE_DISALLOWED) != 0) return nullptr;
  if (synthetic != nullptr && hwloc_topology_set_synthetic(raw, synthetic) != 0) return nullptr;
  if (hwloc_topology_load(raw) != 0) return nullptr;
  // Settles what hwloc otherwise computes at first use, so that threads can share the result.
  hwloc_topology_refresh(raw);
  return topology;
}

// A machine whose kernel does not tell nodes apart, or a CPU of no node, counts as node 0. A CPU may be local
// to several nodes (DRAM and high-bandwidth or attached memory): firmware numbers the ordinary memory first.
unsigned node_of(hwloc_obj_t pu) {
  const int node = pu->nodeset != nullptr ? hwloc_bitmap_first(pu->nodeset) : -1;
  return node < 0 ? 0 : static_cast<unsigned>(node);
}

unsigned package_of(hwloc_topology_t topology, hwloc_obj_t pu) {
  const hwloc_obj_t package = hwloc_get_ancestor_obj_by_type(topology, HWLOC_OBJ_PACKAGE, pu);
  if (package == nullptr) return 0;
  return package->os_index == HWLOC_UNKNOWN_INDEX ? package->logical_index : package->os_index;
}

// Where the kernel tells no physical cores each CPU is one, numbered above those that are known.
unsigned core_of(hwloc_topology_t topology, hwloc_obj_t pu) {
  const hwloc_obj_t core = hwloc_get_ancestor_obj_by_type(topology, HWLOC_OBJ_CORE, pu);
  if (core != nullptr) return core->logical_index;
  const int known_cores = hwloc_get_nbobjs_by_type(topology, HWLOC_OBJ_CORE);
  return static_cast<unsigned>(std::max(known_cores, 0)) + pu->logical_index;
}

cpu_topology snapshot(hwloc_topology_t topology) {
  cpu_topology result;
  const hwloc_const_bitmap_t allowed = hwloc_topology_get_allowed_cpuset(topology);
  for (hwloc_obj_t pu = nullptr; (pu = hwloc_get_next_obj_by_type(topology, HWLOC_OBJ_PU, pu)) != nullptr;) {
    result.cpus.push_back({.os_index = pu->os_index,
                           .package = package_of(topology, pu),
                           .numa_node = node_of(pu),
                           .core = core_of(topology, pu),
                           .smt_rank = 0,
                           .allowed = hwloc_bitmap_isset(allowed, pu->os_index) != 0});
  }
  std::sort(result.cpus.begin(), result.cpus.end(),
            [](const cpu_topology::cpu& a, const cpu_topology::cpu& b) { return a.os_index < b.os_index; });
  std::map<unsigned, unsigned> threads_of_core;
  for (cpu_topology::cpu& cpu : result.cpus) cpu.smt_rank = threads_of_core[cpu.core]++;

  for (hwloc_obj_t node = nullptr;
       (node = hwloc_get_next_obj_by_type(topology, HWLOC_OBJ_NUMANODE, node)) != nullptr;) {
    result.numa_nodes.push_back(node->os_index);
  }
  if (result.numa_nodes.empty()) result.numa_nodes.push_back(0);
  std::sort(result.numa_nodes.begin(), result.numa_nodes.end());
  return result;
}

// Marks as allowed what the calling thread may run on. The kernel keeps that mask inside of the cpuset and
// reads it afresh, while hwloc's own idea of the cpuset, the fallback, is as old as the topology.
void apply_affinity(hwloc_topology_t machine, cpu_topology& topology) {
  const bitmap_owner mask(hwloc_bitmap_alloc());
  if (mask == nullptr) throw std::bad_alloc();
  if (hwloc_get_cpubind(machine, mask.get(), HWLOC_CPUBIND_THREAD) != 0) return;
  for (cpu_topology::cpu& cpu : topology.cpus)
    cpu.allowed = hwloc_bitmap_isset(mask.get(), cpu.os_index) != 0;
}

std::string describe(hwloc_topology_t machine) {
  const hwloc_obj_t package = hwloc_get_obj_by_type(machine, HWLOC_OBJ_PACKAGE, 0);
  const char* model = package == nullptr ? nullptr : hwloc_obj_get_info_by_name(package, "CPUModel");
  return model == nullptr || *model == '\0' ? std::string("this machine") : std::string(model);
}

struct named_topology {
  std::string_view name;
  const char* description;
};

// "indexes=core" numbers the CPUs as Linux does on most x86 machines: the first threads of all cores, package
// by package, then the second threads in the same order. An EC2 c5.metal (2 x Xeon Platinum 8275CL) has node
// 0 on CPUs 0-23 and 48-71, node 1 on 24-47 and 72-95.
constexpr std::array<named_topology, 5> named_topologies{{
    {"1cpu", "pack:1 [numa] core:1 pu:1"},
    {"2cpu", "pack:1 [numa] core:2 pu:1"},
    {"8core-smt", "pack:1 [numa] core:8 pu:2(indexes=core)"},
    {"c5.metal", "pack:2 [numa] core:24 pu:2(indexes=core)"},
    {"4node", "pack:4 [numa] core:8 pu:2(indexes=core)"},
}};

}  // namespace

cpu_topology discover_topology() {
  const hwloc_topology_t machine = sys::live_topology();
  cpu_topology result = snapshot(machine);
  apply_affinity(machine, result);
  result.cpu_quota = sys::read_cpu_quota();
  result.description = describe(machine);
  return result;
}

cpu_topology synthetic_topology(std::string_view name_or_hwloc_description) {
  const std::string name(name_or_hwloc_description);
  std::string description = name;
  std::string names;
  for (const named_topology& known : named_topologies) {
    if (known.name == name) description = known.description;
    names.append(known.name).append(", ");
  }
  // An embedded NUL would hide the rest from hwloc.
  const bool whole = description.find('\0') == std::string::npos && !description.empty();
  const topology_owner machine = whole ? load(description.c_str()) : nullptr;
  if (machine == nullptr) {
    throw std::invalid_argument("unknown topology \"" + name + "\": give one of " + names +
                                "or an hwloc synthetic description such as \"pack:2 core:4 pu:2\"");
  }
  cpu_topology result = snapshot(machine.get());
  result.description = name + " (synthetic)";
  return result;
}

namespace sys {

hwloc_topology* live_topology() {
  static hwloc_topology* const machine = [] {
    topology_owner loaded = load(nullptr);
    if (loaded == nullptr) {
      throw std::runtime_error(std::string("hwloc cannot read this machine's topology: ") +
                               std::strerror(errno));
    }
    return loaded.release();
  }();
  return machine;
}

}  // namespace sys
}  // namespace percore
