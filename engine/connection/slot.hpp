#pragma once

#include <cstddef>
#include <cstdint>

#include <percore/connection.hpp>
#include <percore/dial.hpp>
#include <percore/proxy_protocol.hpp>
#include <percore/server.hpp>
#include <percore/task.hpp>

#include "engine/base/assert.hpp"
#include "engine/base/cache_line.hpp"
#include "engine/connection/core_resources.hpp"
#include "engine/connection/frame_arena.hpp"
#include "engine/connection/read_buffers.hpp"
#include "engine/connection/slot_parts.hpp"

namespace percore::engine {

// [[gnu::hot]] marks what every request of a kept connection runs: the linker lays these functions side by side, on a
// few pages. Between two requests the kernel takes the caches; scattered over the program they cost 0.1 us more.
//
// A connection and all that belongs to it: the state of its operations and, behind this object, the arena of its
// handler's frames. What every request touches comes first.
//
// The state machine in short. An operation first tries the system call (start_*). When it would block, the caller's
// coroutine is noted (reader_ or writer_), the descriptor is added to the poller if it never was, and on_event or a
// place in core.ready calls advance_* until the operation is done; then the coroutine is resumed. Whoever resumes
// must afterwards look whether the slot still holds the same connection (generation).
struct alignas(base::cache_line_bytes) slot final : connection {
  slot(core_resources& owner, std::uint32_t number) noexcept;
  slot(const slot&) = delete;
  slot& operator=(const slot&) = delete;
  ~slot();

  static slot& of(connection& conn) noexcept { return static_cast<slot&>(conn); }
  static const slot& of(const connection& conn) noexcept { return static_cast<const slot&>(conn); }

  // --- the first line: every event, every read -------------------------------------------------------------
  core_resources* const core;
  std::uint32_t generation = 1;  // of the connection that it holds or will hold next
  int fd = -1;
  slot_phase phase = slot_phase::free;
  read_kind reading = read_kind::none;
  bool registered = false;         // with the poller
  bool readable = false;           // recv may have something: cleared when it has not
  bool writable = true;
  bool short_read_drains = true;   // a short recv means an empty queue: not after FIN, error or urgent data
  bool end_seen = false;           // the peer's FIN
  bool ended = false;              // no operation succeeds any more; end_reason tells why
  bool queued = false;             // ready_node is in a list: run_ready will look at the operations
  bool postponed = false;          // the operation waits for the next turn, not for the socket
  bool starved = false;            // the read waits for a buffer
  bool timed = false;              // there is a read or an idle timeout
  bool sending_done = false;       // no more writes: shutdown_write, write_last, close
  bool fin_pending = false;        // the last segment waits in the socket for its FIN (MSG_MORE)
  bool fin_after_tail = false;
  bool write_ok = false;
  bool writing = false;            // a write that the socket has not taken at once: pieces and what follows hold
  slot_doom doomed = slot_doom::none;
  bool closing = false;            // close() was called: ended, but the tail is still sent
  bool resetting = false;          // close with a RST
  std::uint32_t view_size = 0;     // the last view: [begin - view_size, begin)
  std::uint32_t begin = 0;         // unread bytes of the buffer: [begin, end)
  std::uint32_t end = 0;
  read_buffer* buffer = nullptr;
  std::coroutine_handle<> reader;

  // --- the second line: every resumption, every write ------------------------------------------------------
  std::uint32_t operations = 0;    // since the handler was resumed
  bool encrypted = false;          // `secure` stands between the operations and the socket,
  bool encrypting = false;         // also for what is sent: not once the kernel encrypts that
  bool indirect = false;           // a write may not go straight to the socket: encrypted, or large enough to be lent
  slice_home slices = slice_home::core;
  std::coroutine_handle<detail::promise<void>> root;
  std::coroutine_handle<> writer;
  unsent_tail* tail = nullptr;
  const listener_config* listener = nullptr;
  std::int64_t last_activity_ns = 0;  // kept while `timed`
  tls::session* secure = nullptr;  // TLS: set from the beginning of its handshake to the end of the connection
  union {
    slot* next_free = nullptr;  // in the phase free
    slice_job* slice;           // in all others; none as long as no slice has been away
  };

