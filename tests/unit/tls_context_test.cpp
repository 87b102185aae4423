// tls_context: what is wrong with options is said with the name of what is wrong.
#include <doctest/doctest.h>

#include <percore/tls.hpp>

#include <functional>
#include <string>
#include <vector>

#include "tests/support/certificates.hpp"
#include "tests/support/tls_server.hpp"

namespace percore::test {
namespace {

// The message with which these options are refused; empty: they are not.
std::string refusal(const tls_options& options, tls_role role = tls_role::server) {
  try {
    const tls_context made(options, role);
    return {};
  } catch (const tls_error& wrong) {
    return wrong.what();
  }
}

bool mentions(const std::string& text, const std::vector<std::string>& parts) {
  for (const auto& part : parts) {
    if (text.find(part) == std::string::npos) {
      MESSAGE("'" << text << "' does not mention '" << part << "'");
      return false;
    }
  }
  return true;
}

TEST_CASE("tls_context: good options are taken") {
  CHECK(refusal(server_tls()).empty());
  CHECK(refusal({}, tls_role::client).empty());
  CHECK(tls_context(server_tls()).role() == tls_role::server);
  CHECK(tls_context({}, tls_role::client).role() == tls_role::client);
}

TEST_CASE("tls_context: files that are missing or unreadable are named") {
  const temporary_file chain(authority().localhost.pem());
  const temporary_file key(authority().localhost.key_pem());
  tls_options options;
  options.certificates.resize(1);
  auto& only = options.certificates.front();
  only.chain_file = chain.path();
  only.key_file = key.path();
  CHECK(refusal(options).empty());
  SUBCASE("no certificate") {
    only.chain_file = "/nonexistent/chain.pem";
    CHECK(mentions(refusal(options), {"/nonexistent/chain.pem", "No such file"}));
  }
  SUBCASE("no key") {
    only.key_file = "/nonexistent/key.pem";
    CHECK(mentions(refusal(options), {"/nonexistent/key.pem", "No such file"}));
  }
  SUBCASE("a folder") {
    only.key_file = "/proc";
    CHECK(mentions(refusal(options), {"/proc", "Is a directory"}));
  }
  SUBCASE("authorities") {
    options.authorities_file = "/nonexistent/ca.pem";
    CHECK(mentions(refusal(options), {"/nonexistent/ca.pem", "No such file"}));
  }
  SUBCASE("OCSP response") {
    only.ocsp_file = "/nonexistent/ocsp.der";
    CHECK(mentions(refusal(options), {"/nonexistent/ocsp.der", "No such file"}));
    const temporary_file empty;
    only.ocsp_file = empty.path();
    CHECK(mentions(refusal(options), {empty.path()}));
  }
  SUBCASE("key log") {
    options.key_log_file = "/nonexistent/keys.log";
    options.on_warning = [](const std::string&) {};
    CHECK(mentions(refusal(options), {"/nonexistent/keys.log", "No such file"}));
  }
}

TEST_CASE("tls_context: files that hold something else are named") {
  const temporary_file garbage("this is no PEM\n");
  const temporary_file empty;
  const temporary_file broken("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
  const temporary_file cut(authority().localhost.pem().substr(0, 200));
  const temporary_file good(authority().localhost.pem());
  const temporary_file second_is_broken(authority().localhost.pem() + broken.read());
  const temporary_file key(authority().localhost.key_pem());
  tls_options options;
  options.certificates.resize(1);
  auto& only = options.certificates.front();
  only.key_file = key.path();
  for (const temporary_file* bad : {&garbage, &empty, &broken, &cut, &key, &second_is_broken}) {
    only.chain_file = bad->path();
    CHECK(mentions(refusal(options), {"certificate '" + bad->path() + "'"}));
  }
  only.chain_file = good.path();
  for (const temporary_file* bad : {&garbage, &empty, &good}) {
    only.key_file = bad->path();
    CHECK(mentions(refusal(options), {"key '" + bad->path() + "'"}));
  }
  only.key_file = key.path();
  options.authorities_file = garbage.path();
  CHECK(mentions(refusal(options), {"authorities '" + garbage.path() + "'"}));
}

TEST_CASE("tls_context: an OCSP response that clients could not use") {
  const certificate& root = authority().root;
  const std::string good = root.ocsp_response(authority().localhost);
  tls_options options = server_tls();
  const temporary_file file(good);
  options.certificates.front().ocsp_file = file.path();
  CHECK(refusal(options).empty());
  file.write(good.substr(0, good.size() - 1));
  CHECK(mentions(refusal(options), {file.path(), "no OCSP response"}));
  file.write(good + "x");
  CHECK(mentions(refusal(options), {file.path(), "no OCSP response"}));
  file.write("-----BEGIN OCSP RESPONSE-----\n");
  CHECK(mentions(refusal(options), {file.path(), "no OCSP response"}));
  file.write(std::string("\x30\x03\x0a\x01\x03", 5));
  CHECK(mentions(refusal(options), {file.path(), "trylater"}));
  file.write(std::string("\x30\x03\x0a\x01\x00", 5));  // successful, and nothing else
  CHECK(mentions(refusal(options), {file.path(), "nothing about its certificate"}));
  file.write(root.ocsp_response(authority().issue("localhost")));
  CHECK(mentions(refusal(options), {file.path(), "nothing about its certificate"}));
  file.write(root.ocsp_response(authority().localhost, -1));
  std::vector<std::string> warnings;
  options.on_warning = [&](const std::string& text) { warnings.push_back(text); };
  CHECK(refusal(options).empty());
  REQUIRE(warnings.size() == 1);
  CHECK(mentions(warnings.front(), {file.path(), "out of date"}));
}

TEST_CASE("tls_context: a key that does not belong to the certificate") {
  const certificate other = authority().issue("localhost", {"localhost"});
  const certificate rsa = authority().issue("localhost", {"localhost"}, key_kind::rsa_2048);
  for (const certificate* wrong : {&other, &rsa}) {
    const temporary_file key(wrong->key_pem());
    tls_options options = server_tls();
    options.certificates.front().key_pem.clear();
    options.certificates.front().key_file = key.path();
    CHECK(mentions(refusal(options), {key.path(), "does not belong"}));
  }
}

TEST_CASE("tls_context: encrypted keys") {
  tls_options options = server_tls();
  auto& only = options.certificates.front();
  only.key_pem = authority().localhost.encrypted_key_pem("right");
  CHECK(mentions(refusal(options), {"encrypted", "no passphrase"}));
  only.passphrase = [] { return std::string("wrong"); };
  CHECK(mentions(refusal(options), {"cannot be decrypted"}));
  only.passphrase = []() -> std::string { throw std::runtime_error("cancelled"); };
  CHECK(mentions(refusal(options), {"cannot be decrypted"}));
  only.passphrase = [] { return std::string(5000, 'x'); };
  CHECK(mentions(refusal(options), {"cannot be decrypted"}));
  only.passphrase = [] { return std::string("right"); };
  CHECK(refusal(options).empty());
}

TEST_CASE("tls_context: what is missing or given twice") {
  CHECK(mentions(refusal({}), {"certificate"}));
  tls_options options = server_tls();
  options.certificates.front().chain_file = "twice.pem";
  CHECK(mentions(refusal(options), {"not both", "twice.pem"}));
  options = server_tls();
  options.certificates.front().key_pem.clear();
  CHECK(mentions(refusal(options), {"key_file or key_pem"}));
  options = server_tls();
  options.certificates.front().chain_pem.clear();
  CHECK(mentions(refusal(options), {"chain_file or chain_pem"}));
  options = server_tls();
  options.clients = client_certificates::optional;
  CHECK(mentions(refusal(options), {"authorities_file", "authorities_pem"}));
  options = server_tls();
  options.certificates.push_back(options.certificates.front());
  CHECK(refusal(options).empty());
  CHECK_FALSE(refusal(options, tls_role::client).empty());
}

TEST_CASE("tls_context: versions, ciphers, suites, groups and protocols") {
  tls_options options = server_tls();
  SUBCASE("versions") {
    options.min_version = tls_version::v1_3;
    options.max_version = tls_version::v1_2;
    CHECK(mentions(refusal(options), {"min_version", "max_version"}));
  }
  SUBCASE("ciphers") {
    for (const char* list :
         {"NO-SUCH-CIPHER", "ECDHE-RSA-AES128-GCM-SHA256:NO-SUCH-CIPHER", "NO-SUCH-CIPHER:HIGH"}) {
      options.ciphers = list;
      CHECK(mentions(refusal(options), {"ciphers", "'NO-SUCH-CIPHER'"}));
    }
    for (const char* list : {"ECDHE-RSA-AES128-GCM-SHA256", "ECDHE+AESGCM:!AES256", "HIGH:-SHA1:@STRENGTH"}) {
      options.ciphers = list;
      CHECK_MESSAGE(refusal(options).empty(), refusal(options));
    }
  }
  SUBCASE("suites") {
    for (const char* list :
         {"TLS_NO_SUCH", "TLS_AES_128_GCM_SHA256:TLS_NO_SUCH", "TLS_NO_SUCH:TLS_AES_128_GCM_SHA256"}) {
      options.ciphersuites = list;
      CHECK(mentions(refusal(options), {"ciphersuites", "'TLS_NO_SUCH'"}));
    }
  }
  SUBCASE("groups") {
    for (const char* list : {"no-such-group", "X25519:no-such-group", "no-such-group:P-256"}) {
      options.groups = list;
      CHECK(mentions(refusal(options), {"groups", "'no-such-group'"}));
    }
  }
  SUBCASE("protocols") {
    options.alpn = {"h2", ""};
    CHECK(mentions(refusal(options), {"alpn"}));
    options.alpn = {std::string(256, 'x')};
    CHECK(mentions(refusal(options), {"alpn"}));
    options.alpn = {std::string(255, 'x')};
    CHECK(refusal(options).empty());
  }
  SUBCASE("lifetimes and depth") {
    options.ticket_key_lifetime = std::chrono::seconds(0);
    CHECK(mentions(refusal(options), {"ticket_key_lifetime"}));
    options.ticket_key_lifetime = std::chrono::hours(24 * 7) + std::chrono::seconds(1);
    CHECK(mentions(refusal(options), {"ticket_key_lifetime"}));
    options = server_tls();
    options.session_lifetime = std::chrono::seconds(-1);
    CHECK(mentions(refusal(options), {"session_lifetime"}));
    options = server_tls();
    options.resumption_lifetime = std::chrono::hours(24 * 7) + std::chrono::seconds(1);
    CHECK(mentions(refusal(options), {"resumption_lifetime"}));
    options = server_tls();
    options.verify_depth = -1;
    CHECK(mentions(refusal(options), {"verify_depth"}));
  }
}

TEST_CASE("tls_context: certificates outside their time are used with a warning that names them") {
  const certificate expired({.common_name = "old", .days_from = -10, .days_until = -1}, &authority().root);
  const certificate early({.common_name = "early", .days_from = 1, .days_until = 10}, &authority().root);
  std::vector<std::string> warnings;
  tls_options options;
  options.on_warning = [&](const std::string& text) { warnings.push_back(text); };
  const temporary_file chain(expired.pem());
  options.certificates.resize(1);
  options.certificates.front().chain_file = chain.path();
  options.certificates.front().key_pem = expired.key_pem();
  const tls_context context(options);
  REQUIRE(warnings.size() == 1);
  CHECK(mentions(warnings.front(), {chain.path(), "expired"}));
  options.certificates.front() = shown(early);
  const tls_context other(options);
  REQUIRE(warnings.size() == 2);
  CHECK(mentions(warnings.back(), {"not valid yet"}));
}

TEST_CASE("tls_context: a reload that fails changes nothing and says why") {
  const temporary_file chain(authority().localhost.pem());
  tls_options options;
  options.certificates.resize(1);
  options.certificates.front().chain_file = chain.path();
  options.certificates.front().key_pem = authority().localhost.key_pem();
  tls_context context(options);
  context.reload();
  chain.write("broken");
  std::string message;
  try {
    context.reload();
  } catch (const tls_error& wrong) {
    message = wrong.what();
  }
  CHECK(mentions(message, {chain.path()}));
  tls_options bad = options;
  bad.ciphers = "NO-SUCH-CIPHER";
  CHECK_THROWS_AS(context.reload(bad), tls_error);
  chain.write(authority().localhost.pem());
  context.reload();
}

TEST_CASE("tls_context: a key log stays what it was") {
  tls_options options = server_tls();
  tls_context context(options);
  const temporary_file log;
  options.key_log_file = log.path();
  CHECK_THROWS_AS(context.reload(options), tls_error);
}

TEST_CASE("tls_context: names of causes") {
  std::vector<std::string_view> names;
  for (std::size_t i = 0; i < tls_failure_count; ++i) {
    const std::string_view name = name_of(static_cast<tls_failure>(i));
    CHECK(name != "unknown");
    for (const auto& other : names) CHECK(name != other);
    names.push_back(name);
  }
}

}  // namespace
}  // namespace percore::test
