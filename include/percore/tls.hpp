// tls_context: certificates, keys and settings for TLS, for listeners (listen_options::tls), for connection::start_tls
// and for outgoing connections.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <ctime>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace percore {

namespace tls {
class shared_context;
}

// As on the wire (RFC 8446 4.2.1).
enum class tls_version : std::uint16_t { v1_2 = 0x0303, v1_3 = 0x0304 };

// Whether a client is asked for a certificate, and what becomes of one that has none. One that shows a certificate
// that cannot be verified is refused in either case.
enum class client_certificates { none, optional, required };

// Whether the kernel encrypts what is sent (kTLS).
enum class kernel_tls { never, when_possible };

// What is wrong with a context: names the file or the option, and says OpenSSL's reason.
class tls_error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A certificate with its chain, and the key that belongs to it. Each as a file or as text, PEM in both cases.
struct tls_certificate {
  std::string chain_file;  // the certificate first, then the intermediate ones that lead to a root
  std::string key_file;
  std::string chain_pem;  // instead of the files
  std::string key_pem;
  // Asked for the passphrase when the key is encrypted, at construction and at each reload, on the thread of the call.
  // Empty: an encrypted key is an error.
  std::function<std::string()> passphrase;
  // Server names (SNI, RFC 6066 3) that this certificate is for: "example.org", or "*.example.org" for exactly one more
  // label. Empty: the names that the certificate itself bears. Case does not matter.
  std::vector<std::string> names;
  // A DER file with an OCSP response, sent to clients that ask (stapling, RFC 6066 8). Read at construction and reload:
  // one that bears no status of this certificate is an error, one that is out of date a warning. Signatures are not checked.
  std::string ocsp_file;
};

struct tls_options {
  // Server: at least one. The first that fits the client's server name, exact names before wildcards, is used; without
  // a name, or with an unknown one, the first of the list. Several for the same name differ by key type (ECDSA beside
  // RSA): the client's signature algorithms then decide.
  // Client: none or one, shown when the server asks.
  std::vector<tls_certificate> certificates;

  tls_version min_version = tls_version::v1_2;
  tls_version max_version = tls_version::v1_3;
  // OpenSSL's lists ("ECDHE-ECDSA-AES128-GCM-SHA256:..." for TLS 1.2, "TLS_AES_128_GCM_SHA256:..." for 1.3,
  // "X25519:P-256" for the groups), best first. Empty: the defaults, which have forward secrecy and AEAD only.
  std::string ciphers;
  std::string ciphersuites;
  std::string groups;
  // Protocols for ALPN (RFC 7301), best first. A server chooses its best that the client offers; a client that offers
  // only others is refused (no_application_protocol). Empty: the extension is ignored.
  std::vector<std::string> alpn;

  // Server: client certificates and who may have issued them. Client: who may have issued the server's; when both are
  // empty, the system's store.
  client_certificates clients = client_certificates::none;
  std::string authorities_file;  // PEM
  std::string authorities_pem;
  int verify_depth = 10;  // intermediate certificates, at most

  // Client: the server's certificate must be valid and bear the name that was dialled. Only tests turn this off.
  bool verify_server = true;

  // Resumption by session tickets (RFC 8446 4.6.1, RFC 5077). All cores share the keys without sharing memory. A new
  // key begins every `ticket_key_lifetime`; the one before it is still accepted, so a ticket is good for one to two
  // lifetimes and at most `session_lifetime` (RFC 8446 allows 7 days). Early data is never accepted.
  // Each resumption brings a new ticket; `resumption_lifetime` limits the whole chain of them, from the full handshake on
  // (RFC 8446 4.6.1 recommends a limit; 7 days, the longest life of a single ticket, is the most). A chain on which a
  // client certificate was verified ends also when the first certificate of its path expires. Then follows a full
  // handshake.
  bool tickets = true;
  std::chrono::seconds ticket_key_lifetime{3600};
  std::chrono::seconds session_lifetime{7200};
  std::chrono::seconds resumption_lifetime{std::chrono::hours(24 * 7)};

  // Client: how many sessions each core keeps to resume, in all, at most 4096; each until its ticket, `session_lifetime`,
  // `resumption_lifetime` or the server's certificate ends; 0 (or no tickets): none. A dial resumes under this context, as of
  // its last reload, with the same verified name and port only; a ticket of TLS 1.3 is used once (RFC 8446 C.4). Then no certificate
  // is shown, and peer_certificates() are those of the full handshake. A kept session takes 2 to 10 KB (not measured).
  std::size_t client_sessions = 256;

