// dial: outgoing connections, on the core that asks for them.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include <percore/address.hpp>
#include <percore/connection.hpp>
#include <percore/proxy_protocol.hpp>
#include <percore/socket_options.hpp>
#include <percore/task.hpp>
#include <percore/tls.hpp>
#include <percore/when.hpp>

namespace percore {

namespace engine {
struct slot;
}

struct dial_options {
  dial_options() {}  // no aggregate: g++ 12 destroys temporary ones twice in a co_await expression

  // For all of it: the name, every address that is tried, the TLS handshake. At least 1 ms; 0: none but the kernel's.
  std::chrono::milliseconds timeout{10'000};
  // Of a name with several addresses: how long one may take before the next is tried beside it (RFC 8305 8 recommends 250
  // ms, and 100 ms to 2 s as limits).
  std::chrono::milliseconds attempt_delay{250};

  // Asked for each address before it is tried, those of a name too, which anybody's name server may have chosen: false leaves
  // it out, and when none is left the dial fails with errc::not_permitted. On the core's thread; must not throw. Empty: all.
  std::function<bool(const address&)> permit;

  // Where the connection comes from: an IP address (port 0: the kernel chooses). Of a name only addresses of its family
  // are tried. Unspecified: the kernel chooses.
  address source;
  // TCP_FASTOPEN_CONNECT (tcp(7), Linux 4.11): with a cookie of this server's from an earlier connection the SYN waits for
  // the first write and carries it. The dial then succeeds before the server was asked; that it refuses is told by the
  // first operations. For requests that may arrive twice. Where the kernel has it off (net.ipv4.tcp_fastopen, bit 1), it
  // changes nothing.
  bool fast_open = false;
  // no_delay, keepalive, user_timeout, linger, the buffer sizes and busy_poll; the rest is for listeners. What the kernel
  // does not take is ignored.
  socket_options socket;

  // A client's context: the handshake is part of dialling. The certificate must bear `server_name`, which SNI asks for
  // (empty: the host that is dialled; an IP address is checked as such and not sent). Throws std::invalid_argument for a
  // server's context.
  std::optional<tls_context> tls;
  std::string server_name;

  // Sent before everything else: on whose behalf this connection is made. `source` and `destination` may be those of the
  // connection that is being served (peer_address(), local_address()).
  std::optional<proxy_header> proxy;

  // As in listen_options, for the connection once it is made.
  std::chrono::milliseconds read_timeout{0};
  std::chrono::milliseconds write_timeout{0};
  std::chrono::milliseconds idle_timeout{0};
  std::chrono::milliseconds lifetime_timeout{0};
  std::chrono::milliseconds close_timeout{30'000};
  std::size_t unsent_tail_bytes = 64 * 1024;
  std::size_t zero_copy_from_bytes = 0;  // what is out of its range counts as the nearest that is in it
};

// Owns a connection that was dialled, or says why there is none. The connection lies in a slot of the core that dialled
// it and is closed, as that of a handler which returns, when this goes. Used and destroyed on that core's thread.
//
// Its operations may be awaited by the handler that has dialled it, by another one of the same core, or by a coroutine of no
// connection's, but by one of them at a time; who does must not be gone before the operation is done. A shutdown does not
// end what waits on it. A handler of a listener that spills, or of a server with a takeover, which has neither dialled, copied,
// relayed nor used when_all or when_any itself calls `co_await stay_on_core()` before it touches one that it was given: else
// its step may run on another thread, which ends the program with a message. At the end of the grace, or a halt, it is reset. Those that nobody waits on do not keep a server
// from ending: it takes them away, and this is empty then.
class outgoing {
 public:
  outgoing() noexcept = default;
  outgoing(outgoing&& other) noexcept { take(other); }
  outgoing& operator=(outgoing&& other) noexcept {
    if (this != &other) {
      close();
      take(other);
    }
    return *this;
  }
  ~outgoing() { close(); }

  explicit operator bool() const noexcept { return connection_ != nullptr; }
  connection& operator*() const noexcept {
    check_thread();
    return *connection_;
  }
  connection* operator->() const noexcept {
    check_thread();
    return connection_;
  }

  // Why it was not made: errc::timed_out; errc::limit_exceeded when server_options::max_connections_per_core or
  // max_connections is reached; errc::no_address for a name that has none; errc::not_permitted; errc::tls_failed; errc::shutting_down; or what
  // the kernel said of the last address that was tried (ECONNREFUSED, EHOSTUNREACH, EMFILE, ...).
  [[nodiscard]] std::error_code error() const noexcept { return error_; }
  // After errc::tls_failed: OpenSSL's reason. After errc::no_address: the resolver's. Valid as long as the program.
  [[nodiscard]] std::string_view reason() const noexcept { return reason_; }

  // What is unsent is still sent (dial_options::close_timeout), in the background.
  void close() noexcept;

 private:
  friend struct engine::slot;
  friend struct dialling;
  void take(outgoing& other) noexcept;
  static void check_thread() noexcept;

  connection* connection_ = nullptr;
  std::error_code error_;
  std::string_view reason_;
};

// Brings the handler that runs back to its core if its step runs elsewhere (listen_options::spill, server_options::takeover), and
// keeps it there from now on.
inline detail::to_the_core stay_on_core() noexcept { return {}; }

// Connects, on the core whose thread this runs on: from a handler, from what it awaits, or from a coroutine of no
// connection's (spawn). The connection counts against the limits of open connections.
// Throws std::logic_error on any other thread. From the first dial on, a handler stays on its core, whatever
// listen_options::spill says (so it does from its first copy_to, relay, when_all or when_any on).
task<outgoing> dial(address where, dial_options options = {});
// The same for a name, or an IP address as text: resolved by a helper thread (getaddrinfo(3)), then its addresses are
// tried in the order of RFC 8305 ("Happy Eyeballs"): families in turn, each attempt a little after the one before, or at
// once when that has failed; the first that succeeds is taken and the others are given up.
task<outgoing> dial(std::string host, std::uint16_t port, dial_options options = {});

}  // namespace percore
