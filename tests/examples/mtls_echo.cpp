// Echo over TLS for clients that show a certificate: each is greeted by the common name in it.
//
//   mtls_echo --cert FILE --key FILE --authorities FILE [ADDRESS]
//
// Try it with: openssl s_client -quiet -connect 127.0.0.1:5000 -cert alice.pem -key alice.key
// Who shows none, or one that no authority of FILE has issued, is not let in: the handler never runs.
#include <percore/percore.hpp>

#include <exception>
#include <iostream>
#include <stdexcept>
#include <string>
#include <string_view>

namespace {

percore::task<> greet_and_echo(percore::connection& conn) {
  // The client's own certificate comes first, then the chain to the authority that vouches for it.
  const std::string greeting = "hello, " + conn.peer_certificates().front().common_name + "\n";
  if (!co_await conn.write(greeting)) co_return;
  while (auto data = co_await conn.read())
    if (!co_await conn.write(data)) break;
}

constexpr const char* usage =
    "usage: mtls_echo --cert FILE --key FILE --authorities FILE [ADDRESS]\n"
    "Echoes over TLS on ADDRESS (default 127.0.0.1:5000; port 0: any free port) to clients with a "
    "certificate that an\n"
    "authority of FILE has issued. FILEs are PEM. SIGINT or SIGTERM ends it.\n";

}  // namespace

int main(int argc, char** argv) {
  std::string_view where = "127.0.0.1:5000";
  percore::tls_options tls;
  tls.certificates.resize(1);
  tls.clients = percore::client_certificates::required;
  try {
    for (int i = 1; i < argc; ++i) {
      const std::string_view argument = argv[i];
      if (argument == "--help") {
        std::cout << usage;
        return 0;
      } else if (argument == "--cert" && i + 1 < argc) {
        tls.certificates.front().chain_file = argv[++i];
      } else if (argument == "--key" && i + 1 < argc) {
        tls.certificates.front().key_file = argv[++i];
      } else if (argument == "--authorities" && i + 1 < argc) {
        tls.authorities_file = argv[++i];
      } else if (!argument.starts_with('-') && i + 1 == argc) {
        where = argument;
      } else {
        throw std::invalid_argument("cannot use: " + std::string(argument) + '\n' + usage);
      }
    }
    if (tls.certificates.front().chain_file.empty() || tls.certificates.front().key_file.empty() ||
        tls.authorities_file.empty()) {
      throw std::invalid_argument(std::string("--cert, --key and --authorities are needed\n") + usage);
    }
    percore::server_options settings;
    settings.on_started = [](percore::server& started) {
      std::cout << "listening on " << started.local_address().to_string() << std::endl;
    };
    settings.on_tls_failure = [](percore::tls_failure cause, std::string_view reason,
                                 const percore::address& peer) {
      std::cout << peer.to_string() << " not let in: " << percore::name_of(cause) << ", " << reason
                << std::endl;
    };
    percore::server server(settings);
    percore::listen_options listening;
    listening.tls = percore::tls_context(tls);
    server.listen(where, greet_and_echo, listening);
    server.serve();
  } catch (const std::invalid_argument& mistake) {
    std::cerr << "mtls_echo: " << mistake.what() << '\n';
    return 2;
  } catch (const std::exception& failure) {
    std::cerr << "mtls_echo: " << failure.what() << '\n';
    return 1;
  }
}