  // when_possible: after the handshake the kernel encrypts what is sent, if it has the module "tls" (Linux 4.13; TLS 1.3
  // from 5.1), knows the connection's cipher, and OpenSSL was built with it; otherwise OpenSSL does, without a word.
  // tls_info and core_stats tell which. It pays for large files and with network cards that encrypt; two more system
  // calls per connection are its price. What is received OpenSSL decrypts in either case. A peer that asks for new
  // keys (KeyUpdate with update_requested, RFC 8446 4.6.3) loses its connection: OpenSSL 3.0 cannot give the kernel any.
  // A kernel that has no module is asked once for each core.
  kernel_tls kernel = kernel_tls::never;

  // Appends the secrets of every connection to this file in the NSS key log format, so that Wireshark can decrypt what
  // it captures. For debugging: whoever has the file reads everything. With server_options::private_descriptors the
  // context must have been made before the server is started.
  std::string key_log_file;

  // Called with one line of text: a certificate that has expired, a key log that is on. On the thread that constructs
  // or reloads. Default: standard error.
  std::function<void(const std::string&)> on_warning;
};

enum class tls_role { server, client };

// Settings for TLS, shared by all servers and cores that were given it: a handle that is cheap to copy. Each core makes
// its own OpenSSL objects from it, in an OSSL_LIB_CTX of its own, so cores share no memory of OpenSSL's; providers and
// properties that openssl.cnf sets for the process do not apply. Any thread.
class tls_context {
 public:
  // Reads and checks everything now. Throws tls_error.
  explicit tls_context(tls_options options, tls_role role = tls_role::server);

  // Reads the files again. Connections that begin their handshake from now on, on every core, use what they hold;
  // running ones are not touched. Throws tls_error and changes nothing when something is wrong with them.
  void reload();
  // The same with other options; key_log_file cannot change.
  void reload(tls_options options);

  // Ends the life of the newest ticket key now, as if its lifetime had passed. Calling it twice makes all tickets that
  // were given out invalid.
  void rotate_ticket_keys() noexcept;

  [[nodiscard]] tls_role role() const noexcept;

  // For the engine.
  [[nodiscard]] const std::shared_ptr<tls::shared_context>& shared() const noexcept { return shared_; }

 private:
  std::shared_ptr<tls::shared_context> shared_;
};

// What a handshake has agreed on. The views are valid as long as the connection.
struct tls_info {
  tls_version version = tls_version::v1_3;
  std::string_view cipher;       // OpenSSL's name: "TLS_AES_128_GCM_SHA256", "ECDHE-RSA-AES128-GCM-SHA256"
  std::string_view alpn;         // the chosen protocol; empty: none
  std::string_view server_name;  // what the client asked for (SNI); empty: nothing
  bool resumed = false;          // by a ticket: no certificate was shown
  bool kernel_sends = false;     // tls_options::kernel, and it was possible
};

// One certificate of the peer.
struct tls_peer_certificate {
  std::string subject;  // RFC 2253: "CN=alice,O=Example"
  std::string issuer;
  std::string common_name;
  std::vector<std::string> dns_names;  // of subjectAltName
  std::string serial;                  // hexadecimal
  std::string sha256;                  // fingerprint, lower case hexadecimal
  std::time_t not_before = 0;
  std::time_t not_after = 0;
  std::string pem;
};

// What is done with bytes that a client sent in plain before start_tls() was called, behind the command that asked for
// TLS. Taking them for part of the encrypted conversation would let anyone in between inject commands (CVE-2011-0411).
enum class buffered_plaintext {
  refuse,   // start_tls() fails with errc::plaintext_injected
  discard,  // they are dropped
};

// Why a handshake failed. core_stats counts them.
enum class tls_failure : std::uint8_t {
  timed_out,       // listen_options::handshake_timeout
  peer_gone,       // closed or reset by the peer in mid-handshake
  not_tls,         // what came is no TLS record
  plain_http,      // it is an HTTP request
  nothing_shared,  // no version, cipher, group, signature algorithm or application protocol in common
  certificate,     // the peer's certificate is missing or was not accepted
  alert,           // the peer sent an alert: it did not like something of ours
  protocol,        // any other violation of the protocol, or of its limits
  internal,        // no memory, or OpenSSL failed
};
inline constexpr std::size_t tls_failure_count = 9;
std::string_view name_of(tls_failure cause) noexcept;

}  // namespace percore
