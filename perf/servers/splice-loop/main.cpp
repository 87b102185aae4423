// splice-loop: the least a relay of bulk data can do, as a limit to compare relays with.
//
// One thread, edge-triggered epoll, a blocking connect for each accepted connection, and for each direction a pipe of
// its own which splice(2) fills from one socket and empties into the other until one of them would block. No time
// limits, no byte counts, no limit of pipes. It shares no code with the engine on purpose.

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <charconv>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>
#include <system_error>

namespace {

constexpr int max_events = 512;
constexpr std::size_t pipe_bytes = 256 * 1024;  // as percore's server_options::pipe_bytes
constexpr std::size_t most_at_once = 1024 * 1024;

[[noreturn]] void die(const char* what) {
  std::fprintf(stderr, "splice-loop: %s: %s\n", what, std::system_category().message(errno).c_str());
  std::exit(1);
}

[[noreturn]] void misused() {
  std::fputs("usage: splice-loop --listen IPV4:PORT --to IPV4:PORT\n", stderr);
  std::exit(2);
}

sockaddr_in parse(std::string_view text) {
  sockaddr_in result{};
  result.sin_family = AF_INET;
  const std::size_t colon = text.rfind(':');
  std::uint16_t port = 0;
  if (colon == std::string_view::npos) misused();
  const std::string_view digits = text.substr(colon + 1);
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), port);
  if (error != std::errc() || end != digits.data() + digits.size()) misused();
  if (inet_pton(AF_INET, std::string(text.substr(0, colon)).c_str(), &result.sin_addr) != 1) misused();
  result.sin_port = htons(port);
  return result;
}

// What flows from one socket to the other.
struct direction {
  int from = -1;
  int to = -1;
  std::array<int, 2> pipe{-1, -1};
  std::size_t held = 0;  // bytes in the pipe
  bool ended = false;
};

struct pair {
  std::array<direction, 2> ways;
  bool failed = false;
};

void open_pipe(direction& way) {
  if (pipe2(way.pipe.data(), O_NONBLOCK | O_CLOEXEC) != 0) die("pipe2");
  (void)fcntl(way.pipe[1], F_SETPIPE_SZ, static_cast<int>(pipe_bytes));
}

void flow(pair& both, direction& way) {
  while (!way.ended && !both.failed) {
    if (way.held == 0) {
      const ssize_t got =
          splice(way.from, nullptr, way.pipe[1], nullptr, most_at_once, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
      if (got == 0) {
        shutdown(way.to, SHUT_WR);
        way.ended = true;
        return;
      }
      if (got < 0) {
        both.failed = errno != EAGAIN;
        return;
      }
      way.held = static_cast<std::size_t>(got);
    }
    const ssize_t gone = splice(way.pipe[0], nullptr, way.to, nullptr, way.held, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
    if (gone < 0) {
      both.failed = errno != EAGAIN;
      return;
    }
    way.held -= static_cast<std::size_t>(gone);
  }
}

void open_pair(int poller, int client, const sockaddr_in& to) {
  const int up = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (up < 0) die("socket");
  if (connect(up, reinterpret_cast<const sockaddr*>(&to), sizeof to) != 0) die("connect");
  if (fcntl(up, F_SETFL, O_NONBLOCK) != 0) die("fcntl");
  const int on = 1;
  for (const int fd : {client, up}) setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  auto* made = new pair;
  made->ways[0].from = made->ways[1].to = client;
  made->ways[0].to = made->ways[1].from = up;
  for (direction& way : made->ways) open_pipe(way);
  for (const int fd : {client, up}) {
    epoll_event event{};
    event.events = EPOLLIN | EPOLLOUT | EPOLLET | EPOLLRDHUP;
    event.data.ptr = made;
    if (epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event) != 0) die("epoll_ctl");
  }
}

bool serve(pair& both) {
  for (direction& way : both.ways) flow(both, way);
  if (!both.failed && !(both.ways[0].ended && both.ways[1].ended)) return true;
  close(both.ways[0].from);
  close(both.ways[0].to);
  for (const direction& way : both.ways) {
    close(way.pipe[0]);
    close(way.pipe[1]);
  }
  return false;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5 || std::strcmp(argv[1], "--listen") != 0 || std::strcmp(argv[3], "--to") != 0) misused();
  sockaddr_in where = parse(argv[2]);
  const sockaddr_in to = parse(argv[4]);
  std::signal(SIGPIPE, SIG_IGN);
  const int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  const int on = 1;
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (bind(listener, reinterpret_cast<const sockaddr*>(&where), sizeof where) != 0) die("bind");
  if (listen(listener, 4096) != 0) die("listen");
  socklen_t size = sizeof where;
  getsockname(listener, reinterpret_cast<sockaddr*>(&where), &size);
  const int poller = epoll_create1(EPOLL_CLOEXEC);
  epoll_event event{};
  event.events = EPOLLIN;
  if (poller < 0 || epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event) != 0) die("epoll");
  std::array<char, INET_ADDRSTRLEN> text{};
  inet_ntop(AF_INET, &where.sin_addr, text.data(), text.size());
  std::printf("listening on %s:%d\n", text.data(), ntohs(where.sin_port));
  std::fflush(stdout);
  std::array<epoll_event, max_events> events;
  for (;;) {
    const int count = epoll_wait(poller, events.data(), max_events, -1);
    if (count < 0 && errno != EINTR) die("epoll_wait");
    for (int i = 0; i < count; ++i) {
      auto* both = static_cast<pair*>(events[static_cast<std::size_t>(i)].data.ptr);
      if (both != nullptr) {
        // A pair has two descriptors, hence perhaps two events in this batch.
        if (!serve(*both)) {
          for (int j = i + 1; j < count; ++j) {
            epoll_event& later = events[static_cast<std::size_t>(j)];
            if (later.data.ptr == both) later.data.ptr = nullptr, later.events = 0;
          }
          delete both;
        }
        continue;
      }
      if (events[static_cast<std::size_t>(i)].events == 0) continue;
      for (int fd; (fd = accept4(listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0;) {
        open_pair(poller, fd, to);
      }
    }
  }
}
