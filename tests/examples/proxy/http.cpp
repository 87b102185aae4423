#include "parsers.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <vector>

namespace proxy::http {

namespace {

char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }

bool same(std::string_view a, std::string_view b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](char x, char y) { return lower(x) == lower(y); });
}

std::string_view trimmed(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

// RFC 9110 5.6.2.
bool is_token(std::string_view text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), [](char c) {
    return (c >= '0' && c <= '9') || (lower(c) >= 'a' && lower(c) <= 'z') ||
           std::string_view("!#$%&'*+-.^_`|~").find(c) != std::string_view::npos;
  });
}

template <class Number>
bool to_number(std::string_view text, Number& into) {
  if (text.empty() || text.front() == '-' || text.front() == '+') return false;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), into);
  return error == std::errc() && end == text.data() + text.size();
}

// A name or an IPv4 address of the characters that they can have; in brackets an IPv6 address, perhaps with a zone.
// Other programs must not read another host from it than this one does.
bool is_host(std::string_view text, bool in_brackets) {
  if (text.empty() || text.size() > 255 || in_brackets != (text.find(':') != std::string_view::npos)) return false;
  return std::all_of(text.begin(), text.end(), [in_brackets](char c) {
    return (c >= '0' && c <= '9') || (lower(c) >= 'a' && lower(c) <= 'z') || c == '.' || c == '-' || c == '_' ||
           (in_brackets && (c == ':' || c == '%'));
  });
}

// "name:port", "name", "1.2.3.4:port", "[::1]:port". User information (before '@') is refused (RFC 9110 4.2.4).
bool parse_authority(std::string_view text, std::uint16_t default_port, target& into) {
  std::string_view host = text;
  std::string_view port;
  if (text.starts_with('[')) {
    const std::size_t close = text.find(']');
    if (close == std::string_view::npos) return false;
    host = text.substr(1, close - 1);
    const std::string_view rest = text.substr(close + 1);
    if (!rest.empty() && !rest.starts_with(':')) return false;
    if (!rest.empty()) port = rest.substr(1);
  } else if (const std::size_t colon = text.rfind(':'); colon != std::string_view::npos) {
    host = text.substr(0, colon);
    port = text.substr(colon + 1);
    if (host.find(':') != std::string_view::npos) return false;
  }
  if (!is_host(host, text.starts_with('['))) return false;
  into.host = host;
  into.port = default_port;
  return (port.empty() && default_port != 0) || (to_number(port, into.port) && into.port != 0);
}

// Headers that concern one connection only (RFC 9110 7.6.1), beside those that Connection names.
bool is_hop_by_hop(std::string_view name) {
  static constexpr std::array<std::string_view, 8> all = {
      "connection", "keep-alive", "proxy-connection", "proxy-authorization", "proxy-authenticate", "te", "trailer",
      "upgrade"};
  return std::any_of(all.begin(), all.end(), [name](std::string_view one) { return same(one, name); });
}

struct header {
  std::string_view name;
  std::string_view value;
};

bool split_headers(std::string_view text, std::vector<header>& into) {
  while (!text.empty()) {
    const std::size_t end = text.find("\r\n");
    if (end == std::string_view::npos) return false;
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(end + 2);
    const std::size_t colon = line.find(':');
    // A name is a token: no white space before the colon, and no folded lines (RFC 9112 5.1, 5.2).
    if (colon == std::string_view::npos || !is_token(line.substr(0, colon))) return false;
    const std::string_view value = trimmed(line.substr(colon + 1));
    if (value.find_first_of(std::string_view("\r\n\0", 3)) != std::string_view::npos) return false;
    into.push_back({line.substr(0, colon), value});
  }
  return true;
}

bool named_by_connection(const std::vector<header>& headers, std::string_view name) {
  for (const header& one : headers) {
    if (!same(one.name, "connection")) continue;
    for (std::string_view rest = one.value; !rest.empty();) {
      const std::size_t comma = rest.find(',');
      if (same(trimmed(rest.substr(0, comma)), name)) return true;
      if (comma == std::string_view::npos) break;
      rest.remove_prefix(comma + 1);
    }
  }
  return false;
}

