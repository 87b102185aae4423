// Echo: answers every byte with itself.
//
//   echo [ADDRESS]         default 127.0.0.1:5000; try it with: nc 127.0.0.1 5000
#include <percore/percore.hpp>

#include <exception>
#include <iostream>
#include <stdexcept>
#include <string_view>

percore::task<> echo(percore::connection& conn) {
  while (auto data = co_await conn.read())  // a view into the core's buffer; false at the end or on an error
    if (!co_await conn.write(data)) break;  // the connection closes when the handler returns
}

int main(int argc, char** argv) {
  const std::string_view where = argc > 1 ? argv[1] : "127.0.0.1:5000";
  if (argc > 2 || where.starts_with('-')) {
    const bool asked = argc == 2 && where == "--help";
    (asked ? std::cout : std::cerr) << "usage: echo [ADDRESS]\n"
                                       "Echoes on ADDRESS (default 127.0.0.1:5000; also [::1]:5000, unix:/path,\n"
                                       "unix:@name; port 0: any free port). SIGINT or SIGTERM ends it.\n";
    return asked ? 0 : 2;
  }
  try {
    percore::server_options settings;
    settings.on_started = [](percore::server& started) {
      std::cout << "listening on " << started.local_address().to_string() << std::endl;
    };
    percore::server server(settings);
    server.listen(where, echo);
    server.serve();  // until a signal; connections that are busy then finish what they do
  } catch (const std::invalid_argument& mistake) {
    std::cerr << "echo: " << mistake.what() << '\n';
    return 2;
  } catch (const std::exception& failure) {
    std::cerr << "echo: " << failure.what() << '\n';
    return 1;
  }
}
