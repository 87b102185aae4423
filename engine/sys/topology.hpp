// The process's one hwloc topology. Includers need no hwloc header unless they call hwloc themselves.
#pragma once

struct hwloc_topology;  // hwloc_topology_t is a pointer to it

namespace percore::sys {

// CPU numbers are below this: 8192 is the largest NR_CPUS that any Linux architecture offers (x86 with
// CONFIG_MAXSMP). A bound for lists and masks built from numbers that come from outside.
inline constexpr unsigned cpu_index_limit = 8192;

// This machine, disallowed CPUs included. Loaded by the first call (some milliseconds) and kept until the
// process ends: hwloc lets any number of threads read and bind through a topology that nobody modifies. It is
// never destroyed, so that threads which outlive main() may still use it, and stays reachable, so it is no
// leak. Throws std::runtime_error when hwloc cannot read the machine; the next call tries again.
hwloc_topology* live_topology();

}  // namespace percore::sys
