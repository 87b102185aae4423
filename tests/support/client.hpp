// A blocking client socket for tests.
#pragma once

#include <percore/address.hpp>

#include <cstddef>
#include <string>
#include <string_view>
#include <utility>

namespace percore::test {

// How a stream ended.
enum class ending { fin, reset };

// Owns its socket. Every wait is limited by percore::test::patience; what fails throws std::system_error, and
// waited_too_long when the limit is reached.
class client {
 public:
  struct options {
    int receive_buffer_bytes = 0;  // SO_RCVBUF before connect, to make a reader that is soon full; 0: the kernel's
    address from{};                // source address to bind to; unspecified: the kernel chooses
  };

  explicit client(const address& where) : client(where, options()) {}
  client(const address& where, const options& how);
  client(client&& other) noexcept : fd_(std::exchange(other.fd_, -1)), was_reset_(other.was_reset_) {}
  client& operator=(client&& other) noexcept {
    std::swap(fd_, other.fd_);
    std::swap(was_reset_, other.was_reset_);
    return *this;
  }
  ~client() { close(); }

  void send_all(std::string_view data);
  // Up to `limit` bytes, as soon as there are any; empty at the end of the stream.
  std::string recv_some(std::size_t limit = 65536);
  // Exactly `count` bytes; throws std::runtime_error when the stream ends before.
  std::string recv_exactly(std::size_t count);
  // Up to and with `delimiter`, a byte at a time so that nothing after it is taken.
  std::string recv_until(std::string_view delimiter);
  // All there is until the FIN.
  std::string recv_to_end();
  // Reads and drops what comes and tells how the stream ends.
  ending wait_for_end();

  void half_close();
  // Ends the connection with a RST (SO_LINGER of 0, socket(7)).
  void reset() noexcept;
  void close() noexcept;

  [[nodiscard]] int fd() const noexcept { return fd_; }
  [[nodiscard]] address local_address() const;

 private:
  void check_reset(const char* what) const;

  int fd_ = -1;
  bool was_reset_ = false;  // by the server, before connect(2) had returned, which then took the error away
};

// True when a connection to `where` is refused.
bool connection_refused(const address& where);

// A socket that is bound to `where` and listens, for adopting; throws std::system_error.
int listening_socket(const address& where, int backlog = 128);
address address_of(int fd);

}  // namespace percore::test
