// A program of somebody else's that embeds percore: an echo server that talks to itself and ends. It prints what it
// got back and whether mimalloc is in the process; consume.py builds it in every way that percore can be used.
#include <arpa/inet.h>
#include <dlfcn.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <string>

#include <percore/percore.hpp>

percore::task<> echo(percore::connection& conn) {
  while (auto data = co_await conn.read())
    if (!co_await conn.write(data)) break;
}

// What the server on 127.0.0.1:port answers to `text`; empty when anything fails.
std::string exchange(unsigned short port, const std::string& text) {
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(port);
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  std::string answer(text.size(), '\0');
  const bool done = ::connect(fd, reinterpret_cast<const sockaddr*>(&to), sizeof to) == 0 &&
                    ::send(fd, text.data(), text.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(text.size()) &&
                    ::recv(fd, answer.data(), answer.size(), MSG_WAITALL) == static_cast<ssize_t>(answer.size());
  ::close(fd);
  return done ? answer : std::string();
}

int main() {
  percore::server server;
  server.listen("127.0.0.1:0", echo);
  server.start();
  const std::string text = "bytes there and back";
  const std::string answer = exchange(server.local_address().port(), text);
  server.shutdown();

  std::printf("version %s\n", percore::version());
  std::printf("echoed %s\n", answer == text ? "yes" : "no");
  std::printf("mimalloc %s\n", ::dlsym(RTLD_DEFAULT, "mi_version") != nullptr ? "yes" : "no");
  return answer == text ? 0 : 1;
}
