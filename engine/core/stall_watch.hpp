#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <percore/options.hpp>

#include "engine/base/counter.hpp"
#include "engine/connection/slot.hpp"
#include "engine/core/periodic_thread.hpp"

namespace percore::engine {

class core;

// Filled in by the signal handler on a core's own thread, and only when it was asked to: then nothing else
// runs there, so that it may look at what belongs to the core.
struct stall_snapshot {
  enum class state : std::uint32_t { idle, wanted, filling, filled };
  std::atomic<state> now{state::idle};
  bool in_handler = false;
  std::size_t listener = 0;
  std::uint32_t slot = 0;
  std::uint32_t generation = 0;
  percore::peer_address peer;
  int depth = 0;
  std::array<void*, 64> frames{};
};

// A thread that looks at each core's count of steps. The same odd number for longer than the threshold means
// that one handler has been running since.
class stall_watch {
 public:
  stall_watch(const stall_options& options, const std::string& thread_name);
  stall_watch(const stall_watch&) = delete;
  stall_watch& operator=(const stall_watch&) = delete;
  ~stall_watch();

  // Before start(); the core must not have begun to run, and must outlive stop().
  void add(core& which);
  void start();  // throws std::system_error
  void stop() noexcept { thread_.stop(); }

  // Any thread.
  [[nodiscard]] std::uint64_t stalls(std::size_t core) const noexcept { return cores_[core]->stalls.get(); }

 private:
  struct watched {
    core* which = nullptr;
    stall_snapshot snapshot;
    base::counter stalls;
    std::uint64_t step = 0;     // as last seen
    std::int64_t since_ns = 0;  // when it was seen first
    bool noted = false;
    std::int64_t reported_ns = 0;
    std::uint64_t unreported = 0;
  };

  void look() noexcept;
  void look_at(std::size_t index, std::int64_t now_ns);
  void report(std::size_t index, std::int64_t duration_ns);
  [[nodiscard]] bool take_snapshot(watched& of) const noexcept;

  const stall_options options_;
  const std::string name_;
  const std::int64_t threshold_ns_;
  std::vector<std::unique_ptr<watched>> cores_;
  periodic_thread thread_;
};

}  // namespace percore::engine
