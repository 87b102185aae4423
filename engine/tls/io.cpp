#include "engine/tls/io.hpp"

#include <algorithm>
#include <cstring>
#include <new>
#include <utility>

#include "engine/base/assert.hpp"
#include "engine/tls/session.hpp"

namespace percore::tls {

namespace {

// The process has 127 numbers for types of BIO (BIO_get_new_index(3)).
int bio_type() noexcept {
  static const int type = BIO_get_new_index() | BIO_TYPE_SOURCE_SINK;
  return type;
}

}  // namespace

io::io() : input_(new std::byte[input_bytes]), method_(BIO_meth_new(bio_type(), "percore")) {
  if (!method_ || BIO_meth_set_read_ex(method_.get(), read_callback) != 1 ||
      BIO_meth_set_write_ex(method_.get(), write_callback) != 1 ||
      BIO_meth_set_ctrl(method_.get(), control_callback) != 1) {
    throw std::bad_alloc();
  }
  bio_.reset(BIO_new(method_.get()));
  if (!bio_) throw std::bad_alloc();
  BIO_set_data(bio_.get(), this);
  BIO_set_init(bio_.get(), 1);
  output_.reserve(4096);
}

BIO* io::take_bio() noexcept {
  BIO_up_ref(bio_.get());
  return bio_.get();
}

void io::use(session& user) noexcept {
  if (user_ == &user) return;
  // Bytes left here would go out on another connection.
  PERCORE_ASSERT(output_.empty() && kernel_messages_.empty(), "what a TLS session has produced was not sent");
  message_type_ = 0;  // of a session that failed between naming it and writing
  if (user_ != nullptr) {
    if (has_input()) {
      user_->keep_leftover({next_, static_cast<std::size_t>(end_ - next_)});
    } else {
      user_->in_use_ = {};
    }
  }
  user_ = &user;
  const auto kept = user.leftover();
  next_ = kept.data();
  end_ = next_ + kept.size();
}

void io::forget(const session& user) noexcept {
  if (user_ != &user) return;
  message_type_ = 0;
  kernel_messages_.clear();
  user_ = nullptr;
  next_ = end_ = nullptr;
}

int io::read_callback(BIO* bio, char* target, std::size_t capacity, std::size_t* done) {
  io& self = *static_cast<io*>(BIO_get_data(bio));
  BIO_clear_retry_flags(bio);
  const auto taken = std::min<std::size_t>(capacity, static_cast<std::size_t>(self.end_ - self.next_));
  *done = taken;
  if (taken == 0) {
    BIO_set_retry_read(bio);
    return 0;
  }
  std::memcpy(target, self.next_, taken);
  self.next_ += taken;
  return 1;
}

int io::write_callback(BIO* bio, const char* data, std::size_t size, std::size_t* done) {
  io& self = *static_cast<io*>(BIO_get_data(bio));
  BIO_clear_retry_flags(bio);
  *done = 0;
  const auto* bytes = reinterpret_cast<const std::byte*>(data);
  try {
    if (self.message_type_ == 0) {
      self.output_.insert(self.output_.end(), bytes, bytes + size);
    } else {
      kernel_message message{std::exchange(self.message_type_, std::uint8_t{0}), {bytes, bytes + size}};
      if (!self.user_->may_send(message)) return 0;
      self.kernel_messages_.push_back(std::move(message));
    }
  } catch (const std::bad_alloc&) {
    return 0;  // no retry: the session fails
  }
  *done = size;
  return 1;
}

// Flushing is the owner's work: when the operation is done, all it has written is sent at once. The rest is how OpenSSL
// talks with a BIO about kernel TLS: here are the keys, do you encrypt, of what type is the next write.
long io::control_callback(BIO* bio, int command, long number, void* pointer) {
  constexpr int set_keys = 72;  // bio.h of OpenSSL 3 names these in a comment: its own BIOs only are meant to know them
  constexpr int get_sends = 73;
  constexpr int set_message_type = 74;
  constexpr int clear_message_type = 75;
  io& self = *static_cast<io*>(BIO_get_data(bio));
  switch (command) {
    case BIO_CTRL_FLUSH:
      return 1;
    case get_sends:
      return self.user_ != nullptr && self.user_->kernel_sends() ? 1 : 0;
    case set_keys:  // `number`: for sending, else for receiving
      return number != 0 && self.user_ != nullptr && self.user_->hand_over_sending(pointer) ? 1 : 0;
    case set_message_type:
      self.message_type_ = static_cast<std::uint8_t>(number);
      return 0;
    case clear_message_type:
      self.message_type_ = 0;
      return 0;
    default:
      return 0;
  }
}

}  // namespace percore::tls
