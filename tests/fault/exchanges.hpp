// Echo exchanges with checked content: a server with one listener for each way to read and write, and clients
// on several threads that compare every byte.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <system_error>
#include <vector>

#include "tests/support/any_client.hpp"
#include "tests/support/test_server.hpp"

namespace percore::test {

// How the server's handlers ended.
struct handler_endings {
  std::atomic<std::uint64_t> end_of_stream{0};
  std::atomic<std::uint64_t> reset{0};
  std::atomic<std::uint64_t> no_memory{0};  // the kernel's ENOMEM
  std::atomic<std::uint64_t> answered{0};   // said all that they had to say
  std::atomic<std::uint64_t> other{0};

  void note(std::error_code why);
};

// Ways to echo; each has its listener.
enum class echo_kind { read_write, read_into, lines, framed, unread, small_buffers, one_shot, count_ };
inline constexpr std::size_t echo_kinds = static_cast<std::size_t>(echo_kind::count_);
inline constexpr std::size_t longest_message = 20'000;

class exchange_server {
 public:
  // Over TLS of this version (TLS1_2_VERSION, TLS1_3_VERSION), or in plain.
  explicit exchange_server(server_options options, int tls_version = 0, kernel_tls kernel = kernel_tls::never);
  server* operator->() noexcept { return &server_; }
  [[nodiscard]] address where(echo_kind kind) const {
    return server_.local_address(static_cast<std::size_t>(kind));
  }
  // A client of it; with TLS, when its handshake is done.
  [[nodiscard]] any_client connect(echo_kind kind) const;
  [[nodiscard]] bool encrypted() const noexcept { return profile_.has_value(); }
  [[nodiscard]] core_stats total() const { return server_.stats().total; }
  [[nodiscard]] const handler_endings& endings(echo_kind kind) const {
    return endings_[static_cast<std::size_t>(kind)];
  }

 private:
  handler_endings endings_[echo_kinds];
  std::optional<tls_profile> profile_;
  server server_;
};

struct exchange_plan {
  std::size_t exchanges = 0;  // over all threads
  std::size_t threads = 4;
  std::size_t connections_per_thread = 12;
  std::size_t exchanges_per_connection = 200;
  bool server_may_end = false;  // then streams may end anywhere, and what arrives is still right
};

// What the clients saw, for each kind.
struct exchange_outcome {
  std::uint64_t exchanges = 0;
  std::uint64_t connections[echo_kinds] = {};
  std::uint64_t fins[echo_kinds] = {};    // ended by the server's FIN after the last byte
  std::uint64_t resets[echo_kinds] = {};  // ended by a RST; all bytes until then were right
  std::uint64_t failed_handshakes = 0;  // of TLS: not among the connections
  std::uint64_t cut = 0;                  // ended by the server's FIN before, where it may end
  std::vector<std::string> faults;        // bytes that are wrong or missing, and hangs
  std::uint64_t fault_count = 0;

  [[nodiscard]] std::uint64_t all_resets() const;
};

exchange_outcome run_exchanges(const exchange_server& server, const exchange_plan& plan);

// Runs the exchanges and checks what must hold whatever was injected. The plan in force is taken away before
// the server ends.
exchange_outcome checked_exchanges(exchange_server& server, const exchange_plan& plan);

}  // namespace percore::test
