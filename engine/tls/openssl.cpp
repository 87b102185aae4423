#include "engine/tls/openssl.hpp"

#include <openssl/err.h>
#include <openssl/x509v3.h>

namespace percore::tls {

std::vector<std::string> dns_names_of(X509* certificate) {
  std::vector<std::string> result;
  auto* names = static_cast<GENERAL_NAMES*>(X509_get_ext_d2i(certificate, NID_subject_alt_name, nullptr, nullptr));
  for (int i = 0; names != nullptr && i < sk_GENERAL_NAME_num(names); ++i) {
    const GENERAL_NAME* name = sk_GENERAL_NAME_value(names, i);
    if (name->type != GEN_DNS) continue;
    result.emplace_back(reinterpret_cast<const char*>(ASN1_STRING_get0_data(name->d.dNSName)),
                        static_cast<std::size_t>(ASN1_STRING_length(name->d.dNSName)));
  }
  GENERAL_NAMES_free(names);
  return result;
}

std::time_t to_time(const ASN1_TIME* when) {
  std::tm utc{};
  return ASN1_TIME_to_tm(when, &utc) == 1 ? ::timegm(&utc) : 0;
}

std::string take_openssl_error() {
  const unsigned long error = ERR_peek_error();
  const char* reason = ERR_reason_error_string(error);
  std::string text = reason == nullptr ? "unknown error" : reason;
  ERR_clear_error();
  return text;
}

}  // namespace percore::tls
