#include "tests/support/client.hpp"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <stdexcept>
#include <system_error>

#include "tests/support/waiting.hpp"

namespace percore::test {
namespace {

[[noreturn]] void fail(const char* what) {
  if (errno == EAGAIN || errno == EWOULDBLOCK) throw waited_too_long(std::string(what) + " took too long");
  throw std::system_error(errno, std::system_category(), what);
}

int open_socket(const address& where) {
  const int domain = where.is_unix()                              ? AF_UNIX
                     : where.family() == address_family::ipv6 ? AF_INET6
                                                                  : AF_INET;
  const int fd = ::socket(domain, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) fail("socket");
  return fd;
}

int connect_to(int fd, const address& where) {
  sockaddr_storage target{};
  const socklen_t length = where.to_sockaddr(target);
  return ::connect(fd, reinterpret_cast<const sockaddr*>(&target), length);
}

void bind_to(int fd, const address& where) {
  sockaddr_storage source{};
  const socklen_t length = where.to_sockaddr(source);
  if (::bind(fd, reinterpret_cast<const sockaddr*>(&source), length) != 0) fail("bind");
}

}  // namespace

client::client(const address& where, const options& how) : fd_(open_socket(where)) {
  try {
    const timeval limit{patience.count(), 0};
    ::setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    ::setsockopt(fd_, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    const int on = 1;
    if (!where.is_unix()) ::setsockopt(fd_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (how.receive_buffer_bytes > 0) {
      ::setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &how.receive_buffer_bytes, sizeof how.receive_buffer_bytes);
    }
    if (how.from.family() != address_family::unspecified) {
      // Without it the kernel would have to find a port that is free for every destination (ip(7)).
      ::setsockopt(fd_, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
      bind_to(fd_, how.from);
    }
    if (connect_to(fd_, where) != 0) {
      if (errno != ECONNRESET) fail("connect");
      was_reset_ = true;
    }
  } catch (...) {
    close();
    throw;
  }
}

void client::check_reset(const char* what) const {
  if (!was_reset_) return;
  errno = ECONNRESET;
  fail(what);
}

void client::send_all(std::string_view data) {
  check_reset("send");
  while (!data.empty()) {
    const ssize_t sent = ::send(fd_, data.data(), data.size(), MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0) fail("send");
    data.remove_prefix(static_cast<std::size_t>(sent));
  }
}

std::string client::recv_some(std::size_t limit) {
  check_reset("recv");
  std::string data(limit, '\0');
  ssize_t count = 0;
  do count = ::recv(fd_, data.data(), data.size(), 0);
  while (count < 0 && errno == EINTR);
  if (count < 0) fail("recv");
  data.resize(static_cast<std::size_t>(count));
  return data;
}

std::string client::recv_exactly(std::size_t count) {
  std::string all;
  while (all.size() < count) {
    const std::string some = recv_some(count - all.size());
    if (some.empty()) throw std::runtime_error("the stream ended after: " + all.substr(0, 200));
    all += some;
  }
  return all;
}

std::string client::recv_until(std::string_view delimiter) {
  std::string all;
  while (!std::string_view(all).ends_with(delimiter)) all += recv_exactly(1);
  return all;
}

std::string client::recv_to_end() {
  std::string all;
  for (;;) {
    const std::string some = recv_some();
    if (some.empty()) return all;
    all += some;
  }
}

ending client::wait_for_end() {
  try {
    (void)recv_to_end();
    return ending::fin;
  } catch (const std::system_error& failure) {
    if (failure.code().value() == ECONNRESET) return ending::reset;
    throw;
  }
}

void client::half_close() {
  if (::shutdown(fd_, SHUT_WR) != 0) fail("shutdown");
}

void client::reset() noexcept {
  const linger now{1, 0};
  ::setsockopt(fd_, SOL_SOCKET, SO_LINGER, &now, sizeof now);
  close();
}

void client::close() noexcept {
  if (fd_ >= 0) ::close(std::exchange(fd_, -1));
}

address client::local_address() const { return address_of(fd_); }

bool connection_refused(const address& where) {
  const int fd = open_socket(where);
  const bool refused = connect_to(fd, where) != 0 && (errno == ECONNREFUSED || errno == ENOENT);
  ::close(fd);
  return refused;
}

int listening_socket(const address& where, int backlog) {
  const int fd = open_socket(where);
  try {
    bind_to(fd, where);
    if (::listen(fd, backlog) != 0) fail("listen");
  } catch (...) {
    ::close(fd);
    throw;
  }
  return fd;
}

address address_of(int fd) {
  sockaddr_storage local{};
  socklen_t length = sizeof local;
  if (::getsockname(fd, reinterpret_cast<sockaddr*>(&local), &length) != 0) fail("getsockname");
  return address::from_sockaddr(reinterpret_cast<const sockaddr*>(&local), length);
}

}  // namespace percore::test
