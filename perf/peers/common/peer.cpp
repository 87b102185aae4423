#include "perf/peers/common/peer.hpp"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "perf/program.hpp"

namespace peer {
namespace {

using program::die;
using program::set_option;

// Writes the bound address back, so that port 0 is chosen once and shared by all loops.
int open_listener(const options& opt, sockaddr_in& where) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) die("socket");
  set_option(fd, SOL_SOCKET, SO_REUSEADDR, 1, "SO_REUSEADDR");
  set_option(fd, SOL_SOCKET, SO_REUSEPORT, 1, "SO_REUSEPORT");
  if (opt.defer_accept_s > 0)
    set_option(fd, IPPROTO_TCP, TCP_DEFER_ACCEPT, opt.defer_accept_s, "TCP_DEFER_ACCEPT");
  auto* address = reinterpret_cast<sockaddr*>(&where);
  socklen_t length = sizeof where;
  if (bind(fd, address, length) != 0) die("--listen: bind");
  if (listen(fd, 4096) != 0) die("listen");
  if (getsockname(fd, address, &length) != 0) die("getsockname");
  return fd;
}

}  // namespace

void run(const options& opt, const std::function<void(const loop_setting&)>& serve) {
  sigset_t stop;
  sigemptyset(&stop);
  sigaddset(&stop, SIGINT);
  sigaddset(&stop, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &stop, nullptr);  // the loops inherit it
  signal(SIGPIPE, SIG_IGN);
  program::raise_descriptor_limit();

  static std::optional<floor_server::tls_material> tls;
  if (opt.tls) tls = floor_server::load_tls_material(*opt.tls);
  sockaddr_in where{};
  where.sin_family = AF_INET;
  where.sin_port = htons(static_cast<std::uint16_t>(opt.port));
  inet_pton(AF_INET, opt.host.c_str(), &where.sin_addr);
  std::vector<int> listeners;
  for (std::size_t i = 0; i < opt.cpus.size(); ++i) listeners.push_back(open_listener(opt, where));
  for (std::size_t i = 0; i < opt.cpus.size(); ++i) {
    std::thread([&opt, &serve, cpu = opt.cpus[i], fd = listeners[i]] {
      program::pin_to(cpu);
      serve(loop_setting{opt, fd, tls ? &*tls : nullptr});
    }).detach();
  }
  std::printf("listening on %s:%d\n", opt.host.c_str(), ntohs(where.sin_port));
  std::fflush(stdout);
  int number = 0;
  sigwait(&stop, &number);
}

responder::responder(const options& opt) : plain_body_(opt.body_bytes, 'x') {
  using percore_http::aes128_cbc;
  const std::size_t content_bytes = opt.aes ? aes128_cbc::output_bytes(opt.body_bytes) : opt.body_bytes;
  if (opt.aes) cipher_.emplace();
  response_ = std::string("HTTP/1.1 200 OK\r\nServer: ") + program_invocation_short_name + "\r\nDate: ";
  date_offset_ = response_.size();
  response_.append(percore_http::date_bytes, '?');
  response_ += std::string("\r\nConnection: ") + (opt.keep_alive ? "keep-alive" : "close") +
               "\r\nContent-Type: text/plain\r\nContent-Length: " + std::to_string(content_bytes) +
               "\r\n\r\n";
  head_bytes_ = response_.size();
  response_ += plain_body_;
  response_.resize(head_bytes_ + content_bytes);
}

std::string_view responder::next(std::string& own) {
  clock_.advance(std::chrono::steady_clock::now());
  if (dated_ != clock_.second()) {
    dated_ = clock_.second();
    std::memcpy(response_.data() + date_offset_, clock_.text().data(), percore_http::date_bytes);
  }
  if (!cipher_) return response_;
  own.resize(response_.size());
  std::memcpy(own.data(), response_.data(), head_bytes_);
  cipher_->encrypt(plain_body_, own.data() + head_bytes_);
  return own;
}

int responder::count_requests(std::string_view data, std::size_t& used) noexcept {
  int found = 0;
  used = 0;
  for (std::size_t end; (end = data.find("\r\n\r\n", used)) != std::string_view::npos; ++found)
    used = end + 4;
  return found;
}

}  // namespace peer
