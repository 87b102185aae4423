#include "engine/sys/listen_group.hpp"

#include <algorithm>
#include <climits>
#include <stdexcept>
#include <string>
#include <utility>

#include "engine/sys/calls.hpp"

namespace percore::sys {
namespace {

constexpr unsigned port_attempts = 8;

// What a person can do about it.
std::string remedy_for(const address& where, int error) {
  switch (error) {
    case EADDRINUSE:
      return where.is_unix()
                 ? "another process listens on it, or a file of that name is in the way"
                 : "another socket uses it, see `ss -ltnp`; to join a SO_REUSEPORT group of the same user "
                   "on purpose, set socket_options::share_port";
    case EACCES:
      if (where.is_unix()) return "no permission to create the socket file there";
      return "ports below net.ipv4.ip_unprivileged_port_start, 1024 by default, need CAP_NET_BIND_SERVICE";
    case EADDRNOTAVAIL:
      return "no network interface of this machine has that address";
    case EAFNOSUPPORT:
      return "this kernel or network namespace lacks the address family";
    case EINVAL:
      return where.family() == address_family::ipv6
                 ? "a link-local address needs its zone, as in [fe80::1%eth0]:80"
                 : "";
    case EMFILE:
    case ENFILE:
      return "raise the limit of open files, see `ulimit -n`";
    case ENOENT:
    case ENOTDIR:
      return "the directory of the socket file does not exist";
    default:
      return {};
  }
}

int read_name(int fd, address& name) noexcept {
  sockaddr_storage where{};
  socklen_t length = sizeof where;
  const int result = sys::getsockname(fd, reinterpret_cast<sockaddr*>(&where), &length);
  if (result == 0) name = address::from_sockaddr(reinterpret_cast<const sockaddr*>(&where), length);
  return result;
}

int get_option(int fd, int name, int& value) noexcept {
  socklen_t length = sizeof value;
  return sys::getsockopt(fd, SOL_SOCKET, name, &value, &length);
}

}  // namespace

listen_group::listen_group(const address& where, const socket_options& options, std::size_t cores,
                           warning_callback warn)
    : requested_(where),
      bound_(where),
      options_(options),
      report_(where, options.required, std::move(warn)),
      cores_(cores) {
  validate(options);
  if (cores == 0) throw std::invalid_argument("percore: a listening address needs at least one core");
}

listen_group::~listen_group() {
  close_all();
}

void listen_group::fail(const char* step, int error, std::string_view remedy) const {
  throw listen_error(requested_, step, std::error_code(error, std::system_category()),
                     remedy.empty() ? remedy_for(requested_, error) : std::string(remedy));
}

// --- binding ---------------------------------------------------------------------------------------------

std::unique_ptr<listen_group> listen_group::bind(const address& where, const socket_options& options,
                                                 std::span<const int> cpus, warning_callback warn) {
  if (where.family() == address_family::unspecified) {
    throw std::invalid_argument("percore: cannot listen on an unspecified address");
  }
  std::unique_ptr<listen_group> group(new listen_group(where, options, cpus.size(), std::move(warn)));
  group->cpus_.assign(cpus.begin(), cpus.end());
  group->bind_all();
  return group;
}

bool listen_group::another_port_may_do(const listen_error& error, unsigned attempt) const noexcept {
  // A new socket would be missing in the tables that the cores have made already.
  if (private_tables_.load(std::memory_order_relaxed)) return false;
  return attempt < port_attempts && !requested_.is_unix() && requested_.port() == 0 &&
         error.code() == std::errc::address_in_use;
}

void listen_group::bind_all() {
  for (unsigned attempt = 1;; ++attempt) {
    try {
      bind_all_once();
      return;
    } catch (const listen_error& error) {
      close_all();
      if (!another_port_may_do(error, attempt)) throw;
    }
  }
}

void listen_group::bind_all_once() {
  bound_ = requested_;
  shared_ = cores_ > 1 && (requested_.is_unix() || !options_.reuse_port);
  bind_one(true);
  if (cores_ > 1 && !shared_ && !allow_sharing(fds_[0])) shared_ = true;
  while (!shared_ && fds_.size() < cores_) bind_one(false);
  holders_.store(cores_, std::memory_order_relaxed);

  if (shared_) {
    const bool asked = options_.steering == steering::incoming_cpu || options_.steering == steering::cbpf;
    steering_ = {steering::hash, "one socket serves all cores", asked};
  } else {
    steering_ = choose_steering(options_.steering, requested_, cpus_, options_.share_port);
  }
  if (steering_.refused) report_.degraded(socket_option::steering, 0, steering_.reason);
}

// Off for the first socket while it is bound: so bind finds a foreign group that it would silently join.
bool listen_group::allow_sharing(int fd) {
  const int on = 1;
  const int result = sys::setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on);
  if (result == 0) return true;
  report_.degraded(socket_option::reuse_port, -result,
                   "the kernel refuses it, so all cores accept from one socket");
  return false;
}

