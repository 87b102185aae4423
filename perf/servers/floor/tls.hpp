#pragma once

#include <openssl/ssl.h>

#include <array>
#include <memory>
#include <string>

#include "perf/servers/floor/options.hpp"

namespace floor_server {

template <auto Free>
struct frees {
  template <class T>
  void operator()(T* object) const {
    Free(object);
  }
};
using context_ptr = std::unique_ptr<SSL_CTX, frees<SSL_CTX_free>>;

// What the loops' contexts are made of. Every loop parses the key anew: OpenSSL keeps an RSA key's blinding
// in the key, for the first thread that used it without a lock, for others with one.
struct tls_material {
  std::string certificate_pem;
  std::string key_pem;
  std::array<unsigned char, 80> ticket_keys;  // name, HMAC key and AES-256 key
};

// Reads the files or makes the self-signed pair. Ends the process with status 1 and one line on standard
// error when that fails or the two do not make a context.
tls_material load_tls_material(const tls_options& opt);

// For one loop. Ends the process with status 1 on failure.
context_ptr make_tls_context(const tls_options& opt, const tls_material& material);

// Serves on the calling thread for ever. `response` must outlive the process's loops.
[[noreturn]] void serve_tls(int epoll_fd, int listener_fd, const options& opt, const tls_material& material,
                            const std::string& response);

}  // namespace floor_server
