#include "parsers.hpp"

#include <algorithm>
#include <charconv>

namespace proxy::http {

namespace {

// The value of a hexadecimal digit; 16 for anything else.
unsigned value_of(char c) {
  if (c >= '0' && c <= '9') return static_cast<unsigned>(c - '0');
  if (c >= 'a' && c <= 'f') return static_cast<unsigned>(c - 'a') + 10;
  return c >= 'A' && c <= 'F' ? static_cast<unsigned>(c - 'A') + 10 : 16;
}

// What a field or an extension cannot hold (RFC 9110 5.5): control characters but the tabulator.
bool is_control(char c) {
  return (static_cast<unsigned char>(c) < ' ' && c != '\t') || c == 0x7f;
}

}  // namespace

outcome chunked_body::take(std::string_view& input, std::string& data) {
  while (!input.empty() && !done_) {
    if (state_ == state::data) {
      const auto size = static_cast<std::size_t>(std::min<std::uint64_t>(left_, input.size()));
      data.append(input.substr(0, size));
      input.remove_prefix(size);
      left_ -= size;
      if (left_ == 0) state_ = state::data_cr;
      continue;
    }
    if (!step(input.front())) return outcome::wrong;
    input.remove_prefix(1);
  }
  return done_ ? outcome::done : outcome::more;
}

bool chunked_body::step(char c) {
  const auto expect = [&](char wanted, state next) {
    state_ = next;
    return c == wanted;
  };
  switch (state_) {
    case state::size_start:
      left_ = 0;
      digits_ = 0;
      state_ = state::size;
      return add_digit(value_of(c));
    case state::size:
      if (c == '\r') return expect('\r', state::size_end);
      if (c == ';') return count(state::extension);
      return add_digit(value_of(c));
    case state::extension:
      if (c == '\r') return expect('\r', state::size_end);
      return !is_control(c) && count(state::extension);
    case state::size_end:
      return expect('\n', left_ == 0 ? state::line_start : state::data);
    case state::data_cr:
      return expect('\r', state::data_lf);
    case state::data_lf:
      return expect('\n', state::size_start);
    case state::line_start:
      if (c == '\r') return expect('\r', state::last);
      named_ = false;
      return c != ':' && c != ' ' && c != '\t' && !is_control(c) &&
             count(state::line);  // no empty name, no folded line
    case state::line:
      if (c == '\r') return named_ && expect('\r', state::line_end);
      named_ = named_ || c == ':';
      return !is_control(c) && count(state::line);
    case state::line_end:
      return expect('\n', state::line_start);
    case state::last:
      done_ = true;
      return c == '\n';
    case state::data:
      break;  // take() sees to it
  }
  return false;
}

// 16 digits are all that fit, and more would be a way to send bytes for ever that are none.
bool chunked_body::add_digit(unsigned value) {
  if (value == 16 || ++digits_ > 16) return false;
  left_ = left_ << 4 | value;
  return digits_ <= 8 || count(state_);
}

bool chunked_body::count(state next) {
  state_ = next;
  return overhead_left_-- > 0;
}

void add_chunk(std::string_view data, std::string& to) {
  char digits[16];
  const auto [end, error] = std::to_chars(digits, digits + sizeof digits, data.size(), 16);
  (void)error;
  to.append(digits, end).append("\r\n").append(data).append("\r\n");
}

}  // namespace proxy::http