void listen_group::bind_one(bool is_first) {
  const bool is_unix = requested_.is_unix();
  sockaddr_storage where{};
  const socklen_t length = bound_.to_sockaddr(where);
  const int fd = sys::socket(where.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) fail("socket", -fd);
  try {
    fds_.push_back(fd);
  } catch (...) {
    (void)sys::close(fd);
    throw;
  }
  const int on = 1;
  // Lets a restarted server bind while connections of its predecessor are in TIME_WAIT (socket(7)).
  if (!is_unix) {
    const int r = sys::setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (r < 0) fail("SO_REUSEADDR", -r);
  }
  if (requested_.family() == address_family::ipv6) {
    const int only = options_.v6_only ? 1 : 0;
    if (const int r = sys::setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &only, sizeof only); r < 0) {
      report_.degraded(socket_option::v6_only, -r, "the kernel refuses it");
    }
  }
  if (!is_unix && (!is_first || options_.share_port)) {
    const bool allowed = allow_sharing(fd);
    if (!allowed && !is_first) fail("SO_REUSEPORT", EOPNOTSUPP);
  }
  apply_to_listener(fd, requested_.family(), options_, report_);
  if (requested_.is_abstract() && options_.unix_permissions.has_value()) {
    report_.degraded(socket_option::unix_permissions, 0, "an abstract name has none: any local user can connect");
  }
  if (is_unix && !requested_.is_abstract()) {
    bind_socket_file(fd);
  } else if (const int r = sys::bind(fd, reinterpret_cast<const sockaddr*>(&where), length); r < 0) {
    fail("bind", -r);
  }
  if (!is_first) return;
  if (const int r = read_name(fd, bound_); r < 0) fail("getsockname", -r);
}

// --- socket files ----------------------------------------------------------------------------------------

void listen_group::bind_socket_file(int fd) {
  sockaddr_storage where{};
  const socklen_t length = requested_.to_sockaddr(where);
  const auto* const raw = reinterpret_cast<const sockaddr*>(&where);
  int result = sys::bind(fd, raw, length);
  if (result == -EADDRINUSE && options_.unlink_stale) {
    remove_if_stale();
    result = sys::bind(fd, raw, length);
  }
  if (result < 0) fail("bind", -result);
  const std::string path(requested_.path());
  struct stat file {};
  if (const int r = sys::lstat(path.c_str(), &file); r < 0) {
    // Without its identity nobody would remove the file later; that it is ours is certain only now.
    (void)sys::unlink(path.c_str());
    fail("lstat", -r);
  }
  socket_file_ = file_identity{file.st_dev, file.st_ino};
  if (!options_.unix_permissions.has_value()) return;
  // No client can connect before listen(), so the mode is in force in time.
  if (const int r = sys::chmod(path.c_str(), static_cast<mode_t>(*options_.unix_permissions)); r < 0) {
    report_.degraded(socket_option::unix_permissions, -r, "chmod fails");
  }
}

// Only a socket that refuses connections is stale: of a live one connect succeeds, or would wait (EAGAIN).
void listen_group::remove_if_stale() {
  const std::string path(requested_.path());
  struct stat file {};
  if (sys::lstat(path.c_str(), &file) < 0) return;  // gone meanwhile
  if (!S_ISSOCK(file.st_mode)) fail("bind", EADDRINUSE, "a file that is no socket has that name");
  const int probe = sys::socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (probe < 0) fail("socket", -probe);
  sockaddr_storage where{};
  const socklen_t length = requested_.to_sockaddr(where);
  const int answer = sys::connect(probe, reinterpret_cast<const sockaddr*>(&where), length);
  (void)sys::close(probe);
  if (answer != -ECONNREFUSED) fail("bind", EADDRINUSE, "another process listens on it");
  (void)sys::unlink(path.c_str());
}

void listen_group::remove_socket_file() noexcept {
  if (!socket_file_.has_value()) return;
  const std::string_view path = requested_.path();
  char terminated[128] = {};  // sun_path has 108 bytes
  path.copy(terminated, sizeof terminated - 1);
  struct stat file {};
  const bool is_ours = sys::lstat(terminated, &file) == 0 && file.st_dev == socket_file_->device &&
                       file.st_ino == socket_file_->inode;
  if (is_ours) (void)sys::unlink(terminated);
  socket_file_.reset();
}

// --- listening -------------------------------------------------------------------------------------------

void listen_group::listen() {
  if (adopted_) return;
  for (unsigned attempt = 1;; ++attempt) {
    try {
      if (fds_.empty()) bind_all_once();
      listen_all_once();
      return;
    } catch (const listen_error& error) {
      close_all();
      if (!another_port_may_do(error, attempt)) throw;
    }
  }
}

void listen_group::listen_all_once() {
  // The kernel cuts a backlog down to net.core.somaxconn (listen(2)).
  const int backlog = options_.backlog == 0 ? INT_MAX : options_.backlog;
  for (std::size_t i = 0; i < fds_.size(); ++i) {
    require_steering(set_incoming_cpu(steering_.method, fds_[i], cpus_[i]));
    if (const int r = sys::listen(fds_[i], backlog); r < 0) fail("listen", -r);
    if (i == 0) require_steering(attach_cpu_program(steering_.method, fds_[i], cpus_));
    check_backlog(fds_[i]);
  }
}

