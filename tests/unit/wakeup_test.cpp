#include "engine/loop/wakeup.hpp"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <poll.h>

#include <thread>

#include "tests/support/clean_process.hpp"
#include "tests/support/waiting.hpp"

namespace percore::test {
namespace {

bool readable(int fd, int timeout_ms = 0) {
  pollfd entry{fd, POLLIN, 0};
  return ::poll(&entry, 1, timeout_ms) == 1;
}

TEST_CASE_FIXTURE(clean_process, "wakeup: readable from wake until drain") {
  loop::wakeup bell;
  CHECK_FALSE(readable(bell.fd()));
  bell.wake();
  CHECK(readable(bell.fd()));
  CHECK(readable(bell.fd()));  // looking does not drain
  bell.drain();
  CHECK_FALSE(readable(bell.fd()));
}

TEST_CASE_FIXTURE(clean_process,
                  "wakeup: one drain takes any number of wakes and an idle one does not block") {
  loop::wakeup bell;
  bell.drain();
  for (int i = 0; i < 100; ++i) bell.wake();
  bell.drain();
  CHECK_FALSE(readable(bell.fd()));
  bell.drain();
  bell.wake();
  CHECK(readable(bell.fd()));
}

TEST_CASE_FIXTURE(clean_process, "wakeup: wakes a thread that waits") {
  loop::wakeup bell;
  event waiting;
  bool woken = false;
  {
    std::jthread sleeper([&] {
      waiting.set();
      woken = readable(bell.fd(), static_cast<int>(std::chrono::milliseconds(patience).count()));
    });
    waiting.wait();
    bell.wake();
  }
  CHECK(woken);
}

TEST_CASE_FIXTURE(clean_process, "wakeup: the descriptor does not survive an exec") {
  loop::wakeup bell;
  CHECK((::fcntl(bell.fd(), F_GETFD) & FD_CLOEXEC) != 0);
}

}  // namespace
}  // namespace percore::test
