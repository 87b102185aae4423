// Session tickets over cores, listeners, key rotations and reloads; certificates that change while serving.
#include <doctest/doctest.h>

#include <atomic>
#include <chrono>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/support/clean_process.hpp"
#include "tests/support/test_server.hpp"
#include "tests/support/tls_client.hpp"
#include "tests/support/tls_server.hpp"

namespace percore::test {
namespace {

using namespace std::chrono_literals;

// Answers with the core that serves.
task<> tell_core(connection& conn) {
  const std::string text = std::to_string(conn.core_index());
  co_await conn.write(text);
}

tls_profile only(int version) {
  tls_client_options how;
  how.min_version = how.max_version = version;
  return tls_profile(how);
}

struct visit {
  bool resumed = false;
  std::string core;
  session_ptr ticket;
  std::string sha256;
};

visit visited(const address& where, const tls_profile& how, const session_ptr& ticket = {}) {
  tls_client peer(where, how, ticket);
  visit result;
  result.core = peer.handshake().recv_to_end();
  CHECK(peer.close_received());
  result.resumed = peer.resumed();
  result.ticket = peer.ticket();
  result.sha256 = peer.peer_sha256();
  return result;
}

std::string bytes_of(const session_ptr& ticket) {
  std::size_t size = 0;
  const unsigned char* bytes = nullptr;
  SSL_SESSION_get0_ticket(ticket.get(), &bytes, &size);
  return {reinterpret_cast<const char*>(bytes), size};
}

TEST_CASE_FIXTURE(clean_process, "tls resumption: by a ticket, many times, in both versions") {
  test_server server(tell_core, one_core(), over_tls());
  for (const int version : {TLS1_2_VERSION, TLS1_3_VERSION}) {
    CAPTURE(version);
    const tls_profile how = only(version);
    const visit first = visited(server.where(), how);
    CHECK_FALSE(first.resumed);
    REQUIRE(first.ticket != nullptr);
    for (int i = 0; i < 3; ++i) CHECK(visited(server.where(), how, first.ticket).resumed);
    // A chain of tickets, each from the one before.
    session_ptr ticket = first.ticket;
    for (int i = 0; i < 3; ++i) {
      const visit next = visited(server.where(), how, ticket);
      CHECK(next.resumed);
      if (next.ticket != nullptr) ticket = next.ticket;
    }
  }
  CHECK(server.total().tls_resumptions == 12);
  CHECK(server.total().tls_handshakes == 14);
}

TEST_CASE_FIXTURE(clean_process, "tls resumption: a ticket of one core is good on all of them") {
  test_server server(tell_core, all_cores(), over_tls());
  for (const int version : {TLS1_2_VERSION, TLS1_3_VERSION}) {
    CAPTURE(version);
    const tls_profile how = only(version);
    const visit first = visited(server.where(), how);
    std::set<std::string> cores;
    for (int i = 0; i < 1000 && cores.size() < server->core_count(); ++i) {
      const visit next = visited(server.where(), how, first.ticket);
      CHECK(next.resumed);
      cores.insert(next.core);
    }
    CHECK(cores.size() == server->core_count());
  }
}

TEST_CASE_FIXTURE(clean_process, "tls resumption: a ticket is good under its listener only") {
  const tls_context shared(server_tls());
  server host(one_core());
  host.listen("127.0.0.1:0", tell_core, over_tls(shared));
  host.listen("127.0.0.1:0", tell_core, over_tls(shared));  // the same keys, another identity
  host.listen("127.0.0.1:0", tell_core, over_tls());        // other keys
  host.start();
  for (const int version : {TLS1_2_VERSION, TLS1_3_VERSION}) {
    CAPTURE(version);
    const tls_profile how = only(version);
    const visit first = visited(host.local_address(0), how);
    CHECK(visited(host.local_address(0), how, first.ticket).resumed);
    CHECK_FALSE(visited(host.local_address(1), how, first.ticket).resumed);
    CHECK_FALSE(visited(host.local_address(2), how, first.ticket).resumed);
  }
  CHECK(tls_failures(host.stats().total) == 0);
}

TEST_CASE_FIXTURE(clean_process,
                  "tls resumption: the key before the newest is still good, older ones are not") {
  tls_context context(server_tls());
  test_server server(tell_core, one_core(), over_tls(context));
  for (const int version : {TLS1_2_VERSION, TLS1_3_VERSION}) {
    CAPTURE(version);
    const tls_profile how = only(version);
    const visit first = visited(server.where(), how);
    context.rotate_ticket_keys();
    const visit renewed = visited(server.where(), how, first.ticket);
    CHECK(renewed.resumed);
    REQUIRE(renewed.ticket != nullptr);
    CHECK(bytes_of(renewed.ticket) !=
          bytes_of(first.ticket));  // with TLS 1.2, too: the old one will not do for long
    CHECK(visited(server.where(), how, renewed.ticket).resumed);
    context.rotate_ticket_keys();
    CHECK_FALSE(visited(server.where(), how, first.ticket).resumed);
    CHECK(visited(server.where(), how, renewed.ticket).resumed);
    context.rotate_ticket_keys();
    context.rotate_ticket_keys();
    CHECK_FALSE(visited(server.where(), how, renewed.ticket).resumed);
  }
  CHECK(tls_failures(server.total()) == 0);
}

TEST_CASE_FIXTURE(clean_process, "tls resumption: keys change by time") {
  tls_options options = server_tls();
  options.ticket_key_lifetime = 1s;
  test_server server(tell_core, all_cores(), over_tls(options));
  const tls_profile how;
  const visit first = visited(server.where(), how);
  // Good for at least one lifetime; when it is not any more, that was at least one ago.
  const auto begun = std::chrono::steady_clock::now();
  bool good = true;
  while (good && std::chrono::steady_clock::now() - begun < patience) {
    good = visited(server.where(), how, first.ticket).resumed;
    std::this_thread::sleep_for(50ms);  // the time that has to pass
  }
  CHECK_FALSE(good);
  CHECK(std::chrono::steady_clock::now() - begun >= 1s);
}

TEST_CASE_FIXTURE(clean_process, "tls resumption: a session's lifetime ends it") {
  tls_options options = server_tls();
  options.session_lifetime = 1s;
  test_server server(tell_core, one_core(), over_tls(options));
  for (const int version : {TLS1_2_VERSION, TLS1_3_VERSION}) {
    const tls_profile how = only(version);
    visit first = visited(server.where(), how);
    CHECK(SSL_SESSION_get_ticket_lifetime_hint(first.ticket.get()) == 1);
    SSL_SESSION_set_timeout(first.ticket.get(), 1000);  // this client would go on with it
    bool good = true;
    for (int i = 0; i < 200 && good; ++i) {
      good = visited(server.where(), how, first.ticket).resumed;
      std::this_thread::sleep_for(50ms);  // the time that has to pass
    }
    CHECK_FALSE(good);
  }
}

TEST_CASE_FIXTURE(clean_process, "tls resumption: damaged tickets lead to a full handshake") {
  test_server server(tell_core, one_core(), over_tls());
  for (const int version : {TLS1_2_VERSION, TLS1_3_VERSION}) {
    const tls_profile how = only(version);
    const visit first = visited(server.where(), how);
    const std::size_t size = bytes_of(first.ticket).size();
    // The key's name, the vector, what is encrypted, the authentication code.
    for (const long byte : {0L, 15L, 16L, 31L, 32L, static_cast<long>(size / 2), -33L, -32L, -1L}) {
      CAPTURE(version);
      CAPTURE(byte);
      CHECK_FALSE(visited(server.where(), how, with_broken_ticket(first.ticket, byte)).resumed);
    }
    CHECK(visited(server.where(), how, first.ticket).resumed);
  }
  CHECK(tls_failures(server.total()) == 0);
}

TEST_CASE_FIXTURE(clean_process, "tls resumption: without tickets there is none") {
  tls_options options = server_tls();
  options.tickets = false;
  test_server server(tell_core, one_core(), over_tls(options));
  for (const int version : {TLS1_2_VERSION, TLS1_3_VERSION}) {
    const tls_profile how = only(version);
    const visit first = visited(server.where(), how);
    const bool has_ticket = first.ticket != nullptr && SSL_SESSION_has_ticket(first.ticket.get()) == 1;
    CHECK_FALSE(has_ticket);
    if (first.ticket != nullptr) CHECK_FALSE(visited(server.where(), how, first.ticket).resumed);
  }
  CHECK(server.total().tls_resumptions == 0);
}

TEST_CASE_FIXTURE(clean_process, "tls resumption: not past a reload that changes who is trusted") {
  tls_options options = server_tls();
  tls_context context(options);
  test_server server(tell_core, one_core(), over_tls(context));
  for (const int version : {TLS1_2_VERSION, TLS1_3_VERSION}) {
    CAPTURE(version);
    const tls_profile how = only(version);
    const visit first = visited(server.where(), how);
    options.authorities_pem = authority().root.pem();
    options.clients = client_certificates::optional;
    context.reload(options);
    CHECK_FALSE(visited(server.where(), how, first.ticket).resumed);
    options.clients = client_certificates::none;
    context.reload(options);
  }
}

TEST_CASE_FIXTURE(clean_process, "tls resumption: a chain of tickets ends") {
  tls_options options = server_tls();
  options.resumption_lifetime = 2s;
  test_server server(tell_core, one_core(), over_tls(options));
  for (const int version : {TLS1_2_VERSION, TLS1_3_VERSION}) {
    CAPTURE(version);
    const tls_profile how = only(version);
    const auto begun = std::chrono::steady_clock::now();
    visit last = visited(server.where(), how);
    int resumptions = 0;
    for (bool good = true; good && std::chrono::steady_clock::now() - begun < patience;) {
      const visit next = visited(server.where(), how, last.ticket);
      good = next.resumed;
      if (good) ++resumptions;
      if (next.ticket != nullptr) last = next;
      std::this_thread::sleep_for(50ms);  // the time that has to pass
    }
    CHECK(resumptions > 0);
    CHECK(std::chrono::steady_clock::now() - begun < patience);
    CHECK(std::chrono::steady_clock::now() - begun >= 1s);  // the clock that counts has whole seconds
    CHECK(visited(server.where(), how, last.ticket).resumed);  // the full handshake has begun another
  }
  CHECK(tls_failures(server.total()) == 0);
}

// What a client that shows a certificate gets: resumed, full, or nothing.
std::string outcome_of(const address& where, const tls_profile& how, session_ptr& ticket) {
  try {
    const visit next = visited(where, how, ticket);
    if (next.ticket != nullptr) ticket = next.ticket;
    return next.resumed ? "resumed" : "full";
  } catch (const tls_went_wrong& refused) {
    return refused.what();
  }
}

TEST_CASE_FIXTURE(clean_process, "tls resumption: not past the end of a client's certificate") {
  tls_options options = server_tls();
  options.clients = client_certificates::required;
  options.authorities_pem = authority().root.pem();
  int version = 0;
  bool own = true;  // or that of its issuer
  SUBCASE("its own, TLS 1.2") {
    version = TLS1_2_VERSION;
  }
  SUBCASE("its own, TLS 1.3") {
    version = TLS1_3_VERSION;
  }
  SUBCASE("its issuer's") {
    version = TLS1_3_VERSION;
    own = false;
  }
  const certificate issuer({.common_name = "issuer", .days_until = 0, .seconds_until = 5, .authority = true},
                           &authority().root);
  const certificate mayfly = own ? certificate({.common_name = "mayfly", .days_until = 0, .seconds_until = 5},
                                               &authority().root)
                                 : certificate({.common_name = "mayfly"}, &issuer);
  const certificate steady = authority().issue("steady");
  test_server server(tell_core, one_core(), over_tls(options));
  tls_client_options how;
  how.min_version = how.max_version = version;
  how.identity = &mayfly;
  const tls_profile as_mayfly(how);
  how.identity = &steady;
  const tls_profile as_steady(how);
  session_ptr steady_ticket;
  CHECK(outcome_of(server.where(), as_steady, steady_ticket) == "full");
  session_ptr ticket;
  std::string outcome = outcome_of(server.where(), as_mayfly, ticket);
  CHECK(outcome == "full");
  const auto begun = std::chrono::steady_clock::now();
  while ((outcome == "full" || outcome == "resumed") && std::chrono::steady_clock::now() - begun < patience) {
    std::this_thread::sleep_for(100ms);  // the time that has to pass
    outcome = outcome_of(server.where(), as_mayfly, ticket);
    CHECK(outcome != "full");
  }
  CHECK(outcome == "sslv3 alert certificate expired");
  CHECK(outcome_of(server.where(), as_steady, steady_ticket) == "resumed");
}

TEST_CASE_FIXTURE(clean_process, "tls resumption: early data is not offered") {
  test_server server(tell_core, one_core(), over_tls());
  const visit first = visited(server.where(), only(TLS1_3_VERSION));
  REQUIRE(first.ticket != nullptr);
  CHECK(SSL_SESSION_get_max_early_data(first.ticket.get()) == 0);
}

// Several threads that connect until they are told to stop.
class load {
 public:
  template <class Visit>
  load(std::size_t threads, Visit each) {
    for (std::size_t i = 0; i < threads; ++i) {
      threads_.emplace_back([this, each](const std::stop_token& stop) {
        while (!stop.stop_requested()) {
          try {
            each();
            ++visits_;
          } catch (const std::exception& failure) {
            failures_.put(failure.what());
            return;
          }
        }
      });
    }
  }
  [[nodiscard]] std::size_t visits() const noexcept { return visits_; }
  // As long as there is progress, however slow the machine.
  [[nodiscard]] bool wait_for_more(std::size_t count) const {
    const std::size_t goal = visits_ + count;
    for (std::size_t seen = visits_; seen < goal; seen = visits_) {
      if (!eventually([&] { return visits_ > seen || failures_.size() != 0; })) return false;
      if (failures_.size() != 0) return false;
    }
    return true;
  }
  // The first failure of any; empty: none.
  std::string stop() {
    threads_.clear();
    return failures_.size() == 0 ? std::string() : failures_.take();
  }

