// Blocking handlers: a whole connection on a helper thread, with plain calls that wait.
#pragma once

#include <chrono>
#include <concepts>
#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <utility>
#include <vector>

#include <percore/address.hpp>
#include <percore/bytes_view.hpp>
#include <percore/error.hpp>
#include <percore/tls.hpp>

struct ssl_st;  // OpenSSL's SSL

namespace percore {

class server;

namespace engine {
class blocking_session;
}

// A connection as a blocking handler has it, for as long as the handler runs and on its thread only. Every
// call waits until it is done, under the timeouts of the listener, which start anew with each call; a
// deadline, if set, limits all calls together. While it waits it keeps one helper thread
// (helper_options::most_per_core) and no core.
//
// Peers' faults are values, as with `connection`: reads answer an empty view, 0 or false, writes answer
// false, and error() tells why.
class blocking_connection {
 public:
  explicit blocking_connection(engine::blocking_session& session) noexcept
      : session_(&session) {}  // for the engine
  blocking_connection(const blocking_connection&) = delete;
  blocking_connection& operator=(const blocking_connection&) = delete;

  // --- reading ---------------------------------------------------------------------------------------------
  // As the functions of the same names of `connection`; views are valid until the next read.
  bytes_view read();
  std::size_t read(std::span<std::byte> target);
  bool read_full(std::span<std::byte> target);
  bytes_view read_until(std::string_view delimiter, std::size_t limit);
  // Puts the last `count` bytes of the last view back. Throws std::length_error when it was shorter.
  void unread(std::size_t count);
  void unread(bytes_view rest) { unread(rest.size()); }
  [[nodiscard]] std::size_t buffered_bytes() const noexcept;
  // After read_full answered false: how many bytes of the target were filled.
  [[nodiscard]] std::size_t bytes_of_failed_read() const noexcept;

  // --- writing ---------------------------------------------------------------------------------------------
  // True when the socket has taken all of it.
  bool write(bytes_view data);
  bool write(std::span<const bytes_view> pieces);
  // The last write: the FIN travels with it. Later writes fail with errc::closed.
  bool write_last(bytes_view data);
  void shutdown_write();
  // Ends the connection with a RST, at once (of a unix socket when the handler returns): nothing is read or written any
  // more, and local_address() may be unknown from then on.
  void reset() noexcept;

  [[nodiscard]] std::error_code error() const noexcept;

  // --- TLS -------------------------------------------------------------------------------------------------
  // As connection::start_tls. Each helper thread makes OpenSSL objects of its own from the context when it
  // first meets it, so few long-lived helpers are better than many. tls_options::kernel does not apply:
  // OpenSSL encrypts.
  bool start_tls(const tls_context& context, buffered_plaintext policy = buffered_plaintext::refuse);
  [[nodiscard]] std::optional<tls_info> tls() const;
  [[nodiscard]] std::vector<tls_peer_certificate> peer_certificates() const;
  [[nodiscard]] std::string_view tls_error() const noexcept;
  [[nodiscard]] ssl_st* native_tls() const noexcept;

  // --- time ------------------------------------------------------------------------------------------------
  // After the handler what TLS has to say (close_notify) has the write timeout or, without one,
  // listen_options::close_timeout.
  // 0 is none. What each one means is documented at listen_options; resolution 1 ms.
  void set_read_timeout(std::chrono::milliseconds timeout) noexcept;
  void set_write_timeout(std::chrono::milliseconds timeout) noexcept;
  void set_idle_timeout(std::chrono::milliseconds timeout) noexcept;
  // From then on every read, write and start_tls fails with errc::timed_out, at once, also when it need not wait. A later
  // deadline lets them go on, unless a write was cut off in the midst. time_point::max(): never.
  void set_deadline(std::chrono::steady_clock::time_point when) noexcept;

  // --- where and who ---------------------------------------------------------------------------------------
  [[nodiscard]] address peer_address() const noexcept;
  [[nodiscard]] address local_address() const noexcept;
  [[nodiscard]] server& owner() const noexcept;  // not after helper_options::patience is over
  [[nodiscard]] unsigned core_index() const noexcept;
  [[nodiscard]] std::size_t listener() const noexcept;
  [[nodiscard]] bool server_stopping() const noexcept;

  // The descriptor, for libraries that want a plain blocking socket: calls on it wait, without the timeouts
  // above. It belongs to the engine and must not be closed; a halt and the lifetime timeout shut it down, so
  // that calls on it end.
  [[nodiscard]] int fd() const noexcept;
  std::error_code set_option(int level, int name, const void* value, std::size_t bytes) noexcept;

 private:
  engine::blocking_session* session_;
};

// When a blocking handler starts.
enum class handler_start : bool {
  client_speaks,  // when the client has sent something: no helper waits for a silent one
  accepted,       // at once: the server speaks first
};

template <class F>
concept blocking_function = std::is_invocable_r_v < void,
        const std::decay_t<F>
&, blocking_connection& > ;

namespace detail {

class blocking_handler {
 public:
  blocking_handler() noexcept = default;
  template <class F>
  explicit blocking_handler(std::in_place_t, F&& f)
      : object_(std::make_shared<std::decay_t<F>>(std::forward<F>(f))),
        call_([](const void* object, blocking_connection& c) {
          (*static_cast<const std::decay_t<F>*>(object))(c);
        }) {}
  explicit operator bool() const noexcept { return call_ != nullptr; }
  void operator()(blocking_connection& conn) const { call_(object_.get(), conn); }

 private:
  std::shared_ptr<const void> object_;
  void (*call_)(const void*, blocking_connection&) = nullptr;
};

}  // namespace detail

// For server::listen: `server.listen(addr, percore::blocking([](percore::blocking_connection& conn) { ...
// }))`.
struct blocking_listener {
  detail::blocking_handler handler;
  handler_start start;
};

// One function object serves all connections, many at a time on many threads: its call must be const. The
// connection is closed when it returns, after what was written has been sent; when it throws, with a count in
// stats().handler_errors.
template <blocking_function F>
blocking_listener blocking(F&& f, handler_start start = handler_start::client_speaks) {
  return {detail::blocking_handler(std::in_place, std::forward<F>(f)), start};
}

}  // namespace percore
