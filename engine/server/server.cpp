#include <percore/server.hpp>
#include <percore/version.hpp>

#include <utility>

#include "engine/server/server_state.hpp"

namespace percore {

#define PERCORE_TEXT_OF(x) #x
#define PERCORE_TEXT(x) PERCORE_TEXT_OF(x)

const char* version() noexcept {
  return PERCORE_TEXT(PERCORE_VERSION_MAJOR) "." PERCORE_TEXT(PERCORE_VERSION_MINOR) "." PERCORE_TEXT(
      PERCORE_VERSION_PATCH);
}

// The handle of the public object; std::unique_ptr would ask its users for the complete type.
server::server(server_options options)
    : state_(std::make_shared<engine::server_state>(*this, std::move(options))) {}

server::~server() = default;

std::size_t server::add_listener(const address& where, detail::handler handler, listen_options options) {
  return state_->add_listener(&where, -1, std::move(handler), std::move(options));
}

std::size_t server::add_listener_fd(int fd, detail::handler handler, listen_options options) {
  return state_->add_listener(nullptr, fd, std::move(handler), std::move(options));
}

std::size_t server::add_blocking_listener(const address* where, int fd, blocking_listener handler,
                                          listen_options options) {
  return state_->add_listener(where, fd, {}, std::move(options), std::move(handler));
}

void server::start() { state_->start(); }
void server::serve() { state_->serve(); }
void server::wait() { state_->wait(); }

void server::begin_shutdown(std::chrono::milliseconds grace) { state_->begin_shutdown(grace); }

void server::shutdown(std::chrono::milliseconds grace) {
  state_->begin_shutdown(grace);
  if (!state_->on_own_thread()) state_->wait();
}

void server::halt() {
  state_->begin_halt();
  if (!state_->on_own_thread()) state_->wait();
}

post_result server::post_message(std::size_t core, detail::message&& what) {
  return state_->post(core, std::move(what));
}

std::size_t server::core_count() const noexcept { return state_->core_count(); }
const placement_plan& server::placement() const { return state_->placement(); }
address server::local_address(std::size_t listener) const { return state_->local_address(listener); }
server_stats server::stats() const { return state_->stats(); }
bool server::stopping() const noexcept { return state_->stopping(); }

}  // namespace percore
