// A line protocol that begins in plain and goes over to TLS when the client says STARTTLS, as SMTP and IMAP
// do.
//
//   starttls --cert FILE --key FILE [ADDRESS]
//
// Try it with: openssl s_client -starttls smtp -connect 127.0.0.1:5000
// Until then the answer to a line is "plain: " and the line, afterwards "secret: " and the line; QUIT ends.
// SIGHUP reads certificate and key again: who comes later sees the new ones.
#include <percore/percore.hpp>

#include <pthread.h>
#include <signal.h>

#include <exception>
#include <iostream>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <string_view>
#include <thread>

namespace {

constexpr std::size_t longest_line = 1024;

percore::task<> serve(percore::connection& conn, const percore::tls_context& context) {
  if (!co_await conn.write("220 ready\r\n")) co_return;
  while (auto line = co_await conn.read_until("\r\n", longest_line)) {
    const std::string text(line.text().substr(0, line.size() - 2));
    if (text == "STARTTLS" && !conn.tls()) {
      if (!co_await conn.write("220 go ahead\r\n")) co_return;
      // Whatever a client has sent behind STARTTLS could have been put there by somebody else, who wants it
      // to be taken for a part of the encrypted conversation. start_tls() refuses then, and so do we.
      const bool encrypted = co_await conn.start_tls(context);
      if (!encrypted) co_return;
    } else if (text == "QUIT") {
      co_await conn.write_last("221 bye\r\n");
      co_return;
    } else {
      std::string answer = text.starts_with("EHLO ") ? "250 STARTTLS"
                           : conn.tls()              ? "secret: " + text
                                                     : "plain: " + text;
      answer += "\r\n";
      if (!co_await conn.write(answer)) co_return;
    }
  }
}

// A thread that waits for SIGHUP. The signal is blocked before any other thread begins, so that it meets none
// of them.
class reload_on_sighup {
 public:
  explicit reload_on_sighup(percore::tls_context context) {
    sigset_t hangup;
    ::sigemptyset(&hangup);
    ::sigaddset(&hangup, SIGHUP);
    ::pthread_sigmask(SIG_BLOCK, &hangup, nullptr);
    thread_ = std::jthread([hangup, context](const std::stop_token& stop) mutable {
      for (int number = 0; ::sigwait(&hangup, &number) == 0 && !stop.stop_requested();) {
        try {
          context.reload();
          std::cout << "certificate reloaded" << std::endl;
        } catch (const percore::tls_error& wrong) {
          std::cerr << "starttls: the old certificate stays: " << wrong.what() << std::endl;
        }
      }
    });
  }
  reload_on_sighup(const reload_on_sighup&) = delete;
  reload_on_sighup& operator=(const reload_on_sighup&) = delete;
  ~reload_on_sighup() {
    thread_.request_stop();
    ::pthread_kill(thread_.native_handle(), SIGHUP);
  }

 private:
  std::jthread thread_;
};

constexpr const char* usage =
    "usage: starttls --cert FILE --key FILE [ADDRESS]\n"
    "Answers lines that end with CR LF on ADDRESS (default 127.0.0.1:5000; port 0: any free port), in plain "
    "until\n"
    "STARTTLS. FILEs are PEM; SIGHUP reads them again. SIGINT or SIGTERM ends it.\n";

}  // namespace

int main(int argc, char** argv) {
  std::string_view where = "127.0.0.1:5000";
  percore::tls_options tls;
  tls.certificates.resize(1);
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
      } else if (!argument.starts_with('-') && i + 1 == argc) {
        where = argument;
      } else {
        throw std::invalid_argument("cannot use: " + std::string(argument) + '\n' + usage);
      }
    }
    if (tls.certificates.front().chain_file.empty() || tls.certificates.front().key_file.empty()) {
      throw std::invalid_argument(std::string("--cert and --key are needed\n") + usage);
    }
    const percore::tls_context context(tls);
    const reload_on_sighup reloading(context);
    percore::server_options settings;
    settings.on_started = [](percore::server& started) {
      std::cout << "listening on " << started.local_address().to_string() << std::endl;
    };
    percore::server server(settings);
    server.listen(where, [&context](percore::connection& conn) { return serve(conn, context); });
    server.serve();
  } catch (const std::invalid_argument& mistake) {
    std::cerr << "starttls: " << mistake.what() << '\n';
    return 2;
  } catch (const std::exception& failure) {
    std::cerr << "starttls: " << failure.what() << '\n';
    return 1;
  }
}
