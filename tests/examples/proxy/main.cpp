// A proxy: SOCKS5 (RFC 1928, with RFC 1929), HTTP CONNECT and plain HTTP requests with an absolute URI, all on one port.
//
//   proxy [OPTION...] [ADDRESS]
//
// Try it with: curl -x socks5h://127.0.0.1:5000 http://example.org/
// Each connection leaves a line on standard output: who, how, where to, what became of it, bytes in both directions, time.
#include <percore/percore.hpp>

#include <charconv>
#include <cstdio>
#include <exception>
#include <iostream>
#include <stdexcept>
#include <string>
#include <string_view>

#include "serve.hpp"

namespace {

constexpr const char* usage =
    "usage: proxy [OPTION...] [ADDRESS]\n"
    "Serves SOCKS5 and HTTP on ADDRESS (default 127.0.0.1:5000; port 0: any free port).\n"
    "  --allow NETWORK[,PORT]   targets that may be reached (10.0.0.0/8, ::1 or 10.1.2.3,443)\n"
    "  --deny NETWORK[,PORT]    targets that may not; the first rule that fits decides. Behind all rules loopback, "
    "private\n"
    "                           and other addresses that are not public are denied, this host's own (as they are when "
    "it\n"
    "                           starts), and port 25; the rest is allowed.\n"
    "  --user NAME:PASSWORD     who may use it (several times); without one: everybody\n"
    "  --idle SECONDS           silence that ends a connection (default 300)\n"
    "  --request SECONDS        how long a client may take for its request (default 15)\n"
    "  --connections NUMBER     open connections, both sides counted (default 10000)\n"
    "SIGINT or SIGTERM ends it within 10 seconds.\n";

template <class Number>
Number to_number(std::string_view text) {
  Number value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 1) {
    throw std::invalid_argument("not a number above 0: " + std::string(text));
  }
  return value;
}

}  // namespace

int main(int argc, char** argv) {
  std::string_view where = "127.0.0.1:5000";
  proxy::settings how;
  percore::server_options settings;
  settings.max_connections = 10'000;
  settings.shutdown_grace = std::chrono::seconds(10);
  std::setvbuf(stdout, nullptr, _IOLBF, 4096);
  try {
    for (int i = 1; i < argc; ++i) {
      const std::string_view argument = argv[i];
      const std::string_view value = i + 1 < argc ? argv[i + 1] : "";
      if (argument == "--help") {
        std::cout << usage;
        return 0;
      }
      if (!argument.starts_with('-')) {
        if (i + 1 != argc) throw std::invalid_argument("cannot use: " + std::string(value) + '\n' + usage);
        where = argument;
        continue;
      }
      ++i;
      const std::size_t colon = value.find(':');
      if (argument == "--allow") {
        how.access.allow(value);
      } else if (argument == "--deny") {
        how.access.deny(value);
      } else if (argument == "--user" && colon != std::string_view::npos) {
        how.users[std::string(value.substr(0, colon))] = value.substr(colon + 1);
      } else if (argument == "--idle") {
        how.idle_timeout = std::chrono::seconds(to_number<unsigned>(value));
      } else if (argument == "--request") {
        how.request_timeout = std::chrono::seconds(to_number<unsigned>(value));
      } else if (argument == "--connections") {
        settings.max_connections = to_number<std::size_t>(value);
      } else {
        throw std::invalid_argument("cannot use: " + std::string(argument) + '\n' + usage);
      }
    }
    how.access.add_all_own();
    settings.on_started = [&how](percore::server& started) {
      const percore::address here = started.local_address();
      const bool local =
          here.is_unix() || percore::network("127.0.0.0/8").contains(here) || percore::network("::1").contains(here);
      if (!local && how.users.empty()) {
        std::cerr << "proxy: warning: whoever reaches " << here.to_string() << " may use it; --user limits that"
                  << std::endl;
      }
      std::cout << "listening on " << started.local_address().to_string() << std::endl;
    };
    percore::server server(settings);
    server.listen(where, [&how](percore::connection& conn) { return proxy::serve(conn, how); });
    server.serve();
  } catch (const std::invalid_argument& mistake) {
    std::cerr << "proxy: " << mistake.what() << '\n';
    return 2;
  } catch (const std::exception& failure) {
    std::cerr << "proxy: " << failure.what() << '\n';
    return 1;
  }
}
