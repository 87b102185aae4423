#include "engine/sys/kernel_tls.hpp"

#include <linux/tls.h>

#include <cstring>

#include "engine/sys/calls.hpp"

#ifndef SOL_TLS
#define SOL_TLS 282  // include/linux/socket.h; glibc has it from 2.38
#endif
#ifndef TCP_ULP
#define TCP_ULP 31  // include/uapi/linux/tcp.h
#endif

namespace percore::sys {

namespace {

socklen_t size_of_keys(const tls_crypto_info& info) noexcept {
  switch (info.cipher_type) {
    case TLS_CIPHER_AES_GCM_128:
      return sizeof(tls12_crypto_info_aes_gcm_128);
    case TLS_CIPHER_AES_GCM_256:
      return sizeof(tls12_crypto_info_aes_gcm_256);
    case TLS_CIPHER_CHACHA20_POLY1305:
      return sizeof(tls12_crypto_info_chacha20_poly1305);
    default:
      return 0;
  }
}

}  // namespace

int start_kernel_tls(int fd, const void* keys) noexcept {
  tls_crypto_info info;
  std::memcpy(&info, keys, sizeof info);
  const socklen_t size = size_of_keys(info);
  if (size == 0) return -EOPNOTSUPP;
  const int result = sys::setsockopt(fd, IPPROTO_TCP, TCP_ULP, "tls", sizeof "tls");
  if (result != 0 && result != -EEXIST) return result;
  return sys::setsockopt(fd, SOL_TLS, TLS_TX, keys, size);
}

ssize_t send_tls_record(int fd, std::uint8_t type, const void* data, std::size_t size, int flags) noexcept {
  alignas(cmsghdr) std::byte control[CMSG_SPACE(sizeof type)]{};
  iovec piece{const_cast<void*>(data), size};
  msghdr message{};
  message.msg_iov = &piece;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  cmsghdr* header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_TLS;
  header->cmsg_type = TLS_SET_RECORD_TYPE;
  header->cmsg_len = CMSG_LEN(sizeof type);
  std::memcpy(CMSG_DATA(header), &type, sizeof type);
  return sys::sendmsg(fd, &message, flags);
}

}  // namespace percore::sys
