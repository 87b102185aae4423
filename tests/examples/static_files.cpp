// A small file server: GET and HEAD of the regular files of one folder, over HTTP/1.1 with keep-alive, by send_file.
// Ranges, ETag and Last-Modified are understood; a folder's name answers with its index.html.
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

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdint>
#include <cstdio>
#include <ctime>
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

 private:
  int fd_;
};

int open_beneath(int directory, const std::string& name) noexcept {
  open_how how{};
  how.flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
  how.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV;
  return static_cast<int>(::syscall(SYS_openat2, directory, name.c_str(), &how, sizeof how));
}

char lower(char c) noexcept {
  return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
}

bool same(std::string_view a, std::string_view b) noexcept {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](char x, char y) { return lower(x) == lower(y); });
}

std::string_view trimmed(std::string_view text) noexcept {
  while (text.starts_with(' ') || text.starts_with('\t')) text.remove_prefix(1);
  while (text.ends_with(' ') || text.ends_with('\t')) text.remove_suffix(1);
  return text;
}

template <class Number>
bool to_number(std::string_view text, Number& into) noexcept {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), into);
  return !text.empty() && text.front() != '-' && error == std::errc() && end == text.data() + text.size();
}

// Requests -----------------------------------------------------------------------------------------------------

// Its views lie in the head.
struct request {
  int status = 200;
  bool head_only = false;
  bool keep_alive = true;
  std::string_view path;  // as it was sent, without the slashes before it
  std::string name;       // decoded
  std::string_view range, if_range, if_none_match, if_modified_since;
};

