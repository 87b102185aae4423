// percore-relay: each accepted connection is relayed to one target; what perf/README.md compares with haproxy and
// nginx.

#include <percore/percore.hpp>

#include <charconv>
#include <cstdio>
#include <exception>
#include <iostream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

namespace {

constexpr const char* usage =
    "usage: percore-relay --listen ADDRESS --to ADDRESS [--cpus LIST] [--idle SECONDS] [--private-descriptors]\n"
    "Relays each connection to ADDRESS --to. --cpus: a core thread on each (\"0,1\"; default: one thread, where it is "
    "started).\n"
    "--idle: silence that ends both (default 3600). --private-descriptors: each core has a descriptor table of its "
    "own.\n";

unsigned to_number(std::string_view text) {
  unsigned value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) {
    throw std::invalid_argument("not a number: " + std::string(text));
  }
  return value;
}

struct settings {
  std::string listen;
  std::string to;
  std::chrono::seconds idle{3600};
  percore::server_options server;
};

settings parse(int argc, char** argv) {
  settings result;
  result.server.placement.cores = 1;
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    if (argument == "--private-descriptors") {
      result.server.private_descriptors = true;
      continue;
    }
    if (++i == argc) throw std::invalid_argument("cannot use: " + std::string(argument));
    std::string_view value = argv[i];
    if (argument == "--listen") {
      result.listen = value;
    } else if (argument == "--to") {
      result.to = value;
    } else if (argument == "--idle") {
      result.idle = std::chrono::seconds(to_number(value));
    } else if (argument == "--cpus") {
      result.server.placement.cores = 0;
      while (true) {
        const std::size_t comma = value.find(',');
        result.server.placement.cpus.push_back(to_number(value.substr(0, comma)));
        if (comma == std::string_view::npos) break;
        value.remove_prefix(comma + 1);
      }
    } else {
      throw std::invalid_argument("cannot use: " + std::string(argument));
    }
  }
  if (result.listen.empty() || result.to.empty()) throw std::invalid_argument("--listen and --to are needed");
  return result;
}

// By itself, so that the options, which take hundreds of bytes, are gone while the relay runs.
percore::task<percore::outgoing> reach(percore::connection&, const percore::address& to) {
  percore::dial_options options;
  options.socket.no_delay = true;
  percore::outgoing made = co_await percore::dial(to, options);
  co_return std::move(made);
}

percore::task<> serve(percore::connection& conn, const percore::address& to, std::chrono::seconds idle) {
  percore::outgoing up = co_await reach(conn, to);
  if (!up) {
    conn.reset();
    co_return;
  }
  percore::relay_options options;
  options.idle_timeout = idle;
  co_await percore::relay(conn, *up, options);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    if (argc == 2 && std::string_view(argv[1]) == "--help") {
      std::cout << usage;
      return 0;
    }
    settings how = parse(argc, argv);
    const percore::address to(how.to);
    how.server.on_started = [](percore::server& started) {
      std::cout << "listening on " << started.local_address().to_string() << std::endl;
    };
    percore::server server(how.server);
    server.listen(how.listen, [&](percore::connection& conn) { return serve(conn, to, how.idle); });
    server.serve();
  } catch (const std::invalid_argument& mistake) {
    std::cerr << "percore-relay: " << mistake.what() << '\n' << usage;
    return 2;
  } catch (const std::exception& failure) {
    std::cerr << "percore-relay: " << failure.what() << '\n';
    return 1;
  }
}
