#include <percore/error.hpp>

#include <string>

namespace percore {

namespace {

class category final : public std::error_category {
 public:
  [[nodiscard]] const char* name() const noexcept override { return "percore"; }

  [[nodiscard]] std::string message(int value) const override {
    switch (static_cast<errc>(value)) {
      case errc::end_of_stream:
        return "the peer has ended its stream";
      case errc::connection_reset:
        return "the peer has reset the connection";
      case errc::timed_out:
        return "timed out";
      case errc::shutting_down:
        return "the server is shutting down";
      case errc::limit_exceeded:
        return "a limit was exceeded";
      case errc::closed:
        return "closed by this side";
      case errc::no_memory:
        return "out of memory";
      case errc::tls_failed:
        return "TLS failed";
      case errc::truncated:
        return "the stream ended without TLS's close_notify";
      case errc::plaintext_injected:
        return "the peer sent plaintext behind its request for TLS";
      case errc::queue_full:
        return "the queue to the helper threads is full";
      case errc::no_address:
        return "the name has no address";
      case errc::not_permitted:
        return "no address is permitted";
      case errc::cancelled:
        return "cut short: another task was first";
      case errc::file_ended:
        return "the file has ended before";
    }
    return "unknown error " + std::to_string(value);
  }
};

}  // namespace

const std::error_category& error_category() noexcept {
  static const category the_category;
  return the_category;
}

}  // namespace percore