  // --- a read in progress: until, into, full ---------------------------------------------------------------
  std::byte* target = nullptr;
  std::size_t target_size = 0;
  std::size_t target_done = 0;
  const char* delimiter = nullptr;
  std::uint32_t delimiter_size = 0;
  std::uint32_t limit = 0;
  // until: bytes from `begin` that hold no beginning of the delimiter; more: those that the caller knows.
  std::uint32_t searched = 0;

  // --- a write in progress, when the socket has not taken it at once ---------------------------------------
  union {
    const bytes_view* pieces = nullptr;  // the first one not wholly taken
    detail::write_source* source;        // instead, when piece_count is `from_source`
  };
  static constexpr std::size_t from_source = ~std::size_t{0};
  std::size_t piece_count = 0;
  std::size_t piece_offset = 0;        // bytes of it that are
  std::size_t write_remaining = 0;

  // --- time ------------------------------------------------------------------------------------------------
  slot_timer deadline_timer;  // one for all timeouts; armed for the earliest, looks again when it fires
  slot_ready ready_node;      // in core.ready, or waiting for a read buffer
  detail::sleep_awaiter* sleeper = nullptr;
  std::uint32_t read_timeout_ms = 0;
  std::uint32_t idle_timeout_ms = 0;
  std::uint32_t write_timeout_ms = 0;
  std::uint32_t lifetime_timeout_ms = 0;
  std::int64_t start_ns = 0;
  std::int64_t read_deadline_ns = 0;
  std::int64_t write_deadline_ns = 0;

  // --- cold ------------------------------------------------------------------------------------------------
  std::uint32_t const index;
  int error_value = 0;  // > 0: errc, < 0: -errno
  int end_reason = 0;   // the same, for all operations once `ended`
  percore::peer_address peer;
  void* context = nullptr;
  const void* context_type = nullptr;
  void (*destroy_context)(void*) noexcept = nullptr;
  bool context_on_heap = false;
  bool relayed = false;            // a shutdown does not end its reads
  bool dialled = false;            // outgoing: `listener` is its outgoing_state, and there is no `root`
  bool write_last = false;
  std::uint32_t zero_copy_from = 0;  // size of a write from which it is lent to the kernel; 0: none is
  frame_arena arena;
  detail::offload_piece* piece = nullptr;  // what the handler waits for: offloaded, or about to be answered
  union {
    blocking_job* blocked = nullptr;         // in the phases waiting and blocking
    const proxy_header* proxied;             // before: what a balancer has said of the client
  };
  zero_copy* lending = nullptr;    // once a write was lent to the kernel

  // Starts loading what an event of this connection will touch: the lines above and the handler's frame. They come out
  // of the last-level cache, or from memory, all at once instead of one after the other, and for all but the first
  // event of a batch while the kernel still works for the connection before.
  // Always inlined: g++ 12 takes a function that only prefetches for one without effect and drops calls of it.
  [[gnu::always_inline]] void prefetch() const noexcept {
    const auto* first = reinterpret_cast<const char*>(this);
    __builtin_prefetch(first);
    __builtin_prefetch(first + base::cache_line_bytes);
    __builtin_prefetch(first + sizeof(slot));
    __builtin_prefetch(first + sizeof(slot) + base::cache_line_bytes);
    __builtin_prefetch(first + sizeof(slot) + 2 * base::cache_line_bytes);
    __builtin_prefetch(first + sizeof(slot) + 3 * base::cache_line_bytes);
    __builtin_prefetch(first + sizeof(slot) + 4 * base::cache_line_bytes);
  }

  // The same for a slot in which a connection will be opened: all of it is written. accept4 takes long enough.
  [[gnu::always_inline]] void prefetch_for_open() const noexcept {
    const auto* first = reinterpret_cast<const char*>(this);
    for (std::size_t i = 0; i < sizeof(slot) + 4 * base::cache_line_bytes; i += base::cache_line_bytes) {
      __builtin_prefetch(first + i, 1);
    }
  }

