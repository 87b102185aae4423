// floor: the least a readiness-driven server can do for one request, as a limit to compare servers with.
//
// One epoll loop per pinned thread, each with its own SO_REUSEPORT listener. One recv, one send of a prepared
// HTTP/1.1 response, nothing else: no parsing (whatever one recv returns is one request), no time limits, no
// counters, no state per connection (the epoll data is the descriptor). It is no usable server: a request
// that arrives in two segments gets two responses. It shares no code with the engine on purpose. --aes128 and
// --sleep-ms add the least that those tests need: an encryption into the response, a queue of those that
// wait. With --tls the loops of tls_loop.cpp take the place of this file's.

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <deque>
#include <functional>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "perf/program.hpp"
#include "perf/servers/floor/options.hpp"
#include "perf/servers/floor/tls.hpp"
#include "perf/servers/percore-http/crypto.hpp"

namespace {

using floor_server::options;
using floor_server::tls_material;

constexpr int max_events = 512;   // epoll_wait's array
constexpr int accept_batch = 64;  // accepts per listener event, so that connections get their turn
constexpr std::int64_t second_ns = 1'000'000'000;
constexpr std::size_t receive_bytes = 16384;  // one request's limit; the kernel copies only what is there

using program::die;
using program::pin_to;
using program::set_option;

std::string make_response(const options& opt) {
  std::array<char, 64> date{};
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  std::strftime(date.data(), date.size(), "%a, %d %b %Y %H:%M:%S GMT", &utc);  // RFC 9110, 5.6.7
  const std::size_t content_bytes =
      opt.aes ? percore_http::aes128_cbc::output_bytes(opt.body_bytes) : opt.body_bytes;
  std::string response = "HTTP/1.1 200 OK\r\nServer: floor\r\nDate: ";
  response += date.data();
  response += opt.keep_alive ? "\r\nConnection: keep-alive" : "\r\nConnection: close";
  response += "\r\nContent-Type: text/plain\r\nContent-Length: " + std::to_string(content_bytes) + "\r\n\r\n";
  response.append(content_bytes, 'x');
  return response;
}

struct address {
  sockaddr_storage storage{};
  socklen_t length = 0;
  sockaddr* get() { return reinterpret_cast<sockaddr*>(&storage); }
};

address resolve(const options& opt) {
  addrinfo hints{};
  hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV | AI_PASSIVE;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int error = getaddrinfo(opt.host.c_str(), opt.port.c_str(), &hints, &found);
  if (error != 0) program::bad_usage("--listen: '" + opt.host + "': " + gai_strerror(error));
  address result;
  result.length = found->ai_addrlen;
  std::memcpy(&result.storage, found->ai_addr, found->ai_addrlen);
  freeaddrinfo(found);
  return result;
}

// Binds to `where` and writes the bound address back, so that port 0 is chosen once and shared by all loops.
int open_listener(const options& opt, address& where) {
  const int fd = socket(where.get()->sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) die("socket");
  set_option(fd, SOL_SOCKET, SO_REUSEADDR, 1, "SO_REUSEADDR");
  set_option(fd, SOL_SOCKET, SO_REUSEPORT, 1, "SO_REUSEPORT");
  if (opt.defer_accept_s > 0)
    set_option(fd, IPPROTO_TCP, TCP_DEFER_ACCEPT, opt.defer_accept_s, "TCP_DEFER_ACCEPT");
  if (bind(fd, where.get(), where.length) != 0) die("--listen: bind");
  if (listen(fd, opt.backlog) != 0) die("listen");
  if (getsockname(fd, where.get(), &where.length) != 0) die("getsockname");
  return fd;
}

void print_address(address& where) {
  std::array<char, NI_MAXHOST> host{};
  std::array<char, NI_MAXSERV> port{};
  if (getnameinfo(where.get(), where.length, host.data(), host.size(), port.data(), port.size(),
                  NI_NUMERICHOST | NI_NUMERICSERV) != 0)
    die("getnameinfo");
  const bool v6 = where.get()->sa_family == AF_INET6;
  std::printf(v6 ? "listening on [%s]:%s\n" : "listening on %s:%s\n", host.data(), port.data());
  std::fflush(stdout);
}

std::int64_t now_ns() {
  std::timespec time{};
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec * second_ns + time.tv_nsec;
}

// A connection whose response waits; every wait is equally long, so they end in the order in which they
// begin.
struct sleeper {
  std::int64_t until_ns;
  int fd;
};

struct loop {
  int epoll_fd;
  int listener_fd;
  std::string response;
  int send_flags;
  bool keep_alive;
  bool accept_first_read;
  std::int64_t sleep_ns;
  std::string plain_body;                          // of --aes128
  std::optional<percore_http::aes128_cbc> cipher;  // the same
  std::deque<sleeper> sleepers;
  std::vector<bool> asleep;  // by descriptor: one that has been closed meanwhile is not answered
  std::array<char, receive_bytes> buffer;

