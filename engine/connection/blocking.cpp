// Blocking handlers on the core's side: accept, the wait for the first bytes, and the end.

#include "engine/connection/blocking.hpp"

#include <new>
#include <utility>

#include "engine/connection/milliseconds.hpp"
#include "engine/connection/slice.hpp"

namespace percore::engine {

// Only a connection that was left to its helper has anything left here, and its helper is back. A table of the core's own
// (private_descriptors) may have gone with its threads, and the number may be somebody else's in this thread's table.
slot::~slot() {
  if (fd >= 0 && loop::wakeup::table() == core->descriptors) (void)sys::close(fd);
  if (phase == slot_phase::waiting || phase == slot_phase::blocking) delete blocked;
  if (phase != slot_phase::free) delete slice;
}

// In place of start_handler, for plain listeners and those with TLS alike: the handshake is the helper's.
void slot::start_blocking() noexcept {
  phase = slot_phase::waiting;
  blocked = new (std::nothrow) blocking_job();
  if (blocked != nullptr) blocked->owner = this;
  if (blocked == nullptr || !core->open_drain_fd()) {
    ++core->counters.refused_memory;
    end_blocking(static_cast<int>(errc::no_memory));
    return;
  }
  std::uint32_t patience_ms = listener->handshake_timeout_ms;
  if (!listener->tls) {
    patience_ms = read_timeout_ms;
    if (patience_ms == 0 || (idle_timeout_ms != 0 && idle_timeout_ms < patience_ms))
      patience_ms = idle_timeout_ms;
  }
  arm_read_deadline(patience_ms);
  if (readable || !listener->wait_for_client) {
    blocking_event();
  } else if (!ensure_registered()) {
    end_blocking(end_reason);
  }
}

// Something can be read, or that is to be found out: in a shutdown, or of a client that has sent with its
// handshake.
void slot::blocking_event() noexcept {
  if (phase != slot_phase::waiting) return;
  if (listener->wait_for_client) {
    std::byte first;
    const ssize_t there = sys::recv(fd, &first, 1, MSG_PEEK | MSG_DONTWAIT);
    if (there == -EINTR) {
      wake_soon();
      return;
    }
    if (there == -EAGAIN) {
      if (core->stopping) {
        end_blocking(0);
      } else if (!ensure_registered()) {
        end_blocking(end_reason);
      }
      return;
    }
    if (there <= 0) {  // gone without a word
      if (there < 0) io_failed(static_cast<int>(there));
      end_blocking(there == 0 ? 0 : end_reason);
      return;
    }
  }
  blocking_job& job = *blocked;
  job.work = [](detail::job& base, helpers::helper& self) noexcept {
    blocking_session(static_cast<blocking_job&>(base), self).run();
  };
  job.deliver = [](detail::completion& done, core_resources& on) {
    auto& back = static_cast<detail::job&>(done);
    if (!back.taken_back) on.helpers->delivered(on.now_ns);
    back.owner->blocking_is_back();
  };
  // From here on the helper waits for the socket; what happens there must not wake the core as well.
  if (registered && core->poller.remove(fd) == 0) registered = false;
  phase = slot_phase::blocking;
  read_deadline_ns = 0;
  unqueue();
  if (core->helpers->submit(job, core->now_ns) == helpers::pool::submission::refused) {
    phase = slot_phase::waiting;
    end_blocking(static_cast<int>(errc::queue_full));
    return;
  }
  ++core->counters.accepted;
}

// Ends the connection for both sides at once, under whoever waits for the descriptor; the descriptor stays.
void slot::sever() noexcept {
  if (fd < 0) return;
  // With a RST, where a shutdown would let the peer take it for a clean end. Linux refuses it for unix sockets, and
  // since 6.4 while a thread is inside recv.
  if (sys::disconnect(fd) < 0) (void)sys::shutdown(fd, SHUT_RDWR);
}

void slot::interrupt_blocking(int reason) noexcept {
  int none = 0;
  // Release: who reads it also sees that the socket is shut down for a reason; the first reason stands.
  (void)blocked->interrupted.compare_exchange_strong(none, reason, std::memory_order_release,
                                                     std::memory_order_relaxed);
  sever();
}

// Now, or when the helper gives it back.
void slot::end_blocking(int reason) noexcept {
  if (phase == slot_phase::blocking && !core->helpers->withdraw(*blocked)) {
    interrupt_blocking(reason);
    return;
  }
  if (reason != 0) resetting = true;  // else it ends without a word
  phase = slot_phase::blocking;
  blocking_is_back();
}

void slot::blocking_is_back() noexcept {
  if (blocked == nullptr) {
    close_descriptor();
    recycle();
    return;
  }
  blocking_job& job = *blocked;
  core_counters& counters = core->counters;
  if (job.exception) core->report(std::exchange(job.exception, nullptr));
  counters.timeouts.add(job.timeouts);
  counters.resets_received.add(job.resets_received);
  if (job.truncated) ++counters.tls_truncated;
  if (job.failed_records) ++counters.tls_failed_records;
  if (job.handshake_done) counters.add_handshake(job.v1_3, job.resumed, job.cipher);
  if (job.handshake_failed) {
    ++counters.of(job.failure);
    if (core->on_tls_failure) core->on_tls_failure(job.failure, job.failure_reason, peer);
  }
  if (job.interrupted.load(std::memory_order_relaxed) == static_cast<int>(errc::shutting_down))
    ++counters.halted;
  resetting = resetting || job.reset;
  delete std::exchange(blocked, nullptr);
  close_descriptor();
  recycle();
}

void slot::on_blocking_deadline() noexcept {
  const std::int64_t now = core->now_ns;
  const std::int64_t lifetime_end = lifetime_timeout_ms == 0 ? 0 : start_ns + to_ns(lifetime_timeout_ms);
  const bool waits = phase == slot_phase::waiting;
  if (lifetime_end != 0 && lifetime_end <= now) {
    ++core->counters.timeouts;
    end_blocking(static_cast<int>(errc::timed_out));
    return;
  }
  if (waits && read_deadline_ns != 0 && read_deadline_ns <= now) {
    ++core->counters.timeouts;
    end_blocking(0);  // nothing was said, so nothing is lost
    return;
  }
  if (waits && read_deadline_ns != 0) arm(read_deadline_ns);
  if (lifetime_end != 0) arm(lifetime_end);
}

}  // namespace percore::engine