void listen_group::require_steering(int result) {
  if (result >= 0) return;
  const bool asked = options_.steering != steering::automatic;
  const std::string reason = "the kernel refuses " + std::string(to_string(steering_.method));
  steering_ = {steering::hash, reason, asked};
  if (asked) report_.degraded(socket_option::steering, -result, reason);
}

void listen_group::check_backlog(int fd) {
  if (options_.backlog == 0) return;
  long given = options_.backlog;
  if (bound_.is_unix()) {
    // Nothing tells what such a socket has been given.
    given = read_number("/proc/sys/net/core/somaxconn").value_or(given);
  } else {
    tcp_info info{};
    socklen_t length = sizeof info;
    if (sys::getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length) < 0) return;
    // Of a listening socket tcpi_sacked is the limit of its accept queue (tcp_get_info() in net/ipv4/tcp.c).
    given = info.tcpi_sacked;
  }
  if (given < options_.backlog) {
    report_.degraded(socket_option::backlog, 0,
                     "the kernel gives " + std::to_string(given) + " of " + std::to_string(options_.backlog) +
                         "; raise net.core.somaxconn");
  }
}

// --- adopting --------------------------------------------------------------------------------------------

std::unique_ptr<listen_group> listen_group::adopt(int fd, const socket_options& options, std::size_t cores,
                                                  warning_callback warn) {
  address name;
  if (const int r = read_name(fd, name); r < 0) {
    throw listen_error(address(), "adopt", std::error_code(-r, std::system_category()),
                       "descriptor " + std::to_string(fd) + " is not an open socket");
  }
  std::unique_ptr<listen_group> group(new listen_group(name, options, cores, std::move(warn)));
  if (name.family() == address_family::unspecified) {
    group->fail("adopt", EAFNOSUPPORT, "the descriptor is neither a TCP nor a unix socket");
  }
  int type = 0;
  int listens = 0;
  if (const int r = get_option(fd, SO_TYPE, type); r < 0) group->fail("adopt", -r);
  if (const int r = get_option(fd, SO_ACCEPTCONN, listens); r < 0) group->fail("adopt", -r);
  if (type != SOCK_STREAM) group->fail("adopt", EPROTOTYPE, "the descriptor is not a stream socket");
  if (listens == 0) group->fail("adopt", EINVAL, "the socket does not listen");
  const int status = sys::fcntl(fd, F_GETFL, 0);
  if (status < 0) group->fail("fcntl", -status);
  if (const int r = sys::fcntl(fd, F_SETFL, status | O_NONBLOCK); r < 0) group->fail("fcntl", -r);
  if (const int r = sys::fcntl(fd, F_SETFD, FD_CLOEXEC); r < 0) group->fail("fcntl", -r);
  apply_to_listener(fd, name.family(), options, group->report_);
  if (options.backlog != 0) {
    if (const int r = sys::listen(fd, options.backlog); r < 0) group->fail("listen", -r);
    group->check_backlog(fd);
  }
  group->steering_ = {steering::hash, "an adopted socket serves all cores", false};
  group->adopted_ = true;
  group->shared_ = cores > 1;
  group->holders_.store(cores, std::memory_order_relaxed);
  group->fds_.push_back(fd);  // last: from here on the group owns it
  return group;
}

// --- ending ----------------------------------------------------------------------------------------------

void listen_group::close_others_here(std::size_t core) noexcept {
  private_tables_.store(true, std::memory_order_relaxed);
  if (shared_) return;
  for (std::size_t i = 0; i < fds_.size(); ++i) {
    if (i != core) (void)sys::close(fds_[i]);
  }
}

void listen_group::close_here() noexcept {
  for (const int fd : fds_) (void)sys::close(fd);
  closed_here_ = true;
}

void listen_group::release(std::size_t core) noexcept {
  const std::size_t index = shared_ ? 0 : core;
  const int fd = fds_[index];  // read before the count falls: the last core writes it
  const bool is_last = holders_.fetch_sub(1, std::memory_order_acq_rel) == 1;
  // First the name, so that no client finds a file behind which nobody listens.
  if (is_last) remove_socket_file();
  const bool has_own_copy = !shared_ || private_tables_.load(std::memory_order_relaxed);
  if (fd >= 0 && (has_own_copy || is_last)) (void)sys::close(fd);
  if (!shared_ || is_last) fds_[index] = -1;
}

void listen_group::close_all() noexcept {
  remove_socket_file();
  for (const int fd : fds_) {
    // After close_here() the number may be another's in this table.
    if (fd >= 0 && !closed_here_) (void)sys::close(fd);
  }
  fds_.clear();
  holders_.store(0, std::memory_order_relaxed);
}

}  // namespace percore::sys
