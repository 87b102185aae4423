// One connection's request and response, plain or TLS, without blocking.
#pragma once

#include <netinet/in.h>
#include <openssl/ssl.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace pace {

enum class outcome : unsigned char { waiting, done, failed };

// Ends the process with status 1 when OpenSSL fails.
SSL_CTX* make_client_context(bool resume);

class exchange {
 public:
  exchange(const sockaddr_in& address, SSL_CTX* tls, std::string_view request, bool resume)
      : address_(address), tls_(tls), request_(request), resume_(resume) {}
  exchange(const exchange&) = delete;
  exchange& operator=(const exchange&) = delete;
  ~exchange();

  // Opens a socket and begins to connect. False when there is no descriptor or port left.
  bool open(int epoll_fd);
  void close();
  [[nodiscard]] bool is_open() const noexcept { return fd_ >= 0; }

  // Begins a request; `intended`: when it should have been sent, in ns.
  void begin(std::uint64_t intended) noexcept;
  [[nodiscard]] std::uint64_t intended() const noexcept { return intended_; }
  [[nodiscard]] bool busy() const noexcept { return busy_; }

  // Goes on as far as it can. done: the response is there whole.
  outcome advance();

  exchange* next_free = nullptr;

 private:
  outcome connect_tls();
  outcome send_request();
  outcome read_response();
  outcome on_tls_result(int result) const;
  bool parse(std::string_view data);  // false when it is no good response

  sockaddr_in address_;
  SSL_CTX* tls_;
  std::string_view request_;
  bool resume_;
  SSL* ssl_ = nullptr;
  SSL_SESSION* session_ = nullptr;  // of the connection before, if any
  int fd_ = -1;
  bool busy_ = false;
  bool secured_ = false;  // the handshake is done
  std::size_t sent_ = 0;
  std::uint64_t intended_ = 0;
  std::string head_;  // until it is whole
  std::size_t body_left_ = 0;
  bool in_body_ = false;
};

}  // namespace pace
