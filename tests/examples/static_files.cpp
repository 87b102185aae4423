// A small file server: GET and HEAD of the regular files of one folder, over HTTP/1.1 with keep-alive, by send_file.
//
//   static_files DIRECTORY [ADDRESS]
//
// Try it with: static_files . and curl -O http://127.0.0.1:5000/README.md
// Names lead nowhere else: no "..", no links, no other file system (openat2(2), RESOLVE_BENEATH).
#include <percore/percore.hpp>

#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <exception>
#include <iostream>
#include <stdexcept>
#include <string>
#include <string_view>

namespace {

constexpr std::size_t longest_head = 8 * 1024;

// A descriptor that closes itself.
class file {
 public:
  explicit file(int fd) noexcept : fd_(fd) {}
  file(const file&) = delete;
  file& operator=(const file&) = delete;
  ~file() {
    if (fd_ >= 0) ::close(fd_);
  }
  [[nodiscard]] int fd() const noexcept { return fd_; }

  // The size of a regular file; -1 for anything else.
  [[nodiscard]] off_t size() const noexcept {
    struct stat found{};
    return fd_ >= 0 && ::fstat(fd_, &found) == 0 && S_ISREG(found.st_mode) ? found.st_size : -1;
  }

 private:
  int fd_;
};

int open_beneath(int directory, const std::string& name) noexcept {
  open_how how{};
  how.flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
  how.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV;
  return static_cast<int>(::syscall(SYS_openat2, directory, name.c_str(), &how, sizeof how));
}

struct request {
  bool head_only = false;
  bool keep_alive = true;
  std::string name;  // empty: none that could be served
  int status = 200;
};

int hexadecimal(char c) noexcept {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

// "/a%20b?x" -> "a b". False for a broken escape, and for a zero byte.
bool decode(std::string_view path, std::string& into) {
  path = path.substr(0, path.find('?'));
  while (path.starts_with('/')) path.remove_prefix(1);
  for (std::size_t i = 0; i < path.size(); ++i) {
    char c = path[i];
    if (c == '%') {
      if (path.size() - i < 3) return false;
      const int high = hexadecimal(path[i + 1]);
      const int low = hexadecimal(path[i + 2]);
      if (high < 0 || low < 0) return false;
      c = static_cast<char>(high * 16 + low);
      i += 2;
    }
    if (c == '\0') return false;
    into += c;
  }
  return true;
}

request parse(std::string_view head) {
  request result;
  const std::string_view line = head.substr(0, head.find("\r\n"));
  const std::size_t first = line.find(' ');
  const std::size_t last = line.rfind(' ');
  const std::string_view method = line.substr(0, first);
  if (first == std::string_view::npos || first == last || !line.substr(last + 1).starts_with("HTTP/1.")) {
    result.status = 400;
  } else if (method != "GET" && method != "HEAD") {
    result.status = 405;
  } else if (!decode(line.substr(first + 1, last - first - 1), result.name)) {
    result.status = 400;
  }
  result.head_only = method == "HEAD";
  // Whoever sends a body, or wants to close, is answered once.
  const bool usual = head.find("\r\nContent-Length:") == std::string_view::npos &&
                     head.find("\r\nTransfer-Encoding:") == std::string_view::npos &&
                     head.find("\r\nConnection: close\r\n") == std::string_view::npos;
  result.keep_alive = result.status == 200 && line.ends_with("HTTP/1.1") && usual;
  return result;
}

std::string answer(int status, off_t size, bool keep_alive) {
  const char* reason = status == 200 ? "OK" : status == 404 ? "Not Found" : status == 405 ? "Method Not Allowed" : "Bad Request";
  return "HTTP/1.1 " + std::to_string(status) + ' ' + reason + "\r\nContent-Length: " + std::to_string(size) +
         (keep_alive ? "\r\n\r\n" : "\r\nConnection: close\r\n\r\n");
}

percore::task<> serve(percore::connection& conn, int directory) {
  while (auto head = co_await conn.read_until("\r\n\r\n", longest_head)) {
    request wanted = parse(head.text());
    const file found(wanted.status == 200 && !wanted.name.empty() ? open_beneath(directory, wanted.name) : -1);
    const off_t size = found.size();
    if (wanted.status == 200 && size < 0) wanted.status = 404;
    const std::string text = answer(wanted.status, wanted.status == 200 ? size : 0, wanted.keep_alive);
    if (!co_await conn.write(text)) co_return;
    if (wanted.status == 200 && !wanted.head_only) {
      // A file that has become shorter meanwhile cannot be made good: the client sees that its connection ends.
      if (!co_await conn.send_file(found.fd(), 0, static_cast<std::uint64_t>(size))) co_return;
    }
    if (!wanted.keep_alive) co_return;
  }
}

constexpr const char* usage =
    "usage: static_files DIRECTORY [ADDRESS]\n"
    "Serves the files of DIRECTORY over HTTP on ADDRESS (default 127.0.0.1:5000; port 0: any free port).\n"
    "SIGINT or SIGTERM ends it.\n";

}  // namespace

int main(int argc, char** argv) {
  if (argc == 2 && std::string_view(argv[1]) == "--help") {
    std::cout << usage;
    return 0;
  }
  if (argc < 2 || argc > 3 || argv[1][0] == '-') {
    std::cerr << usage;
    return 2;
  }
  try {
    const file directory(::open(argv[1], O_PATH | O_DIRECTORY | O_CLOEXEC));
    if (directory.fd() < 0) throw std::invalid_argument("cannot open the directory " + std::string(argv[1]));
    percore::server_options settings;
    settings.on_started = [](percore::server& started) {
      std::cout << "listening on " << started.local_address().to_string() << std::endl;
    };
    percore::server server(settings);
    percore::listen_options options;
    options.read_timeout = std::chrono::seconds(60);
    options.write_timeout = std::chrono::seconds(60);
    server.listen(
        argc == 3 ? argv[2] : "127.0.0.1:5000",
        [where = directory.fd()](percore::connection& conn) { return serve(conn, where); }, options);
    server.serve();
  } catch (const std::invalid_argument& mistake) {
    std::cerr << "static_files: " << mistake.what() << '\n';
    return 2;
  } catch (const std::exception& failure) {
    std::cerr << "static_files: " << failure.what() << '\n';
    return 1;
  }
}
