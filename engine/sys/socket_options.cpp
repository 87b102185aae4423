#include "engine/sys/socket_options.hpp"

#include <array>
#include <climits>
#include <cstring>
#include <fstream>
#include <stdexcept>
#include <utility>

#include "engine/sys/calls.hpp"

namespace percore {
namespace {

constexpr std::array<const char*, 14> option_names = {
    "v6_only",           "reuse_port", "steering",  "backlog",         "fast_open_queue",
    "defer_accept",      "no_delay",   "keepalive", "user_timeout",    "receive_buffer_bytes",
    "send_buffer_bytes", "linger",     "busy_poll", "unix_permissions"};

std::string describe(const address& where, const char* step, std::string_view remedy) {
  std::string text = "percore: cannot listen on " + where.to_string() + ": " + step + " failed";
  if (!remedy.empty()) text.append(" (").append(remedy).append(")");
  return text;
}

}  // namespace

std::string_view to_string(socket_option option) noexcept {
  const auto index = static_cast<std::size_t>(option);
  return index < option_names.size() ? option_names[index] : "unknown";
}

std::string_view to_string(steering mode) noexcept {
  switch (mode) {
    case steering::automatic:
      return "automatic";
    case steering::hash:
      return "hash";
    case steering::incoming_cpu:
      return "incoming_cpu";
    case steering::cbpf:
      return "cbpf";
  }
  return "unknown";
}

listen_error::listen_error(const address& where, const char* step, std::error_code reason,
                           std::string_view remedy)
    : std::system_error(reason, describe(where, step, remedy)), where_(where), step_(step) {}

}  // namespace percore

