// libevent as memcached uses it: a base per thread, persistent read events, and the program's own recv and
// send. With TLS it is bufferevent_openssl, which is what libevent has for that.

#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/bufferevent_ssl.h>
#include <event2/event.h>
#include <event2/event_struct.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/ssl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <string>
#include <string_view>

#include "perf/peers/common/peer.hpp"
#include "perf/program.hpp"

namespace {

struct loop {
  loop(const peer::loop_setting& setting, event_base* event_base)
      : opt(setting.opt), base(event_base), listener_fd(setting.listener_fd), responder(setting.opt) {
    if (setting.tls != nullptr) tls = floor_server::make_tls_context(*opt.tls, *setting.tls);
  }

  const peer::options& opt;
  event_base* base;
  int listener_fd;
  peer::responder responder;
  floor_server::context_ptr tls;
  std::array<char, 16384> in;
};

// ---- plain
// ------------------------------------------------------------------------------------------------------

struct connection {
  event readable;
  event writable;  // also the timer of --sleep-ms
  loop* home;
  int fd;
  int answers = 0;
  std::string head;  // the start of a request that has not come whole
  std::string own;
  std::string_view unsent;
};

void end(connection* conn) {
  event_del(&conn->readable);
  event_del(&conn->writable);
  close(conn->fd);
  delete conn;
}

// False when the connection has ended.
bool send_unsent(connection* conn) {
  const peer::options& opt = conn->home->opt;
  const int flags = MSG_NOSIGNAL | (!opt.keep_alive && opt.fin_with_data ? MSG_MORE : 0);
  const ssize_t sent = send(conn->fd, conn->unsent.data(), conn->unsent.size(), flags);
  if (sent < 0 && errno != EAGAIN) {
    end(conn);
    return false;
  }
  if (sent > 0) conn->unsent.remove_prefix(static_cast<std::size_t>(sent));
  return true;
}

void answer(connection* conn) {
  while (conn->answers > 0 || !conn->unsent.empty()) {
    if (conn->unsent.empty()) {
      conn->unsent = conn->home->responder.next(conn->own);
      --conn->answers;
    }
    if (!send_unsent(conn)) return;
    if (!conn->unsent.empty()) {
      if (conn->home->opt.sleep_ms != 0) return end(conn);  // 128 bytes always fit
      event_add(&conn->writable, nullptr);
      return;
    }
    if (!conn->home->opt.keep_alive) return end(conn);
  }
}

void on_writable(evutil_socket_t, short, void* argument) {
  answer(static_cast<connection*>(argument));
}

void on_readable(evutil_socket_t fd, short, void* argument) {
  auto* conn = static_cast<connection*>(argument);
  auto& in = conn->home->in;
  const ssize_t bytes = recv(fd, in.data(), in.size(), 0);
  if (bytes < 0 && errno == EAGAIN) return;
  if (bytes <= 0) return end(conn);
  std::string_view data(in.data(), static_cast<std::size_t>(bytes));
  if (!conn->head.empty()) data = conn->head.append(data);
  std::size_t used = 0;
  conn->answers += peer::responder::count_requests(data, used);
  conn->head = std::string(data.substr(used));
  if (conn->head.size() > peer::request_bytes) return end(conn);
  if (conn->answers == 0) return;
  const int sleep_ms = conn->home->opt.sleep_ms;
  if (sleep_ms == 0) return answer(conn);
  const timeval wait{sleep_ms / 1000, sleep_ms % 1000 * 1000};
  evtimer_add(&conn->writable, &wait);
}

void serve_plain(loop& home, int fd) {
  auto* conn = new connection;
  conn->home = &home;
  conn->fd = fd;
  event_assign(&conn->readable, home.base, fd, EV_READ | EV_PERSIST, on_readable, conn);
  if (home.opt.sleep_ms != 0) {
    event_assign(&conn->writable, home.base, -1, 0, on_writable, conn);
  } else {
    event_assign(&conn->writable, home.base, fd, EV_WRITE, on_writable, conn);
  }
  event_add(&conn->readable, nullptr);
}

// ---- TLS
// --------------------------------------------------------------------------------------------------------

void end_tls(bufferevent* stream) {
  SSL_shutdown(bufferevent_openssl_get_ssl(stream));  // sends close_notify
  bufferevent_free(stream);
}

void on_tls_event(bufferevent* stream, short what, void*) {
  if ((what & (BEV_EVENT_EOF | BEV_EVENT_ERROR)) != 0) bufferevent_free(stream);
}

void on_tls_written(bufferevent* stream, void*) {
  end_tls(stream);
}

void on_tls_data(bufferevent* stream, void* argument) {
  auto& home = *static_cast<loop*>(argument);
  evbuffer* in = bufferevent_get_input(stream);
  const std::size_t there = evbuffer_get_length(in);
  if (there > home.in.size()) return bufferevent_free(stream);
  evbuffer_copyout(in, home.in.data(), there);
  std::size_t used = 0;
  const int answers = peer::responder::count_requests({home.in.data(), there}, used);
  evbuffer_drain(in, used);
  if (answers == 0) return;
  std::string own;
  for (int i = 0; i < answers; ++i) {
    const std::string_view response = home.responder.next(own);
    bufferevent_write(stream, response.data(), response.size());
  }
  if (!home.opt.keep_alive) bufferevent_setcb(stream, nullptr, on_tls_written, on_tls_event, argument);
}

void serve_tls(loop& home, int fd) {
  bufferevent* stream = bufferevent_openssl_socket_new(home.base, fd, SSL_new(home.tls.get()),
                                                       BUFFEREVENT_SSL_ACCEPTING, BEV_OPT_CLOSE_ON_FREE);
  if (stream == nullptr) {
    close(fd);
    return;
  }
  bufferevent_openssl_set_allow_dirty_shutdown(stream, 1);
  bufferevent_setcb(stream, on_tls_data, nullptr, on_tls_event, &home);
  bufferevent_enable(stream, EV_READ | EV_WRITE);
}

// ---- both
// -------------------------------------------------------------------------------------------------------

void on_listener(evutil_socket_t listener_fd, short, void* argument) {
  auto& home = *static_cast<loop*>(argument);
  for (int i = 0; i < peer::accept_batch; ++i) {
    const int fd = accept4(listener_fd, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) return;
    const int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (home.tls) {
      serve_tls(home, fd);
    } else {
      serve_plain(home, fd);
    }
  }
}

void serve(const peer::loop_setting& setting) {
  event_config* config = event_config_new();
  // No locks, and no epoll_ctl more than needed (event2/event.h says when the change list is safe: no dup'ed
  // sockets).
  event_config_set_flag(config, EVENT_BASE_FLAG_NOLOCK);
  event_config_set_flag(config, EVENT_BASE_FLAG_EPOLL_USE_CHANGELIST);
  event_config_set_flag(config, EVENT_BASE_FLAG_PRECISE_TIMER);
  event_base* base = event_base_new_with_config(config);
  event_config_free(config);
  if (base == nullptr) program::die("event_base_new");
  loop home(setting, base);
  event* listening = event_new(base, home.listener_fd, EV_READ | EV_PERSIST, on_listener, &home);
  event_add(listening, nullptr);
  event_base_dispatch(base);
}

}  // namespace

int main(int argc, char** argv) {
  const peer::options opt = peer::parse_options(argc, argv, true);
  peer::run(opt, serve);
  std::_Exit(0);  // the loops use this frame's objects until the process is gone
}
