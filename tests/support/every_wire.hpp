// The same test over plain sockets, TLS 1.2 and TLS 1.3.
#pragma once

#include <doctest/doctest.h>

#include <string>
#include <utility>

#include "tests/support/any_client.hpp"
#include "tests/support/test_server.hpp"
#include "tests/support/tls_server.hpp"

namespace percore::test {

// What the bytes travel in.
class wire {
 public:
  explicit wire(int version) : version_(version) {}
  [[nodiscard]] bool encrypted() const noexcept { return version_ != 0; }
  [[nodiscard]] listen_options listening(listen_options options = {}) const {
    return version_ == 0 ? options : over_tls(server_tls(), std::move(options));
  }
  [[nodiscard]] any_client connect(const test_server& server, int receive_buffer_bytes = 0) const {
    client::options socket;
    socket.receive_buffer_bytes = receive_buffer_bytes;
    if (version_ == 0) return any_client(client(server.where(), socket));
    tls_client_options how;
    how.min_version = how.max_version = version_;
    tls_client peer(server.where(), tls_profile(how), {}, socket);
    peer.handshake();
    return any_client(std::move(peer));
  }

 private:
  int version_;
};

// Runs the test once for each.
template <class Test>
void over_every_wire(Test test) {
  SUBCASE("plain") {
    test(wire(0));
  }
  SUBCASE("TLS 1.2") {
    test(wire(TLS1_2_VERSION));
  }
  SUBCASE("TLS 1.3") {
    test(wire(TLS1_3_VERSION));
  }
}

// All there is; with TLS it must have ended with close_notify.
inline std::string all_of(any_client& peer) {
  std::string all = peer.recv_to_end();
  CHECK(peer.ended_cleanly());
  return all;
}

}  // namespace percore::test
