#include "tests/fault/exchanges.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <span>
#include <thread>

#include "tests/fault/injection.hpp"
#include "tests/support/clean_process.hpp"
#include "tests/support/tls_server.hpp"

namespace percore::test {

void handler_endings::note(std::error_code why) {
  if (!why) {
    ++answered;
  } else if (why == errc::end_of_stream) {
    ++end_of_stream;
  } else if (why == errc::connection_reset) {
    ++reset;
  } else if (why == std::error_code(ENOMEM, std::system_category())) {
    ++no_memory;
  } else {
    ++other;
  }
}

// --- the server's side -----------------------------------------------------------------------------------

namespace {

constexpr std::size_t header_bytes = 5;  // decimal length of what follows

std::size_t length_in(std::string_view header) {
  std::size_t length = 0;
  for (const char digit : header.substr(0, header_bytes))
    length = length * 10 + static_cast<std::size_t>(digit - '0');
  return std::min(length, longest_message);
}

task<> serve_read_write(connection& conn, handler_endings& endings) {
  const alive frame;
  while (auto data = co_await conn.read()) {
    const bool written = co_await conn.write(data);
    if (!written) break;
  }
  endings.note(conn.error());
}

task<> serve_read_into(connection& conn, handler_endings& endings) {
  const alive frame;
  std::array<std::byte, 3000> room;
  for (std::size_t size = 1;; size = size * 5 % 2999 + 1) {
    const std::size_t count = co_await conn.read(std::span(room).first(size));
    if (count == 0) break;
    const bool written = co_await conn.write(std::span(room).first(count));
    if (!written) break;
  }
  endings.note(conn.error());
}

task<> serve_lines(connection& conn, handler_endings& endings) {
  const alive frame;
  for (unsigned number = 0;; ++number) {
    const bytes_view line = co_await conn.read_until("\r\n", longest_message);
    if (!line) break;
    if (number % 16 == 7) co_await conn.yield();  // the view outlives it
    const bool written = co_await conn.write(line);
    if (!written) break;
  }
  endings.note(conn.error());
}

// A nested task with a buffer of its own; in pieces of every size.
task<bool> echo_frame(connection& conn, std::span<std::byte> header, std::vector<std::byte>& body) {
  body.resize(length_in(bytes_view(std::span<const std::byte>(header)).text()));
  const bool read = co_await conn.read_full(body);
  if (!read) co_return false;
  const std::span<const std::byte> all(body);
  const std::array<bytes_view, 5> pieces = {bytes_view(header), bytes_view(),
                                            bytes_view(all.first(all.size() / 3)),
                                            bytes_view(all.subspan(all.size() / 3, all.size() / 2)),
                                            bytes_view(all.subspan(all.size() / 3 + all.size() / 2))};
  const std::span<const bytes_view> view(pieces);
  const bool written = co_await conn.write(view);
  co_return written;
}

task<> serve_framed(connection& conn, handler_endings& endings) {
  const alive frame;
  std::vector<std::byte> body;
  std::array<std::byte, header_bytes> header;
  for (;;) {
    const bool read = co_await conn.read_full(header);
    if (!read) break;
    const bool echoed = co_await echo_frame(conn, header, body);
    if (!echoed) break;
  }
  endings.note(conn.error());
}

// Takes views apart and puts parts of them back, and sleeps between.
task<> serve_unread(connection& conn, handler_endings& endings) {
  const alive frame;
  for (unsigned number = 0;; ++number) {
    const bytes_view data = co_await conn.read();
    if (!data) break;
    const std::size_t taken = data.size() / 2 + 1;
    const bool written = co_await conn.write(data.subview(0, taken));
    if (!written) break;
    conn.unread(data.subview(taken));
    if (number % 32 == 5) co_await conn.sleep_for(std::chrono::microseconds(200));
  }
  endings.note(conn.error());
}

// try_write as far as the tail has room, write for the rest.
task<> serve_small_buffers(connection& conn, handler_endings& endings) {
  const alive frame;
  while (auto data = co_await conn.read()) {
    std::size_t done = 0;
    while (done < data.size() && conn.try_write(data.subview(done, 700)))
      done += std::min<std::size_t>(700, data.size() - done);
    if (done == data.size()) continue;
    const bool written = co_await conn.write(data.subview(done));
    if (!written) break;
  }
  endings.note(conn.error());
}

task<> serve_one_shot(connection& conn, handler_endings& endings) {
  const alive frame;
  const bytes_view line = co_await conn.read_until("\r\n", longest_message);
  if (line) {
    const std::array<bytes_view, 2> halves = {line.subview(0, line.size() / 2),
                                              line.subview(line.size() / 2)};
    const std::span<const bytes_view> view(halves);
    const bool written = co_await conn.write_last(view);
    if (written) {
      endings.note({});
      co_return;
    }
  }
  endings.note(conn.error());
}

using handler_function = task<> (*)(connection&, handler_endings&);
constexpr std::array<handler_function, echo_kinds> handlers = {
    serve_read_write, serve_read_into,     serve_lines,   serve_framed,
    serve_unread,     serve_small_buffers, serve_one_shot};

}  // namespace

exchange_server::exchange_server(server_options options, int tls_version, kernel_tls kernel)
    : server_(std::move(options)) {
  std::optional<tls_context> context;
  if (tls_version != 0) {
    tls_client_options how;
    how.min_version = how.max_version = tls_version;
    profile_.emplace(how);
    tls_options secure = server_tls();
    secure.kernel = kernel;
    context.emplace(std::move(secure));
  }
  for (std::size_t i = 0; i < echo_kinds; ++i) {
    listen_options listening;
    listening.tls = context;
    if (static_cast<echo_kind>(i) == echo_kind::small_buffers) {
      listening.socket.send_buffer_bytes = 4096;
      listening.unsent_tail_bytes = 6000;
    }
    server_.listen(
        "127.0.0.1:0",
        [run = handlers[i], &endings = endings_[i]](connection& conn) { return run(conn, endings); },
        listening);
  }
  server_.start();
}

any_client exchange_server::connect(echo_kind kind) const {
  if (!profile_) return any_client(client(where(kind)));
  tls_client peer(where(kind), *profile_);
  peer.handshake();
  return any_client(std::move(peer));
}

// --- the clients' side -----------------------------------------------------------------------------------

namespace {

// A random text without any end of line in it. Parts of it are what is sent: a byte that is lost, doubled or
// foreign moves all that follow.
const std::string& source_text() {
  static const std::string text = [] {
    std::mt19937_64 draw(seed());
    std::string made(64 * 1024, ' ');
    for (char& c : made) c = static_cast<char>(' ' + draw() % 95);
    return made;
  }();
  return text;
}

struct shared_outcome {
  std::mutex lock;
  exchange_outcome all;
  std::atomic<std::size_t> left{0};
  std::atomic<bool> failed{false};

