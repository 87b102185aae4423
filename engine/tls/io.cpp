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

io::io()
    : input_(new std::byte[input_bytes]),
      plain_(make_kind(control_callback)),
      kernel_(make_kind(kernel_control_callback)) {
  output_.reserve(4096);
}

io::kind io::make_kind(long (*control)(BIO*, int, long, void*)) {
  kind made{bio_method_ptr(BIO_meth_new(bio_type(), "percore")), nullptr};
  if (!made.method || BIO_meth_set_read_ex(made.method.get(), read_callback) != 1 ||
      BIO_meth_set_write_ex(made.method.get(), write_callback) != 1 ||
      BIO_meth_set_ctrl(made.method.get(), control) != 1) {
    throw std::bad_alloc();
  }
  made.bio.reset(BIO_new(made.method.get()));
  if (!made.bio) throw std::bad_alloc();
  BIO_set_data(made.bio.get(), this);
  BIO_set_init(made.bio.get(), 1);
  return made;
}

BIO* io::take_bio(bool for_kernel_tls) noexcept {
  BIO* bio = (for_kernel_tls ? kernel_ : plain_).bio.get();
  BIO_up_ref(bio);
  return bio;
}

void io::use(session& user) noexcept {
  if (user_ == &user) return;
  // Bytes left here would go out on another connection.
  PERCORE_ASSERT(output_.empty() && kernel_messages_.empty(), "what a TLS session has produced was not sent");
  message_type_ = 0;  // of a session that failed between naming it and writing
  if (user_ != nullptr && has_input()) user_->keep_leftover({next_, static_cast<std::size_t>(end_ - next_)});
  user_ = &user;
  next_ = end_ = nullptr;
  if (in_use_ != nullptr || user.kept_ != nullptr) [[unlikely]] {
    in_use_ = std::move(user.kept_);
    if (in_use_ != nullptr) {
      next_ = in_use_.get();
      end_ = next_ + user.kept_bytes_;
    }
  }
}

void io::forget(const session& user) noexcept {
  if (user_ != &user) return;
  message_type_ = 0;
  kernel_messages_.clear();
  user_ = nullptr;
  next_ = end_ = nullptr;
  in_use_ = nullptr;
}

int io::read_callback(BIO* bio, char* target, std::size_t capacity, std::size_t* done) {
  io& self = *static_cast<io*>(BIO_get_data(bio));
  BIO_clear_retry_flags(bio);
  const auto taken = std::min<std::size_t>(capacity, static_cast<std::size_t>(self.end_ - self.next_));
  *done = taken;
  if (taken == 0) {
    self.starved_ = true;
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

// Flushing is the owner's work: when the operation is done, all it has written is sent at once. All else is not known.
long io::control_callback(BIO*, int command, long, void*) { return command == BIO_CTRL_FLUSH ? 1 : 0; }

// How OpenSSL talks with a BIO about kernel TLS: here are the keys, do you encrypt, of what type is the next write.
long io::kernel_control_callback(BIO* bio, int command, long number, void* pointer) {
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
