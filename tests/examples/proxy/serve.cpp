#include "serve.hpp"

#include <cerrno>
#include <cstdio>
#include <string_view>
#include <utility>

#include "parsers.hpp"

namespace proxy {

namespace {

constexpr std::size_t longest_head = 16 * 1024;
constexpr std::size_t longest_message = 1024;  // of SOCKS: at most 515 bytes are one

// What the access log says of a connection.
struct record {
  const char* kind = "unknown";
  std::string target = "-";
  std::string outcome = "no request";
  percore::relayed relayed;
};

// Control characters of a peer must not make lines of their own.
std::string printable(std::string_view text) {
  std::string result;
  for (const char c : text) result += static_cast<unsigned char>(c) <= ' ' || c == 0x7f ? '?' : c;
  return result;
}

std::string text_of(const target& where) {
  const bool v6 = where.host.find(':') != std::string::npos;
  return printable(v6 ? '[' + where.host + ']' : where.host) + ':' + std::to_string(where.port);
}

// One line, in one call: lines of several cores do not mix.
void log(const percore::connection& conn, const record& what) {
  const auto lasted = std::chrono::duration_cast<std::chrono::milliseconds>(conn.now() - conn.start_time()).count();
  std::printf("%s %s %s \"%s\" %llu up %llu down %lld ms\n", conn.peer_address().to_string().c_str(), what.kind,
              what.target.c_str(), what.outcome.c_str(), static_cast<unsigned long long>(what.relayed.forth),
              static_cast<unsigned long long>(what.relayed.back), static_cast<long long>(lasted));
}

// A message of SOCKS, as soon as it is whole; what comes behind it is put back.
template <class Message>
percore::task<bool> receive(percore::connection& conn, Message& into) {
  percore::bytes_view data = co_await conn.read();
  while (data) {
    std::size_t used = 0;
    const outcome made = socks::parse(data.text(), into, used);
    if (made == outcome::done) {
      conn.unread(data.size() - used);
      co_return true;
    }
    if (made == outcome::wrong || data.size() > longest_message) co_return false;
    conn.unread(data);
    data = co_await conn.read_more();
  }
  co_return false;
}

// Nothing more is said. What the client still sends is taken for a moment: a close with unread bytes would reset the
// connection, and with it the answer (RFC 9112 9.6).
percore::task<> linger(percore::connection& conn) {
  conn.shutdown_write();
  const auto end = conn.now() + std::chrono::seconds(2);
  conn.set_read_timeout(std::chrono::seconds(2));
  percore::bytes_view dropped = co_await conn.read();
  while (dropped && conn.now() < end) dropped = co_await conn.read();
}

bool knows(const settings& how, const std::string& user, const std::string& password) {
  const auto known = how.users.find(user);
  if (known == how.users.end() || known->second.size() != password.size()) return false;
  unsigned difference = 0;  // as long for a password that is nearly right
  for (std::size_t i = 0; i < password.size(); ++i) {
    difference |= static_cast<unsigned char>(password[i] ^ known->second[i]);
  }
  return difference == 0;
}

percore::task<percore::outgoing> reach(percore::connection&, const settings& how, const target& where) {
  percore::dial_options options;
  options.timeout = how.dial_timeout;
  options.permit = [&how](const percore::address& one) { return how.access.permits(one); };
  percore::outgoing made = co_await percore::dial(where.host, where.port, options);
  co_return std::move(made);
}

percore::task<> pass_on(percore::connection& conn, percore::outgoing& up, const settings& how, record& what) {
  conn.set_lifetime_timeout(std::chrono::milliseconds(0));  // it was for the request
  percore::relay_options options;
  options.idle_timeout = how.idle_timeout;
  what.relayed = co_await percore::relay(conn, *up, options);
  what.outcome = what.relayed ? "done" : what.relayed.error.message();
}

// SOCKS -----------------------------------------------------------------------------------------------------

socks::reply reply_for(std::error_code error) {
  if (error == percore::errc::not_permitted) return socks::reply::not_allowed;
  if (error == percore::errc::no_address || error == percore::errc::timed_out) return socks::reply::host_unreachable;
  if (error.category() != std::system_category()) return socks::reply::general_failure;
  switch (error.value()) {
    case ECONNREFUSED:
      return socks::reply::connection_refused;
    case ENETUNREACH:
      return socks::reply::network_unreachable;
    case EHOSTUNREACH:
    case ETIMEDOUT:
      return socks::reply::host_unreachable;
    default:
      return socks::reply::general_failure;
  }
}

// RFC 1928 3 and RFC 1929. False: the client was told, or is gone.
percore::task<bool> authenticate(percore::connection& conn, const settings& how) {
  socks::greeting offered;
  if (!co_await receive(conn, offered)) co_return false;
  const bool needed = !how.users.empty();
  if (needed ? !offered.with_password : !offered.without_authentication) {
    if (co_await conn.write_last(std::string_view("\x05\xff", 2))) co_await linger(conn);
    co_return false;
  }
  const std::string_view chosen = needed ? std::string_view("\x05\x02", 2) : std::string_view("\x05\x00", 2);
  if (!co_await conn.write(chosen)) co_return false;
  if (!needed) co_return true;
  socks::credentials given;
  if (!co_await receive(conn, given)) co_return false;
  const bool known = knows(how, given.user, given.password);
  const std::string_view verdict = known ? std::string_view("\x01\x00", 2) : std::string_view("\x01\x01", 2);
  const bool written = co_await conn.write(verdict);
  if (written && !known) co_await linger(conn);
  co_return known && written;
}

percore::task<> serve_socks(percore::connection& conn, const settings& how, record& what) {
  what.kind = "socks5";
  what.outcome = "not authenticated";
  if (!co_await authenticate(conn, how)) co_return;
  socks::request wanted;
  what.outcome = "bad request";
  const bool whole = co_await receive(conn, wanted);
  socks::reply code = wanted.problem;
  if (whole && wanted.wanted != static_cast<unsigned char>(socks::command::connect)) {
    code = socks::reply::command_not_supported;  // BIND, UDP ASSOCIATE, and what nobody knows
    what.outcome = "command not supported";
  }
  if (whole) what.target = text_of(wanted.where);
  if (!whole || code != socks::reply::succeeded) {
    if (code == socks::reply::succeeded) code = socks::reply::general_failure;
    const std::string refusal = socks::answer(code);
    if (co_await conn.write_last(refusal)) co_await linger(conn);
    co_return;
  }
  percore::outgoing up = co_await reach(conn, how, wanted.where);
  if (!up) what.outcome = up.error().message();
  const std::string answer = socks::answer(up ? socks::reply::succeeded : reply_for(up.error()));
  const bool answered = co_await conn.write(answer);
  if (answered && up) {
    co_await pass_on(conn, up, how, what);
  } else if (answered) {
    co_await linger(conn);
  }
}

// HTTP ------------------------------------------------------------------------------------------------------

int status_for(std::error_code error) {
  if (error == percore::errc::not_permitted) return 403;
  if (error == percore::errc::timed_out) return 504;
  if (error == percore::errc::limit_exceeded) return 503;
  return 502;
}

bool is_authorized(const settings& how, const http::request& wanted) {
  if (how.users.empty()) return true;
  std::string user, password;
  return http::decode_basic(wanted.authorization, user, password) && knows(how, user, password);
}

percore::task<> refuse(percore::connection& conn, int status, record& what) {
  what.outcome = std::to_string(status);
  const std::string text =
      http::answer(status, status == 407 ? "Proxy-Authenticate: Basic realm=\"proxy\"\r\n" : "");
  if (co_await conn.write_last(text)) co_await linger(conn);
}

// A chunked body, chunk by chunk. `more`: the client has cut it off.
percore::task<outcome> send_chunks(percore::connection& conn, percore::connection& up, std::uint64_t& sent) {
  http::chunked_body body;
  std::string data;
  std::string chunk;
  outcome state = outcome::more;
  while (state == outcome::more) {
    const percore::bytes_view got = co_await conn.read();
    if (!got) co_return state;
    std::string_view rest = got.text();
    data.clear();
    state = body.take(rest, data);
    if (state == outcome::wrong) co_return state;
    conn.unread(rest.size());
    chunk.clear();
    if (!data.empty()) http::add_chunk(data, chunk);
    if (state == outcome::done) chunk += http::last_chunk;
    if (chunk.empty()) continue;
    const bool written = co_await up.write(chunk);
    if (!written) co_return outcome::done;  // the target wants no more of it; perhaps it says why
    sent += data.size();
  }
  co_return state;
}

percore::task<outcome> send_known(percore::connection& conn, percore::connection& up, std::uint64_t size,
                                  std::uint64_t& sent) {
  const percore::copied body = co_await conn.copy_to(up, size);
  sent = body.bytes;
  co_return body.bytes == size || body.target_failed ? outcome::done : outcome::more;
}

// The body of a request, then whatever the client says behind it, which is dropped: one request is served. Comes back
// when the body is broken or the client is gone, else never: it is the answer's end that ends the exchange.
percore::task<outcome> send_body(percore::connection& conn, percore::connection& up, const http::request& wanted,
                                 std::uint64_t& sent) {
  outcome state = outcome::done;
  if (wanted.chunked) {
    state = co_await send_chunks(conn, up, sent);
  } else if (wanted.body_bytes != 0) {
    state = co_await send_known(conn, up, wanted.body_bytes, sent);
  }
  if (state != outcome::done) co_return state;
  percore::bytes_view dropped = co_await conn.read();
  while (dropped) dropped = co_await conn.read();
  // Without more requests to come, it may still wait for its answer.
  if (conn.error() != percore::errc::end_of_stream && conn.error() != percore::errc::shutting_down)
    co_return outcome::more;
  bool waiting = true;
  while (waiting) waiting = co_await conn.sleep_for(std::chrono::hours(1));
  co_return outcome::done;
}

// The answer, its head written anew.
percore::task<std::error_code> bring_answer(percore::connection& up, percore::connection& conn,
                                            std::uint64_t& brought) {
  constexpr int most_heads = 16;
  http::reply given;
  for (int heads = 0; given.status < 200; ++heads) {
    const percore::bytes_view head = co_await up.read_until("\r\n\r\n", longest_head);
    if (!head && up.error() != percore::errc::end_of_stream && up.error() != percore::errc::limit_exceeded)
      co_return up.error();
    if (heads == most_heads || http::parse(head.text(), given) != outcome::done) {
      co_return std::make_error_code(std::errc::bad_message);
    }
    const bool written = co_await conn.write(given.head);
    if (!written) co_return conn.error();
    if (given.status >= 200) brought = given.head.size();
  }
  const percore::copied body = co_await up.copy_to(conn);
  brought += body.bytes;
  co_return body.error;
}

// One request and its answer, which may come, and end all, before the request is whole.
percore::task<> exchange(percore::connection& conn, percore::outgoing& up, const http::request& wanted,
                         const settings& how, record& what) {
  conn.set_lifetime_timeout(std::chrono::milliseconds(0));  // it was for the request's head
  conn.set_idle_timeout(how.idle_timeout);
  up->set_idle_timeout(how.idle_timeout);
  auto made = co_await percore::when_any(send_body(conn, *up, wanted, what.relayed.forth),
                                         bring_answer(*up, conn, what.relayed.back));
  if (made.index() == 1) {
    const std::error_code problem = std::get<1>(made);
    if (!problem) {
      what.outcome = "done";
      co_await linger(conn);
    } else if (what.relayed.back == 0) {
      co_await refuse(conn, status_for(problem), what);
      what.outcome += ' ' + problem.message();
    } else {
      what.outcome = problem.message();
      conn.reset();
    }
    co_return;
  }
  const bool broken = std::get<0>(made) == outcome::wrong;
  if (up) up->reset();  // half a request must not be taken for a whole one
  if (broken && what.relayed.back == 0) {
    co_await refuse(conn, 400, what);
  } else {
    what.outcome = broken ? "broken chunks" : "client gone";
    conn.reset();
  }
}

percore::task<> serve_http(percore::connection& conn, const settings& how, record& what) {
  what.kind = "http";
  const percore::bytes_view head = co_await conn.read_until("\r\n\r\n", longest_head);
  if (!head) {
    if (conn.error() == percore::errc::limit_exceeded) co_await refuse(conn, 431, what);
    co_return;
  }
  http::request wanted;
  if (http::parse(head.text(), wanted) != outcome::done) {
    co_await refuse(conn, wanted.status, what);
    co_return;
  }
  if (wanted.tunnel) what.kind = "connect";
  what.target = text_of(wanted.where);
  if (!is_authorized(how, wanted)) {
    co_await refuse(conn, 407, what);
    co_return;
  }
  percore::outgoing up = co_await reach(conn, how, wanted.where);
  if (!up) {
    co_await refuse(conn, status_for(up.error()), what);
    what.outcome += ' ' + up.error().message();
    co_return;
  }
  if (wanted.tunnel) {
    if (!co_await conn.write("HTTP/1.1 200 Connection established\r\n\r\n")) co_return;
    co_await pass_on(conn, up, how, what);
    co_return;
  }
  what.outcome = "target gone";
  if (!co_await up->write(wanted.head)) co_return;
  co_await exchange(conn, up, wanted, how, what);
}

}  // namespace

percore::task<> serve(percore::connection& conn, const settings& how) {
  record what;
  conn.set_lifetime_timeout(how.request_timeout);
  const percore::bytes_view first = co_await conn.read();
  if (first) {
    const auto byte = static_cast<unsigned char>(first.text().front());
    conn.unread(first);
    if (byte == socks::version) {
      co_await serve_socks(conn, how, what);
    } else if (byte >= 'A' && byte <= 'Z') {
      co_await serve_http(conn, how, what);
    } else {
      what.outcome = "neither SOCKS5 nor HTTP";
    }
  }
  log(conn, what);
}

}  // namespace proxy
