#include "engine/core/deputies.hpp"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <new>
#include <utility>

namespace percore::engine {

namespace {

struct start_note {
  std::shared_ptr<deputies> owner;
  void* self;
  std::shared_ptr<loop::descriptor_table> table;  // the core's
};

}  // namespace

void deputies::serve() noexcept {
  member* self = nullptr;
  try {
    const std::lock_guard lock(mutex_);
    self = members_.emplace_back(std::make_unique<member>()).get();
    self->first = true;
    self->id = ::gettid();
  } catch (const std::bad_alloc&) {  // then nobody can take over
    if (core_.run()) settings_.on_end();
    return;
  }
  take_charge(*self);
  serve_as(*self, true);
}

void* deputies::thread_body(void* raw) noexcept {
  const std::unique_ptr<start_note> note(static_cast<start_note*>(raw));
  loop::wakeup::share_table(std::move(note->table));
  auto& self = *static_cast<member*>(note->self);
  self.id = ::gettid();
  sys::name_this_thread(note->owner->settings_.name + ".d");
  note->owner->serve_as(self, false);
  return nullptr;
}

void deputies::serve_as(member& self, bool running) noexcept {
  for (;;) {
    if (!running && !wait_for_call(self)) return;
    running = false;
    if (self.now != state::running) continue;
    if (!core_.run()) {
      sys::name_this_thread(settings_.name + ".d");
      continue;
    }
    {
      const std::lock_guard lock(mutex_);
      ended_ = true;
      self.now = state::ended;
      changed_.notify_all();
    }
    settings_.on_end();
    return;
  }
}

// True: called, and `self.now` says whether that came in time.
bool deputies::wait_for_call(member& self) noexcept {
  {
    std::unique_lock lock(mutex_);
    self.now = state::standing_by;
    changed_.wait(lock, [&] { return self.now == state::called || ended_; });
    if (ended_) {
      self.now = state::ended;
      changed_.notify_all();
      return false;
    }
  }
  if (core_.take_over(self.number)) {
    settings_.on_taken();
    take_charge(self);
  }
  return true;
}

// This thread runs the core from here on.
void deputies::take_charge(member& self) noexcept {
  sys::name_this_thread(settings_.name);
  sys::move_this_thread(settings_.core_cpus);
  if (settings_.signal != 0) sys::let_signal_through(settings_.signal);
  core_.run_by(self.id);
  bool alone = false;
  {
    const std::lock_guard lock(mutex_);
    for (auto& other : members_) {
      if (other.get() == &self || other->now != state::running) continue;
      other->now = state::lost;
      // Else it would share the core's CPU with the core, if it computes.
      if (!settings_.helper_cpus.empty()) sys::move_thread(other->id, settings_.helper_cpus);
    }
    self.now = state::running;
    alone = !has_another(&self);
  }
  if (alone) start_one();
}

bool deputies::has_another(const member* self) const noexcept {
  return std::any_of(members_.begin(), members_.end(), [self](const auto& each) {
    const bool free = each->now == state::starting || each->now == state::standing_by || each->now == state::called;
    return free && each.get() != self;
  });
}

void deputies::start_one() noexcept {
  member* made = nullptr;
  lacks_one_.store(false, std::memory_order_relaxed);
  try {
    const std::lock_guard lock(mutex_);
    if (members_.size() > settings_.most) return;
    auto note = std::make_unique<start_note>(start_note{shared_from_this(), nullptr, loop::wakeup::table()});
    made = members_.emplace_back(std::make_unique<member>()).get();
    note->self = made;
    if (sys::start_thread(made->thread, thread_body, note.get(), {}, settings_.stack_bytes) == 0) {
      (void)note.release();
      return;
    }
    members_.pop_back();
  } catch (const std::bad_alloc&) {
  }
  core_.count_refused_deputy();
  lacks_one_.store(true, std::memory_order_relaxed);
}

void deputies::mend() noexcept {
  if (!lacks_one()) return;
  {
    const std::lock_guard lock(mutex_);
    if (ended_) return;
    if (has_another(nullptr)) {  // one that was kept is back
      lacks_one_.store(false, std::memory_order_relaxed);
      return;
    }
  }
  start_one();
}

void deputies::call(std::uint64_t number) noexcept {
  const std::lock_guard lock(mutex_);
  for (auto& candidate : members_) {
    if (candidate->now != state::standing_by) continue;
    candidate->now = state::called;
    candidate->number = number;
    changed_.notify_all();
    return;
  }
}

bool deputies::join() noexcept {
  bool first_is_back = true;
  std::vector<pthread_t> to_join;
  {
    constexpr std::chrono::seconds to_leave(5);             // with nothing left to do
    constexpr std::chrono::milliseconds to_leave_stuck(20);  // when one will not
    std::unique_lock lock(mutex_);
    (void)changed_.wait_for(lock, core_.given_up() ? to_leave_stuck : to_leave, [this] {
      return std::all_of(members_.begin(), members_.end(),
                         [](const auto& each) { return each->now == state::ended; });
    });
    to_join.reserve(members_.size());
    for (auto& each : members_) {
      const bool left = each->now != state::ended;
      if (each->first) {
        first_is_back = !left;
      } else if (left) {
        (void)pthread_detach(each->thread);
      } else {
        to_join.push_back(each->thread);
      }
    }
  }
  for (const pthread_t thread : to_join) (void)pthread_join(thread, nullptr);
  return first_is_back;
}

void takeover_watch::start(const std::string& name) {
  thread_.start([this] { look(); }, period_ns(), slack_ns(), name.substr(0, 8) + "/deputy");
}

void takeover_watch::look() noexcept {
  for (bool suspects = false;; suspects = true) {
    const std::int64_t now = sys::monotonic_ns();
    std::int64_t next = 0;
    for (watched& w : cores_) {
      const std::int64_t soon = look_at(w, now);
      if (soon > 0) next = next == 0 ? soon : std::min(next, soon);
    }
    if (next == 0 || thread_.stopping()) {
      if (suspects) sys::set_timer_slack(slack_ns());
      return;
    }
    if (!suspects) sys::set_timer_slack(sys::usual_timer_slack_ns);
    thread_.sleep(std::min(next, period_ns()));  // others are looked at as often as ever
  }
}

// When to look again; 0: at the next occasion.
std::int64_t takeover_watch::look_at(watched& w, std::int64_t now_ns) const noexcept {
  constexpr std::int64_t mend_interval_ns = 1'000'000'000;
  if (w.threads->lacks_one() && now_ns - w.mended_at_ns >= mend_interval_ns) {
    w.mended_at_ns = now_ns;
    (void)w.which->mailbox()->post(detail::message([threads = std::weak_ptr<deputies>(w.threads)](core_resources&) {
      if (const auto still_there = threads.lock()) still_there->mend();
    }));
  }
  const std::uint64_t number = w.which->slice_number();
  if (number == 0 || number != w.number) {
    w.number = number;
    w.called = false;
    if (number == 0) return 0;
    w.since_ns = w.which->slice_runs_since(number, now_ns);
  }
  if (now_ns - w.since_ns >= after_ns_) {
    w.threads->call(number);
    w.called = true;
  }
  const bool suspected = !w.called && w.which->turn_lasts_ns(now_ns) >= after_ns_ / 4;
  return suspected ? std::max<std::int64_t>(w.since_ns + after_ns_ - now_ns, 1) : 0;
}

}  // namespace percore::engine
