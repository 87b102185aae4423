// A client of either kind: the same test then runs over plain sockets and over TLS.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

#include "tests/support/client.hpp"
#include "tests/support/tls_client.hpp"

namespace percore::test {

// What is common to client and tls_client.
class any_client {
 public:
  explicit any_client(client&& plain) : peer_(std::move(plain)) {}
  explicit any_client(tls_client&& secure) : peer_(std::move(secure)) {}

  void send_all(std::string_view data) {
    std::visit([&](auto& peer) { peer.send_all(data); }, peer_);
  }
  std::string recv_exactly(std::size_t count) {
    return std::visit([&](auto& peer) { return peer.recv_exactly(count); }, peer_);
  }
  std::string recv_some(std::size_t limit = 65536) {
    return std::visit([&](auto& peer) { return peer.recv_some(limit); }, peer_);
  }
  std::string recv_to_end() {
    return std::visit([](auto& peer) { return peer.recv_to_end(); }, peer_);
  }
  // After the end of the stream: false when TLS's close_notify was missing.
  [[nodiscard]] bool ended_cleanly() const noexcept {
    const tls_client* secure = std::get_if<tls_client>(&peer_);
    return secure == nullptr || secure->close_received();
  }
  void half_close() {
    std::visit([](auto& peer) { peer.half_close(); }, peer_);
  }
  // What goes over the wire for `data`.
  std::string encrypt(std::string_view data) {
    tls_client* secure = std::get_if<tls_client>(&peer_);
    return secure == nullptr ? std::string(data) : secure->encrypt(data);
  }
  client& socket() {
    tls_client* secure = std::get_if<tls_client>(&peer_);
    return secure == nullptr ? std::get<client>(peer_) : secure->socket();
  }

 private:
  std::variant<client, tls_client> peer_;
};

}  // namespace percore::test
