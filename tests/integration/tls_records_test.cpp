// Records in every company and cut: what a reader is given of them, and what it is told at the end.
#include <doctest/doctest.h>

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <sys/socket.h>

#include <initializer_list>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "tests/support/clean_process.hpp"
#include "tests/support/forged_records.hpp"
#include "tests/support/test_server.hpp"
#include "tests/support/tls_server.hpp"

namespace percore::test {
namespace {

using namespace std::string_literals;

const std::string close_notify("\x01\x00", 2);
const std::string fatal_alert("\x02\x14", 2);             // bad_record_mac
const std::string user_canceled("\x01\x5a", 2);           // a warning
const std::string key_update("\x18\x00\x00\x01\x00", 5);  // of the peer's own sending (RFC 8446 4.6.3)
const std::string client_hello(std::string("\x01\x00\x00\x40", 4) + std::string(64, 'x'));

// What handlers have seen: all bytes, then the error.
std::string told(std::string text, std::error_code error, std::string_view reason) {
  text += " | ";
  text += error == errc::tls_failed      ? reason
          : error == errc::end_of_stream ? "end"
          : error == errc::truncated     ? "truncated"
                                         : error.message();
  return text;
}

// An OpenSSL error of the handler's own making, which it does not care for.
void leave_error() {
  ERR_raise(ERR_LIB_USER, ERR_R_INTERNAL_ERROR);
}

// Made from the left to the right, as + does not promise: the records are numbered.
std::string joined(std::initializer_list<std::string> parts) {
  std::string all;
  for (const std::string& each : parts) all += each;
  return all;
}

struct sequence {
  std::string name;
  std::string records;
  std::string expected;
};

// Everything that one connection may send, with the handler's view of it.
std::vector<sequence> sequences(int version, forged_records& forge, std::string_view wanted) {
  const bool old_version = version == TLS1_2_VERSION;
  const auto data = [&](std::string_view text) { return forge.make(record_type::application_data, text); };
  const auto alert = [&](const std::string& text) { return forge.make(record_type::alert, text); };
  const auto message = [&](const std::string& text) { return forge.make(record_type::handshake, text); };
  std::vector<sequence> all;
  // Only the wanted one draws numbers for its records.
  const auto add = [&](const char* name, const auto& make, const std::string& expected) {
    all.push_back({name, name == wanted ? make() : std::string(), expected});
  };
  add(
      "data, close_notify",
      [&] {
        return joined({data("one"), alert(close_notify)});
      },
      "one | end");
  add(
      "close_notify, data",
      [&] {
        return joined({data("one"), alert(close_notify), data("two")});
      },
      "one | end");
  add(
      "fatal alert", [&] { return alert(fatal_alert); }, " | sslv3 alert bad record mac");
  add(
      "data, fatal alert",
      [&] {
        return joined({data("one"), data("two"), alert(fatal_alert)});
      },
      "onetwo | sslv3 alert bad record mac");
  add(
      "data, end", [&] { return data("one"); }, "one | truncated");
  add(
      "nothing, end", [&] { return ""s; }, " | truncated");
  add(
      "half a record, end",
      [&] {
        const std::string whole = data("one");
        return joined({whole, data("two").substr(0, 20)});
      },
      "one | truncated");
  add(
      "one byte of a record, end",
      [&] {
        return joined({data("one"), data("two").substr(0, 1)});
      },
      "one | truncated");
  add(
      "empty records",
      [&] {
        return joined({data(""), data("one"), data(""), data("two"), data(""), alert(close_notify)});
      },
      "onetwo | end");
  add(
      "a warning",
      [&] {
        return joined({data("one"), alert(user_canceled), data("two"), alert(close_notify)});
      },
      "onetwo | end");
  add(
      "an unknown message",
      [&] {
        return joined({data("one"), message("\x63\x00\x00\x01\x00"s)});
      },
      "one | unexpected message");
  if (old_version) {
    add(
        "renegotiation",
        [&] {
          return joined({data("one"), message(client_hello), data("two"), alert(close_notify)});
        },
        "onetwo | end");
  } else {
    add(
        "a ClientHello",
        [&] {
          return joined({data("one"), message(client_hello)});
        },
        "one | unexpected message");
    add(
        "an empty message",
        [&] {
          return joined({data("one"), message("")});
        },
        "one | bad length");
    add(
        "half a message, end",
        [&] {
          return joined({data("one"), message(key_update.substr(0, 4))});
        },
        "one | truncated");
    add(
        "half a message, other data",
        [&] {
          return joined({data("one"), message(key_update.substr(0, 4)), data("two")});
        },
        "one | unexpected record");
    add(
        "half a message, a changed record",
        [&] {
          std::string records = joined({data("one"), message(key_update.substr(0, 4)), message(key_update.substr(4))});
          records.back() = static_cast<char>(records.back() ^ 1);
          return records;
        },
        "one | decryption failed or bad record mac");
    add(
        "half a message, fatal alert",
        [&] {
          return joined({data("one"), message(key_update.substr(0, 4)), alert(fatal_alert)});
        },
        "one | sslv3 alert bad record mac");
    add(
        "half a message, close_notify",
        [&] {
          return joined({data("one"), message(key_update.substr(0, 4)), alert(close_notify)});
        },
        "one | end");
  }
  return all;
}

task<> read_all(connection& conn, channel<std::string>& seen) {
  std::string text;
  while (auto data = co_await conn.read()) {
    text += data.text();
    leave_error();
  }
  seen.put(told(text, conn.error(), conn.tls_error()));
}

void read_all(blocking_connection& conn, channel<std::string>& seen) {
  std::string text;
  leave_error();
  while (auto data = conn.read()) {
    text += data.text();
    leave_error();
  }
  seen.put(told(text, conn.error(), conn.tls_error()));
}

// All of them in one segment, and a byte at a time with another connection's records between.
template <class Server>
void try_all(Server& server, channel<std::string>& seen) {
  for (const int version : {TLS1_2_VERSION, TLS1_3_VERSION}) {
    std::vector<std::string> names;
    {
      tls_client unused(server.where(), forgeable_profile(version));
      unused.handshake();
      forged_records forge(unused);
      for (const sequence& each : sequences(version, forge, "")) names.push_back(each.name);
      unused.socket().half_close();
      CHECK(seen.take() == " | truncated");
    }
    for (const std::string& name : names) {
      for (const bool bytewise : {false, true}) {
        CAPTURE(version);
        CAPTURE(name);
        CAPTURE(bytewise);
        const tls_profile profile = forgeable_profile(version);
        tls_client peer(server.where(), profile);
        peer.handshake();
        forged_records forge(peer);
        sequence chosen;
        for (sequence& each : sequences(version, forge, name)) {
          if (each.name == name) chosen = std::move(each);
        }
        const std::size_t part = bytewise ? 1 : chosen.records.size();
        const int on = 1;
        REQUIRE(::setsockopt(peer.socket().fd(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) == 0);
        try {
          std::string_view rest = chosen.records;
          for (; !rest.empty(); rest.remove_prefix(part)) peer.socket().send_all(rest.substr(0, part));
          peer.socket().half_close();
        } catch (const std::system_error&) {
          ;  // the server has ended the connection already
        }
        CHECK(seen.take() == chosen.expected);
      }
    }
  }
}

TEST_CASE_FIXTURE(clean_process, "tls records: every end, with what comes before it") {
  channel<std::string> seen;
  SUBCASE("a coroutine") {
    test_server server([&](connection& conn) -> task<> { return read_all(conn, seen); }, one_core(), over_tls());
    try_all(server, seen);
  }
  SUBCASE("a blocking handler") {
    test_server server(blocking([&](blocking_connection& conn) { read_all(conn, seen); }), one_core(), over_tls());
    try_all(server, seen);
  }
}

TEST_CASE_FIXTURE(clean_process,
                  "tls records: nothing can be written between two parts of a message of the handshake") {
  channel<std::string> seen;
  test_server server(
      [&](connection& conn) -> task<> {
        leave_error();
        const auto data = co_await conn.read();
        CHECK(data.text() == "one");
        leave_error();
        const bool written = co_await conn.write("answer");
        seen.put(written ? "written" : std::string(conn.tls_error()));
      },
      one_core(), over_tls());
  tls_client peer(server.where(), forgeable_profile(TLS1_3_VERSION));
  peer.handshake();
  forged_records forge(peer);
  const std::string one = forge.make(record_type::application_data, "one");
  peer.socket().send_all(one + forge.make(record_type::handshake, key_update.substr(0, 4)));
  CHECK(seen.take() == "the peer has sent a part of a handshake message only");
  CHECK(eventually([&] { return server.total().tls_failed_records == 1; }));
}

}  // namespace
}  // namespace percore::test
