#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <map>
#include <numeric>
#include <percore/placement.hpp>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using percore::core_unit;
using percore::cpu_topology;
using percore::format_cpu_list;
using percore::format_plan;
using percore::parse_cpu_list;
using percore::placement_options;
using percore::placement_plan;
using percore::plan_placement;
using percore::synthetic_topology;
using numbers = std::vector<unsigned>;

numbers cpus_of(const placement_plan& plan) {
  numbers result;
  for (const auto& core : plan.cores) result.push_back(core.cpu);
  return result;
}

numbers nodes_of(const placement_plan& plan) {
  numbers result;
  for (const auto& core : plan.cores) result.push_back(core.numa_node);
  return result;
}

numbers count_up(unsigned first, unsigned last) {
  numbers result(last - first + 1);
  std::iota(result.begin(), result.end(), first);
  return result;
}

cpu_topology restricted(cpu_topology topology, const numbers& allowed) {
  for (auto& cpu : topology.cpus) {
    cpu.allowed = std::find(allowed.begin(), allowed.end(), cpu.os_index) != allowed.end();
  }
  return topology;
}

cpu_topology with_quota(cpu_topology topology, double quota) {
  topology.cpu_quota = quota;
  return topology;
}

// The message of the refusal; empty when the plan is made.
std::string refusal(const cpu_topology& topology, const placement_options& options) {
  try {
    (void)plan_placement(topology, options);
  } catch (const std::invalid_argument& refused) {
    return refused.what();
  }
  return {};
}

std::string list_refusal(const std::string& text) {
  try {
    (void)parse_cpu_list(text);
  } catch (const std::invalid_argument& refused) {
    return refused.what();
  }
  return {};
}

bool holds(const std::string& text, std::initializer_list<const char*> parts) {
  return std::all_of(parts.begin(), parts.end(),
                     [&](const char* part) { return text.find(part) != std::string::npos; });
}

}  // namespace

TEST_CASE("placement: one CPU serves as core and helper") {
  for (const core_unit unit : {core_unit::physical_core, core_unit::hardware_thread}) {
    const auto plan = plan_placement(synthetic_topology("1cpu"), {.unit = unit});
    REQUIRE(plan.cores.size() == 1);
    CHECK(plan.cores[0].cpu == 0);
    CHECK(plan.cores[0].numa_node == 0);
    CHECK(plan.cores[0].helper_cpus == numbers{0});
    CHECK(plan.warnings.empty());
    CHECK(plan.pin);
  }
}

TEST_CASE("placement: two CPUs") {
  const auto machine = synthetic_topology("2cpu");
  SUBCASE("both are cores, each helps on the other") {
    const auto plan = plan_placement(machine, {});
    CHECK(cpus_of(plan) == numbers{0, 1});
    CHECK(plan.cores[0].helper_cpus == numbers{1});
    CHECK(plan.cores[1].helper_cpus == numbers{0});
  }
  SUBCASE("one core leaves the other CPU to the helpers") {
    const auto plan = plan_placement(machine, {.cores = 1});
    CHECK(cpus_of(plan) == numbers{0});
    CHECK(plan.cores[0].helper_cpus == numbers{1});
  }
  SUBCASE("not pinned") {
    CHECK_FALSE(plan_placement(machine, {.pin = false}).pin);
  }
}

TEST_CASE("placement: eight cores with SMT") {
  const auto machine = synthetic_topology("8core-smt");
  SUBCASE("physical cores leave every sibling to helpers, the own one first") {
    const auto plan = plan_placement(machine, {});
    CHECK(cpus_of(plan) == count_up(0, 7));
    CHECK(plan.cores[0].helper_cpus == count_up(8, 15));
    CHECK(plan.cores[3].helper_cpus == numbers{11, 8, 9, 10, 12, 13, 14, 15});
  }
  SUBCASE("fewer cores: own sibling, then idle physical cores, then the siblings of other cores") {
    const auto plan = plan_placement(machine, {.cores = 2});
    CHECK(cpus_of(plan) == numbers{0, 1});
    CHECK(plan.cores[0].helper_cpus == numbers{8, 2, 3, 4, 5, 6, 7, 10, 11, 12, 13, 14, 15, 9});
    CHECK(plan.cores[1].helper_cpus == numbers{9, 2, 3, 4, 5, 6, 7, 10, 11, 12, 13, 14, 15, 8});
  }
  SUBCASE("hardware threads: no CPU is free, so helpers go to the other cores' CPUs") {
    const auto plan = plan_placement(machine, {.unit = core_unit::hardware_thread});
    CHECK(cpus_of(plan) == count_up(0, 15));
    CHECK(plan.cores[0].helper_cpus == count_up(1, 15));
  }
  SUBCASE("the first allowed hardware thread of a core stands for it") {
    const auto plan = plan_placement(restricted(machine, {1, 8, 9, 10}), {});
    CHECK(cpus_of(plan) == numbers{1, 8, 10});
    CHECK(plan.cores[0].helper_cpus == numbers{9});
    CHECK(plan.cores[1].helper_cpus == numbers{9});
  }
}

