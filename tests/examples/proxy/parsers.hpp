// What clients of the proxy send, as bytes: SOCKS5 (RFC 1928, RFC 1929) and the head of an HTTP request. Pure functions;
// nothing that a peer sends can do more than fail.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace proxy {

struct target {
  std::string host;  // a name, or an IP address as text
  std::uint16_t port = 0;
};

enum class outcome {
  more,   // the message is not whole yet
  done,
  wrong,  // it never will be
};

namespace socks {

inline constexpr unsigned char version = 5;

// RFC 1928 3: the methods that a client offers.
struct greeting {
  bool without_authentication = false;
  bool with_password = false;
};
outcome parse(std::string_view bytes, greeting& into, std::size_t& used);

// RFC 1929.
struct credentials {
  std::string user;
  std::string password;
};
outcome parse(std::string_view bytes, credentials& into, std::size_t& used);

// RFC 1928 4.
enum class command : unsigned char { connect = 1, bind = 2, udp_associate = 3 };
enum class reply : unsigned char {
  succeeded = 0,
  general_failure = 1,
  not_allowed = 2,
  network_unreachable = 3,
  host_unreachable = 4,
  connection_refused = 5,
  time_to_live_expired = 6,
  command_not_supported = 7,
  address_type_not_supported = 8,
};
struct request {
  unsigned char wanted = 0;  // a command, or something else
  target where;
  reply problem = reply::succeeded;  // with outcome::wrong: what to answer
};
outcome parse(std::string_view bytes, request& into, std::size_t& used);

// RFC 1928 6, with an address of zeros: nobody needs ours.
std::string answer(reply code);

}  // namespace socks

namespace http {

struct request {
  target where;
  bool tunnel = false;           // CONNECT
  std::string authorization;     // of Proxy-Authorization, as it was sent
  std::uint64_t body_bytes = 0;  // of a request that is forwarded
  bool chunked = false;          // its body says itself where it ends; body_bytes is 0 then
  std::string head;              // what is sent on for it
  int status = 400;              // with outcome::wrong: what to answer
};
// `head`: up to and with the empty line. Whoever could read another body into the request than the one that is sent on
// is refused: the framing of what is sent on is written anew, from one Content-Length or one "chunked" (RFC 9112 6.3).
outcome parse(std::string_view head, request& into);

// The head of an answer to such a request.
struct reply {
  int status = 0;    // 100 to 199: another head follows
  std::string head;  // what is sent on for it
};
// It ends the client's connection ("Connection: close"), whatever the server says: else a client could take what this
// server sends behind its answer for the answer of another one.
outcome parse(std::string_view head, reply& into);

// A chunked body (RFC 9112 7.1), in pieces as they come. Extensions and trailer fields are looked at and left out.
class chunked_body {
 public:
  // Takes bytes from the front of `input`, which gets shorter, and gives their data to `data`, behind what is there.
  // `more`: all was taken. `done`: what is left is not the body's. `wrong`: it is no chunked body, or more than 16 KiB
  // of it, beyond 8 bytes for each chunk, are not data.
  outcome take(std::string_view& input, std::string& data);

 private:
  enum class state : unsigned char {
    size_start,
    size,
    extension,
    size_end,
    data,
    data_cr,
    data_lf,
    line_start,
    line,
    line_end,
    last
  };
  bool step(char c);
  bool add_digit(unsigned value);
  bool count(state next);

  state state_ = state::size_start;
  bool done_ = false;
  bool named_ = false;      // the trailer field has its colon
  unsigned digits_ = 0;     // of the size
  std::uint64_t left_ = 0;  // of the chunk
  std::size_t overhead_left_ = 16 * 1024;
};
// A chunk of these bytes, of which there is at least one; and what ends a body.
void add_chunk(std::string_view data, std::string& to);
inline constexpr std::string_view last_chunk = "0\r\n\r\n";

std::string answer(int status, std::string_view more_headers = {});

// The user and password of "Basic ..." (RFC 7617); false when it is none.
bool decode_basic(std::string_view authorization, std::string& user, std::string& password);

}  // namespace http

}  // namespace proxy
