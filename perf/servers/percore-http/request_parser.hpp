// HTTP/1.1 request heads: pure functions over a contiguous view of bytes.
//
// Follows RFC 9112 (syntax and framing) and RFC 9110 (fields). Where these leave a server the choice, this
// one is strict, because leniency about line ends and framing is what request smuggling lives on: a line ends
// with CRLF and nothing else, a folded line is refused, a second Content-Length is refused even when it says
// the same.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string_view>

namespace percore_http {

struct request_limits {
  std::size_t head_bytes = 8 * 1024;       // request line, fields and the empty line; over it 414 or 431
  std::uint64_t body_bytes = 1024 * 1024;  // Content-Length over it: 413
};

// What the parser found. The views point into its input. All of it is valid when parsing is complete; after
// an error `is_head` still tells whether the response may have a body.
struct request {
  std::size_t head_bytes = 0;        // up to and with the empty line; the body or the next request follows
  std::uint64_t content_length = 0;  // 0 also without the field
  std::string_view method;
  std::string_view target;
  bool is_head = false;          // the method is HEAD: the response has no body
  bool is_http_1_1 = false;      // 1.1 or a later 1.x; false: 1.0
  bool keep_alive = false;       // the client wants to go on with this connection
  bool chunked = false;          // the body is in chunked coding
  bool expect_continue = false;  // the client waits for a 100 before it sends the body
};

class parse_result {
 public:
  static constexpr parse_result need_more() noexcept { return parse_result(0); }
  static constexpr parse_result complete() noexcept { return parse_result(200); }
  static constexpr parse_result error(std::uint16_t status) noexcept { return parse_result(status); }

  [[nodiscard]] constexpr bool needs_more() const noexcept { return code_ == 0; }
  [[nodiscard]] constexpr bool is_complete() const noexcept { return code_ == 200; }
  [[nodiscard]] constexpr bool is_error() const noexcept { return code_ >= 400; }
  // Of the response to send: 400, 413, 414, 417, 431, 501 or 505.
  [[nodiscard]] constexpr std::uint16_t error_status() const noexcept { return code_; }

  friend constexpr bool operator==(parse_result, parse_result) noexcept = default;