  // Rare: the socket took only a part. Waits for room, which stalls this loop's other connections.
  bool send_rest(int fd, std::size_t sent) {
    while (sent < response.size()) {
      const ssize_t n = send(fd, response.data() + sent, response.size() - sent, send_flags);
      if (n >= 0) {
        sent += static_cast<std::size_t>(n);
      } else if (errno == EAGAIN) {
        pollfd wait{fd, POLLOUT, 0};
        poll(&wait, 1, -1);
      } else {
        return false;
      }
    }
    return true;
  }

  [[nodiscard]] std::size_t content_bytes() const {
    return percore_http::aes128_cbc::output_bytes(plain_body.size());
  }

  bool send_response(int fd) {
    if (cipher) cipher->encrypt(plain_body, response.data() + response.size() - content_bytes());
    const ssize_t n = send(fd, response.data(), response.size(), send_flags);
    if (n == static_cast<ssize_t>(response.size())) [[likely]]
      return true;
    if (n < 0 && errno != EAGAIN) return false;
    return send_rest(fd, n < 0 ? 0 : static_cast<std::size_t>(n));
  }

  void add(int fd) const {
    epoll_event event{};
    event.events = EPOLLIN | EPOLLRDHUP | EPOLLET;
    event.data.fd = fd;
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) != 0) close(fd);
  }

  // EPOLLRDHUP together with data says that no further edge will come, so that connection ends here too.
  void on_readable(int fd, std::uint32_t events) {
    const ssize_t n = recv(fd, buffer.data(), buffer.size(), 0);
    if (n > 0 && sleep_ns != 0 && (events & EPOLLRDHUP) == 0) return put_to_sleep(fd);
    if (n > 0 && send_response(fd) && keep_alive && (events & EPOLLRDHUP) == 0) return;
    if (n < 0 && errno == EAGAIN) return;
    if (sleep_ns != 0 && static_cast<std::size_t>(fd) < asleep.size())
      asleep[static_cast<std::size_t>(fd)] = false;
    close(fd);
  }

  void put_to_sleep(int fd) {
    if (asleep.size() <= static_cast<std::size_t>(fd)) asleep.resize(static_cast<std::size_t>(fd) + 1);
    asleep[static_cast<std::size_t>(fd)] = true;
    sleepers.push_back({now_ns() + sleep_ns, fd});
  }

  void wake_sleepers() {
    const std::int64_t now = now_ns();
    while (!sleepers.empty() && sleepers.front().until_ns <= now) {
      const int fd = sleepers.front().fd;
      sleepers.pop_front();
      if (!asleep[static_cast<std::size_t>(fd)]) continue;
      asleep[static_cast<std::size_t>(fd)] = false;
      if (!send_response(fd) || !keep_alive) close(fd);
    }
  }

  int wait(std::array<epoll_event, max_events>& events) {
    if (sleepers.empty()) return epoll_wait(epoll_fd, events.data(), max_events, -1);
    const std::int64_t left = std::max<std::int64_t>(0, sleepers.front().until_ns - now_ns());
    const std::timespec timeout{left / second_ns, left % second_ns};
    return epoll_pwait2(epoll_fd, events.data(), max_events, &timeout, nullptr);
  }

  void on_new(int fd) {
    if (accept_first_read && sleep_ns == 0) {
      const ssize_t n = recv(fd, buffer.data(), buffer.size(), 0);
      const bool go_on = n > 0 ? send_response(fd) && keep_alive : n < 0 && errno == EAGAIN;
      if (!go_on) {
        close(fd);
        return;
      }
    }
    add(fd);
  }

  void on_listener() {
    for (int i = 0; i < accept_batch; ++i) {
      const int fd = accept4(listener_fd, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
      if (fd < 0) return;
      on_new(fd);
    }
  }

  [[noreturn]] void run() {
    epoll_event listening{};
    listening.events = EPOLLIN;
    listening.data.fd = listener_fd;
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener_fd, &listening) != 0) die("epoll_ctl");
    std::array<epoll_event, max_events> events;
    while (true) {
      const int n = wait(events);
      for (int i = 0; i < n; ++i) {
        const epoll_event& event = events[static_cast<std::size_t>(i)];
        if (event.data.fd == listener_fd) {
          on_listener();
        } else {
          on_readable(event.data.fd, event.events);
        }
      }
      if (!sleepers.empty()) wake_sleepers();
    }
  }
};

