// Asio's best form: one io_context per thread, each with its own SO_REUSEPORT listener, run without locks
// (ASIO_CONCURRENCY_HINT_UNSAFE: no other thread touches it; asio documentation, "Concurrency Hints").

#include <asio.hpp>
#include <asio/ssl.hpp>

#include <array>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include "perf/peers/common/peer.hpp"

namespace {

using asio::ip::tcp;
using std::error_code;

template <class Stream>
class session {
 public:
  static constexpr bool with_tls = !std::is_same_v<Stream, tcp::socket>;

  session(Stream stream, const peer::options& opt, peer::responder& responder)
      : stream_(std::move(stream)), opt_(opt), responder_(responder), timer_(stream_.get_executor()) {}

  // Owns itself from here on.
  void start() {
    if constexpr (with_tls) {
      stream_.async_handshake(asio::ssl::stream_base::server,
                              [this](error_code error) { error ? end() : read(); });
    } else {
      read();
    }
  }

 private:
  void read() {
    if (filled_ == in_.size()) return end();
    stream_.async_read_some(asio::buffer(in_.data() + filled_, in_.size() - filled_),
                            [this](error_code error, std::size_t bytes) {
                              if (error) return end();
                              filled_ += bytes;
                              on_data();
                            });
  }

  void on_data() {
    std::size_t used = 0;
    answers_ = peer::responder::count_requests({in_.data(), filled_}, used);
    if (answers_ == 0) return read();
    std::copy(in_.data() + used, in_.data() + filled_, in_.data());
    filled_ -= used;
    if (opt_.sleep_ms == 0) return write();
    timer_.expires_after(std::chrono::milliseconds(opt_.sleep_ms));
    timer_.async_wait([this](error_code error) { error ? end() : write(); });
  }

  void write() {
    asio::async_write(stream_, asio::buffer(responder_.next(own_)), [this](error_code error, std::size_t) {
      if (error) return end();
      if (!opt_.keep_alive) return close();
      if (--answers_ > 0) return write();
      read();
    });
  }

  // An orderly end: close_notify with TLS, whose answer is not waited for.
  void close() {
    if constexpr (with_tls) {
      SSL_set_quiet_shutdown(stream_.native_handle(), 0);
      // Sends close_notify, then waits for the peer's: the timer cuts that short.
      stream_.async_shutdown([this](error_code) { end(); });
      stream_.next_layer().shutdown(tcp::socket::shutdown_receive, ignored_);
    } else {
      end();
    }
  }

  void end() { delete this; }

  Stream stream_;
  const peer::options& opt_;
  peer::responder& responder_;
  asio::steady_timer timer_;
  std::string own_;
  error_code ignored_;
  int answers_ = 0;
  std::size_t filled_ = 0;
  std::array<char, peer::request_bytes> in_;
};

class loop {
 public:
  explicit loop(const peer::loop_setting& setting)
      : opt_(setting.opt),
        context_(ASIO_CONCURRENCY_HINT_UNSAFE),
        acceptor_(context_),
        responder_(setting.opt) {
    acceptor_.assign(tcp::v4(), setting.listener_fd);
    if (setting.tls != nullptr) {
      tls_ = std::make_unique<asio::ssl::context>(
          floor_server::make_tls_context(*opt_.tls, *setting.tls).release());
      SSL_CTX_set_mode(tls_->native_handle(), SSL_MODE_RELEASE_BUFFERS);
    }
  }

  void run() {
    accept();
    context_.run();
  }

 private:
  void accept() {
    acceptor_.async_accept([this](error_code error, tcp::socket socket) {
      if (!error) serve(std::move(socket));
      accept();
    });
  }

  void serve(tcp::socket socket) {
    error_code ignored;
    socket.set_option(tcp::no_delay(true), ignored);
    if (tls_) {
      using stream = asio::ssl::stream<tcp::socket>;
      (new session<stream>(stream(std::move(socket), *tls_), opt_, responder_))->start();
    } else {
      (new session<tcp::socket>(std::move(socket), opt_, responder_))->start();
    }
  }

  const peer::options& opt_;
  asio::io_context context_;
  tcp::acceptor acceptor_;
  peer::responder responder_;
  std::unique_ptr<asio::ssl::context> tls_;
};

}  // namespace

int main(int argc, char** argv) {
  const peer::options opt = peer::parse_options(argc, argv, true);
  peer::run(opt, [](const peer::loop_setting& setting) { loop(setting).run(); });
  std::_Exit(0);  // the loops use this frame's objects until the process is gone
}
