// Counters of a server, per core and summed.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <percore/address.hpp>
#include <percore/socket_options.hpp>

namespace percore {

// How long something took, counted by powers of two.
struct time_histogram {
  static constexpr std::size_t buckets = 24;
  // counts[0]: below 1 us; counts[i]: from 2^(i-1) us to below 2^i us; the last one: all that is longer (from 4.2 s).
  std::array<std::uint64_t, buckets> counts{};

  [[nodiscard]] std::uint64_t total() const noexcept;
  // An upper bound, in microseconds, of the time that `share` (0 to 1) of them did not exceed; 0 when there are none.
  [[nodiscard]] std::uint64_t quantile_us(double share) const noexcept;
  time_histogram& operator+=(const time_histogram& other) noexcept;
};

// The helper threads of a core: see server_options::helpers. In a sum over cores the high-water marks are added too.
struct helper_stats {
  std::uint64_t alive = 0;        // threads now
  std::uint64_t most_alive = 0;   // high-water mark of it
  std::uint64_t spawned = 0;      // threads started
  std::uint64_t retired = 0;      // ... and ended again because they were idle
  std::uint64_t refused = 0;      // threads that the kernel refused to start
  std::uint64_t queued = 0;       // jobs in the queue now, and places of those taken back that no helper has passed yet
  std::uint64_t most_queued = 0;  // high-water mark of it
  std::uint64_t submitted = 0;    // jobs given to the helpers
  std::uint64_t full = 0;         // jobs that found the queue full, whether they then waited or were refused
  std::uint64_t cancelled = 0;    // jobs taken back before a helper had them
  std::uint64_t woken = 0;        // helpers that had to be woken for a job
  time_histogram wait;            // from the turn of the loop that submitted a job to a helper's beginning with it
  time_histogram run;             // on the helper

  helper_stats& operator+=(const helper_stats& other) noexcept;
};

// Each core writes its own with plain stores; a reader on another thread sees each counter whole, and the set as of
// about the same moment. All count from start() except `active`.
struct core_stats {
  std::uint64_t accepted = 0;            // connections whose handler was started
  std::uint64_t active = 0;              // open now
  std::uint64_t refused_limit = 0;       // reset because of a limit of open connections (limit_policy::refuse)
  std::uint64_t refused_memory = 0;      // reset because no frame or no epoll entry could be had
  std::uint64_t accept_aborted = 0;      // ended by the peer in the accept queue (ECONNABORTED and network errors)
  std::uint64_t accept_paused_files = 0;   // times accepting paused for EMFILE or ENFILE
  std::uint64_t accept_paused_memory = 0;  // times accepting paused for ENOMEM or ENOBUFS
  std::uint64_t accept_paused_limit = 0;   // times accepting paused for a limit of open connections
  std::uint64_t bytes_received = 0;
  std::uint64_t bytes_sent = 0;          // as given to the socket: with TLS records, but not with those of the kernel
  std::uint64_t handler_errors = 0;      // exceptions that left a handler or a posted function
  std::uint64_t resets_received = 0;     // connections on which an operation failed with connection_reset
  std::uint64_t timeouts = 0;            // operations failed with timed_out
  std::uint64_t buffers_exhausted = 0;   // reads that had to wait for a read buffer
  std::uint64_t frames_on_heap = 0;      // coroutine frames that did not fit their slot
  std::uint64_t contexts_on_heap = 0;    // contexts that did not fit their slot
  std::uint64_t unsent_tails = 0;        // writes of which a tail had to be kept (one heap allocation each)
  std::uint64_t first_read_hits = 0;     // connections whose first bytes were there at accept
  std::uint64_t wakeups = 0;             // returns of epoll_wait
  std::uint64_t events = 0;              // readiness events that they brought
  std::uint64_t messages = 0;            // mailbox messages run
  std::uint64_t halted = 0;              // connections whose handler was ended by halt() or the end of a grace
  std::uint64_t dialled = 0;             // outgoing connections made
  std::uint64_t dials_failed = 0;
  std::uint64_t dials_offering = 0;      // TLS handshakes of dials that had a session to resume, ...
  std::uint64_t dials_resuming = 0;      // ... and dials that did; tls_resumptions counts them too
  std::uint64_t pipes_exhausted = 0;     // chunks that were copied because no pipe was left
  std::uint64_t proxy_refused = 0;       // connections reset for want of a PROXY header, or of trust in who sent it
  // listen_options::zero_copy_from_bytes: sends of which the kernel was given the memory instead of a copy, and their bytes; ...
  std::uint64_t zero_copy_sends = 0;
  std::uint64_t zero_copy_bytes = 0;
  std::uint64_t zero_copy_copied = 0;    // ... those that it copied all the same
  std::uint64_t zero_copy_refused = 0;   // sends that were copied because it would take no more memory, or not this one
  std::uint64_t zero_copy_off = 0;       // connections that gave it up, since the kernel copied again and again
  std::uint64_t zero_copy_overdue = 0;   // connections halted although a device still had memory of theirs after 100 ms
  std::uint64_t spilled = 0;             // slices of coroutine handlers run by helpers: see listen_options::spill
  std::uint64_t spill_begins = 0;        // times a listener became slow (spilling::when_slow)
  std::uint64_t takeovers = 0;           // times another thread took the core over: see takeover_options
  std::uint64_t takeover_refused = 0;    // times the kernel refused a thread that was to stand by; tried again each second
  std::uint64_t stalls = 0;              // times that something kept the core longer than stall_options::threshold

  // TLS, for listeners and start_tls alike.
  std::uint64_t tls_handshakes = 0;  // done, resumed ones included
  std::uint64_t tls_resumptions = 0;
  std::uint64_t tls_v1_2 = 0;  // of the handshakes, those that agreed on TLS 1.2, ...
  std::uint64_t tls_v1_3 = 0;
  std::uint64_t tls_aes_128_gcm = 0;  // ... and on this cipher
  std::uint64_t tls_aes_256_gcm = 0;
  std::uint64_t tls_chacha20_poly1305 = 0;
  std::uint64_t tls_other_ciphers = 0;
  std::uint64_t tls_kernel_sends = 0;    // connections whose sending went over to the kernel (tls_options::kernel)
  std::uint64_t tls_truncated = 0;       // streams that ended without close_notify
  std::uint64_t tls_failed_records = 0;  // connections that a bad record or message has ended after the handshake
  // Failed handshakes by cause; tls_failure says what each one means.
  std::uint64_t tls_failed_timed_out = 0;
  std::uint64_t tls_failed_peer_gone = 0;
  std::uint64_t tls_failed_not_tls = 0;
  std::uint64_t tls_failed_plain_http = 0;
  std::uint64_t tls_failed_nothing_shared = 0;
  std::uint64_t tls_failed_certificate = 0;
  std::uint64_t tls_failed_alert = 0;
  std::uint64_t tls_failed_protocol = 0;
  std::uint64_t tls_failed_internal = 0;

  helper_stats helpers;

  core_stats& operator+=(const core_stats& other) noexcept;
};

// What became of a listener at start(); it does not change while the server runs.
struct listener_stats {
  address where;                            // what it really listens on
  steering steered_by = steering::hash;     // how connections find their core; never automatic
  std::string steering_reason;              // why so, in a few words for a person to read
};

struct server_stats {
  std::vector<core_stats> cores;
  core_stats total;
  std::vector<listener_stats> listeners;  // by their numbers
};

}  // namespace percore
