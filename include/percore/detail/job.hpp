// Work that a core gives to its helper threads, as nodes that its owner keeps. Not for users.
#pragma once

#include <atomic>
#include <cstdint>

#include <percore/detail/links.hpp>

namespace percore::engine {
struct core_resources;
struct slice_job;
struct slot;
}  // namespace percore::engine

namespace percore::helpers {
class helper;
}

namespace percore::detail {

// What another thread gives back to a core, on whose thread `deliver` then runs. Costs no memory and always
// finds room, unlike a message: whoever gives away a node has it for its return.
struct completion {
  completion* next_completed = nullptr;
  void (*deliver)(completion&, engine::core_resources&) = nullptr;
};

// One piece of work on its way from the core to a helper and back. Lives until it was delivered; belongs to
// the core's thread except while `run` has it. As a ready_node it waits on the core, when the queue has no
// room for it.
struct job : completion, ready_node {
  void (*work)(job&, helpers::helper&) noexcept = nullptr;  // on the helper
  // For what belongs to nobody else: frees it when its core is gone before it came back.
  void (*drop)(job&) noexcept = nullptr;
  engine::slot* owner = nullptr;  // the connection that waits for it; none: nobody
  bool taken_back = false;        // no helper has had it; it is delivered all the same
  bool always_runs = false;       // what drops the jobs that have not begun leaves it in the queue
  std::uint64_t position = 0;     // in the queue
  std::int64_t submitted_ns = 0;  // the time of that turn of the loop
  // When a helper began, 0 before; for the report on helpers that do not come back.
  std::atomic<std::int64_t> begun_ns{0};
};

}  // namespace percore::detail
