// Which of OpenSSL's objects a core keeps.
#include <doctest/doctest.h>

#include <memory>

#include "engine/tls/core_state.hpp"
#include "tests/support/certificates.hpp"
#include "tests/support/tls_server.hpp"

namespace percore::test {
namespace {

std::shared_ptr<tls::shared_context> make_shared_context() {
  return std::make_shared<tls::shared_context>(server_tls(), tls_role::server);
}

TEST_CASE("tls_core_state: a reloaded context replaces the old one, which stays as long as it has sessions") {
  const auto shared = make_shared_context();
  tls::core_state core;
  core.prepare(shared);
  CHECK(core.contexts() == 1);
  tls::session* old = core.open(shared, 1);
  REQUIRE(old != nullptr);
  shared->reload(server_tls());
  tls::session* fresh = core.open(shared, 1);
  REQUIRE(fresh != nullptr);
  CHECK(&old->context() != &fresh->context());
  CHECK(core.contexts() == 2);
  core.close(old);
  CHECK(core.contexts() == 1);
  shared->reload(server_tls());
  core.close(fresh);
  core.prepare(shared);
  CHECK(core.contexts() == 1);
}

TEST_CASE("tls_core_state: contexts that serve nobody do not pile up") {
  tls::core_state core;
  const auto kept = make_shared_context();
  tls::session* session = core.open(kept, 1);
  REQUIRE(session != nullptr);
  for (int i = 0; i < 200; ++i) core.close(core.open(make_shared_context(), 1));
  CHECK(core.contexts() <= 65);
  CHECK(&session->context().owner() == kept.get());
  core.close(session);
}

}  // namespace
}  // namespace percore::test
