// What ended an operation of a connection, as std::error_code.
#pragma once

#include <system_error>

namespace percore {

// Conditions that the engine itself tells apart. What the kernel reports beyond these (ETIMEDOUT from
// TCP_USER_TIMEOUT, EHOSTUNREACH, ...) arrives as it is, in std::system_category().
enum class errc {
  end_of_stream = 1,  // the peer has sent its FIN: no more bytes will come; writing may still work
  connection_reset,   // ECONNRESET or EPIPE: the peer is gone
  timed_out,          // a read, write, idle or lifetime timeout of this connection
  shutting_down,      // the server drains: no further message is waited for
  limit_exceeded,     // read_until found no delimiter within its limit, or try_write found the unsent tail full
  closed,             // this side has called close(), reset(), shutdown_write() or write_last() before
  no_memory,          // the unsent tail or a read buffer could not be allocated
  tls_failed,         // a handshake or a record of TLS was not good; connection::tls_error() says what was wrong
  truncated,          // the peer's FIN came without TLS's close_notify: what was read may not be all that was sent
  plaintext_injected, // start_tls: the peer had sent more in plain already (see buffered_plaintext)
  queue_full,         // offload: the queue to the helper threads has no room (helper_options::at_full)
  no_address,         // dial: the name has none
  not_permitted,      // dial: dial_options::permit has left out every address
  cancelled,          // another task of a when_any was first
  file_ended,         // send_file: the file is shorter than what was asked for
};

const std::error_category& error_category() noexcept;

inline std::error_code make_error_code(errc code) noexcept { return {static_cast<int>(code), error_category()}; }

}  // namespace percore

template <>
struct std::is_error_code_enum<percore::errc> : std::true_type {};
