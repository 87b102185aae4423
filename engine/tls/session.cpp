#include "engine/tls/session.hpp"

#include <algorithm>
#include <cstring>
#include <new>
#include <utility>

#include <openssl/err.h>
#include <openssl/ssl.h>

#include "engine/sys/calls.hpp"
#include "engine/tls/core_context.hpp"

namespace percore::tls {

namespace {

// A burst begins with small records, which the peer can decrypt as soon as a part of the first congestion window has
// come (RFC 6928: 10 segments), and goes on with the largest, which cost least. After a pause of about a
// retransmission time-out the window is small again (RFC 5681 4.1).
constexpr std::int64_t pause_ns = 1'000'000'000;
constexpr std::size_t small_record = 4 * 1024;
constexpr std::size_t small_records_bytes = 16 * 1024;
constexpr std::size_t large_record = SSL3_RT_MAX_PLAIN_LENGTH;

constexpr const char* no_new_keys = "the peer asks for new keys, which the kernel cannot be given";

tls_failure classify(unsigned long error) noexcept {
  if (ERR_GET_LIB(error) != ERR_LIB_SSL) {
    return error == 0 || ERR_GET_REASON(error) == ERR_R_MALLOC_FAILURE ? tls_failure::internal : tls_failure::protocol;
  }
  const int reason = ERR_GET_REASON(error);
  if (reason > SSL_AD_REASON_OFFSET && reason < SSL_AD_REASON_OFFSET + 256) return tls_failure::alert;
  switch (reason) {
    case SSL_R_HTTP_REQUEST:
    case SSL_R_HTTPS_PROXY_REQUEST:
      return tls_failure::plain_http;
    case SSL_R_WRONG_VERSION_NUMBER:
    case SSL_R_PACKET_LENGTH_TOO_LONG:
    case SSL_R_RECORD_TOO_SMALL:
      return tls_failure::not_tls;
    case SSL_R_NO_SHARED_CIPHER:
    case SSL_R_UNSUPPORTED_PROTOCOL:
    case SSL_R_UNSUPPORTED_SSL_VERSION:
    case SSL_R_UNKNOWN_PROTOCOL:
    case SSL_R_VERSION_TOO_LOW:
    case SSL_R_NO_PROTOCOLS_AVAILABLE:
    case SSL_R_NO_SUITABLE_KEY_SHARE:
    case SSL_R_NO_SUITABLE_GROUPS:
    case SSL_R_NO_SUITABLE_SIGNATURE_ALGORITHM:
    case SSL_R_NO_SHARED_SIGNATURE_ALGORITHMS:
    case SSL_R_NO_APPLICATION_PROTOCOL:
      return tls_failure::nothing_shared;
    case SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE:
    case SSL_R_CERTIFICATE_VERIFY_FAILED:
    case SSL_R_NO_CERTIFICATES_RETURNED:
      return tls_failure::certificate;
    case ERR_R_MALLOC_FAILURE:
    case ERR_R_INTERNAL_ERROR:
      return tls_failure::internal;
    default:
      return tls_failure::protocol;
  }
}

}  // namespace

session::session(io& wire, core_context& context, ssl_ptr made) noexcept
    : io_(wire), ssl_(std::move(made)), awaits_input_(SSL_is_server(ssl_.get()) == 1), context_(context) {
  ++context_.sessions;
  BIO* bio = io_.take_bio(context.wants_kernel_tls());
  SSL_set_bio(ssl_.get(), bio, bio);
}

session::~session() {
  io_.forget(*this);
  --context_.sessions;
}

void session::fail(tls_failure cause, const char* reason) noexcept {
  if (failed_) return;
  failed_ = true;
  failure_ = cause;
  reason_ = reason;
}

// What a step of the handshake that has not succeeded means. The oldest error says most of it; handshake() has seen to
// it that nobody else's is in the queue.
status session::judge(int result) noexcept {
  switch (SSL_get_error(ssl_.get(), result)) {
    case SSL_ERROR_WANT_READ:
      return failed_ ? status::failed : status::want_input;
    case SSL_ERROR_ZERO_RETURN:
      close_received_ = true;
      return status::closed;
    default:
      fail_as_queued(ERR_peek_error());
      return status::failed;
  }
}

// The same for a read. Handlers may have left errors of their own on this thread, for which SSL_get_error looks first;
// to look for them before each read costs 1 % of a request. What SSL_want says is no answer either: it is of an earlier
// call when there was no memory to read into, and "read" after any failure in the midst of a handshake message.
// So the io says whether input was missing, the session whether it has failed, and of the errors the latest is its own.
status session::judge_read() noexcept {
  if (io_.starved_) return failed_ ? status::failed : status::want_input;
  const bool ended = (SSL_get_shutdown(ssl_.get()) & SSL_RECEIVED_SHUTDOWN) != 0;  // by close_notify, or a fatal alert
  if (ended && std::strcmp(SSL_state_string(ssl_.get()), "SSLERR") != 0) {
    close_received_ = true;
    return status::closed;
  }
  fail_as_queued(ERR_peek_last_error());
  return status::failed;
}

void session::fail_as_queued(unsigned long error) noexcept {
  const char* text = ERR_reason_error_string(error);
  fail(classify(error), text == nullptr ? "no memory" : text);
  ERR_clear_error();
}

// SSL_has_pending tells of bytes of a record that is not whole yet, too.
bool session::has_more() const noexcept { return io_.has_input() || SSL_has_pending(ssl_.get()) == 1; }

status session::handshake() noexcept {
  if (failed_) return status::failed;
  io_.use(*this);
  if (ERR_peek_error() != 0) ERR_clear_error();  // looking is cheaper than clearing all 16 places of the queue
  const int result = SSL_do_handshake(ssl_.get());
  awaits_input_ = begun_ = true;
  if (result != 1) return judge(result);
  established_ = true;
  if (resumption_ != nullptr) put_back();
  more_ = has_more();
  return status::done;
}

bool session::resume(std::string server) noexcept {
  if (!context_.resumes()) return false;
  resumption_.reset(new (std::nothrow) resumption);
  if (resumption_ == nullptr) return false;
  resumption_->server = std::move(server);
  SSL_set_app_data(ssl_.get(), this);
  const auto found = context_.cache().take(resumption_->server, sys::unix_seconds());
  if (!found || SSL_set_session(ssl_.get(), found->session.get()) != 1) {
    ERR_clear_error();
    return false;
  }
  resumption_->by = found->by;
  return true;
}

bool session::keep_for_resumption(SSL_SESSION* fresh) noexcept {
  if (resumption_ == nullptr || failed_) return false;
  const std::int64_t now = sys::unix_seconds();
  session_cache::entry made;
  // A ticket that comes late, which a server may send at any time, proves nothing anew.
  if (established_ || SSL_session_reused(ssl_.get()) == 1) {
    made.by = resumption_->by;
  } else {
    made.by = {now, first_expiry(ssl_.get())};
  }
  // The server's word on how long its ticket is good (RFC 8446 4.6.1), within the context's own.
  std::int64_t lifetime = SSL_CTX_get_timeout(SSL_get_SSL_CTX(ssl_.get()));
  if (SSL_SESSION_has_ticket(fresh) == 1) {
    const auto hint = static_cast<std::int64_t>(SSL_SESSION_get_ticket_lifetime_hint(fresh));
    const bool is_v1_3 = SSL_SESSION_get_protocol_version(fresh) == TLS1_3_VERSION;
    if (hint != 0 || is_v1_3) lifetime = std::min(lifetime, hint);  // 0: in 1.2 unspecified, in 1.3 not at all
  }
  made.expires = static_cast<std::int64_t>(SSL_SESSION_get_time(fresh)) + lifetime;  // since it was given, not used
  try {
    made.key = resumption_->server;
  } catch (const std::bad_alloc&) {
    return false;
  }
  made.session.reset(fresh);
  context_.cache().put(std::move(made), now);
  return true;
}

// TLS 1.2: what was offered, and taken, is good for the next one too.
void session::put_back() noexcept {
  if (SSL_session_reused(ssl_.get()) != 1) {
    resumption_->by = {sys::unix_seconds(), first_expiry(ssl_.get())};
  } else if (SSL_version(ssl_.get()) != TLS1_3_VERSION) {
    if (ssl_session_ptr used(SSL_get1_session(ssl_.get())); used && keep_for_resumption(used.get())) (void)used.release();
  }
}

status session::read(std::span<std::byte> target, std::size_t& done) noexcept {
  done = 0;
  if (failed_) return status::failed;
  if (close_received_) return status::closed;
  io_.use(*this);
  while (done < target.size()) {
    std::size_t got = 0;
    io_.starved_ = false;
    const int result = SSL_read_ex(ssl_.get(), target.data() + done, target.size() - done, &got);
    if (kernel_sends_ && SSL_get_key_update_type(ssl_.get()) != SSL_KEY_UPDATE_NONE) {
      fail(tls_failure::internal, no_new_keys);
    }
    if (result != 1) {
      const status why = judge_read();
      more_ = why != status::want_input;
      // What was decrypted before is handed out first; a lasting state is found again by the next call.
      return done != 0 ? status::done : why;
    }
    done += got;
    more_ = has_more();
    if (!more_) break;
  }
  return status::done;
}

bool session::write(std::span<const std::byte> data, std::int64_t now_ns) noexcept {
  if (failed_ || close_sent_) return false;
  if (now_ns - last_write_ns_ > pause_ns) burst_ = 0;
  last_write_ns_ = now_ns;
  io_.use(*this);
  while (!data.empty()) {
    const std::size_t record = burst_ < small_records_bytes ? small_record : large_record;
    const std::size_t size = std::min(data.size(), record);
    std::size_t written = 0;
    io_.starved_ = false;
    if (SSL_write_ex(ssl_.get(), data.data(), size, &written) != 1) {
      // OpenSSL writes nothing between two parts of a message of the handshake (RFC 8446 5.1 allows to cut them).
      if (io_.starved_) fail(tls_failure::protocol, "the peer has sent a part of a handshake message only");
      fail_as_queued(SSL_want_write(ssl_.get()) ? 0 : ERR_peek_last_error());  // the BIO leaves no error
      return false;
    }
    burst_ += written;
    data = data.subspan(written);
  }
  return true;
}

bool session::hand_over_sending(const void* keys) noexcept {
  if (take_over_ == nullptr || kernel_sends_ || failed_) return false;
  kernel_sends_ = take_over_(owner_, keys);
  return kernel_sends_;
}

bool session::may_send(const kernel_message& message) noexcept {
  const bool key_update = message.type == SSL3_RT_HANDSHAKE && !message.content.empty() &&
                          message.content.front() == std::byte{SSL3_MT_KEY_UPDATE};
  if (key_update) fail(tls_failure::internal, no_new_keys);
  return !key_update;
}

bool session::keep(const kernel_message& message) noexcept {
  try {
    kept_messages_.push_back(message);
    return true;
  } catch (const std::bad_alloc&) {
    return false;
  }
}

void session::close_notify() noexcept {
  if (!established_ || failed_ || close_sent_) return;
  close_sent_ = true;
  io_.use(*this);
  (void)SSL_shutdown(ssl_.get());
  ERR_clear_error();
}

void session::input_ended() noexcept {
  if (!established_) fail(tls_failure::peer_gone, "the peer closed the connection in mid-handshake");
}

// Bytes that wait for this session -------------------------------------------------------------------------

void session::keep_leftover(std::span<const std::byte> bytes) noexcept {
  kept_.reset(new (std::nothrow) std::byte[bytes.size()]);
  if (kept_ == nullptr) {
    fail(tls_failure::internal, "no memory for received records");
    return;
  }
  std::memcpy(kept_.get(), bytes.data(), bytes.size());
  kept_bytes_ = bytes.size();
}

// Questions -------------------------------------------------------------------------------------------------

tls_info session::info() const noexcept {
  tls_info result;
  const SSL* ssl = ssl_.get();
  result.version = static_cast<tls_version>(SSL_version(ssl));
  if (const SSL_CIPHER* cipher = SSL_get_current_cipher(ssl)) result.cipher = SSL_CIPHER_get_name(cipher);
  const unsigned char* protocol = nullptr;
  unsigned length = 0;
  SSL_get0_alpn_selected(ssl, &protocol, &length);
  if (length != 0) result.alpn = {reinterpret_cast<const char*>(protocol), length};
  if (const char* name = SSL_get_servername(ssl, TLSEXT_NAMETYPE_host_name)) result.server_name = name;
  result.resumed = SSL_session_reused(ssl) == 1;
  result.kernel_sends = kernel_sends_;
  return result;
}

}  // namespace percore::tls

std::string_view percore::name_of(tls_failure cause) noexcept {
  switch (cause) {
    case tls_failure::timed_out:
      return "timed out";
    case tls_failure::peer_gone:
      return "peer gone";
    case tls_failure::not_tls:
      return "not TLS";
    case tls_failure::plain_http:
      return "plain HTTP";
    case tls_failure::nothing_shared:
      return "nothing shared";
    case tls_failure::certificate:
      return "certificate";
    case tls_failure::alert:
      return "alert";
    case tls_failure::protocol:
      return "protocol";
    case tls_failure::internal:
      return "internal";
  }
  return "unknown";
}