 private:
  std::atomic<std::size_t> visits_{0};
  channel<std::string> failures_;
  std::vector<std::jthread> threads_;
};

TEST_CASE_FIXTURE(clean_process, "tls resumption: ten thousand over all cores with rotations in the middle") {
  const std::size_t count = sanitized ? 500 : 5'000;  // of each version
  tls_context context(server_tls());
  test_server server(tell_core, all_cores(), over_tls(context));
  for (const int version : {TLS1_2_VERSION, TLS1_3_VERSION}) {
    CAPTURE(version);
    const core_stats before = server.total();
    const tls_profile how = only(version);
    std::atomic<std::size_t> full = 0;
    {
      std::mutex lock;
      session_ptr newest = visited(server.where(), how).ticket;
      load clients(3, [&] {
        session_ptr mine;
        {
          const std::lock_guard hold(lock);
          mine = newest;
        }
        tls_client peer(server.where(), how, mine);
        (void)peer.handshake().recv_to_end();
        if (!peer.resumed()) ++full;
        if (!peer.close_received()) throw std::runtime_error("no clean end");
        if (peer.ticket() != nullptr) {
          const std::lock_guard hold(lock);
          newest = peer.ticket();
        }
      });
      CHECK(clients.wait_for_more(count / 4));
      context.rotate_ticket_keys();
      CHECK(clients.wait_for_more(count / 4));
      CHECK(full == 0);  // one rotation invalidates nothing
      // Between the two of these the old tickets are still in use: some handshakes may be full ones, none
      // fails.
      context.rotate_ticket_keys();
      context.rotate_ticket_keys();
      CHECK(clients.wait_for_more(count / 2));
      CHECK(clients.stop().empty());
    }
    const core_stats after = server.total();
    CHECK(after.tls_resumptions - before.tls_resumptions + full + 1 ==
          after.tls_handshakes - before.tls_handshakes);
    CHECK(after.tls_resumptions - before.tls_resumptions >= count * 9 / 10);
    CHECK(tls_failures(after) == 0);
  }
  for (const core_stats& core : server->stats().cores) CHECK(core.tls_resumptions > 0);
}

// --- reload ------------------------------------------------------------------------------------------------

TEST_CASE_FIXTURE(clean_process,
                  "tls reload: new handshakes on every core see the new certificate, and none fails") {
  const certificate second = authority().issue("second", {"localhost"});
  const temporary_file chain(authority().localhost.chain_pem());
  const temporary_file key(authority().localhost.key_pem());
  tls_options options = server_tls();
  options.certificates.front() = {};
  options.certificates.front().chain_file = chain.path();
  options.certificates.front().key_file = key.path();
  tls_context context(options);
  test_server server(tell_core, all_cores(), over_tls(context));
  tls_client_options how;
  const tls_profile profile(how);
  {
    load clients(2, [&] {
      tls_client peer(server.where(), profile);
      (void)peer.handshake().recv_to_end();
    });
    const certificate* now = &authority().localhost;
    const certificate* next = &second;
    for (int i = 0; i < (sanitized ? 4 : 20); ++i) {
      CHECK(clients.wait_for_more(10));
      chain.write(next->chain_pem());
      key.write(next->key_pem());
      context.reload();
      std::swap(now, next);
      // At once: a handshake that begins now is never with the old one, whichever core it meets.
      for (int j = 0; j < 8; ++j) CHECK(visited(server.where(), profile).sha256 == now->sha256());
    }
    CHECK(clients.stop().empty());
  }
  CHECK(tls_failures(server.total()) == 0);
}

TEST_CASE_FIXTURE(clean_process, "tls reload: what is broken leaves the old certificate in use") {
  const temporary_file chain(authority().localhost.chain_pem());
  const temporary_file key(authority().localhost.key_pem());
  tls_options options = server_tls();
  options.certificates.front() = {};
  options.certificates.front().chain_file = chain.path();
  options.certificates.front().key_file = key.path();
  tls_context context(options);
  test_server server(tell_core, one_core(), over_tls(context));
  const certificate other = authority().issue("other", {"localhost"});
  SUBCASE("no certificate") {
    chain.write("garbage");
  }
  SUBCASE("an empty key") {
    key.write("");
  }
  SUBCASE("half of a renewal") {
    chain.write(other.chain_pem());
  }
  CHECK_THROWS_AS(context.reload(), tls_error);
  for (int i = 0; i < 4; ++i)
    CHECK(visited(server.where(), tls_profile()).sha256 == authority().localhost.sha256());
  chain.write(other.chain_pem());
  key.write(other.key_pem());
  context.reload();
  CHECK(visited(server.where(), tls_profile()).sha256 == other.sha256());
}

TEST_CASE_FIXTURE(clean_process, "tls reload: connections and handshakes that run are not touched") {
  tls_context context(server_tls());
  test_server server(echo, one_core(), over_tls(context));
  tls_client open(server.where());
  open.handshake();
  tls_client begun(server.where());
  const std::string hello = begun.handshake_step();
  begun.socket().send_all(hello);
  REQUIRE(begun.receive());
  tls_client accepted(server.where());
  CHECK(eventually([&] { return server.total().active == 3; }));
  const certificate other = authority().issue("other", {"localhost"});
  context.reload(server_tls(other));
  context.reload(server_tls(other));
  for (tls_client* peer : {&open, &begun, &accepted}) {
    if (peer != &open) peer->handshake();
    peer->send_all("x");
    CHECK(peer->recv_exactly(1) == "x");
    CHECK(peer->peer_sha256() == authority().localhost.sha256());
  }
  tls_client fresh(server.where());
  CHECK(fresh.handshake().peer_sha256() == other.sha256());
}

TEST_CASE_FIXTURE(clean_process, "tls reload: other options apply from then on, and tickets stay good") {
  tls_context context(server_tls());
  test_server server(tell_core, one_core(), over_tls(context));
  const visit first = visited(server.where(), tls_profile());
  tls_options options = server_tls();
  options.alpn = {"new"};
  options.max_version = tls_version::v1_3;
  options.min_version = tls_version::v1_3;
  context.reload(options);
  CHECK(visited(server.where(), tls_profile(), first.ticket).resumed);
  tls_client_options how;
  how.alpn = {"new"};
  CHECK(tls_client(server.where(), tls_profile(how)).handshake().alpn() == "new");
  how.max_version = TLS1_2_VERSION;
  CHECK_THROWS_AS(tls_client(server.where(), tls_profile(how)).handshake(), tls_went_wrong);
}

TEST_CASE_FIXTURE(clean_process, "tls reload: from several threads at a time") {
  const certificate other = authority().issue("other", {"localhost"});
  tls_context context(server_tls());
  test_server server(tell_core, all_cores(), over_tls(context));
  std::vector<std::jthread> threads;
  for (int i = 0; i < 3; ++i) {
    threads.emplace_back([&context, &other, i] {
      for (int round = 0; round < 10; ++round) {
        context.reload(i == 0 ? server_tls(other) : server_tls());
        context.rotate_ticket_keys();
        context.reload();
      }
    });
  }
  const tls_profile how;
  for (int i = 0; i < 30; ++i) (void)visited(server.where(), how);
  threads.clear();
  CHECK(tls_failures(server.total()) == 0);
}

}  // namespace
}  // namespace percore::test
