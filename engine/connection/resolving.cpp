// Names to addresses, on the helper threads: getaddrinfo(3) blocks.

#include "engine/connection/resolving.hpp"

#include <netdb.h>

#include <arpa/inet.h>

#include <algorithm>
#include <new>
#include <utility>

namespace percore::engine {

namespace {

constexpr std::size_t most_addresses = 16;  // of one name; RFC 8305 names no limit, but each is a connection at worst

resolution look_up(const std::string& host, std::uint16_t port) {
  resolution result;
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int failure = sys::resolve(host.c_str(), &hints, &found);
  if (failure != 0) {
    if (failure == EAI_MEMORY) result.error = static_cast<int>(errc::no_memory);
    result.reason = ::gai_strerror(failure);
    return result;
  }
  for (const addrinfo* one = found; one != nullptr && result.addresses.size() < most_addresses; one = one->ai_next) {
    const address made = address::from_sockaddr(one->ai_addr, one->ai_addrlen).with_port(port);
    const auto& known = result.addresses;
    if (std::find(known.begin(), known.end(), made) == known.end()) result.addresses.push_back(made);
  }
  ::freeaddrinfo(found);
  interleave(result.addresses);
  return result;
}

}  // namespace

void interleave(std::vector<address>& addresses) {
  if (addresses.empty()) return;
  const address_family first = addresses.front().family();
  std::vector<address> preferred, others, mixed;
  for (const address& one : addresses) (one.family() == first ? preferred : others).push_back(one);
  for (std::size_t i = 0; i < std::max(preferred.size(), others.size()); ++i) {
    if (i < preferred.size()) mixed.push_back(preferred[i]);
    if (i < others.size()) mixed.push_back(others[i]);
  }
  addresses = std::move(mixed);
}

bool resolve_here(const std::string& host, std::uint16_t port, resolution& into) {
  sockaddr_in v4{};
  v4.sin_family = AF_INET;
  if (::inet_pton(AF_INET, host.c_str(), &v4.sin_addr) == 1) {
    into.addresses.push_back(
        address::from_sockaddr(reinterpret_cast<const sockaddr*>(&v4), sizeof v4).with_port(port));
    return true;
  }
  sockaddr_in6 v6{};
  v6.sin6_family = AF_INET6;
  if (::inet_pton(AF_INET6, host.c_str(), &v6.sin6_addr) == 1) {
    into.addresses.push_back(
        address::from_sockaddr(reinterpret_cast<const sockaddr*>(&v6), sizeof v6).with_port(port));
    return true;
  }
  return host.empty() || host.size() > 255 || host.find('\0') != std::string::npos;  // RFC 1035: no name
}

// From the heap; frees itself when it comes back.
struct resolve_job : detail::job {
  std::string host;
  std::uint16_t port = 0;
  resolution found;
  resolved* asked_by = nullptr;  // none: nobody waits any more

  resolve_job() {
    work = [](detail::job& base, helpers::helper&) noexcept {
      auto& self = static_cast<resolve_job&>(base);
      try {
        self.found = look_up(self.host, self.port);
      } catch (const std::bad_alloc&) {
        self.found.error = static_cast<int>(errc::no_memory);
      }
    };
    deliver = [](detail::completion& done, core_resources& on) {
      const std::unique_ptr<resolve_job> self(static_cast<resolve_job*>(static_cast<detail::job*>(&done)));
      if (self->taken_back) {
        self->found.error = static_cast<int>(errc::shutting_down);
      } else {
        on.helpers->delivered(on.now_ns);
      }
      if (resolved* waiting = std::exchange(self->asked_by, nullptr)) {
        waiting->into_ = std::move(self->found);
        waiting->go_on();
      }
    };
    drop = [](detail::job& base) noexcept { delete static_cast<resolve_job*>(&base); };
  }
};

resolved::~resolved() {
  if (job_ != nullptr) job_->asked_by = nullptr;
}

bool resolved::await_suspend(std::coroutine_handle<> waiter) {
  auto made = std::make_unique<resolve_job>();
  made->host = host_;
  made->port = port_;
  made->asked_by = this;
  if (core_.helpers->submit(*made, core_.now_ns) == helpers::pool::submission::refused) {
    into_.error = static_cast<int>(core_.helpers->ended() ? errc::shutting_down : errc::queue_full);
    return false;
  }
  job_ = made.release();
  waiter_ = waiter;
  where_ = host_ref::of_running(core_);
  if (deadline_ns_ != 0) {
    fire = [](detail::timer_node& node) {
      auto& self = static_cast<resolved&>(node);
      self.job_->asked_by = nullptr;
      self.into_.error = static_cast<int>(errc::timed_out);
      self.go_on();
    };
    core_.timers.insert(*this, loop::timer_wheel::tick_from(deadline_ns_));
  }
  return true;
}

void resolved::go_on() noexcept {
  job_ = nullptr;
  unlink();
  where_.resume(core_, waiter_);
}

}  // namespace percore::engine
