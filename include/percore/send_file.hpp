// What connection::send_file answers, and what it waits with.
#pragma once

#include <coroutine>
#include <cstdint>
#include <limits>

#include <percore/bytes_view.hpp>
#include <percore/detail/write_source.hpp>

namespace percore {

class connection;

// As a length: all there is until the end of the file, as it is when the sending gets there.
inline constexpr std::uint64_t to_end_of_file = std::numeric_limits<std::uint64_t>::max();

struct sent_file {
  std::uint64_t bytes = 0;  // of the file that the socket has taken, also when the rest has failed
  bool whole = false;
  explicit operator bool() const noexcept { return whole; }
};

namespace detail {

class [[nodiscard("co_await it")]] send_file_awaiter : private write_source {
 public:
  send_file_awaiter(connection& owner, bytes_view head, int file, std::uint64_t offset, std::uint64_t length) noexcept
      : owner_(&owner), file_(file), head_(head), offset_(offset), left_(length), to_end_(length == to_end_of_file) {}
  bool await_ready() noexcept;
  bool await_suspend(std::coroutine_handle<> waiter) noexcept;
  sent_file await_resume() const noexcept;

 private:
  outcome step(engine::slot& through) noexcept;
  outcome send_head(engine::slot& through) noexcept;
  outcome copy(engine::slot& through) noexcept;
  outcome ended(engine::slot& through) const noexcept;
  void push(const engine::slot& through) const noexcept;
  void advance(std::uint64_t bytes) noexcept;

  connection* owner_;
  int file_;
  bytes_view head_;  // what is left of it
  std::uint64_t offset_;
  std::uint64_t left_;
  std::uint64_t sent_ = 0;
  bool to_end_;
  bool held_back_ = false;  // the kernel waits for more before it sends the head
  bool copying_ = false;  // by read and send: encrypted by this side, or the file knows no other way
};

}  // namespace detail

}  // namespace percore
