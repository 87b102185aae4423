#include "engine/sys/run_queue.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <limits>

namespace percore::sys {

constinit thread_local std::int64_t lost_time::at_ns_ = std::numeric_limits<std::int64_t>::min() / 2;
constinit thread_local std::int64_t lost_time::without_cpu_ns_ = 0;

std::int64_t time_without_cpu_ns() noexcept {
  // Opened anew: the file stays the thread's that has opened it, and the descriptor table may be one core's.
  const int fd = ::open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC);
  if (fd < 0) return 0;
  std::array<char, 128> text;
  const ssize_t size = ::read(fd, text.data(), text.size());
  (void)::close(fd);
  if (size <= 0) return 0;
  // "time on a CPU, time waiting for one, times begun"
  const char* const end = text.data() + size;
  const char* const second = std::find(static_cast<const char*>(text.data()), end, ' ');
  std::int64_t value = 0;
  if (second != end) (void)std::from_chars(second + 1, end, value);
  return value;
}

}  // namespace percore::sys
