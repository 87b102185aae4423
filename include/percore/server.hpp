// server: listeners, cores, and their life.
#pragma once

#include <chrono>
#include <concepts>
#include <cstddef>
#include <memory>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <percore/address.hpp>
#include <percore/blocking.hpp>
#include <percore/connection.hpp>
#include <percore/connection_handle.hpp>
#include <percore/options.hpp>
#include <percore/placement.hpp>
#include <percore/stats.hpp>
#include <percore/task.hpp>

namespace percore {

// What serves a connection: a function, lambda or function object that takes `connection&` and is a coroutine of type
// task<>. One object serves all cores at once, so its call must be const, and what it captures is shared between the
// cores' threads.
template <class F>
concept connection_handler = requires(const std::decay_t<F>& f, connection& conn) {
  { f(conn) } -> std::same_as<task<>>;
};

// A pointer to a member function that can be called on `Object` as a handler.
template <class Member, class Object>
concept member_handler = std::is_member_function_pointer_v<Member> && requires(Object& o, Member m, connection& conn) {
  { (o.*m)(conn) } -> std::same_as<task<>>;
};

namespace detail {

// Owns the handler: a coroutine lambda's captures live in the closure, not in the coroutine's frame.
class handler {
 public:
  handler() noexcept = default;
  template <connection_handler F>
  explicit handler(F&& f)
      : object_(std::make_shared<std::decay_t<F>>(std::forward<F>(f))),
        call_([](const void* object, connection& conn) {
          return (*static_cast<const std::decay_t<F>*>(object))(conn);
        }) {}

  task<> operator()(connection& conn) const { return call_(object_.get(), conn); }

 private:
  std::shared_ptr<const void> object_;
  task<> (*call_)(const void*, connection&) = nullptr;
};

}  // namespace detail

namespace engine {
class server_state;
}

// A TCP server: one pinned thread per chosen core, each with its own listeners, poller and connections.
//
// Configured and started by one thread; post, stats, shutdown and halt may then be called from any. The destructor
// halts. Several servers may live in one process.
class server {
 public:
  explicit server(server_options options = {});
  server(const server&) = delete;
  server& operator=(const server&) = delete;
  ~server();

  // Adds an address to listen on, before start(): text as `address` takes it ("127.0.0.1:5000", "[::1]:5000",
  // ":5000", "unix:/path", "unix:@abstract"; port 0 lets the kernel choose) or an address. Returns the listener's
  // number, from 0. Throws std::invalid_argument for a bad address or option and std::logic_error after start().
  template <connection_handler F>
  std::size_t listen(const address& where, F&& handler, listen_options options = {}) {
    return add_listener(where, detail::handler(std::forward<F>(handler)), std::move(options));
  }
  // A member function of `object` (which must outlive the server) as the handler; const, noexcept or of a base class
  // as well. All cores call it at once.
  template <class T, member_handler<T> M>
  std::size_t listen(const address& where, T& object, M member, listen_options options = {}) {
    return listen(where, member_of(object, member), std::move(options));
  }
  // A blocking handler: listen("127.0.0.1:5000", percore::blocking([](percore::blocking_connection& conn) { ... })).
  std::size_t listen(const address& where, blocking_listener handler, listen_options options = {}) {
    return add_blocking_listener(&where, -1, std::move(handler), std::move(options));
  }
  std::size_t listen_fd(int fd, blocking_listener handler, listen_options options = {}) {
    return add_blocking_listener(nullptr, fd, std::move(handler), std::move(options));
  }
  // Adopts a descriptor that is bound and listens already (as systemd passes them). Once this returns the server owns
  // it and closes it, also when start() fails. All cores accept from it.
  template <connection_handler F>
  std::size_t listen_fd(int fd, F&& handler, listen_options options = {}) {
    return add_listener_fd(fd, detail::handler(std::forward<F>(handler)), std::move(options));
  }
  template <class T, member_handler<T> M>
  std::size_t listen_fd(int fd, T& object, M member, listen_options options = {}) {
    return listen_fd(fd, member_of(object, member), std::move(options));
  }

  // Opens every listener and starts every core, or throws and leaves nothing behind: listen_error names the address,
  // the option and the reason; std::invalid_argument a placement or option that cannot be; std::system_error what
  // else the kernel refused. std::logic_error when started before or without a listener.
  void start();

  // start() unless started, then waits until the server has ended. SIGINT and SIGTERM drain, a second one halts
  // (server_options::handle_signals).
  void serve();

  // Waits until the server has ended. Not from a core's thread (std::logic_error).
  void wait();

  // Stops accepting once the accept queues are drained, lets running handlers finish, wakes those that wait for a
  // new message with errc::shutting_down, and after `grace` (0: no limit; less: at once; 100 years at most) ends the
  // rest. TLS handshakes that clients have begun may go on, for 5 s at most; a client that has sent nothing yet is
  // idle. Returns as soon as the last connection has ended; on a core's thread it only begins. Any thread; a second
  // call can only shorten the grace.
  void shutdown(std::chrono::milliseconds grace = std::chrono::milliseconds{0});
  // Begins the same and returns at once. Any thread.
  void begin_shutdown(std::chrono::milliseconds grace = std::chrono::milliseconds{0});

  // Ends at once: coroutine frames are destroyed where they wait, connections reset. Returns when all cores have
  // ended; on a core's thread it only begins. Any thread.
  void halt();

  // Runs `f()` on a core's thread, between two steps of its connections. What f throws is counted and reported as if it
  // had left a handler (server_options::on_exception). Any thread;
  // std::out_of_range for a core that does not exist. `stopped` before start() and after the end.
  template <std::invocable F>
  post_result post(std::size_t core, F&& f) {
    return post_message(core, detail::message([f = std::forward<F>(f)](engine::core_resources&) mutable { f(); }));
  }

  [[nodiscard]] std::size_t core_count() const noexcept;          // 0 before start()
  [[nodiscard]] const placement_plan& placement() const;          // where the cores are; after start()
  [[nodiscard]] address local_address(std::size_t listener = 0) const;  // what it really listens on; after start()
  [[nodiscard]] server_stats stats() const;                       // any thread, no lock on the cores' side
  [[nodiscard]] bool stopping() const noexcept;                   // a shutdown or halt has begun. Any thread.

 private:
  template <class T, class M>
  static auto member_of(T& object, M member) {
    return [&object, member](connection& conn) { return (object.*member)(conn); };
  }
  std::size_t add_listener(const address& where, detail::handler handler, listen_options options);
  std::size_t add_listener_fd(int fd, detail::handler handler, listen_options options);
  std::size_t add_blocking_listener(const address* where, int fd, blocking_listener handler, listen_options options);
  post_result post_message(std::size_t core, detail::message&& what);

  std::shared_ptr<engine::server_state> state_;
};

}  // namespace percore