TEST_CASE("placement: siblings numbered side by side") {
  const auto machine = synthetic_topology("core:4 pu:2");
  CHECK(cpus_of(plan_placement(machine, {})) == numbers{0, 2, 4, 6});
  // Four of eight hardware threads take four physical cores, six also two siblings.
  CHECK(cpus_of(plan_placement(machine, {.unit = core_unit::hardware_thread, .cores = 4})) ==
        numbers{0, 2, 4, 6});
  CHECK(cpus_of(plan_placement(machine, {.unit = core_unit::hardware_thread, .cores = 6})) ==
        numbers{0, 1, 2, 3, 4, 6});
}

TEST_CASE("placement: c5.metal") {
  const auto machine = synthetic_topology("c5.metal");
  REQUIRE(machine.cpus.size() == 96);
  SUBCASE("48 physical cores, node 0 first") {
    const auto plan = plan_placement(machine, {});
    CHECK(cpus_of(plan) == count_up(0, 47));
    for (unsigned i = 0; i < 48; ++i) {
      const auto& core = plan.cores[i];
      CHECK(core.numa_node == i / 24);
      CHECK(core.helper_cpus.size() == 24);
      CHECK(core.helper_cpus.front() == i + 48);
      for (const unsigned helper : core.helper_cpus) CHECK(machine.cpus[helper].numa_node == core.numa_node);
    }
  }
  SUBCASE("96 hardware threads, node by node") {
    const auto plan = plan_placement(machine, {.unit = core_unit::hardware_thread});
    numbers expected = count_up(0, 23);
    for (const auto& [first, last] : {std::pair{48U, 71U}, {24U, 47U}, {72U, 95U}}) {
      for (const unsigned cpu : count_up(first, last)) expected.push_back(cpu);
    }
    CHECK(cpus_of(plan) == expected);
  }
  SUBCASE("a count fills node 0 before it touches node 1") {
    CHECK(cpus_of(plan_placement(machine, {.cores = 24})) == count_up(0, 23));
    CHECK(nodes_of(plan_placement(machine, {.cores = 25})).back() == 1);
    const auto threads = plan_placement(machine, {.unit = core_unit::hardware_thread, .cores = 48});
    CHECK(nodes_of(threads) == numbers(48, 0));
  }
  SUBCASE("chosen nodes, in the order given") {
    CHECK(cpus_of(plan_placement(machine, {.numa_nodes = {1}})) == count_up(24, 47));
    CHECK(cpus_of(plan_placement(machine, {.cores = 26, .numa_nodes = {1, 0}})).back() == 1);
    CHECK(nodes_of(plan_placement(machine, {.numa_nodes = {1, 0}})).front() == 1);
  }
  SUBCASE("the printed plan") {
    const std::string text = format_plan(machine, plan_placement(machine, {}));
    CHECK(std::count(text.begin(), text.end(), '\n') == 50);
    CHECK(holds(text,
                {"c5.metal (synthetic): 2 packages, 2 NUMA nodes, 48 physical cores, 96 hardware threads\n",
                 "48 core threads, pinned\n", "core  0: cpu  0, package 0, NUMA node 0, helper cpus 48-71\n",
                 "core 24: cpu 24, package 1, NUMA node 1, helper cpus 72-95\n",
                 "core 47: cpu 47, package 1, NUMA node 1, helper cpus 95,72-94\n"}));
  }
}

