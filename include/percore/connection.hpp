// connection: what a handler reads from and writes to.
#pragma once

#include <chrono>
#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <stdexcept>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <utility>
#include <vector>

#include <percore/address.hpp>
#include <percore/bytes_view.hpp>
#include <percore/connection_handle.hpp>
#include <percore/detail/links.hpp>
#include <percore/error.hpp>
#include <percore/offload.hpp>
#include <percore/relay.hpp>
#include <percore/send_file.hpp>
#include <percore/task.hpp>
#include <percore/tls.hpp>

struct ssl_st;  // OpenSSL's SSL

namespace percore {

class server;
class connection;
struct proxy_header;

namespace detail {

struct sleep_access;
struct yield_access;

// The awaiters hold only what the call was given: the state of a running operation lives in the connection's slot,
// which keeps coroutine frames small.

class [[nodiscard("co_await it")]] read_awaiter {
 public:
  explicit read_awaiter(connection& owner) noexcept : owner_(&owner) {}
  bool await_ready() const noexcept;
  bool await_suspend(std::coroutine_handle<> waiter) const noexcept;
  bytes_view await_resume() const noexcept;

 private:
  connection* owner_;
};

class [[nodiscard("co_await it")]] read_more_awaiter {
 public:
  explicit read_more_awaiter(connection& owner) noexcept : owner_(&owner) {}
  bool await_ready() const noexcept;
  bool await_suspend(std::coroutine_handle<> waiter) const noexcept;
  bytes_view await_resume() const noexcept;

 private:
  connection* owner_;
};

class [[nodiscard("co_await it")]] read_until_awaiter {
 public:
  read_until_awaiter(connection& owner, std::string_view delimiter, std::size_t limit) noexcept
      : owner_(&owner), delimiter_(delimiter), limit_(limit) {}
  bool await_ready() const noexcept;
  bool await_suspend(std::coroutine_handle<> waiter) const noexcept;
  bytes_view await_resume() const noexcept;

 private:
  connection* owner_;
  std::string_view delimiter_;
  std::size_t limit_;
};

class [[nodiscard("co_await it")]] read_into_awaiter {
 public:
  read_into_awaiter(connection& owner, std::span<std::byte> target) noexcept : owner_(&owner), target_(target) {}
  bool await_ready() const noexcept;
  bool await_suspend(std::coroutine_handle<> waiter) const noexcept;
  std::size_t await_resume() const noexcept;

 private:
  connection* owner_;
  std::span<std::byte> target_;
};

class [[nodiscard("co_await it")]] read_full_awaiter {
 public:
  read_full_awaiter(connection& owner, std::span<std::byte> target) noexcept : owner_(&owner), target_(target) {}
  bool await_ready() const noexcept;
  bool await_suspend(std::coroutine_handle<> waiter) const noexcept;
  bool await_resume() const noexcept;

 private:
  connection* owner_;
  std::span<std::byte> target_;
};

class [[nodiscard("co_await it")]] write_awaiter {
 public:
  write_awaiter(connection& owner, bytes_view data, bool last) noexcept
      : owner_(&owner), data_(data), last_(last) {}
  bool await_ready() const noexcept;
  bool await_suspend(std::coroutine_handle<> waiter) const noexcept;
  bool await_resume() const noexcept;

 private:
  connection* owner_;
  bytes_view data_;
  bool last_;
};

class [[nodiscard("co_await it")]] write_pieces_awaiter {
 public:
  write_pieces_awaiter(connection& owner, std::span<const bytes_view> pieces, bool last) noexcept
      : owner_(&owner), pieces_(pieces), last_(last) {}
  bool await_ready() const noexcept;
  bool await_suspend(std::coroutine_handle<> waiter) const noexcept;
  bool await_resume() const noexcept;

