// Setting socket_options, and answering for those that the kernel does not take.
#pragma once

#include <percore/address.hpp>
#include <percore/socket_options.hpp>

#include <functional>
#include <optional>
#include <string>
#include <string_view>

namespace percore::sys {

// One line, without a newline, for a person to read.
using warning_callback = std::function<void(const std::string&)>;

// Collects what the kernel did not take for one address: each option is reported once, however many sockets
// the address has. Used by one thread.
class option_report {
 public:
  option_report(const address& where, socket_option_set required, warning_callback warn);

  // The option is off or smaller than asked for. Warns once, or throws listen_error if the option is
  // required. `error` is a positive errno value, or 0 if the kernel reported none.
  void degraded(socket_option option, int error, std::string_view reason);

 private:
  address where_;
  socket_option_set required_;
  socket_option_set reported_;
  warning_callback warn_;
};

// A number in a file of /proc; nothing if it cannot be read, as in some containers.
std::optional<long> read_number(const char* path);

// Throws std::invalid_argument naming the first field that is out of its range.
void validate(const socket_options& options);

// Sets on a TCP or unix socket, bound or not, but not yet listening, all that is to be inherited or belongs
// to a listener, apart from v6_only, reuse_port, steering, backlog and unix_permissions, which are steps of
// listen_group. On a listening socket too, where a new receive buffer size reaches only later connections.
void apply_to_listener(int fd, address_family family, const socket_options& options, option_report& report);

// Whether connections of this family need apply_to_connection after accept4. Never for TCP.
bool needs_per_connection_setup(address_family family, const socket_options& options) noexcept;

// Sets what is not inherited. 0 or a negative errno value.
int apply_to_connection(int fd, address_family family, const socket_options& options) noexcept;

// Sets on a socket that is about to connect what concerns it. What the kernel does not take is left out.
void apply_to_outgoing(int fd, address_family family, const socket_options& options, bool fast_open) noexcept;
// Before a bind to port 0: the port is chosen by connect, among all that are free towards that peer
// (IP_BIND_ADDRESS_NO_PORT, ip(7), Linux 4.2).
void choose_port_late(int fd) noexcept;

}  // namespace percore::sys
