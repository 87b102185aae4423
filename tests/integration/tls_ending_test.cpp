// How connections end, over plain sockets, TLS 1.2 and TLS 1.3: cleanly, cut short, by a reset or a timeout.
#include <doctest/doctest.h>

#include <array>
#include <atomic>
#include <chrono>
#include <string>

#include "tests/support/clean_process.hpp"
#include "tests/support/every_wire.hpp"

namespace percore::test {
namespace {

using namespace std::chrono_literals;

TEST_CASE_FIXTURE(clean_process, "tls ending: the server's end is a clean one") {
  over_every_wire([](const wire& over) {
    std::atomic<bool> go_on = false;
    char kind = 'r';
    SUBCASE("by returning") {
      kind = 'r';
    }
    SUBCASE("by close()") {
      kind = 'c';
    }
    SUBCASE("by write_last()") {
      kind = 'l';
    }
    SUBCASE("by shutdown_write()") {
      kind = 's';
    }
    test_server server(
        [&](connection& conn) -> task<> {
          if (kind == 'l') {
            co_await conn.write_last("bye");
          } else {
            co_await conn.write("bye");
          }
          if (kind == 'c') conn.close();
          if (kind == 's') conn.shutdown_write();
          if (kind != 'r') co_await until(conn, go_on);  // its end does not wait for the handler's
        },
        one_core(), over.listening());
    any_client peer = over.connect(server);
    CHECK(all_of(peer) == "bye");
    go_on = true;
  });
}

TEST_CASE_FIXTURE(clean_process, "tls ending: reading goes on after shutdown_write") {
  over_every_wire([](const wire& over) {
    channel<std::string> seen;
    const std::string text = numbered_text(1'000'000);
    test_server server(
        [&](connection& conn) -> task<> {
          co_await conn.write(text);
          conn.shutdown_write();
          const bool later = co_await conn.write("later");
          seen.put(later ? "sent" : conn.error() == errc::closed ? "closed" : conn.error().message());
          while (auto data = co_await conn.read_until("\n", 100)) seen.put(std::string(data.text()));
          seen.put(conn.error() == errc::end_of_stream ? "end" : conn.error().message());
        },
        one_core(), over.listening(small_send_buffer()));
    any_client peer = over.connect(server, 4096);
    CHECK((all_of(peer) == text));
    CHECK(seen.take() == "closed");
    peer.send_all("one\n");
    CHECK(seen.take() == "one\n");
    peer.send_all("two\n");
    CHECK(seen.take() == "two\n");
    peer.half_close();
    CHECK(seen.take() == "end");
  });
}

TEST_CASE_FIXTURE(clean_process,
                  "tls ending: shutdown_write while a write waits ends the stream after its last byte") {
  over_every_wire([](const wire& over) {
    const std::string text = numbered_text(1'000'000);
    channel<connection_handle> handles;
    channel<bool> result;
    test_server server(
        [&](connection& conn) -> task<> {
          handles.put(conn.handle());
          const bool all = co_await conn.write(text);
          result.put(all);
          co_await conn.read();
        },
        one_core(), over.listening(small_send_buffer()));
    any_client peer = over.connect(server, 4096);
    const std::string start = peer.recv_exactly(1);
    event done;
    CHECK(handles.take().post([&](connection& conn) {
      conn.shutdown_write();
      done.set();
    }) == post_result::posted);
    done.wait();
    CHECK((start + all_of(peer) == text));
    CHECK(result.take());
  });
}

TEST_CASE_FIXTURE(clean_process, "tls ending: writing goes on after the peer's half-close") {
  over_every_wire([](const wire& over) {
    const std::string text = numbered_text(1'000'000);
    channel<std::error_code> end;
    test_server server(
        [&](connection& conn) -> task<> {
          while (co_await conn.read()) continue;
          end.put(conn.error());
          co_await conn.write(text);
        },
        one_core(), over.listening(small_send_buffer()));
    any_client peer = over.connect(server);
    peer.send_all("question");
    peer.half_close();
    CHECK(end.take() == errc::end_of_stream);
    CHECK((all_of(peer) == text));
  });
}

TEST_CASE_FIXTURE(clean_process,
                  "tls ending: a FIN without close_notify is a truncation, in every kind of read") {
  for (const char kind : {'r', 'f', 'u', 't'}) {
    CAPTURE(kind);
    channel<std::error_code> end;
    test_server server(
        [&](connection& conn) -> task<> {
          std::array<std::byte, 10> target;
          if (kind == 'r') {
            while (co_await conn.read()) continue;
          }
          if (kind == 'f') co_await conn.read_full(target);
          if (kind == 'u') co_await conn.read_until("\n", 100);
          if (kind == 't') {
            while (co_await conn.read(target) != 0) continue;
          }
          end.put(conn.error());
          co_await conn.read_full(target);  // what is left of it, and the same answer again
          end.put(conn.error());
        },
        one_core(), over_tls());
    tls_client peer(server.where());
    peer.handshake();
    peer.send_all("half");
    peer.socket().half_close();
    CHECK(end.take() == errc::truncated);
    CHECK(end.take() == errc::truncated);
    CHECK(server.total().tls_truncated == 1);
  }
}

TEST_CASE_FIXTURE(clean_process, "tls ending: what follows the peer's close_notify is not read") {
  channel<std::string> seen;
  test_server server(
      [&](connection& conn) -> task<> {
        while (auto data = co_await conn.read()) seen.put(std::string(data.text()));
        seen.put(conn.error() == errc::end_of_stream ? "end" : conn.error().message());
        co_await conn.write("answer");
      },
      one_core(), over_tls());
  tls_client peer(server.where());
  peer.handshake();
  peer.send_all("text");
  CHECK(seen.take() == "text");
  peer.close_notify();
  peer.socket().send_all("anything at all");  // no FIN
  CHECK(seen.take() == "end");
  CHECK(peer.recv_to_end() == "answer");
  CHECK(peer.close_received());
}

TEST_CASE_FIXTURE(clean_process, "tls ending: resets on both sides are resets") {
  over_every_wire([](const wire& over) {
    channel<std::error_code> end;
    test_server server(
        [&](connection& conn) -> task<> {
          auto data = co_await conn.read();
          if (data) {
            conn.reset();
          } else {
            end.put(conn.error());
          }
        },
        one_core(), over.listening());
    {
      any_client peer = over.connect(server);
      CHECK(eventually([&] { return server.total().accepted == 1; }));
      peer.socket().reset();
      CHECK(end.take() == errc::connection_reset);
    }
    any_client peer = over.connect(server);
    peer.send_all("reset, please");
    CHECK(peer.socket().wait_for_end() == ending::reset);
  });
}

TEST_CASE_FIXTURE(clean_process, "tls ending: records that are not good end the connection and no other") {
  channel<std::string> seen;
  test_server server(
      [&](connection& conn) -> task<> {
        while (auto data = co_await conn.read()) {
          if (!co_await conn.write(data)) break;
        }
        seen.put(conn.error() == errc::tls_failed ? std::string(conn.tls_error()) : conn.error().message());
      },
      one_core(), over_tls());
  tls_client other(server.where());
  other.handshake();
  tls_client peer(server.where());
  peer.handshake();
  peer.send_all("good");
  CHECK(peer.recv_exactly(4) == "good");
  std::string bad = peer.encrypt("changed on its way");
  std::string reason;
  SUBCASE("a changed byte") {
    bad.back() = static_cast<char>(bad.back() ^ 1);
    reason = "decryption failed or bad record mac";
  }
  SUBCASE("a record over the limit") {
    bad[3] = bad[4] = '\xff';
    reason = "packet length too long";
  }
  SUBCASE("plain text") {
    bad = "plain text";
    reason = "wrong version number";
  }
  peer.socket().send_all(bad);
  const std::string told = seen.take();
  if (reason != "wrong version number") CHECK(told == reason);
  CHECK_FALSE(told.empty());
  std::string alert;
  try {
    peer.recv_to_end();
  } catch (const tls_went_wrong& wrong) {
    alert = wrong.what();
  }
  CHECK(alert.find("alert") != std::string::npos);
  CHECK(server.total().tls_failed_records == 1);
  other.send_all("still here");
  CHECK(other.recv_exactly(10) == "still here");
}

TEST_CASE_FIXTURE(clean_process, "tls ending: an alert of the peer is told") {
  channel<std::string> seen;
  test_server server(
      [&](connection& conn) -> task<> {
        co_await conn.read();
        seen.put(conn.error() == errc::tls_failed ? std::string(conn.tls_error()) : conn.error().message());
      },
      one_core(), over_tls());
  tls_client peer(server.where());
  peer.handshake();
  peer.socket().send_all("");
  // Something that this client's own OpenSSL will not take: it answers with an alert.
  BIO_write(SSL_get_rbio(peer.ssl()), "\x17\x03\x03\x00\x20xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx", 37);
  CHECK_THROWS_AS(peer.recv_some(), tls_went_wrong);
  CHECK(seen.take() == "sslv3 alert bad record mac");
}

// --- timeouts ----------------------------------------------------------------------------------------------

TEST_CASE_FIXTURE(clean_process, "tls ending: read, idle, write and lifetime timeouts") {
  over_every_wire([](const wire& over) {
    const std::string text = numbered_text(4'000'000);
    listen_options options = small_send_buffer();
    char kind = 'r';
    SUBCASE("read") {
      options.read_timeout = 50ms;
    }
    SUBCASE("idle") {
      options.idle_timeout = 50ms;
    }
    SUBCASE("lifetime in a read") {
      options.lifetime_timeout = 300ms;
    }
    SUBCASE("write") {
      options.write_timeout = 50ms;
      kind = 'w';
    }
    SUBCASE("lifetime in a write") {
      options.lifetime_timeout = 300ms;
      kind = 'w';
    }
    channel<std::error_code> end;
    test_server server(
        [&](connection& conn) -> task<> {
          if (kind == 'r') co_await conn.read();
          if (kind == 'w') co_await conn.write(text);
          end.put(conn.error());
        },
        one_core(), over.listening(options));
    any_client peer = over.connect(server, 4096);
    if (kind == 'r' && over.encrypted()) {
      // A part of a record is no progress for the handler.
      const std::string record = peer.encrypt("never whole");
      peer.socket().send_all(std::string_view(record).substr(0, 7));
    }
    CHECK(end.take() == errc::timed_out);
    CHECK(server.total().timeouts == 1);
  });
}

TEST_CASE_FIXTURE(clean_process, "tls ending: a close never waits longer than its deadline for a peer") {
  over_every_wire([](const wire& over) {
    const std::string text = numbered_text(60'000);
    listen_options options = small_send_buffer();
    options.close_timeout = 50ms;
    test_server server(
        [&](connection& conn) -> task<> {
          conn.try_write(text);
          co_return;
        },
        one_core(), over.listening(options));
    any_client peer = over.connect(server, 4096);
    CHECK(eventually([&] { return server.total().accepted == 1 && server.total().active == 0; }));
    CHECK(peer.socket().wait_for_end() == ending::reset);
  });
}

TEST_CASE_FIXTURE(clean_process, "tls ending: a shutdown of the server ends idle connections cleanly") {
  over_every_wire([](const wire& over) {
    test_server server(echo, one_core(), over.listening());
    any_client idle = over.connect(server);
    idle.send_all("x");
    CHECK(idle.recv_exactly(1) == "x");
    server->shutdown();
    CHECK(all_of(idle).empty());
  });
}

TEST_CASE_FIXTURE(clean_process, "tls ending: an empty last write says goodbye at once, and reading goes on") {
  test_server server(
      [](connection& conn) -> task<> {
        const alive frame;
        CHECK(co_await conn.write_last(bytes_view()));
        while (co_await conn.read()) {
        }
        CHECK(conn.error() == errc::end_of_stream);
      },
      one_core(), over_tls());
  tls_client peer(server.where());
  peer.handshake();
  CHECK(peer.ended_cleanly());
  peer.send_all("still heard");
  peer.half_close();
  CHECK(eventually([&] { return server.total().active == 0; }));
  CHECK(server.total().resets_received == 0);
}

}  // namespace
}  // namespace percore::test
