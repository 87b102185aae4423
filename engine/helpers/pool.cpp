// The core's side of the helper pool.
#include "engine/helpers/pool.hpp"

#include <algorithm>
#include <bit>
#include <new>
#include <utility>

#include "engine/base/assert.hpp"
#include "engine/sys/calls.hpp"
#include "engine/sys/threads.hpp"

namespace percore::helpers {

namespace {

// Threads started in one turn of the loop; each takes the core 20 to 60 us.
constexpr unsigned most_spawned_per_turn = 8;

// After the kernel has refused a thread.
constexpr std::int64_t retry_ns = 100'000'000;

constexpr std::int64_t shortest_check_ns = 1'000'000;

// Jobs that wait for room in the queue move up when one comes back. When what was in the queue was withdrawn,
// none does: then after this time.
constexpr std::int64_t look_again_ns = 1'000'000;

}  // namespace

pool::pool(pool_settings given, std::shared_ptr<loop::mailbox> replies, loop::timer_wheel& timers)
    : settings_(std::move(given)),
      replies_(std::move(replies)),
      timers_(timers),
      queue_(settings_.queue),
      helpers_(new std::unique_ptr<helper>[settings_.most]) {
  PERCORE_ASSERT(settings_.most >= 1 && settings_.most <= most_helpers, "a number of helpers that cannot be");
  timer_.owner = this;
  timer_.fire = [](detail::timer_node& node) {
    static_cast<housekeeping&>(node).owner->look_after(sys::monotonic_ns());
  };
}

pool::~pool() {
  for (unsigned i = 0; i < made_.load(std::memory_order_relaxed); ++i) {
    PERCORE_ASSERT(helpers_[i]->ended_.load(std::memory_order_acquire), "a pool dies before its helpers");
  }
}

void pool::start(std::int64_t now_ns) noexcept {
  while (alive_ < settings_.floor && spawn(now_ns)) {
  }
}

// Jobs ------------------------------------------------------------------------------------------------------

pool::submission pool::submit(detail::job& job, std::int64_t now_ns, admission policy) noexcept {
  if (ended_ || (ending_ && policy != admission::always)) return submission::refused;
  job.taken_back = false;
  job.submitted_ns = now_ns;
  job.begun_ns.store(0, std::memory_order_relaxed);
  // Behind those that wait already.
  const submission result = waiting_.empty() ? enqueue(job, now_ns) : submission::refused;
  if (result == submission::refused) {
    ++full_;
    const bool waits = policy == admission::as_set ? settings_.wait_when_full : policy != admission::refuse;
    if (!waits) return submission::refused;
    waiting_.push_back(job);
    arm(now_ns + look_again_ns);
    ++submitted_;
    ++outstanding_;
    return submission::waiting;
  }
  ++submitted_;
  ++outstanding_;
  return result;
}

pool::submission pool::enqueue(detail::job& job, std::int64_t now_ns) noexcept {
  if (!queue_.push(&job, job.position)) return submission::refused;
  if (wake_one()) return submission::handed;
  grow_if_needed(now_ns);
  return submission::queued;
}

bool pool::withdraw(detail::job& job) noexcept {
  if (job.linked()) {
    job.unlink();
  } else if (!queue_.withdraw(&job, job.position)) {
    return false;
  }
  ++cancelled_;
  --outstanding_;
  return true;
}

void pool::delivered(std::int64_t now_ns) noexcept {
  --outstanding_;
  refill(now_ns);
}

void pool::refill(std::int64_t now_ns) noexcept {
  while (!waiting_.empty()) {
    auto* next = static_cast<detail::job*>(waiting_.pop_front());
    if (enqueue(*next, now_ns) != submission::refused) continue;
    base::intrusive_list<detail::ready_node> first;
    first.push_back(*next);
    first.take(waiting_);
    waiting_.take(first);
    arm(now_ns + look_again_ns);
    return;
  }
}

detail::job* pool::take_back() noexcept {
  auto* taken = static_cast<detail::job*>(waiting_.pop_front());
  if (taken == nullptr) taken = queue_.pop();
  if (taken != nullptr) {
    taken->taken_back = true;
    ++cancelled_;
    --outstanding_;
  }
  return taken;
}

// Waking ----------------------------------------------------------------------------------------------------

// Of the helper `number`, which then is the core's to tell something.
bool pool::claim(unsigned number) noexcept {
  const std::uint64_t bit = std::uint64_t{1} << (number % bits);
  return (idle_[number / bits].fetch_and(~bit, std::memory_order_seq_cst) & bit) != 0;
}

bool pool::wake_one() noexcept {
  const unsigned made = made_.load(std::memory_order_relaxed);
  for (unsigned first = 0; first < made; first += bits) {
    std::uint64_t idle = idle_[first / bits].load(std::memory_order_seq_cst);
    for (; idle != 0; idle &= idle - 1) {
      const unsigned number = first + static_cast<unsigned>(std::countr_zero(idle));
      if (!claim(number)) continue;  // it has found something to do meanwhile
      ++woken_;
      tell(*helpers_[number], helper::look);
      return true;
    }
  }
  return false;
}

void pool::tell(helper& which, std::uint32_t what) noexcept {
  which.told_.store(what, std::memory_order_release);
  (void)sys::futex_wake(which.told_, 1);
}

// Growing and shrinking -------------------------------------------------------------------------------------

// More jobs wait than there are helpers about to look for the first time.
bool pool::wants_more() const noexcept {
  return alive_ < settings_.most && queue_.size() > started_ - begun_.load(std::memory_order_relaxed);
}

// A job was queued and no helper sleeps.
void pool::grow_if_needed(std::int64_t now_ns) noexcept {
  const std::size_t backlog = queue_.size();
  if (backlog > most_queued_.get()) most_queued_.add(backlog - most_queued_.get());
  if (!wants_more()) return;
  if (now_ns != spawn_turn_ns_) {
    spawn_turn_ns_ = now_ns;
    spawned_in_turn_ = 0;
  }
  if (spawned_in_turn_ == most_spawned_per_turn) {
    growing_ = true;
    return;
  }
  ++spawned_in_turn_;
  (void)spawn(now_ns);
}

void pool::grow(std::int64_t now_ns) noexcept {
  growing_ = false;
  for (unsigned i = 0; i < most_spawned_per_turn; ++i) {
    if (!wants_more() || !spawn(now_ns)) return;
  }
  growing_ = wants_more();
}

helper* pool::free_helper() noexcept {
  const unsigned made = made_.load(std::memory_order_relaxed);
  for (unsigned i = 0; i < made; ++i) {
    helper& h = *helpers_[i];
    if (h.alive_ || !h.ended_.load(std::memory_order_acquire)) continue;
    if (h.joinable_ && pthread_tryjoin_np(h.thread_, nullptr) != 0) continue;
    h.joinable_ = false;
    return &h;
  }
  if (made == settings_.most) return nullptr;
  helpers_[made].reset(new (std::nothrow) helper(made));
  if (helpers_[made] == nullptr) return nullptr;
  made_.store(made + 1, std::memory_order_release);
  return helpers_[made].get();
}

bool pool::spawn(std::int64_t now_ns) noexcept {
  if (settings_.cap != nullptr &&
      settings_.cap->alive.fetch_add(1, std::memory_order_relaxed) >= settings_.cap->most) {
    settings_.cap->alive.fetch_sub(1, std::memory_order_relaxed);
    arm(now_ns + retry_ns);  // another core may need its own no longer
    return false;
  }
  int result = -ENOMEM;
  helper* made = free_helper();
  auto* note = new (std::nothrow) start_note{weak_from_this().lock(), made, loop::wakeup::table()};
  if (made != nullptr && note != nullptr) {
    made->told_.store(helper::none, std::memory_order_relaxed);
    made->ended_.store(false, std::memory_order_relaxed);
    made->last_used_ns_.store(now_ns, std::memory_order_relaxed);
    // It begins on the CPU of its turn, preferred ones first; where it goes from there is the scheduler's to
    // say.
    std::vector<unsigned> first;
    if (!settings_.cpus.empty()) first.push_back(settings_.cpus[made->number_ % settings_.cpus.size()]);
    result = sys::start_thread(made->thread_, thread_body, note, first, settings_.stack_bytes);
    if (result != 0) made->ended_.store(true, std::memory_order_relaxed);
  }
  if (result != 0) {
    delete note;
    if (settings_.cap != nullptr) settings_.cap->alive.fetch_sub(1, std::memory_order_relaxed);
    ++refused_;
    arm(now_ns + retry_ns);
    return false;
  }
  made->alive_ = made->joinable_ = true;
  ++started_;
  ++spawned_;
  ++alive_;
  ++alive_now_;
  if (alive_ > most_alive_.get()) ++most_alive_;
  if (alive_ > settings_.floor) arm(now_ns + std::max(settings_.idle_lifetime_ns / 4, shortest_check_ns));
  return true;
}

void pool::arm(std::int64_t at_ns) noexcept {
  const std::uint64_t tick = loop::timer_wheel::tick_from(at_ns);
  if (timer_.linked()) {
    if (timer_.deadline <= tick) return;
    timer_.unlink();
  }
  timers_.insert(timer_, tick);
}

// Retires what has been idle for the lifetime, the highest numbers first; starts what could not be started
// before.
void pool::look_after(std::int64_t now_ns) noexcept {
  if (ending_) return;
  refill(now_ns);
  for (unsigned i = made_.load(std::memory_order_relaxed); i > 0 && alive_ > settings_.floor; --i) {
    helper& h = *helpers_[i - 1];
    if (!h.alive_) continue;
    if (now_ns - h.last_used_ns_.load(std::memory_order_relaxed) < settings_.idle_lifetime_ns) continue;
    if (!claim(h.number_)) continue;  // busy
    if (!queue_.empty()) {
      // It was about to take back its bit and look once more.
      tell(h, helper::look);
      continue;
    }
    h.alive_ = false;
    tell(h, helper::retire);
    --alive_;
    --alive_now_;
    ++retired_;
    if (settings_.cap != nullptr) settings_.cap->alive.fetch_sub(1, std::memory_order_relaxed);
  }
  join_ended(false);
  start(now_ns);
  grow(now_ns);
  if (alive_ > settings_.floor || started_ != left_.load(std::memory_order_relaxed) + std::uint64_t{alive_}) {
    arm(now_ns + std::max(settings_.idle_lifetime_ns / 4, shortest_check_ns));
  }
}

// Not waiting: a thread that has ended here may still run destructors of what its jobs left in thread_local.
void pool::join_ended(bool wait) noexcept {
  for (unsigned i = 0; i < made_.load(std::memory_order_relaxed); ++i) {
    helper& h = *helpers_[i];
    if (h.alive_ || !h.joinable_ || !h.ended_.load(std::memory_order_acquire)) continue;
    if (!wait && pthread_tryjoin_np(h.thread_, nullptr) != 0) continue;
    if (wait) (void)pthread_join(h.thread_, nullptr);
    h.joinable_ = false;
  }
}

// Ending ----------------------------------------------------------------------------------------------------

unsigned pool::end(std::int64_t deadline_ns) noexcept {
  ending_ = ended_ = true;
  timer_.unlink();
  for (unsigned i = 0; i < made_.load(std::memory_order_relaxed); ++i) {
    helper& h = *helpers_[i];
    if (!h.alive_) continue;
    // Whether it sleeps or not: it looks at this word before it does.
    h.alive_ = false;
    tell(h, helper::end);
    --alive_;
    --alive_now_;
    if (settings_.cap != nullptr) settings_.cap->alive.fetch_sub(1, std::memory_order_relaxed);
  }
  for (;;) {
    const std::uint32_t left = left_.load(std::memory_order_acquire);
    if (left == static_cast<std::uint32_t>(started_)) break;
    const std::int64_t remaining = deadline_ns - sys::monotonic_ns();
    if (remaining <= 0) break;
    (void)sys::futex_wait(left_, left, remaining);
  }
  join_ended(true);
  unsigned still_there = 0;
  for (unsigned i = 0; i < made_.load(std::memory_order_relaxed); ++i)
    still_there += helpers_[i]->joinable_ ? 1 : 0;
  return still_there;
}

void pool::abandon(std::shared_ptr<void> memory) noexcept {
  std::shared_ptr<void> unneeded;
  const std::lock_guard lock(leaving_);
  for (unsigned i = 0; i < made_.load(std::memory_order_relaxed); ++i) {
    helper& h = *helpers_[i];
    if (!h.joinable_) continue;
    if (h.ended_.load(std::memory_order_acquire)) {
      (void)pthread_join(h.thread_, nullptr);  // come back in the last moment
    } else {
      (void)pthread_detach(h.thread_);
      ++abandoned_;
    }
    h.joinable_ = false;
  }
  (abandoned_ != 0 ? memory_ : unneeded) = std::move(memory);
}

// Questions -------------------------------------------------------------------------------------------------

helper_stats pool::stats() const noexcept {
  helper_stats result;
  result.alive = alive_now_.get();
  result.most_alive = most_alive_.get();
  result.spawned = spawned_.get();
  result.retired = retired_.get();
  result.refused = refused_.get();
  result.queued = queue_.size();
  result.most_queued = most_queued_.get();
  result.submitted = submitted_.get();
  result.full = full_.get();
  result.cancelled = cancelled_.get();
  result.woken = woken_.get();
  for (unsigned i = 0; i < made_.load(std::memory_order_acquire); ++i) {
    helpers_[i]->wait_.add_to(result.wait);
    helpers_[i]->run_.add_to(result.run);
  }
  return result;
}

std::uint64_t pool::bytes_received() const noexcept {
  std::uint64_t sum = 0;
  for (unsigned i = 0; i < made_.load(std::memory_order_acquire); ++i)
    sum += helpers_[i]->bytes_received.get();
  return sum;
}

std::uint64_t pool::bytes_sent() const noexcept {
  std::uint64_t sum = 0;
  for (unsigned i = 0; i < made_.load(std::memory_order_acquire); ++i) sum += helpers_[i]->bytes_sent.get();
  return sum;
}

}  // namespace percore::helpers
