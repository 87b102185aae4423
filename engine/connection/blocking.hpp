#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <limits>
#include <memory>
#include <span>
#include <string_view>

#include <percore/blocking.hpp>
#include <percore/detail/job.hpp>

#include "engine/connection/slot.hpp"

namespace percore::engine {

// A connection of a blocking handler on its way to a helper and back.
struct blocking_job : detail::job {
  // Set by the core while the helper works: why all of its operations fail from now on; 0: they do not. errc
  // or -errno.
  std::atomic<int> interrupted{0};

  // What the helper leaves for the core, which counts it.
  bool reset = false;
  unsigned timeouts = 0;
  unsigned resets_received = 0;
  bool handshake_done = false;
  bool handshake_failed = false;
  bool resumed = false;
  bool v1_3 = false;
  bool truncated = false;
  bool failed_records = false;
  int cipher = 0;
  tls_failure failure = tls_failure::internal;
  const char* failure_reason = "";
  std::exception_ptr exception;
};

// What a blocking_connection stands for: the socket, a buffer and the time limits of one connection, on the
// helper's thread. Reads nothing of the slot but what does not change while the helper has it.
class blocking_session {
 public:
  blocking_session(blocking_job& job, helpers::helper& self);
  blocking_session(const blocking_session&) = delete;
  blocking_session& operator=(const blocking_session&) = delete;
  ~blocking_session();

  // TLS from the first byte, if the listener wants it; then the handler; then the goodbye.
  void run() noexcept;

  bytes_view read();
  std::size_t read_into(std::span<std::byte> target);
  bool read_full(std::span<std::byte> target);
  bytes_view read_until(std::string_view delimiter, std::size_t limit);
  void unread(std::size_t count);
  [[nodiscard]] std::size_t buffered() const noexcept { return end_ - begin_; }
  [[nodiscard]] std::size_t bytes_of_failed_read() const noexcept { return target_done_; }
  bool write(std::span<const bytes_view> pieces, bool last);
  void shutdown_write();
  void reset() noexcept;
  bool start_tls(const tls_context& context, buffered_plaintext policy);

  [[nodiscard]] std::error_code error() const noexcept;
  [[nodiscard]] bool interrupted() const noexcept { return job_.interrupted.load(std::memory_order_acquire) != 0; }
  [[nodiscard]] const slot& connection() const noexcept { return *job_.owner; }
  [[nodiscard]] tls::session* secure() const noexcept { return secure_; }

  std::uint32_t read_timeout_ms;
  std::uint32_t write_timeout_ms;
  std::uint32_t idle_timeout_ms;
  static constexpr std::int64_t never = std::numeric_limits<std::int64_t>::max();
  std::int64_t deadline_ns = never;

 private:
  enum class direction : std::uint8_t { in, out };

  // blocking.cpp
  [[nodiscard]] bool alive() noexcept;  // else: fails with why it is not
  [[nodiscard]] bool in_time() noexcept;  // of the handler's own deadline; else fails
  bool fail(int value) noexcept;        // always false
  bool end(int value) noexcept;         // the same, and for good
  bool begin_read() noexcept;  // false: the handler's own deadline is over
  void make_room(std::size_t bytes);
  bytes_view take(std::size_t bytes) noexcept;
  std::size_t receive(std::span<std::byte> into) noexcept;  // plain or decrypted; 0: failed
  std::size_t receive_wire(std::span<std::byte> into) noexcept;
  bool send_wire(std::span<const std::byte> data, int flags) noexcept;
  bool send_pieces(std::span<const bytes_view> pieces, int flags) noexcept;
  bool wait(direction which, std::int64_t limit_ns) noexcept;
  static std::int64_t after(std::uint32_t ms) noexcept;  // a limit from now on; 0: never
  void io_failed(int result) noexcept;

  // blocking_tls.cpp
  bool handshake(const std::shared_ptr<tls::shared_context>& with) noexcept;
  void hurry_handshake() noexcept;
  void note_handshake(bool ok) noexcept;
  bool send_records(int flags) noexcept;
  std::size_t receive_records() noexcept;  // 0: failed
  std::size_t receive_decrypted(std::span<std::byte> into) noexcept;
  bool write_encrypted(std::span<const bytes_view> pieces, bool last) noexcept;
  void close_tls() noexcept;

  blocking_job& job_;
  helpers::helper& self_;
  const listener_config& config_;
  const core_resources& core_;
  const int fd_;
  tls::session* secure_ = nullptr;

  std::byte* buffer_ = nullptr;  // the helper's
  std::size_t begin_ = 0;
  std::size_t end_ = 0;
  std::size_t view_ = 0;
  std::size_t target_done_ = 0;
  std::int64_t read_limit_ns_ = 0;       // of the operation that runs
  std::int64_t handshake_limit_ns_ = 0;  // 0: none runs
  bool handshake_hurries_ = false;       // the one that runs has heard of a drain
  bool in_message_ = false;  // the operation that runs has something of a message: a drain lets it finish
  bool end_seen_ = false;
  bool ended_ = false;
  bool sending_done_ = false;
  bool fin_pending_ = false;  // the last segment waits in the socket for its FIN (MSG_MORE)
  int end_reason_ = 0;
  int error_ = 0;
};

}  // namespace percore::engine
