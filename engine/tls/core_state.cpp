#include "engine/tls/core_state.hpp"

#include <algorithm>
#include <exception>
#include <new>
#include <utility>

#include <openssl/err.h>

#include "engine/base/assert.hpp"

namespace percore::tls {

namespace {

// Contexts that a core keeps ready; over it, those that serve nobody are dropped and made again when they are needed.
constexpr std::size_t most_contexts = 64;

}  // namespace

core_state::core_state() {
  gather.reserve(SSL3_RT_MAX_PLAIN_LENGTH);
}

core_state::~core_state() {
  for (const auto& context : contexts_) PERCORE_ASSERT(context->sessions == 0, "a TLS session outlives its core");
}

void core_state::prepare(const std::shared_ptr<shared_context>& shared) { (void)current(shared); }

core_context* core_state::current(const std::shared_ptr<shared_context>& shared) {
  const auto is_newest = [&](const std::unique_ptr<core_context>& known) {
    return &known->owner() == shared.get() && known->version() == shared->version();
  };
  const auto known = std::find_if(contexts_.begin(), contexts_.end(), is_newest);
  if (known != contexts_.end()) return known->get();
  std::uint64_t version = 0;
  auto settings = shared->current(version);
  auto made = std::make_unique<core_context>(shared, std::move(settings), version, library_.get());
  const bool too_many = contexts_.size() >= most_contexts;
  std::erase_if(contexts_, [&](const auto& old) {
    return old->sessions == 0 && (too_many || &old->owner() == shared.get());
  });
  contexts_.push_back(std::move(made));
  return contexts_.back().get();
}

session* core_state::open(const std::shared_ptr<shared_context>& shared, std::uint64_t identity) noexcept {
  core_context* context = nullptr;
  try {
    context = current(shared);
  } catch (const std::exception&) {
    // Reloaded settings were tried before they were published, so this is a lack of memory. The previous ones still do.
    ERR_clear_error();
    for (const auto& known : contexts_) {
      if (&known->owner() == shared.get()) context = known.get();
    }
  }
  if (context == nullptr) return nullptr;
  ssl_ptr made = context->make_session(identity);
  return made ? new (std::nothrow) session(wire, *context, std::move(made)) : nullptr;
}

void core_state::close(session* ended) noexcept {
  core_context& context = ended->context();
  delete ended;
  if (context.sessions != 0 || context.version() == context.owner().version()) return;
  std::erase_if(contexts_, [&](const auto& known) { return known.get() == &context; });
}

}  // namespace percore::tls
