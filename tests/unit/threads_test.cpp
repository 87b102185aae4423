#include "engine/sys/threads.hpp"

#include "engine/sys/calls.hpp"
#include "engine/sys/run_queue.hpp"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <filesystem>
#include <memory>
#include <percore/placement.hpp>
#include <semaphore>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

namespace {

using percore::sys::core_thread;

constexpr std::size_t small_stack = 256 * 1024;
constexpr unsigned absent_cpu = 8000;

std::vector<unsigned> usable_cpus() {
  std::vector<unsigned> result;
  for (const auto& cpu : percore::discover_topology().cpus) {
    if (cpu.allowed) result.push_back(cpu.os_index);
  }
  return result;
}

std::vector<unsigned> affinity_of_this_thread() {
  cpu_set_t mask;
  std::vector<unsigned> result;
  if (sched_getaffinity(0, sizeof mask, &mask) != 0) return result;
  for (unsigned cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &mask)) result.push_back(cpu);
  }
  return result;
}

struct refusal {
  int error = 0;
  std::string message;
};

refusal start_refusal(const std::string& name, const std::vector<unsigned>& cpus, std::size_t stack_bytes) {
  core_thread thread;
  bool ran = false;
  refusal result;
  try {
    thread.start([&] { ran = true; }, name, cpus, stack_bytes);
  } catch (const std::system_error& failed) {
    result = {failed.code().value(), failed.what()};
  }
  if (result.error != 0) CHECK_FALSE(thread.joinable());
  thread.join();
  if (result.error != 0) CHECK_FALSE(ran);
  return result;
}

}  // namespace

TEST_CASE("threads: named and pinned before the body runs") {
  for (const unsigned cpu : usable_cpus()) {
    std::array<char, 16> name{};
    std::vector<unsigned> affinity;
    unsigned running_on = absent_cpu;
    pid_t kernel_id = 0;
    core_thread thread;
    CHECK_FALSE(thread.joinable());
    thread.start(
        [&] {
          (void)pthread_getname_np(pthread_self(), name.data(), name.size());
          affinity = affinity_of_this_thread();
          running_on = static_cast<unsigned>(sched_getcpu());
          kernel_id = gettid();
        },
        "percore-fifteen", {cpu}, small_stack);
    CHECK(thread.joinable());
    const pid_t reported = thread.kernel_id();
    thread.join();
    CHECK_FALSE(thread.joinable());
    CHECK(std::string(name.data()) == "percore-fifteen");
    CHECK(affinity == std::vector<unsigned>{cpu});
    CHECK(running_on == cpu);
    CHECK(reported == kernel_id);
    CHECK(thread.kernel_id() == 0);
    thread.join();  // nothing left to join
  }
}

TEST_CASE("threads: without CPUs, and with several") {
  const auto all = usable_cpus();
  for (const auto& asked : {std::vector<unsigned>{}, all}) {
    std::vector<unsigned> affinity;
    core_thread thread;
    thread.start([&] { affinity = affinity_of_this_thread(); }, "free", asked, small_stack);
    thread.join();
    CHECK(affinity == all);
  }
}

TEST_CASE("threads: the stack has the size asked for") {
  const auto stack_of = [](std::size_t asked) {
    std::size_t actual = 0;
    core_thread thread;
    thread.start(
        [&] {
          pthread_attr_t attributes;
          if (pthread_getattr_np(pthread_self(), &attributes) != 0) return;
          (void)pthread_attr_getstacksize(&attributes, &actual);
          (void)pthread_attr_destroy(&attributes);
        },
        "stack", {}, asked);
    thread.join();
    return actual;
  };
  CHECK(stack_of(1 << 20) == 1 << 20);
  CHECK(stack_of((1 << 20) + 1) == (1 << 20) + static_cast<std::size_t>(getpagesize()));
}

TEST_CASE("threads: only signals of the thread's own faults are open, and the starter's mask is kept") {
  sigset_t before, inside, after;
  REQUIRE(pthread_sigmask(SIG_SETMASK, nullptr, &before) == 0);
  core_thread thread;
  thread.start([&] { (void)pthread_sigmask(SIG_SETMASK, nullptr, &inside); }, "signals", {}, small_stack);
  thread.join();
  REQUIRE(pthread_sigmask(SIG_SETMASK, nullptr, &after) == 0);
  for (const int open : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP, SIGSYS}) {
    CHECK(sigismember(&inside, open) == 0);
  }
  for (const int blocked :
       {SIGINT, SIGTERM, SIGHUP, SIGPIPE, SIGUSR1, SIGCHLD, SIGALRM, SIGRTMIN, SIGRTMAX}) {
    CHECK(sigismember(&inside, blocked) == 1);
  }
  for (int signal = 1; signal <= SIGRTMAX; ++signal) {
    CHECK(sigismember(&before, signal) == sigismember(&after, signal));
  }
}

