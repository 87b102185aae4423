// The helpers' side of the pool.
#include "engine/helpers/helper.hpp"

#include <memory>
#include <string>
#include <utility>

#include "engine/helpers/pool.hpp"
#include "engine/sys/calls.hpp"
#include "engine/sys/threads.hpp"

namespace percore::helpers {

constinit thread_local const void* server_of_helper = nullptr;

tls::core_state& helper::tls() {
  if (tls_ == nullptr) tls_ = std::make_unique<tls::core_state>();
  return *tls_;
}

void* pool::thread_body(void* raw) noexcept {
  const std::unique_ptr<start_note> note(static_cast<start_note*>(raw));
  pool& owner = *note->owner;
  helper& self = *note->self;
  loop::wakeup::share_table(std::move(note->table));
  server_of_helper = owner.settings_.server;
  sys::name_this_thread(owner.settings_.name + "." + std::to_string(self.number_));
  sys::move_this_thread(owner.settings_.cpus);
  owner.begun_.fetch_add(1, std::memory_order_relaxed);
  owner.serve(self);
  owner.leave(self);
  return nullptr;
}

void pool::serve(helper& self) noexcept {
  do {
    while (detail::job* job = queue_.pop()) run(self, *job);
  } while (rest(self));
  // When the pool ends, what has been pushed since: the core may have counted on this helper.
  if (self.told_.load(std::memory_order_relaxed) != helper::end) return;
  while (detail::job* job = queue_.pop()) run(self, *job);
}

void pool::run(helper& self, detail::job& job) noexcept {
  const std::int64_t begun = sys::monotonic_ns();
  self.wait_.add(begun - job.submitted_ns);
  self.serves_.store(job.owner, std::memory_order_relaxed);
  self.busy_since_ns_.store(begun, std::memory_order_release);
  job.begun_ns.store(begun, std::memory_order_release);
  job.work(job, self);
  const std::int64_t ended = sys::monotonic_ns();
  self.busy_since_ns_.store(0, std::memory_order_release);
  self.last_used_ns_.store(ended, std::memory_order_relaxed);
  self.run_.add(ended - begun);
  replies_->complete(job);  // from here on it is the core's, and may be gone
}

// Sleeps until the core has a word for this helper. See the head of pool.hpp for why none is missed.
bool pool::rest(helper& self) noexcept {
  const std::uint64_t bit = std::uint64_t{1} << (self.number_ % bits);
  std::atomic<std::uint64_t>& idle = idle_[self.number_ / bits];
  idle.fetch_or(bit, std::memory_order_seq_cst);
  // Back to work when the queue is not empty after all. Unless the bit is gone: then the core has claimed
  // this helper, and its word must be waited for, lest it be taken for the answer to the next sleep.
  if (!queue_.empty() && (idle.fetch_and(~bit, std::memory_order_seq_cst) & bit) != 0) return true;
  std::uint32_t told = self.told_.load(std::memory_order_acquire);
  for (; told == helper::none; told = self.told_.load(std::memory_order_acquire)) {
    (void)sys::futex_wait(self.told_, helper::none, -1);
  }
  if (told != helper::look) return false;
  // Unless end() has just overtaken the word.
  return self.told_.compare_exchange_strong(told, helper::none, std::memory_order_acq_rel);
}

void pool::leave(helper& self) noexcept {
  self.tls_.reset();
  self.buffer_.reset();
  std::shared_ptr<void> memory;
  {
    const std::lock_guard lock(leaving_);
    self.ended_.store(true, std::memory_order_release);
    if (abandoned_ != 0 && --abandoned_ == 0) memory = std::move(memory_);
  }
  left_.fetch_add(1, std::memory_order_acq_rel);
  (void)sys::futex_wake(left_, 1);
}

}  // namespace percore::helpers
