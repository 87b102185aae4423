#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "engine/tls/openssl.hpp"

namespace percore::tls {

class session;

// What the kernel is to send as a record of its own, of another type than application data.
struct kernel_message {
  std::uint8_t type = 0;
  std::vector<std::byte> content;
};

// Where the sessions of one core meet the bytes of the wire: BIOs and two buffers, shared by all of them, because only
// one session works at a time. The owner receives ciphertext into `input` and sends what has gathered in `output`.
//
// A session may leave received ciphertext behind (the handler takes the first record, the second is still there). It
// stays where it is until another session needs the buffer, and only then moves into a block of its own: a handshake
// whose last flight brings the first request thus copies and allocates nothing.
class io {
 public:
  static constexpr std::size_t input_bytes = 32 * 1024;

  // Throws std::bad_alloc.
  io();
  io(const io&) = delete;
  io& operator=(const io&) = delete;

  // The BIO for a session's both directions, with the one reference that SSL_set_bio(3) takes when they are the same.
  // `for_kernel_tls`: one that answers what OpenSSL asks about it. OpenSSL 3.0 asks a dozen times per request.
  [[nodiscard]] BIO* take_bio(bool for_kernel_tls) noexcept;

  // Prepares for operations of `user`: its ciphertext that was left behind is offered first. When there is no memory
  // to save another's, that one has lost its place in the stream and fails at its next operation.
  [[gnu::hot]] void use(session& user) noexcept;
  // `user` is gone or needs nothing any more.
  void forget(const session& user) noexcept;

  // To receive into; only when nothing is left.
  [[nodiscard]] std::span<std::byte> room() noexcept { return {input_.get(), input_bytes}; }
  void received(std::size_t bytes) noexcept {
    next_ = input_.get();
    end_ = next_ + bytes;
  }
  [[nodiscard]] bool has_input() const noexcept { return next_ != end_; }

  // What the session has produced, to be sent in this order: records, or, once the kernel encrypts what it sends, the
  // contents of one message each.
  [[nodiscard]] std::span<const std::byte> output() const noexcept { return output_; }
  [[nodiscard]] std::span<const kernel_message> kernel_messages() const noexcept { return kernel_messages_; }
  void output_taken() noexcept {
    output_.clear();
    if (!kernel_messages_.empty()) kernel_messages_.clear();
  }

 private:
  friend class session;
  [[gnu::hot]] static int read_callback(BIO* bio, char* target, std::size_t capacity, std::size_t* done);
  [[gnu::hot]] static int write_callback(BIO* bio, const char* data, std::size_t size, std::size_t* done);
  [[gnu::hot]] static long control_callback(BIO* bio, int command, long number, void* pointer);
  static long kernel_control_callback(BIO* bio, int command, long number, void* pointer);
  struct kind {
    bio_method_ptr method;
    bio_ptr bio;
  };
  kind make_kind(long (*control)(BIO*, int, long, void*));

  std::unique_ptr<std::byte[]> input_;
  const std::byte* next_ = nullptr;
  const std::byte* end_ = nullptr;
  session* user_ = nullptr;
  bool starved_ = false;  // the session has asked for more than there is, since it last set this to false
  std::vector<std::byte> output_;
  std::vector<kernel_message> kernel_messages_;
  std::uint8_t message_type_ = 0;  // of the next write, when the kernel is to encrypt it
  // Ciphertext of the user's own, which another session's turn found unread: next_ is in it.
  std::unique_ptr<std::byte[]> in_use_;
  kind plain_;
  kind kernel_;
};

}  // namespace percore::tls