int hexadecimal(char c) noexcept {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

// "a%20b" -> "a b". False for a broken escape, for a zero byte, and for characters that no URI has.
bool decode(std::string_view path, std::string& into) {
  for (std::size_t i = 0; i < path.size(); ++i) {
    char c = path[i];
    if (static_cast<unsigned char>(c) <= ' ' || c == 0x7f) return false;
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

void parse_field(std::string_view name, std::string_view value, request& into) {
  if (same(name, "range")) into.range = value;
  if (same(name, "if-range")) into.if_range = value;
  if (same(name, "if-none-match")) into.if_none_match = value;
  if (same(name, "if-modified-since")) into.if_modified_since = value;
  // Whoever sends a body, or says more of the connection than that it goes on, is answered once.
  const bool has_body = same(name, "transfer-encoding") || (same(name, "content-length") && value != "0");
  if (has_body || (same(name, "connection") && !same(value, "keep-alive"))) into.keep_alive = false;
}

// The target of a request: "/a?x", or the whole "http://host/a?x".
std::string_view path_of(std::string_view target) noexcept {
  if (target.size() >= 7 && same(target.substr(0, 7), "http://")) {
    target.remove_prefix(7);
    target.remove_prefix(std::min(target.find('/'), target.size()));
  }
  target = target.substr(0, target.find('?'));
  while (target.starts_with('/')) target.remove_prefix(1);
  return target;
}

request parse(std::string_view head) {
  request result;
  std::size_t end = head.find("\r\n");
  const std::string_view line = head.substr(0, end);
  const std::size_t first = line.find(' ');
  const std::size_t last = line.rfind(' ');
  const std::string_view method = line.substr(0, first);
  result.head_only = method == "HEAD";
  if (first == std::string_view::npos || first == last || !line.substr(last + 1).starts_with("HTTP/1.")) {
    result.status = 400;
  } else if (method != "GET" && method != "HEAD") {
    result.status = 405;
  } else {
    result.path = path_of(line.substr(first + 1, last - first - 1));
    if (!decode(result.path, result.name)) result.status = 400;
  }
  for (head.remove_prefix(end + 2); !head.starts_with("\r\n"); head.remove_prefix(end + 2)) {
    end = head.find("\r\n");
    const std::string_view field = head.substr(0, end);
    const std::size_t colon = field.find(':');
    if (colon == 0 || colon == std::string_view::npos || field.find_first_of(" \t\n") < colon) {
      result.status = 400;
      break;
    }
    parse_field(field.substr(0, colon), trimmed(field.substr(colon + 1)), result);
  }
  result.keep_alive = result.keep_alive && result.status == 200 && line.ends_with("HTTP/1.1");
  return result;
}

// Answers ------------------------------------------------------------------------------------------------------

std::string date_text(std::time_t when) {
  std::tm utc{};
  ::gmtime_r(&when, &utc);
  char text[40];
  return {text, std::strftime(text, sizeof text, "%a, %d %b %Y %H:%M:%S GMT", &utc)};  // RFC 9110 5.6.7
}

// Changes with the file's size and the nanoseconds of its last change.
std::string tag_of(const struct stat& file) {
  char text[64];
  const auto nanoseconds = static_cast<unsigned long long>(file.st_mtim.tv_sec) * 1'000'000'000ULL +
                           static_cast<unsigned long long>(file.st_mtim.tv_nsec);
  const int size =
      std::snprintf(text, sizeof text, "\"%llx-%llx\"", nanoseconds, static_cast<unsigned long long>(file.st_size));
  return {text, static_cast<std::size_t>(size)};
}

std::string_view type_of(std::string_view name) noexcept {
  static constexpr std::array<std::array<std::string_view, 2>, 14> known{{
      {".html", "text/html; charset=utf-8"},
      {".css", "text/css; charset=utf-8"},
      {".js", "text/javascript; charset=utf-8"},
      {".json", "application/json"},
      {".txt", "text/plain; charset=utf-8"},
      {".md", "text/plain; charset=utf-8"},
      {".svg", "image/svg+xml"},
      {".png", "image/png"},
      {".jpg", "image/jpeg"},
      {".gif", "image/gif"},
      {".webp", "image/webp"},
      {".ico", "image/x-icon"},
      {".pdf", "application/pdf"},
      {".wasm", "application/wasm"},
  }};
  for (const auto& [suffix, type] : known) {
    if (name.ends_with(suffix)) return type;
  }
  return "application/octet-stream";
}

// Has the client this very file already (RFC 9110 13.2.2)?
bool is_known(const request& wanted, const struct stat& file, std::string_view tag) {
  if (!wanted.if_none_match.empty()) {
    return wanted.if_none_match == "*" || wanted.if_none_match.find(tag) != std::string_view::npos;
  }
  if (wanted.if_modified_since.empty()) return false;
  std::tm utc{};
  const std::string text(wanted.if_modified_since);
  const char* end = ::strptime(text.c_str(), "%a, %d %b %Y %H:%M:%S GMT", &utc);
  return end != nullptr && *end == '\0' && file.st_mtim.tv_sec <= ::timegm(&utc);
}

struct part {
  std::uint64_t begin = 0;
  std::uint64_t size = 0;
};

// One range of bytes; of several, or of what is none, the whole file is the answer (RFC 9110 14.2). 200, 206 or 416.
int choose_part(std::string_view range, std::uint64_t size, part& into) {
  into = {0, size};
  if (!range.starts_with("bytes=") || range.find(',') != std::string_view::npos) return 200;
  range = trimmed(range.substr(6));
  const std::size_t dash = range.find('-');
  if (dash == std::string_view::npos) return 200;
  const std::string_view from = range.substr(0, dash);
  const std::string_view to = range.substr(dash + 1);
  std::uint64_t begin = 0;
  std::uint64_t last = ~std::uint64_t{0};
  if (from.empty()) {
    std::uint64_t count = 0;
    if (!to_number(to, count)) return 200;
    if (count == 0 || size == 0) return 416;
    into.begin = size - std::min(count, size);
  } else {
    if (!to_number(from, begin) || (!to.empty() && (!to_number(to, last) || last < begin))) return 200;
    if (begin >= size) return 416;
    into.begin = begin;
  }
  into.size = std::min(last, size - 1) - into.begin + 1;
  return 206;
}

std::string status_line(int status) {
  const char* reason = "Bad Request";
  switch (status) {
    case 200:
      reason = "OK";
      break;
    case 206:
      reason = "Partial Content";
      break;
    case 301:
      reason = "Moved Permanently";
      break;
    case 304:
      reason = "Not Modified";
      break;
    case 404:
      reason = "Not Found";
      break;
    case 405:
      reason = "Method Not Allowed\r\nAllow: GET, HEAD";
      break;
    case 416:
      reason = "Range Not Satisfiable";
      break;
    case 431:
      reason = "Request Header Fields Too Large";
      break;
    default:
      break;
  }
  return "HTTP/1.1 " + std::to_string(status) + ' ' + reason + "\r\n";
}

std::string end_of_head(const request& wanted) {
  return wanted.keep_alive ? "\r\n" : "Connection: close\r\n\r\n";
}

std::string plain_answer(int status, const request& wanted, std::string_view more = {}) {
  return status_line(status) + std::string(more) + "Content-Length: 0\r\n" + end_of_head(wanted);
}

// The head for a file that is there, and what of the file follows it.
std::string file_answer(const request& wanted, const struct stat& file, part& which) {
  const auto size = static_cast<std::uint64_t>(file.st_size);
  const std::string tag = tag_of(file);
  const std::string changed = date_text(file.st_mtim.tv_sec);
  const std::string facts = "ETag: " + tag + "\r\nLast-Modified: " + changed + "\r\nAccept-Ranges: bytes\r\n";
  which = {};
  if (is_known(wanted, file, tag)) return status_line(304) + facts + end_of_head(wanted);
  const bool in_part = wanted.if_range.empty() || wanted.if_range == tag || wanted.if_range == changed;
  const int status = choose_part(in_part ? wanted.range : "", size, which);
  if (status == 416) {
    which = {};
    return plain_answer(status, wanted, "Content-Range: bytes */" + std::to_string(size) + "\r\n");
  }
  std::string head = status_line(status) + facts + "Content-Type: " + std::string(type_of(wanted.name)) + "\r\n";
  if (status == 206) {
    head += "Content-Range: bytes " + std::to_string(which.begin) + '-' + std::to_string(which.begin + which.size - 1) +
            '/' + std::to_string(size) + "\r\n";
  }
  head += "Content-Length: " + std::to_string(which.size) + "\r\n" + end_of_head(wanted);
  if (wanted.head_only) which = {};
  return head;
}

percore::task<> serve(percore::connection& conn, int directory) {
  while (auto head = co_await conn.read_until("\r\n\r\n", longest_head)) {
    request wanted = parse(head.text());
    if (wanted.status == 200 && (wanted.name.empty() || wanted.name.ends_with('/'))) wanted.name += "index.html";
    const file found(wanted.status == 200 ? open_beneath(directory, wanted.name) : -1);
    struct stat known {};
    const bool there = found.fd() >= 0 && ::fstat(found.fd(), &known) == 0;
    std::string text;
    part which;
    if (wanted.status != 200) {
      text = plain_answer(wanted.status, wanted);
    } else if (there && S_ISDIR(known.st_mode)) {
      // One slash before it: two would name another host.
      text = plain_answer(301, wanted, "Location: /" + std::string(wanted.path) + "/\r\n");
    } else if (there && S_ISREG(known.st_mode)) {
      text = file_answer(wanted, known, which);
    } else {
      text = plain_answer(404, wanted);
    }
    const bool keep_alive = wanted.keep_alive;
    // A file that has become shorter meanwhile cannot be made good: the client sees that its connection ends.
    if (!co_await conn.send_file(text, found.fd(), which.begin, which.size)) co_return;
    if (!keep_alive) co_return;
  }
  if (conn.error() == percore::errc::limit_exceeded) {
    request none;
    none.keep_alive = false;
    const std::string text = plain_answer(431, none);
    co_await conn.write_last(text);
  }
}

constexpr const char* usage =
    "usage: static_files DIRECTORY [ADDRESS]\n"
    "Serves the files of DIRECTORY over HTTP on ADDRESS (default 127.0.0.1:5000; port 0: any free port).\n"
    "Links, and what other file systems are mounted beneath it, are not followed: 404. A folder answers with its "
    "index.html.\n"
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
