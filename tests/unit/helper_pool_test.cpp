#include "engine/helpers/pool.hpp"

#include <doctest/doctest.h>

#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "engine/sys/calls.hpp"
#include "tests/support/bare_core.hpp"
#include "tests/support/clean_process.hpp"
#include "tests/support/waiting.hpp"

#ifdef PERCORE_FAULTS
#include "tests/fault/injection.hpp"
#endif

namespace percore::test {
namespace {

using helpers::pool;
using submission = pool::submission;

// Counts how often it ran, and waits for a gate before it is done when it is given one.
struct counted_job : detail::job {
  counted_job() {
    work = [](detail::job& base, helpers::helper&) noexcept {
      auto& self = static_cast<counted_job&>(base);
      if (self.gate != nullptr) {
        self.entered->set();
        self.gate->wait();
      }
      self.runs.fetch_add(1);
    };
    deliver = [](detail::completion& done, engine::core_resources&) {
      ++static_cast<counted_job&>(done).deliveries;
    };
  }
  event* gate = nullptr;
  event* entered = nullptr;
  std::atomic<int> runs{0};
  int deliveries = 0;
};

helpers::pool_settings settings_of(unsigned most, std::size_t queue = 64) {
  helpers::pool_settings result;
  result.name = "test/0";
  result.most = most;
  result.queue = queue;
  return result;
}

// The core's side: its thread is the test's.
class pool_owner {
 public:
  explicit pool_owner(helpers::pool_settings settings)
      : box_(std::make_shared<loop::mailbox>(8, loop::wakeup())),
        wheel_(loop::timer_wheel::tick_of(sys::monotonic_ns())),
        pool_(std::make_shared<pool>(std::move(settings), box_, wheel_)) {
    pool_->start(now());
  }
  ~pool_owner() {
    if (!abandoned_) (void)pool_->end(now() + 30'000'000'000);
  }

  static std::int64_t now() { return sys::monotonic_ns(); }
  pool* operator->() { return pool_.get(); }
  // Whether a helper slept is not what these tests are about.
  submission submit(counted_job& job) {
    const submission result = pool_->submit(job, now());
    return result == submission::handed ? submission::queued : result;
  }
  // One turn: how many jobs came back.
  std::size_t turn() {
    return turn([](detail::completion& done) { ++static_cast<counted_job&>(done).deliveries; });
  }
  template <class Deliver>
  std::size_t turn(Deliver deliver) {
    std::size_t count = 0;
    for (detail::completion* next = box_->take_completed(); next != nullptr; ++count) {
      detail::completion& done = *next;
      next = done.next_completed;
      deliver(done);
      pool_->delivered(now());
    }
    if (pool_->growing()) pool_->grow(now());
    wheel_.advance(loop::timer_wheel::tick_of(now()));
    return count;
  }
  void wait_for(std::size_t deliveries) {
    REQUIRE(eventually([&] {
      deliveries -= turn();
      return deliveries == 0;
    }));
  }
  std::shared_ptr<pool>& shared() { return pool_; }
  void abandon(std::shared_ptr<void> memory) {
    abandoned_ = true;
    pool_->abandon(std::move(memory));
  }

 private:
  std::shared_ptr<loop::mailbox> box_;
  loop::timer_wheel wheel_;
  std::shared_ptr<pool> pool_;
  bool abandoned_ = false;
};

TEST_CASE_FIXTURE(clean_process, "helper pool: runs a job on another thread and gives it back") {
  pool_owner owner(settings_of(4));
  CHECK(owner->stats().alive == 0);
  counted_job job;
  CHECK(owner.submit(job) == submission::queued);
  CHECK(owner->outstanding() == 1);
  owner.wait_for(1);
  CHECK(owner->outstanding() == 0);
  CHECK(job.runs == 1);
  CHECK(job.deliveries == 1);
  const helper_stats stats = owner->stats();
  CHECK(stats.alive == 1);
  CHECK(stats.spawned == 1);
  CHECK(stats.submitted == 1);
  CHECK(stats.wait.total() == 1);
  CHECK(stats.run.total() == 1);
}

TEST_CASE_FIXTURE(clean_process, "helper pool: grows with the backlog up to its cap, and no further") {
  pool_owner owner(settings_of(3));
  event gate;
  event entered;
  std::vector<counted_job> jobs(10);
  for (auto& job : jobs) {
    job.gate = &gate;
    job.entered = &entered;
    CHECK(owner.submit(job) == submission::queued);
  }
  entered.wait(3);
  (void)owner.turn();
  CHECK(owner->stats().alive == 3);
  CHECK(owner->stats().queued == 7);
  gate.set();
  owner.wait_for(10);
  for (auto& job : jobs) CHECK(job.runs == 1);
  CHECK(owner->stats().most_alive == 3);
}

TEST_CASE_FIXTURE(clean_process, "helper pool: many helpers are started over several turns") {
  pool_owner owner(settings_of(100));
  event gate;
  event entered;
  std::vector<counted_job> jobs(64);  // as many as the queue holds
  for (auto& job : jobs) {
    job.gate = &gate;
    job.entered = &entered;
    CHECK(owner.submit(job) == submission::queued);
  }
  CHECK(eventually([&] {
    (void)owner.turn();
    return entered.count() == 64;
  }));
  CHECK(owner->stats().alive == 64);
  gate.set();
  owner.wait_for(64);
}

TEST_CASE_FIXTURE(clean_process, "helper pool: the cap of the server counts too") {
  helpers::shared_cap cap;
  cap.most = 2;
  helpers::pool_settings settings = settings_of(8);
  settings.cap = &cap;
  {
    pool_owner one(settings);
    pool_owner other(settings);
    event gate;
    event entered;
    std::vector<counted_job> jobs(4);
    for (std::size_t i = 0; i < jobs.size(); ++i) {
      jobs[i].gate = &gate;
      jobs[i].entered = &entered;
      CHECK((i % 2 == 0 ? one : other).submit(jobs[i]) == submission::queued);
    }
    entered.wait(2);
    CHECK(one->stats().alive + other->stats().alive == 2);
    gate.set();
    // A core that has none gets one when another's retires; here each has one.
    one.wait_for(2);
    other.wait_for(2);
  }
  CHECK(cap.alive == 0);
}

TEST_CASE_FIXTURE(clean_process, "helper pool: a full queue lets jobs wait in order, or refuses them") {
  helpers::pool_settings settings = settings_of(1, 2);
  SUBCASE("wait") {
    pool_owner owner(settings);
    event gate;
    event entered;
    counted_job first;
    first.gate = &gate;
    first.entered = &entered;
    CHECK(owner.submit(first) == submission::queued);
    entered.wait();
    std::vector<counted_job> jobs(20);
    for (std::size_t i = 0; i < jobs.size(); ++i) {
      CHECK(owner.submit(jobs[i]) == (i < 2 ? submission::queued : submission::waiting));
    }
    CHECK(owner->stats().full == 18);
    gate.set();
    owner.wait_for(21);
    for (auto& job : jobs) CHECK(job.runs == 1);
  }
  SUBCASE("refuse") {
    settings.wait_when_full = false;
    pool_owner owner(settings);
    event gate;
    event entered;
    counted_job first;
    first.gate = &gate;
    first.entered = &entered;
    CHECK(owner.submit(first) == submission::queued);
    entered.wait();
    std::vector<counted_job> jobs(3);
    CHECK(owner.submit(jobs[0]) == submission::queued);
    CHECK(owner.submit(jobs[1]) == submission::queued);
    CHECK(owner.submit(jobs[2]) == submission::refused);
    CHECK(owner->outstanding() == 3);
    gate.set();
    owner.wait_for(3);
    CHECK(jobs[2].runs == 0);
  }
}

TEST_CASE_FIXTURE(clean_process,
                  "helper pool: a job that waits in the queue can be withdrawn, one that runs cannot") {
  pool_owner owner(settings_of(1, 2));
  event gate;
  event entered;
  std::vector<counted_job> jobs(4);
  for (auto& job : jobs) {
    job.gate = &gate;
    job.entered = &entered;
  }
  CHECK(owner.submit(jobs[0]) == submission::queued);
  entered.wait();
  CHECK(owner.submit(jobs[1]) == submission::queued);
  CHECK(owner.submit(jobs[2]) == submission::queued);
  CHECK(owner.submit(jobs[3]) == submission::waiting);
  CHECK_FALSE(owner->withdraw(jobs[0]));
  CHECK(owner->withdraw(jobs[1]));
  CHECK(owner->withdraw(jobs[2]));
  CHECK(owner->outstanding() == 2);
  gate.set();
  owner.wait_for(2);  // the one that waited gets its place although nothing of the queue comes back
  CHECK(jobs[0].runs == 1);
  CHECK(jobs[1].runs == 0);
  CHECK(jobs[2].runs == 0);
  CHECK(jobs[3].runs == 1);
  CHECK(owner->stats().cancelled == 2);
}

TEST_CASE_FIXTURE(clean_process,
                  "helper pool: idle helpers retire down to the floor, and come again with the next wave") {
  helpers::pool_settings settings = settings_of(6);
  settings.floor = 1;
  settings.idle_lifetime_ns = 2'000'000;
  pool_owner owner(settings);
  CHECK(owner->stats().alive == 1);
  std::uint64_t spawned = 1;
  for (int wave = 0; wave < (sanitized ? 5 : 20); ++wave) {
    CAPTURE(wave);
    event gate;
    event entered;
    std::vector<counted_job> jobs(6);
    for (auto& job : jobs) {
      job.gate = &gate;
      job.entered = &entered;
      CHECK(owner.submit(job) == submission::queued);
    }
    CHECK(eventually([&] {
      (void)owner.turn();
      return entered.count() == 6;
    }));
    CHECK(owner->stats().alive == 6);
    gate.set();
    owner.wait_for(6);
    CHECK(eventually([&] {
      (void)owner.turn();
      return owner->stats().alive == 1;
    }));
    spawned += 5;
    CHECK(owner->stats().spawned == spawned);
    CHECK(owner->stats().retired == spawned - 1);
  }
  CHECK(owner->stats().most_alive == 6);
  CHECK(owner->stats().run.total() == owner->stats().submitted);
}

TEST_CASE_FIXTURE(clean_process, "helper pool: end() lets what is queued run") {
  std::vector<counted_job> jobs(50);
  {
    pool_owner owner(settings_of(3));
    for (auto& job : jobs) CHECK(owner.submit(job) == submission::queued);
    CHECK(owner->end(pool_owner::now() + 30'000'000'000) == 0);
    counted_job late;
    CHECK(owner.submit(late) == submission::refused);
    CHECK(owner->stats().alive == 0);
  }
  for (auto& job : jobs) CHECK(job.runs == 1);
}

TEST_CASE_FIXTURE(
    clean_process,
    "helper pool: end() does not wait for a helper that is stuck, which leaves when it comes back") {
  event gate;
  event entered;
  auto job = std::make_shared<counted_job>();  // the memory that must last
  const std::weak_ptr<counted_job> watch = job;
  std::weak_ptr<pool> pool_watch;
  job->gate = &gate;
  job->entered = &entered;
  {
    pool_owner owner(settings_of(2));
    pool_watch = owner.shared();
    CHECK(owner.submit(*job) == submission::queued);
    entered.wait();
    std::size_t busy = 0;
    owner->for_each_busy(pool_owner::now(), [&](const engine::slot* serves, std::int64_t for_ns) {
      ++busy;
      CHECK(serves == nullptr);
      CHECK(for_ns >= 0);
    });
    CHECK(busy == 1);
    CHECK(owner->end(pool_owner::now() + 1'000'000) == 1);
    owner.abandon(std::move(job));
    CHECK_FALSE(watch.expired());
  }
  gate.set();
  CHECK(eventually([&] { return watch.expired() && pool_watch.expired(); }));
}

TEST_CASE_FIXTURE(clean_process,
                  "helper pool: threads have their names, block signals and use the CPUs they are given") {
  cpu_set_t allowed;
  REQUIRE(sched_getaffinity(0, sizeof allowed, &allowed) == 0);
  std::vector<unsigned> cpus;
  for (unsigned cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &allowed)) cpus.push_back(cpu);
  }
  struct looking_job : counted_job {
    char name[16] = {};
    cpu_set_t may_use{};
    sigset_t blocked{};
  } job;
  job.work = [](detail::job& base, helpers::helper&) noexcept {
    auto& self = static_cast<looking_job&>(base);
    (void)pthread_getname_np(pthread_self(), self.name, sizeof self.name);
    (void)sched_getaffinity(0, sizeof self.may_use, &self.may_use);
    (void)pthread_sigmask(SIG_SETMASK, nullptr, &self.blocked);
  };
  helpers::pool_settings settings = settings_of(2);
  settings.name = "percore/17";
  SUBCASE("all of them") {
    settings.cpus = cpus;
  }
  SUBCASE("the last one") {
    settings.cpus = {cpus.back()};
  }
  SUBCASE("one that does not exist: then where the core may run") {
    settings.cpus = {8000};
  }
  pool_owner owner(settings);
  CHECK(owner.submit(job) == submission::queued);
  owner.wait_for(1);
  CHECK(std::string(job.name) == "percore/17.0");
  CHECK(sigismember(&job.blocked, SIGTERM) == 1);
  CHECK(sigismember(&job.blocked, SIGURG) == 1);
  cpu_set_t expected;
  CPU_ZERO(&expected);
  for (const unsigned cpu : settings.cpus == std::vector<unsigned>{8000} ? cpus : settings.cpus) {
    CPU_SET(cpu, &expected);
  }
  CHECK(CPU_EQUAL(&job.may_use, &expected));
}

// As many cores as a larger machine has, each with its own pool and its own ups and downs, and jobs that are
// withdrawn.
TEST_CASE_FIXTURE(clean_process,
                  "helper pool: 8 cores hammer their pools, every job runs or is withdrawn, exactly once") {
  constexpr std::size_t rounds = sanitized ? 150 : 1500;
  helpers::shared_cap cap;
  cap.most = 24;
  std::atomic<std::size_t> faults{0};
  std::vector<std::thread> cores;
  for (unsigned core = 0; core < 8; ++core) {
    cores.emplace_back([&, core] {
      std::mt19937 random(core);
      helpers::pool_settings settings = settings_of(4, 16);
      settings.idle_lifetime_ns = 300'000;
      settings.cap = &cap;
      pool_owner owner(settings);
      for (std::size_t round = 0; round < rounds; ++round) {
        std::vector<counted_job> jobs(1 + random() % 40);
        std::vector<bool> withdrawn(jobs.size());
        std::size_t expected = 0;
        for (auto& job : jobs) {
          if (owner.submit(job) != submission::refused) ++expected;
        }
        for (std::size_t i = 0; i < jobs.size(); ++i) {
          if (random() % 4 == 0 && owner->withdraw(jobs[i])) {
            withdrawn[i] = true;
            --expected;
          }
        }
        const auto limit = std::chrono::steady_clock::now() + patience;
        while (expected > 0 && std::chrono::steady_clock::now() < limit) {
          expected -= owner.turn();
          std::this_thread::yield();
        }
        if (expected != 0) {
          faults.fetch_add(1);
          std::abort();  // a job is lost: its memory must not go
        }
        for (std::size_t i = 0; i < jobs.size(); ++i) {
          const int wanted = withdrawn[i] ? 0 : 1;
          if (jobs[i].runs != wanted || jobs[i].deliveries != wanted) faults.fetch_add(1);
        }
        if (round % 50 == 0) {
          std::this_thread::sleep_for(std::chrono::milliseconds(1));  // so that some retire
          (void)owner.turn();
        }
      }
    });
  }
  for (auto& core : cores) core.join();
  CHECK(faults == 0);
  CHECK(cap.alive == 0);
}

#ifdef PERCORE_FAULTS
TEST_CASE_FIXTURE(clean_process,
                  "helper pool: when the kernel refuses threads, jobs wait until it does not") {
  pool_owner owner(settings_of(2));
  counted_job job;
  {
    const injected faults(failing(call::thread_create, EAGAIN, 2));
    CHECK(owner.submit(job) == submission::queued);
    CHECK(owner->stats().alive == 0);
    CHECK(owner->stats().refused == 1);
    owner.wait_for(1);
  }
  CHECK(job.runs == 1);
  CHECK(owner->stats().refused == 2);
}

TEST_CASE_FIXTURE(clean_process, "helper pool: sleeps that end for no reason do no harm") {
  fault_plan plan = failing(call::futex_wait, EINTR, 1000);
  const injected faults(plan);
  pool_owner owner(settings_of(2));
  for (int i = 0; i < 200; ++i) {
    counted_job job;
    CHECK(owner.submit(job) == submission::queued);
    owner.wait_for(1);
    CHECK(job.runs == 1);
  }
}
#endif

#ifndef PERCORE_FAULTS  // once is enough

// A job that has a slot, as a connection of a blocking handler has.
struct slot_job : detail::job {
  engine::slot* held = nullptr;
  std::uint64_t trips = 0;
};

// Slots are taken from the core's ring, go to helpers and come back to it, as those of blocking connections do: as often
// as they went, each to the connection that it was, and in the end all are there.
TEST_CASE_FIXTURE(clean_process, "helper pool: ten million slots go to helpers and return to their ring, and none is lost") {
  constexpr std::uint32_t slots = 256;
  constexpr std::uint64_t trips = sanitized ? 100'000 : 10'000'000;
  bare_core core(slots);
  engine::slot_pool& ring = core->slots;
  pool_owner owner(settings_of(4, slots));
  std::vector<slot_job> jobs(slots);
  std::vector<slot_job*> idle;
  for (slot_job& job : jobs) {
    // On the helper: what belongs to it meanwhile is written, and must be read on the core.
    job.work = [](detail::job& base, helpers::helper&) noexcept {
      auto& self = static_cast<slot_job&>(base);
      ++self.trips;
      self.held->read_timeout_ms = self.held->index;
    };
    idle.push_back(&job);
  }
  std::uint64_t gone = 0;
  std::uint64_t back = 0;
  std::uint64_t wrong = 0;
  const std::int64_t patience = pool_owner::now() + 300'000'000'000;
  while (back < trips) {
    while (gone < trips && !idle.empty()) {
      engine::slot* taken = ring.take(*core);
      if (taken == nullptr) break;
      slot_job& job = *idle.back();
      idle.pop_back();
      job.held = taken;
      taken->read_timeout_ms = slots;
      if (owner->submit(job, pool_owner::now()) == submission::refused) ++wrong;
      ++gone;
    }
    const std::uint64_t before = back;
    owner.turn([&](detail::completion& done) {
      auto& job = static_cast<slot_job&>(static_cast<detail::job&>(done));
      if (job.held->read_timeout_ms != job.held->index) ++wrong;
      ring.give_back(*job.held);
      idle.push_back(&job);
      ++back;
    });
    const std::uint32_t freed = ring.end_of_turn();
    if (freed != back - before) ++wrong;
    if (back == before) {
      std::this_thread::yield();
      if (pool_owner::now() > patience) break;
    }
  }
  CHECK(back == trips);
  CHECK(wrong == 0);
  CHECK(ring.in_use() == 0);
  std::uint64_t counted = 0;
  for (const slot_job& job : jobs) counted += job.trips;
  CHECK(counted == trips);
  std::set<engine::slot*> all;
  while (engine::slot* taken = ring.take(*core)) all.insert(taken);
  CHECK(all.size() == slots);
}

#endif

}  // namespace
}  // namespace percore::test
