// What serves one connection.
#pragma once

#include <percore/blocking.hpp>
#include <percore/connection.hpp>
#include <percore/task.hpp>

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "perf/servers/percore-http/request_parser.hpp"
#include "perf/servers/percore-http/responses.hpp"

namespace percore_http {

// What --sleep-ms does to the thread of the core.
enum class sleep_kind : std::uint8_t {
  timer,    // nothing: the handler waits for a timer of the core
  offload,  // nothing: a helper sleeps, the handler waits for it
  block,    // nothing: the whole connection is a helper's
  inlined,  // it sleeps itself, as a handler that calls something that blocks
};

struct handler_options {
  bool keep_alive = true;              // false: close after each response, whatever the client asks for
  bool fin_with_data = true;           // the last response carries the FIN
  std::chrono::milliseconds sleep{0};  // before each response
  sleep_kind how = sleep_kind::timer;
  std::string sleep_target;            // only before those to requests for it; empty: before all
  request_limits limits;
  // A timer runs before each response, also on the quick path.
  [[nodiscard]] bool waits_first() const noexcept {
    return sleep.count() != 0 && how == sleep_kind::timer && sleep_target.empty();
  }
  // Steps of handlers of one core may run on several threads at a time: each thread then has a state of its own.
  bool many_threads = false;
};

// What is to be done about the requests at the start of a view.
struct request_batch {
  enum class then : std::uint8_t {
    read_on,    // go on with what is behind them
    close,      // the only answer is the last of this connection
    read_more,  // behind them is the beginning of a head
    ask_slow,   // behind them is a request that the ready response does not serve
  };

  std::size_t bytes = 0;      // of the view that are dealt with
  std::uint32_t answers = 0;  // that they get, in one write
  then next = then::read_on;  // after the answers
};

// The last head that got the ready response, and what the parser said of it. The parser is a pure function of the
// head's bytes, so the same bytes again need no second parsing; a client that keeps its connection sends the same
// fields with each request.
class known_head {
 public:
  // Whether `input` begins with this head.
  [[nodiscard]] bool begins(std::string_view input) const noexcept {
    if (size_ == 0 || input.size() < size_) return false;
    // Word by word, the last one overlapping: a call of memcmp would cost more than this does.
    const char* theirs = input.data();
    std::uint64_t difference = 0;
    for (std::size_t i = 0; i + 8 < size_; i += 8) difference |= word(theirs + i) ^ word(bytes_.data() + i);
    return (difference | (word(theirs + size_ - 8) ^ word(bytes_.data() + size_ - 8))) == 0;
  }
  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  [[nodiscard]] bool keep_alive() const noexcept { return keep_alive_; }
  void learn(std::string_view head, bool keep_alive) noexcept {
    if (head.size() > bytes_.size()) return;
    std::memcpy(bytes_.data(), head.data(), head.size());
    size_ = head.size();
    keep_alive_ = keep_alive;
  }

 private:
  static std::uint64_t word(const char* from) noexcept {
    std::uint64_t value;
    std::memcpy(&value, from, sizeof value);
    return value;
  }
  std::size_t size_ = 0;  // no head has fewer than 16 bytes ("GET / HTTP/1.0" and two line ends are 18)
  bool keep_alive_ = false;
  std::array<char, 512> bytes_;
};

// What one core has to itself, or, with many_threads, one thread of it: no other touches it while the server runs.
class alignas(64) core_state {
 public:
  core_state(const handler_options& options, const response_layout& layout, bool all_slow);

  // Finds the requests that get the ready response, as many as one write answers, and what comes after them.
  // `stopping`: the server drains, so the answer to the last request that is here says goodbye.
  [[gnu::hot]] request_batch find_requests(std::string_view data, bool stopping) noexcept;

  [[nodiscard]] const known_head& last_head() const noexcept { return last_head_; }  // for tests

  std::uint64_t answered = 0;  // responses sent, errors not counted; for other threads once the server has ended
  response_source responses;

 private:
  request_batch::then judge(std::string_view rest, request& head) noexcept;
  [[nodiscard]] bool is_quick(const request& head, std::size_t bytes) const noexcept;