TEST_CASE("threads: failures name what failed and leave no thread") {
  const auto pin = start_refusal("core-7", {absent_cpu}, small_stack);
  CHECK(pin.error == EINVAL);
  CHECK(pin.message.find("cannot pin thread core-7 to cpu 8000") != std::string::npos);
  CHECK(start_refusal("core-7", {0xffffffffU}, small_stack).error == EINVAL);

  const auto name = start_refusal("sixteen-bytes-xx", {}, small_stack);
  CHECK(name.error == EINVAL);
  CHECK(name.message.find("sixteen-bytes-xx") != std::string::npos);
  CHECK(start_refusal(std::string("a\0b", 3), {}, small_stack).error == EINVAL);

  const auto stack = start_refusal("deep", {}, static_cast<std::size_t>(-1));
  CHECK(stack.error == EINVAL);
  CHECK(stack.message.find("deep") != std::string::npos);
  CHECK(stack.message.find("stack") != std::string::npos);
}

TEST_CASE("threads: one object, one thread") {
  std::binary_semaphore go(0);
  core_thread thread;
  thread.start([&] { go.acquire(); }, "first", {}, small_stack);
  CHECK_THROWS_AS(thread.start([] {}, "second", {}, small_stack), std::system_error);
  CHECK(thread.joinable());
  go.release();
  thread.join();
  bool ran = false;
  thread.start([&] { ran = true; }, "third", {}, small_stack);
  thread.join();
  CHECK(ran);
}

TEST_CASE("threads: joining oneself is refused") {
  std::binary_semaphore go(0);
  int error = 0;
  core_thread thread;
  thread.start(
      [&] {
        go.acquire();
        try {
          thread.join();
        } catch (const std::system_error& refused) {
          error = refused.code().value();
        }
      },
      "self", {}, small_stack);
  go.release();
  thread.join();
  CHECK(error == EDEADLK);
}

TEST_CASE("threads: moves, and the destructor joins") {
  int finished = 0;  // written by one thread at a time, each joined before the next
  {
    core_thread first;
    first.start([&] { ++finished; }, "a", {}, small_stack);
    core_thread second(std::move(first));
    CHECK_FALSE(first.joinable());
    CHECK(second.joinable());
    second = core_thread();
    CHECK_FALSE(second.joinable());
    CHECK(finished == 1);
    second.start([&] { ++finished; }, "b", {}, small_stack);
    std::vector<core_thread> many;
    many.push_back(std::move(second));
  }
  CHECK(finished == 2);
}

TEST_CASE("threads: what the body owns is gone after join") {
  const auto owned = std::make_shared<int>(1);
  for (int round = 0; round < 200; ++round) {
    core_thread thread;
    thread.start([owned] { CHECK_FALSE(owned.use_count() == 0); }, "owner", {}, small_stack);
    thread.join();
    CHECK(owned.use_count() == 1);
  }
}

TEST_CASE("threads: time without a CPU is told, and not held against who measures itself") {
  const unsigned cpu = usable_cpus().front();
  std::atomic<bool> stop = false;
  core_thread other, measured;
  other.start([&] { while (!stop) {} }, "other", {cpu}, small_stack);
  bool lost_some = false, discounted = false;
  std::int64_t longest_unasked = 0;
  measured.start(
      [&] {
        const std::int64_t before = percore::sys::time_without_cpu_ns();
        if (before == 0 && !std::filesystem::exists("/proc/thread-self/schedstat")) {
          lost_some = discounted = true;  // this kernel does not count
          return;
        }
        while (!discounted) {
          const std::int64_t begun = percore::sys::monotonic_ns();
          percore::sys::lost_time::prepare(begun);
          std::int64_t now = begun;
          while (now - begun < 20'000'000) now = percore::sys::monotonic_ns();
          lost_some = percore::sys::time_without_cpu_ns() > before;
          discounted = percore::sys::lost_time::without(now - begun, now) < 18'000'000;
        }
        // Without a descriptor to ask with, nothing is added to what it took.
        std::vector<int> filler;
        for (int fd = 0; (fd = ::open("/dev/null", O_RDONLY | O_CLOEXEC)) >= 0;) filler.push_back(fd);
        const std::int64_t now = percore::sys::monotonic_ns();
        percore::sys::lost_time::prepare(now);
        longest_unasked = percore::sys::lost_time::without(1'000'000, now + 1'000'000);
        for (const int fd : filler) ::close(fd);
      },
      "measured", {cpu}, small_stack);
  measured.join();
  stop = true;
  other.join();
  CHECK(lost_some);
  CHECK(discounted);
  CHECK(longest_unasked <= 1'000'000);
}