namespace percore::sys {
namespace {

void check_range(const char* field, long long value, long long lowest, long long highest, const char* unit) {
  if (value >= lowest && value <= highest) return;
  throw std::invalid_argument("percore: socket_options::" + std::string(field) + " is " +
                              std::to_string(value) + ", not " + std::to_string(lowest) + " to " +
                              std::to_string(highest) + unit);
}

bool is_tcp(address_family family) noexcept {
  return family == address_family::ipv4 || family == address_family::ipv6;
}

template <class T>
int set(int fd, int level, int name, const T& value) noexcept {
  return sys::setsockopt(fd, level, name, &value, sizeof value);
}

std::string refused(int error) {
  return std::string("the kernel refuses it: ") + std::strerror(error);
}

void set_number(int fd, int level, int name, int value, socket_option option, option_report& report) {
  if (const int result = set(fd, level, name, value); result < 0)
    report.degraded(option, -result, refused(-result));
}

void set_buffer(int fd, int name, int bytes, socket_option option, const char* limit, option_report& report) {
  if (bytes == 0) return;
  set_number(fd, SOL_SOCKET, name, bytes, option, report);
  // The kernel cuts down in silence and reports twice what it took (socket(7)).
  int doubled = 0;
  socklen_t length = sizeof doubled;
  if (sys::getsockopt(fd, SOL_SOCKET, name, &doubled, &length) < 0) return;
  if (doubled / 2 < bytes) {
    report.degraded(option, 0,
                    "the kernel gives " + std::to_string(doubled / 2) + " of " + std::to_string(bytes) +
                        " bytes; raise " + limit);
  }
}

void set_fast_open(int fd, int queue, option_report& report) {
  if (queue == 0) return;
  set_number(fd, IPPROTO_TCP, TCP_FASTOPEN, queue, socket_option::fast_open_queue, report);
  std::string reasons;
  // The kernel takes the option also when the feature is off for servers, and then ignores it.
  const std::optional<long> mode = read_number("/proc/sys/net/ipv4/tcp_fastopen");
  if (mode.has_value() && (*mode & 2) == 0) {
    reasons = "net.ipv4.tcp_fastopen is " + std::to_string(*mode) + ": its bit 2, for servers, is off";
  }
  // It cuts down to net.core.somaxconn in silence (fastopen_queue_tune() in include/linux/tcp.h).
  int given = 0;
  socklen_t length = sizeof given;
  if (sys::getsockopt(fd, IPPROTO_TCP, TCP_FASTOPEN, &given, &length) == 0 && given < queue) {
    if (!reasons.empty()) reasons += "; ";
    reasons += "the kernel gives " + std::to_string(given) + " of " + std::to_string(queue) +
               ": raise net.core.somaxconn";
  }
  if (!reasons.empty()) report.degraded(socket_option::fast_open_queue, 0, reasons);
}

void set_keepalive(int fd, const keepalive_options& keepalive, option_report& report) {
  if (!keepalive.on) return;
  const auto option = socket_option::keepalive;
  const auto seconds = [](std::chrono::seconds s) { return static_cast<int>(s.count()); };
  set_number(fd, SOL_SOCKET, SO_KEEPALIVE, 1, option, report);
  if (keepalive.idle.count() != 0) {
    set_number(fd, IPPROTO_TCP, TCP_KEEPIDLE, seconds(keepalive.idle), option, report);
  }
  if (keepalive.interval.count() != 0) {
    set_number(fd, IPPROTO_TCP, TCP_KEEPINTVL, seconds(keepalive.interval), option, report);
  }
  if (keepalive.count != 0) set_number(fd, IPPROTO_TCP, TCP_KEEPCNT, keepalive.count, option, report);
}

void apply_to_tcp_listener(int fd, const socket_options& options, option_report& report) {
  if (options.defer_accept.count() != 0) {
    set_number(fd, IPPROTO_TCP, TCP_DEFER_ACCEPT, static_cast<int>(options.defer_accept.count()),
               socket_option::defer_accept, report);
  }
  set_fast_open(fd, options.fast_open_queue, report);
  set_number(fd, IPPROTO_TCP, TCP_NODELAY, options.no_delay ? 1 : 0, socket_option::no_delay, report);
  set_keepalive(fd, options.keepalive, report);
  if (options.user_timeout.count() != 0) {
    set_number(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, static_cast<int>(options.user_timeout.count()),
               socket_option::user_timeout, report);
  }
  set_buffer(fd, SO_RCVBUF, options.receive_buffer_bytes, socket_option::receive_buffer_bytes,
             "net.core.rmem_max", report);
  set_buffer(fd, SO_SNDBUF, options.send_buffer_bytes, socket_option::send_buffer_bytes, "net.core.wmem_max",
             report);
  if (options.linger.has_value()) {
    const ::linger value{1, static_cast<int>(options.linger->count())};
    if (const int result = set(fd, SOL_SOCKET, SO_LINGER, value); result < 0) {
      report.degraded(socket_option::linger, -result, refused(-result));
    }
  }
  if (options.busy_poll.count() != 0) {
    set_number(fd, SOL_SOCKET, SO_BUSY_POLL, static_cast<int>(options.busy_poll.count()),
               socket_option::busy_poll, report);
  }
}

void apply_to_unix_listener(int fd, const socket_options& options, option_report& report) {
  const auto refuse = [&report](bool asked, socket_option option) {
    if (asked) report.degraded(option, EOPNOTSUPP, "unix sockets have no such option");
  };
  refuse(options.fast_open_queue != 0, socket_option::fast_open_queue);
  refuse(options.defer_accept.count() != 0, socket_option::defer_accept);
  refuse(options.keepalive.on, socket_option::keepalive);
  refuse(options.user_timeout.count() != 0, socket_option::user_timeout);
  refuse(options.receive_buffer_bytes != 0, socket_option::receive_buffer_bytes);
  refuse(options.linger.has_value(), socket_option::linger);
  refuse(options.busy_poll.count() != 0, socket_option::busy_poll);
  // Not inherited: set here only in order to learn, before the first connection, what the kernel says to it.
  set_buffer(fd, SO_SNDBUF, options.send_buffer_bytes, socket_option::send_buffer_bytes, "net.core.wmem_max",
             report);
}

}  // namespace

std::optional<long> read_number(const char* path) {
  std::ifstream file(path);
  long value = 0;
  if (file >> value) return value;
  return {};
}

option_report::option_report(const address& where, socket_option_set required, warning_callback warn)
    : where_(where), required_(required), warn_(std::move(warn)) {}

void option_report::degraded(socket_option option, int error, std::string_view reason) {
  const std::string_view name = to_string(option);
  if (required_.contains(option)) {
    const std::error_code code(error == 0 ? EOPNOTSUPP : error, std::system_category());
    throw listen_error(where_, name.data(), code, "a required option: " + std::string(reason));
  }
  if (reported_.contains(option)) return;
  reported_.insert(option);
  if (!warn_) return;
  std::string text = where_.to_string() + ": option ";
  text.append(name).append(" is not in full effect: ").append(reason);
  warn_(text);
}

void validate(const socket_options& options) {
  check_range("backlog", options.backlog, 0, INT_MAX, "");
  check_range("fast_open_queue", options.fast_open_queue, 0, INT_MAX, "");
  check_range("defer_accept", options.defer_accept.count(), 0, INT_MAX, " s");
  // Limits of the kernel: MAX_TCP_KEEPIDLE, MAX_TCP_KEEPINTVL and MAX_TCP_KEEPCNT in include/net/tcp.h.
  check_range("keepalive.idle", options.keepalive.idle.count(), 0, 32767, " s");
  check_range("keepalive.interval", options.keepalive.interval.count(), 0, 32767, " s");
  check_range("keepalive.count", options.keepalive.count, 0, 127, "");
  check_range("user_timeout", options.user_timeout.count(), 0, INT_MAX, " ms");
  // The kernel doubles the value in an int.
  check_range("receive_buffer_bytes", options.receive_buffer_bytes, 0, INT_MAX / 2, " bytes");
  check_range("send_buffer_bytes", options.send_buffer_bytes, 0, INT_MAX / 2, " bytes");
  if (options.linger.has_value()) check_range("linger", options.linger->count(), 0, INT_MAX, " s");
  check_range("busy_poll", options.busy_poll.count(), 0, INT_MAX, " us");
  if (options.unix_permissions.value_or(0) > 0777U) {
    throw std::invalid_argument("percore: socket_options::unix_permissions has bits outside 0777");
  }
  if (options.share_port && !options.reuse_port) {
    throw std::invalid_argument("percore: socket_options::share_port needs reuse_port");
  }
}

void apply_to_listener(int fd, address_family family, const socket_options& options, option_report& report) {
  if (is_tcp(family)) {
    apply_to_tcp_listener(fd, options, report);
  } else {
    apply_to_unix_listener(fd, options, report);
  }
}

bool needs_per_connection_setup(address_family family, const socket_options& options) noexcept {
  return !is_tcp(family) && options.send_buffer_bytes != 0;
}

int apply_to_connection(int fd, address_family family, const socket_options& options) noexcept {
  if (!needs_per_connection_setup(family, options)) return 0;
  return set(fd, SOL_SOCKET, SO_SNDBUF, options.send_buffer_bytes);
}

void apply_to_outgoing(int fd, address_family family, const socket_options& options, bool fast_open) noexcept {
  const auto set_int = [fd](int level, int name, long long value) {
    if (value != 0) (void)set(fd, level, name, static_cast<int>(value));
  };
  set_int(SOL_SOCKET, SO_RCVBUF, options.receive_buffer_bytes);
  set_int(SOL_SOCKET, SO_SNDBUF, options.send_buffer_bytes);
  if (!is_tcp(family)) return;
  set_int(IPPROTO_TCP, TCP_NODELAY, options.no_delay ? 1 : 0);
  set_int(IPPROTO_TCP, TCP_FASTOPEN_CONNECT, fast_open ? 1 : 0);
  set_int(IPPROTO_TCP, TCP_USER_TIMEOUT, options.user_timeout.count());
  set_int(SOL_SOCKET, SO_BUSY_POLL, options.busy_poll.count());
  if (options.keepalive.on) {
    set_int(SOL_SOCKET, SO_KEEPALIVE, 1);
    set_int(IPPROTO_TCP, TCP_KEEPIDLE, options.keepalive.idle.count());
    set_int(IPPROTO_TCP, TCP_KEEPINTVL, options.keepalive.interval.count());
    set_int(IPPROTO_TCP, TCP_KEEPCNT, options.keepalive.count);
  }
  if (options.linger.has_value()) {
    const ::linger value{1, static_cast<int>(options.linger->count())};
    (void)set(fd, SOL_SOCKET, SO_LINGER, value);
  }
}

void choose_port_late(int fd) noexcept {
  constexpr int ip_bind_address_no_port = 24;  // linux/in.h
  (void)set(fd, IPPROTO_IP, ip_bind_address_no_port, 1);
}

}  // namespace percore::sys
