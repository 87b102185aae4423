#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <percore/tls.hpp>

#include "engine/base/cache_line.hpp"
#include "engine/tls/io.hpp"
#include "engine/tls/openssl.hpp"
#include "engine/tls/session_cache.hpp"

namespace percore::tls {

class core_context;

enum class status : std::uint8_t {
  done,
  want_input,  // receive more, then call again
  closed,      // the peer's close_notify: nothing more will come
  failed,      // for good; failure() and reason() tell why, and an alert may be waiting in the output
};

// One TLS conversation, of either side, without a socket: it takes ciphertext from the core's io and leaves there what
// is to be sent, after every call. Used on its core's thread only.
class alignas(base::cache_line_bytes) session {
 public:
  // `made` is of `context`, which must outlive the session; takes the io's BIO.
  session(io& wire, core_context& context, ssl_ptr made) noexcept;
  session(const session&) = delete;
  session& operator=(const session&) = delete;
  ~session();

  status handshake() noexcept;
  // Client, before the handshake: `server` is what it verifies and the port. Offers what an earlier session has left, and leaves
  // what this one brings. True: something is offered.
  bool resume(std::string server) noexcept;
  // For the context. True: taken.
  bool keep_for_resumption(SSL_SESSION* fresh) noexcept;
  // Decrypts into `target`, as much as fits of what has been received.
  [[gnu::hot]] status read(std::span<std::byte> target, std::size_t& done) noexcept;
  // Encrypts all of it, at the time `now_ns`. False: failed.
  [[gnu::hot]] bool write(std::span<const std::byte> data, std::int64_t now_ns) noexcept;
  // Says goodbye, once; nothing before the handshake is done and nothing after a failure.
  void close_notify() noexcept;
  // The peer's FIN has come. Before its close_notify that is a truncation; in a handshake, its failure.
  void input_ended() noexcept;

  // Whether read() has something to decrypt or to hand out without another receive.
  [[nodiscard]] bool pending() const noexcept { return more_ || failed_; }
  // The handshake cannot go on without more from the peer; a client's begins without.
  [[nodiscard]] bool awaits_input() const noexcept { return awaits_input_; }
  // The io holds input for a handshake that has not begun.
  void input_is_there() noexcept { awaits_input_ = false; }
  // The first step of the handshake was made: as a server, the peer has sent something.
  [[nodiscard]] bool begun() const noexcept { return begun_; }
  [[nodiscard]] bool established() const noexcept { return established_; }
  [[nodiscard]] bool close_received() const noexcept { return close_received_; }
  [[nodiscard]] bool has_failed() const noexcept { return failed_; }

  [[nodiscard]] tls_failure failure() const noexcept { return failure_; }
  [[nodiscard]] std::string_view reason() const noexcept { return reason_; }
  void fail(tls_failure cause, const char* reason) noexcept;  // the first one stands
  void handshake_timed_out() noexcept { fail(tls_failure::timed_out, "the handshake took too long"); }
  void handshake_lost() noexcept { fail(tls_failure::peer_gone, "the connection was lost in mid-handshake"); }

  // Kernel TLS. The owner of the socket is asked, in the midst of a handshake, whether the kernel can take over with
  // these keys (sys::start_kernel_tls); it sends first what is in the output. From true on, write() must not be called
  // any more, and what the session has to say itself is in io::kernel_messages().
  using take_over = bool (*)(void* owner, const void* keys) noexcept;
  void offer_sending(void* owner, take_over asked) noexcept {
    owner_ = owner;
    take_over_ = asked;
  }
  bool hand_over_sending(const void* keys) noexcept;  // for the io
  // For the io: whether the kernel can send this. A KeyUpdate (RFC 8446 4.6.3) ends the session: OpenSSL 3.0 does not
  // tell the kernel the keys that it announces.
  bool may_send(const kernel_message& message) noexcept;
  [[nodiscard]] bool kernel_sends() const noexcept { return kernel_sends_; }
  // Messages for which the socket had no room. keep(): false when memory is out.
  bool keep(const kernel_message& message) noexcept;
  [[nodiscard]] std::size_t kept() const noexcept { return kept_messages_.size(); }
  [[nodiscard]] const kernel_message* first_kept() const noexcept {
    return kept_messages_.empty() ? nullptr : &kept_messages_.front();
  }
  void drop_first_kept() noexcept { kept_messages_.erase(kept_messages_.begin()); }

  [[nodiscard]] tls_info info() const noexcept;
  [[nodiscard]] std::vector<tls_peer_certificate> peer_certificates() const;
  [[nodiscard]] SSL* ssl() const noexcept { return ssl_.get(); }
  [[nodiscard]] core_context& context() const noexcept { return context_; }

 private:
  friend class io;
  void keep_leftover(std::span<const std::byte> bytes) noexcept;
  [[nodiscard]] bool has_more() const noexcept;
  status judge(int result) noexcept;
  void put_back() noexcept;
  status judge_read() noexcept;
  void fail_as_queued(unsigned long error) noexcept;

  // What every request touches: one line of the cache.
  io& io_;
  ssl_ptr ssl_;
  std::unique_ptr<std::byte[]> kept_;  // ciphertext that another session's turn found unread
  std::size_t burst_ = 0;  // bytes written since the last pause
  std::int64_t last_write_ns_ = 0;
  bool more_ = false;  // the last read has left something, if only the news that the stream has ended
  bool awaits_input_;
  bool begun_ = false;
  bool established_ = false;
  bool kernel_sends_ = false;
  bool close_sent_ = false;
  bool close_received_ = false;
  bool failed_ = false;

  core_context& context_;
  std::size_t kept_bytes_ = 0;
  std::vector<kernel_message> kept_messages_;
  void* owner_ = nullptr;
  take_over take_over_ = nullptr;
  const char* reason_ = "";
  tls_failure failure_ = tls_failure::internal;
  struct resumption {
    std::string server;
    authenticated by;  // of the session that was offered
  };
  std::unique_ptr<resumption> resumption_;  // client: none when it resumes nothing
};

}  // namespace percore::tls
