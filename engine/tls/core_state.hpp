#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "engine/tls/core_context.hpp"
#include "engine/tls/io.hpp"
#include "engine/tls/library.hpp"
#include "engine/tls/session.hpp"

namespace percore::tls {

// Plaintext that is encrypted before it is sent, at most.
inline constexpr std::size_t batch_bytes = 64 * 1024;

// Everything of TLS that one core has. Used on its thread only.
class core_state {
 public:
  core_state();  // throws std::bad_alloc, or tls_error
  core_state(const core_state&) = delete;
  core_state& operator=(const core_state&) = delete;
  ~core_state();

  // Makes this core's objects of the context's present settings. Throws tls_error, or std::bad_alloc.
  void prepare(const std::shared_ptr<shared_context>& shared);

  // A session of the context as it is now; nullptr when memory is out. close() ends it.
  session* open(const std::shared_ptr<shared_context>& shared, std::uint64_t identity) noexcept;
  void close(session* ended) noexcept;

  // Contexts in memory: for each shared one the newest, and older ones that still have sessions.
  [[nodiscard]] std::size_t contexts() const noexcept { return contexts_.size(); }

  io wire;
  std::vector<std::byte> gather;  // plaintext of several pieces that become one record
  bool kernel_has_no_tls = false;  // it was asked once

 private:
  core_context* current(const std::shared_ptr<shared_context>& shared);

  library library_;
  std::vector<std::unique_ptr<core_context>> contexts_;
};

}  // namespace percore::tls
