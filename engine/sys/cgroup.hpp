// The CPU time that the process's control groups grant it.
#pragma once

#include <string>

namespace percore::sys {

// The CPU quota of this process in CPUs (2.5: 250 ms of CPU time in each 100 ms), 0 for none: the
// smallest limit among the process's cgroup and all its visible ancestors, cgroup v2 (cpu.max) and v1
// (cpu.cfs_quota_us / cpu.cfs_period_us) alike, since a limit binds everything below it. What cannot be read
// counts as no limit. `root` stands before every path, so that tests can lay out a file tree of their own.
[[nodiscard]] double read_cpu_quota(const std::string& root = {});

}  // namespace percore::sys
