// A server for one test.
#pragma once

#include <percore/percore.hpp>

#include <atomic>
#include <chrono>
#include <coroutine>
#include <cstddef>
#include <exception>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <utility>

#include "tests/support/client.hpp"
#include "tests/support/waiting.hpp"

namespace percore::test {

// One core that the scheduler may move: what most tests want, since many run at the same time.
inline server_options one_core() {
  server_options options;
  options.placement.unit = core_unit::hardware_thread;
  options.placement.cores = 1;
  options.placement.pin = false;
  options.placement.respect_quota = false;
  return options;
}

// Every hardware thread that the process may use, pinned.
inline server_options all_cores() {
  server_options options;
  options.placement.unit = core_unit::hardware_thread;
  options.placement.respect_quota = false;
  return options;
}

// For a server's socket that is soon full: the kernel makes at least 4.5 kB of it (socket(7)), so that a megabyte never
// fits, also with the client's receive buffer.
inline listen_options small_send_buffer() {
  listen_options options;
  options.socket.send_buffer_bytes = 4096;
  return options;
}

// A coroutine of its own, which no connection's handler waits for. Its frame goes with its end.
struct lone_coroutine {
  struct promise_type {
    lone_coroutine get_return_object() noexcept { return {}; }
    std::suspend_never initial_suspend() noexcept { return {}; }
    std::suspend_never final_suspend() noexcept { return {}; }
    void return_void() noexcept {}
    void unhandled_exception() noexcept { std::terminate(); }
  };
};

inline task<> echo(connection& conn) {
  while (auto data = co_await conn.read())
    if (!co_await conn.write(data)) break;
}

// Lets a handler wait for the test. False when the connection is being ended before.
inline task<bool> until(connection& conn, const std::atomic<bool>& flag) {
  while (!flag.load()) {
    const bool slept = co_await conn.sleep_for(std::chrono::milliseconds(1));
    if (!slept) co_return false;
  }
  co_return true;
}

// Text of any length of which every part is different, so that a lost, doubled or exchanged piece shows.
inline std::string numbered_text(std::size_t bytes) {
  std::string text;
  text.reserve(bytes + 20);
  for (std::size_t number = 0; text.size() < bytes; ++number) text += std::to_string(number) + ' ';
  text.resize(bytes);
  return text;
}

// Keeps the thread of a core inside a posted function, so that nothing else happens on that core until open().
class blocked_core {
 public:
  blocked_core(server& which, std::size_t core) {
    which.post(core, [state = state_] {
      state->entered.set();
      state->opened.wait();
    });
    state_->entered.wait();
  }
  blocked_core(const blocked_core&) = delete;
  blocked_core& operator=(const blocked_core&) = delete;
  ~blocked_core() { open(); }
  void open() { state_->opened.set(); }

 private:
  struct gate {
    event entered;
    event opened;
  };
  std::shared_ptr<gate> state_ = std::make_shared<gate>();
};

// Started on a port of its own, halted at the latest with the object.
class test_server {
 public:
  template <connection_handler F>
  explicit test_server(F&& handler, server_options options = one_core(), listen_options listening = {},
                       std::string_view where = "127.0.0.1:0")
      : server_(std::move(options)) {
    server_.listen(where, std::forward<F>(handler), std::move(listening));
    server_.start();
  }

  explicit test_server(blocking_listener handler, server_options options = one_core(), listen_options listening = {},
                       std::string_view where = "127.0.0.1:0")
      : server_(std::move(options)) {
    server_.listen(where, std::move(handler), std::move(listening));
    server_.start();
  }

  server* operator->() noexcept { return &server_; }
  server& operator*() noexcept { return server_; }
  [[nodiscard]] address where(std::size_t listener = 0) const { return server_.local_address(listener); }
  [[nodiscard]] client connect() const { return client(where()); }
  [[nodiscard]] core_stats total() const { return server_.stats().total; }

 private:
  server server_;
};

// Whether a new client that says "ping" gets it back.
inline bool still_serves(const test_server& server) {
  client peer = server.connect();
  peer.send_all("ping");
  return peer.recv_exactly(4) == "ping";
}

// Who runs core 0 now.
inline std::thread::id thread_of_core(test_server& server) {
  channel<std::thread::id> told;
  server->post(0, [&] { told.put(std::this_thread::get_id()); });
  return told.take();
}

}  // namespace percore::test
