// The TLS loops: the plain loop of main.cpp with a session of OpenSSL's between the socket and the response.

#include <netinet/in.h>
#include <openssl/err.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "perf/program.hpp"
#include "perf/servers/floor/tls.hpp"

namespace floor_server {
namespace {

constexpr int max_events = 512;               // as in the plain loop
constexpr int accept_batch = 64;              // likewise
constexpr std::size_t receive_bytes = 32768;  // more than a record of the longest kind, 16384 + 5 + 256 bytes
constexpr std::size_t send_bytes = 65536;
constexpr std::size_t request_bytes = 16384;

using program::die;

void wait_for_room(int fd) {
  pollfd wait{fd, POLLOUT, 0};
  poll(&wait, 1, -1);
}

// OpenSSL's own way: it reads and writes the socket whenever it likes.
class socket_transport {
 public:
  explicit socket_transport(const options&) {}

  static void configure(SSL_CTX*) {}
  static bool attach(SSL* session, int fd) { return SSL_set_fd(session, fd) == 1; }

  // Only a call that finds nothing tells that there is nothing.
  static bool receive(int) { return true; }
  static bool has_more(SSL*) { return true; }
  static bool left_some() { return false; }
  static bool flush(int, bool) { return true; }
};

// One BIO for all sessions of a loop. It hands out what one recv brought, and gathers what one send will
// take.
class shared_transport {
 public:
  explicit shared_transport(const options& opt) : fin_with_data_(opt.fin_with_data) {
    method_ = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "shared");
    if (method_ == nullptr || BIO_meth_set_read_ex(method_, read) != 1 ||
        BIO_meth_set_write_ex(method_, write) != 1 || BIO_meth_set_ctrl(method_, control) != 1)
      die("BIO_meth_new");
    bio_ = BIO_new(method_);
    if (bio_ == nullptr) die("BIO_new");
    BIO_set_data(bio_, this);
    BIO_set_init(bio_, 1);
  }
  shared_transport(const shared_transport&) = delete;

  // Read-ahead: one call of the BIO per read instead of two per record. Released buffers: the next connection
  // gets those that are still in the cache. The chain is what was loaded; OpenSSL would look for issuers, and
  // verify, at every full handshake. One ticket instead of two after a full one.
  static void configure(SSL_CTX* context) {
    SSL_CTX_set_read_ahead(context, 1);
    SSL_CTX_set_mode(context, SSL_MODE_RELEASE_BUFFERS | SSL_MODE_NO_AUTO_CHAIN);
    SSL_CTX_set_num_tickets(context, SSL_CTX_get_num_tickets(context) > 0 ? 1 : 0);
  }

  bool attach(SSL* session, int) {
    BIO_up_ref(bio_);
    SSL_set_bio(session, bio_, bio_);
    return true;
  }

  // False at the end of the stream. What OpenSSL left of the last connection's bytes, after an error, is
  // dropped.
  bool receive(int fd) {
    fd_ = fd;
    const ssize_t n = recv(fd, received_.data(), received_.size(), 0);
    next_ = 0;
    end_ = n > 0 ? static_cast<std::size_t>(n) : 0;
    return n > 0 || (n < 0 && errno == EAGAIN);
  }

  bool has_more(SSL* session) const { return next_ < end_ || SSL_has_pending(session) == 1; }

  // A full buffer may have left bytes in the socket, for which no edge will come.
  bool left_some() const { return end_ == received_.size(); }

  bool flush(int fd, bool last) {
    const int flags = MSG_NOSIGNAL | (last && fin_with_data_ ? MSG_MORE : 0);
    std::size_t sent = 0;
    while (sent < gathered_) {
      const ssize_t n = send(fd, sending_.data() + sent, gathered_ - sent, flags);
      if (n >= 0) {
        sent += static_cast<std::size_t>(n);
      } else if (errno == EAGAIN) {
        wait_for_room(fd);
      } else {
        break;
      }
    }
    const bool whole = sent == gathered_;
    gathered_ = 0;
    return whole;
  }

 private:
  static shared_transport& of(BIO* bio) { return *static_cast<shared_transport*>(BIO_get_data(bio)); }

  static int read(BIO* bio, char* data, std::size_t size, std::size_t* done) {
    shared_transport& self = of(bio);
    BIO_clear_retry_flags(bio);
    *done = std::min(size, self.end_ - self.next_);
    if (*done == 0) {
      BIO_set_retry_read(bio);
      return 0;
    }
    std::memcpy(data, self.received_.data() + self.next_, *done);
    self.next_ += *done;
    return 1;
  }

  // Takes everything. A socket that fails is noticed by the next recv.
  static int write(BIO* bio, const char* data, std::size_t size, std::size_t* done) {
    shared_transport& self = of(bio);
    BIO_clear_retry_flags(bio);
    for (*done = 0; *done < size;) {
      if (self.gathered_ == self.sending_.size()) self.flush(self.fd_, false);
      const std::size_t n = std::min(size - *done, self.sending_.size() - self.gathered_);
      std::memcpy(self.sending_.data() + self.gathered_, data + *done, n);
      self.gathered_ += n;
      *done += n;
    }
    return 1;
  }

  static long control(BIO*, int command, long, void*) { return command == BIO_CTRL_FLUSH ? 1 : 0; }

