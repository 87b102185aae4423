// Where the cores run: which CPUs get a core thread, and which CPUs their helper threads may use.
//
// discover_topology() reads the machine into plain data; plan_placement() is one pure function from that data
// and the options to a plan, so the plan for any machine can be computed, printed and tested on any other.
//
// CPU and NUMA node numbers are the kernel's (/sys/devices/system/cpu/cpuN, .../node/nodeN). Everything here
// is for set-up, reports errors as exceptions and may be called from any thread.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace percore {

// What one core thread gets to itself.
enum class core_unit {
  physical_core,    // the first hardware thread of each physical core that the process may use
  hardware_thread,  // each hardware thread that the process may use
};

struct placement_options {
  core_unit unit = core_unit::physical_core;

  // How many core threads; 0: one per unit, but not more than the cgroup's CPU quota rounded up.
  unsigned cores = 0;

  // Exactly these CPUs, core 0 on the first. With a list, `cores` must be 0, `numa_nodes` empty, and `unit`
  // has no meaning, because a CPU number already names one hardware thread.
  std::vector<unsigned> cpus{};

  // Only these NUMA nodes, filled in the order given; empty: all nodes, in ascending order.
  std::vector<unsigned> numa_nodes{};

  // false: the plan still decides the number of cores and their nodes, but no thread is to be bound to its
  // CPU and no memory to a node, because the scheduler may move the threads.
  bool pin = true;

  // false: the cgroup's CPU quota neither limits the number of cores nor gives a warning.
  bool respect_quota = true;
};

struct core_placement {
  unsigned cpu = 0;
  unsigned numa_node = 0;

  // The CPUs for this core's helper threads, the preferred first; never empty. All lie on the core's NUMA
  // node and are allowed to the process, but need not be among `placement_options::cpus`. First come the
  // hardware threads of the core's own physical core that run no core thread, then CPUs of physical cores
  // that run none, then those that share a physical core with another core thread. Free CPUs are not divided:
  // every core of a node lists all of them, since helpers come in bursts and a free CPU should serve
  // whichever core has work. If the node has no free CPU the list holds the CPUs of the node's other cores,
  // and if there is none either, the core's own.
  std::vector<unsigned> helper_cpus{};
};

struct placement_plan {
  std::vector<core_placement> cores{};  // core N is entry N; never empty; no CPU twice
  std::vector<std::string> warnings{};  // one sentence each, for the log
  bool pin = true;
};

// A machine as the planner sees it, restricted to what the process may use: plain data, no handle.
struct cpu_topology {
  struct cpu {
    unsigned os_index = 0;
    unsigned package = 0;
    unsigned numa_node = 0;
    unsigned core = 0;      // physical core, unique over the machine
    unsigned smt_rank = 0;  // 0 for the core's first hardware thread, by os_index
    bool allowed = true;    // in the process's cpuset and in the affinity mask of the thread that looked
  };
  std::vector<cpu> cpus{};             // ascending os_index
  std::vector<unsigned> numa_nodes{};  // ascending, nodes without CPUs included
  double cpu_quota = 0;                // of the process's cgroups, in CPUs; 0: none
  std::string description{};           // the machine in a few words
};

// This machine, through hwloc. The calling thread's affinity mask counts, because the threads that it creates
// inherit it (sched(7)); so call from a thread that is not itself pinned to one core. The hardware is read
// once per process; affinity and quota are read at each call. Throws std::runtime_error when hwloc cannot
// read the machine.
[[nodiscard]] cpu_topology discover_topology();

// A machine that is not there: "1cpu", "2cpu", "8core-smt", "c5.metal", "4node", or an hwloc synthetic
// description such as "pack:2 core:4 pu:2". All CPUs are allowed and there is no quota. Throws
// std::invalid_argument, listing the names, for anything else.
[[nodiscard]] cpu_topology synthetic_topology(std::string_view name_or_hwloc_description);

// The plan. Pure: no system call, no global state. Throws std::invalid_argument, saying what the machine
// offers, when the options name a CPU or node that is absent, not allowed or named twice, contradict each
// other, or ask for more cores than there are.
[[nodiscard]] placement_plan plan_placement(const cpu_topology& topology, const placement_options& options);

// The plan for a human reader: a line for the machine, one for the plan, one per core and one per warning.
[[nodiscard]] std::string format_plan(const cpu_topology& topology, const placement_plan& plan);

// "0-3,8,10-12" as {0, 1, 2, 3, 8, 10, 11, 12}, order and repetitions kept. Throws std::invalid_argument,
// quoting the text, when it is malformed, a range descends or a number is above 8191 (the most CPUs Linux can
// have).
[[nodiscard]] std::vector<unsigned> parse_cpu_list(std::string_view text);

// The inverse: ascending neighbours become ranges, order is kept; "none" when empty.
[[nodiscard]] std::string format_cpu_list(const std::vector<unsigned>& cpus);

}  // namespace percore
