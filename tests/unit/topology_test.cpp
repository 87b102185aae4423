#include "engine/sys/topology.hpp"

#include <doctest/doctest.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <percore/placement.hpp>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace {

using percore::cpu_topology;
using percore::discover_topology;
using percore::synthetic_topology;
using numbers = std::vector<unsigned>;

numbers allowed_cpus(const cpu_topology& topology) {
  numbers result;
  for (const auto& cpu : topology.cpus) {
    if (cpu.allowed) result.push_back(cpu.os_index);
  }
  return result;
}

numbers affinity_of_this_thread() {
  cpu_set_t mask;
  REQUIRE(sched_getaffinity(0, sizeof mask, &mask) == 0);
  numbers result;
  for (unsigned cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &mask)) result.push_back(cpu);
  }
  return result;
}

void check_well_formed(const cpu_topology& topology) {
  REQUIRE_FALSE(topology.cpus.empty());
  REQUIRE_FALSE(topology.numa_nodes.empty());
  CHECK_FALSE(topology.description.empty());
  CHECK(std::is_sorted(topology.numa_nodes.begin(), topology.numa_nodes.end()));
  std::set<unsigned> seen;
  std::set<std::pair<unsigned, unsigned>> threads;
  unsigned before = 0;
  for (const auto& cpu : topology.cpus) {
    CHECK(seen.insert(cpu.os_index).second);
    CHECK(cpu.os_index >= before);
    CHECK(threads.insert({cpu.core, cpu.smt_rank}).second);
    CHECK(std::find(topology.numa_nodes.begin(), topology.numa_nodes.end(), cpu.numa_node) !=
          topology.numa_nodes.end());
    before = cpu.os_index;
  }
}

}  // namespace

TEST_CASE("topology: c5.metal is numbered as Linux numbers it") {
  const auto machine = synthetic_topology("c5.metal");
  check_well_formed(machine);
  REQUIRE(machine.cpus.size() == 96);
  CHECK(machine.numa_nodes == numbers{0, 1});
  CHECK(machine.cpu_quota == 0);
  for (unsigned i = 0; i < 96; ++i) {
    const auto& cpu = machine.cpus[i];
    CAPTURE(i);
    CHECK(cpu.os_index == i);
    CHECK(cpu.package == (i % 48) / 24);
    CHECK(cpu.numa_node == cpu.package);
    CHECK(cpu.smt_rank == i / 48);
    CHECK(cpu.core == machine.cpus[i % 48].core);
    CHECK(cpu.allowed);
  }
}

TEST_CASE("topology: the named machines") {
  struct expectation {
    const char* name;
    std::size_t cpus, cores, nodes;
  };
  for (const auto& [name, cpus, cores, nodes] : std::array<expectation, 5>{{{"1cpu", 1, 1, 1},
                                                                            {"2cpu", 2, 2, 1},
                                                                            {"8core-smt", 16, 8, 1},
                                                                            {"c5.metal", 96, 48, 2},
                                                                            {"4node", 64, 32, 4}}}) {
    CAPTURE(name);
    const auto machine = synthetic_topology(name);
    check_well_formed(machine);
    std::set<unsigned> distinct;
    for (const auto& cpu : machine.cpus) distinct.insert(cpu.core);
    CHECK(machine.cpus.size() == cpus);
    CHECK(distinct.size() == cores);
    CHECK(machine.numa_nodes.size() == nodes);
    CHECK(allowed_cpus(machine).size() == cpus);
  }
}

TEST_CASE("topology: hwloc descriptions") {
  SUBCASE("without NUMA nodes there is one") {
    const auto machine = synthetic_topology("pack:2 core:4 pu:2");
    check_well_formed(machine);
    CHECK(machine.cpus.size() == 16);
    CHECK(machine.numa_nodes == numbers{0});
    CHECK(machine.cpus[8].package == 1);
  }
  SUBCASE("without cores each CPU is one") {
    const auto machine = synthetic_topology("pack:2 pu:3");
    check_well_formed(machine);
    std::set<unsigned> distinct;
    for (const auto& cpu : machine.cpus) distinct.insert(cpu.core);
    CHECK(distinct.size() == 6);
  }
  SUBCASE("several nodes in a package") {
    const auto machine = synthetic_topology("pack:1 group:2 [numa] core:2 pu:1");
    check_well_formed(machine);
    CHECK(machine.cpus[3].numa_node == 1);
    CHECK(machine.cpus[3].package == 0);
  }
  SUBCASE("a CPU with two local nodes belongs to the first") {
    const auto machine = synthetic_topology("pack:2 [numa] [numa] core:2 pu:1");
    check_well_formed(machine);
    CHECK(machine.numa_nodes == numbers{0, 1, 2, 3});
    CHECK(machine.cpus[0].numa_node == 0);
    CHECK(machine.cpus[3].numa_node == 2);
  }
}

TEST_CASE("topology: an unknown name lists the known ones") {
  for (const std::string bad :
       {"", "c5", "8 cores", "pack:2 core", "core:0", "pu:-1", "pack:2 core:4 pu:2 junk:9"}) {
    CAPTURE(bad);
    std::string message;
    try {
      (void)synthetic_topology(bad);
    } catch (const std::invalid_argument& refused) {
      message = refused.what();
    }
    CHECK(message.find("unknown topology \"" + bad + "\"") != std::string::npos);
    for (const char* name : {"1cpu", "2cpu", "8core-smt", "c5.metal", "4node", "pack:2 core:4 pu:2"}) {
      CHECK(message.find(name) != std::string::npos);
    }
  }
  CHECK_THROWS_AS((void)synthetic_topology(std::string_view("pu:2\0junk", 9)), std::invalid_argument);
}

TEST_CASE("topology: this machine") {
  const auto machine = discover_topology();
  check_well_formed(machine);
  CHECK(allowed_cpus(machine) == affinity_of_this_thread());
  CHECK(machine.cpu_quota >= 0);
  const auto plan = percore::plan_placement(machine, {.unit = percore::core_unit::hardware_thread});
  CHECK(plan.cores.size() <= machine.cpus.size());
  CHECK(percore::format_plan(machine, plan).find("core 0: cpu ") != std::string::npos);
}

TEST_CASE("topology: the calling thread's affinity restricts the plan") {
  const unsigned last = affinity_of_this_thread().back();
  numbers seen, planned;
  std::thread([&] {
    cpu_set_t mask;
    CPU_ZERO(&mask);
    CPU_SET(last, &mask);
    if (sched_setaffinity(0, sizeof mask, &mask) != 0) return;
    const auto machine = discover_topology();
    seen = allowed_cpus(machine);
    for (const auto& core : percore::plan_placement(machine, {}).cores) planned.push_back(core.cpu);
  }).join();
  CHECK(seen == numbers{last});
  CHECK(planned == numbers{last});
}

TEST_CASE("topology: threads share one live topology") {
  std::array<hwloc_topology*, 8> seen{};
  std::vector<std::thread> threads;
  for (auto& slot : seen) {
    threads.emplace_back([&slot] {
      slot = percore::sys::live_topology();
      (void)discover_topology();
    });
  }
  for (auto& thread : threads) thread.join();
  CHECK(seen[0] != nullptr);
  for (const auto* one : seen) CHECK(one == seen[0]);
}
