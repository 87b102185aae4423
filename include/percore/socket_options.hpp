// Options of listening sockets and of the connections that they accept.
#pragma once

#include <chrono>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string_view>
#include <system_error>
#include <type_traits>

#include <percore/address.hpp>

namespace percore {

// The options by name: for socket_options::required, warnings and errors.
enum class socket_option : std::uint8_t {
  v6_only,
  reuse_port,
  steering,
  backlog,
  fast_open_queue,
  defer_accept,
  no_delay,
  keepalive,
  user_timeout,
  receive_buffer_bytes,
  send_buffer_bytes,
  linger,
  busy_poll,
  unix_permissions,
};

std::string_view to_string(socket_option option) noexcept;

// A set of options, as in `options.required = {socket_option::fast_open_queue, socket_option::steering}`.
class socket_option_set {
 public:
  constexpr socket_option_set() noexcept = default;
  constexpr socket_option_set(std::initializer_list<socket_option> options) noexcept {
    for (const socket_option option : options) insert(option);
  }

  constexpr void insert(socket_option option) noexcept { bits_ |= 1U << static_cast<unsigned>(option); }
  constexpr bool contains(socket_option option) const noexcept {
    return (bits_ >> static_cast<unsigned>(option) & 1U) != 0;
  }

 private:
  std::uint32_t bits_ = 0;
};

// How the kernel picks the core for a new connection among the sockets of a SO_REUSEPORT group.
enum class steering : std::uint8_t {
  // incoming_cpu or cbpf, if the address is not a loopback one, every core is pinned to a CPU of its own, the
  // network interfaces deliver to the CPUs of all cores, and a check on a loopback pair proves that the kernel
  // obeys; else hash.
  automatic,
  // By a hash of addresses and ports: even in the mean, whatever the network does.
  hash,
  // The core on whose CPU the kernel handles the SYN, by SO_INCOMING_CPU. Linux 6.2 and later do it right
  // within a
  // group; earlier ones ignore it (commit b261eda84ec1). Connections that arrive on a CPU without a core are
  // hashed.
  incoming_cpu,
  // The same by a classic BPF program, SO_ATTACH_REUSEPORT_CBPF, Linux 4.5.
  cbpf,
};

std::string_view to_string(steering mode) noexcept;

// Probes of an idle connection, tcp(7). A zero keeps the kernel's setting: net.ipv4.tcp_keepalive_time (7200
// s), _intvl (75 s) and _probes (9).
struct keepalive_options {
  bool on = false;                   // the kernel's default
  std::chrono::seconds idle{0};      // TCP_KEEPIDLE, 1 to 32767 s: silence before the first probe
  std::chrono::seconds interval{0};  // TCP_KEEPINTVL, 1 to 32767 s: between probes
  int count = 0;                     // TCP_KEEPCNT, 1 to 127: unanswered probes that end the connection
};

// All of it is set on the listening sockets. Linux hands down to an accepted TCP connection all that concerns
// it, so an accept costs no further system call; the one exception, under unix sockets, is marked below.
//
// An option that the kernel lacks, refuses or cuts down gives one warning and the server goes on, unless
// `required` holds it: then starting fails with listen_error. Values outside the stated range throw
// std::invalid_argument.
struct socket_options {
  // IPV6_V6ONLY, ipv6(7). On: an IPv6 address takes IPv6 only, whatever net.ipv6.bindv6only says. Off:
  // [::]:5000 takes IPv4 too, whose peers appear as ::ffff:a.b.c.d (address::unmapped()). No meaning for IPv4
  // and unix.
  bool v6_only = true;

  // SO_REUSEPORT, socket(7), Linux 3.9: a listening socket and accept queue for every core. Off: one socket
  // that all cores accept from. A unix address always has the one socket: the kernel has no such groups for
  // them.
  bool reuse_port = true;

  // Off: listening fails when another socket listens on the address already, even one of the same user with
  // SO_REUSEPORT, which would otherwise silently take its share of the connections. On: join such a group on
  // purpose, for instance to start a new version beside the old. Two processes that start at the same instant
  // can still meet in one group. Needs reuse_port; of the kinds of steering cbpf is not possible.
  bool share_port = false;

