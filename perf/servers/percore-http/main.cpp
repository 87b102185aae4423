// percore-http: the benchmark HTTP/1.1 server.

#include <percore/percore.hpp>

#include <cinttypes>
#include <cstdio>
#include <exception>
#include <string>

#include "perf/servers/percore-http/handler.hpp"
#include "perf/servers/percore-http/options.hpp"

namespace {

using percore_http::application;
using percore_http::options;

// Holds the frames of the longest chain of the slow path: 1.4 kB with g++ 12.
constexpr std::size_t slow_slot_bytes = 2048;

constexpr int status_failed = 1;
constexpr int status_bad_usage = 2;

void print_listeners(const percore::server& server, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) {
    std::printf("listening on %s\n", server.local_address(i).to_string().c_str());
  }
  std::fflush(stdout);  // whoever started this waits for it, perhaps through a pipe
}

void print_cores(const percore::server& server, const application& app) {
  const percore::server_stats stats = server.stats();
  for (std::size_t i = 0; i < stats.cores.size(); ++i) {
    std::printf("core %zu cpu %u accepted %" PRIu64 " requests %" PRIu64 "\n", i,
                server.placement().cores[i].cpu, stats.cores[i].accepted, app.answered(i));
  }
}

void print_stats(const percore::server_stats& all) {
  for (const percore::listener_stats& l : all.listeners) {
    std::printf("listener %s steered by %s: %s\n", l.where.to_string().c_str(),
                std::string(to_string(l.steered_by)).c_str(), l.steering_reason.c_str());
  }
  const percore::core_stats& s = all.total;
  const struct {
    const char* name;
    std::uint64_t value;
  } rows[] = {
      {"accepted", s.accepted},
      {"active", s.active},
      {"refused_limit", s.refused_limit},
      {"refused_memory", s.refused_memory},
      {"accept_aborted", s.accept_aborted},
      {"accept_paused_files", s.accept_paused_files},
      {"accept_paused_memory", s.accept_paused_memory},
      {"accept_paused_limit", s.accept_paused_limit},
      {"bytes_received", s.bytes_received},
      {"bytes_sent", s.bytes_sent},
      {"handler_errors", s.handler_errors},
      {"resets_received", s.resets_received},
      {"timeouts", s.timeouts},
      {"buffers_exhausted", s.buffers_exhausted},
      {"frames_on_heap", s.frames_on_heap},
      {"contexts_on_heap", s.contexts_on_heap},
      {"unsent_tails", s.unsent_tails},
      {"first_read_hits", s.first_read_hits},
      {"wakeups", s.wakeups},
      {"events", s.events},
      {"messages", s.messages},
      {"halted", s.halted},
      {"spilled", s.spilled},
      {"spill_begins", s.spill_begins},
      {"takeovers", s.takeovers},
      {"takeover_refused", s.takeover_refused},
      {"helpers_most_alive", s.helpers.most_alive},
      {"helpers_spawned", s.helpers.spawned},
      {"helpers_retired", s.helpers.retired},
      {"helpers_submitted", s.helpers.submitted},
      {"helpers_woken", s.helpers.woken},
      {"helpers_most_queued", s.helpers.most_queued},
      {"helpers_queue_full", s.helpers.full},
      {"helpers_cancelled", s.helpers.cancelled},
      {"helpers_wait_us_p50", s.helpers.wait.quantile_us(0.5)},
      {"helpers_wait_us_p99", s.helpers.wait.quantile_us(0.99)},
      {"helpers_run_us_p50", s.helpers.run.quantile_us(0.5)},
      {"helpers_run_us_p99", s.helpers.run.quantile_us(0.99)},
      {"tls_handshakes", s.tls_handshakes},
      {"tls_resumptions", s.tls_resumptions},
      {"tls_v1_2", s.tls_v1_2},
      {"tls_v1_3", s.tls_v1_3},
      {"tls_aes_128_gcm", s.tls_aes_128_gcm},
      {"tls_aes_256_gcm", s.tls_aes_256_gcm},
      {"tls_chacha20_poly1305", s.tls_chacha20_poly1305},
      {"tls_other_ciphers", s.tls_other_ciphers},
      {"tls_kernel_sends", s.tls_kernel_sends},
      {"tls_truncated", s.tls_truncated},
      {"tls_failed_records", s.tls_failed_records},
      {"tls_failed_timed_out", s.tls_failed_timed_out},
      {"tls_failed_peer_gone", s.tls_failed_peer_gone},
      {"tls_failed_not_tls", s.tls_failed_not_tls},
      {"tls_failed_plain_http", s.tls_failed_plain_http},
      {"tls_failed_nothing_shared", s.tls_failed_nothing_shared},
      {"tls_failed_certificate", s.tls_failed_certificate},
      {"tls_failed_alert", s.tls_failed_alert},
      {"tls_failed_protocol", s.tls_failed_protocol},
      {"tls_failed_internal", s.tls_failed_internal},
  };
  for (const auto& row : rows) std::printf("%s %" PRIu64 "\n", row.name, row.value);
}

