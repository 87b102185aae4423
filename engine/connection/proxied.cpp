// Connections that a balancer brings: the PROXY header before everything else, then what the listener is for.

#include <algorithm>
#include <cstring>
#include <memory>
#include <new>
#include <utility>

#include <percore/proxy_protocol.hpp>

#include "engine/connection/milliseconds.hpp"
#include "engine/connection/outgoing.hpp"

namespace percore {

namespace engine {

namespace {

bool is_trusted(const proxy_protocol_options& how, const address& peer) noexcept {
  if (peer.is_unix()) return how.trust_unix;
  return std::any_of(how.trusted.begin(), how.trusted.end(), [&](const network& one) { return one.contains(peer); });
}

// The server's side of TLS that begins behind the header.
class [[nodiscard]] server_tls {
 public:
  explicit server_tls(slot& s) noexcept : s_(s) {}
  bool await_ready() const noexcept { return s_.begin_proxied_tls(); }
  bool await_suspend(std::coroutine_handle<> waiter) const noexcept { return s_.suspend_start_tls(waiter); }
  bool await_resume() const noexcept { return s_.target_done != 0; }

 private:
  slot& s_;
};

// For as long as the handler lives.
struct known_header {
  slot& s;
  proxy_header header;

  explicit known_header(slot& of) noexcept : s(of) { s.proxied = &header; }
  known_header(const known_header&) = delete;
  known_header& operator=(const known_header&) = delete;
  ~known_header() { s.proxied = nullptr; }
};

task<bool> read_header(connection& conn, proxy_header& into) {
  bytes_view data = co_await conn.read();
  while (data) {
    std::size_t used = 0;
    const proxy_parse made = parse_proxy_header(data.text(), into, used);
    if (made == proxy_parse::done) {
      conn.unread(data.size() - used);
      co_return true;
    }
    if (made == proxy_parse::wrong) co_return false;
    conn.unread(data);
    data = co_await conn.read_more();
  }
  co_return false;
}

void refuse(slot& s) noexcept {
  ++s.core->counters.proxy_refused;
  static_cast<connection&>(s).reset();
}

}  // namespace

task<> serve_proxied(connection& conn, const listener_config& how) {
  co_await at_home();
  slot& s = slot::of(conn);
  if (!is_trusted(*how.proxy, s.peer)) {
    refuse(s);
    co_return;
  }
  const std::uint32_t usual = s.lifetime_timeout_ms;
  const std::uint32_t limit = std::max(to_ms(how.proxy->timeout), 1U);
  s.lifetime_timeout_ms = usual == 0 ? limit : std::min(usual, limit);
  s.timeouts_changed();
  const auto known = std::make_unique<known_header>(s);
  const bool read = co_await read_header(conn, known->header);
  if (!read) {
    refuse(s);
    co_return;
  }
  s.lifetime_timeout_ms = usual;
  s.timeouts_changed();
  const address& source = known->header.source;
  if (source.family() != address_family::unspecified) s.peer = percore::peer_address(source);
  if (how.tls) {
    const bool secured = co_await server_tls(s);
    if (!secured) co_return;
  }
  s.slices = how.slices;
  if (s.slices != slice_home::core) co_await conn.yield();  // goes on where it belongs
  const task<> served = how.handler(conn);
  if (!served) throw std::bad_alloc();
  co_await served;
}

// As start_tls, with what came behind the header for its first bytes.
bool slot::begin_proxied_tls() noexcept {
  reading = read_kind::start_tls;
  target_done = 0;
  view_size = 0;
  if (!ended) {
    const std::size_t size = end - begin;
    if (!open_session(listener->tls)) {
      end_with(static_cast<int>(errc::no_memory));
    } else if (size > core->secure->wire.room().size()) {
      end_with(static_cast<int>(errc::limit_exceeded));
    } else {
      if (size != 0) {
        tls::io& wire = core->secure->wire;
        wire.use(*secure);
        std::memcpy(wire.room().data(), buffer->data() + begin, size);
        wire.received(size);
        secure->input_is_there();
      }
      begin = end;
      drop_buffer();
      return advance_read();
    }
  }
  fail(end_reason);
  reading = read_kind::none;
  return true;
}

}  // namespace engine

const proxy_header* connection::proxied() const noexcept {
  const engine::slot& s = engine::slot::of(*this);
  using engine::slot_phase;
  return s.phase == slot_phase::waiting || s.phase == slot_phase::blocking ? nullptr : s.proxied;
}

}  // namespace percore
