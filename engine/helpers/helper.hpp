#pragma once

#include <pthread.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

#include <percore/detail/job.hpp>

#include "engine/base/cache_line.hpp"
#include "engine/base/counter.hpp"
#include "engine/helpers/statistics.hpp"
#include "engine/tls/core_state.hpp"

namespace percore::helpers {

class pool;

// pool_settings::server on helper threads; nullptr on any other.
extern constinit thread_local const void* server_of_helper;

// One helper thread of a core, and what it has to itself. The object stays when the thread retires and serves
// the next thread of the same number, so that what it has counted is not lost.
class alignas(base::cache_line_bytes) helper {
 public:
  explicit helper(unsigned number) noexcept : number_(number) {}
  helper(const helper&) = delete;
  helper& operator=(const helper&) = delete;

  // For jobs, on this thread: memory of TLS's, made when it is first needed. Throws std::bad_alloc, or
  // tls_error.
  tls::core_state& tls();

  // A buffer for the connection that is served here; `bytes` is the same with each call. Throws
  // std::bad_alloc.
  std::byte* buffer(std::size_t bytes) {
    if (buffer_ == nullptr) buffer_.reset(new std::byte[bytes]);
    return buffer_.get();
  }

  // Of blocking connections served here. This thread writes them.
  base::counter bytes_received;
  base::counter bytes_sent;

 private:
  friend class pool;

  // What the core tells a helper that sleeps, or will look before it does.
  enum command : std::uint32_t {
    none,
    look,    // there may be work
    retire,  // there is none: end now
    end,     // when the queue is empty
  };

  const unsigned number_;
  std::atomic<std::uint32_t> told_{none};  // the futex that this thread sleeps on
  std::atomic<std::int64_t> last_used_ns_{0};
  // The job that runs: since when (0: none) and for which connection. Written by this thread.
  std::atomic<std::int64_t> busy_since_ns_{0};
  std::atomic<const engine::slot*> serves_{nullptr};
  std::atomic<bool> ended_{true};  // the thread will touch the pool no more but to leave it
  live_histogram wait_;
  live_histogram run_;
  std::unique_ptr<tls::core_state> tls_;
  std::unique_ptr<std::byte[]> buffer_;

  // The core's.
  bool alive_ = false;     // started, and not told to end
  bool joinable_ = false;  // `thread_` is one
  pthread_t thread_{};
};

}  // namespace percore::helpers
