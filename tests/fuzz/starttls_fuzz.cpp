// What a client may send to a connection whose handler upgrades it by start_tls(): the connection floor of the engine as a
// core runs it, over a socket pair. Bytes come before, with, in the midst of and after the upgrade, in any segments; a
// true client's flights carry the fuzzer's server name and protocols. Nothing may crash, leak, hang or stay behind.
//
// The input: a byte of choices (bit 0: plaintext behind the command is discarded, not refused; bit 1: TLS 1.2; bit 2: the
// server ends in the middle; bit 3: the client ends with a reset; bit 4: a whole upgrade comes first, with the server name
// and the protocols that the input begins with), then steps. Each is a byte: the kind in its low three
// bits, a length in the others, and for most so many bytes of content.

#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/connection/slot.hpp"
#include "engine/sys/numa_memory.hpp"
#include "perf/servers/self_signed.hpp"

namespace {

using namespace percore;

constexpr std::size_t slots = 4;
constexpr std::size_t slot_bytes = 960;
constexpr std::size_t buffers = 4;
constexpr std::size_t buffer_bytes = 1024;

tls_options make_options() {
  const self_signed::pem_pair pair = self_signed::make(self_signed::key_type::ecdsa_p256);
  tls_options options;
  for (const char* name : {"example.org", "*.example.org"}) {
    options.certificates.emplace_back();
    options.certificates.back().chain_pem = pair.certificate;
    options.certificates.back().key_pem = pair.key;
    options.certificates.back().names = {name};
  }
  options.alpn = {"h2", "http/1.1", "smtp"};
  return options;
}

// A core's resources and the turn of its loop, on the fuzzer's thread.
class bare_loop {
 public:
  bare_loop()
      : slot_memory_(slots * slot_bytes, std::nullopt),
        buffer_memory_(engine::read_buffer_pool::region_bytes(buffer_bytes, buffers), std::nullopt),
        core_({slots, slot_bytes, buffers, buffer_bytes, 8, 1'000'000}, slot_memory_.data(), buffer_memory_.data(),
              std::make_shared<loop::mailbox>(std::size_t{8}, loop::wakeup())) {
    listener_.handler = detail::handler([this](connection& conn) { return serve(conn); });
    listener_.unsent_tail_bytes = 4096;
    listener_.close_timeout_ms = 1;
  }

  engine::slot& open(int fd, buffered_plaintext policy) {
    policy_ = policy;
    engine::slot& s = *core_.slots.take(core_);
    s.open(fd, {}, listener_, true);
    s.start_handler();
    return s;
  }

  // As engine::core::turn does it, until nothing is left to do.
  void run() {
    for (int turns = 0; turns < 1000; ++turns) {
      const auto events = core_.poller.wait(0);
      core_.now_ns = sys::monotonic_ns();
      for (const epoll_event& event : events) {
        engine::slot& s = core_.slots.at(static_cast<std::uint32_t>(event.data.u64));
        if (s.generation == event.data.u64 >> 32) s.on_event(event.events);
      }
      core_.timers.advance(loop::timer_wheel::tick_of(core_.now_ns));
      base::intrusive_list<detail::ready_node> now;
      now.take(core_.ready);
      while (detail::ready_node* node = now.pop_front()) node->run(*node);
      core_.buffers.wake_waiter(core_.ready);
      core_.serving_handshakes = true;
      while (core_.handshake_left_ns > 0 && !core_.handshakes.empty()) {
        detail::ready_node* node = core_.handshakes.pop_front();
        node->run(*node);
      }
      core_.serving_handshakes = false;
      core_.handshake_left_ns = core_.handshake_budget_ns;
      (void)core_.slots.end_of_turn();
      if (events.empty() && core_.ready.empty() && core_.handshakes.empty()) return;
    }
    std::abort();  // it goes round without end
  }

  void finish(engine::slot& s, std::uint32_t generation) {
    if (s.generation == generation) s.halt();
    (void)core_.slots.end_of_turn();
    if (core_.slots.in_use() != 0) std::abort();
    if (core_.secure != nullptr && !core_.secure->wire.output().empty()) std::abort();
  }

 private:
  // Lines in plain; "T\n" asks for TLS. Then an echo.
  task<> serve(connection& conn) {
    while (auto line = co_await conn.read_until("\n", 64)) {
      const bool asked = line.text() == "T\n";
      if (!co_await conn.write(asked ? "go\n" : "ok\n")) co_return;
      if (!asked) continue;
      const bool secure = co_await conn.start_tls(context_, policy_);
      if (secure) break;
      if (conn.error() != errc::plaintext_injected) co_return;
      if (conn.tls()) std::abort();
    }
    if (!conn.tls()) co_return;
    if (conn.tls()->server_name.size() > 255) std::abort();
    while (auto data = co_await conn.read()) {
      if (!co_await conn.write(data)) break;
    }
  }

