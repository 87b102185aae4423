#pragma once

#include <atomic>
#include <cstddef>

#include "engine/loop/wakeup.hpp"

namespace percore::engine {

// Catches SIGINT and SIGTERM while it lives; several may live at a time, and each hears every signal. The previous
// actions are restored with the last one. Made and destroyed on any thread.
class signal_watch {
 public:
  // `woken` is woken at each signal and must outlive this. Throws std::system_error, or std::runtime_error when too
  // many are alive (64).
  explicit signal_watch(const loop::wakeup& woken);
  signal_watch(const signal_watch&) = delete;
  signal_watch& operator=(const signal_watch&) = delete;
  ~signal_watch();

  // Signals since it was made.
  [[nodiscard]] unsigned received() const noexcept;

 private:
  std::size_t place_ = 0;
};

}  // namespace percore::engine