TEST_CASE("placement: four nodes") {
  const auto machine = synthetic_topology("4node");
  const auto plan = plan_placement(machine, {});
  REQUIRE(plan.cores.size() == 32);
  for (unsigned i = 0; i < 32; ++i) CHECK(plan.cores[i].numa_node == i / 8);
  CHECK(nodes_of(plan_placement(machine, {.cores = 9})) == numbers{0, 0, 0, 0, 0, 0, 0, 0, 1});
  CHECK(nodes_of(plan_placement(machine, {.cores = 10, .numa_nodes = {3, 1}})) ==
        numbers{3, 3, 3, 3, 3, 3, 3, 3, 1, 1});
}

TEST_CASE("placement: an explicit list is taken as it is") {
  const auto machine = synthetic_topology("c5.metal");
  const auto plan = plan_placement(machine, {.cpus = {30, 2, 50, 1}});
  CHECK(cpus_of(plan) == numbers{30, 2, 50, 1});
  CHECK(nodes_of(plan) == numbers{1, 0, 0, 0});
  CHECK(plan.cores[0].helper_cpus.front() == 78);
  CHECK(plan.cores[1].helper_cpus.front() == 0);  // its own sibling, 50, is a core; 0 shares with none
  CHECK(plan.cores[3].helper_cpus.front() == 49);
  CHECK(plan.cores[3].helper_cpus.back() == 71);
  CHECK(plan.warnings.empty());
}

TEST_CASE("placement: a restricted cpuset") {
  SUBCASE("one node of two is left") {
    const auto machine = restricted(synthetic_topology("c5.metal"), {24, 25, 72});
    const auto plan = plan_placement(machine, {});
    CHECK(cpus_of(plan) == numbers{24, 25});
    CHECK(plan.cores[0].helper_cpus == numbers{72});
    CHECK(plan.cores[1].helper_cpus == numbers{72});
    CHECK(holds(format_plan(machine, plan), {"96 hardware threads of which this process may use 3\n"}));
    CHECK(holds(refusal(machine, {.numa_nodes = {0}}), {"NUMA node 0 has no CPU", "node 1 has"}));
    CHECK(holds(refusal(machine, {.cpus = {23}}), {"cpu 23 is not allowed", "cpu 24-25,72"}));
    CHECK(holds(refusal(machine, {.cores = 3}),
                {"3 cores", "2 physical cores", "at most 2", "hardware thread", "there are 3"}));
  }
  SUBCASE("one CPU of a big machine") {
    const auto plan = plan_placement(restricted(synthetic_topology("4node"), {60}), {});
    CHECK(cpus_of(plan) == numbers{60});
    CHECK(nodes_of(plan) == numbers{3});
    CHECK(plan.cores[0].helper_cpus == numbers{60});
  }
  SUBCASE("nothing is left") {
    CHECK(holds(refusal(restricted(synthetic_topology("2cpu"), {}), {}), {"no CPU"}));
    CHECK(holds(refusal({}, {}), {"no CPU"}));
  }
}

