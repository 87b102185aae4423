#include "tests/fault/kernel_tls.hpp"

#include <linux/tls.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/evp.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <stdexcept>

namespace percore::test {
namespace {

constexpr int sol_tls = 282;
constexpr std::size_t most_content = 16 * 1024;
constexpr unsigned char application_data = 23;

void append_number(std::vector<unsigned char>& to, std::uint64_t number, unsigned bytes) {
  while (bytes-- > 0) to.push_back(static_cast<unsigned char>(number >> (8 * bytes)));
}

const EVP_CIPHER* evp_of(std::uint16_t cipher) {
  switch (cipher) {
    case TLS_CIPHER_AES_GCM_128:
      return EVP_aes_128_gcm();
    case TLS_CIPHER_AES_GCM_256:
      return EVP_aes_256_gcm();
    default:
      return EVP_chacha20_poly1305();
  }
}

std::vector<unsigned char> sealed(const EVP_CIPHER* cipher, const std::vector<unsigned char>& key,
                                  const std::vector<unsigned char>& nonce, const std::vector<unsigned char>& header,
                                  std::span<const unsigned char> content) {
  const std::unique_ptr<EVP_CIPHER_CTX, decltype(&EVP_CIPHER_CTX_free)> context(EVP_CIPHER_CTX_new(),
                                                                                EVP_CIPHER_CTX_free);
  std::vector<unsigned char> result(content.size() + 16);
  int size = 0;
  const bool ok = EVP_EncryptInit_ex(context.get(), cipher, nullptr, key.data(), nonce.data()) == 1 &&
                  EVP_EncryptUpdate(context.get(), nullptr, &size, header.data(), static_cast<int>(header.size())) == 1 &&
                  EVP_EncryptUpdate(context.get(), result.data(), &size, content.data(),
                                    static_cast<int>(content.size())) == 1 &&
                  EVP_EncryptFinal_ex(context.get(), result.data() + size, &size) == 1 &&
                  EVP_CIPHER_CTX_ctrl(context.get(), EVP_CTRL_AEAD_GET_TAG, 16, result.data() + content.size()) == 1;
  if (!ok) throw std::runtime_error("a record cannot be encrypted");
  return result;
}

template <class Info>
void copy_keys(const void* value, std::vector<unsigned char>& key, std::vector<unsigned char>& nonce,
               std::uint64_t& sequence) {
  Info info;
  std::memcpy(&info, value, sizeof info);
  key.assign(std::begin(info.key), std::end(info.key));
  if constexpr (sizeof info.iv == 8) nonce.assign(std::begin(info.salt), std::end(info.salt));
  nonce.insert(nonce.end(), std::begin(info.iv), std::end(info.iv));
  sequence = 0;
  for (const unsigned char byte : info.rec_seq) sequence = sequence << 8 | byte;
}

}  // namespace

bool kernel_tls_stand_in::take_keys(stream& into, const void* value, socklen_t length) {
  tls_crypto_info info;
  if (length < sizeof info) return false;
  std::memcpy(&info, value, sizeof info);
  into = {};
  into.version = info.version;
  into.cipher = info.cipher_type;
  if (info.cipher_type == TLS_CIPHER_AES_GCM_128 && length == sizeof(tls12_crypto_info_aes_gcm_128)) {
    copy_keys<tls12_crypto_info_aes_gcm_128>(value, into.key, into.nonce, into.sequence);
  } else if (info.cipher_type == TLS_CIPHER_AES_GCM_256 && length == sizeof(tls12_crypto_info_aes_gcm_256)) {
    copy_keys<tls12_crypto_info_aes_gcm_256>(value, into.key, into.nonce, into.sequence);
  } else if (info.cipher_type == TLS_CIPHER_CHACHA20_POLY1305 &&
             length == sizeof(tls12_crypto_info_chacha20_poly1305)) {
    copy_keys<tls12_crypto_info_chacha20_poly1305>(value, into.key, into.nonce, into.sequence);
  } else {
    return false;
  }
  return true;
}

int kernel_tls_stand_in::setsockopt(int fd, int level, int name, const void* value, socklen_t length) noexcept {
  const std::lock_guard hold(lock_);
  if (level == IPPROTO_TCP) {
    ++asked;
    return -ulp_error;
  }
  if (level != sol_tls || name != TLS_TX) return -ENOPROTOOPT;
  if (keys_error != 0) return -keys_error;
  if (streams_.contains(fd)) return -EBUSY;
  return take_keys(streams_[fd], value, length) ? 0 : -EINVAL;
}

std::vector<unsigned char> kernel_tls_stand_in::record(stream& with, unsigned char type,
                                                       std::span<const unsigned char> content) {
  std::vector<unsigned char> sequence;
  append_number(sequence, with.sequence++, 8);
  std::vector<unsigned char> nonce = with.nonce;
  std::vector<unsigned char> result;
  if (with.version == TLS_1_3_VERSION) {  // RFC 8446 5.2, 5.3
    for (std::size_t i = 0; i < 8; ++i) nonce[4 + i] ^= sequence[i];
    std::vector<unsigned char> inner(content.begin(), content.end());
    inner.push_back(type);
    result = {application_data, 3, 3};
    append_number(result, inner.size() + 16, 2);
    const auto body = sealed(evp_of(with.cipher), with.key, nonce, result, inner);
    result.insert(result.end(), body.begin(), body.end());
    return result;
  }
  std::vector<unsigned char> header = sequence;  // RFC 5246 6.2.3.3
  header.insert(header.end(), {type, 3, 3});
  append_number(header, content.size(), 2);
  result = {type, 3, 3};
  if (with.cipher == TLS_CIPHER_CHACHA20_POLY1305) {  // RFC 7905
    for (std::size_t i = 0; i < 8; ++i) nonce[4 + i] ^= sequence[i];
    append_number(result, content.size() + 16, 2);
  } else {  // RFC 5288: a part of the nonce is sent
    append_number(result, 8 + content.size() + 16, 2);
    result.insert(result.end(), nonce.begin() + 4, nonce.end());
    for (std::size_t i = nonce.size(); i-- > 4 && ++with.nonce[i] == 0;) {
    }
  }
  const auto body = sealed(evp_of(with.cipher), with.key, nonce, header, content);
  result.insert(result.end(), body.begin(), body.end());
  return result;
}

// 0, or -errno. Waits where the kernel would go on by itself.
int kernel_tls_stand_in::put(int fd, stream& with, unsigned char type, std::span<const unsigned char> content) {
  const std::vector<unsigned char> bytes = record(with, type, content);
  for (std::size_t done = 0; done < bytes.size();) {
    const ssize_t sent = ::send(fd, bytes.data() + done, bytes.size() - done, MSG_NOSIGNAL);
    if (sent >= 0) {
      done += static_cast<std::size_t>(sent);
    } else if (errno == EAGAIN) {
      pollfd room{fd, POLLOUT, 0};
      if (::poll(&room, 1, 20'000) == 0) return -ETIMEDOUT;
    } else if (errno != EINTR) {
      return -errno;
    }
  }
  return 0;
}

ssize_t kernel_tls_stand_in::sendmsg(int fd, const msghdr* message, int flags) noexcept {
  stream* with = nullptr;
  {
    const std::lock_guard hold(lock_);
    with = &streams_.at(fd);  // used by the thread of its connection only, and at its place until closed()
  }
  pollfd room{fd, POLLOUT, 0};
  if (::poll(&room, 1, 0) == 0) return -EAGAIN;
  std::vector<unsigned char> content;
  for (std::size_t i = 0; i < message->msg_iovlen; ++i) {
    const auto* piece = static_cast<const unsigned char*>(message->msg_iov[i].iov_base);
    content.insert(content.end(), piece, piece + message->msg_iov[i].iov_len);
  }
  const auto finish_open = [&] {
    if (with->open.empty()) return 0;
    const int result = put(fd, *with, application_data, with->open);
    with->open.clear();
    return result;
  };
  const cmsghdr* control = CMSG_FIRSTHDR(message);
  if (control != nullptr && control->cmsg_level == sol_tls && control->cmsg_type == TLS_SET_RECORD_TYPE) {
    ++messages;
    int result = finish_open();
    if (result == 0) result = put(fd, *with, *CMSG_DATA(control), content);
    return result != 0 ? result : static_cast<ssize_t>(content.size());
  }
  // As much as one record holds: a caller must be able to bear a short write.
  const std::size_t taken = std::min(content.size(), most_content - with->open.size());
  with->open.insert(with->open.end(), content.begin(), content.begin() + static_cast<std::ptrdiff_t>(taken));
  if ((flags & MSG_MORE) == 0 || with->open.size() == most_content) {
    if (const int result = finish_open(); result != 0) return result;
  }
  return static_cast<ssize_t>(taken);
}

// One record of the file.
ssize_t kernel_tls_stand_in::sendfile(int fd, int file, off_t* offset, std::size_t length) noexcept {
  std::vector<unsigned char> content(std::min(length, most_content));
  const ssize_t got = ::pread(file, content.data(), content.size(), *offset);
  if (got <= 0) return got < 0 ? -errno : 0;
  iovec piece{content.data(), static_cast<std::size_t>(got)};
  msghdr message{};
  message.msg_iov = &piece;
  message.msg_iovlen = 1;
  const ssize_t taken = sendmsg(fd, &message, 0);
  if (taken > 0) {
    *offset += taken;
    file_bytes += static_cast<std::uint64_t>(taken);
  }
  return taken;
}

bool kernel_tls_stand_in::has(int fd) const noexcept {
  const std::lock_guard hold(lock_);
  return streams_.contains(fd);
}

// An open record is lost, as with the kernel.
void kernel_tls_stand_in::closed(int fd) noexcept {
  const std::lock_guard hold(lock_);
  streams_.erase(fd);
}

}  // namespace percore::test
