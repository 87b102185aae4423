// Both sides of a TLS conversation without a socket between them.
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <memory>
#include <span>
#include <string>

#include "engine/tls/core_state.hpp"
#include "tests/support/certificates.hpp"
#include "tests/support/tls_server.hpp"

namespace percore::test {

inline std::shared_ptr<tls::shared_context> context_of(const tls_options& options, tls_role role) {
  return std::make_shared<tls::shared_context>(options, role);
}

inline tls_options client_tls() {
  tls_options result;
  result.authorities_pem = authority().root.pem();
  return result;
}

// One side, with a core of its own: two sessions of one core take turns, as connections do.
class tls_side {
 public:
  explicit tls_side(const tls_options& options, tls_role role) : tls_side(context_of(options, role)) {}
  explicit tls_side(const std::shared_ptr<tls::shared_context>& shared) : session_(core_.open(shared, 1)) {
    REQUIRE(session_ != nullptr);
  }
  ~tls_side() { core_.close(session_); }
  tls_side(const tls_side&) = delete;
  tls_side& operator=(const tls_side&) = delete;

  tls::session& operator*() noexcept { return *session_; }
  tls::session* operator->() noexcept { return session_; }
  bool set_server_name(const std::string& name) { return session_->context().set_server_name(session_->ssl(), name); }
  void give(const std::string& bytes) {
    core_.wire.use(*session_);
    const auto* data = reinterpret_cast<const std::byte*>(bytes.data());
    REQUIRE(bytes.size() <= core_.wire.room().size());
    std::copy_n(data, bytes.size(), core_.wire.room().begin());
    core_.wire.received(bytes.size());
  }
  std::string take() {
    const auto output = core_.wire.output();
    std::string result(reinterpret_cast<const char*>(output.data()), output.size());
    core_.wire.output_taken();
    return result;
  }
  std::string read() {
    std::string text(1000, '\0');
    std::size_t done = 0;
    last_ = session_->read(std::as_writable_bytes(std::span(text)), done);
    text.resize(done);
    return text;
  }
  bool write(const std::string& text) { return session_->write(std::as_bytes(std::span(text)), 0); }
  [[nodiscard]] tls::status last() const noexcept { return last_; }

 private:
  tls::core_state core_;
  tls::session* session_;
  tls::status last_ = tls::status::done;
};

// Runs both handshakes against each other. True when both are done.
inline bool shake_hands(tls_side& client, tls_side& server) {
  tls::status of_client = client->handshake();
  tls::status of_server = tls::status::want_input;
  for (int flights = 0; flights < 10; ++flights) {
    if (const std::string out = client.take(); !out.empty()) {
      server.give(out);
      if (!server->established())
        of_server = server->handshake();
      else
        (void)server.read();
    }
    if (const std::string out = server.take(); !out.empty()) {
      client.give(out);
      if (!client->established())
        of_client = client->handshake();
      else
        (void)client.read();
    } else {
      break;
    }
  }
  return of_client == tls::status::done && of_server == tls::status::done;
}

}  // namespace percore::test