  percore::steering steering = percore::steering::automatic;

  // Connections that wait to be accepted, for each listening socket: listen(2), 0 or more. 0: as many as
  // net.core.somaxconn allows (4096 since Linux 5.4), which also caps larger values.
  int backlog = 0;

  // TCP_FASTOPEN, tcp(7) and RFC 7413: requests with data in the SYN that may be pending, for each listening
  // socket. 0: off. The server side must be on in net.ipv4.tcp_fastopen (bit 2); net.core.somaxconn caps it.
  int fast_open_queue = 0;

  // TCP_DEFER_ACCEPT, tcp(7): "the client speaks first". A connection is accepted when its first data is
  // there, so the first read finds it; one that stays silent for this long is accepted all the same. Never
  // for protocols in which the server speaks first. The kernel rounds up to a number of SYN-ACK
  // retransmissions (1, 3, 7, 15, ... s). 0: off.
  std::chrono::seconds defer_accept{0};

  // TCP_NODELAY, tcp(7). Off is Nagle's algorithm (RFC 896), the kernel's default. No meaning for unix.
  bool no_delay = true;

  keepalive_options keepalive;

  // TCP_USER_TIMEOUT, tcp(7) and RFC 5482: unacknowledged data of this age ends the connection with
  // ETIMEDOUT. 0: off (the kernel gives up after net.ipv4.tcp_retries2 retransmissions, about 15 minutes). Up
  // to 2^31-1 ms.
  std::chrono::milliseconds user_timeout{0};

  // SO_RCVBUF and SO_SNDBUF, socket(7), in bytes as setsockopt counts them: the kernel reserves twice the
  // value. 0: the kernel tunes the size itself (net.ipv4.tcp_rmem and tcp_wmem), which a value turns off.
  // Capped by net.core.rmem_max and wmem_max. A unix connection has no receive buffer of its own, and its
  // send buffer is the one option that does need a system call for each connection.
  int receive_buffer_bytes = 0;
  int send_buffer_bytes = 0;

  // SO_LINGER, socket(7). Nothing: close returns at once and the kernel sends what is left. 0 s: close
  // discards it and resets the connection. More: close WAITS, even on a non-blocking socket, for the peer to
  // acknowledge, up to this time, and the core with all of its connections with it. Up to 2^31-1 s. No
  // meaning for unix.
  std::optional<std::chrono::seconds> linger;

  // SO_BUSY_POLL, socket(7), Linux 3.11: how long a blocking operation polls the device queue first. 0: off,
  // that is as net.core.busy_read says. Needs hardware queues and, on many kernels, CAP_NET_ADMIN.
  std::chrono::microseconds busy_poll{0};

  // File mode of the socket file, 0 to 0777, set before the first client can connect. Nothing: 0777 less the
  // umask. An abstract name has no permissions: it gives a warning there.
  std::optional<unsigned> unix_permissions;

  // A socket file that nobody listens on, as a killed server leaves it, is removed before binding. Off: it is
  // an error. Of two processes that find the same stale file at the same instant, the later one wins the
  // name.
  bool unlink_stale = true;

  // Options that must not be lost or cut down.
  socket_option_set required;
};

// Held by coroutines and written in braces by users: a temporary of it must be safe in a co_await expression
// on GCC 12.
static_assert(std::is_trivially_destructible_v<socket_options>);

// Why a server could not listen. code() is the kernel's error; what() names the address, the step or option,
// the reason and, where there is one, the remedy.
class listen_error : public std::system_error {
 public:
  listen_error(const address& where, const char* step, std::error_code reason, std::string_view remedy = {});

  const address& where() const noexcept { return where_; }

  // The system call ("bind") or the option ("fast_open_queue") that failed. Static storage.
  const char* step() const noexcept { return step_; }

 private:
  address where_;
  const char* step_;
};

}  // namespace percore
