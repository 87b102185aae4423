// A protocol of delimited messages, with limits on how long and how large one may be.
//
//   delimiter [--timeout MS] [--limit BYTES] [ADDRESS]
//
// A request is any text that ends with CR LF; the answer is the same text in capitals. A client that needs more than
// MS for a request, or more than BYTES with its CR LF, gets a line that says so and is hung up on.
#include <percore/percore.hpp>

#include <charconv>
#include <chrono>
#include <exception>
#include <iostream>
#include <stdexcept>
#include <string>
#include <string_view>

namespace {

constexpr const char* usage =
    "usage: delimiter [--timeout MS] [--limit BYTES] [ADDRESS]\n"
    "Answers lines that end with CR LF in capitals, on ADDRESS (default 127.0.0.1:5000; port 0: any free port).\n"
    "A line may take MS milliseconds (default 5000) and BYTES bytes (default 1024). SIGINT or SIGTERM ends it.\n";

std::string capitals(std::string_view text) {
  std::string answer(text);
  for (char& c : answer)
    if (c >= 'a' && c <= 'z') c = static_cast<char>(c - 'a' + 'A');
  return answer;
}

// What to tell a client whose request did not come; empty when it has simply left.
std::string farewell(std::error_code why) {
  if (why == percore::errc::timed_out) return "error: too slow\r\n";
  if (why == percore::errc::limit_exceeded) return "error: too long\r\n";
  if (why == percore::errc::shutting_down) return "error: shutting down\r\n";
  return {};
}

int number(std::string_view text) {
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 1)
    throw std::invalid_argument("not a positive number: " + std::string(text));
  return value;
}

}  // namespace

int main(int argc, char** argv) {
  std::string_view where = "127.0.0.1:5000";
  percore::listen_options options;
  options.read_timeout = std::chrono::milliseconds(5000);  // for one read_until, from its call until it is done
  std::size_t limit = 1024;
  try {
    for (int i = 1; i < argc; ++i) {
      const std::string_view argument = argv[i];
      if (argument == "--help") {
        std::cout << usage;
        return 0;
      } else if (argument == "--timeout" && i + 1 < argc) {
        options.read_timeout = std::chrono::milliseconds(number(argv[++i]));
      } else if (argument == "--limit" && i + 1 < argc) {
        limit = static_cast<std::size_t>(number(argv[++i]));
      } else if (!argument.starts_with('-') && i + 1 == argc) {
        where = argument;
      } else {
        throw std::invalid_argument("cannot use: " + std::string(argument) + '\n' + usage);
      }
    }
    percore::server_options settings;
    settings.on_started = [](percore::server& started) {
      std::cout << "listening on " << started.local_address().to_string() << std::endl;
    };
    percore::server server(settings);
    server.listen(
        where,
        [limit](percore::connection& conn) -> percore::task<> {
          while (auto request = co_await conn.read_until("\r\n", limit)) {
            const std::string answer = capitals(request);
            if (!co_await conn.write(answer)) co_return;
          }
          const std::string last = farewell(conn.error());
          if (!last.empty()) co_await conn.write(last);
        },
        options);
    server.serve();
  } catch (const std::invalid_argument& mistake) {
    std::cerr << "delimiter: " << mistake.what() << '\n';
    return 2;
  } catch (const std::exception& failure) {
    std::cerr << "delimiter: " << failure.what() << '\n';
    return 1;
  }
}
