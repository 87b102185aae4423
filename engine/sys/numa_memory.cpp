#include "engine/sys/numa_memory.hpp"

#include <hwloc.h>

#include <string>
#include <system_error>

#include "engine/sys/calls.hpp"
#include "engine/sys/topology.hpp"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23  // Linux 5.14; the C library's headers may be older
#endif

namespace percore::sys {
namespace {

numa_binding bind_to_node(void* data, std::size_t size, unsigned node) {
  const hwloc_topology_t machine = live_topology();
  const hwloc_obj_t found = hwloc_get_numanode_obj_by_os_index(machine, node);
  if (found == nullptr) return numa_binding::refused;
  if (hwloc_set_area_membind(machine, data, size, found->nodeset, HWLOC_MEMBIND_BIND,
                             HWLOC_MEMBIND_BYNODESET) == 0) {
    return numa_binding::bound;
  }
  // Kernels without CONFIG_NUMA and containers whose seccomp filter forbids mbind come here.
  return hwloc_get_nbobjs_by_type(machine, HWLOC_OBJ_NUMANODE) == 1 ? numa_binding::single_node
                                                                    : numa_binding::refused;
}

// Advice, so a kernel without transparent huge pages may ignore it.
void advise_huge_pages(void* data, std::size_t size, huge_pages pages) noexcept {
  if (pages == huge_pages::system_default) return;
  (void)::madvise(data, size, pages == huge_pages::advise ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
}

// MADV_POPULATE_WRITE reports a lack of memory as an error, where touching the pages would end the process.
void prefault(std::byte* data, std::size_t size) {
  int result = 0;
  do {
    result = or_errno(::madvise(data, size, MADV_POPULATE_WRITE));
  } while (result == -EINTR);
  if (result == 0) return;
  if (result != -EINVAL) {
    throw std::system_error(-result, std::generic_category(),
                            "cannot take " + std::to_string(size) + " bytes of memory in advance");
  }
  for (std::size_t offset = 0; offset < size; offset += page_bytes()) {
    *static_cast<volatile std::byte*>(data + offset) = std::byte{0};
  }
}

}  // namespace

numa_region::numa_region(std::size_t bytes, std::optional<unsigned> node, region_options options) {
  if (bytes == 0) return;
  numa_region region;  // unmaps what is mapped should a later step throw
  const std::size_t size = round_up_to_pages(bytes);
  region.data_ = size == 0 ? nullptr : static_cast<std::byte*>(map_memory(size));
  if (region.data_ == nullptr) {
    throw std::system_error(ENOMEM, std::generic_category(),
                            "cannot map " + std::to_string(bytes) + " bytes");
  }
  region.size_ = size;
  // The policy comes before the first touch: it decides where a page is taken, and moves none that is there.
  if (node) region.binding_ = bind_to_node(region.data_, size, *node);
  advise_huge_pages(region.data_, size, options.pages);
  if (options.prefault) prefault(region.data_, size);
  *this = std::move(region);
}

numa_region::~numa_region() {
  if (data_ != nullptr) unmap_memory(data_, size_);
}

std::size_t page_bytes() noexcept {
  static const auto bytes = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  return bytes;
}

std::size_t round_up_to_pages(std::size_t bytes) noexcept {
  const std::size_t mask = page_bytes() - 1;
  return bytes + mask < bytes ? 0 : (bytes + mask) & ~mask;
}

}  // namespace percore::sys
