// The Date field without a clock read per request.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <ctime>
#include <string_view>

namespace percore_http {

// "Sun, 06 Nov 1994 08:49:37 GMT": IMF-fixdate, RFC 9110 5.6.7. Always this long, for the years 0 to 9999.
inline constexpr std::size_t date_bytes = 29;
using date_text = std::array<char, date_bytes>;

inline date_text format_date(std::time_t when) noexcept {
  constexpr std::string_view days = "SunMonTueWedThuFriSat";
  constexpr std::string_view months = "JanFebMarAprMayJunJulAugSepOctNovDec";
  std::tm utc{};
  gmtime_r(&when, &utc);
  date_text text;
  std::memcpy(text.data(), "Day, 00 Mon 0000 00:00:00 GMT", date_bytes);
  const auto name = [&text](std::size_t at, std::string_view names, int index) {
    std::memcpy(text.data() + at, names.data() + 3 * static_cast<std::size_t>(index), 3);
  };
  const auto number = [&text](std::size_t at, int two_digits) {
    text[at] = static_cast<char>('0' + two_digits / 10);
    text[at + 1] = static_cast<char>('0' + two_digits % 10);
  };
  const int year = utc.tm_year + 1900;
  name(0, days, utc.tm_wday);
  number(5, utc.tm_mday);
  name(8, months, utc.tm_mon);
  number(12, year / 100 % 100);
  number(14, year % 100);
  number(17, utc.tm_hour);
  number(20, utc.tm_min);
  number(23, utc.tm_sec);
  return text;
}

// One core's wall clock, to the second. The caller hands in the monotonic time that it has anyway; the wall
// clock is read only when that says that the second known so far is over. A wall clock that is set meanwhile
// is noticed at the next such moment, after a second at most.
class second_clock {
 public:
  // Brings second() and text() up to date.
  void advance(std::chrono::steady_clock::time_point now) noexcept {
    if (now >= next_second_) [[unlikely]]
      read();
  }

  // Seconds since 1970; what second() returned once it never is again for another text().
  [[nodiscard]] std::time_t second() const noexcept { return second_; }
  [[nodiscard]] const date_text& text() const noexcept { return text_; }

 private:
  [[gnu::noinline, gnu::cold]] void read() noexcept {
    std::timespec wall{};
    clock_gettime(CLOCK_REALTIME, &wall);
    next_second_ = std::chrono::steady_clock::now() + std::chrono::nanoseconds(1'000'000'000 - wall.tv_nsec);
    if (wall.tv_sec == second_) return;
    second_ = wall.tv_sec;
    text_ = format_date(second_);
  }

  std::chrono::steady_clock::time_point next_second_{};  // the epoch: long over
  std::time_t second_ = -1;
  date_text text_{};
};

}  // namespace percore_http
