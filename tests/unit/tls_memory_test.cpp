// Sessions whose OpenSSL gets no memory, at every allocation in turn: they fail, or they do as if nothing were wrong.
#include <doctest/doctest.h>

#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/lsan_interface.h>
#endif

#include <cstddef>
#include <cstdlib>
#include <optional>
#include <string>

#include "tests/support/tls_server.hpp"
#include "tests/support/tls_sides.hpp"

namespace percore::test {
namespace {

using tls::status;

// Which of this thread's allocations fails; nothing does as long as there is none.
struct shortage {
  std::size_t until = 0;  // so many succeed before
  bool lasting = false;   // all that follow fail, too
  bool struck = false;
};
thread_local shortage* present = nullptr;

bool fails_now() noexcept {
  if (present == nullptr) return false;
  if (present->until != 0) {
    --present->until;
    return false;
  }
  const bool fails = present->lasting || !present->struck;
  present->struck = true;
  return fails;
}

// OpenSSL 3.0 itself forgets some entries of its table of names (of algorithms, NAMENUM_ENTRY) when allocations of a
// handshake fail: in that test what it takes is not looked for. What the engine takes is.
thread_local bool openssl_forgets = false;

struct unlooked_for {
#ifdef __SANITIZE_ADDRESS__
  unlooked_for() noexcept {
    if (openssl_forgets) __lsan_disable();
  }
  ~unlooked_for() {
    if (openssl_forgets) __lsan_enable();
  }
#endif
};

void* allocate(std::size_t size, const char*, int) {
  if (fails_now()) return nullptr;
  [[maybe_unused]] const unlooked_for by_the_leak_check;
  return std::malloc(size);
}
void* reallocate(void* old, std::size_t size, const char*, int) {
  return size != 0 && fails_now() ? nullptr : std::realloc(old, size);
}
void release(void* old, const char*, int) {
  std::free(old);
}

// Only before OpenSSL's first allocation in the process.
const bool installed = CRYPTO_set_mem_functions(allocate, reallocate, release) == 1;

// Runs `step` with one allocation after the other failing, until it needs no more. What it prepares is not disturbed:
// it calls the function that it is given where the shortage begins. Returns how many allocations it makes.
template <class Step>
std::size_t at_every_allocation(bool lasting, Step step) {
  for (std::size_t which = 0;; ++which) {
    CAPTURE(which);
    shortage now{which, lasting, false};
    step([&now] { present = &now; }, now);
    present = nullptr;
    ERR_clear_error();
    if (!now.struck) return which;
    REQUIRE(which < 5000);
  }
}

struct pair {
  explicit pair(tls_version version) {
    tls_options how = client_tls();
    how.min_version = how.max_version = version;
    client.emplace(how, tls_role::client);
    REQUIRE(client->set_server_name("localhost"));
  }
  tls_side server{server_tls(), tls_role::server};
  std::optional<tls_side> client;
};

template <class Test>
void for_each_shortage(Test test) {
  REQUIRE(installed);
  for (const tls_version version : {tls_version::v1_2, tls_version::v1_3}) {
    for (const bool lasting : {false, true}) {
      CAPTURE(static_cast<int>(version));
      CAPTURE(lasting);
      test(version, lasting);
    }
  }
}

TEST_CASE("tls_memory: a read without memory fails, or gives all that was sent") {
  for_each_shortage([](tls_version version, bool lasting) {
    for (const bool by_server : {true, false}) {
      CAPTURE(by_server);
      const std::size_t allocations = at_every_allocation(lasting, [&](auto begin, const shortage& now) {
        pair both(version);
        REQUIRE(shake_hands(*both.client, both.server));
        tls_side& reader = by_server ? both.server : *both.client;
        tls_side& writer = by_server ? *both.client : both.server;
        CHECK(reader.read().empty());
        CHECK(reader.last() == status::want_input);
        CHECK(writer.write("question"));
        const std::string sent = writer.take();
        reader.give(sent);
        begin();
        const std::string got = reader.read();
        present = nullptr;
        if (got == "question") return;
        CHECK(now.struck);
        CHECK(got.empty());
        CHECK(reader.last() == status::failed);
        CHECK(reader->failure() == tls_failure::internal);
        CHECK(reader.read().empty());
        CHECK(reader.last() == status::failed);
        (void)reader.take();
      });
      CHECK(allocations > 0);
    }
  });
}

TEST_CASE("tls_memory: a write without memory fails, or sends it all") {
  for_each_shortage([](tls_version version, bool lasting) {
    const std::size_t allocations = at_every_allocation(lasting, [&](auto begin, const shortage& now) {
      pair both(version);
      REQUIRE(shake_hands(*both.client, both.server));
      begin();
      const bool ok = both.server.write("answer");
      present = nullptr;
      const std::string sent = both.server.take();
      if (ok) {
        both.client->give(sent);
        CHECK(both.client->read() == "answer");
        return;
      }
      CHECK(now.struck);
      CHECK(both.server->has_failed());
      CHECK(both.server->failure() == tls_failure::internal);
    });
    CHECK(allocations > 0);
  });
}

TEST_CASE("tls_memory: a goodbye without memory is the last that is heard") {
  for_each_shortage([](tls_version version, bool lasting) {
    (void)at_every_allocation(lasting, [&](auto begin, const shortage& now) {
      pair both(version);
      REQUIRE(shake_hands(*both.client, both.server));
      CHECK(both.server.read().empty());
      begin();
      both.server->close_notify();
      present = nullptr;
      const bool said = !both.server.take().empty();
      CHECK((said || now.struck));
      CHECK(both.client->write("question"));
      both.server.give(both.client->take());
      const std::string got = both.server.read();
      if (got == "question") return;
      CHECK(got.empty());
      CHECK(both.server.last() == status::failed);
      (void)both.server.take();
    });
  });
}

TEST_CASE("tls_memory: a handshake without memory fails with a cause, or is done") {
  openssl_forgets = true;
  for_each_shortage([](tls_version version, bool lasting) {
    std::size_t skipped = 0;
    const std::size_t allocations = at_every_allocation(lasting, [&](auto begin, const shortage&) {
      if (skipped++ % 5 != 0) {  // some hundred are alike
        begin();
        present->struck = true;
        present = nullptr;
        return;
      }
      pair both(version);
      CHECK((*both.client)->handshake() == status::want_input);
      both.server.give(both.client->take());
      begin();
      const status first = both.server->handshake();
      present = nullptr;
      const std::string flight = both.server.take();
      if (first == status::failed) {
        CHECK(both.server->has_failed());
        return;
      }
      REQUIRE(first == status::want_input);
      both.client->give(flight);
      const status of_client = (*both.client)->handshake();
      both.server.give(both.client->take());
      if (of_client == status::failed) {
        (void)both.server->handshake();
        (void)both.server.take();
        return;
      }
      CHECK(both.server->handshake() == status::done);
      (void)both.server.take();
    });
    CHECK(allocations > 100);
  });
  openssl_forgets = false;
}

}  // namespace
}  // namespace percore::test