  [[nodiscard]] bool is_away() const noexcept { return phase == slot_phase::away; }
  void check_running() noexcept {
    if (core->running != this) note_host();
  }
  std::byte* arena_memory() noexcept { return reinterpret_cast<std::byte*>(this + 1); }
  [[nodiscard]] std::uint64_t token() const noexcept { return std::uint64_t{generation} << 32 | index; }

  // lifecycle.cpp ------------------------------------------------------------------------------------------
  // Takes over an accepted descriptor; `try_first_read`: the first bytes are probably there already.
  void open(int accepted_fd, const percore::peer_address& from, const listener_config& config,
            bool try_first_read) noexcept;
  // Runs the handler until its first wait.
  void start_handler() noexcept;
  [[gnu::hot]] void resume(std::coroutine_handle<> handle) noexcept;
  // reset(): the descriptor is closed while the handler still runs.
  void close_now() noexcept { close_descriptor(); }
  // A fresh event of the poller.
  [[gnu::hot]] void on_event(std::uint32_t events) noexcept;
  // Looks at both operations again, at the next step of the loop.
  void wake_soon() noexcept;
  void unqueue() noexcept {
    ready_node.unlink();
    queued = false;
  }
  // The same for the read, which is about to end; a write may have to be looked at still.
  void unqueue_reader() noexcept {
    if (writer) {
      wake_soon();
    } else {
      unqueue();
    }
  }
  void fail(int value) noexcept { error_value = value; }
  // Adds the descriptor to the poller if it is not. False when the kernel refuses; the connection has then ended.
  [[gnu::hot]] bool ensure_registered() noexcept;

  // ending.cpp ---------------------------------------------------------------------------------------------
  // Ends all operations, now and later, with `reason` (errc, or -errno). Waiting coroutines are put up for resuming.
  void end_with(int reason) noexcept;
  // A system call has failed with -errno `result`: the same, and counted.
  void io_failed(int result) noexcept;
  // close(): sends what is unsent, then closes.
  void begin_close() noexcept;
  // The handler's frame is destroyed where it waits; the connection is reset.
  void halt() noexcept;
  // A shutdown has begun: a reader that waits for a new message fails, and handshakes have little time left.
  void begin_drain() noexcept;
  // The grace is over: operations fail; a handler that waits again afterwards is halted.
  void end_grace() noexcept;

  // read.cpp -----------------------------------------------------------------------------------------------
  [[gnu::hot]] bool start_read(read_kind kind) noexcept;                    // true: done, with success or failure
  [[gnu::hot]] bool suspend_read(std::coroutine_handle<> waiter) noexcept;  // false: done after all
  [[gnu::hot]] void continue_read() noexcept;                               // tries on; resumes the reader when done
  void fail_reader(int value) noexcept;                        // ends the waiting read and resumes the reader
  [[nodiscard]] bool waits_for_new_message() const noexcept;
  [[nodiscard]] bytes_view view() const noexcept;
  void drop_buffer() noexcept;
  bool splice_into(int pipe, std::uint64_t most, std::size_t& done) noexcept;  // copying.cpp

  // write.cpp ----------------------------------------------------------------------------------------------
  [[gnu::hot]] bool start_write(const bytes_view* first, std::size_t count, bool last) noexcept;
  bool suspend_write(std::coroutine_handle<> waiter) noexcept;
  void continue_output() noexcept;  // sends on; resumes the writer when done
  bool try_write_now(bytes_view data) noexcept;
  // source.cpp: writes whose bytes are not the caller's memory; suspended and continued as any other.
  bool start_source(detail::write_source& from) noexcept;
  // For sources. Books the result of a system call that sends: after EAGAIN the socket waits, a failure ends the connection.
  ssize_t sent(ssize_t result) noexcept;
  // Encrypts and sends. False when the session has failed.
  bool send_plaintext(const std::byte* data, std::size_t size) noexcept;
  void finish_sending() noexcept;  // FIN, now or after the tail
  void drop_tail() noexcept;

