#include "perf/servers/percore-http/handler.hpp"

#include <percore/error.hpp>

#include <algorithm>
#include <array>
#include <span>
#include <string>
#include <thread>
#include <utility>

#include "perf/servers/percore-http/chunked_decoder.hpp"

namespace percore_http {
namespace {

using percore::bytes_view;
using percore::connection;
using percore::task;

// After an error response: how long, and how much of what the client still sends is read and thrown away.
constexpr std::chrono::milliseconds linger_time{2000};
constexpr std::size_t linger_bytes = 4 * 1024 * 1024;

bool is_served(std::string_view method) noexcept {
  return method == "GET" || method == "POST" || method == "HEAD" || method == "PUT" || method == "DELETE" ||
         method == "OPTIONS" || method == "PATCH";
}

}  // namespace

core_state::core_state(const handler_options& options, const response_layout& layout, bool all_slow)
    : responses(layout),
      keep_alive_(options.keep_alive),
      all_slow_(all_slow),
      sleep_target_(options.sleep.count() != 0 ? options.sleep_target : std::string()),
      most_answers_(options.waits_first() ? 1 : layout.copies(true)),  // then each request waits for itself
      limits_(options.limits) {}

// Answered from the ready response, and nothing has to be waited for: the body, if any, is there whole.
bool core_state::is_quick(const request& head, std::size_t bytes) const noexcept {
  return !head.is_head && !head.chunked && !all_slow_ && head.content_length <= bytes - head.head_bytes &&
         is_served(head.method) && (sleep_target_.empty() || head.target != sleep_target_);
}

request_batch core_state::find_requests(std::string_view data, bool stopping) noexcept {
  request_batch batch;
  const std::size_t most = stopping ? 1 : most_answers_;
  while (batch.bytes != data.size() && batch.answers != most) {
    const std::string_view rest = data.substr(batch.bytes);
    std::size_t request_bytes = last_head_.size();
    bool keep_alive = last_head_.keep_alive();
    if (!last_head_.begins(rest)) [[unlikely]] {
      request head;
      batch.next = judge(rest, head);
      if (batch.next != request_batch::then::read_on) break;
      request_bytes = head.head_bytes + static_cast<std::size_t>(head.content_length);
      keep_alive = head.keep_alive;
    }
    const std::size_t end = batch.bytes + request_bytes;
    if (!keep_alive || !keep_alive_ || (stopping && end == data.size())) {
      if (batch.answers != 0) break;  // its response differs from theirs: the next batch
      batch.next = request_batch::then::close;
    }
    batch.bytes = end;
    ++batch.answers;
    if (batch.next == request_batch::then::close) break;
  }
  return batch;
}

// What to do about the request at the start of `rest`: read_on when it gets the ready response.
request_batch::then core_state::judge(std::string_view rest, request& head) noexcept {
  const parse_result result = parse_request(rest, limits_, head);
  if (result.needs_more()) return request_batch::then::read_more;
  if (!result.is_complete() || !is_quick(head, rest.size())) return request_batch::then::ask_slow;
  if (head.content_length == 0) last_head_.learn(rest.substr(0, head.head_bytes), head.keep_alive);
  return request_batch::then::read_on;
}

application::application(const handler_options& options, body_kind kind, std::size_t body_bytes,
                         std::size_t cores)
    : options_(options), layout_(kind, body_bytes), cores_(cores), helpers_answered_(cores) {
  // What OpenSSL lacks is found out now and not at the first connection.
  core_state trial(options_, layout_, all_slow());
  (void)trial.responses.take(true, 1, std::chrono::steady_clock::now());
}

// Threads --------------------------------------------------------------------------------------------------

core_state& thread_states::take(std::size_t core, const std::function<std::unique_ptr<core_state>()>& make) {
  const std::lock_guard lock(mutex_);
  for (entry& left : entries_) {
    if (left.core == core && !std::exchange(left.taken, true)) return *left.state;
  }
  return *entries_.emplace_back(entry{core, true, make()}).state;
}

void thread_states::leave(core_state& state) {
  const std::lock_guard lock(mutex_);
  for (entry& its : entries_) {
    if (its.state.get() == &state) its.taken = false;
  }
}

std::uint64_t thread_states::answered(std::size_t core) const {
  const std::lock_guard lock(mutex_);
  std::uint64_t sum = 0;
  for (const entry& its : entries_) sum += its.core == core ? its.state->answered : 0;
  return sum;
}

namespace {

constinit thread_local core_state* state_of_thread = nullptr;

// The end of the thread.
struct leaving {
  std::shared_ptr<thread_states> states;
  ~leaving() {
    if (states != nullptr) states->leave(*std::exchange(state_of_thread, nullptr));
  }
};
thread_local leaving at_end_of_thread;

// Not inlined: see application::of_this_thread.
[[gnu::noinline]] bool is_of_this_thread(const response_source& source) noexcept {
  return state_of_thread != nullptr && &state_of_thread->responses == &source;
}

}  // namespace

core_state& application::of_this_thread(std::size_t core) {
  if (state_of_thread == nullptr) [[unlikely]]
    return begin_thread(core);
  return *state_of_thread;
}

core_state& application::begin_thread(std::size_t core) {
  state_of_thread = &threads_->take(core, [this] { return make_state(all_slow()); });
  at_end_of_thread.states = threads_;
  return *state_of_thread;
}

namespace {

// Whose state a step of a handler uses, and how what it has borrowed goes back.

struct on_its_core {
  using lease = response_lease;
  core_state* state;
  [[nodiscard]] core_state& here() const noexcept { return *state; }
};

struct on_any_thread {
  // A write that had to wait may end on another thread than it began.
  class lease : public response_lease {
   public:
    lease(response_lease&& taken) noexcept : response_lease(std::move(taken)) {}
    lease(lease&&) = default;
    ~lease() {
      if (holds() && !is_of_this_thread(source())) give_back_from_afar();
    }
  };
  application* app;
  std::size_t core;
  [[nodiscard]] core_state& here() const { return app->of_this_thread(core); }
};

// The rare paths are coroutines of their own, so that their frames exist only while they run.

// Ends the connection after its last response. What the client still sends is read for a while: a close with
// unread bytes would make the kernel send a RST, and that can destroy the response on its way (RFC 9112 9.6).
task<> linger(connection& conn) {
  conn.shutdown_write();
  const auto open_for = std::chrono::duration_cast<std::chrono::milliseconds>(conn.now() - conn.start_time());
  conn.set_lifetime_timeout(open_for + linger_time);
  std::size_t discarded = 0;
  while (discarded < linger_bytes) {
    const bytes_view data = co_await conn.read();
    if (!data) break;
    discarded += data.size();
  }
}

template <class Where>
task<> refuse(connection& conn, Where where, std::uint16_t status, bool with_body) {
  const std::string response = where.here().responses.error_response(status, with_body, conn.now());
  if (co_await conn.write(response)) co_await linger(conn);
}

// Reads the body and forgets it. Complete; or the error to answer; or needs more, when the peer has gone.
//
// One byte that was dealt with (at first the head's last) is always put back, in front of the next view: a
// connection that holds a byte is in the midst of a message, and a shutdown leaves it the time to finish.
task<parse_result> skip_body(connection& conn, const request_limits& limits, bool chunked,
                             std::uint64_t length) {
  chunked_decoder decoder(limits);
  bytes_view data = co_await conn.read();
  while (data) {
    std::string_view fresh = data.subview(1);
    parse_result result = parse_result::need_more();
    if (chunked) {
      result = decoder.feed(fresh);
    } else {
      const auto skipped = static_cast<std::size_t>(std::min<std::uint64_t>(length, fresh.size()));
      fresh.remove_prefix(skipped);
      length -= skipped;
      if (length == 0) result = parse_result::complete();
    }
    if (!result.needs_more()) {
      conn.unread(fresh.size());
      co_return result;
    }
    conn.unread(1);
    data = co_await conn.read_more();
  }
  co_return parse_result::need_more();
}

// Reads one request, which was put back whole or in part. As skip_body; `head` has lost its views when it is
// done.
task<parse_result> read_request(connection& conn, const handler_options& options, request& head, bool& sleeps) {
  const request_limits& limits = options.limits;
  const bytes_view data = co_await conn.read();
  const parse_result result = parse_request(data, limits, head);
  if (!result.is_complete()) co_return result;
  sleeps = options.sleep.count() != 0 && (options.sleep_target.empty() || head.target == options.sleep_target);
  if (!is_served(head.method)) co_return parse_result::error(501);
  const std::size_t rest = data.size() - head.head_bytes;
  if (!head.chunked && head.content_length == 0) {
    conn.unread(rest);
    co_return result;
  }
  conn.unread(rest + 1);  // and the head's last byte, see skip_body
  if (head.expect_continue && rest == 0) {
    if (!co_await conn.write("HTTP/1.1 100 Continue\r\n\r\n")) co_return parse_result::need_more();
  }
  co_return co_await skip_body(conn, limits, head.chunked, head.content_length);
}

// Serves one request of any kind, which was put back whole or in part. False when the connection is to be
// closed.
template <class Where>
task<bool> serve_slow(connection& conn, Where where, const handler_options& options) {
  request head;
  bool sleeps = false;
  const parse_result result = co_await read_request(conn, options, head, sleeps);
  if (result.needs_more()) co_return false;
  if (result.is_error()) {
    co_await refuse(conn, where, result.error_status(), !head.is_head);
    co_return false;
  }

  if (sleeps) {
    conn.release_view();  // so that the core may lend the buffer to others meanwhile
    switch (options.how) {
      case sleep_kind::timer:
        if (!co_await conn.sleep_for(options.sleep)) co_return false;
        break;
      case sleep_kind::offload:
        if (!co_await conn.offload([&options] { std::this_thread::sleep_for(options.sleep); })) co_return false;
        break;
      case sleep_kind::block:
      case sleep_kind::inlined:
        std::this_thread::sleep_for(options.sleep);
        break;
    }
  }
  const bool keep_alive = head.keep_alive && options.keep_alive && !conn.server_stopping();
  const typename Where::lease response =
      where.here().responses.take(keep_alive, head.is_head ? 0 : 1, conn.now());
  const std::array<bytes_view, 2> pieces{response.head(), head.is_head ? bytes_view() : response.content()};
  const std::span<const bytes_view> all(pieces);
  if (!keep_alive && options.fin_with_data) {
    if (!co_await conn.write_last(all)) co_return false;
  } else {
    if (!co_await conn.write(all)) co_return false;
  }
  ++where.here().answered;
  if (!keep_alive && conn.buffered_bytes() != 0) co_await linger(conn);
  co_return keep_alive;
}

}  // namespace

task<> http_handler::operator()(connection& conn) const {
  if (app_->options().many_threads) return start(conn, on_any_thread{app_, conn.core_index()});
  return start(conn, on_its_core{&app_->core(conn)});
}

template <class Where>
task<> http_handler::start(connection& conn, Where where) const {
  return app_->options().waits_first() ? serve<true>(conn, where) : serve<false>(conn, where);
}

template <bool waits_first, class Where>
task<> http_handler::serve(connection& conn, Where where) const {
  bytes_view data = co_await conn.read();
  while (data) {
    request_batch batch = where.here().find_requests(data, conn.server_stopping());
    const std::size_t rest = data.size() - batch.bytes;
    if (rest != 0) conn.unread(rest);
    conn.release_view();  // the answers do not need it, and they may have to wait for a slow reader

    if constexpr (waits_first) {
      if (batch.answers != 0) {
        if (!co_await conn.sleep_for(app_->options().sleep)) co_return;
        if (conn.server_stopping() && rest == 0) batch.next = request_batch::then::close;  // since it began to wait
      }
    }
    if (batch.answers != 0) {
      const bool last = batch.next == request_batch::then::close;
      const typename Where::lease lease = where.here().responses.take(!last, batch.answers, conn.now());
      const bytes_view answers = lease.responses(batch.answers);
      auto writing = last && app_->options().fin_with_data ? conn.write_last(answers) : conn.write(answers);
      if (!co_await writing) co_return;
      where.here().answered += batch.answers;
    }
    switch (batch.next) {
      case request_batch::then::read_on:
        break;
      case request_batch::then::read_more:
        data = co_await conn.read_more();
        continue;
      case request_batch::then::ask_slow:
        if (!co_await serve_slow(conn, where, app_->options())) co_return;
        break;
      case request_batch::then::close:
        if (rest != 0) co_await linger(conn);
        co_return;
    }
    data = co_await conn.read();
  }
}

}  // namespace percore_http