 private:
  connection* owner_;
  std::span<const bytes_view> pieces_;
  bool last_;
};

class [[nodiscard("co_await it")]] start_tls_awaiter {
 public:
  start_tls_awaiter(connection& owner, const tls_context& context, buffered_plaintext policy) noexcept
      : owner_(&owner), context_(&context), policy_(policy) {}
  bool await_ready() const noexcept;
  bool await_suspend(std::coroutine_handle<> waiter) const noexcept;
  bool await_resume() const noexcept;

 private:
  connection* owner_;
  const tls_context* context_;
  buffered_plaintext policy_;
};

class [[nodiscard("co_await it")]] sleep_awaiter : private timer_node {
 public:
  sleep_awaiter(connection& owner, std::chrono::nanoseconds duration) noexcept
      : owner_(&owner), duration_(duration) {}
  bool await_ready() const noexcept { return false; }
  bool await_suspend(std::coroutine_handle<> waiter) noexcept;
  bool await_resume() const noexcept { return !interrupted_; }

 private:
  friend class percore::connection;
  friend struct sleep_access;
  connection* owner_;
  std::chrono::nanoseconds duration_;
  std::coroutine_handle<> waiter_;
  bool interrupted_ = false;
};

class [[nodiscard("co_await it")]] yield_awaiter : private ready_node {
 public:
  explicit yield_awaiter(connection& owner) noexcept : owner_(&owner) {}
  bool await_ready() const noexcept { return false; }
  void await_suspend(std::coroutine_handle<> waiter) noexcept;
  void await_resume() const noexcept {}

 private:
  friend struct yield_access;
  connection* owner_;
  std::coroutine_handle<> waiter_;
};

template <class T>
struct type_tag {
  static constexpr char tag = 0;  // its address is the identity of T
};

}  // namespace detail

// One connection, accepted or dialled, in a preallocated slot of the core that made it. The engine closes it when
// the handler returns (a dialled one: when its owner goes, see dial.hpp) and reuses the slot afterwards. Every member function may be called only on that core's
// thread: from the handler, from what it awaits, or from a function posted with connection_handle::post. Other
// threads hold a connection_handle.
//
// Peers' faults are values: reads answer an empty view, 0 or false, writes answer false, and error() tells why.
// Nothing here throws because of what a peer does.
//
// At most one read and one write of a connection may be waited for at a time, and only by its own handler (or what
// that awaits); those of a dialled one by one handler at a time. Anything else is a fault of the program and ends it with a message.
class connection {
 public:
  connection(const connection&) = delete;
  connection& operator=(const connection&) = delete;

  // --- reading ---------------------------------------------------------------------------------------------

  // The next bytes, as soon as there are any: at least 1 and at most server_options::read_buffer_bytes of them.
  // Empty at the end of the stream or on an error. The view points into a buffer of the core and is valid until
  // the next read of this connection, release_view(), or the end of the handler.
  detail::read_awaiter read() noexcept { return detail::read_awaiter(*this); }

  // What was put back by unread() and at least one byte more: for parsers that have found the beginning of a message.
  // Empty when the stream ends or fails before, or with errc::limit_exceeded when read_buffer_bytes are put back
  // already; what was put back stays and can be taken with read(). The view is valid as that of read().
  detail::read_more_awaiter read_more() noexcept { return detail::read_more_awaiter(*this); }

  // Up to target.size() bytes into the caller's memory, as soon as there are any. 0 at the end or on an error.
  detail::read_into_awaiter read(std::span<std::byte> target) noexcept {
    return detail::read_into_awaiter(*this, target);
  }

  // Exactly target.size() bytes. False when the stream ends or fails before; what came until then is in `target`
  // and its length in bytes_of_failed_read().
  detail::read_full_awaiter read_full(std::span<std::byte> target) noexcept {
    return detail::read_full_awaiter(*this, target);
  }

  // The bytes up to and with the first `delimiter` (1 to 255 bytes, which must stay valid until the read is done).
  // Empty when the stream ends or fails before one came, or with errc::limit_exceeded when the first `limit` bytes
  // hold none; what was received stays and can be taken with read(). A limit above read_buffer_bytes counts as
  // read_buffer_bytes. The view is valid as that of read().
  detail::read_until_awaiter read_until(std::string_view delimiter, std::size_t limit) noexcept {
    return detail::read_until_awaiter(*this, delimiter, limit);
  }

