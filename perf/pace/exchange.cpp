#include "perf/pace/exchange.hpp"

#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstdlib>

namespace pace {
namespace {

constexpr std::size_t longest_head = 8192;
thread_local std::array<char, 65536> buffer;

}  // namespace

SSL_CTX* make_client_context(bool resume) {
  SSL_CTX* context = SSL_CTX_new(TLS_client_method());
  if (context == nullptr) {
    std::fputs("pace: OpenSSL: SSL_CTX_new failed\n", stderr);
    std::exit(1);
  }
  SSL_CTX_set_verify(context, SSL_VERIFY_NONE, nullptr);
  SSL_CTX_set_session_cache_mode(
      context, resume ? SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL : SSL_SESS_CACHE_OFF);
  // The ticket comes after the handshake in TLS 1.3. Each exchange keeps its latest session.
  SSL_CTX_sess_set_new_cb(context, [](SSL* ssl, SSL_SESSION* session) {
    auto** kept = static_cast<SSL_SESSION**>(SSL_get_app_data(ssl));
    if (kept == nullptr) return 0;
    if (*kept != nullptr) SSL_SESSION_free(*kept);
    *kept = session;
    return 1;
  });
  return context;
}

exchange::~exchange() {
  close();
  if (session_ != nullptr) SSL_SESSION_free(session_);
}

bool exchange::open(int epoll_fd) {
  fd_ = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd_ < 0) return false;
  const int on = 1;
  setsockopt(fd_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  const auto* address = reinterpret_cast<const sockaddr*>(&address_);
  epoll_event event{};
  event.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET;
  event.data.ptr = this;
  if ((connect(fd_, address, sizeof address_) != 0 && errno != EINPROGRESS) ||
      epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd_, &event) != 0) {
    close();
    return false;
  }
  secured_ = tls_ == nullptr;
  if (tls_ != nullptr) {
    ssl_ = SSL_new(tls_);
    SSL_set_fd(ssl_, fd_);
    SSL_set_app_data(ssl_, &session_);
    SSL_set_connect_state(ssl_);
    if (resume_ && session_ != nullptr) SSL_set_session(ssl_, session_);
  }
  return true;
}

void exchange::close() {
  if (ssl_ != nullptr) {
    SSL_set_quiet_shutdown(ssl_, 1);  // an unclean end would make OpenSSL forget the session
    SSL_shutdown(ssl_);
    SSL_free(ssl_);
    ssl_ = nullptr;
  }
  if (fd_ >= 0) ::close(fd_);
  fd_ = -1;
  busy_ = false;
}

void exchange::begin(std::uint64_t intended) noexcept {
  busy_ = true;
  intended_ = intended;
  sent_ = 0;
  head_.clear();
  in_body_ = false;
}

outcome exchange::on_tls_result(int result) const {
  const int error = SSL_get_error(ssl_, result);
  return error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE ? outcome::waiting : outcome::failed;
}

outcome exchange::connect_tls() {
  const int result = SSL_do_handshake(ssl_);
  if (result != 1) return on_tls_result(result);
  secured_ = true;
  return outcome::done;
}

outcome exchange::send_request() {
  while (sent_ < request_.size()) {
    const std::string_view rest = request_.substr(sent_);
    if (ssl_ != nullptr) {
      const int sent = SSL_write(ssl_, rest.data(), static_cast<int>(rest.size()));
      if (sent <= 0) return on_tls_result(sent);
      sent_ += static_cast<std::size_t>(sent);
    } else {
      const ssize_t sent = send(fd_, rest.data(), rest.size(), MSG_NOSIGNAL);
      if (sent < 0) return errno == EAGAIN || errno == ENOTCONN ? outcome::waiting : outcome::failed;
      sent_ += static_cast<std::size_t>(sent);
    }
  }
  return outcome::done;
}

bool exchange::parse(std::string_view data) {
  if (!in_body_) {
    head_.append(data);
    const std::size_t end = head_.find("\r\n\r\n");
    if (end == std::string::npos) return head_.size() < longest_head;
    constexpr std::string_view field = "\r\nContent-Length: ";
    const std::size_t at = head_.find(field);
    if (!head_.starts_with("HTTP/1.1 200 ") || at == std::string::npos || at > end) return false;
    const char* digits = head_.data() + at + field.size();
    if (std::from_chars(digits, head_.data() + end, body_left_).ec != std::errc{}) return false;
    in_body_ = true;
    data = std::string_view(head_).substr(end + 4);
  }
  if (data.size() > body_left_) return false;  // nobody asked for more
  body_left_ -= data.size();
  return true;
}

outcome exchange::read_response() {
  while (true) {
    ssize_t bytes = 0;
    if (ssl_ != nullptr) {
      const int read = SSL_read(ssl_, buffer.data(), static_cast<int>(buffer.size()));
      if (read <= 0) return on_tls_result(read);
      bytes = read;
    } else {
      bytes = recv(fd_, buffer.data(), buffer.size(), 0);
      if (bytes < 0 && errno == EAGAIN) return outcome::waiting;
      if (bytes <= 0) return outcome::failed;
    }
    if (!busy_ || !parse({buffer.data(), static_cast<std::size_t>(bytes)})) return outcome::failed;
    if (in_body_ && body_left_ == 0) {
      busy_ = false;
      return outcome::done;
    }
  }
}

outcome exchange::advance() {
  if (!secured_) {
    const outcome connected = connect_tls();
    if (connected != outcome::done) return connected;
  }
  if (busy_ && sent_ < request_.size()) {
    const outcome written = send_request();
    if (written != outcome::done) return written;
  }
  return read_response();
}

}  // namespace pace
