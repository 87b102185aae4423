// A server that passes each connection on to another one.
#pragma once

#include <percore/percore.hpp>

#include <optional>
#include <string>
#include <utility>

#include "tests/support/any_client.hpp"
#include "tests/support/test_server.hpp"
#include "tests/support/tls_server.hpp"

namespace percore::test {

// How relayed bytes travel on either side.
struct relay_wires {
  bool from_client_tls = false;
  bool to_upstream_tls = false;
};

inline dial_options dial_over(bool tls) {
  dial_options options;
  if (!tls) return options;
  tls_options how;
  how.authorities_pem = authority().root.pem();
  options.tls = tls_context(std::move(how), tls_role::client);
  options.server_name = "localhost";
  return options;
}

class relay_server {
 public:
  explicit relay_server(address upstream, relay_wires wires = {}, relay_options how = {},
                        server_options options = one_core(), listen_options listening = {})
      : wires_(wires),
        dialling_(dial_over(wires.to_upstream_tls)),
        server_(
            [this, upstream, how](connection& conn) -> task<> {
              outgoing up = co_await dial(upstream, dialling_);
              if (!up) co_return;
              const relayed outcome = co_await relay(conn, *up, how);
              outcomes.put(outcome);
            },
            std::move(options),
            wires.from_client_tls ? over_tls(server_tls(), std::move(listening)) : std::move(listening)) {}

  [[nodiscard]] any_client connect(int receive_buffer_bytes = 0) const {
    client::options socket;
    socket.receive_buffer_bytes = receive_buffer_bytes;
    if (!wires_.from_client_tls) return any_client(client(server_.where(), socket));
    tls_client peer(server_.where(), tls_profile(), {}, socket);
    peer.handshake();
    return any_client(std::move(peer));
  }
  server* operator->() noexcept { return &*server_; }
  [[nodiscard]] core_stats total() const { return server_.total(); }

  channel<relayed> outcomes;

 private:
  relay_wires wires_;
  dial_options dialling_;
  test_server server_;
};

inline listen_options upstream_over(bool tls, listen_options options = {}) {
  return tls ? over_tls(server_tls(), std::move(options)) : options;
}

}  // namespace percore::test