// Where the body ends, which must be sure: what lies behind it would be somebody else's request. 0, or a status.
int find_body(const std::vector<header>& headers, bool is_1_0, request& into) {
  bool known = false;
  for (const header& one : headers) {
    if (same(one.name, "transfer-encoding")) {
      // RFC 9112 6.1: 1.0 has none of it, and who gives both, or it twice, wants them to be read in two ways.
      if (is_1_0 || into.chunked) return 400;
      if (!same(one.value, "chunked")) return 501;
      into.chunked = true;
    }
    if (!same(one.name, "content-length")) continue;
    std::uint64_t value = 0;
    if (!to_number(one.value, value) || (known && value != into.body_bytes)) return 400;
    into.body_bytes = value;
    known = true;
  }
  return known && into.chunked ? 400 : 0;
}

// Fields that are not sent on as they came: those of this hop, and those that are written anew.
bool is_replaced(const std::vector<header>& headers, std::string_view name) {
  return is_hop_by_hop(name) || same(name, "host") || same(name, "content-length") || same(name, "transfer-encoding") ||
         named_by_connection(headers, name);
}

std::string framing(const std::vector<header>& headers, const request& wanted) {
  if (wanted.chunked) return "Transfer-Encoding: chunked\r\n";
  const bool has_length =
      std::any_of(headers.begin(), headers.end(), [](const header& one) { return same(one.name, "content-length"); });
  return has_length ? "Content-Length: " + std::to_string(wanted.body_bytes) + "\r\n" : "";
}

}  // namespace

outcome parse(std::string_view head, request& into) {
  into.status = 400;
  if (!head.ends_with("\r\n\r\n")) return outcome::more;
  const std::size_t line_end = head.find("\r\n");
  const std::string_view line = head.substr(0, line_end);
  const std::size_t first = line.find(' ');
  const std::size_t last = line.rfind(' ');
  if (first == std::string_view::npos || first == last) return outcome::wrong;
  const std::string_view method = line.substr(0, first);
  std::string_view uri = line.substr(first + 1, last - first - 1);
  const std::string_view version = line.substr(last + 1);
  const auto is_bad = [](char c) { return static_cast<unsigned char>(c) <= ' ' || c == 0x7f; };
  if (!is_token(method) || uri.empty() || std::any_of(uri.begin(), uri.end(), is_bad)) return outcome::wrong;
  if (version != "HTTP/1.1" && version != "HTTP/1.0") return outcome::wrong;
  std::vector<header> headers;
  // Between the request line and the empty one.
  const std::string_view rest = head.substr(line_end + 2);
  if (!split_headers(rest.substr(0, rest.size() - 2), headers)) return outcome::wrong;
  for (const header& one : headers) {
    if (same(one.name, "proxy-authorization")) into.authorization = one.value;
  }
  if (method == "CONNECT") {
    into.tunnel = true;
    return parse_authority(uri, 0, into.where) ? outcome::done : outcome::wrong;
  }
  constexpr std::string_view scheme = "http://";
  if (uri.size() < scheme.size() || !same(uri.substr(0, scheme.size()), scheme)) return outcome::wrong;
  uri.remove_prefix(scheme.size());
  const std::size_t authority_end = std::min(uri.find_first_of("/?"), uri.size());
  const std::string_view authority = uri.substr(0, authority_end);
  if (!parse_authority(authority, 80, into.where)) return outcome::wrong;
  std::string_view path = uri.substr(authority_end);
  path = path.substr(0, path.find('#'));
  if (const int problem = find_body(headers, version == "HTTP/1.0", into); problem != 0) {
    into.status = problem;
    return outcome::wrong;
  }
  if (std::count_if(headers.begin(), headers.end(), [](const header& one) { return same(one.name, "host"); }) > 1) {
    return outcome::wrong;
  }
  // "http://a" is "*" of a for OPTIONS (RFC 9112 3.2.4), else "/".
  std::string resource = path.empty() && method == "OPTIONS" ? "*" : std::string(path);
  if (!resource.starts_with('/') && resource != "*") resource.insert(0, "/");
  // In the client's version, because the answer goes to it as it comes. Host is that of the URI, whatever the client
  // says (RFC 9112 3.2.2).
  into.head = std::string(method) + ' ' + resource + ' ' + std::string(version) +
              "\r\nHost: " + std::string(authority) + "\r\n";
  for (const header& one : headers) {
    if (!is_replaced(headers, one.name)) into.head += std::string(one.name) + ": " + std::string(one.value) + "\r\n";
  }
  into.head +=
      framing(headers, into) + "Via: " + std::string(version.substr(5)) + " proxy\r\nConnection: close\r\n\r\n";
  return outcome::done;
}