  void fault(const std::string& text) {
    failed = true;
    const std::lock_guard hold(lock);
    if (++all.fault_count <= 10) all.faults.push_back(text);
  }
};

bool takes_lines(echo_kind kind) {
  return kind == echo_kind::lines || kind == echo_kind::one_shot;
}

// One connection with at most a few messages under way.
class exchanger {
 public:
  exchanger(echo_kind kind, const exchange_server& server) : kind_(kind), peer_(server.connect(kind)) {}

  // Messages are sent in two parts, so that the server sees beginnings.
  void compose(std::mt19937_64& draw, std::size_t most) {
    text_.clear();
    seen_ = sent_ = 0;
    messages_ = kind_ == echo_kind::one_shot ? 1 : 1 + draw() % most;
    for (std::size_t i = 0; i < messages_; ++i) append_message(draw);
    first_part_ = draw() % 3 == 0 ? draw() % text_.size() : text_.size();
  }
  void send_first_part() { send_to(first_part_); }
  void send_rest() { send_to(text_.size()); }

  // Compares what comes. False at an end of stream before all of it.
  bool receive() {
    while (seen_ < text_.size()) {
      const std::string some = peer_.recv_some(std::min<std::size_t>(text_.size() - seen_, 16 * 1024));
      if (some.empty()) return false;
      if (std::string_view(text_).substr(seen_, some.size()) != some)
        throw std::logic_error("other bytes than sent");
      seen_ += some.size();
    }
    completed_ += messages_;
    return true;
  }
  // After the last exchange: nothing more may come but the FIN.
  bool finish() {
    if (kind_ != echo_kind::one_shot) peer_.half_close();
    const bool nothing = peer_.recv_some().empty();
    if (nothing && !peer_.ended_cleanly()) throw std::logic_error("an end without close_notify");
    return nothing;
  }

