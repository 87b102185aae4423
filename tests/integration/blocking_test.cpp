// Blocking handlers: every operation, over plain and TLS, and every end.
#include <doctest/doctest.h>

#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "tests/support/certificates.hpp"
#include "tests/support/clean_process.hpp"
#include "tests/support/every_wire.hpp"
#include "tests/support/test_server.hpp"
#include "tests/support/tls_client.hpp"
#include "tests/support/tls_server.hpp"

namespace percore::test {
namespace {

using std::chrono::milliseconds;

void blocking_echo(blocking_connection& conn) {
  while (auto data = conn.read())
    if (!conn.write(data)) break;
}

TEST_CASE_FIXTURE(clean_process, "blocking: an echo of everything, over every wire") {
  over_every_wire([](const wire& over) {
    test_server server(blocking(blocking_echo), one_core(), over.listening());
    any_client peer = over.connect(server);
    const std::string text = numbered_text(300'000);
    for (std::size_t at = 0; at < text.size(); at += 20'000) {
      peer.send_all(text.substr(at, 20'000));
      CHECK(peer.recv_exactly(20'000) == text.substr(at, 20'000));
    }
    peer.half_close();
    CHECK(all_of(peer).empty());
    CHECK(eventually([&] { return server.total().active == 0; }));
    const core_stats stats = server.total();
    CHECK(stats.accepted == 1);
    CHECK(stats.bytes_sent >= text.size());
    CHECK(stats.bytes_received >= text.size());
    CHECK(stats.handler_errors == 0);
    CHECK(stats.tls_handshakes == (over.encrypted() ? 1 : 0));
  });
}

TEST_CASE_FIXTURE(clean_process,
                  "blocking: read_until, read_full, read into memory, unread, pieces and the last write") {
  over_every_wire([](const wire& over) {
    channel<std::string> told;
    test_server server(blocking([&](blocking_connection& conn) {
                         std::string seen;
                         auto line = conn.read_until("\r\n", 100);
                         seen += std::string(line.text()) + "|";
                         std::array<std::byte, 5> five{};
                         CHECK(conn.read_full(five));
                         seen += std::string(reinterpret_cast<const char*>(five.data()), 5) + "|";
                         std::array<std::byte, 3> three{};
                         const std::size_t some = conn.read(std::span<std::byte>(three));
                         seen += std::to_string(some) + "|";
                         auto rest = conn.read_until("!", 1000);
                         seen += std::string(rest.text()) + "|";
                         conn.unread(2);
                         CHECK(conn.buffered_bytes() >= 2);
                         CHECK_THROWS_AS(conn.unread(1000), std::length_error);
                         rest = conn.read_until("!", 1000);
                         seen += std::string(rest.text()) + "|";
                         const std::array<bytes_view, 4> pieces{"one ", "", "two ", ""};
                         CHECK(conn.write(std::span<const bytes_view>(pieces)));
                         CHECK(conn.write_last("three"));
                         CHECK_FALSE(conn.write("four"));
                         CHECK(conn.error() == errc::closed);
                         CHECK_FALSE(conn.read_until("never", 1000));
                         CHECK(conn.error() == errc::end_of_stream);
                         told.put(seen);
                       }),
                       one_core(), over.listening());
    any_client peer = over.connect(server);
    peer.send_all("a line\r\n12345xyz and more!");
    CHECK(all_of(peer) == "one two three");
    peer.half_close();
    CHECK(told.take() == "a line\r\n|12345|3| and more!|e!|");
  });
}

TEST_CASE_FIXTURE(clean_process, "blocking: a delimiter that does not come within the limit") {
  test_server server(blocking([](blocking_connection& conn) {
    CHECK_FALSE(conn.read_until("\n", 4));
    CHECK(conn.error() == errc::limit_exceeded);
    CHECK(conn.read().text() == "12345");
    CHECK_FALSE(conn.read_until("\n", 100));
    CHECK(conn.error() == errc::end_of_stream);
    std::array<std::byte, 8> eight{};
    CHECK_FALSE(conn.read_full(eight));
    CHECK(conn.bytes_of_failed_read() == 3);
    conn.write("ok");
  }));
  client peer = server.connect();
  peer.send_all("12345");
  CHECK(eventually([&] { return server.total().bytes_received == 5; }));
  peer.send_all("678");
  peer.half_close();
  CHECK(peer.recv_to_end() == "ok");
}

TEST_CASE_FIXTURE(
    clean_process,
    "blocking: no helper works for a client that says nothing, unless the server speaks first") {
  SUBCASE("the client speaks first") {
    test_server server(blocking(blocking_echo));
    std::vector<client> silent;
    for (int i = 0; i < 20; ++i) silent.push_back(server.connect());
    CHECK(still_serves(server));
    CHECK(eventually([&] { return server.total().helpers.submitted == 1; }));
    CHECK(server.total().active >= 20);
    silent.clear();
    CHECK(eventually([&] { return server.total().active == 0; }));
    CHECK(server.total().accepted == 1);
  }
  SUBCASE("the server speaks first") {
    test_server server(
        blocking([](blocking_connection& conn) { conn.write("welcome"); }, handler_start::accepted));
    CHECK(server.connect().recv_to_end() == "welcome");
  }
}

TEST_CASE_FIXTURE(clean_process, "blocking: handlers that sleep run side by side") {
  server_options options = one_core();
  options.helpers.most_per_core = 20;
  event inside;
  event go;
  test_server server(blocking(
                         [&](blocking_connection& conn) {
                           inside.set();
                           go.wait();
                           conn.write("x");
                         },
                         handler_start::accepted),
                     options);
  std::vector<client> peers;
  for (int i = 0; i < 20; ++i) peers.push_back(server.connect());
  inside.wait(20);
  go.set();
  for (auto& peer : peers) CHECK(peer.recv_to_end() == "x");
  CHECK(server.total().helpers.most_alive == 20);
}

TEST_CASE_FIXTURE(clean_process, "blocking: an exception closes the connection and is reported") {
  channel<std::string> reported;
  server_options options = one_core();
  options.on_exception = [&](std::exception_ptr exception) {
    try {
      std::rethrow_exception(exception);
    } catch (const std::exception& e) {
      reported.put(e.what());
    }
  };
  test_server server(blocking([](blocking_connection&) { throw std::runtime_error("in a helper"); },
                              handler_start::accepted),
                     options);
  CHECK(server.connect().recv_to_end().empty());
  CHECK(reported.take() == "in a helper");
  CHECK(server.total().handler_errors == 1);
}

TEST_CASE_FIXTURE(clean_process, "blocking: the descriptor is a plain blocking one") {
  test_server server(blocking([](blocking_connection& conn) {
    char text[4];
    std::size_t done = 0;
    while (done < sizeof text) {  // waits in the kernel for each byte
      const ssize_t got = ::read(conn.fd(), text + done, sizeof text - done);
      if (got <= 0) break;
      done += static_cast<std::size_t>(got);
    }
    CHECK(::write(conn.fd(), text, done) == static_cast<ssize_t>(done));
  }));
  client peer = server.connect();
  for (const char* part : {"p", "i", "n", "g"}) {
    peer.send_all(part);
    std::this_thread::sleep_for(milliseconds(1));
  }
  CHECK(peer.recv_to_end() == "ping");
}

// Time
// --------------------------------------------------------------------------------------------------------

TEST_CASE_FIXTURE(clean_process, "blocking: time limits end what takes too long") {
  channel<std::error_code> errors;
  listen_options listening = small_send_buffer();
  server_options options = one_core();
  void (*handler)(blocking_connection&, channel<std::error_code>&) = nullptr;
  SUBCASE("a read") {
    listening.read_timeout = milliseconds(20);
    handler = [](blocking_connection& conn, channel<std::error_code>& told) {
      CHECK_FALSE(conn.read());
      told.put(conn.error());
    };
  }
  SUBCASE("a read of a given length, though bytes trickle in") {
    handler = [](blocking_connection& conn, channel<std::error_code>& told) {
      conn.set_read_timeout(milliseconds(30));
      std::array<std::byte, 1000> much{};
      CHECK_FALSE(conn.read_full(much));
      told.put(conn.error());
    };
  }
  SUBCASE("silence") {
    listening.idle_timeout = milliseconds(20);
    handler = [](blocking_connection& conn, channel<std::error_code>& told) {
      CHECK_FALSE(conn.read());
      told.put(conn.error());
    };
  }
  SUBCASE("a write") {
    listening.write_timeout = milliseconds(20);
    handler = [](blocking_connection& conn, channel<std::error_code>& told) {
      const std::string much(4'000'000, 'x');
      CHECK_FALSE(conn.write(much));
      told.put(conn.error());
    };
  }
  SUBCASE("the handler's own deadline") {
    handler = [](blocking_connection& conn, channel<std::error_code>& told) {
      conn.set_deadline(std::chrono::steady_clock::now() + milliseconds(20));
      CHECK_FALSE(conn.read());
      CHECK_FALSE(conn.read());
      told.put(conn.error());
    };
  }
  SUBCASE("the lifetime") {
    listening.lifetime_timeout = milliseconds(30);
    handler = [](blocking_connection& conn, channel<std::error_code>& told) {
      CHECK_FALSE(conn.read());
      CHECK_FALSE(conn.write("x"));
      told.put(conn.error());
    };
  }
  SUBCASE("the lifetime, in a read of the handler's own") {
    listening.lifetime_timeout = milliseconds(30);
    handler = [](blocking_connection& conn, channel<std::error_code>& told) {
      char byte = 0;
      CHECK(::read(conn.fd(), &byte, 1) <= 0);
      CHECK_FALSE(conn.read());
      told.put(conn.error());
    };
  }
  test_server server(
      blocking([&](blocking_connection& conn) { handler(conn, errors); }, handler_start::accepted), options,
      listening);
  client::options small;
  small.receive_buffer_bytes = 4096;
  client peer(server.where(), small);
  CHECK(errors.take() == errc::timed_out);
  CHECK(eventually([&] { return server.total().active == 0; }));
  CHECK(server.total().timeouts >= 1);
}

TEST_CASE_FIXTURE(clean_process, "blocking: a deadline that is over fails calls that need not wait, until moved") {
  over_every_wire([](const wire& over) {
    event served;
    test_server server(blocking([&](blocking_connection& conn) {
                         using clock = std::chrono::steady_clock;
                         CHECK(conn.read_until("|", 100));
                         const std::size_t buffered = conn.buffered_bytes();
                         CHECK(buffered != 0);
                         conn.set_deadline(clock::now());
                         std::array<std::byte, 2> two{};
                         CHECK_FALSE(conn.read());
                         CHECK(conn.error() == errc::timed_out);
                         CHECK_FALSE(conn.read_until("|", 100));
                         CHECK(conn.read(std::span<std::byte>(two)) == 0);
                         CHECK_FALSE(conn.read_full(two));
                         CHECK_FALSE(conn.write("never"));
                         CHECK(conn.error() == errc::timed_out);
                         CHECK(conn.buffered_bytes() == buffered);
                         conn.set_deadline(clock::time_point::max());
                         CHECK(conn.read_until("|", 100).text() == "second|");
                         CHECK(conn.write("answer"));
                         served.set();
                       }),
                       one_core(), over.listening());
    any_client peer = over.connect(server);
    peer.send_all("first|second|");
    CHECK(all_of(peer) == "answer");
    served.wait();
    CHECK(eventually([&] { return server.total().timeouts == 5; }));
  });
}

TEST_CASE_FIXTURE(clean_process, "blocking: what a served connection receives does not wake its core") {
  test_server server(blocking(blocking_echo));
  client peer = server.connect();
  CHECK(eventually([&] { return server.total().active == 1; }));
  CHECK(still_serves(server));  // in a later turn: the first one is registered with epoll
  peer.send_all("x");
  CHECK(peer.recv_exactly(1) == "x");
  const std::uint64_t before = server.total().wakeups;
  for (int i = 0; i < 300; ++i) {
    peer.send_all("x");
    CHECK(peer.recv_exactly(1) == "x");
  }
  CHECK(server.total().wakeups - before < 100);
}

TEST_CASE_FIXTURE(clean_process,
                  "blocking: a client that never speaks runs into the read timeout, on the core") {
  listen_options listening;
  ending expected = ending::fin;
  SUBCASE("of reading") {
    listening.read_timeout = milliseconds(20);
  }
  SUBCASE("of silence") {
    listening.idle_timeout = milliseconds(20);
  }
  SUBCASE("of its lifetime") {
    listening.lifetime_timeout = milliseconds(20);
    expected = ending::reset;
  }
  test_server server(blocking(blocking_echo), one_core(), listening);
  client peer = server.connect();
  CHECK(peer.wait_for_end() == expected);
  CHECK(server.total().timeouts == 1);
  CHECK(server.total().helpers.submitted == 0);
}

// Ends
// --------------------------------------------------------------------------------------------------------

TEST_CASE_FIXTURE(clean_process, "blocking: reset, and the peer's reset") {
  SUBCASE("ours, while the handler goes on") {
    event ended;
    test_server server(blocking(
        [&](blocking_connection& conn) {
          conn.reset();
          ended.wait();
          CHECK_FALSE(conn.read());
          CHECK_FALSE(conn.write("x"));
          CHECK(conn.error() == errc::closed);
        },
        handler_start::accepted));
    client peer = server.connect();
    CHECK(peer.wait_for_end() == ending::reset);
    ended.set();
  }
  SUBCASE("the peer's") {
    channel<std::error_code> errors;
    test_server server(blocking([&](blocking_connection& conn) {
      while (conn.read()) {
      }
      errors.put(conn.error());
    }));
    client peer = server.connect();
    peer.send_all("x");
    CHECK(eventually([&] { return server.total().bytes_received == 1; }));
    peer.reset();
    CHECK(errors.take() == errc::connection_reset);
    CHECK(eventually([&] { return server.total().resets_received == 1; }));
  }
}

TEST_CASE_FIXTURE(clean_process,
                  "blocking: a shutdown lets messages finish and wakes readers that wait for a new one") {
  over_every_wire([](const wire& over) {
    channel<std::error_code> errors;
    event in_message;
    test_server server(blocking([&](blocking_connection& conn) {
                         while (auto line = conn.read_until("\n", 100)) {
                           std::array<std::byte, 4> body{};
                           in_message.set();
                           if (!conn.read_full(body) || !conn.write("done")) break;
                         }
                         errors.put(conn.error());
                       }),
                       one_core(), over.listening());
    any_client idle = over.connect(server);
    idle.send_all("head\nbody");
    CHECK(idle.recv_exactly(4) == "done");
    any_client busy = over.connect(server);
    busy.send_all("head\nbo");
    in_message.wait(2);
    CHECK(eventually([&] { return server.total().bytes_received >= 16; }));
    server->begin_shutdown();
    CHECK(errors.take() == errc::shutting_down);
    CHECK(all_of(idle).empty());
    busy.send_all("dy");
    CHECK(busy.recv_exactly(4) == "done");
    CHECK(errors.take() == errc::shutting_down);
    CHECK(all_of(busy).empty());
    server->wait();
  });
}

TEST_CASE_FIXTURE(clean_process,
                  "blocking: a shutdown closes clients that have not spoken, and serves those that have") {
  server_options options = one_core();
  options.helpers.most_per_core = 1;
  event inside;
  event go;
  test_server server(blocking([&](blocking_connection& conn) {
                       auto text = conn.read();
                       inside.set();
                       go.wait();
                       conn.write(text);
                     }),
                     options);
  client first = server.connect();
  first.send_all("first");
  inside.wait();
  client queued = server.connect();
  queued.send_all("queued");
  client silent = server.connect();
  CHECK(eventually([&] { return server.total().active == 3 && server.total().helpers.queued == 1; }));
  server->begin_shutdown();
  CHECK(silent.recv_some().empty());
  go.set();
  CHECK(first.recv_to_end() == "first");
  CHECK(queued.recv_to_end() == "queued");
  server->wait();
}

TEST_CASE_FIXTURE(clean_process, "blocking: a halt and the end of a grace wake handlers out of every wait") {
  channel<std::error_code> errors;
  event inside;
  void (*handler)(blocking_connection&) = nullptr;
  SUBCASE("a read") {
    handler = [](blocking_connection& conn) {
      std::array<std::byte, 10> much{};
      CHECK_FALSE(conn.read_full(much));
    };
  }
  SUBCASE("a write") {
    handler = [](blocking_connection& conn) {
      const std::string much(4'000'000, 'x');
      CHECK_FALSE(conn.write(much));
    };
  }
  bool by_hand = false;
  SUBCASE("a read of its own") {
    by_hand = true;  // under which the kernel may not let a connection be reset
    handler = [](blocking_connection& conn) {
      char byte = 0;
      while (::read(conn.fd(), &byte, 1) > 0) {
      }
      CHECK_FALSE(conn.write("x"));
    };
  }
  for (const bool by_grace : {false, true}) {
    test_server server(blocking([&](blocking_connection& conn) {
                         inside.set();
                         handler(conn);
                         errors.put(conn.error());
                       }),
                       one_core(), small_send_buffer());
    client::options small;
    small.receive_buffer_bytes = 4096;
    client peer(server.where(), small);
    peer.send_all("x");
    inside.wait(by_grace ? 2 : 1);
    if (by_grace) {
      server->shutdown(milliseconds(1));
    } else {
      server->halt();
    }
    CHECK(errors.take() == errc::shutting_down);
    CHECK((peer.wait_for_end() == ending::reset || by_hand));
    CHECK(server.total().active == 0);
    CHECK(server.total().halted == 1);
  }
}

TEST_CASE_FIXTURE(clean_process,
                  "blocking: a handler that never returns is reported, and halt does not hang on it") {
  server_options options = one_core();
  options.helpers.patience = milliseconds(20);
  const std::size_t threads = running_threads();
  channel<stuck_helper> reports;
  options.helpers.on_stuck = [&](const stuck_helper& report) { reports.put(report); };
  struct late {
    event inside;
    event go;
    std::atomic<bool> told{false};
  };
  // Nothing orders the thread that comes back late before the end of this test.
  static auto& state = *new late;
  {
    test_server server(blocking(
                           [](blocking_connection& conn) {
                             state.inside.set();
                             state.go.wait();
                             const bool written = conn.write("x");  // its memory is still there
                             state.told = !written && conn.error() == errc::shutting_down;
                           },
                           handler_start::accepted),
                       options);
    client peer = server.connect();
    state.inside.wait();
    server->halt();
    const stuck_helper report = reports.take();
    CHECK(report.serves_connection);
    CHECK(report.peer == peer.local_address());
    (void)peer.wait_for_end();
  }
  state.go.set();
  CHECK(eventually([&] { return running_threads() <= threads; }));
  CHECK(state.told);
}

TEST_CASE_FIXTURE(clean_process, "blocking: who halts again and again does not wait longer for a stuck handler") {
  server_options options = one_core();
  options.helpers.patience = milliseconds(300);
  event reported;
  event inside;
  static auto& go = *new event;
  const std::size_t threads = running_threads();
  options.helpers.on_stuck = [&](const stuck_helper&) { reported.set(); };
  {
    test_server server(blocking(
                           [&](blocking_connection&) {
                             inside.set();
                             go.wait();
                           },
                           handler_start::accepted),
                       options);
    client peer = server.connect();
    inside.wait();
    // On a core's thread halt() only begins.
    const auto halt = [&] { server->halt(); };
    CHECK(eventually([&] { return server->post(0, halt) == post_result::stopped; }));
    reported.wait();
    server->wait();
  }
  go.set();
  CHECK(eventually([&] { return running_threads() <= threads; }));
}

TEST_CASE_FIXTURE(clean_process, "blocking: a full queue makes connections wait, or resets them, as chosen") {
  server_options options = one_core();
  options.helpers.most_per_core = 1;
  options.helpers.queue = 2;
  bool refuse = false;
  SUBCASE("wait") {}
  SUBCASE("refuse") {
    refuse = true;
    options.helpers.at_full = full_queue::refuse;
  }
  event inside;
  event go;
  test_server server(blocking([&](blocking_connection& conn) {
                       inside.set();
                       go.wait();
                       auto text = conn.read();
                       conn.write(text);
                     }),
                     options);
  std::vector<client> peers;
  for (int i = 0; i < 6; ++i) {
    peers.push_back(server.connect());
    peers.back().send_all("x");
    if (i == 0) inside.wait();
  }
  CHECK(eventually([&] { return server.total().helpers.full == 3; }));
  if (refuse) {
    int resets = 0;
    CHECK(eventually([&] { return server.total().active == 3; }));
    go.set();
    for (auto& peer : peers) resets += peer.wait_for_end() == ending::reset ? 1 : 0;
    CHECK(resets == 3);
  } else {
    go.set();
    for (auto& peer : peers) CHECK(peer.recv_to_end() == "x");
  }
}

// TLS
// ---------------------------------------------------------------------------------------------------------

TEST_CASE_FIXTURE(clean_process, "blocking: start_tls, with what was sent behind the command refused") {
  const tls_context context(server_tls());
  test_server server(blocking([&](blocking_connection& conn) {
    const auto command = conn.read_until("\n", 100);
    CHECK(command.text() == "STARTTLS\n");
    if (conn.buffered_bytes() == 0) conn.write("go\n");
    if (!conn.start_tls(context)) {
      CHECK(conn.error() == errc::plaintext_injected);
      conn.write("refused");
      return;
    }
    CHECK(conn.tls());
    blocking_echo(conn);
  }));
  SUBCASE("done") {
    client peer = server.connect();
    peer.send_all("STARTTLS\n");
    CHECK(peer.recv_until("\n") == "go\n");
    tls_client secure(std::move(peer), tls_profile(), {});
    secure.handshake();
    secure.send_all("secret");
    CHECK(secure.recv_exactly(6) == "secret");
    secure.half_close();
    CHECK(secure.recv_to_end().empty());
  }
  SUBCASE("refused") {
    client peer = server.connect();
    peer.send_all("STARTTLS\nEVIL");
    CHECK(peer.recv_to_end() == "refused");
  }
}

TEST_CASE_FIXTURE(clean_process, "blocking: a handshake that is none, or never ends, fails and is counted") {
  listen_options listening = over_tls(server_tls());
  channel<tls_failure> causes;
  server_options options = one_core();
  options.on_tls_failure = [&](tls_failure cause, std::string_view, const address&) { causes.put(cause); };
  SUBCASE("plain HTTP") {
    test_server server(blocking(blocking_echo), options, listening);
    client peer = server.connect();
    peer.send_all("GET / HTTP/1.1\r\n\r\n");
    CHECK(causes.take() == tls_failure::plain_http);
    (void)peer.wait_for_end();
    CHECK(server.total().tls_failed_plain_http == 1);
  }
  SUBCASE("half a record") {
    listening.handshake_timeout = milliseconds(20);
    test_server server(blocking(blocking_echo), options, listening);
    client peer = server.connect();
    peer.send_all("\x16\x03\x01");
    CHECK(causes.take() == tls_failure::timed_out);
    (void)peer.wait_for_end();
  }
  SUBCASE("half a record, without a limit of its own, in a shutdown") {
    listening.handshake_timeout = milliseconds(0);
    test_server server(blocking(blocking_echo), options, listening);
    client peer = server.connect();
    peer.send_all("\x16\x03\x01");
    CHECK(eventually([&] { return server.total().bytes_received == 3; }));
    server->begin_shutdown();
    CHECK(causes.take() == tls_failure::timed_out);  // server::shutdown says when
    (void)peer.wait_for_end();
  }
  SUBCASE("a client that goes away") {
    test_server server(blocking(blocking_echo), options, listening);
    {
      client peer = server.connect();
      peer.send_all("\x16\x03\x01");
    }
    CHECK(causes.take() == tls_failure::peer_gone);
  }
}

TEST_CASE_FIXTURE(clean_process, "blocking: a client that takes no close_notify keeps no helper") {
  listen_options listening = over_tls(server_tls(), small_send_buffer());
  listening.close_timeout = milliseconds(50);
  test_server server(blocking([](blocking_connection& conn) {
                       CHECK(conn.read().text() == "x");
                       const std::string much(4096, 'x');
                       const auto fill = [&] {
                         bool any = false;
                         constexpr int flags = MSG_DONTWAIT | MSG_NOSIGNAL;
                         while (::send(conn.fd(), much.data(), much.size(), flags) > 0) any = true;
                         return any;
                       };
                       // Until the client's kernel takes nothing more, either.
                       while (fill()) std::this_thread::sleep_for(milliseconds(50));
                     }),
                     one_core(), listening);
  client::options small;
  small.receive_buffer_bytes = 4096;
  tls_client peer(server.where(), tls_profile(), {}, small);
  peer.handshake();
  peer.send_all("x");
  CHECK(eventually([&] { return server.total().active == 0; }));
  CHECK(server.total().timeouts == 1);
}

TEST_CASE_FIXTURE(clean_process, "blocking: sessions are resumed whichever helper serves them") {
  server_options options = one_core();
  options.helpers.most_per_core = 4;
  test_server server(blocking(blocking_echo), options, over_tls(server_tls()));
  std::vector<client> holders;
  for (int version : {TLS1_2_VERSION, TLS1_3_VERSION}) {
    tls_client_options how;
    how.min_version = how.max_version = version;
    const tls_profile profile(how);
    session_ptr ticket;
    for (int i = 0; i < 6; ++i) {
      tls_client peer(server.where(), profile, ticket);
      peer.handshake();
      peer.send_all("x");
      CHECK(peer.recv_exactly(1) == "x");
      CHECK(peer.resumed() == (i > 0));
      ticket = peer.ticket();
    }
  }
  CHECK(eventually([&] { return server.total().tls_resumptions == 10; }));
}

TEST_CASE_FIXTURE(clean_process,
                  "blocking: with descriptors of each core's own" * doctest::skip(under_tsan)) {
  server_options options = all_cores();
  options.private_descriptors = true;
  over_every_wire([&](const wire& over) {
    test_server server(blocking(blocking_echo), options, over.listening());
    for (int i = 0; i < 20; ++i) {
      any_client peer = over.connect(server);
      peer.send_all("ping");
      CHECK(peer.recv_exactly(4) == "ping");
    }
    server->shutdown();
  });
}

}  // namespace
}  // namespace percore::test