  // Puts the last `count` bytes of the last view back: they are what the next read answers first. Throws
  // std::length_error when the last view was shorter or is no longer valid.
  void unread(std::size_t count);
  // The same for a view that is the end of the last view.
  void unread(bytes_view rest) { unread(rest.size()); }

  // Ends the life of the last view early, so that the core may lend its buffer to another connection. Worth calling
  // before a long wait (a sleep, a slow computation elsewhere) when the bytes are no longer needed.
  void release_view() noexcept;

  // Bytes received but not yet read by the handler.
  [[nodiscard]] std::size_t buffered_bytes() const noexcept;

  // After read_full answered false: how many bytes of the target were filled.
  [[nodiscard]] std::size_t bytes_of_failed_read() const noexcept;

  // --- writing ---------------------------------------------------------------------------------------------

  // Sends all of `data`. True when the socket or the connection's unsent tail (at most
  // listen_options::unsent_tail_bytes) has taken the whole; until then the writer waits and `data` must stay valid.
  // With listen_options::zero_copy_from_bytes large ones wait longer.
  detail::write_awaiter write(bytes_view data) noexcept { return detail::write_awaiter(*this, data, false); }

  // The same for several pieces in one system call. Pieces and bytes must stay valid until the write is done.
  detail::write_pieces_awaiter write(std::span<const bytes_view> pieces) noexcept {
    return detail::write_pieces_awaiter(*this, pieces, false);
  }

  // The last write of this connection: the FIN travels in the segment of the last byte (MSG_MORE before close,
  // tcp(7)), which saves a packet. Later writes fail with errc::closed; reading still works.
  detail::write_awaiter write_last(bytes_view data) noexcept { return detail::write_awaiter(*this, data, true); }
  detail::write_pieces_awaiter write_last(std::span<const bytes_view> pieces) noexcept {
    return detail::write_pieces_awaiter(*this, pieces, true);
  }

  // Sends `length` bytes of a regular file from `offset` on without taking them through the program (sendfile(2)); with TLS
  // that the kernel does not do, and of files that know no sendfile, in copies of at most 16 KiB. False when it was not
  // all: error() tells why, `bytes` how many were sent (with TLS in whole copies). errc::file_ended: the file ended
  // before, because it is shorter or has been cut meanwhile; then, and when the file cannot be read, the connection
  // lives on. A file that grows is sent as far as was asked for, `to_end_of_file` as far as it then goes; one that is
  // changed is sent as the kernel finds it; holes are zeros. `file` must stay open and its position does not move. What
  // the page cache does not hold is read from the disk while the core waits: for cold files on slow disks read them
  // first, by offload().
  detail::send_file_awaiter send_file(int file, std::uint64_t offset, std::uint64_t length) noexcept {
    return detail::send_file_awaiter(*this, {}, file, offset, length);
  }
  // The same behind a head. A file of up to 60 KiB then begins in the head's segment, and with TLS any does in its
  // record: for a response of 16 kB an eighth less CPU than write() and send_file(). The head's memory must live until
  // it is sent; sent_file::bytes does not count it. It is sent also when the file then ends too early or cannot be
  // read.
  detail::send_file_awaiter send_file(bytes_view head, int file, std::uint64_t offset, std::uint64_t length) noexcept {
    return detail::send_file_awaiter(*this, head, file, offset, length);
  }

  // Writes to `other` (which may be this one: an echo) what is received here, as relay() does in each direction, until the
  // stream ends, either fails, or `limit` bytes are copied; what was received beyond stays. The end of the stream is not
  // passed on. `other` must be a connection that the caller may await.
  task<copied> copy_to(connection& other, std::uint64_t limit = no_limit);

  // Sends or keeps all of `data` without waiting, or none of it: false when the unsent tail has no room
  // (errc::limit_exceeded; the connection lives on), a write is being waited for, or the connection no longer sends.
  bool try_write(bytes_view data) noexcept;

