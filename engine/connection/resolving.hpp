#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <percore/address.hpp>

#include "engine/connection/outgoing.hpp"

namespace percore::engine {

struct resolution {
  std::vector<address> addresses;  // in the order in which to try them
  int error = 0;                   // errc, or -errno; 0 with no addresses: the name has none
  const char* reason = "";         // static
};

// True when the host is an IP address and needs no resolver.
bool resolve_here(const std::string& host, std::uint16_t port, resolution& into);
// RFC 8305 4: the families in turn, the resolver's first choice first.
void interleave(std::vector<address>& addresses);

struct resolve_job;

// Waits for the answer of getaddrinfo(3) on a helper, at most until `deadline_ns` (0: no limit). A helper that is still
// at it then, or when the waiting coroutine is destroyed, goes on alone.
class [[nodiscard]] resolved : detail::timer_node {
 public:
  resolved(core_resources& core, const std::string& host, std::uint16_t port, std::int64_t deadline_ns,
           resolution& into) noexcept
      : core_(core), host_(host), port_(port), deadline_ns_(deadline_ns), into_(into) {}
  resolved(const resolved&) = delete;
  resolved& operator=(const resolved&) = delete;
  ~resolved();
  bool await_ready() const noexcept { return false; }
  bool await_suspend(std::coroutine_handle<> waiter);
  void await_resume() const noexcept {}

 private:
  friend struct resolve_job;
  void go_on() noexcept;

  core_resources& core_;
  const std::string& host_;
  std::uint16_t port_;
  std::int64_t deadline_ns_;
  resolution& into_;
  resolve_job* job_ = nullptr;
  std::coroutine_handle<> waiter_;
  host_ref where_;
};

}  // namespace percore::engine
