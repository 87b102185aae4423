// Memory of one NUMA node: what a core writes all day (slots, buffers) lies beside its CPU.
#pragma once

#include <cstddef>
#include <optional>
#include <utility>

namespace percore::sys {

// Whether the kernel may back a region with transparent huge pages (madvise(2)).
enum class huge_pages {
  system_default,  // what /sys/kernel/mm/transparent_hugepage/enabled says
  advise,          // MADV_HUGEPAGE: fewer TLB misses; a first touch then takes 2 MiB (x86) at once
  never,           // MADV_NOHUGEPAGE: a sparsely used region costs only the pages that are touched
};

struct region_options {
  huge_pages pages = huge_pages::system_default;
  bool prefault = false;  // take all pages now, so that a lack of memory shows at set-up
};

enum class numa_binding {
  not_asked,    // no node was named: pages come from the node of the thread that touches them first
  bound,        // the kernel prefers the node for every page
  single_node,  // the kernel took no policy, and needs none: the machine has one node
  refused,      // there is no such node, or the kernel refused: as not_asked
};

// A page-aligned, zeroed, private mapping, unmapped at destruction. Movable, not copyable; no locking.
class numa_region {
 public:
  numa_region() noexcept = default;  // empty: data() is nullptr, size() 0

  // Maps `bytes` rounded up to whole pages; 0 gives an empty region. `node` is the kernel's number. A binding
  // that fails is no error (see binding()); std::system_error tells that the mapping or the prefault failed.
  // The binding is a preference, as hwloc makes it without HWLOC_MEMBIND_STRICT: when the node is full the
  // kernel takes pages elsewhere, where a strict one would call the out-of-memory killer.
  numa_region(std::size_t bytes, std::optional<unsigned> node, region_options options = {});

  ~numa_region();
  numa_region(numa_region&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)),
        size_(std::exchange(other.size_, 0)),
        binding_(std::exchange(other.binding_, numa_binding::not_asked)) {}
  numa_region& operator=(numa_region&& other) noexcept {
    numa_region taken(std::move(other));
    std::swap(data_, taken.data_);
    std::swap(size_, taken.size_);
    std::swap(binding_, taken.binding_);
    return *this;
  }

  [[nodiscard]] std::byte* data() const noexcept { return data_; }
  [[nodiscard]] std::size_t size() const noexcept { return size_; }  // bytes, whole pages
  [[nodiscard]] numa_binding binding() const noexcept { return binding_; }

 private:
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
  numa_binding binding_ = numa_binding::not_asked;
};

// Bytes of a page, and `bytes` rounded up to whole pages (0 when that does not fit a size_t).
[[nodiscard]] std::size_t page_bytes() noexcept;
[[nodiscard]] std::size_t round_up_to_pages(std::size_t bytes) noexcept;

}  // namespace percore::sys