void print_exception(std::exception_ptr exception) {
  try {
    std::rethrow_exception(exception);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "percore-http: connection closed: %s\n", e.what());
  }
}

void set_up_tls(options& opt) {
  percore::tls_certificate certificate;
  certificate.chain_file = opt.certificate_file;
  certificate.key_file = opt.key_file;
  if (opt.key_file.empty()) {
    const self_signed::pem_pair made = self_signed::make(opt.key_type);
    certificate.chain_pem = made.certificate;
    certificate.key_pem = made.key;
  }
  opt.tls_settings.certificates.push_back(std::move(certificate));
  opt.listener.tls.emplace(opt.tls_settings);
}

void serve(options& opt, std::size_t cores) {
  if (opt.tls) set_up_tls(opt);
  opt.handler.many_threads = opt.listener.spill != percore::spilling::never || opt.server.takeover.on;
  application app(opt.handler, opt.kind, opt.body_bytes, cores);
  opt.server.on_exception = print_exception;
  if (app.may_be_slow()) opt.server.slot_bytes = slow_slot_bytes;
  // Announced only once serve() catches signals: whoever reads it may send one at once.
  opt.server.on_started = [count = opt.addresses.size()](percore::server& started) {
    print_listeners(started, count);
  };
  percore::server server(opt.server);
  for (const percore::address& where : opt.addresses) {
    if (opt.handler.how == percore_http::sleep_kind::block) {
      server.listen(where, percore::blocking(percore_http::blocking_http_handler(app)), opt.listener);
    } else {
      server.listen(where, percore_http::http_handler(app), opt.listener);
    }
  }
  server.serve();
  print_cores(server, app);
  if (opt.print_stats) print_stats(server.stats());
}

int run(options& opt) {
  switch (opt.what) {
    case options::action::print_help:
      std::fputs(percore_http::usage_text, stdout);
      return 0;
    case options::action::print_version:
      std::printf("percore-http %s\n", percore::version());
      return 0;
    case options::action::print_plan:
    case options::action::serve:
      break;
  }
  const percore::cpu_topology topology =
      opt.topology.empty() ? percore::discover_topology() : percore::synthetic_topology(opt.topology);
  const percore::placement_plan plan = percore::plan_placement(topology, opt.server.placement);
  if (opt.what == options::action::print_plan) {
    std::fputs(percore::format_plan(topology, plan).c_str(), stdout);
  } else {
    serve(opt, plan.cores.size());
  }
  return 0;
}

int bad_usage(const char* why) {
  std::fprintf(stderr, "percore-http: %s (see --help)\n", why);
  return status_bad_usage;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    options opt = percore_http::parse_options(argc, argv);
    return run(opt);
  } catch (const percore_http::usage_error& e) {
    return bad_usage(e.what());
  } catch (const percore::tls_error& e) {
    return bad_usage(e.what());
  } catch (const std::invalid_argument& e) {  // the library refuses an address, an option or a placement
    return bad_usage(e.what());
  } catch (const std::exception& e) {
    std::fprintf(stderr, "percore-http: %s\n", e.what());
    return status_failed;
  }
}
