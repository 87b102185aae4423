#include "engine/sys/numa_memory.hpp"

#include <doctest/doctest.h>
#include <hwloc.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <percore/placement.hpp>
#include <system_error>
#include <utility>
#include <vector>

#include "engine/sys/topology.hpp"

namespace {

using percore::sys::huge_pages;
using percore::sys::numa_binding;
using percore::sys::numa_region;
using percore::sys::page_bytes;

std::size_t resident_pages(const numa_region& region) {
  std::vector<unsigned char> pages(region.size() / page_bytes());
  REQUIRE(mincore(region.data(), region.size(), pages.data()) == 0);
  return static_cast<std::size_t>(
      std::count_if(pages.begin(), pages.end(), [](auto page) { return page & 1; }));
}

bool is_mapped(const void* address) {
  unsigned char page = 0;
  return mincore(const_cast<void*>(address), page_bytes(), &page) == 0;
}

}  // namespace

TEST_CASE("numa_memory: an empty region") {
  const numa_region none;
  CHECK(none.data() == nullptr);
  CHECK(none.size() == 0);
  const numa_region zero(0, 0U);
  CHECK(zero.data() == nullptr);
  CHECK(zero.binding() == numa_binding::not_asked);
}

TEST_CASE("numa_memory: whole pages, zeroed, unmapped at the end") {
  const std::byte* address = nullptr;
  {
    const numa_region region(page_bytes() + 1, std::nullopt);
    address = region.data();
    CHECK(region.size() == 2 * page_bytes());
    CHECK(reinterpret_cast<std::uintptr_t>(region.data()) % page_bytes() == 0);
    CHECK(region.binding() == numa_binding::not_asked);
    CHECK(std::all_of(region.data(), region.data() + region.size(),
                      [](std::byte b) { return b == std::byte{}; }));
    region.data()[region.size() - 1] = std::byte{7};
    CHECK(is_mapped(address));
  }
  CHECK_FALSE(is_mapped(address));
}

TEST_CASE("numa_memory: bound to every node that has CPUs") {
  const auto machine = percore::discover_topology();
  const bool several = machine.numa_nodes.size() > 1;
  for (const auto& core : percore::plan_placement(machine, {}).cores) {
    const numa_region region(1 << 20, core.numa_node, {.prefault = true});
    // Kernels without NUMA and seccomp filters refuse; on one node that does no harm.
    if (region.binding() != numa_binding::bound) {
      CHECK(region.binding() == (several ? numa_binding::refused : numa_binding::single_node));
      continue;
    }
    const auto topology = percore::sys::live_topology();
    hwloc_bitmap_t nodes = hwloc_bitmap_alloc();
    hwloc_membind_policy_t policy = HWLOC_MEMBIND_DEFAULT;
    CHECK(hwloc_get_area_membind(topology, region.data(), region.size(), nodes, &policy,
                                 HWLOC_MEMBIND_BYNODESET) == 0);
    CHECK(policy == HWLOC_MEMBIND_BIND);
    CHECK(hwloc_bitmap_weight(nodes) == 1);
    CHECK(hwloc_bitmap_isset(nodes, core.numa_node));
    CHECK(hwloc_get_area_memlocation(topology, region.data(), region.size(), nodes,
                                     HWLOC_MEMBIND_BYNODESET) == 0);
    CHECK(hwloc_bitmap_isset(nodes, core.numa_node));
    hwloc_bitmap_free(nodes);
  }
}

TEST_CASE("numa_memory: a node that is not there is reported, and the memory works") {
  const numa_region region(page_bytes(), 4000U);
  CHECK(region.binding() == numa_binding::refused);
  region.data()[0] = std::byte{1};
  CHECK(region.data()[0] == std::byte{1});
}

TEST_CASE("numa_memory: prefault takes every page, otherwise none is taken") {
  const std::size_t bytes = 64 * page_bytes();
  CHECK(resident_pages(numa_region(bytes, std::nullopt, {.pages = huge_pages::never})) == 0);
  CHECK(resident_pages(numa_region(bytes, std::nullopt, {.pages = huge_pages::never, .prefault = true})) ==
        64);
  CHECK(resident_pages(numa_region(bytes, 0U, {.prefault = true})) == 64);
  const numa_region huge(std::size_t{4} << 20, 0U, {.pages = huge_pages::advise, .prefault = true});
  CHECK(resident_pages(huge) == huge.size() / page_bytes());
}

TEST_CASE("numa_memory: moves") {
  numa_region first(page_bytes(), std::nullopt);
  std::byte* const address = first.data();
  address[0] = std::byte{42};
  numa_region second(std::move(first));
  CHECK(first.data() == nullptr);
  CHECK(first.size() == 0);
  CHECK(second.data() == address);
  numa_region third(2 * page_bytes(), std::nullopt);
  const std::byte* const replaced = third.data();
  third = std::move(second);
  CHECK(third.data() == address);
  CHECK(third.size() == page_bytes());
  CHECK(third.data()[0] == std::byte{42});
  CHECK_FALSE(is_mapped(replaced));
  std::vector<numa_region> many;
  for (int i = 0; i < 5; ++i) many.emplace_back(page_bytes(), std::nullopt);
  many.clear();
}

TEST_CASE("numa_memory: impossible sizes are errors") {
  const std::size_t most = std::numeric_limits<std::size_t>::max();
  CHECK_THROWS_AS(numa_region(most, std::nullopt), std::system_error);
  CHECK_THROWS_AS(numa_region(most / 2, std::nullopt), std::system_error);
  CHECK(percore::sys::round_up_to_pages(most) == 0);
  CHECK(percore::sys::round_up_to_pages(0) == 0);
  CHECK(percore::sys::round_up_to_pages(1) == page_bytes());
  CHECK(percore::sys::round_up_to_pages(page_bytes()) == page_bytes());
}