  // zero_copy.cpp: writes from the caller's memory ----------------------------------------------------------
  void lend_from(std::size_t bytes) noexcept;  // 0: never
  // Waits until the kernel has given everything back: before the frames of who writes are destroyed.
  void take_back_lent() noexcept;
  [[nodiscard]] bool lends() const noexcept;

  // tls.cpp ------------------------------------------------------------------------------------------------
  // The beginning of a connection of a TLS listener: the handshake, then the handler.
  void start_handshake() noexcept;
  void continue_handshake() noexcept;
  void handshake_timed_out() noexcept;
  // start_tls(): true: done, with success or failure.
  bool begin_start_tls(const tls_context& with, buffered_plaintext policy) noexcept;
  bool suspend_start_tls(std::coroutine_handle<> waiter) noexcept;

  // waiting.cpp --------------------------------------------------------------------------------------------
  void interrupt_sleep() noexcept;  // at the next tick
  void resume_sleeper() noexcept;   // now
  [[nodiscard]] bool sleeps_in(std::coroutine_handle<> waiter) const noexcept;

  // offload.cpp --------------------------------------------------------------------------------------------
  // The connection has ended: takes its piece back from the helpers if none has it yet, and says so to it otherwise.
  void interrupt_piece() noexcept;
  // False when a helper has it: then it must be waited for.
  bool recall_piece() noexcept;
  void leave_piece() noexcept;
  [[nodiscard]] bool offloads_in(std::coroutine_handle<> waiter) const noexcept;  // forks.cpp: and can be cut short
  // Recalls it and goes on with the handler now, which is told `reason`. False as above.
  bool answer_piece(int reason) noexcept;
  void piece_is_back(std::coroutine_handle<> waiter) noexcept;
  // The peer's reset is all that a connection hears of while its handler waits for a helper.
  void look_for_reset() noexcept;

  // blocking.cpp -------------------------------------------------------------------------------------------
  void start_blocking() noexcept;
  void blocking_event() noexcept;
  void blocking_is_back() noexcept;
  // Wakes the helper out of whatever it waits for on the descriptor: its operations fail with `reason`.
  void interrupt_blocking(int reason) noexcept;
  void sever() noexcept;
  void end_blocking(int reason) noexcept;
  void on_blocking_deadline() noexcept;

  // A helper has this connection and does not come back: ends what the peer can see of it, and leaves the rest.
  void abandon() noexcept;
  // Nobody has it any more, and its core goes.
  void forget() noexcept;

  // slice.cpp ----------------------------------------------------------------------------------------------
  void slice_is_back() noexcept;
  // Of a slice that has run on the core's own thread, which still has the core, and after which nothing is to be done but to
  // read on, which has to wait: all that slice_is_back would do. False: it must.
  [[gnu::hot]] bool take_up_reading() noexcept;
  // Another coroutine of the handler could go on: once the slice is back.
  void put_off(detail::ready_node& node) noexcept;
  void put_off(detail::timer_node& node) noexcept;
  void put_off(detail::message&& message);  // throws std::bad_alloc, std::length_error

  // away.cpp -----------------------------------------------------------------------------------------------
  [[gnu::hot]] bool request_read(std::coroutine_handle<> waiter) noexcept;
  // Away from the core: what the core is to do once the slice is back.
  void request(bool (*start)(void*, std::coroutine_handle<>) noexcept, void* what,
               std::coroutine_handle<> waiter) noexcept;
  // The same for an awaiter: it is asked again on the core.
  template <class Awaiter>
  bool request_wait(Awaiter& awaiter, std::coroutine_handle<> waiter) noexcept {
    using mutable_awaiter = std::remove_const_t<Awaiter>;
    request(
        [](void* what, std::coroutine_handle<> resumed) noexcept {
          auto& self = *static_cast<mutable_awaiter*>(what);
          if constexpr (requires { static_cast<bool>(self.await_suspend(resumed)); }) {
            return self.await_ready() || !self.await_suspend(resumed);
          } else {
            self.await_suspend(resumed);
            return false;
          }
        },
        const_cast<mutable_awaiter*>(&awaiter), waiter);
    return true;
  }
  // An ending of the connection, or of its sending.
  void request_ending(bool (*start)(void*, std::coroutine_handle<>) noexcept) noexcept;
  // A read and a write away from the core. True: done.
  [[gnu::hot]] bool read_away(read_kind kind) noexcept;
  [[gnu::hot]] bool write_away(const bytes_view* first, std::size_t count, bool last) noexcept;
  bool try_write_away(bytes_view data) noexcept;

