#include "engine/loop/mailbox.hpp"

#include <doctest/doctest.h>
#include <poll.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <random>
#include <stdexcept>
#include <thread>
#include <vector>

#include "tests/support/bare_core.hpp"
#include "tests/support/clean_process.hpp"
#include "tests/support/waiting.hpp"

namespace percore::test {
namespace {

using detail::message;
using loop::mailbox;

message adds(int& sum, int value) {
  return message([&sum, value](engine::core_resources&) { sum += value; });
}

// How often the wake-up was written since it was last read.
std::uint64_t wakes(const mailbox& box) {
  std::uint64_t count = 0;
  const ssize_t got = ::read(box.wakeup_fd(), &count, sizeof count);
  return got == sizeof count ? count : 0;
}

int run_all(mailbox& box, engine::core_resources& core) {
  int count = 0;
  while (auto next = box.pop()) {
    (*next)(core);
    ++count;
  }
  return count;
}

TEST_CASE_FIXTURE(clean_process, "mailbox: messages run in the order in which they were posted") {
  bare_core core;
  mailbox box(8, loop::wakeup());
  std::vector<int> seen;
  CHECK(box.empty());
  for (int i = 0; i < 5; ++i) {
    CHECK(box.post(message([&seen, i](engine::core_resources&) { seen.push_back(i); })) ==
          post_result::posted);
  }
  CHECK_FALSE(box.empty());
  CHECK(run_all(box, *core) == 5);
  CHECK(seen == std::vector{0, 1, 2, 3, 4});
  CHECK(box.empty());
}

TEST_CASE_FIXTURE(clean_process, "mailbox: a full one answers queue_full and takes nothing") {
  bare_core core;
  mailbox box(4, loop::wakeup());
  int sum = 0;
  for (int i = 0; i < 4; ++i) CHECK(box.post(adds(sum, 1)) == post_result::posted);
  const auto value = std::make_shared<int>(0);
  message refused([value](engine::core_resources&) {});
  CHECK(box.post(std::move(refused)) == post_result::queue_full);
  CHECK(refused);  // still the caller's
  CHECK(value.use_count() == 2);
  CHECK(run_all(box, *core) == 4);
  CHECK(sum == 4);
  CHECK(box.post(std::move(refused)) == post_result::posted);
}

TEST_CASE_FIXTURE(clean_process, "mailbox: after close posts answer stopped and what was posted still runs") {
  bare_core core;
  mailbox box(4, loop::wakeup());
  int sum = 0;
  CHECK(box.post(adds(sum, 1)) == post_result::posted);
  box.close();
  CHECK(box.post(adds(sum, 10)) == post_result::stopped);
  CHECK_FALSE(box.drained());
  CHECK(run_all(box, *core) == 1);
  CHECK(box.drained());
  CHECK(sum == 1);
  CHECK(box.post(adds(sum, 10)) == post_result::stopped);
  CHECK(run_all(box, *core) == 0);
}

TEST_CASE_FIXTURE(clean_process, "mailbox: destroys the messages that nobody ran") {
  {
    mailbox box(4, loop::wakeup());
    CHECK(box.post(message([probe = alive()](engine::core_resources&) {})) == post_result::posted);
    CHECK(alive::count() == 1);
  }
  CHECK(alive::count() == 0);
}

TEST_CASE_FIXTURE(clean_process, "mailbox: signals coalesce and are taken once") {
  mailbox box(2, loop::wakeup());
  CHECK(box.take_signals() == 0);
  box.signal(1);
  box.signal(4);
  box.signal(1);
  CHECK(box.take_signals() == 5);
  CHECK(box.take_signals() == 0);
}

TEST_CASE_FIXTURE(clean_process, "mailbox: signals arrive when the ring is full or closed") {
  mailbox box(2, loop::wakeup());
  int sum = 0;
  while (box.post(adds(sum, 1)) == post_result::posted) {
  }
  box.signal(2);
  CHECK(box.take_signals() == 2);
  box.close();
  box.signal(1);
  CHECK(box.take_signals() == 1);
}

TEST_CASE_FIXTURE(clean_process, "mailbox: a core that is awake is not woken") {
  mailbox box(8, loop::wakeup());
  int sum = 0;
  CHECK(box.post(adds(sum, 1)) == post_result::posted);
  box.signal(1);
  CHECK(wakes(box) == 0);
}

TEST_CASE_FIXTURE(clean_process, "mailbox: a core that sleeps is woken by the first producer only") {
  bare_core core;
  mailbox box(8, loop::wakeup());
  int sum = 0;
  SUBCASE("by a message") {
    REQUIRE(box.prepare_to_sleep());
    CHECK(wakes(box) == 0);
    for (int i = 0; i < 3; ++i) CHECK(box.post(adds(sum, 1)) == post_result::posted);
    box.signal(1);
    CHECK(wakes(box) == 1);
    CHECK(run_all(box, *core) == 3);
    CHECK(box.take_signals() == 1);
  }
  SUBCASE("by a signal") {
    REQUIRE(box.prepare_to_sleep());
    box.signal(1);
    box.signal(2);
    CHECK(box.post(adds(sum, 1)) == post_result::posted);
    CHECK(wakes(box) == 1);
    CHECK(run_all(box, *core) == 1);
    CHECK(box.take_signals() == 3);
  }
  SUBCASE("not after it woke by itself") {
    REQUIRE(box.prepare_to_sleep());
    box.awake();
    CHECK(box.post(adds(sum, 1)) == post_result::posted);
    box.signal(1);
    CHECK(wakes(box) == 0);
  }
  SUBCASE("not by a message that is refused") {
    while (box.post(adds(sum, 1)) == post_result::posted) {
    }
    CHECK(run_all(box, *core) == 8);
    REQUIRE(box.prepare_to_sleep());
    box.close();
    CHECK(box.post(adds(sum, 1)) == post_result::stopped);
    CHECK(wakes(box) == 0);
  }
  SUBCASE("again in its next sleep") {
    for (int round = 0; round < 3; ++round) {
      REQUIRE(box.prepare_to_sleep());
      CHECK(box.post(adds(sum, 1)) == post_result::posted);
      CHECK(wakes(box) == 1);
      box.awake();
      CHECK(run_all(box, *core) == 1);
    }
  }
}

TEST_CASE_FIXTURE(clean_process, "mailbox: a core with something to do does not fall asleep") {
  bare_core core;
  mailbox box(8, loop::wakeup());
  int sum = 0;
  CHECK(box.post(adds(sum, 1)) == post_result::posted);
  CHECK_FALSE(box.prepare_to_sleep());
  CHECK(box.post(adds(sum, 1)) == post_result::posted);
  CHECK(wakes(box) == 0);  // it counts as awake again
  CHECK(run_all(box, *core) == 2);
  box.signal(1);
  CHECK_FALSE(box.prepare_to_sleep());
  CHECK(box.take_signals() == 1);
  CHECK(box.prepare_to_sleep());
}

TEST_CASE_FIXTURE(clean_process, "mailbox: drain_wakeup ends the readiness of the descriptor") {
  mailbox box(8, loop::wakeup());
  REQUIRE(box.prepare_to_sleep());
  box.signal(1);
  pollfd entry{box.wakeup_fd(), POLLIN, 0};
  CHECK(::poll(&entry, 1, 0) == 1);
  box.drain_wakeup();
  CHECK(::poll(&entry, 1, 0) == 0);
}

// --- with threads ----------------------------------------------------------------------------------------

// The consumer as a core's loop is: sleeps on the descriptor alone, without a time limit but that of a hang.
class consumer {
 public:
  consumer(mailbox& box, engine::core_resources& core) : box_(box), core_(core) {}