outcome parse(std::string_view head, reply& into) {
  if (!head.ends_with("\r\n\r\n")) return outcome::more;
  const std::size_t line_end = head.find("\r\n");
  const std::string_view line = head.substr(0, line_end);
  constexpr std::string_view version = "HTTP/1.";
  if (!line.starts_with(version) || line.size() < 12 || line[8] != ' ' || (line.size() > 12 && line[12] != ' ')) {
    return outcome::wrong;
  }
  if (line.find_first_of(std::string_view("\r\n\0", 3)) != std::string_view::npos) return outcome::wrong;
  // Nobody was asked to switch protocols.
  if (!to_number(line.substr(9, 3), into.status) || into.status < 100 || into.status == 101) return outcome::wrong;
  std::vector<header> headers;
  const std::string_view rest = head.substr(line_end + 2);
  if (!split_headers(rest.substr(0, rest.size() - 2), headers)) return outcome::wrong;
  const bool chunked = std::any_of(headers.begin(), headers.end(),
                                   [](const header& one) { return same(one.name, "transfer-encoding"); });
  into.head = std::string(line) + "\r\n";
  for (const header& one : headers) {
    const bool frames = same(one.name, "content-length") || same(one.name, "transfer-encoding");
    if (frames ? chunked && same(one.name, "content-length")  // RFC 9112 6.3: the other one counts
               : is_hop_by_hop(one.name) || named_by_connection(headers, one.name)) {
      continue;
    }
    into.head += std::string(one.name) + ": " + std::string(one.value) + "\r\n";
  }
  into.head += into.status < 200 ? "\r\n" : "Via: 1.1 proxy\r\nConnection: close\r\n\r\n";
  return outcome::done;
}

std::string answer(int status, std::string_view more_headers) {
  const char* reason = "Error";
  switch (status) {
    case 400: reason = "Bad Request"; break;
    case 403: reason = "Forbidden"; break;
    case 407: reason = "Proxy Authentication Required"; break;
    case 408:
      reason = "Request Timeout";
      break;
    case 431: reason = "Request Header Fields Too Large"; break;
    case 501:
      reason = "Not Implemented";
      break;
    case 502: reason = "Bad Gateway"; break;
    case 503: reason = "Service Unavailable"; break;
    case 504: reason = "Gateway Timeout"; break;
    default: break;
  }
  return "HTTP/1.1 " + std::to_string(status) + ' ' + reason + "\r\n" + std::string(more_headers) +
         "Content-Length: 0\r\nConnection: close\r\n\r\n";
}

bool decode_basic(std::string_view authorization, std::string& user, std::string& password) {
  constexpr std::string_view scheme = "basic ";
  if (authorization.size() < scheme.size() || !same(authorization.substr(0, scheme.size()), scheme)) return false;
  static constexpr std::string_view digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string text;
  unsigned bits = 0;
  unsigned held = 0;
  std::string_view encoded = trimmed(authorization.substr(scheme.size()));
  while (encoded.ends_with('=')) encoded.remove_suffix(1);
  for (const char c : encoded) {
    const std::size_t digit = digits.find(c);
    if (digit == std::string_view::npos) return false;
    bits = (bits << 6 | static_cast<unsigned>(digit)) & 0xffffU;
    held += 6;
    if (held < 8) continue;
    held -= 8;
    text.push_back(static_cast<char>(bits >> held & 0xffU));
  }
  const std::size_t colon = text.find(':');
  if (colon == std::string::npos) return false;
  user = text.substr(0, colon);
  password = text.substr(colon + 1);
  return true;
}

}  // namespace proxy::http