 private:
  explicit constexpr parse_result(std::uint16_t code) noexcept : code_(code) {}
  std::uint16_t code_;
};

// Reads the head of the request at the start of `input`. An error is told as soon as the bytes show it, so
// the answer for an incomplete head that begins wrongly is already that error. Looks at nothing behind the
// head.
parse_result parse_request(std::string_view input, const request_limits& limits, request& out) noexcept;

namespace detail {

// --- character classes
// ---------------------------------------------------------------------------------------

enum : std::uint8_t { token_char = 1, target_char = 2, host_char = 4 };

constexpr std::array<std::uint8_t, 256> make_classes() noexcept {
  std::array<std::uint8_t, 256> table{};
  const auto add = [&table](std::string_view chars, std::uint8_t what) {
    for (const char c : chars) table[static_cast<unsigned char>(c)] |= what;
  };
  constexpr std::string_view alphanumeric = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
  add(alphanumeric, token_char | host_char);
  add("!#$%&'*+-.^_`|~", token_char);     // RFC 9110 5.6.2
  add("-._~!$&'()*+,;=%:[]", host_char);  // RFC 3986 3.2.2 and the port's colon
  // Every visible character but '#', which never belongs into a request. RFC 3986 allows fewer; clients send
  // more.
  for (unsigned c = 0x21; c < 0x7f; ++c) table[c] |= target_char;
  table['#'] &= static_cast<std::uint8_t>(~target_char);
  return table;
}
inline constexpr std::array<std::uint8_t, 256> classes = make_classes();

constexpr bool is(char c, std::uint8_t what) noexcept {
  return (classes[static_cast<unsigned char>(c)] & what) != 0;
}
constexpr bool is_space(char c) noexcept {
  return c == ' ' || c == '\t';
}
constexpr bool is_digit(char c) noexcept {
  return c >= '0' && c <= '9';
}
// No field value holds one (RFC 9110 5.5): control characters but the tab.
constexpr bool ends_value(char c) noexcept {
  const auto u = static_cast<unsigned char>(c);
  return (u < 0x20 && u != '\t') || u == 0x7f;
}
constexpr char lower(char c) noexcept {
  return c >= 'A' && c <= 'Z' ? static_cast<char>(c | 0x20) : c;
}

// `lower_case` is in lower case already.
constexpr bool equals_ignoring_case(std::string_view text, std::string_view lower_case) noexcept {
  if (text.size() != lower_case.size()) return false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (lower(text[i]) != lower_case[i]) return false;
  }
  return true;
}

constexpr std::string_view trim(std::string_view text) noexcept {
  while (!text.empty() && is_space(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_space(text.back())) text.remove_suffix(1);
  return text;
}

// The first byte that cannot be in a field value, or `end`. Eight bytes at a time: (v - 0x20..) & ~v has the
// top bit of the lowest byte below 0x20 set, and of no byte below that one; the same with v ^ 0x7f for a DEL.
inline const char* find_value_end(const char* p, const char* end) noexcept {
  constexpr std::uint64_t ones = 0x0101010101010101U;
  if constexpr (std::endian::native == std::endian::little) {
    while (end - p >= 8) {
      std::uint64_t v;
      std::memcpy(&v, p, 8);
      const std::uint64_t del = v ^ (ones * 0x7f);
      const std::uint64_t hits = (((v - ones * 0x20) & ~v) | ((del - ones) & ~del)) & (ones * 0x80);
      if (hits == 0) {
        p += 8;
        continue;
      }
      p += std::countr_zero(hits) / 8;
      if (*p != '\t') return p;
      ++p;
    }
  }
  while (p != end && !ends_value(*p)) ++p;
  return p;
}

// The first byte that is not of the class, or `end`. Takes copies of the pointers, which then stay in
// registers.
inline const char* skip(const char* p, const char* end, std::uint8_t what) noexcept {
  while (p != end && is(*p, what)) ++p;
  return p;
}

// Calls f(element) for each element of a comma-separated list, without the white space around it; empty ones
// are skipped (RFC 9110 5.6.1.2).
template <class F>
constexpr void for_each_element(std::string_view list, F&& f) {
  while (true) {
    const std::size_t comma = list.find(',');
    const std::string_view element = trim(list.substr(0, comma));
    if (!element.empty()) f(element);
    if (comma == std::string_view::npos) return;
    list.remove_prefix(comma + 1);
  }
}

// --- the parser
// ----------------------------------------------------------------------------------------------

// One pass over one input. Steps return `go_on` or the result to give back.
class head_parser {
 public:
  head_parser(std::string_view input, request& out) noexcept
      : begin_(input.data()), p_(input.data()), end_(input.data() + input.size()), out_(out) {}

  parse_result run(const request_limits& limits) noexcept {
    out_ = request{};
    parse_result result = request_line();
    if (!result.is_complete()) return result;
    in_fields_ = true;
    while (true) {
      if (p_ == end_) return parse_result::need_more();
      if (*p_ == '\r') break;
      result = field();
      if (!result.is_complete()) return result;
    }
    result = line_end();
    if (!result.is_complete()) return result;
    out_.head_bytes = static_cast<std::size_t>(p_ - begin_);
    return check(limits);
  }

  // Whether the request line was whole when the input ended.
  [[nodiscard]] bool in_fields() const noexcept { return in_fields_; }

 private:
  static constexpr parse_result go_on = parse_result::complete();
  static constexpr parse_result bad = parse_result::error(400);
  static constexpr std::size_t longest_method = 32;  // none that is registered has more than 17 characters

  parse_result line_end() noexcept {
    if (*p_ != '\r') return bad;
    if (end_ - p_ < 2) return parse_result::need_more();
    if (p_[1] != '\n') return bad;
    p_ += 2;
    return go_on;
  }

  // method SP request-target SP HTTP-version CRLF, RFC 9112 3; empty lines before it are skipped, 2.2.
  parse_result request_line() noexcept {
    while (p_ != end_ && *p_ == '\r') {
      const parse_result empty = line_end();
      if (!empty.is_complete()) return empty;
    }
    const char* start = p_;
    p_ = skip(p_, end_, token_char);
    const auto method_bytes = static_cast<std::size_t>(p_ - start);
    if (method_bytes > longest_method) return parse_result::error(501);
    if (p_ == end_) return parse_result::need_more();
    if (*p_ != ' ' || method_bytes == 0) return bad;
    out_.method = {start, method_bytes};
    out_.is_head = out_.method == "HEAD";
    ++p_;

    start = p_;
    p_ = skip(p_, end_, target_char);
    if (p_ == end_) return parse_result::need_more();
    if (*p_ != ' ') return bad;
    out_.target = {start, static_cast<std::size_t>(p_ - start)};
    if (!target_is_valid()) return bad;
    ++p_;
    return version();
  }

  // origin-form, absolute-form, or "*" with OPTIONS, RFC 9112 3.2. CONNECT's authority-form is for proxies.
  [[nodiscard]] bool target_is_valid() const noexcept {
    const std::string_view target = out_.target;
    if (target.empty()) return false;
    if (target.front() == '/') [[likely]]
      return true;
    if (target == "*") return out_.method == "OPTIONS";
    if (out_.method == "CONNECT") return true;
    return (target.size() > 7 && equals_ignoring_case(target.substr(0, 7), "http://")) ||
           (target.size() > 8 && equals_ignoring_case(target.substr(0, 8), "https://"));
  }

  // "HTTP/" DIGIT "." DIGIT CRLF, RFC 9112 2.3. Minor versions that we do not know count as 1.1 (RFC
  // 9110 2.5).
  parse_result version() noexcept {
    constexpr std::string_view shape = "HTTP/0.0";
    const auto have = static_cast<std::size_t>(end_ - p_);
    if (have >= 10 && std::memcmp(p_, "HTTP/1.1\r\n", 10) == 0) [[likely]] {
      out_.is_http_1_1 = out_.keep_alive = true;
      p_ += 10;
      return go_on;
    }
    for (std::size_t i = 0; i < shape.size(); ++i) {
      if (i == have) return parse_result::need_more();
      if (shape[i] == '0' ? !is_digit(p_[i]) : p_[i] != shape[i]) return bad;
    }
    if (p_[5] != '1') return parse_result::error(505);
    out_.is_http_1_1 = out_.keep_alive = p_[7] != '0';
    p_ += shape.size();
    if (p_ == end_) return parse_result::need_more();
    return line_end();
  }

  // field-name ":" OWS field-value OWS CRLF, RFC 9112 5. A folded line begins with white space, which is no
  // name.
  parse_result field() noexcept {
    const char* start = p_;
    p_ = skip(p_, end_, token_char);
    if (p_ == end_) return parse_result::need_more();
    if (*p_ != ':' || p_ == start) return bad;
    const std::string_view name(start, static_cast<std::size_t>(p_ - start));
    ++p_;

    start = p_;
    p_ = find_value_end(p_, end_);
    if (p_ == end_) return parse_result::need_more();
    const std::string_view value(start, static_cast<std::size_t>(p_ - start));
    const parse_result end = line_end();
    if (!end.is_complete()) return end;
    return interpret(name, value);
  }

  // The fields that say where the message ends and what becomes of the connection.
  parse_result interpret(std::string_view name, std::string_view value) noexcept {
    switch (name.size()) {
      case 4:
        return equals_ignoring_case(name, "host") ? host(trim(value)) : go_on;
      case 6:
        if (equals_ignoring_case(name, "expect")) expect(trim(value));
        return go_on;
      case 10:
        if (equals_ignoring_case(name, "connection")) connection(value);
        return go_on;
      case 14:
        return equals_ignoring_case(name, "content-length") ? content_length(trim(value)) : go_on;
      case 17:
        if (equals_ignoring_case(name, "transfer-encoding")) transfer_encoding(value);
        return go_on;
      default:
        return go_on;
    }
  }

  // One only, and no character that a host cannot have; it may be empty (RFC 9112 3.2).
  parse_result host(std::string_view value) noexcept {
    if (has_host_) return bad;
    has_host_ = true;
    const char* end = value.data() + value.size();
    return skip(value.data(), end, host_char) == end ? go_on : bad;
  }

  void expect(std::string_view value) noexcept {
    if (equals_ignoring_case(value, "100-continue")) {
      out_.expect_continue = true;
    } else {
      unknown_expectation_ = true;
    }
  }

  void connection(std::string_view value) noexcept {
    for_each_element(value, [this](std::string_view option) {
      if (equals_ignoring_case(option, "close")) close_ = true;
      if (equals_ignoring_case(option, "keep-alive")) keep_alive_ = true;
    });
  }

  // 1*DIGIT, RFC 9110 8.6. A length that does not fit 64 bits is larger than any limit.
  parse_result content_length(std::string_view value) noexcept {
    constexpr std::uint64_t largest = std::numeric_limits<std::uint64_t>::max();
    if (has_content_length_ || value.empty()) return bad;
    has_content_length_ = true;
    std::uint64_t length = 0;
    for (const char c : value) {
      if (!is_digit(c)) return bad;
      const auto digit = static_cast<std::uint64_t>(c - '0');
      length = length > (largest - digit) / 10 ? largest : length * 10 + digit;
    }
    out_.content_length = length;
    return go_on;
  }

  void transfer_encoding(std::string_view value) noexcept {
    has_transfer_encoding_ = true;
    for_each_element(value, [this](std::string_view coding) {
      chunked_twice_ = chunked_twice_ || out_.chunked;  // anything after chunked: it is not the last coding
      out_.chunked = equals_ignoring_case(coding, "chunked");
      other_coding_ = other_coding_ || !out_.chunked;
    });
  }

  // What only the whole head can tell.
  parse_result check(const request_limits& limits) noexcept {
    if (!has_host_ && out_.is_http_1_1) return bad;
    if (has_transfer_encoding_) {
      // RFC 9112 6.1 and 6.3: an HTTP/1.0 client does not know the field, with Content-Length it is an
      // attack, and without chunked as the last coding, applied once, nobody knows where the body ends.
      if (!out_.is_http_1_1 || has_content_length_ || !out_.chunked || chunked_twice_) return bad;
      if (other_coding_) return parse_result::error(501);
    }
    if (out_.content_length > limits.body_bytes) return parse_result::error(413);
    if (!out_.is_http_1_1) {
      out_.keep_alive = keep_alive_;
      out_.expect_continue = unknown_expectation_ = false;  // RFC 9110 10.1.1
    }
    if (close_) out_.keep_alive = false;
    if (unknown_expectation_) return parse_result::error(417);
    return parse_result::complete();
  }

  const char* begin_;
  const char* p_;
  const char* end_;
  request& out_;
  bool in_fields_ = false;
  bool has_host_ = false;
  bool has_content_length_ = false;
  bool has_transfer_encoding_ = false;
  bool other_coding_ = false;
  bool chunked_twice_ = false;
  bool unknown_expectation_ = false;
  bool close_ = false;       // Connection: close
  bool keep_alive_ = false;  // Connection: keep-alive
};

}  // namespace detail

inline parse_result parse_request(std::string_view input, const request_limits& limits,
                                  request& out) noexcept {
  detail::head_parser parser(input.substr(0, limits.head_bytes), out);
  const parse_result result = parser.run(limits);
  if (result.needs_more() && input.size() >= limits.head_bytes) {
    return parse_result::error(parser.in_fields() ? 431 : 414);
  }
  return result;
}

}  // namespace percore_http
