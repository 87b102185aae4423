#include "engine/server/checked_options.hpp"

#include <chrono>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>

#include "engine/helpers/pool.hpp"
#include "engine/loop/wakeup.hpp"
#include "engine/sys/socket_options.hpp"

namespace percore::engine {

namespace {

std::uint32_t timeout_ms(std::chrono::milliseconds value, const char* name) {
  if (value.count() < 0 || value.count() > std::int64_t{~std::uint32_t{0}}) {
    throw std::invalid_argument(std::string("percore: ") + name + " must be from 0 to 4294967295 ms");
  }
  return static_cast<std::uint32_t>(value.count());
}

void require(bool condition, const char* message) {
  if (!condition) throw std::invalid_argument(std::string("percore: ") + message);
}

}  // namespace

server_options checked(server_options options) {
  if (loop::wakeup::thread_has_own_descriptors()) {
    throw std::logic_error("percore: a handler of a server with private_descriptors cannot make another server");
  }
  require(options.slot_bytes >= 512 && options.slot_bytes <= 65'536 && options.slot_bytes % 64 == 0,
          "slot_bytes must be a multiple of 64 from 512 to 65536");
  require(options.read_buffer_bytes >= 1024 && options.read_buffer_bytes <= 16 * 1024 * 1024,
          "read_buffer_bytes must be from 1024 to 16777216");
  require(options.read_buffers_per_core >= 1 && options.read_buffers_per_core <= 1'048'576,
          "read_buffers_per_core must be from 1 to 1048576");
  require(options.mailbox_messages >= 1 && options.mailbox_messages <= 16'777'216,
          "mailbox_messages must be from 1 to 16777216");
  require(options.pipes_per_core <= 65'536, "pipes_per_core must be at most 65536");
  require(options.pipe_bytes >= 4096 && options.pipe_bytes <= 1024 * 1024, "pipe_bytes must be from 4096 to 1 MiB");
  require(options.operations_per_turn >= 1 && options.operations_per_turn <= 1'000'000,
          "operations_per_turn must be from 1 to 1000000");
  require(options.max_connections_per_core <= 4'194'304,
          "max_connections_per_core must be at most 4194304");
  (void)timeout_ms(options.shutdown_grace, "shutdown_grace");
  if (!options.stalls.threshold) {
#if defined(NDEBUG) || defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    options.stalls.threshold.emplace(0);
#else
    options.stalls.threshold.emplace(100);
#endif
  }
  require(options.stalls.threshold->count() >= 0 && *options.stalls.threshold <= std::chrono::hours(1),
          "stalls.threshold must be from 0 to 1 h");
  const takeover_options& takeover = options.takeover;
  require(takeover.after >= std::chrono::milliseconds(1) && takeover.after <= std::chrono::hours(1),
          "takeover.after must be from 1 ms to 1 h");
  require(takeover.most_threads >= 1 && takeover.most_threads <= 1024, "takeover.most_threads must be from 1 to 1024");
  const helper_options& helpers = options.helpers;
  require(helpers.most_per_core >= 1 && helpers.most_per_core <= helpers::most_helpers,
          "helpers.most_per_core must be from 1 to 4096");
  require(helpers.floor <= helpers.most_per_core, "helpers.floor must be at most helpers.most_per_core");
  require(helpers.most >= 1, "helpers.most must be at least 1");
  require(helpers.queue >= 1 && helpers.queue <= 1'048'576, "helpers.queue must be from 1 to 1048576");
  (void)timeout_ms(helpers.idle_lifetime, "helpers.idle_lifetime");
  (void)timeout_ms(helpers.patience, "helpers.patience");
  require(options.handshake_budget.count() >= 1 && options.handshake_budget <= std::chrono::seconds(1),
          "handshake_budget must be from 1 us to 1 s");
  return options;
}

void configure(listener_config& config, const listen_options& options, const server_options& server) {
  config.read_timeout_ms = timeout_ms(options.read_timeout, "read_timeout");
  config.write_timeout_ms = timeout_ms(options.write_timeout, "write_timeout");
  config.idle_timeout_ms = timeout_ms(options.idle_timeout, "idle_timeout");
  config.lifetime_timeout_ms = timeout_ms(options.lifetime_timeout, "lifetime_timeout");
  config.close_timeout_ms = timeout_ms(options.close_timeout, "close_timeout");
  config.handshake_timeout_ms = timeout_ms(options.handshake_timeout, "handshake_timeout");
  if (options.tls) {
    require(options.tls->role() == tls_role::server, "listen_options::tls must be a server's context");
    config.tls = options.tls->shared();
  }
  if (options.proxy_protocol) {
    require(!config.blocking, "listen_options::proxy_protocol is for coroutine handlers");
    require(options.proxy_protocol->timeout.count() >= 1, "proxy_protocol_options::timeout must be at least 1 ms");
    config.proxy = std::make_shared<const proxy_protocol_options>(*options.proxy_protocol);
  }
  require(options.unsent_tail_bytes <= 1u << 30, "unsent_tail_bytes must be at most 1073741824");
  require(options.zero_copy_from_bytes == 0 ||
              (options.zero_copy_from_bytes >= 4096 && options.zero_copy_from_bytes <= 1u << 30),
          "zero_copy_from_bytes must be 0 or from 4096 to 1073741824");
  config.zero_copy_from_bytes = static_cast<std::uint32_t>(options.zero_copy_from_bytes);
  require(options.accepts_per_turn >= 1, "accepts_per_turn must be at least 1");
  require(options.spill_budget >= std::chrono::microseconds(10) && options.spill_budget <= std::chrono::seconds(1),
          "spill_budget must be from 10 us to 1 s");
  config.spill = options.spill;
  config.spill_budget_ns = std::chrono::nanoseconds(options.spill_budget).count();
  if (options.spill == spilling::always || (options.spill == spilling::when_slow && server.takeover.on)) {
    config.slices = slice_home::anywhere;
  } else if (options.spill == spilling::when_slow) {
    config.slices = slice_home::timed;
  } else if (server.takeover.on) {
    config.slices = slice_home::open;
  }
  config.unsent_tail_bytes = static_cast<std::uint32_t>(options.unsent_tail_bytes);
  sys::validate(options.socket);
}

}  // namespace percore::engine