  BIO_METHOD* method_;
  BIO* bio_;
  int fd_ = -1;  // whose bytes the buffers hold
  bool fin_with_data_;
  std::size_t next_ = 0;
  std::size_t end_ = 0;
  std::size_t gathered_ = 0;
  std::array<char, receive_bytes> received_;
  std::array<char, send_bytes> sending_;
};

template <class Transport>
class tls_loop {
 public:
  tls_loop(int epoll_fd, int listener_fd, const options& opt, const tls_material& material,
           const std::string& response)
      : epoll_fd_(epoll_fd),
        listener_fd_(listener_fd),
        opt_(opt),
        context_(make_tls_context(opt.tls, material)),
        response_(response),
        transport_(opt) {
    Transport::configure(context_.get());
  }

  [[noreturn]] void run() {
    epoll_event listening{};
    listening.events = EPOLLIN;
    listening.data.fd = listener_fd_;
    if (epoll_ctl(epoll_fd_, EPOLL_CTL_ADD, listener_fd_, &listening) != 0) die("epoll_ctl");
    std::array<epoll_event, max_events> events;
    while (true) {
      const int n = epoll_wait(epoll_fd_, events.data(), max_events, -1);
      for (int i = 0; i < n; ++i) {
        const epoll_event& event = events[static_cast<std::size_t>(i)];
        if (event.data.fd == listener_fd_) {
          on_listener();
        } else if (!serve(event.data.fd, (event.events & EPOLLRDHUP) != 0)) {
          end(event.data.fd);
        }
      }
    }
  }

 private:
  enum class state { handshake, open, failed };
  struct connection {
    SSL* session = nullptr;
    state at = state::handshake;
  };

  connection& at(int fd) {
    const auto index = static_cast<std::size_t>(fd);
    if (index >= connections_.size()) connections_.resize(std::max(2 * connections_.size(), index + 1));
    return connections_[index];
  }

  // Calls OpenSSL until it is done or needs input. As in the plain loop, waiting for room stalls all others.
  template <class Call>
  static int complete(SSL* session, int fd, Call call) {
    while (true) {
      const int result = call(session);
      if (result > 0) return result;
      const int error = SSL_get_error(session, result);
      if (error != SSL_ERROR_WANT_WRITE) return -error;
      wait_for_room(fd);
    }
  }

  // What to answer the loop when OpenSSL was not done: true to wait for more input.
  static bool stopped(connection& c, int result) {
    if (result == -SSL_ERROR_WANT_READ) return true;
    if (result != -SSL_ERROR_ZERO_RETURN) c.at = state::failed;
    return false;
  }

  bool respond(SSL* session, int fd) {
    std::size_t written = 0;
    while (written < response_.size()) {
      const int n = complete(session, fd, [&](SSL* s) {
        return SSL_write(s, response_.data() + written, static_cast<int>(response_.size() - written));
      });
      if (n <= 0) return false;
      written += static_cast<std::size_t>(n);
    }
    return true;
  }

  // Everything that has arrived. False: to be closed.
  bool advance(connection& c, int fd) {
    if (c.at == state::handshake) {
      const int result = complete(c.session, fd, SSL_accept);
      if (result <= 0) return stopped(c, result);
      c.at = state::open;
    }
    while (transport_.has_more(c.session)) {
      const int n = complete(c.session, fd, [&](SSL* s) {
        return SSL_read(s, request_.data(), static_cast<int>(request_.size()));
      });
      if (n <= 0) return stopped(c, n);
      if (!respond(c.session, fd)) {
        c.at = state::failed;
        return false;
      }
      if (!opt_.keep_alive) return false;
    }
    return true;
  }

  // EPOLLRDHUP together with data says that no further edge will come, so that connection ends here too.
  bool serve(int fd, bool peer_ended) {
    connection& c = at(fd);
    bool stays = true;
    do {
      if (!transport_.receive(fd)) return false;
      stays = advance(c, fd);
    } while (stays && transport_.left_some());
    stays = stays && !peer_ended;
    if (!stays && c.at == state::open) SSL_shutdown(c.session);  // close_notify; none after a failure
    return transport_.flush(fd, !stays) && stays;
  }

  void end(int fd) {
    connection& c = at(fd);
    SSL_free(c.session);
    c = {};
    ERR_clear_error();  // a failure's, which the next connection must not see
    close(fd);
  }

  void on_new(int fd) {
    connection& c = at(fd);
    c.session = SSL_new(context_.get());
    if (c.session == nullptr || !transport_.attach(c.session, fd)) die("SSL_new");
    SSL_set_accept_state(c.session);
    epoll_event event{};
    event.events = EPOLLIN | EPOLLRDHUP | EPOLLET;
    event.data.fd = fd;
    const bool lives =
        (!opt_.accept_first_read || serve(fd, false)) && epoll_ctl(epoll_fd_, EPOLL_CTL_ADD, fd, &event) == 0;
    if (!lives) end(fd);
  }

  void on_listener() {
    for (int i = 0; i < accept_batch; ++i) {
      const int fd = accept4(listener_fd_, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
      if (fd < 0) return;
      on_new(fd);
    }
  }

  int epoll_fd_;
  int listener_fd_;
  const options& opt_;
  context_ptr context_;
  const std::string& response_;
  std::vector<connection> connections_;  // by descriptor
  std::array<char, request_bytes> request_;
  Transport transport_;
};

}  // namespace

void serve_tls(int epoll_fd, int listener_fd, const options& opt, const tls_material& material,
               const std::string& response) {
  if (opt.tls.form == tls_form::fd)
    tls_loop<socket_transport>(epoll_fd, listener_fd, opt, material, response).run();
  tls_loop<shared_transport>(epoll_fd, listener_fd, opt, material, response).run();
}

}  // namespace floor_server