TEST_CASE("placement: the cgroup's quota") {
  const auto machine = synthetic_topology("8core-smt");
  SUBCASE("caps the count at the next whole CPU, with one warning") {
    const auto plan = plan_placement(with_quota(machine, 2.5), {});
    CHECK(cpus_of(plan) == numbers{0, 1, 2});
    REQUIRE(plan.warnings.size() == 1);
    CHECK(plan.warnings[0] == "the cgroup grants 2.5 CPUs: 3 core threads instead of 8");
    const std::string text = format_plan(with_quota(machine, 2.5), plan);
    CHECK(holds(text, {"cgroup quota 2.5 CPUs\n", "warning: the cgroup grants"}));
  }
  SUBCASE("is at least one core") {
    CHECK(plan_placement(with_quota(machine, 0.05), {}).cores.size() == 1);
  }
  SUBCASE("whole") {
    CHECK(plan_placement(with_quota(machine, 3), {}).cores.size() == 3);
  }
  SUBCASE("prefers whole physical cores among hardware threads") {
    const auto plan = plan_placement(with_quota(synthetic_topology("core:4 pu:2"), 3),
                                     {.unit = core_unit::hardware_thread});
    CHECK(cpus_of(plan) == numbers{0, 2, 4});
  }
  SUBCASE("that covers the machine says nothing") {
    for (const double quota : {7.1, 8.0, 1e12}) {
      const auto plan = plan_placement(with_quota(machine, quota), {});
      CHECK(plan.cores.size() == 8);
      CHECK(plan.warnings.empty());
    }
  }
  SUBCASE("an explicit count or list wins, with a warning") {
    for (const placement_options& options :
         {placement_options{.cores = 4}, placement_options{.cpus = {0, 1, 2, 3}}}) {
      const auto plan = plan_placement(with_quota(machine, 2.5), options);
      CHECK(plan.cores.size() == 4);
      REQUIRE(plan.warnings.size() == 1);
      CHECK(holds(plan.warnings[0], {"2.5 CPUs", "4 core threads"}));
    }
    CHECK(plan_placement(with_quota(machine, 2.5), {.cores = 3}).warnings.empty());
  }
  SUBCASE("is ignored on request") {
    const auto plan = plan_placement(with_quota(machine, 2.5), {.respect_quota = false});
    CHECK(plan.cores.size() == 8);
    CHECK(plan.warnings.empty());
  }
}

TEST_CASE("placement: nodes without CPUs and machines without nodes") {
  cpu_topology machine;
  machine.cpus = {{.os_index = 0, .core = 0}, {.os_index = 1, .core = 1}};
  SUBCASE("no NUMA information: node 0") {
    CHECK(nodes_of(plan_placement(machine, {})) == numbers{0, 0});
    CHECK(nodes_of(plan_placement(machine, {.numa_nodes = {0}})) == numbers{0, 0});
    CHECK(holds(format_plan(machine, plan_placement(machine, {})), {"1 NUMA node,"}));
  }
  SUBCASE("a memory-only node") {
    machine.numa_nodes = {0, 2};
    CHECK(cpus_of(plan_placement(machine, {})) == numbers{0, 1});
    CHECK(holds(refusal(machine, {.numa_nodes = {2}}), {"NUMA node 2 has no CPU"}));
    CHECK(holds(refusal(machine, {.numa_nodes = {1}}), {"NUMA node 1 is not in this machine", "0,2"}));
  }
}

TEST_CASE("placement: bad options are refused with what the machine offers") {
  const auto machine = synthetic_topology("8core-smt");
  CHECK(holds(refusal(machine, {.cores = 9}), {"9 cores", "8 physical cores", "at most 8", "there are 16"}));
  CHECK(holds(refusal(machine, {.unit = core_unit::hardware_thread, .cores = 17}), {"16 hardware threads"}));
  CHECK(holds(refusal(machine, {.cpus = {16}}), {"cpu 16 is not in this machine", "0-15"}));
  CHECK(holds(refusal(machine, {.cpus = {3, 4, 3}}), {"cpu 3 is named twice"}));
  CHECK(holds(refusal(machine, {.numa_nodes = {0, 0}}), {"NUMA node 0 is named twice"}));
  CHECK(holds(refusal(machine, {.numa_nodes = {1}}), {"NUMA node 1 is not in this machine"}));
  CHECK(holds(refusal(machine, {.cores = 1, .cpus = {0}}), {"not both"}));
  CHECK(holds(refusal(machine, {.cpus = {0}, .numa_nodes = {0}}), {"not both"}));
  CHECK(holds(refusal(synthetic_topology("c5.metal"), {.cores = 25, .numa_nodes = {1}}),
              {"24 physical cores on NUMA node 1", "there are 48"}));
}

