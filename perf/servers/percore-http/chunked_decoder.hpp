// The chunked transfer coding of request bodies, RFC 9112 7.1.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "perf/servers/percore-http/request_parser.hpp"

namespace percore_http {

// Finds the end of a chunked body whose content nobody wants, in pieces as they come. Keeps no bytes.
// Extensions and trailer fields are checked for characters that cannot be there, and skipped.
class chunked_decoder {
 public:
  // `body_bytes` bounds the data, `head_bytes` all chunk extensions and trailer fields together.
  explicit chunked_decoder(const request_limits& limits) noexcept
      : data_left_(limits.body_bytes), overhead_left_(limits.head_bytes) {}

  // Takes bytes from the front of `input` and removes them. Complete: what remains of `input` is behind the
  // body. Needs more: all was taken. Error: 400 for bad syntax, 413 for too much data, 431 for too much else.
  parse_result feed(std::string_view& input) noexcept {
    while (!input.empty()) {
      if (state_ == state::data) {
        skip_data(input);
        continue;
      }
      const char c = input.front();
      input.remove_prefix(1);
      const parse_result result = step(c);
      if (!result.needs_more()) return result;
    }
    return parse_result::need_more();
  }

 private:
  enum class state : std::uint8_t {
    size_start,  // the first digit of chunk-size
    size,        // a further digit, or what ends them
    before_semicolon,
    extension,
    size_lf,
    data,
    data_cr,
    data_lf,
    trailer_start,  // the first character of a trailer field, or the CR of the last line
    trailer_name,
    trailer_value,
    trailer_lf,
    last_lf,
  };

  static constexpr parse_result more = parse_result::need_more();
  static constexpr parse_result bad = parse_result::error(400);

  parse_result step(char c) noexcept {
    switch (state_) {
      case state::size_start:
        chunk_left_ = 0;
        return digit(c) ? add_digit(c) : bad;
      case state::size:
        if (digit(c)) return add_digit(c);
        return after_size(c);
      case state::before_semicolon:
        return detail::is_space(c) || c == ';' ? after_size(c) : bad;
      case state::extension:
        return value(c, state::size_lf);
      case state::size_lf:
        return expect(c, '\n', chunk_left_ == 0 ? state::trailer_start : state::data);
      case state::data_cr:
        return expect(c, '\r', state::data_lf);
      case state::data_lf:
        return expect(c, '\n', state::size_start);
      case state::trailer_start:
        if (c == '\r') return go_to(state::last_lf);
        return detail::is(c, detail::token_char) ? count(state::trailer_name) : bad;
      case state::trailer_name:
        if (c == ':') return count(state::trailer_value);
        return detail::is(c, detail::token_char) ? count(state::trailer_name) : bad;
      case state::trailer_value:
        return value(c, state::trailer_lf);
      case state::trailer_lf:
        return expect(c, '\n', state::trailer_start);
      case state::last_lf:
        return c == '\n' ? parse_result::complete() : bad;
      case state::data:
        break;  // skip_data() takes these
    }
    return bad;
  }

  parse_result go_to(state next) noexcept {
    state_ = next;
    return more;
  }
  parse_result expect(char c, char wanted, state next) noexcept { return c == wanted ? go_to(next) : bad; }
  // For bytes that are neither data nor needed for it.
  parse_result count(state next) noexcept {
    if (overhead_left_ == 0) return parse_result::error(431);
    --overhead_left_;
    return go_to(next);
  }
  // In a value that ends with CR.
  parse_result value(char c, state after_cr) noexcept {
    if (c == '\r') return go_to(after_cr);
    return detail::ends_value(c) ? bad : count(state_);
  }
  parse_result after_size(char c) noexcept {
    if (c == '\r') return go_to(state::size_lf);
    if (c == ';') return count(state::extension);
    return detail::is_space(c) ? count(state::before_semicolon) : bad;
  }

  static constexpr bool digit(char c) noexcept {
    return detail::is_digit(c) || (detail::lower(c) >= 'a' && detail::lower(c) <= 'f');
  }
  // Refused once it exceeds what is left of the limit, long before it could overflow. Leading zeros count as
  // overhead, or a size could go on for ever.
  parse_result add_digit(char c) noexcept {
    const auto value =
        static_cast<std::uint64_t>(detail::is_digit(c) ? c - '0' : detail::lower(c) - 'a' + 10);
    if (chunk_left_ > (data_left_ >> 4)) return parse_result::error(413);
    chunk_left_ = chunk_left_ << 4 | value;
    if (chunk_left_ > data_left_) return parse_result::error(413);
    return chunk_left_ == 0 && state_ == state::size ? count(state::size) : go_to(state::size);
  }

  void skip_data(std::string_view& input) noexcept {
    const auto take = static_cast<std::size_t>(std::min<std::uint64_t>(chunk_left_, input.size()));
    input.remove_prefix(take);
    chunk_left_ -= take;
    data_left_ -= take;
    if (chunk_left_ == 0) state_ = state::data_cr;
  }

  state state_ = state::size_start;
  std::uint64_t chunk_left_ = 0;
  std::uint64_t data_left_;
  std::size_t overhead_left_;
};

}  // namespace percore_http
