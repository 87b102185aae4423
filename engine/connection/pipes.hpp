#pragma once

#include <cstddef>
#include <utility>
#include <vector>

namespace percore::engine {

// The pipes of one core, for bytes on their way from one socket to another. One is taken only while there is something in
// it, so idle relays have none.
class pipe_pool {
 public:
  struct ends {
    int read = -1;
    int write = -1;
  };

  pipe_pool(std::size_t limit, std::size_t bytes) noexcept : limit_(limit), bytes_(bytes) {}
  pipe_pool(const pipe_pool&) = delete;
  pipe_pool& operator=(const pipe_pool&) = delete;
  ~pipe_pool() { close(); }

  // An empty one; none when `limit` are taken, or the kernel gives none.
  bool take(ends& into) noexcept;
  void give_back(ends pipe, bool empty) noexcept;
  void close() noexcept;

 private:
  const std::size_t limit_;
  const std::size_t bytes_;
  std::size_t taken_ = 0;
  std::vector<ends> free_;
};

// A pipe for as long as it is needed.
class pipe_lease {
 public:
  explicit pipe_lease(pipe_pool& pool) noexcept : pool_(&pool) { taken_ = pool.take(ends_); }
  pipe_lease(const pipe_lease&) = delete;
  pipe_lease& operator=(const pipe_lease&) = delete;
  ~pipe_lease() {
    if (taken_) pool_->give_back(ends_, held == 0);
  }
  explicit operator bool() const noexcept { return taken_; }
  [[nodiscard]] int read_end() const noexcept { return ends_.read; }
  [[nodiscard]] int write_end() const noexcept { return ends_.write; }

  std::size_t held = 0;  // bytes in it

 private:
  pipe_pool* pool_;
  pipe_pool::ends ends_;
  bool taken_ = false;
};

}  // namespace percore::engine
