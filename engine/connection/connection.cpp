// The rest of connection: ending, time, addresses, options, context.

#include <percore/connection.hpp>

#include <new>
#include <stdexcept>
#include <utility>

#include "engine/connection/milliseconds.hpp"
#include "engine/connection/slice.hpp"
#include "engine/connection/slot.hpp"

namespace percore {

using engine::check_use;
using engine::slot;
using engine::to_ms;

namespace {

std::chrono::steady_clock::time_point to_time_point(std::int64_t monotonic_ns) noexcept {
  // libstdc++'s steady_clock is CLOCK_MONOTONIC.
  return std::chrono::steady_clock::time_point(std::chrono::nanoseconds(monotonic_ns));
}

std::error_code as_error(int negative_errno) noexcept {
  return negative_errno >= 0 ? std::error_code{} : std::error_code(-negative_errno, std::system_category());
}

}  // namespace

void connection::close() noexcept {
  const auto close = [](void* self, std::coroutine_handle<>) noexcept {
    static_cast<slot*>(self)->begin_close();
    return true;
  };
  slot& s = slot::of(*this);
  check_use(s);
  if (s.is_away()) {
    s.request_ending(close);
  } else {
    close(&s, {});
  }
}

void connection::reset() noexcept {
  const auto reset = [](void* self, std::coroutine_handle<>) noexcept {
    auto& s = *static_cast<slot*>(self);
    s.resetting = true;
    s.end_with(static_cast<int>(errc::closed));
    s.close_now();
    return true;
  };
  slot& s = slot::of(*this);
  check_use(s);
  if (s.is_away()) {
    s.request_ending(reset);
  } else {
    reset(&s, {});
  }
}

std::error_code connection::error() const noexcept {
  const int value = slot::of(*this).error_value;
  if (value > 0) return static_cast<errc>(value);
  return as_error(value);
}

void connection::set_read_timeout(std::chrono::milliseconds timeout) noexcept {
  slot& s = slot::of(*this);
  check_use(s);
  s.read_timeout_ms = to_ms(timeout);
  s.timeouts_changed();
}
void connection::set_write_timeout(std::chrono::milliseconds timeout) noexcept {
  slot& s = slot::of(*this);
  check_use(s);
  s.write_timeout_ms = to_ms(timeout);
}
void connection::set_idle_timeout(std::chrono::milliseconds timeout) noexcept {
  slot& s = slot::of(*this);
  check_use(s);
  s.idle_timeout_ms = to_ms(timeout);
  s.timeouts_changed();
}
void connection::set_lifetime_timeout(std::chrono::milliseconds timeout) noexcept {
  slot& s = slot::of(*this);
  check_use(s);
  s.lifetime_timeout_ms = to_ms(timeout);
  s.timeouts_changed();
}

void connection::set_zero_copy_from(std::size_t bytes) noexcept {
  slot& s = slot::of(*this);
  check_use(s);
  s.lend_from(bytes);
}

std::chrono::steady_clock::time_point connection::start_time() const noexcept {
  return to_time_point(slot::of(*this).start_ns);
}
[[gnu::hot]] std::chrono::steady_clock::time_point connection::now() const noexcept {
  const slot& s = slot::of(*this);
  if (!s.is_away()) return to_time_point(s.core->now_ns);
  return to_time_point(s.slice->on != nullptr ? sys::monotonic_ns() : s.slice->turn_ns);
}

address connection::peer_address() const noexcept { return slot::of(*this).peer; }

address connection::local_address() const noexcept {
  sockaddr_storage storage{};
  socklen_t length = sizeof storage;
  auto* target = reinterpret_cast<sockaddr*>(&storage);
  if (sys::getsockname(slot::of(*this).fd, target, &length) < 0) return {};
  return address::from_sockaddr(target, length);
}

server& connection::owner() const noexcept { return *slot::of(*this).core->owner; }
unsigned connection::core_index() const noexcept { return slot::of(*this).core->index; }
std::size_t connection::listener() const noexcept { return slot::of(*this).listener->index; }
[[gnu::hot]] bool connection::server_stopping() const noexcept {
  return slot::of(*this).core->stop_requested->load(std::memory_order_relaxed);
}

connection_handle connection::handle() const {
  const slot& s = slot::of(*this);
  return {s.core->mailbox, s.core->index, s.index, s.generation};
}

bool detail::is_away(engine::core_resources& core, std::uint32_t slot_index, std::uint32_t generation) noexcept {
  if (slot_index >= core.slots.touched()) return false;
  const slot& found = core.slots.at(slot_index);
  return found.generation == generation && found.is_away() && !core.given_up;
}

void detail::post_later(engine::core_resources& core, std::uint32_t slot_index, message&& what) {
  core.slots.at(slot_index).put_off(std::move(what));
}

connection* detail::find_connection(engine::core_resources& core, std::uint32_t slot_index,
                                    std::uint32_t generation) noexcept {
  if (slot_index >= core.slots.touched()) return nullptr;
  slot& found = core.slots.at(slot_index);
  return found.generation == generation && found.phase == engine::slot_phase::running ? &found : nullptr;
}

int connection::fd() const noexcept { return slot::of(*this).fd; }

std::error_code connection::set_option(int level, int name, const void* value, std::size_t bytes) noexcept {
  return as_error(sys::setsockopt(slot::of(*this).fd, level, name, value, static_cast<socklen_t>(bytes)));
}

std::error_code connection::get_option(int level, int name, void* value, std::size_t& bytes) const noexcept {
  auto length = static_cast<socklen_t>(bytes);
  const int result = sys::getsockopt(slot::of(*this).fd, level, name, value, &length);
  bytes = length;
  return as_error(result);
}

void* connection::allocate_context(std::size_t bytes) {
  slot& s = slot::of(*this);
  check_use(s);
  if (s.context != nullptr) throw std::logic_error("percore: this connection has a context already");
  s.context_on_heap = false;
  if (void* place = s.arena.allocate_at_end(bytes)) return place;
  void* place = ::operator new(bytes);
  if (s.is_away()) {
    ++s.slice->rare().contexts_on_heap;
  } else {
    ++s.core->counters.contexts_on_heap;
  }
  s.context_on_heap = true;
  return place;
}

void connection::abandon_context(void* place) noexcept {
  slot& s = slot::of(*this);
  if (s.context_on_heap) {
    ::operator delete(place);
  } else {
    s.arena.release_end();
  }
}

void connection::adopt_context(void* context, const void* type, void (*destroy)(void*) noexcept) noexcept {
  slot& s = slot::of(*this);
  s.context = context;
  s.context_type = type;
  s.destroy_context = destroy;
}

void* connection::find_context(const void* type) const noexcept {
  const slot& s = slot::of(*this);
  return s.context != nullptr && s.context_type == type ? s.context : nullptr;
}

}  // namespace percore