  bool keep_alive_;
  bool all_slow_;
  std::string sleep_target_;
  std::size_t most_answers_;
  known_head last_head_;
  request_limits limits_;
};

// The states of the threads that have served requests. A thread that ends leaves its state, with the responses that may
// still be lent to connections of its core, to the next one of the same core.
class thread_states {
 public:
  // Each throws std::bad_alloc, and what making a core_state throws.
  core_state& take(std::size_t core, const std::function<std::unique_ptr<core_state>()>& make);
  void leave(core_state& state);
  [[nodiscard]] std::uint64_t answered(std::size_t core) const;

 private:
  struct entry {
    std::size_t core;
    bool taken;
    std::unique_ptr<core_state> state;
  };
  mutable std::mutex mutex_;  // taken when threads begin and end
  std::vector<entry> entries_;
};

// Everything that the handlers of all cores share. Outlives the server. With many_threads, one per process.
class application {
 public:
  // `cores`: at least as many as the server has. Throws std::runtime_error when OpenSSL lacks what `kind`
  // needs.
  application(const handler_options& options, body_kind kind, std::size_t body_bytes, std::size_t cores);

  [[nodiscard]] const handler_options& options() const noexcept { return options_; }
  // No response is one ready piece, or a step of the handler blocks: all take the slow path, whose frames do not fit
  // the engine's default slot.
  [[nodiscard]] bool all_slow() const noexcept {
    const bool waits = options_.sleep.count() != 0 && options_.sleep_target.empty();
    return layout_.body_is_shared() || (waits && options_.how != sleep_kind::timer);
  }
  // Some responses are so.
  [[nodiscard]] bool may_be_slow() const noexcept {
    return all_slow() || (options_.sleep.count() != 0 && !options_.sleep_target.empty());
  }
  // Made by the core itself at its first connection, so that its memory is near (first touch). Only that
  // core's thread.
  core_state& core(const percore::connection& conn) {
    std::unique_ptr<core_state>& place = cores_[conn.core_index()];
    if (place == nullptr) [[unlikely]]
      place = std::make_unique<core_state>(options_, layout_, all_slow());
    return *place;
  }
  // With many_threads: that of the thread which calls, one of core `core`. A handler may find itself on another thread
  // after each co_await: it asks again. (So it is never inlined: nothing of it may be known from before.)
  [[gnu::noinline]] core_state& of_this_thread(std::size_t core);
  // Of one core; once the server has ended.
  [[nodiscard]] std::uint64_t answered(std::size_t core) const {
    const std::uint64_t by_others = helpers_answered_[core].load(std::memory_order_relaxed) + threads_->answered(core);
    return by_others + (cores_[core] == nullptr ? 0 : cores_[core]->answered);
  }
  // One that is no core's. all_slow: for blocking handlers, which have a state for each helper thread.
  [[nodiscard]] std::unique_ptr<core_state> make_state(bool all_slow) const {
    return std::make_unique<core_state>(options_, layout_, all_slow);
  }
  void helper_answered(std::size_t core) noexcept {
    helpers_answered_[core].fetch_add(1, std::memory_order_relaxed);
  }

 private:
  core_state& begin_thread(std::size_t core);

  handler_options options_;
  response_layout layout_;
  std::vector<std::unique_ptr<core_state>> cores_;
  std::vector<std::atomic<std::uint64_t>> helpers_answered_;  // by core
  std::shared_ptr<thread_states> threads_ = std::make_shared<thread_states>();  // which threads outlive the server
};

// The handler: a coroutine per connection.
class http_handler {
 public:
  explicit http_handler(application& app) noexcept : app_(&app) {}
  percore::task<> operator()(percore::connection& conn) const;

 private:
  // Where: on_its_core or on_any_thread, which know whose state a step of the handler uses. A template also so that servers
  // without --sleep-ms pay nothing for it, in instructions as in the size of the frame.
  template <class Where>
  percore::task<> start(percore::connection& conn, Where where) const;
  template <bool waits_first, class Where>
  [[gnu::hot]] percore::task<> serve(percore::connection& conn, Where where) const;

  application* app_;
};

// The same server with blocking calls: one helper thread for each connection that has sent something.
class blocking_http_handler {
 public:
  explicit blocking_http_handler(application& app) noexcept : app_(&app) {}
  void operator()(percore::blocking_connection& conn) const;

 private:
  application* app_;
};

}  // namespace percore_http
