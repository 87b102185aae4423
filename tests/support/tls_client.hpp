// A blocking TLS client for tests, over OpenSSL. What OpenSSL produces goes through the test's hands before
// it goes to the socket, so that a test can cut it, change it or hold it back.
#pragma once

#include <cstddef>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include <openssl/ssl.h>

#include "tests/support/certificates.hpp"
#include "tests/support/client.hpp"

namespace percore::test {

// What OpenSSL says about a handshake or a record that is not good.
struct tls_went_wrong : std::runtime_error {
  using std::runtime_error::runtime_error;
};

using session_ptr = std::shared_ptr<SSL_SESSION>;

struct tls_client_options {
  std::string server_name = "localhost";  // SNI; empty: none
  int min_version = TLS1_2_VERSION;
  int max_version = TLS1_3_VERSION;
  std::string ciphers;  // OpenSSL's lists; empty: its defaults
  std::string ciphersuites;
  std::string groups;
  std::string signature_algorithms;
  std::vector<std::string> alpn;
  const certificate* identity = nullptr;  // client certificate
  bool verify = true;                     // under authority().root
  bool ask_for_status = false;            // OCSP stapling
  bool renegotiation = false;
};

// An SSL_CTX that many clients can share, also of several threads.
class tls_profile {
 public:
  explicit tls_profile(const tls_client_options& how = {});
  [[nodiscard]] SSL_CTX* context() const noexcept { return context_.get(); }
  [[nodiscard]] const tls_client_options& options() const noexcept { return options_; }

 private:
  tls_client_options options_;
  std::shared_ptr<SSL_CTX> context_;
};

// Waits as `client` does and throws what it throws, beside tls_went_wrong.
class tls_client {
 public:
  // Connects, without a handshake.
  tls_client(const address& where, const tls_profile& how = tls_profile(), const session_ptr& resumed = {},
             const client::options& socket = {});
  // Over a connection that is there already.
  tls_client(client socket, const tls_profile& how, const session_ptr& resumed = {});

  // The whole of it.
  tls_client& handshake();
  // One step: works up what has been received, and gives what is to be sent now. Throws when it has failed.
  std::string handshake_step();
  [[nodiscard]] bool handshake_done() const noexcept { return SSL_is_init_finished(ssl_.get()) == 1; }
  // Receives once; false at the end of the stream.
  bool receive();

  void send_all(std::string_view data);
  // The records that send_all would send.
  std::string encrypt(std::string_view data);
  std::string recv_some(std::size_t limit = 65536);
  std::string recv_exactly(std::size_t count);
  std::string recv_to_end();
  // Reads and drops what comes; true when the last was close_notify.
  bool ended_cleanly();
  // After the end of the stream: whether close_notify was there.
  [[nodiscard]] bool close_received() const noexcept {
    return (SSL_get_shutdown(ssl_.get()) & SSL_RECEIVED_SHUTDOWN) != 0;
  }

  void close_notify();
  void half_close() {  // close_notify and FIN
    close_notify();
    socket_.half_close();
  }

  [[nodiscard]] client& socket() noexcept { return socket_; }
  [[nodiscard]] SSL* ssl() const noexcept { return ssl_.get(); }
  [[nodiscard]] bool resumed() const noexcept { return SSL_session_reused(ssl_.get()) == 1; }
  [[nodiscard]] int version() const noexcept { return SSL_version(ssl_.get()); }
  [[nodiscard]] std::string alpn() const;
  [[nodiscard]] std::string peer_sha256() const;  // of the server's certificate
  // The newest ticket, or nullptr. With TLS 1.3 it comes with the first bytes that are read.
  [[nodiscard]] session_ptr ticket() const;

 private:
  void send_output();
  std::string take_output();
  [[noreturn]] void fail();

  client socket_;
  std::shared_ptr<session_ptr> ticket_ = std::make_shared<session_ptr>();
  std::shared_ptr<SSL> ssl_;
};

// A copy of a session whose ticket has one bit flipped at `byte`, counted from its end when negative.
session_ptr with_broken_ticket(const session_ptr& good, long byte);

}  // namespace percore::test
