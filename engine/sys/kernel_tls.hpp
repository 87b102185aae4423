// Kernel TLS for what is sent (Documentation/networking/tls.rst): the kernel turns what the socket is given into
// records. Linux 4.13 and its module "tls"; TLS 1.3 from 5.1.
#pragma once

#include <cstddef>
#include <cstdint>

#include <sys/types.h>

namespace percore::sys {

// Hands sending over to the kernel, with the keys of the connection in `keys`: one of the tls12_crypto_info_* of
// linux/tls.h, which is also what OpenSSL's BIO_CTRL_SET_KTLS gives. 0; -ENOENT when the kernel has no such module; -EOPNOTSUPP for
// ciphers that are not passed on; else what setsockopt says. After a failure the connection sends as before.
//
// The kernel takes bytes before it has turned all of them into segments, and at close(2) tries once more: what the socket
// has no room for then is lost, and the peer finds the stream cut off.
int start_kernel_tls(int fd, const void* keys) noexcept;

// Sends one record of a type other than application data (RFC 8446 5.1), whole. `flags` as for send(2), but never
// MSG_MORE: a record that is left open is lost when the socket is closed.
ssize_t send_tls_record(int fd, std::uint8_t type, const void* data, std::size_t size, int flags) noexcept;

}  // namespace percore::sys