  [[nodiscard]] echo_kind kind() const noexcept { return kind_; }
  [[nodiscard]] std::size_t messages() const noexcept { return messages_; }
  [[nodiscard]] std::size_t completed() const noexcept { return completed_; }
  [[nodiscard]] std::string where_it_was() const {
    return "kind " + std::to_string(static_cast<int>(kind_)) + ", after " + std::to_string(completed_) +
           " exchanges, byte " + std::to_string(seen_) + " of " + std::to_string(text_.size()) + ", " +
           std::to_string(sent_) + " sent";
  }

 private:
  void append_message(std::mt19937_64& draw) {
    // As many short ones as long ones, on a logarithmic scale: 1 to 20,000 bytes.
    const double exponent = std::uniform_real_distribution<double>(0, 1)(draw);
    auto size = static_cast<std::size_t>(std::pow(static_cast<double>(longest_message), exponent));
    const std::size_t frame = takes_lines(kind_) ? 2 : 0;
    size = std::clamp<std::size_t>(size, 1 + frame, longest_message) - frame;
    if (kind_ == echo_kind::framed) {
      const std::string digits = std::to_string(size);
      text_ += std::string(header_bytes - digits.size(), '0') + digits;
    }
    const std::string& from = source_text();
    text_ += std::string_view(from).substr(draw() % (from.size() - size), size);
    if (takes_lines(kind_)) text_ += "\r\n";
  }

  void send_to(std::size_t end) {
    if (end <= sent_) return;
    peer_.send_all(std::string_view(text_).substr(sent_, end - sent_));
    sent_ = end;
  }

  echo_kind kind_;
  any_client peer_;
  std::string text_;
  std::size_t messages_ = 0;
  std::size_t first_part_ = 0;
  std::size_t sent_ = 0;
  std::size_t seen_ = 0;
  std::size_t completed_ = 0;
};

struct ended_early {};

// One thread's connections, driven in step: all send, then all receive.
class exchange_thread {
 public:
  exchange_thread(const exchange_server& server, const exchange_plan& plan, shared_outcome& outcome,
                  std::uint64_t number)
      : server_(server), plan_(plan), outcome_(outcome), draw_(seed() + number) {}

  void run() {
    open_.resize(plan_.connections_per_thread);
    while (outcome_.left.load() > 0 && !outcome_.failed.load() && !server_has_ended_) {
      for (auto& connection : open_) attempt(connection, [&] { begin(connection); });
      for (auto& connection : open_) attempt(connection, [&] { send_rest(connection); });
      for (auto& connection : open_) attempt(connection, [&] { end(connection); });
    }
    for (auto& connection : open_) attempt(connection, [&] { finish(connection); });
    const std::lock_guard hold(outcome_.lock);
    outcome_.all.exchanges += mine_.exchanges;
    outcome_.all.cut += mine_.cut;
    outcome_.all.failed_handshakes += mine_.failed_handshakes;
    for (std::size_t i = 0; i < echo_kinds; ++i) {
      outcome_.all.connections[i] += mine_.connections[i];
      outcome_.all.fins[i] += mine_.fins[i];
      outcome_.all.resets[i] += mine_.resets[i];
    }
  }

 private:
  using slot_of_one = std::unique_ptr<exchanger>;

  // Whatever a connection meets ends it; what a RST does not explain is a fault.
  template <class Step>
  void attempt(slot_of_one& connection, Step step) {
    const auto kind = [&] { return static_cast<std::size_t>(connection->kind()); };
    try {
      step();
    } catch (const std::system_error& failure) {
      // ENOTCONN: shutdown() after the RST.
      const int error = failure.code().value();
      if (connection && (error == ECONNRESET || error == EPIPE || error == ENOTCONN)) {
        ++mine_.resets[kind()];
      } else if (!connection && plan_.server_may_end && (error == ECONNREFUSED || error == ECONNRESET)) {
        // The latter when the listener closes while it connects.
        server_has_ended_ = true;
      } else {
        fault(connection, failure.what());
      }
      connection.reset();
    } catch (const ended_early&) {
      if (plan_.server_may_end) {
        ++mine_.cut;
      } else {
        fault(connection, "the stream ended early");
      }
      connection.reset();
    } catch (const std::exception& failure) {
      fault(connection, failure.what());
      connection.reset();
    }
  }

  void begin(slot_of_one& connection) {
    if (!connection) {
      connection = open(static_cast<echo_kind>(draw_() % echo_kinds));
      if (!connection) return;
      ++mine_.connections[static_cast<std::size_t>(connection->kind())];
    }
    connection->compose(draw_, 3);
    connection->send_first_part();
  }

