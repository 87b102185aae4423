#include "engine/connection/pipes.hpp"

#include <new>

#include "engine/sys/calls.hpp"

namespace percore::engine {

namespace {

void close_both(pipe_pool::ends pipe) noexcept {
  (void)sys::close(pipe.read);
  (void)sys::close(pipe.write);
}

}  // namespace

bool pipe_pool::take(ends& into) noexcept {
  if (taken_ == limit_) return false;
  if (!free_.empty()) {
    into = free_.back();
    free_.pop_back();
  } else {
    int made[2];
    if (sys::pipe2(made, O_NONBLOCK | O_CLOEXEC) < 0) return false;
    into = {made[0], made[1]};
    // Refused when the user has too much in pipes (pipe(7), pipe-user-pages-soft): then it holds what it holds.
    (void)sys::fcntl(into.write, F_SETPIPE_SZ, static_cast<int>(bytes_));
  }
  ++taken_;
  return true;
}

void pipe_pool::give_back(ends pipe, bool empty) noexcept {
  --taken_;
  if (empty) {
    try {
      free_.push_back(pipe);
      return;
    } catch (const std::bad_alloc&) {
    }
  }
  close_both(pipe);
}

void pipe_pool::close() noexcept {
  for (const ends pipe : free_) close_both(pipe);
  free_.clear();
}

}  // namespace percore::engine