  sys::numa_region slot_memory_;
  sys::numa_region buffer_memory_;
  engine::listener_config listener_;
  tls_context context_{make_options()};
  buffered_plaintext policy_ = buffered_plaintext::refuse;
  engine::core_resources core_;
};

// A true client, as far as the fuzzer lets it be one.
class client {
 public:
  client(SSL_CTX* context, bool old_version, int fd) : ssl_(SSL_new(context)), fd_(fd) {
    in_ = BIO_new(BIO_s_mem());
    out_ = BIO_new(BIO_s_mem());
    BIO_set_mem_eof_return(in_, -1);
    SSL_set_bio(ssl_.get(), in_, out_);
    SSL_set_connect_state(ssl_.get());
    if (old_version) SSL_set_max_proto_version(ssl_.get(), TLS1_2_VERSION);
  }
  void name(const std::string& text) { (void)SSL_set_tlsext_host_name(ssl_.get(), text.c_str()); }
  void protocols(std::span<const std::uint8_t> list) {
    (void)SSL_set_alpn_protos(ssl_.get(), list.data(), static_cast<unsigned>(list.size()));
  }
  void receive() {
    char some[16 * 1024];
    for (;;) {
      const ssize_t size = ::recv(fd_, some, sizeof some, MSG_DONTWAIT);
      if (size <= 0) return;
      if (secure_) {
        BIO_write(in_, some, static_cast<int>(size));
      } else if (std::string_view(some, static_cast<std::size_t>(size)).ends_with("go\n")) {
        secure_ = true;
      }
    }
  }
  // The next flight, or application data.
  std::string step(std::string_view data) {
    if (!SSL_is_init_finished(ssl_.get())) {
      (void)SSL_do_handshake(ssl_.get());
    } else {
      char some[2048];
      while (SSL_read(ssl_.get(), some, sizeof some) > 0) {
      }
      if (!data.empty()) (void)SSL_write(ssl_.get(), data.data(), static_cast<int>(data.size()));
    }
    std::string flight(32 * 1024, '\0');
    const int size = BIO_read(out_, flight.data(), static_cast<int>(flight.size()));
    flight.resize(size > 0 ? static_cast<std::size_t>(size) : 0);
    return flight;
  }
  [[nodiscard]] bool done() const noexcept { return SSL_is_init_finished(ssl_.get()) == 1; }
  void goodbye() { (void)SSL_shutdown(ssl_.get()); }

 private:
  tls::ssl_ptr ssl_;
  int fd_;
  BIO* in_;
  BIO* out_;
  bool secure_ = false;
};

void send(int fd, std::string_view bytes) {
  (void)::send(fd, bytes.data(), bytes.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
}

class input {
 public:
  explicit input(std::span<const std::uint8_t> all) : rest_(all) {}
  [[nodiscard]] bool empty() const noexcept { return rest_.empty(); }
  std::uint8_t byte() { return rest_.empty() ? std::uint8_t{0} : take(1).front(); }
  std::span<const std::uint8_t> take(std::size_t count) {
    const auto part = rest_.first(std::min(count, rest_.size()));
    rest_ = rest_.subspan(part.size());
    return part;
  }

 private:
  std::span<const std::uint8_t> rest_;
};

std::string text_of(std::span<const std::uint8_t> bytes) { return {bytes.begin(), bytes.end()}; }

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static bare_loop server;
  static const tls::ssl_ctx_ptr client_context(SSL_CTX_new(TLS_client_method()));
  if (size < 2) return 0;
  input steps({data, size});
  const std::uint8_t how = steps.byte();
  int pair[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) != 0) std::abort();
  const int fd = pair[1];
  client peer(client_context.get(), (how & 2) != 0, fd);
  engine::slot& s =
      server.open(pair[0], (how & 1) != 0 ? buffered_plaintext::discard : buffered_plaintext::refuse);
  const std::uint32_t generation = s.generation;
  if ((how & 16) != 0) {
    peer.name(text_of(steps.take(steps.byte() % 64U)));
    peer.protocols(steps.take(steps.byte() % 64U));
    send(fd, "T\n");
    for (int flights = 0; flights < 4 && !peer.done(); ++flights) {
      server.run();
      peer.receive();
      send(fd, peer.step({}));
    }
    server.run();
    peer.receive();
  }
  while (!steps.empty() && s.generation == generation) {
    const std::uint8_t step = steps.byte();
    const std::size_t length = step >> 3;
    switch (step & 7) {
      case 0:  // any bytes
        send(fd, text_of(steps.take(length)));
        break;
      case 1:  // the command, and at once what follows it
        send(fd, "T\n" + text_of(steps.take(length)));
        break;
      case 2:  // the name and the protocols of the ClientHello
        peer.name(text_of(steps.take(length)));
        peer.protocols(steps.take(steps.byte()));
        break;
      case 3:    // a flight, whole
      case 4: {  // in two segments
        std::string flight = peer.step(text_of(steps.take(length)));
        if ((step & 7) == 4) {
          const std::size_t cut = flight.size() * steps.byte() / 256;
          send(fd, std::string_view(flight).substr(0, cut));
          server.run();
          flight.erase(0, cut);
        }
        send(fd, flight);
        break;
      }
      case 5: {  // with changed bytes
        std::string flight = peer.step({});
        for (std::size_t i = 0; i < length % 4 + 1 && !flight.empty(); ++i) {
          const std::size_t at = (steps.byte() * 256U + steps.byte()) % flight.size();
          flight[at] = static_cast<char>(steps.byte());
        }
        send(fd, flight);
        break;
      }
      case 6:  // without the server's having been run
        peer.receive();
        continue;
      default:
        peer.goodbye();
        send(fd, peer.step({}));
        if (length == 31) (void)::shutdown(fd, SHUT_WR);
        break;
    }
    server.run();
    peer.receive();
  }
  if ((how & 4) == 0 && s.generation == generation) {
    if ((how & 8) == 0) (void)::shutdown(fd, SHUT_WR);
    else (void)::close(std::exchange(pair[1], -1));
    server.run();
  }
  server.finish(s, generation);
  if (pair[1] >= 0) (void)::close(pair[1]);
  return 0;
}
