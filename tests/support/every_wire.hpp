// The same test over plain sockets, TLS 1.2 and TLS 1.3, and with handlers that run on helpers; with injected kernels also over TLS that the kernel sends.
#pragma once

#include <doctest/doctest.h>

#include <string>
#include <utility>

#include "tests/support/any_client.hpp"
#include "tests/support/test_server.hpp"
#include "tests/support/tls_server.hpp"

#ifdef PERCORE_FAULTS
#include "tests/fault/kernel_tls.hpp"
#endif

namespace percore::test {

// What the bytes travel in.
class wire {
 public:
  explicit wire(int version, kernel_tls kernel = kernel_tls::never, spilling spill = spilling::never)
      : version_(version), kernel_(kernel), spill_(spill) {}
  [[nodiscard]] bool encrypted() const noexcept { return version_ != 0; }
  [[nodiscard]] listen_options listening(listen_options options = {}) const {
    options.spill = spill_;
    if (version_ == 0) return options;
    tls_options how = server_tls();
    how.kernel = kernel_;
    return over_tls(std::move(how), std::move(options));
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
  kernel_tls kernel_;
  spilling spill_;
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
  SUBCASE("plain, with handlers on helpers") {
    test(wire(0, kernel_tls::never, spilling::always));
  }
  SUBCASE("TLS 1.3, with handlers on helpers") {
    test(wire(TLS1_3_VERSION, kernel_tls::never, spilling::always));
  }
#ifdef PERCORE_FAULTS
  SUBCASE("TLS 1.2 by the kernel") {
    const kernel_tls_stand_in kernel;
    test(wire(TLS1_2_VERSION, kernel_tls::when_possible));
    CHECK(kernel.messages > 0);
  }
  SUBCASE("TLS 1.3 by the kernel") {
    const kernel_tls_stand_in kernel;
    test(wire(TLS1_3_VERSION, kernel_tls::when_possible));
    CHECK(kernel.messages > 0);
  }
#endif
}

// All there is; with TLS it must have ended with close_notify.
inline std::string all_of(any_client& peer) {
  std::string all = peer.recv_to_end();
  CHECK(peer.ended_cleanly());
  return all;
}

}  // namespace percore::test
