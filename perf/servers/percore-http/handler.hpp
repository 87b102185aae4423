// What serves one connection.
#pragma once

#include <percore/connection.hpp>
#include <percore/task.hpp>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "perf/servers/percore-http/request_parser.hpp"
#include "perf/servers/percore-http/responses.hpp"

namespace percore_http {

struct handler_options {
  bool keep_alive = true;              // false: close after each response, whatever the client asks for
  bool fin_with_data = true;           // the last response carries the FIN
  std::chrono::milliseconds sleep{0};  // before each response
  request_limits limits;
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

// What one core has to itself: no other touches it while the server runs.
class alignas(64) core_state {
 public:
  core_state(const handler_options& options, const response_layout& layout, bool all_slow);

  // Finds the requests that get the ready response, as many as one write answers, and what comes after them.
  // `stopping`: the server drains, so the answer to the last request that is here says goodbye.
  request_batch find_requests(std::string_view data, bool stopping) const noexcept;

  response_source responses;
  std::uint64_t answered =
      0;  // responses sent, errors not counted; for other threads once the server has ended

 private:
  [[nodiscard]] bool is_quick(const request& head, std::size_t bytes) const noexcept;

  request_limits limits_;
  bool keep_alive_;
  bool all_slow_;
  std::size_t most_answers_;
};

// Everything that the handlers of all cores share. Outlives the server.
class application {
 public:
  // `cores`: at least as many as the server has. Throws std::runtime_error when OpenSSL lacks what `kind`
  // needs.
  application(const handler_options& options, body_kind kind, std::size_t body_bytes, std::size_t cores);

  [[nodiscard]] const handler_options& options() const noexcept { return options_; }
  // No response is one ready piece: all take the slow path, whose frames do not fit the engine's default
  // slot.
  [[nodiscard]] bool all_slow() const noexcept {
    return layout_.body_is_shared() || options_.sleep.count() != 0;
  }
  // Made by the core itself at its first connection, so that its memory is near (first touch). Only that
  // core's thread.
  core_state& core(const percore::connection& conn) {
    std::unique_ptr<core_state>& place = cores_[conn.core_index()];
    if (place == nullptr) [[unlikely]]
      place = std::make_unique<core_state>(options_, layout_, all_slow());
    return *place;
  }
  // Of one core; once the server has ended.
  [[nodiscard]] std::uint64_t answered(std::size_t core) const noexcept {
    return cores_[core] == nullptr ? 0 : cores_[core]->answered;
  }

 private:
  handler_options options_;
  response_layout layout_;
  std::vector<std::unique_ptr<core_state>> cores_;
};

// The handler: a coroutine per connection.
class http_handler {
 public:
  explicit http_handler(application& app) noexcept : app_(&app) {}
  percore::task<> operator()(percore::connection& conn) const;

 private:
  application* app_;
};

}  // namespace percore_http
