// What tls_options promise, as clients see it.
#include <doctest/doctest.h>


#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "tests/support/clean_process.hpp"
#include "tests/support/test_server.hpp"
#include "tests/support/tls_client.hpp"
#include "tests/support/tls_server.hpp"

namespace percore::test {
namespace {

// Answers with what the handler knows of the handshake.
task<> tell_info(connection& conn) {
  const auto info = conn.tls();
  const std::string text = !info ? "plain"
                                 : std::string(info->version == tls_version::v1_3 ? "1.3" : "1.2") + " " +
                                       std::string(info->cipher) + " alpn=" + std::string(info->alpn) +
                                       " name=" + std::string(info->server_name) +
                                       (info->resumed ? " resumed" : " full");
  co_await conn.write(text);
}

std::string certificate_for(const test_server& server, const std::string& name, tls_client_options how = {}) {
  how.server_name = name;
  how.verify = false;
  tls_client peer(server.where(), tls_profile(how));
  return peer.handshake().peer_sha256();
}

// The reason that OpenSSL gives when the handshake fails, on whichever side the client learns it; empty: it
// does not.
std::string refusal(const test_server& server, const tls_client_options& how) {
  try {
    tls_client peer(server.where(), tls_profile(how));
    // With TLS 1.3 a server's refusal of the last flight comes after the client is done.
    peer.handshake().recv_to_end();
    return {};
  } catch (const tls_went_wrong& wrong) {
    return wrong.what();
  }
}

TEST_CASE_FIXTURE(clean_process, "tls settings: the handler knows what was agreed on") {
  tls_options options = server_tls();
  options.alpn = {"h2", "http/1.1"};
  test_server server(tell_info, one_core(), over_tls(options));
  tls_client_options how;
  how.alpn = {"http/1.1"};
  CHECK(tls_client(server.where(), tls_profile(how)).handshake().recv_to_end() ==
        "1.3 TLS_AES_128_GCM_SHA256 alpn=http/1.1 name=localhost full");
  how.max_version = TLS1_2_VERSION;
  how.server_name = "";
  how.alpn = {};
  CHECK(tls_client(server.where(), tls_profile(how)).handshake().recv_to_end() ==
        "1.2 ECDHE-ECDSA-AES128-GCM-SHA256 alpn= name= full");
  test_server plain(tell_info);
  CHECK(plain.connect().recv_to_end() == "plain");
}

TEST_CASE_FIXTURE(clean_process, "tls settings: the certificate follows the client's server name") {
  const certificate first = authority().issue("first", {"first.example", "also-first.example"});
  const certificate exact = authority().issue("exact", {"a.wild.example"});
  const certificate wild = authority().issue("wild", {"*.wild.example"});
  const certificate named = authority().issue("elsewhere", {"elsewhere.example"});
  const certificate by_common_name = authority().issue("common.example");
  tls_options options = server_tls(first);
  options.certificates.push_back(shown(exact));
  options.certificates.push_back(shown(wild));
  options.certificates.push_back(shown(named));
  options.certificates.back().names = {"Given.Example", "*.given.example"};
  options.certificates.push_back(shown(by_common_name));
  test_server server(echo, one_core(), over_tls(options));
  const struct {
    const char* name;
    const certificate* expected;
  } table[] = {
      {"first.example", &first},
      {"also-first.example", &first},
      {"a.wild.example", &exact},
      {"b.wild.example", &wild},
      {"A.Wild.EXAMPLE", &exact},
      {"B.WILD.example", &wild},
      {"a.b.wild.example", &first},
      {"wild.example", &first},
      {".wild.example", &first},
      {"*.wild.example", &wild},
      {"given.example", &named},
      {"x.given.example", &named},
      {"elsewhere.example", &first},
      {"common.example", &by_common_name},
      {"unknown.example", &first},
      {"", &first},
      {"x", &first},
      {"xn--bcher-kva.wild.example", &wild},
  };
  for (const int version : {TLS1_2_VERSION, TLS1_3_VERSION}) {
    tls_client_options how;
    how.min_version = how.max_version = version;
    for (const auto& row : table) {
      CAPTURE(row.name);
      CHECK(certificate_for(server, row.name, how) == row.expected->sha256());
    }
    const std::string longest(250, 'a');
    CHECK(certificate_for(server, longest, how) == first.sha256());
  }
}

TEST_CASE_FIXTURE(clean_process,
                  "tls settings: RSA beside ECDSA, chosen by the client's signature algorithms") {
  const certificate rsa = authority().issue("localhost", {"localhost", "other.example"}, key_kind::rsa_2048);
  const certificate ecdsa = authority().issue("localhost", {"localhost", "other.example"});
  tls_options options = server_tls(rsa);
  SUBCASE("RSA first") {
    options.certificates.push_back(shown(ecdsa));
  }
  SUBCASE("ECDSA first") {
    options.certificates.insert(options.certificates.begin(), shown(ecdsa));
  }
  test_server server(echo, one_core(), over_tls(options));
  for (const char* name : {"localhost", "other.example", "unknown.example", ""}) {
    CAPTURE(name);
    tls_client_options how;
    how.signature_algorithms = "ECDSA+SHA256";
    CHECK(certificate_for(server, name, how) == ecdsa.sha256());
    how.signature_algorithms = "RSA-PSS+SHA256:RSA+SHA256";
    CHECK(certificate_for(server, name, how) == rsa.sha256());
    how.max_version = TLS1_2_VERSION;
    CHECK(certificate_for(server, name, how) == rsa.sha256());
    how.signature_algorithms = "";
    how.ciphers = "ECDHE-RSA-AES128-GCM-SHA256";
    CHECK(certificate_for(server, name, how) == rsa.sha256());
    how.ciphers = "ECDHE-ECDSA-AES128-GCM-SHA256";
    CHECK(certificate_for(server, name, how) == ecdsa.sha256());
  }
}

TEST_CASE_FIXTURE(clean_process, "tls settings: the chain is sent with the certificate") {
  const certificate middle({.common_name = "middle", .authority = true}, &authority().root);
  const certificate leaf({.common_name = "localhost", .dns_names = {"localhost"}}, &middle);
  test_server server(echo, one_core(), over_tls(server_tls(leaf)));
  tls_client peer(server.where());
  peer.handshake().send_all("x");  // verified, although the client has the root only
  CHECK(peer.recv_exactly(1) == "x");
  CHECK(sk_X509_num(SSL_get_peer_cert_chain(peer.ssl())) == 2);
}

TEST_CASE_FIXTURE(clean_process, "tls settings: application protocols") {
  tls_options options = server_tls();
  options.alpn = {"h2", "http/1.1"};
  test_server server(echo, one_core(), over_tls(options));
  const auto chosen = [&](std::vector<std::string> offered) {
    tls_client_options how;
    how.alpn = std::move(offered);
    return tls_client(server.where(), tls_profile(how)).handshake().alpn();
  };
  CHECK(chosen({"h2"}) == "h2");
  CHECK(chosen({"http/1.1"}) == "http/1.1");
  CHECK(chosen({"http/1.1", "h2"}) == "h2");  // the server's preference
  CHECK(chosen({"x", "http/1.1"}) == "http/1.1");
  CHECK(chosen({}).empty());
  tls_client_options how;
  how.alpn = {"h", "h2x"};
  CHECK(refusal(server, how) == "tlsv1 alert no application protocol");
  test_server without(echo, one_core(), over_tls());
  how.alpn = {"h2"};
  CHECK(tls_client(without.where(), tls_profile(how)).handshake().alpn().empty());
}

TEST_CASE_FIXTURE(clean_process,
                  "tls settings: versions, ciphers, suites and groups are what the options say") {
  const certificate rsa = authority().issue("localhost", {"localhost"}, key_kind::rsa_2048);
  tls_options options = server_tls(rsa);
  options.ciphers = "ECDHE-RSA-CHACHA20-POLY1305:ECDHE-RSA-AES256-GCM-SHA384";
  options.ciphersuites = "TLS_CHACHA20_POLY1305_SHA256:TLS_AES_256_GCM_SHA384";
  options.groups = "P-384:P-256";
  test_server server(tell_info, one_core(), over_tls(options));
  const auto agreed = [&](const tls_client_options& how) {
    tls_client peer(server.where(), tls_profile(how));
    const std::string text = peer.handshake().recv_to_end();
    return text.substr(0, text.find(" alpn")) + " " +
           OBJ_nid2sn(static_cast<int>(SSL_get_negotiated_group(peer.ssl())));
  };
  CHECK(agreed({}) == "1.3 TLS_CHACHA20_POLY1305_SHA256 secp384r1");
  tls_client_options how;
  how.max_version = TLS1_2_VERSION;
  how.ciphers = "ECDHE-RSA-AES256-GCM-SHA384:ECDHE-RSA-CHACHA20-POLY1305";
  how.groups = "P-256:P-384";
  const std::string text = agreed(how);  // the server's preference; a client of TLS 1.2 is not told the group
  CHECK(text.substr(0, text.rfind(' ')) == "1.2 ECDHE-RSA-CHACHA20-POLY1305");
  how = {};
  how.groups = "X25519:P-256";  // a HelloRetryRequest
  CHECK(agreed(how) == "1.3 TLS_CHACHA20_POLY1305_SHA256 prime256v1");
  how.groups = "X25519";
  CHECK_FALSE(refusal(server, how).empty());
  how = {};
  how.min_version = TLS1_3_VERSION;
  how.ciphersuites = "TLS_AES_128_GCM_SHA256";
  CHECK_FALSE(refusal(server, how).empty());
}

// --- client certificates -----------------------------------------------------------------------------------

// Answers with the chain that the client has shown.
task<> tell_peer(connection& conn) {
  std::string text;
  for (const auto& each : conn.peer_certificates()) {
    text += each.subject + " by " + each.issuer + " (" + each.common_name + "/" + each.sha256 + ")";
    for (const auto& name : each.dns_names) text += " " + name;
    const bool dates = each.not_before > 0 && each.not_after > each.not_before;
    const bool pem = each.pem.starts_with("-----BEGIN CERTIFICATE-----\n");
    text += dates && pem && !each.serial.empty() ? "\n" : " incomplete\n";
  }
  if (text.empty()) text = "nobody";
  if (conn.tls()->resumed) text += "resumed";
  co_await conn.write(text);
}

TEST_CASE_FIXTURE(clean_process, "tls settings: client certificates") {
  const certificate middle({.common_name = "middle", .authority = true}, &authority().root);
  const certificate alice({.common_name = "ren\xc3\xa9, 1", .dns_names = {"alice.example", "a2.example"}},
                          &middle);
  const certificate other_root({.common_name = "percore test root", .authority = true});
  const certificate mallory({.common_name = "mallory"}, &other_root);
  const certificate own({.common_name = "own"});
  const certificate old({.common_name = "old", .days_from = -10, .days_until = -1}, &authority().root);
  const certificate early({.common_name = "early", .days_from = 1, .days_until = 10}, &authority().root);
  tls_options options = server_tls();
  bool required = false;
  SUBCASE("required") {
    options.clients = client_certificates::required;
    required = true;
  }
  SUBCASE("optional") {
    options.clients = client_certificates::optional;
  }
  options.authorities_pem = authority().root.pem();
  test_server server(tell_peer, one_core(), over_tls(options));
  for (const int version : {TLS1_2_VERSION, TLS1_3_VERSION}) {
    CAPTURE(version);
    tls_client_options how;
    how.min_version = how.max_version = version;
    const std::uint64_t before = server.total().tls_failed_certificate;
    if (required) {
      CHECK(refusal(server, how) == (version == TLS1_2_VERSION ? "sslv3 alert handshake failure"
                                                               : "tlsv13 alert certificate required"));
    } else {
      CHECK(tls_client(server.where(), tls_profile(how)).handshake().recv_to_end() == "nobody");
    }
    how.identity = &alice;
    const std::string leaf =
        "CN=ren\xc3\xa9\\, 1 by CN=middle (ren\xc3\xa9, 1/" + alice.sha256() + ") alice.example a2.example\n";
    const std::string chain = leaf + "CN=middle by CN=percore test root (middle/" + middle.sha256() +
                              ")\nCN=percore test root by CN=percore test root (percore test root/" +
                              authority().root.sha256() + ")\n";
    const tls_profile as_alice(how);
    tls_client peer(server.where(), as_alice);
    CHECK(peer.handshake().recv_to_end() == chain);
    REQUIRE(peer.ticket() != nullptr);
    // Resumed: the certificate was verified when the ticket was given out.
    CHECK(tls_client(server.where(), as_alice, peer.ticket()).handshake().recv_to_end() == leaf + "resumed");
    how.identity = &mallory;
    CHECK(refusal(server, how).find("alert") != std::string::npos);
    how.identity = &own;
    CHECK(refusal(server, how) == "tlsv1 alert unknown ca");
    how.identity = &old;
    CHECK(refusal(server, how) == "sslv3 alert certificate expired");
    how.identity = &early;
    CHECK(refusal(server, how) == "sslv3 alert bad certificate");
    CHECK(eventually([&] { return server.total().tls_failed_certificate == before + (required ? 5 : 4); }));
  }
  CHECK(server.total().tls_failed_certificate == tls_failures(server.total()));
}

TEST_CASE_FIXTURE(clean_process, "tls settings: a depth limits the chain of a client") {
  const certificate middle({.common_name = "middle", .authority = true}, &authority().root);
  const certificate alice({.common_name = "alice"}, &middle);
  const certificate bob({.common_name = "bob"}, &authority().root);
  tls_options options = server_tls();
  options.clients = client_certificates::required;
  options.authorities_pem = authority().root.pem();
  options.verify_depth = 0;
  test_server server(tell_peer, one_core(), over_tls(options));
  tls_client_options how;
  how.identity = &bob;
  CHECK(refusal(server, how).empty());
  how.identity = &alice;
  CHECK_FALSE(refusal(server, how).empty());
}

TEST_CASE_FIXTURE(clean_process, "tls settings: nobody is asked for a certificate when none is wanted") {
  const certificate alice = authority().issue("alice");
  test_server server(tell_peer, one_core(), over_tls());
  tls_client_options how;
  how.identity = &alice;
  CHECK(tls_client(server.where(), tls_profile(how)).handshake().recv_to_end() == "nobody");
}

// --- the rest ----------------------------------------------------------------------------------------------

TEST_CASE_FIXTURE(clean_process,
                  "tls settings: an OCSP response is stapled for those who ask, to its certificate only") {
  const std::string response = authority().root.ocsp_response(authority().localhost);
  const temporary_file file(response);
  const certificate other = authority().issue("other.example", {"other.example"});
  tls_options options = server_tls();
  options.certificates.front().ocsp_file = file.path();
  options.certificates.push_back(shown(other));
  test_server server(echo, one_core(), over_tls(options));
  for (const int version : {TLS1_2_VERSION, TLS1_3_VERSION}) {
    const auto stapled = [&](const char* name, bool ask) {
      tls_client_options how;
      how.min_version = how.max_version = version;
      how.ask_for_status = ask;
      how.server_name = name;
      tls_client peer(server.where(), tls_profile(how));
      peer.handshake();
      const unsigned char* bytes = nullptr;
      const long size = SSL_get_tlsext_status_ocsp_resp(peer.ssl(), &bytes);
      return size <= 0 ? std::string()
                       : std::string(reinterpret_cast<const char*>(bytes), static_cast<std::size_t>(size));
    };
    CHECK(stapled("localhost", true) == response);
    CHECK(stapled("localhost", false).empty());
    CHECK(stapled("other.example", true).empty());
  }
}

TEST_CASE_FIXTURE(clean_process,
                  "tls settings: the key log has the secrets of every connection, and is announced") {
  const temporary_file log;
  std::vector<std::string> warnings;
  tls_options options = server_tls();
  options.key_log_file = log.path();
  options.on_warning = [&](const std::string& text) { warnings.push_back(text); };
  {
    test_server server(echo, one_core(), over_tls(options));
    for (const int version : {TLS1_2_VERSION, TLS1_3_VERSION}) {
      tls_client_options how;
      how.min_version = how.max_version = version;
      tls_client peer(server.where(), tls_profile(how));
      peer.handshake().send_all("x");
      CHECK(peer.recv_exactly(1) == "x");
    }
  }
  const std::string text = log.read();
  CHECK(text.find("CLIENT_RANDOM ") != std::string::npos);
  for (const char* label :
       {"CLIENT_HANDSHAKE_TRAFFIC_SECRET ", "SERVER_TRAFFIC_SECRET_0 ", "CLIENT_TRAFFIC_SECRET_0 "}) {
    CHECK(text.find(label) != std::string::npos);
  }
  CHECK(std::count(text.begin(), text.end(), '\n') == 6);
  CHECK(text.back() == '\n');
  REQUIRE(warnings.size() == 1);
  CHECK(warnings.front().find(log.path()) != std::string::npos);
}

TEST_CASE_FIXTURE(clean_process, "tls settings: certificates and keys from files, also encrypted ones") {
  const certificate& used = authority().localhost;
  const temporary_file chain(used.chain_pem());
  const temporary_file key(used.encrypted_key_pem("open sesame"));
  tls_options options = server_tls();
  options.certificates.front() = {};
  options.certificates.front().chain_file = chain.path();
  options.certificates.front().key_file = key.path();
  int asked = 0;
  options.certificates.front().passphrase = [&] {
    ++asked;
    return std::string("open sesame");
  };
  const tls_context context(options);
  CHECK(asked == 1);
  test_server server(echo, one_core(), over_tls(context));
  CHECK(certificate_for(server, "localhost") == used.sha256());
  CHECK(asked == 1);
}

TEST_CASE_FIXTURE(clean_process, "tls settings: one context for several listeners and servers") {
  const tls_context context(server_tls());
  server first(one_core());
  first.listen("127.0.0.1:0", echo, over_tls(context));
  first.listen("127.0.0.1:0", echo);
  first.listen("127.0.0.1:0", echo, over_tls(context));
  first.start();
  {
    test_server second(echo, one_core(), over_tls(context));
    for (const address& where : {first.local_address(0), first.local_address(2), second.where()}) {
      tls_client peer(where);
      peer.handshake().send_all("x");
      CHECK(peer.recv_exactly(1) == "x");
    }
  }
  client plain(first.local_address(1));
  plain.send_all("x");
  CHECK(plain.recv_exactly(1) == "x");
}

TEST_CASE_FIXTURE(clean_process, "tls settings: a client's context is no server's") {
  const tls_context context({}, tls_role::client);
  CHECK(context.role() == tls_role::client);
  server host(one_core());
  CHECK_THROWS_AS(host.listen("127.0.0.1:0", echo, over_tls(context)), std::invalid_argument);
}

}  // namespace
}  // namespace percore::test