  // None when a handshake was broken off.
  slot_of_one open(echo_kind kind) {
    if (!server_.encrypted()) return std::make_unique<exchanger>(kind, server_);
    try {
      return std::make_unique<exchanger>(kind, server_);
    } catch (const tls_went_wrong&) {
    } catch (const std::system_error& failure) {
      if (failure.code().value() != ECONNRESET && failure.code().value() != EPIPE) throw;
    }
    ++mine_.failed_handshakes;
    return {};
  }

  void send_rest(slot_of_one& connection) {
    if (connection) connection->send_rest();
  }

  void end(slot_of_one& connection) {
    if (!connection) return;
    if (!connection->receive()) throw ended_early();
    mine_.exchanges += connection->messages();
    std::size_t before = outcome_.left.load();
    while (!outcome_.left.compare_exchange_weak(before, before - std::min(before, connection->messages()))) {
    }
    if (connection->kind() == echo_kind::one_shot ||
        connection->completed() >= plan_.exchanges_per_connection) {
      finish(connection);
    }
  }

  void finish(slot_of_one& connection) {
    if (!connection) return;
    if (!connection->finish()) throw std::logic_error("more bytes than sent");
    ++mine_.fins[static_cast<std::size_t>(connection->kind())];
    connection.reset();
  }

  void fault(const slot_of_one& connection, const std::string& what) {
    outcome_.fault(what +
                   (connection ? " (" + connection->where_it_was() + ")" : std::string(" (connecting)")));
  }

  const exchange_server& server_;
  const exchange_plan& plan_;
  shared_outcome& outcome_;
  std::mt19937_64 draw_;
  exchange_outcome mine_;
  bool server_has_ended_ = false;
  std::vector<slot_of_one> open_;
};

}  // namespace

std::uint64_t exchange_outcome::all_resets() const {
  std::uint64_t sum = 0;
  for (const std::uint64_t count : resets) sum += count;
  return sum;
}

exchange_outcome run_exchanges(const exchange_server& server, const exchange_plan& plan) {
  shared_outcome outcome;
  outcome.left = plan.exchanges;
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < plan.threads; ++i) {
    threads.emplace_back([&, i] { exchange_thread(server, plan, outcome, i + 1).run(); });
  }
  for (auto& thread : threads) thread.join();
  return outcome.all;
}

exchange_outcome checked_exchanges(exchange_server& server, const exchange_plan& plan) {
  const exchange_outcome outcome = run_exchanges(server, plan);
  sys::set_fault_plan(nullptr);
  for (const std::string& fault : outcome.faults) MESSAGE(fault);
  CHECK(outcome.fault_count == 0);
  CHECK(outcome.exchanges >= plan.exchanges);
  CHECK(eventually([&] { return server.total().active == 0; }));
  std::uint64_t connections = 0;
  std::uint64_t ended = 0;
  for (std::size_t i = 0; i < echo_kinds; ++i) {
    INFO("kind " << i);
    const handler_endings& seen = server.endings(static_cast<echo_kind>(i));
    CHECK(outcome.fins[i] + outcome.resets[i] == outcome.connections[i]);
    connections += outcome.connections[i];
    ended += seen.end_of_stream + seen.reset + seen.no_memory + seen.answered + seen.other;
    CHECK(seen.other == 0);
    if (server.encrypted()) {
      // A handshake that is done for one side may fail on the other, and a reset may take the place of close_notify.
      CHECK(seen.end_of_stream + seen.answered >= outcome.fins[i]);
      continue;
    }
    // Every handler has ended, and both sides have counted the same ends.
    CHECK(seen.end_of_stream + seen.reset + seen.no_memory + seen.answered + seen.other ==
          outcome.connections[i]);
    if (static_cast<echo_kind>(i) != echo_kind::one_shot) {
      CHECK(seen.end_of_stream == outcome.fins[i]);
      CHECK(seen.reset + seen.no_memory == outcome.resets[i]);
    } else {
      CHECK(seen.answered >= outcome.fins[i]);  // the flush after it may still fail
    }
  }
  const core_stats total = server.total();
  CHECK(total.accepted == ended);
  if (!server.encrypted()) CHECK(total.accepted == connections);
  if (server.encrypted()) {
    CHECK(total.tls_handshakes == total.accepted);
    CHECK(total.tls_failed_records == 0);
    CHECK(total.tls_truncated == 0);
    // The kernel's faults are no violations of the protocol.
    CHECK(tls_failures(total) == total.tls_failed_peer_gone);
  }
  return outcome;
}

}  // namespace percore::test