  // outgoing.cpp -------------------------------------------------------------------------------------------
  [[nodiscard]] outgoing_state& out() const noexcept;
  void open_outgoing(int connected_fd, const percore::peer_address& to, outgoing_state& state, outgoing& owner) noexcept;
  [[gnu::cold]] void note_host() noexcept;
  void resume_host(std::coroutine_handle<> handle) noexcept;
  [[nodiscard]] bool is_waited_for() const noexcept { return reader || writer || sleeper != nullptr; }
  template <class F>
  void for_each_hosted(F f) noexcept;  // outgoing.hpp: those that this one's handler was the last to wait for
  void leave_host() noexcept;
  void forget_waiters() noexcept;
  void forget_hosted_waits() noexcept;
  void let_go() noexcept;  // the owner is gone
  void halt_outgoing() noexcept;
  void take_from_owner() noexcept;
  void disown() noexcept;
  // proxied.cpp: the server's side of TLS, behind a PROXY header.
  bool begin_proxied_tls() noexcept;
  // connecting.cpp: the client's side of TLS, as start_tls.
  bool begin_client_tls(const tls_context& with, const std::string& server_name) noexcept;
  void offer_resumption(const std::string& server_name) noexcept;

  // timeouts.cpp -------------------------------------------------------------------------------------------
  void arm(std::int64_t deadline_ns) noexcept;
  void arm_for_read() noexcept {
    if (timed) arm_read_timeouts();
  }
  void timeouts_changed() noexcept;
  void arm_for_write() noexcept;
  void on_deadline() noexcept;

 private:
  [[gnu::hot]] void run_here(std::coroutine_handle<> handle) noexcept;
  [[gnu::hot]] void resume_detachable(std::coroutine_handle<> handle) noexcept;
  [[gnu::hot]] void look_and_run(std::coroutine_handle<> handle) noexcept;
  [[gnu::hot]] void resume_anywhere(std::coroutine_handle<> handle) noexcept;
  [[gnu::hot]] void go_on(std::coroutine_handle<> handle) noexcept;
  [[gnu::hot]] void run_measured(std::coroutine_handle<> handle) noexcept;
  bool go_to_helpers(std::coroutine_handle<> handle) noexcept;
  bool leave_core(std::coroutine_handle<> handle) noexcept;
  void wait_for_the_loop(std::coroutine_handle<> handle) noexcept;
  [[nodiscard, gnu::hot]] bool slices_are_spilled() const noexcept;
  [[gnu::hot]] bool wait_to_read(std::coroutine_handle<> waiter) noexcept;
  bool take_back_slice() noexcept;
  [[gnu::hot]] void settle_slice() noexcept;
  void settle_rare() noexcept;
  void note_what_happened() noexcept;
  void go_on_with_runnable() noexcept;
  void note_slice(std::int64_t ran_ns) noexcept;
  void note_while_away(std::uint32_t events) noexcept;
  void end_slices() noexcept;
  void tell_late() noexcept;
  void let_others_on() noexcept;
  void hear_last_words() noexcept;

  [[nodiscard]] bool over_budget() const noexcept;
  [[nodiscard]] bool sends_away() const noexcept;
  bool write_few_away(const bytes_view* first, std::size_t count, bool last) noexcept;
  bool written_away(ssize_t result, const bytes_view* first, std::size_t count, bool last) noexcept;

  void handler_returned() noexcept;
  void flush_or_close() noexcept;
  void close_descriptor() noexcept;
  void recycle() noexcept;
  void release_outgoing() noexcept;
  void run_ready() noexcept;

