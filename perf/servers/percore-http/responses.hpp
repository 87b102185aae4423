// Responses made ahead: what a request costs is a date check and, with --aes128 or --sha256, the body.
#pragma once

#include <percore/bytes_view.hpp>

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <ctime>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "perf/servers/percore-http/crypto.hpp"
#include "perf/servers/percore-http/http_date.hpp"

namespace percore_http {

enum class body_kind : std::uint8_t {
  plain,   // --body bytes of 'x'
  aes128,  // the initialisation vector, then those bytes encrypted (aes128_cbc)
  sha256,  // their SHA-256 in hexadecimal
};

// How the 200 responses of this server look. Made once, read by all cores.
class response_layout {
 public:
  response_layout(body_kind kind, std::size_t body_bytes);

  [[nodiscard]] body_kind kind() const noexcept { return kind_; }
  [[nodiscard]] std::string_view plain_body() const noexcept { return plain_body_; }
  // The head, with a gap for the date. Both variants have the date at the same place.
  [[nodiscard]] std::string_view head(bool keep_alive) const noexcept {
    return keep_alive ? keep_alive_head_ : close_head_;
  }
  [[nodiscard]] std::size_t date_offset() const noexcept { return date_offset_; }
  [[nodiscard]] std::size_t content_bytes() const noexcept { return content_bytes_; }
  // A plain body of more than 64 KiB is not copied behind each head but sent from one place.
  [[nodiscard]] bool body_is_shared() const noexcept { return body_is_shared_; }
  // From one response to the next in a response_buffer.
  [[nodiscard]] std::size_t stride(bool keep_alive) const noexcept {
    return head(keep_alive).size() + (body_is_shared_ ? 0 : content_bytes_);
  }
  // Responses in a response_buffer: so many pipelined requests are answered with one write. 1 to 32, and at
  // most 32 KiB. There is only one last response.
  [[nodiscard]] std::size_t copies(bool keep_alive) const noexcept { return keep_alive ? copies_ : 1; }

 private:
  body_kind kind_;
  std::string plain_body_;
  std::size_t content_bytes_;
  bool body_is_shared_;
  std::string keep_alive_head_;
  std::string close_head_;
  std::size_t date_offset_;
  std::size_t copies_;
};

// The same response several times in a row, ready to be sent but for a new date and the bodies that differ.
struct response_buffer {
  response_buffer* next = nullptr;  // in the list of free ones
  bool keep_alive = false;
  std::time_t second = -1;  // whose date it bears
  std::unique_ptr<char[]> bytes;
};

class response_lease;

// The responses of one core, or of one thread of it. A buffer is lent for one write, which must keep its bytes unchanged until it is
// done; as a write nearly always is at once, nearly all requests use the same buffer.
class response_source {
 public:
  explicit response_source(const response_layout& layout);
  response_source(const response_source&) = delete;
  response_source& operator=(const response_source&) = delete;
  ~response_source();

  // `answers` responses (at most layout.copies()), dated `now`, the time of this turn. 0 answers: only the
  // head of the lease will be used. Throws std::bad_alloc, or std::runtime_error when OpenSSL fails.
  response_lease take(bool keep_alive, std::size_t answers, std::chrono::steady_clock::time_point now);

  // A whole error response that ends the connection.
  std::string error_response(std::uint16_t status, bool with_body, std::chrono::steady_clock::time_point now);

 private:
  friend class response_lease;
  static constexpr std::size_t most_free = 16;  // per variant; more come from stuck writers and are not kept

  // The last one used, or nullptr.
  response_buffer* take_free(bool keep_alive) noexcept {
    response_buffer* buffer = free_[keep_alive];
    if (buffer != nullptr) [[likely]] {
      free_[keep_alive] = buffer->next;
      --free_count_[keep_alive];
    }
    return buffer;
  }
  void give_back(response_buffer* buffer) noexcept {
    const bool keep_alive = buffer->keep_alive;
    if (free_count_[keep_alive] == most_free) [[unlikely]] {
      delete buffer;
      return;
    }
    ++free_count_[keep_alive];
    buffer->next = free_[keep_alive];
    free_[keep_alive] = buffer;
  }
  // Another thread's way to give back.
  void give_back_from_afar(response_buffer* buffer) noexcept {
    response_buffer* last = returned_.load(std::memory_order_relaxed);
    do {
      buffer->next = last;
    } while (!returned_.compare_exchange_weak(last, buffer, std::memory_order_release, std::memory_order_relaxed));
  }
  void take_returned() noexcept;
  response_buffer* returned_or_new(bool keep_alive);
  response_buffer* make_buffer(bool keep_alive) const;
  void stamp(response_buffer& buffer) const noexcept;
  void make_bodies(response_buffer& buffer, std::size_t count);

  const response_layout& layout_;
  bool made_per_request_;                   // the bodies
  std::array<response_buffer*, 2> free_{};  // [keep_alive]: stacks, the last one used on top
  std::array<std::uint32_t, 2> free_count_{};
  second_clock clock_;
  std::optional<aes128_cbc> cipher_;
  std::optional<sha256_hex> digest_;
  std::atomic<response_buffer*> returned_{nullptr};  // by other threads
};

// Gives the buffer back at its end.
class response_lease {
 public:
  response_lease(response_source& source, response_buffer* buffer) noexcept
      : source_(&source), buffer_(buffer) {}
  response_lease(response_lease&& other) noexcept
      : source_(other.source_), buffer_(std::exchange(other.buffer_, nullptr)) {}
  response_lease& operator=(response_lease&&) = delete;
  ~response_lease() {
    if (buffer_ != nullptr) source_->give_back(buffer_);
  }

  // The first `answers` responses. Not when the body is shared.
  [[nodiscard]] percore::bytes_view responses(std::size_t answers) const noexcept {
    return {static_cast<const void*>(buffer_->bytes.get()),
            answers * source_->layout_.stride(buffer_->keep_alive)};
  }
  // The first response in two pieces.
  [[nodiscard]] percore::bytes_view head() const noexcept {
    return {static_cast<const void*>(buffer_->bytes.get()),
            source_->layout_.head(buffer_->keep_alive).size()};
  }
  [[nodiscard]] percore::bytes_view content() const noexcept {
    const response_layout& layout = source_->layout_;
    if (layout.body_is_shared()) return layout.plain_body();
    return {static_cast<const void*>(buffer_->bytes.get() + head().size()), layout.content_bytes()};
  }

 protected:
  [[nodiscard]] bool holds() const noexcept { return buffer_ != nullptr; }
  [[nodiscard]] const response_source& source() const noexcept { return *source_; }
  // On a thread that is not the source's.
  void give_back_from_afar() noexcept { source_->give_back_from_afar(std::exchange(buffer_, nullptr)); }

 private:
  response_source* source_;
  response_buffer* buffer_;
};

inline response_lease response_source::take(bool keep_alive, std::size_t answers,
                                            std::chrono::steady_clock::time_point now) {
  clock_.advance(now);
  response_buffer* buffer = take_free(keep_alive);
  if (buffer == nullptr) [[unlikely]]
    buffer = returned_or_new(keep_alive);
  response_lease lease(*this, buffer);
  if (buffer->second != clock_.second()) [[unlikely]]
    stamp(*buffer);
  if (made_per_request_) make_bodies(*buffer, answers);
  return lease;
}

}  // namespace percore_http
