// connection_handle: a connection as other threads may hold it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <system_error>
#include <type_traits>
#include <utility>

#include <percore/detail/message.hpp>

namespace percore {

class connection;

namespace engine {
class core;
}

// What became of something posted to a core.
enum class post_result {
  posted,      // it is in the core's mailbox and will run, or be told that the connection is gone
  queue_full,  // the mailbox holds server_options::mailbox_messages already: nothing was queued
  stopped,     // the server has ended: nothing was queued
};

namespace detail {

class mailbox_link;  // what outlives the core: its mailbox and its wake-up

connection* find_connection(engine::core_resources& core, std::uint32_t slot, std::uint32_t generation) noexcept;
// A step of its handler runs on another thread: what is posted waits until it is back (listen_options::spill).
bool is_away(engine::core_resources& core, std::uint32_t slot, std::uint32_t generation) noexcept;
void post_later(engine::core_resources& core, std::uint32_t slot, message&& what);
post_result post_message(mailbox_link& link, message&& what) noexcept;
std::error_code write_posted(connection* target, const std::string& data) noexcept;

// A function for one connection, on its core.
template <class F>
struct posted_call {
  std::uint32_t slot;
  std::uint32_t generation;
  F f;

  void operator()(engine::core_resources& core) {
    if (is_away(core, slot, generation)) {
      post_later(core, slot, message(std::move(*this)));
      return;
    }
    connection* target = find_connection(core, slot, generation);
    if constexpr (std::is_invocable_v<F&, connection*>) {
      f(target);
    } else {
      if (target != nullptr) f(*target);
    }
  }
};

}  // namespace detail

// Names one connection for ever: the slot is reused, the handle is not (its generation is compared on the core).
// Cheap to copy (one reference count); may outlive the connection and the server. All functions: any thread.
class connection_handle {
 public:
  connection_handle() noexcept = default;

  // Runs `f` on the connection's core, between two steps of its handler. f takes `connection*`, null when the
  // connection is gone by then, or `connection&`, which is then not called. What f throws is counted and reported
  // to server_options::on_exception.
  template <class F>
  post_result post(F&& f) const {
    if (!link_) return post_result::stopped;
    return detail::post_message(
        *link_, detail::message(detail::posted_call<std::decay_t<F>>{slot_, generation_, std::forward<F>(f)}));
  }

  // Appends `data` to what the connection sends, whole or not at all, as connection::try_write does. `done`, if
  // given, is called on the connection's core with the outcome: no error, errc::closed when the connection is gone,
  // errc::limit_exceeded when its unsent tail has no room, or why it has ended.
  post_result write(std::string data) const {
    return post([data = std::move(data)](connection* target) { (void)detail::write_posted(target, data); });
  }
  template <class Done>
  post_result write(std::string data, Done&& done) const {
    return post([data = std::move(data), done = std::forward<Done>(done)](connection* target) mutable {
      done(detail::write_posted(target, data));
    });
  }

  [[nodiscard]] unsigned core_index() const noexcept { return core_; }
  explicit operator bool() const noexcept { return link_ != nullptr; }
  friend bool operator==(const connection_handle& a, const connection_handle& b) noexcept {
    return a.link_ == b.link_ && a.slot_ == b.slot_ && a.generation_ == b.generation_;
  }
  [[nodiscard]] std::size_t hash() const noexcept {
    return std::hash<std::uint64_t>{}((std::uint64_t{slot_} << 32 | generation_) + core_);
  }

 private:
  friend class connection;
  friend class engine::core;
  connection_handle(std::shared_ptr<detail::mailbox_link> link, unsigned core, std::uint32_t slot,
                    std::uint32_t generation) noexcept
      : link_(std::move(link)), core_(core), slot_(slot), generation_(generation) {}

  std::shared_ptr<detail::mailbox_link> link_;
  unsigned core_ = 0;
  std::uint32_t slot_ = 0;
  std::uint32_t generation_ = 0;
};

}  // namespace percore

template <>
struct std::hash<percore::connection_handle> {
  std::size_t operator()(const percore::connection_handle& handle) const noexcept { return handle.hash(); }
};