  // Bytes accepted by write that the socket has not taken yet.
  [[nodiscard]] std::size_t unsent_bytes() const noexcept;

  // --- ending ----------------------------------------------------------------------------------------------

  // Half-close: sends a FIN after what is unsent (with TLS, close_notify before it). Later writes fail, reading goes
  // on.
  void shutdown_write() noexcept;
  // Ends the connection from this side: what is unsent is still sent (under the write timeout), nothing more is
  // read, operations that wait now and all later ones fail with errc::closed. Returning from the handler does the same.
  void close() noexcept;
  // Ends it at once with a RST; what is unsent is dropped.
  void reset() noexcept;

  // Why the last operation that failed has failed; empty as long as none has.
  [[nodiscard]] std::error_code error() const noexcept;

  // --- TLS -------------------------------------------------------------------------------------------------

  // Goes over from plain to TLS (STARTTLS), as the server side of a server's context: true when the handshake is done.
  // From then on reads, writes and the end of the connection are TLS's. What was written before is sent in plain first;
  // what the peer had sent in plain behind the command that asked for TLS is refused or dropped. Until it is done nothing
  // can be written (errc::limit_exceeded). False with errc::
  // plaintext_injected changes nothing and the connection goes on in plain; after any other failure it has ended.
  // `context` must stay valid until this is done; handshake_timeout applies. Throws std::invalid_argument for a
  // client's context. Keep contexts: each new one costs every core that meets it a parse of its certificates and keys.
  detail::start_tls_awaiter start_tls(const tls_context& context,
                                      buffered_plaintext policy = buffered_plaintext::refuse) {
    if (context.role() != tls_role::server) {
      throw std::invalid_argument("percore: start_tls() needs a server's tls_context");
    }
    return detail::start_tls_awaiter(*this, context, policy);
  }
  // What the handshake agreed on; nothing when the connection is plain.
  [[nodiscard]] std::optional<tls_info> tls() const noexcept;
  // The certificates that the peer has shown, its own first, with the chain to the authority that was verified; its own
  // only when the session was resumed. Empty: none.
  [[nodiscard]] std::vector<tls_peer_certificate> peer_certificates() const;
  // After errc::tls_failed: OpenSSL's reason. Valid as long as the program.
  [[nodiscard]] std::string_view tls_error() const noexcept;
  // OpenSSL's object, for questions that this interface has no answer for; nullptr when the connection is plain. It
  // belongs to the engine: nothing may be read or written with it.
  [[nodiscard]] ssl_st* native_tls() const noexcept;

  // --- time ------------------------------------------------------------------------------------------------

  // Waits. False when the connection is being ended (lifetime timeout, end of a shutdown's grace) before. The
  // resolution is that of the core's timer wheel, 131 us (2^17 ns); never early. Longer than 100 years counts as that.
  detail::sleep_awaiter sleep_for(std::chrono::nanoseconds duration) noexcept {
    return detail::sleep_awaiter(*this, duration);
  }
  // Lets everything else that is ready on this core run first.
  detail::yield_awaiter yield() noexcept { return detail::yield_awaiter(*this); }

  // --- work that blocks or burns CPU -----------------------------------------------------------------------

  // Runs f() on a helper thread of this core (server_options::helpers) while this core serves others, and goes on here
  // with what it has returned or thrown: `if (auto row = co_await conn.offload(query)) use(*row);`. What f refers to in
  // the handler stays as it is meanwhile, views of this connection's bytes included; but f must not call the
  // connection. Without a value f did not run: the connection had ended or has ended before a helper was free (its
  // error() tells why), no helper was free within `timeout` (errc::timed_out; 0: any time will do), or the queue was
  // full (errc::queue_full, if so chosen by helper_options::at_full). Once begun, f runs to its end and is waited for,
  // also when the connection ends; an f that takes a `const offload_token&` can ask it whether anybody still waits.
  //
  // f is a named function object, or a temporary one without destructor: g++ 12 destroys others twice.
  template <class F>
  auto offload(F&& f, std::chrono::nanoseconds timeout = std::chrono::nanoseconds{0}) noexcept {
    return detail::offload_awaiter<F&&>(this, static_cast<F&&>(f), timeout);
  }