// Pins first, so that the thread's stack, and the buffer in it, lie on the memory node of its CPU.
void serve_on(int cpu, int listener_fd, const options& opt, const tls_material* tls,
              const std::string& response) {
  pin_to(cpu);
  const int epoll_fd = epoll_create1(EPOLL_CLOEXEC);
  if (epoll_fd < 0) die("epoll_create1");
  if (tls != nullptr) floor_server::serve_tls(epoll_fd, listener_fd, opt, *tls, response);
  loop server{.epoll_fd = epoll_fd,
              .listener_fd = listener_fd,
              .response = response,
              .send_flags = MSG_NOSIGNAL | (opt.fin_with_data ? MSG_MORE : 0),
              .keep_alive = opt.keep_alive,
              .accept_first_read = opt.accept_first_read,
              .sleep_ns = opt.sleep_ms * (second_ns / 1000),
              .plain_body = std::string(opt.aes ? opt.body_bytes : 0, 'x'),
              .cipher = {},
              .sleepers = {},
              .asleep = {},
              .buffer = {}};
  if (opt.aes) server.cipher.emplace();
  server.run();
}

}  // namespace

int main(int argc, char** argv) {
  const options opt = floor_server::parse_options(argc, argv);

  sigset_t stop;
  sigemptyset(&stop);
  sigaddset(&stop, SIGINT);
  sigaddset(&stop, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &stop, nullptr);  // the loops inherit it: no signal ever interrupts their calls

  program::raise_descriptor_limit();  // a bare loop without descriptors would spin on its level-triggered listener
  address where = resolve(opt);
  std::optional<tls_material> tls;
  if (opt.tls.form != floor_server::tls_form::off) {
    tls = floor_server::load_tls_material(opt.tls);
    signal(SIGPIPE, SIG_IGN);  // OpenSSL writes sockets by write(2)
  }
  const std::string response = make_response(opt);
  std::vector<int> listeners;
  for (std::size_t i = 0; i < opt.cpus.size(); ++i) listeners.push_back(open_listener(opt, where));
  for (std::size_t i = 0; i < opt.cpus.size(); ++i)
    std::thread(serve_on, opt.cpus[i], listeners[i], std::cref(opt), tls ? &*tls : nullptr,
                std::cref(response))
        .detach();
  print_address(where);

  int signal_number = 0;
  sigwait(&stop, &signal_number);
  _exit(0);  // the loops use this frame's objects until the process is gone
}
