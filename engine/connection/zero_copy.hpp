#pragma once

#include <cstddef>
#include <cstdint>

#include <percore/bytes_view.hpp>
#include <percore/detail/links.hpp>
#include <percore/detail/write_source.hpp>

#include "engine/connection/slot.hpp"

namespace percore::engine {

// A write that the kernel sends from the caller's own memory (MSG_ZEROCOPY): its pages are lent to the kernel, from the call
// that sends them until the socket's error queue tells that nothing refers to them any more, which for TCP is after the peer
// has acknowledged them. The writer waits for it, however the write ends, so that memory and frames stay as long.
//
// Made at a connection's first write of the kind, from the heap; goes with the connection.
class zero_copy final : public detail::write_source, detail::timer_node {
 public:
  static constexpr std::size_t least_bytes = 4096;  // less is never worth it

  explicit zero_copy(slot& owner) noexcept;

  // The kernel knows it for this socket.
  [[nodiscard]] bool enable() const noexcept;
  void begin(const bytes_view* first, std::size_t count, std::size_t size, bool last) noexcept;

  [[nodiscard]] bool lends() const noexcept { return lent_ != 0; }
  // The connection has ended under the write. True when the kernel has given all of it back; else it is asked again, and the
  // write continued, until it has.
  bool is_back() noexcept;
  // The same at once: what has not come back after a tenth of a second, which only a device that hangs makes possible, is
  // given up, and counted.
  void take_back() noexcept;
  // Instead of closing the descriptor, after which nobody would be told.
  void close_later() noexcept;
  // The peer has acknowledged something since the last time that this was asked.
  bool has_moved() noexcept;

 private:
  outcome step() noexcept;
  ssize_t send_some(bool lend) noexcept;
  void collect() noexcept;
  void note_returned(std::uint32_t calls, bool copied) noexcept;
  void skip_sent() noexcept;
  void note_unacknowledged() noexcept;

  slot& owner_;
  const bytes_view* pieces_ = nullptr;  // the first one not wholly sent
  std::size_t count_ = 0;
  std::size_t offset_ = 0;  // bytes of it that are
  std::size_t left_ = 0;
  std::uint32_t lent_ = 0;    // calls whose pages the kernel has not given back
  std::uint32_t copied_ = 0;  // calls in a row of which it has told that it copied them after all
  int unacknowledged_ = 0;    // bytes, when they were last looked at
  bool fin_ = false;          // behind the last byte
  bool severed_ = false;
  bool shut_ = false;
};

}  // namespace percore::engine