  // Timeouts; 0 is none. They start from listen_options and apply from the next wait on. Resolution 1 ms, at most
  // 49 days (2^32 - 1 ms). What each one means is documented at listen_options.
  void set_read_timeout(std::chrono::milliseconds timeout) noexcept;
  void set_write_timeout(std::chrono::milliseconds timeout) noexcept;
  void set_idle_timeout(std::chrono::milliseconds timeout) noexcept;
  void set_lifetime_timeout(std::chrono::milliseconds timeout) noexcept;  // counted from start_time()

  // listen_options::zero_copy_from_bytes of this connection: 0, or at least 4096. From the next write on.
  void set_zero_copy_from(std::size_t bytes) noexcept;

  // When it was accepted: the time of the loop turn that did.
  [[nodiscard]] std::chrono::steady_clock::time_point start_time() const noexcept;
  // The time of this loop turn: costs no clock read.
  [[nodiscard]] std::chrono::steady_clock::time_point now() const noexcept;

  // --- where and who ---------------------------------------------------------------------------------------

  // As accept4 told it, a balancer has said (listen_options::proxy_protocol), or it was dialled; no system call.
  [[nodiscard]] address peer_address() const noexcept;
  // The header that a balancer has sent; nullptr: none. Valid as long as the handler runs.
  [[nodiscard]] const proxy_header* proxied() const noexcept;
  [[nodiscard]] address local_address() const noexcept;  // one getsockname; unspecified once closed
  [[nodiscard]] server& owner() const noexcept;
  [[nodiscard]] unsigned core_index() const noexcept;     // 0 .. server::core_count() - 1
  [[nodiscard]] std::size_t listener() const noexcept;    // as server::listen returned it; ~0: dialled
  // True once a shutdown has begun: a good moment to say goodbye instead of waiting for another message.
  [[nodiscard]] bool server_stopping() const noexcept;
  // Reaches this connection from any thread, or finds that it is gone.
  [[nodiscard]] connection_handle handle() const;

  // The descriptor; -1 once closed. It belongs to the engine: it may be used for socket options, not be closed, and
  // reading or writing it by hand is at the caller's own risk.
  [[nodiscard]] int fd() const noexcept;
  std::error_code set_option(int level, int name, const void* value, std::size_t bytes) noexcept;
  std::error_code get_option(int level, int name, void* value, std::size_t& bytes) const noexcept;

  // --- context ---------------------------------------------------------------------------------------------

  // Constructs the connection's own T inside its slot (on the heap when it does not fit beside the handler's frame;
  // counted in stats().contexts_on_heap). Destroyed after the handler's frame. One per connection: throws
  // std::logic_error when there is one already, std::bad_alloc when there is no memory.
  template <class T, class... Args>
  T& emplace_context(Args&&... args) {
    static_assert(alignof(T) <= alignof(std::max_align_t));
    void* place = allocate_context(sizeof(T));
    T* context = nullptr;
    try {
      context = ::new (place) T(std::forward<Args>(args)...);
    } catch (...) {
      abandon_context(place);
      throw;
    }
    adopt_context(context, &detail::type_tag<T>::tag, [](void* p) noexcept { static_cast<T*>(p)->~T(); });
    return *context;
  }
  // The context if it is a T, else nullptr.
  template <class T>
  [[nodiscard]] T* context() const noexcept {
    return static_cast<T*>(find_context(&detail::type_tag<T>::tag));
  }

 protected:
  connection() noexcept = default;
  ~connection() = default;

 private:
  void* allocate_context(std::size_t bytes);
  void abandon_context(void* place) noexcept;
  void adopt_context(void* context, const void* type, void (*destroy)(void*) noexcept) noexcept;
  void* find_context(const void* type) const noexcept;
};

}  // namespace percore
