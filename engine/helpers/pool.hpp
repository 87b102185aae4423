#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include <percore/detail/job.hpp>
#include <percore/stats.hpp>

#include "engine/base/cache_line.hpp"
#include "engine/base/counter.hpp"
#include "engine/base/intrusive_list.hpp"
#include "engine/base/spmc_ring.hpp"
#include "engine/helpers/helper.hpp"
#include "engine/loop/mailbox.hpp"
#include "engine/loop/timer_wheel.hpp"

namespace percore::helpers {

// How many helpers the cores of a server may have together.
struct shared_cap {
  unsigned most = 0;
  alignas(base::cache_line_bytes) std::atomic<unsigned> alive{0};
};

struct pool_settings {
  std::string name;            // of the core; the threads are named "NAME.0", "NAME.1", ...
  std::vector<unsigned> cpus;  // for the threads, the preferred first; empty: where the core's thread may run
  unsigned floor = 0;          // threads that stay when they are idle
  unsigned most = 64;          // 1 to most_helpers
  std::size_t queue = 1024;
  bool wait_when_full = true;  // else: refuse
  std::int64_t idle_lifetime_ns = 10'000'000'000;
  std::size_t stack_bytes = 1024 * 1024;
  shared_cap* cap = nullptr;
  const void* server = nullptr;  // whose helpers they are: see server_of_helper
};

// What becomes of a job that finds no room in the queue: it waits for some, or is refused, or what pool_settings say.
// always: it waits, and is taken after close() too, until the pool ends.
enum class admission { as_set, wait, refuse, always };

inline constexpr unsigned most_helpers = 4096;

// The helper threads of one core and the queue to them. The core's thread is the only one that submits,
// starts helpers, wakes them and ends them; the helpers take jobs, run them and give them back through the
// core's mailbox. There is no lock between them.
//
// Who sleeps. A helper that finds the queue empty sets its bit in `idle_`, looks at the queue again, and only
// then sleeps. The core pushes first and looks at `idle_` then; a bit that it finds it clears (it alone
// clears the bits of others), and only then it tells and wakes that helper. All four steps are sequentially
// consistent operations: in their single order either the helper's bit comes before the core's look, and the
// core wakes it, or the core's push comes before the helper's second look, and the helper takes its bit back;
// if it finds the bit gone, the core has claimed it meanwhile and a word for it is on the way. So no job
// waits while a helper sleeps, a helper that is awake is never woken, and none sleeps through a word.
//
// The lowest bit is taken first, so that the same few helpers stay in use and the others can be seen to be
// idle. Those are ended by the core: it clears the bit as if to wake the helper, and if the queue is still
// empty tells it to end. A helper never retires by itself, hence never between the core's look at it and a
// job's arrival; and since nobody else pushes, a queue that is empty once the bit is the core's holds nothing
// that only this helper knows of.
class pool : public std::enable_shared_from_this<pool> {
 public:
  enum class submission {
    handed,   // and a helper was woken for it
    queued,   // behind others, or for a helper that is about to be free
    waiting,  // the queue is full: the job waits on the core, in order
    refused,  // the queue is full, or the pool has ended
  };

  pool(pool_settings given, std::shared_ptr<loop::mailbox> replies, loop::timer_wheel& timers);
  pool(const pool&) = delete;
  pool& operator=(const pool&) = delete;
  ~pool();

  // --- the core's thread -----------------------------------------------------------------------------------
  // Starts the floor.
  void start(std::int64_t now_ns) noexcept;
  submission submit(detail::job& job, std::int64_t now_ns, admission policy = admission::as_set) noexcept;
  // True: no helper has had the job or will; it will not be delivered.
  bool withdraw(detail::job& job) noexcept;
  // For each job that came back through the mailbox, before its owner hears of it.
  void delivered(std::int64_t now_ns) noexcept;
  // Jobs submitted and neither delivered nor withdrawn.
  [[nodiscard]] std::size_t outstanding() const noexcept { return outstanding_; }
  // Helpers are still to be started, in the next turn: starting one takes tens of microseconds.
  [[nodiscard]] bool growing() const noexcept { return growing_; }
  void grow(std::int64_t now_ns) noexcept;
  // Jobs that wait in the queue.
  [[nodiscard]] std::size_t backlog() const noexcept { return queue_.size(); }
  // From here on jobs are refused.
  void close() noexcept { ending_ = true; }
  [[nodiscard]] bool ended() const noexcept { return ending_; }
  // Takes back a job that no helper has had, for a pool that ends at once; nullptr: none.
  detail::job* take_back() noexcept;