TEST_CASE("placement: properties hold for random machines and options") {
  std::mt19937 random(20240607);
  const auto below = [&](unsigned limit) {
    return std::uniform_int_distribution<unsigned>(0, limit - 1)(random);
  };
  int planned = 0;
  for (int round = 0; round < 2000; ++round) {
    auto machine = synthetic_topology(
        "pack:" + std::to_string(1 + below(3)) + " [numa] core:" + std::to_string(1 + below(5)) +
        " pu:" + std::to_string(1 + below(3)) + (below(2) != 0 ? "(indexes=core)" : ""));
    for (auto& cpu : machine.cpus) cpu.allowed = below(4) != 0;
    std::shuffle(machine.cpus.begin(), machine.cpus.end(), random);
    machine.cpu_quota = below(3) == 0 ? 0.1 + below(60) / 10.0 : 0;
    placement_options options;
    options.unit = below(2) != 0 ? core_unit::hardware_thread : core_unit::physical_core;
    options.cores = below(3) == 0 ? 1 + below(6) : 0;
    if (below(3) == 0) options.numa_nodes = {below(3)};
    if (!refusal(machine, options).empty()) continue;
    ++planned;

    const auto plan = plan_placement(machine, options);
    std::map<unsigned, cpu_topology::cpu> by_number;
    for (const auto& cpu : machine.cpus) by_number[cpu.os_index] = cpu;
    const numbers cpus = cpus_of(plan);
    const std::set<unsigned> owned(cpus.begin(), cpus.end());
    std::set<unsigned> physical;
    REQUIRE(owned.size() == cpus.size());
    REQUIRE_FALSE(cpus.empty());
    if (options.cores != 0) REQUIRE(cpus.size() == options.cores);
    if (options.cores == 0 && machine.cpu_quota > 0) {
      REQUIRE(static_cast<double>(cpus.size()) <= std::max(1.0, std::ceil(machine.cpu_quota)));
    }
    for (const auto& core : plan.cores) {
      const auto& own = by_number.at(core.cpu);
      REQUIRE(own.allowed);
      REQUIRE(own.numa_node == core.numa_node);
      if (!options.numa_nodes.empty()) REQUIRE(core.numa_node == options.numa_nodes[0]);
      if (options.unit == core_unit::physical_core) REQUIRE(physical.insert(own.core).second);
      const auto is_free = [&](const cpu_topology::cpu& cpu) {
        return cpu.allowed && cpu.numa_node == own.numa_node && !owned.contains(cpu.os_index);
      };
      const auto free_cpus = std::count_if(machine.cpus.begin(), machine.cpus.end(), is_free);
      const std::set<unsigned> helpers(core.helper_cpus.begin(), core.helper_cpus.end());
      REQUIRE(helpers.size() == core.helper_cpus.size());
      REQUIRE_FALSE(helpers.empty());
      if (free_cpus > 0) REQUIRE(static_cast<std::size_t>(free_cpus) == helpers.size());
      for (const unsigned helper : helpers) {
        REQUIRE(by_number.at(helper).allowed);
        REQUIRE(by_number.at(helper).numa_node == own.numa_node);
        if (free_cpus > 0) REQUIRE_FALSE(owned.contains(helper));
        if (helpers.size() > 1) REQUIRE(helper != core.cpu);
      }
    }
  }
  CHECK(planned > 1000);
}

TEST_CASE("placement: CPU lists") {
  CHECK(parse_cpu_list("0-3,8,10-12") == numbers{0, 1, 2, 3, 8, 10, 11, 12});
  CHECK(parse_cpu_list("5") == numbers{5});
  CHECK(parse_cpu_list("7,3-3,7") == numbers{7, 3, 7});
  CHECK(parse_cpu_list("8191") == numbers{8191});
  for (const char* bad : {"", ",", "1,", ",1", "1,,2", "-1", "1-", "1-2-3", "a", "1a", "0x1", "1 ,2", " 1",
                          "+1", "1\n", "3-1", "8192", "0-99999999999", "4294967296"}) {
    CAPTURE(bad);
    CHECK(holds(list_refusal(bad), {"cpu list \"", bad, "0-3,8,10-12"}));
  }
  CHECK(holds(list_refusal("3-1"), {"3-1 descends"}));
  CHECK(holds(list_refusal("8192"), {"above 8191"}));
  CHECK(holds(list_refusal("1,"), {"missing at the end"}));

  CHECK(format_cpu_list({0, 1, 2, 3, 8, 10, 11}) == "0-3,8,10-11");
  CHECK(format_cpu_list({11, 8, 9, 10}) == "11,8-10");
  CHECK(format_cpu_list({}) == "none");
  CHECK(parse_cpu_list(format_cpu_list(numbers{4, 4, 1, 2})) == numbers{4, 4, 1, 2});
}