  void arm_read_deadline(std::uint32_t timeout_ms) noexcept;  // 0: none
  void arm_idle_timeout() noexcept;
  void arm_read_timeouts() noexcept;
  void note_activity() noexcept {
    if (timed) last_activity_ns = core->now_ns;
  }

  [[gnu::hot]] bool advance_read() noexcept;  // true: done
  [[gnu::hot]] bool settle_read() noexcept;   // makes sure that something will continue the read; false: done after all
  [[gnu::hot]] bool advance_some() noexcept;
  bool advance_more() noexcept;
  bool advance_until() noexcept;
  bool advance_target() noexcept;
  bool read_ended() noexcept;
  bool take_delimited() noexcept;
  void make_room() noexcept;
  [[gnu::hot]] bool take_buffer() noexcept;
  [[gnu::hot]] void release_idle_buffer() noexcept;
  [[gnu::hot]] ssize_t receive(std::byte* into, std::size_t capacity) noexcept;
  [[gnu::hot]] ssize_t receive_bytes(std::byte* into, std::size_t capacity) noexcept;
  bool read_failed(int value) noexcept;

  void advance_output() noexcept;
  bool flush_tail() noexcept;
  void send_pieces() noexcept;
  bool write_rest(const bytes_view* first, std::size_t count, bool last, std::size_t done, bool in_turn) noexcept;
  bool begin_output(bool in_turn) noexcept;  // of the write that is noted. True: done
  void skip_sent_pieces() noexcept;
  void keep_rest() noexcept;
  bool keep_plain_rest() noexcept;
  [[gnu::hot]] bool send_or_keep(const std::byte* data, std::size_t size, int flags) noexcept;
  bool append_to_tail(const std::byte* data, std::size_t size) noexcept;
  void send_source() noexcept;
  void finish_write(bool ok) noexcept;
  bool fail_write() noexcept;
  [[nodiscard]] bool may_send_at_once(std::size_t size, bool last) const noexcept;
  bool may_lend(const bytes_view* first, std::size_t count) noexcept;
  void begin_lending() noexcept;
  void end_lending() noexcept;
  void drop_lending() noexcept;
  void tail_is_empty() noexcept;

  enum class progress : std::uint8_t { waiting, done, failed };
  bool open_session(const std::shared_ptr<tls::shared_context>& shared) noexcept;
  void close_session() noexcept;
  progress advance_handshake() noexcept;
  bool advance_start_tls() noexcept;
  void fail_start_tls() noexcept;
  void note_ended_start_tls() noexcept;
  void arm_handshake_deadline() noexcept;
  void drain_handshake() noexcept;
  [[nodiscard]] bool is_silent_at_shutdown() const noexcept;
  [[nodiscard]] bool is_shaking_hands() const noexcept { return encrypted && !secure->established(); }
  void note_handshake() noexcept;
  void note_handshake_failure() noexcept;
  void handshake_failed() noexcept;

  // records.cpp --------------------------------------------------------------------------------------------
  [[gnu::hot]] ssize_t receive_records() noexcept;
  [[gnu::hot]] ssize_t receive_decrypted(std::byte* into, std::size_t capacity) noexcept;
  [[gnu::hot]] bool send_encrypted_whole(bytes_view data) noexcept;
  [[gnu::hot]] bool send_records(int flags) noexcept;
  bool send_kernel_messages() noexcept;
  bool send_kernel_message(const tls::kernel_message& message) noexcept;
  bool send_kept_messages() noexcept;
  bool take_over_sending(const void* keys) noexcept;
  void send_encrypted() noexcept;
  bool encrypt_batch() noexcept;
  void encrypt_rest() noexcept;
  void say_goodbye(int flags) noexcept;
  void records_failed() noexcept;
};

// What server_options::slot_bytes says of it.
static_assert(sizeof(slot) == 448);

// The handler of a connection whose listener expects a PROXY header: takes it, and then serves.
task<> serve_proxied(connection& conn, const listener_config& how);

}  // namespace percore::engine