  // Runs messages and obeys signals until `enough` says so; false when a wake-up was lost.
  template <class Enough, class Obey>
  bool run_until(Enough enough, Obey obey) {
    while (!enough()) {
      if (box_.prepare_to_sleep()) {
        pollfd entry{box_.wakeup_fd(), POLLIN, 0};
        const auto limit = std::chrono::milliseconds(patience).count();
        if (::poll(&entry, 1, static_cast<int>(limit)) != 1) return false;
        box_.awake();
        box_.drain_wakeup();
        ++sleeps_;
      }
      if (const auto signals = box_.take_signals()) obey(signals);
      while (auto next = box_.pop()) (*next)(core_);
    }
    return true;
  }
  template <class Enough>
  bool run_until(Enough enough) {
    return run_until(enough, [](mailbox::signals) {});
  }
  [[nodiscard]] unsigned long sleeps() const { return sleeps_; }

 private:
  mailbox& box_;
  engine::core_resources& core_;
  unsigned long sleeps_ = 0;
};

TEST_CASE_FIXTURE(clean_process, "mailbox: no wake-up is lost when every producer waits for its message") {
  // Each producer posts one message and goes on when it has run. A lost wake-up leaves the consumer asleep
  // for ever, since nobody posts again.
  constexpr unsigned producers = 3;
  constexpr unsigned long rounds = sanitized ? 3'000 : 15'000;
  bare_core core;
  mailbox box(8, loop::wakeup());
  std::array<std::atomic<unsigned long>, producers> ran{};
  unsigned long total = 0;
  std::atomic<bool> failed{false};
  std::vector<std::jthread> threads;
  for (unsigned producer = 0; producer < producers; ++producer) {
    threads.emplace_back([&, producer] {
      std::mt19937 random(producer);
      for (unsigned long round = 1; round <= rounds && !failed; ++round) {
        auto& mine = ran[producer];
        const auto posted = box.post(message([&total, &mine](engine::core_resources&) {
          ++total;
          mine.fetch_add(1, std::memory_order_release);
        }));
        if (posted != post_result::posted) failed = true;
        while (mine.load(std::memory_order_acquire) != round && !failed) std::this_thread::yield();
        // Sometimes the consumer has time to fall asleep before the next one and sometimes not.
        for (unsigned spin = random() % 64; spin > 0; --spin)
          std::atomic_signal_fence(std::memory_order_seq_cst);
      }
    });
  }
  consumer sleeper(box, *core);
  const bool all = sleeper.run_until([&] { return total == producers * rounds || failed; });
  failed = !all;
  threads.clear();
  CHECK(all);
  CHECK(total == producers * rounds);
  CHECK(sleeper.sleeps() > 0);
}

TEST_CASE_FIXTURE(clean_process, "mailbox: no signal is lost") {
  constexpr unsigned long rounds = sanitized ? 3'000 : 15'000;
  bare_core core;
  mailbox box(8, loop::wakeup());
  std::atomic<unsigned long> taken{0};
  std::atomic<bool> failed{false};
  std::jthread producer([&] {
    for (unsigned long round = 1; round <= rounds && !failed; ++round) {
      box.signal(1u << round % 3);
      while (taken.load() < round && !failed) std::this_thread::yield();
    }
  });
  consumer sleeper(box, *core);
  bool right = true;
  const bool all = sleeper.run_until([&] { return taken == rounds; },
                                     [&](mailbox::signals bits) {
                                       const unsigned long round = taken + 1;
                                       right = right && bits == 1u << round % 3;
                                       taken = round;
                                     });
  failed = !all;
  CHECK(all);
  CHECK(right);
}

TEST_CASE_FIXTURE(clean_process, "mailbox: a post that meets a close either runs or answers stopped") {
  constexpr int rounds = sanitized ? 100 : 500;
  bare_core core;
  std::mt19937 random(1);
  for (int round = 0; round < rounds; ++round) {
    mailbox box(16, loop::wakeup());
    unsigned long ran = 0;
    std::atomic<unsigned long> posted{0};
    std::vector<std::jthread> threads;
    event started;
    for (int producer = 0; producer < 2; ++producer) {
      threads.emplace_back([&] {
        started.set();
        for (;;) {
          const auto result = box.post(message([&ran, probe = alive()](engine::core_resources&) { ++ran; }));
          if (result == post_result::stopped) break;
          if (result == post_result::posted) ++posted;
          if (result == post_result::queue_full) std::this_thread::yield();
        }
      });
    }
    started.wait();
    consumer sleeper(box, *core);
    const unsigned long before_close = random() % 200;
    REQUIRE(sleeper.run_until([&] { return ran >= before_close; }));
    box.close();
    while (!box.drained()) (void)run_all(box, *core);
    threads.clear();
    REQUIRE(ran == posted);
    REQUIRE(box.empty());
  }
}

struct returned : detail::completion {
  std::atomic<bool> away{false};
  std::uint64_t count = 0;
};

TEST_CASE_FIXTURE(clean_process, "mailbox: what is given back comes in order, and keeps the core from sleeping") {
  mailbox box(2, loop::wakeup());
  std::array<returned, 3> nodes;
  CHECK(box.take_completed() == nullptr);
  CHECK(box.prepare_to_sleep());
  for (auto& node : nodes) box.complete(node);
  CHECK(wakes(box) == 1);  // the first one wakes, the others need not
  CHECK_FALSE(box.prepare_to_sleep());
  detail::completion* next = box.take_completed();
  for (auto& node : nodes) {
    REQUIRE(next == &node);
    next = next->next_completed;
  }
  CHECK(next == nullptr);
  CHECK(box.take_completed() == nullptr);
  CHECK(box.prepare_to_sleep());
}

// Nodes as few as a small core's slots, given back again and again by several threads, to a core that sleeps whenever
// it may: each comes back as often as it was given.
TEST_CASE_FIXTURE(clean_process, "mailbox: ten million nodes are given back by four threads, and none is lost") {
  constexpr std::size_t threads = 4;
  constexpr std::size_t nodes_of_each = 64;
  constexpr std::uint64_t rounds = sanitized ? 1'000 : 40'000;
  mailbox box(2, loop::wakeup());
  std::array<std::array<returned, nodes_of_each>, threads> nodes;
  std::vector<std::thread> helpers;
  for (auto& mine : nodes) {
    helpers.emplace_back([&box, &mine] {
      for (std::uint64_t round = 0; round < rounds; ++round) {
        for (auto& node : mine) {
          while (node.away.load(std::memory_order_acquire)) std::this_thread::yield();
          node.away.store(true, std::memory_order_relaxed);
          box.complete(node);
        }
      }
    });
  }
  std::uint64_t total = 0;
  while (total < threads * nodes_of_each * rounds) {
    if (box.prepare_to_sleep()) {
      pollfd entry{box.wakeup_fd(), POLLIN, 0};
      if (::poll(&entry, 1, 30'000) == 0) break;  // a wake-up was lost
      box.awake();
      box.drain_wakeup();
    }
    detail::completion* next = box.take_completed();
    while (next != nullptr) {
      auto& node = static_cast<returned&>(*next);
      next = next->next_completed;
      ++node.count;
      ++total;
      node.away.store(false, std::memory_order_release);
    }
  }
  CHECK(total == threads * nodes_of_each * rounds);
  if (total != threads * nodes_of_each * rounds) std::abort();
  for (auto& helper : helpers) helper.join();
  for (const auto& mine : nodes) {
    for (const auto& node : mine) CHECK(node.count == rounds);
  }
}

}  // namespace
}  // namespace percore::test
