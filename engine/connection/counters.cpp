#include "engine/connection/counters.hpp"

#include <openssl/obj_mac.h>

namespace percore {

namespace {

// One list for the snapshot and the sum, so that a counter cannot be in one and not in the other.
template <class Visitor>
void for_each_counter(Visitor&& visit) {
  using live = engine::core_counters;
  using plain = core_stats;
  visit(&live::accepted, &plain::accepted);
  visit(&live::active, &plain::active);
  visit(&live::refused_limit, &plain::refused_limit);
  visit(&live::refused_memory, &plain::refused_memory);
  visit(&live::accept_aborted, &plain::accept_aborted);
  visit(&live::accept_paused_files, &plain::accept_paused_files);
  visit(&live::accept_paused_memory, &plain::accept_paused_memory);
  visit(&live::accept_paused_limit, &plain::accept_paused_limit);
  visit(&live::bytes_received, &plain::bytes_received);
  visit(&live::bytes_sent, &plain::bytes_sent);
  visit(&live::handler_errors, &plain::handler_errors);
  visit(&live::resets_received, &plain::resets_received);
  visit(&live::timeouts, &plain::timeouts);
  visit(&live::buffers_exhausted, &plain::buffers_exhausted);
  visit(&live::frames_on_heap, &plain::frames_on_heap);
  visit(&live::contexts_on_heap, &plain::contexts_on_heap);
  visit(&live::unsent_tails, &plain::unsent_tails);
  visit(&live::first_read_hits, &plain::first_read_hits);
  visit(&live::wakeups, &plain::wakeups);
  visit(&live::events, &plain::events);
  visit(&live::messages, &plain::messages);
  visit(&live::halted, &plain::halted);
  visit(&live::dialled, &plain::dialled);
  visit(&live::dials_failed, &plain::dials_failed);
  visit(&live::dials_offering, &plain::dials_offering);
  visit(&live::dials_resuming, &plain::dials_resuming);
  visit(&live::pipes_exhausted, &plain::pipes_exhausted);
  visit(&live::proxy_refused, &plain::proxy_refused);
  visit(&live::zero_copy_sends, &plain::zero_copy_sends);
  visit(&live::zero_copy_bytes, &plain::zero_copy_bytes);
  visit(&live::zero_copy_copied, &plain::zero_copy_copied);
  visit(&live::zero_copy_refused, &plain::zero_copy_refused);
  visit(&live::zero_copy_off, &plain::zero_copy_off);
  visit(&live::zero_copy_overdue, &plain::zero_copy_overdue);
  visit(&live::spilled, &plain::spilled);
  visit(&live::spill_begins, &plain::spill_begins);
  visit(&live::takeovers, &plain::takeovers);
  visit(&live::takeover_refused, &plain::takeover_refused);
  visit(&live::tls_handshakes, &plain::tls_handshakes);
  visit(&live::tls_resumptions, &plain::tls_resumptions);
  visit(&live::tls_v1_2, &plain::tls_v1_2);
  visit(&live::tls_v1_3, &plain::tls_v1_3);
  visit(&live::tls_aes_128_gcm, &plain::tls_aes_128_gcm);
  visit(&live::tls_aes_256_gcm, &plain::tls_aes_256_gcm);
  visit(&live::tls_chacha20_poly1305, &plain::tls_chacha20_poly1305);
  visit(&live::tls_other_ciphers, &plain::tls_other_ciphers);
  visit(&live::tls_kernel_sends, &plain::tls_kernel_sends);
  visit(&live::tls_truncated, &plain::tls_truncated);
  visit(&live::tls_failed_records, &plain::tls_failed_records);
  visit(&live::tls_failed_timed_out, &plain::tls_failed_timed_out);
  visit(&live::tls_failed_peer_gone, &plain::tls_failed_peer_gone);
  visit(&live::tls_failed_not_tls, &plain::tls_failed_not_tls);
  visit(&live::tls_failed_plain_http, &plain::tls_failed_plain_http);
  visit(&live::tls_failed_nothing_shared, &plain::tls_failed_nothing_shared);
  visit(&live::tls_failed_certificate, &plain::tls_failed_certificate);
  visit(&live::tls_failed_alert, &plain::tls_failed_alert);
  visit(&live::tls_failed_protocol, &plain::tls_failed_protocol);
  visit(&live::tls_failed_internal, &plain::tls_failed_internal);
}

}  // namespace

void engine::core_counters::add_handshake(bool v1_3, bool resumed, int cipher) noexcept {
  ++tls_handshakes;
  if (resumed) ++tls_resumptions;
  ++(v1_3 ? tls_v1_3 : tls_v1_2);
  switch (cipher) {
    case NID_aes_128_gcm:
      ++tls_aes_128_gcm;
      break;
    case NID_aes_256_gcm:
      ++tls_aes_256_gcm;
      break;
    case NID_chacha20_poly1305:
      ++tls_chacha20_poly1305;
      break;
    default:
      ++tls_other_ciphers;
      break;
  }
}

base::counter& engine::core_counters::of(tls_failure cause) noexcept {
  switch (cause) {
    case tls_failure::timed_out:
      return tls_failed_timed_out;
    case tls_failure::peer_gone:
      return tls_failed_peer_gone;
    case tls_failure::not_tls:
      return tls_failed_not_tls;
    case tls_failure::plain_http:
      return tls_failed_plain_http;
    case tls_failure::nothing_shared:
      return tls_failed_nothing_shared;
    case tls_failure::certificate:
      return tls_failed_certificate;
    case tls_failure::alert:
      return tls_failed_alert;
    case tls_failure::protocol:
      return tls_failed_protocol;
    case tls_failure::internal:
      break;
  }
  return tls_failed_internal;
}

core_stats engine::core_counters::snapshot() const noexcept {
  core_stats result;
  for_each_counter([&](auto live, auto plain) { result.*plain = (this->*live).get(); });
  return result;
}

core_stats& core_stats::operator+=(const core_stats& other) noexcept {
  for_each_counter([&](auto, auto plain) { this->*plain += other.*plain; });
  stalls += other.stalls;
  helpers += other.helpers;
  return *this;
}

}  // namespace percore
