#include "tests/support/child_process.hpp"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <exception>
#include <stdexcept>
#include <system_error>
#include <utility>

#include "tests/support/waiting.hpp"

namespace percore::test {
namespace {

[[noreturn]] void fail(const char* what) { throw std::system_error(errno, std::system_category(), what); }

}  // namespace

void child_process::parent::tell(const std::string& line) const {
  const std::string text = line + '\n';
  if (::write(to_, text.data(), text.size()) != static_cast<ssize_t>(text.size())) fail("write to a pipe");
}

std::string child_process::parent::hear() const {
  std::string line;
  for (;;) {
    pollfd ready{from_, POLLIN, 0};
    const int limit = 2 * static_cast<int>(std::chrono::milliseconds(patience).count());
    if (::poll(&ready, 1, limit) == 0) throw waited_too_long("the other process said nothing");
    char next = 0;
    if (::read(from_, &next, 1) != 1 || next == '\n') return line;
    line += next;
  }
}

child_process::child_process(const std::function<void(const parent&)>& body) {
  int down[2];
  int up[2];
  if (::pipe(down) != 0 || ::pipe(up) != 0) fail("pipe");
  const pid_t original = ::getpid();
  pid_ = ::fork();
  if (pid_ < 0) fail("fork");
  if (pid_ == 0) {
    // Ends with its parent, also when a test is killed for its time.
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (::getppid() != original) ::_exit(3);
    for (const int number : {SIGINT, SIGTERM, SIGPIPE}) ::signal(number, number == SIGPIPE ? SIG_IGN : SIG_DFL);
    ::close(down[1]);
    ::close(up[0]);
    int status = 0;
    try {
      body(parent(down[0], up[1]));
    } catch (const std::exception& failure) {
      ::dprintf(2, "child process: %s\n", failure.what());
      status = 2;
    }
    ::_exit(status);  // no destructors of the parent's objects
  }
  ::close(down[0]);
  ::close(up[1]);
  from_ = up[0];
  to_ = down[1];
}

child_process::~child_process() {
  kill();
  ::close(from_);
  ::close(to_);
}

int child_process::wait() {
  if (pid_ < 0) return 0;
  int status = 0;
  const bool ended = eventually([&] { return ::waitpid(pid_, &status, WNOHANG) == pid_; }, 2 * patience);
  if (!ended) throw waited_too_long("a child process did not end");
  pid_ = -1;
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

void child_process::kill() noexcept {
  if (pid_ < 0) return;
  ::kill(pid_, SIGKILL);
  ::waitpid(std::exchange(pid_, -1), nullptr, 0);
}

double child_process::cpu_seconds() const {
  clockid_t clock = 0;
  timespec used{};
  if (::clock_getcpuclockid(pid_, &clock) != 0 || ::clock_gettime(clock, &used) != 0) fail("clock of a process");
  return static_cast<double>(used.tv_sec) + static_cast<double>(used.tv_nsec) * 1e-9;
}

bool ends_by_assertion(const std::function<void()>& body) {
  child_process child([&](const child_process::parent&) {
    const rlimit no_dump{0, 0};
    ::setrlimit(RLIMIT_CORE, &no_dump);
    ::signal(SIGABRT, SIG_DFL);  // instead of the test framework's
    ::close(STDERR_FILENO);
    body();
  });
  return child.wait() == 128 + SIGABRT;
}

std::size_t raise_descriptor_limit(std::size_t wanted) {
  rlimit limit{};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  if (limit.rlim_cur < wanted) {
    limit.rlim_cur = std::min<rlim_t>(wanted, limit.rlim_max);
    ::setrlimit(RLIMIT_NOFILE, &limit);
  }
  return limit.rlim_cur;
}

void lower_descriptor_limit(std::size_t limit) {
  const rlimit both{limit, limit};
  if (::setrlimit(RLIMIT_NOFILE, &both) != 0) fail("setrlimit");
}

}  // namespace percore::test
