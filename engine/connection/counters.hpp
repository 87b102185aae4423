#pragma once

#include <percore/stats.hpp>
#include <percore/tls.hpp>

#include "engine/base/counter.hpp"

namespace percore::engine {

// The live counters of one core, written by its thread only. What each one counts is said in stats.hpp.
struct core_counters {
  base::counter accepted;
  base::counter active;
  base::counter refused_limit;
  base::counter refused_memory;
  base::counter accept_aborted;
  base::counter accept_paused_files;
  base::counter accept_paused_memory;
  base::counter accept_paused_limit;
  base::counter bytes_received;
  base::counter bytes_sent;
  base::counter handler_errors;
  base::counter resets_received;
  base::counter timeouts;
  base::counter buffers_exhausted;
  base::counter frames_on_heap;
  base::counter contexts_on_heap;
  base::counter unsent_tails;
  base::counter first_read_hits;
  base::counter wakeups;
  base::counter events;
  base::counter messages;
  base::counter halted;
  base::counter dialled;
  base::counter dials_failed;
  base::counter dials_offering;
  base::counter dials_resuming;
  base::counter pipes_exhausted;
  base::counter proxy_refused;
  base::counter zero_copy_sends;
  base::counter zero_copy_bytes;
  base::counter zero_copy_copied;
  base::counter zero_copy_refused;
  base::counter zero_copy_off;
  base::counter zero_copy_overdue;
  base::counter spilled;
  base::counter spill_begins;
  base::counter takeovers;
  base::counter takeover_refused;
  base::counter tls_handshakes;
  base::counter tls_resumptions;
  base::counter tls_v1_2;
  base::counter tls_v1_3;
  base::counter tls_aes_128_gcm;
  base::counter tls_aes_256_gcm;
  base::counter tls_chacha20_poly1305;
  base::counter tls_other_ciphers;
  base::counter tls_kernel_sends;
  base::counter tls_truncated;
  base::counter tls_failed_records;
  base::counter tls_failed_timed_out;
  base::counter tls_failed_peer_gone;
  base::counter tls_failed_not_tls;
  base::counter tls_failed_plain_http;
  base::counter tls_failed_nothing_shared;
  base::counter tls_failed_certificate;
  base::counter tls_failed_alert;
  base::counter tls_failed_protocol;
  base::counter tls_failed_internal;

  [[nodiscard]] base::counter& of(tls_failure cause) noexcept;
  // `cipher`: OpenSSL's NID.
  void add_handshake(bool v1_3, bool resumed, int cipher) noexcept;

  [[nodiscard]] core_stats snapshot() const noexcept;
};

}  // namespace percore::engine
