// Certificates and keys for tests, made in the process.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace percore::test {

enum class key_kind { ecdsa_p256, rsa_2048 };

// What a certificate says.
struct certificate_request {
  std::string common_name;
  std::vector<std::string> dns_names{};  // subjectAltName; empty: none
  key_kind key = key_kind::ecdsa_p256;
  int days_from = -1;  // validity, in days from now
  int days_until = 10;
  int seconds_until = 0;  // beyond these days
  bool authority = false;  // may issue others
};

// A certificate with its key and who has issued it.
class certificate {
 public:
  // Issued by `issuer`, or by itself. Throws std::runtime_error.
  explicit certificate(const certificate_request& request, const certificate* issuer = nullptr);

  [[nodiscard]] const std::string& pem() const noexcept { return pem_; }       // itself only
  [[nodiscard]] std::string chain_pem() const { return pem_ + issuers_pem_; }  // and the issuers but the root
  [[nodiscard]] const std::string& key_pem() const noexcept { return key_pem_; }
  [[nodiscard]] std::string encrypted_key_pem(const std::string& passphrase) const;
  // DER: `issued`, by this one, is good until then (OCSP, RFC 6960).
  [[nodiscard]] std::string ocsp_response(const certificate& issued, int days_until = 7) const;
  [[nodiscard]] const std::string& sha256() const noexcept { return sha256_; }  // lower case hexadecimal

 private:
  struct parts;
  std::shared_ptr<parts> parts_;
  std::string pem_;
  std::string issuers_pem_;
  std::string key_pem_;
  std::string sha256_;
};

// A root and what most tests need of it: "localhost" (also 127.0.0.1) for the server.
struct test_authority {
  test_authority();
  [[nodiscard]] certificate issue(std::string common_name, std::vector<std::string> dns_names = {},
                                  key_kind key = key_kind::ecdsa_p256) const;

  certificate root;
  certificate localhost;
};

// The one of this process, made when it is first asked for.
const test_authority& authority();

// A file that is removed with the object.
class temporary_file {
 public:
  explicit temporary_file(std::string_view content = {});
  temporary_file(const temporary_file&) = delete;
  temporary_file& operator=(const temporary_file&) = delete;
  ~temporary_file();

  void write(std::string_view content) const;  // replaces it
  [[nodiscard]] std::string read() const;
  [[nodiscard]] const std::string& path() const noexcept { return path_; }

 private:
  std::string path_;
};

}  // namespace percore::test