  // Tells all helpers to end when the queue is empty, and waits until they have, at most until `deadline_ns`.
  // The number of those that have not.
  unsigned end(std::int64_t deadline_ns) noexcept;
  // Leaves those to themselves. The last one to come back releases `memory`, which is what their jobs may
  // touch.
  void abandon(std::shared_ptr<void> memory) noexcept;
  // Calls f(served slot or nullptr, ns since it began) for each helper with a job.
  template <class F>
  void for_each_busy(std::int64_t now_ns, F f) const {
    for (unsigned i = 0; i < made_.load(std::memory_order_relaxed); ++i) {
      const helper& h = *helpers_[i];
      const std::int64_t since = h.busy_since_ns_.load(std::memory_order_acquire);
      if (since != 0) f(h.serves_.load(std::memory_order_relaxed), now_ns - since);
    }
  }

  // --- any thread ------------------------------------------------------------------------------------------
  [[nodiscard]] helper_stats stats() const noexcept;
  // Of blocking connections, over all helpers.
  [[nodiscard]] std::uint64_t bytes_received() const noexcept;
  [[nodiscard]] std::uint64_t bytes_sent() const noexcept;

 private:
  static constexpr std::size_t bits = 64;

  struct housekeeping : detail::timer_node {
    pool* owner = nullptr;
  };
  // What a new thread is given.
  struct start_note {
    std::shared_ptr<pool> owner;
    helper* self;
    std::shared_ptr<loop::descriptor_table> table;  // the core's
  };

  submission enqueue(detail::job& job, std::int64_t now_ns) noexcept;  // refused: no room
  void refill(std::int64_t now_ns) noexcept;
  bool claim(unsigned number) noexcept;
  bool wake_one() noexcept;
  void tell(helper& which, std::uint32_t what) noexcept;
  [[nodiscard]] bool wants_more() const noexcept;
  void grow_if_needed(std::int64_t now_ns) noexcept;
  bool spawn(std::int64_t now_ns) noexcept;
  helper* free_helper() noexcept;
  void join_ended(bool wait) noexcept;
  void look_after(std::int64_t now_ns) noexcept;
  void arm(std::int64_t at_ns) noexcept;

  static void* thread_body(void* note) noexcept;
  void serve(helper& self) noexcept;
  void run(helper& self, detail::job& job) noexcept;
  bool rest(helper& self) noexcept;  // false: end
  void leave(helper& self) noexcept;

  const pool_settings settings_;
  const std::shared_ptr<loop::mailbox> replies_;
  loop::timer_wheel& timers_;
  base::spmc_ring<detail::job> queue_;
  std::unique_ptr<std::unique_ptr<helper>[]> helpers_;
  std::atomic<unsigned> made_{0};  // of helpers_

  // Written by the core.
  base::intrusive_list<detail::ready_node> waiting_;
  std::size_t outstanding_ = 0;
  unsigned alive_ = 0;
  bool growing_ = false;
  bool ending_ = false;
  bool ended_ = false;
  std::int64_t spawn_turn_ns_ = 0;
  unsigned spawned_in_turn_ = 0;
  std::uint64_t started_ = 0;
  housekeeping timer_;
  base::counter alive_now_, most_alive_, spawned_, retired_, refused_, most_queued_, submitted_, full_,
      cancelled_, woken_;

  alignas(base::cache_line_bytes) std::array<std::atomic<std::uint64_t>, most_helpers / bits> idle_{};
  alignas(base::cache_line_bytes) std::atomic<std::uint64_t> begun_{
      0};                               // threads that have come to look for work
  std::atomic<std::uint32_t> left_{0};  // threads that have ended

  std::mutex leaving_;  // held for moments, and only by who ends
  std::shared_ptr<void> memory_;
  unsigned abandoned_ = 0;
};

}  // namespace percore::helpers
