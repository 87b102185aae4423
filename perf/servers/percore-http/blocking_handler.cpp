// The server as a blocking handler: what a program that knows no coroutines would write.
#include <percore/error.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <memory>
#include <string>
#include <thread>

#include "perf/servers/percore-http/chunked_decoder.hpp"
#include "perf/servers/percore-http/handler.hpp"

namespace percore_http {
namespace {

using percore::blocking_connection;
using percore::bytes_view;

// As the other handler does: a close with unread bytes would make the kernel send a RST.
void linger(blocking_connection& conn) {
  constexpr std::chrono::milliseconds longest{2000};
  conn.shutdown_write();
  conn.set_deadline(std::chrono::steady_clock::now() + longest);
  while (conn.read()) {
  }
}

void refuse(blocking_connection& conn, core_state& core, std::uint16_t status, bool with_body) {
  if (conn.write(core.responses.error_response(status, with_body, std::chrono::steady_clock::now())))
    linger(conn);
}

// Reads the body and forgets it; needs more: the peer has gone.
parse_result skip_body(blocking_connection& conn, const request_limits& limits, const request& head) {
  if (head.chunked) {
    chunked_decoder decoder(limits);
    while (const bytes_view data = conn.read()) {
      std::string_view rest = data;
      const parse_result result = decoder.feed(rest);
      if (result.needs_more()) continue;
      conn.unread(rest.size());
      return result;
    }
    return parse_result::need_more();
  }
  for (std::uint64_t left = head.content_length; left != 0;) {
    const bytes_view data = conn.read();
    if (!data) return parse_result::need_more();
    const auto taken = static_cast<std::size_t>(std::min<std::uint64_t>(left, data.size()));
    conn.unread(data.size() - taken);
    left -= taken;
  }
  return parse_result::complete();
}

bool is_served(std::string_view method) noexcept {
  for (const std::string_view known : {"GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"}) {
    if (method == known) return true;
  }
  return false;
}

// One request. False when the connection is to be closed.
bool serve(blocking_connection& conn, core_state& core, const handler_options& options) {
  const bytes_view text = conn.read_until("\r\n\r\n", options.limits.head_bytes);
  if (!text) {
    if (conn.error() == percore::errc::limit_exceeded) refuse(conn, core, 431, true);
    return false;
  }
  request head;
  parse_result result = parse_request(text, options.limits, head);
  const bool sleeps = options.sleep.count() != 0 && result.is_complete() &&
                      (options.sleep_target.empty() || head.target == options.sleep_target);
  if (result.is_complete() && !is_served(head.method)) result = parse_result::error(501);
  if (result.needs_more()) result = parse_result::error(400);
  if (result.is_complete()) {
    if (head.expect_continue && !conn.write("HTTP/1.1 100 Continue\r\n\r\n")) return false;
    result = skip_body(conn, options.limits, head);
    if (result.needs_more()) return false;
  }
  if (result.is_error()) {
    refuse(conn, core, result.error_status(), !head.is_head);
    return false;
  }
  if (sleeps) std::this_thread::sleep_for(options.sleep);
  const bool keep_alive = head.keep_alive && options.keep_alive && !conn.server_stopping();
  const response_lease response =
      core.responses.take(keep_alive, head.is_head ? 0 : 1, std::chrono::steady_clock::now());
  const std::array<bytes_view, 2> pieces{response.head(), head.is_head ? bytes_view() : response.content()};
  if (!conn.write(std::span<const bytes_view>(pieces))) return false;
  if (!keep_alive && conn.buffered_bytes() != 0) linger(conn);
  return keep_alive;
}

}  // namespace

void blocking_http_handler::operator()(blocking_connection& conn) const {
  // Of this helper thread, which ends before the application does.
  thread_local std::unique_ptr<core_state> state;
  if (state == nullptr) state = app_->make_state(true);
  bool more = true;
  while (more) {
    more = serve(conn, *state, app_->options());
    if (more || !conn.error()) app_->helper_answered(conn.core_index());
  }
}

}  // namespace percore_http
