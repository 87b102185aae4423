// The engine's provider for OpenSSL against OpenSSL's own: results and failures must be the same, call by call.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include <openssl/core_names.h>
#include <openssl/err.h>
#include <openssl/kdf.h>

#include "engine/tls/library.hpp"

namespace percore::test {
namespace {

using tls::library;
using octets = std::vector<unsigned char>;
using mac_ptr = std::unique_ptr<EVP_MAC, tls::freed_by<EVP_MAC_free>>;
using mac_ctx_ptr = std::unique_ptr<EVP_MAC_CTX, tls::freed_by<EVP_MAC_CTX_free>>;
using kdf_ptr = std::unique_ptr<EVP_KDF, tls::freed_by<EVP_KDF_free>>;
using kdf_ctx_ptr = std::unique_ptr<EVP_KDF_CTX, tls::freed_by<EVP_KDF_CTX_free>>;

constexpr const char* digests[] = {"SHA2-256", "SHA256", "sha-256", "SHA2-384", "sha384", "SHA-384",
                                   "2.16.840.1.101.3.4.2.1", "SHA1", "SHA512", "SHA3-256", "MD5"};

struct random_source {
  explicit random_source(unsigned seed) : engine(seed) {}
  std::size_t below(std::size_t limit) { return std::uniform_int_distribution<std::size_t>(0, limit - 1)(engine); }
  octets bytes(std::size_t size) {
    octets made(size);
    for (unsigned char& byte : made) byte = static_cast<unsigned char>(below(256));
    return made;
  }
  std::mt19937 engine;
};

octets from_hex(std::string_view text) {
  octets made;
  for (std::size_t i = 0; i + 1 < text.size(); i += 2) {
    made.push_back(static_cast<unsigned char>(std::stoi(std::string(text.substr(i, 2)), nullptr, 16)));
  }
  return made;
}

// Parameters that own what they point to.
class parameters {
 public:
  parameters& text(const char* key, std::string value) {
    auto& kept = *kept_.emplace_back(std::make_unique<octets>(value.begin(), value.end()));
    const std::size_t size = kept.size();
    kept.push_back(0);
    list_.insert(list_.end() - 1, {key, OSSL_PARAM_UTF8_STRING, kept.data(), size, OSSL_PARAM_UNMODIFIED});
    return *this;
  }
  parameters& data(const char* key, const octets& value) {
    auto& kept = *kept_.emplace_back(std::make_unique<octets>(value));
    const std::size_t size = kept.size();
    kept.push_back(0);  // so that an empty one has an address
    list_.insert(list_.end() - 1, {key, OSSL_PARAM_OCTET_STRING, kept.data(), size, OSSL_PARAM_UNMODIFIED});
    return *this;
  }
  template <class T>
  parameters& number(const char* key, T value) {
    auto& kept = *kept_.emplace_back(std::make_unique<octets>(sizeof value));
    std::memcpy(kept.data(), &value, sizeof value);
    const unsigned type = std::is_signed_v<T> ? OSSL_PARAM_INTEGER : OSSL_PARAM_UNSIGNED_INTEGER;
    list_.insert(list_.end() - 1, {key, type, kept.data(), kept.size(), OSSL_PARAM_UNMODIFIED});
    return *this;
  }
  void shuffle(random_source& random) { std::shuffle(list_.begin(), list_.end() - 1, random.engine); }
  [[nodiscard]] const OSSL_PARAM* get() const { return list_.data(); }

 private:
  std::vector<OSSL_PARAM> list_{OSSL_PARAM_construct_end()};
  std::vector<std::unique_ptr<octets>> kept_;
};

// The reason of the last error, if any; clears the queue. Where it was raised does not matter.
int last_reason() {
  const unsigned long error = ERR_peek_last_error();
  ERR_clear_error();
  return ERR_GET_REASON(error);
}

// HMAC --------------------------------------------------------------------------------------------------------

mac_ctx_ptr new_mac(const library& in) {
  const mac_ptr algorithm(EVP_MAC_fetch(in.get(), "HMAC", nullptr));
  REQUIRE(algorithm);
  return mac_ctx_ptr(EVP_MAC_CTX_new(algorithm.get()));
}

std::optional<octets> finish(EVP_MAC_CTX* mac) {
  octets out(EVP_MAX_MD_SIZE);
  std::size_t size = 0;
  if (EVP_MAC_final(mac, out.data(), &size, out.size()) != 1) return std::nullopt;
  out.resize(size);
  return out;
}

// One random conversation with a context. The same seed leads to the same one; what comes back of it is the result.
octets converse_with_mac(const library& in, unsigned seed) {
  random_source random(seed);
  octets heard;
  const auto hear = [&heard](const std::optional<octets>& what) {
    heard.push_back(what ? 1 : 0);
    if (what) heard.insert(heard.end(), what->begin(), what->end());
  };
  mac_ctx_ptr mac = new_mac(in);
  const std::size_t steps = 1 + random.below(10);
  bool ended = true;  // of what follows a final without an init OpenSSL makes nothing that has a meaning
  for (std::size_t step = 0; step < steps; ++step) {
    const octets key = random.bytes(random.below(4) == 0 ? 0 : random.below(300));
    parameters with;
    if (random.below(5) != 0) with.text(OSSL_MAC_PARAM_DIGEST, digests[random.below(std::size(digests))]);
    const std::size_t kind = random.below(10);
    if (kind < 5) {
      heard.push_back(static_cast<unsigned char>(EVP_MAC_init(mac.get(), key.data(), key.size(), with.get())));
      ended = heard.back() != 1;
    } else if (kind < 7) {
      with.data(OSSL_MAC_PARAM_KEY, key);
      with.shuffle(random);
      heard.push_back(static_cast<unsigned char>(EVP_MAC_CTX_set_params(mac.get(), with.get())));
      ended = heard.back() != 1;
    } else if (kind == 7 && ended) {
      heard.push_back(static_cast<unsigned char>(EVP_MAC_CTX_set_params(mac.get(), with.get())));
    } else {
      heard.push_back(static_cast<unsigned char>(EVP_MAC_init(mac.get(), nullptr, 0, nullptr)));
      ended = heard.back() != 1;
    }
    heard.push_back(static_cast<unsigned char>(EVP_MAC_CTX_get_mac_size(mac.get())));
    heard.push_back(static_cast<unsigned char>(EVP_MAC_CTX_get_block_size(mac.get())));
    if (ended) continue;
    mac_ctx_ptr copy;
    for (std::size_t parts = random.below(5); parts != 0; --parts) {
      const octets part = random.bytes(random.below(3) == 0 ? 0 : random.below(1000));
      heard.push_back(static_cast<unsigned char>(EVP_MAC_update(mac.get(), part.data(), part.size())));
      if (copy) heard.push_back(static_cast<unsigned char>(EVP_MAC_update(copy.get(), part.data(), part.size())));
      if (random.below(3) == 0) copy.reset(EVP_MAC_CTX_dup(mac.get()));
    }
    if (copy) hear(finish(copy.get()));
    hear(finish(mac.get()));
    ended = true;
  }
  ERR_clear_error();
  return heard;
}

TEST_CASE("tls_provider: a library context prefers the engine's algorithms, and without the provider has OpenSSL's") {
  const library own;
  const library plain(false);
  REQUIRE(own.has_own_provider());
  CHECK_FALSE(plain.has_own_provider());
  const auto provider_of = [](const library& in, const char* query) {
    const mac_ptr mac(EVP_MAC_fetch(in.get(), "HMAC", query));
    const kdf_ptr kdf(EVP_KDF_fetch(in.get(), "TLS13-KDF", query));
    REQUIRE(mac);
    REQUIRE(kdf);
    const std::string name = OSSL_PROVIDER_get0_name(EVP_MAC_get0_provider(mac.get()));
    CHECK(name == OSSL_PROVIDER_get0_name(EVP_KDF_get0_provider(kdf.get())));
    return name;
  };
  CHECK(provider_of(own, nullptr) == "percore");
  CHECK(provider_of(own, "provider=default") == "default");
  CHECK(provider_of(plain, nullptr) == "default");
}

TEST_CASE("tls_provider: HMAC gives what OpenSSL's gives, whatever is done with it") {
  const library own;
  const library plain(false);
  for (unsigned seed = 1; seed <= 3000; ++seed) {
    CAPTURE(seed);
    REQUIRE(converse_with_mac(own, seed) == converse_with_mac(plain, seed));
  }
}

TEST_CASE("tls_provider: HMAC of long messages and of the test vectors of RFC 4231") {
  const library own;
  const auto mac_of = [&own](const char* digest, const octets& key, const octets& message) {
    octets out(EVP_MAX_MD_SIZE);
    std::size_t size = 0;
    REQUIRE(EVP_Q_mac(own.get(), "HMAC", nullptr, digest, nullptr, key.data(), key.size(), message.data(),
                      message.size(), out.data(), out.size(), &size) != nullptr);
    out.resize(size);
    return out;
  };
  const octets jefe{'J', 'e', 'f', 'e'};
  const std::string_view question = "what do ya want for nothing?";
  const octets text(question.begin(), question.end());
  CHECK(mac_of("SHA256", jefe, text) == from_hex("5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"));
  CHECK(mac_of("SHA384", jefe, text) ==
        from_hex("af45d2e376484031617f78d2b58a6b1b9c7ef464f5a01b47e42ec3736322445e8e2240ca5e69e2c78b3239ecfab21649"));
  const library plain(false);
  const octets message = random_source(7).bytes(1'000'003);
  for (const char* digest : {"SHA256", "SHA384"}) {
    const octets mine = mac_of(digest, jefe, message);
    octets theirs(mine.size());
    REQUIRE(EVP_Q_mac(plain.get(), "HMAC", nullptr, digest, nullptr, jefe.data(), jefe.size(), message.data(),
                      message.size(), theirs.data(), theirs.size(), nullptr) != nullptr);
    CHECK(mine == theirs);
  }
}

TEST_CASE("tls_provider: HMAC fails where OpenSSL's fails") {
  const library own;
  const library plain(false);
  for (const library* in : {&own, &plain}) {
    CAPTURE(in->has_own_provider());
    mac_ctx_ptr mac = new_mac(*in);
    const octets key(20, 1);
    CHECK(EVP_MAC_init(mac.get(), nullptr, 0, nullptr) == 0);
    CHECK(EVP_MAC_init(mac.get(), key.data(), key.size(), nullptr) == 0);
    CHECK(EVP_MAC_update(mac.get(), key.data(), key.size()) == 0);
    CHECK_FALSE(finish(mac.get()));
    CHECK(EVP_MAC_CTX_set_params(mac.get(), parameters().text(OSSL_MAC_PARAM_DIGEST, "no such").get()) == 0);
    CHECK(EVP_MAC_CTX_set_params(mac.get(), parameters().number(OSSL_MAC_PARAM_DIGEST, 5).get()) == 0);
    CHECK(EVP_MAC_CTX_set_params(mac.get(), parameters().text(OSSL_MAC_PARAM_DIGEST, "SHA256").get()) == 1);
    CHECK(EVP_MAC_CTX_set_params(mac.get(), parameters().text(OSSL_MAC_PARAM_KEY, "of the wrong type").get()) == 0);
    CHECK(EVP_MAC_init(mac.get(), key.data(), key.size(), nullptr) == 1);
    octets out(31);
    std::size_t size = 0;
    CHECK(EVP_MAC_final(mac.get(), out.data(), &size, out.size()) == 0);
    ERR_clear_error();
  }
}

// What the CBC suites of TLS 1.2 do to check a record in constant time: the size with padding, then the header.
TEST_CASE("tls_provider: HMAC of records with padding is OpenSSL's") {
  const library own;
  const library plain(false);
  random_source random(3);
  for (const char* digest : {"SHA256", "SHA384", "SHA1"}) {
    const octets key = random.bytes(32);
    const octets header = random.bytes(13);
    const octets record = random.bytes(256);
    std::vector<octets> results;
    for (const library* in : {&own, &plain}) {
      const mac_ctx_ptr keyed = new_mac(*in);
      REQUIRE(EVP_MAC_init(keyed.get(), key.data(), key.size(),
                           parameters().text(OSSL_MAC_PARAM_DIGEST, digest).get()) == 1);
      const mac_ctx_ptr mac(EVP_MAC_CTX_dup(keyed.get()));
      REQUIRE(EVP_MAC_CTX_set_params(mac.get(),
                                     parameters().number(OSSL_MAC_PARAM_TLS_DATA_SIZE, record.size()).get()) == 1);
      REQUIRE(EVP_MAC_update(mac.get(), header.data(), header.size()) == 1);
      REQUIRE(EVP_MAC_update(mac.get(), record.data(), 200) == 1);
      const auto made = finish(mac.get());
      REQUIRE(made);
      results.push_back(*made);
    }
    CHECK(results[0] == results[1]);
  }
}

// TLS13-KDF ---------------------------------------------------------------------------------------------------

kdf_ctx_ptr new_kdf(const library& in) {
  const kdf_ptr algorithm(EVP_KDF_fetch(in.get(), "TLS13-KDF", nullptr));
  REQUIRE(algorithm);
  return kdf_ctx_ptr(EVP_KDF_CTX_new(algorithm.get()));
}

const octets prefix{'t', 'l', 's', '1', '3', ' '};

parameters kdf_parameters(random_source& random) {
  parameters made;
  const std::size_t slip = random.below(40);  // most requests are sound
  const auto size = [&random, slip](std::size_t usual, std::size_t which) {
    return slip == which ? std::vector<std::size_t>{0, 1, 249, 250, 255, 256, 3000}[random.below(7)] : usual;
  };
  const bool expanding = random.below(2) == 0;
  if (slip == 0) {
    made.text(OSSL_KDF_PARAM_MODE, expanding ? "EXPAND_ONLY" : "EXTRACT_ONLY");
  } else if (slip == 1) {
    made.number(OSSL_KDF_PARAM_MODE, static_cast<int>(random.below(5)));
  } else if (slip == 2) {
    made.number(OSSL_KDF_PARAM_MODE, std::int64_t{expanding ? 2 : 1});
  } else if (slip != 3) {
    made.number(OSSL_KDF_PARAM_MODE, expanding ? EVP_KDF_HKDF_MODE_EXPAND_ONLY : EVP_KDF_HKDF_MODE_EXTRACT_ONLY);
  }
  if (slip == 4) {
    made.text(OSSL_KDF_PARAM_DIGEST, "no such");
  } else if (slip != 5) {
    made.text(OSSL_KDF_PARAM_DIGEST, digests[random.below(std::size(digests))]);
  }
  if (slip == 6) made.text(OSSL_KDF_PARAM_PROPERTIES, "provider=none");
  if (expanding ? slip != 7 : random.below(2) == 0) made.data(OSSL_KDF_PARAM_KEY, random.bytes(size(32, 8)));
  if (!expanding && random.below(2) == 0) made.data(OSSL_KDF_PARAM_SALT, random.bytes(size(48, 9)));
  if (slip != 10) made.data(OSSL_KDF_PARAM_PREFIX, slip == 11 ? octets() : prefix);
  if (slip != 12) made.data(OSSL_KDF_PARAM_LABEL, random.bytes(size(1 + random.below(20), 13)));
  if (random.below(2) == 0) made.data(OSSL_KDF_PARAM_DATA, random.bytes(size(32, 14)));
  if (slip == 15) made.text(OSSL_KDF_PARAM_KEY, "of the wrong type");
  if (slip == 16) made.number("unknown", 1);
  made.shuffle(random);
  return made;
}

octets converse_with_kdf(const library& in, unsigned seed) {
  random_source random(seed);
  octets heard;
  const kdf_ctx_ptr kdf = new_kdf(in);
  ERR_clear_error();
  const parameters with = kdf_parameters(random);
  const std::size_t how = random.below(10);
  if (how == 0) {  // step by step
    heard.push_back(EVP_KDF_CTX_set_params(kdf.get(), with.get()) == 1);
    heard.push_back(static_cast<unsigned char>(EVP_KDF_CTX_get_kdf_size(kdf.get())));
  }
  octets out(std::vector<std::size_t>{32, 48, 12, 16, 0, 64, 20, 300, 32 * 255, 48 * 255 + 1}[random.below(10)]);
  const bool ok = EVP_KDF_derive(kdf.get(), out.data(), out.size(), how == 0 ? nullptr : with.get()) == 1;
  heard.push_back(ok);
  if (ok) heard.insert(heard.end(), out.begin(), out.end());
  const int reason = last_reason();
  heard.push_back(static_cast<unsigned char>(reason));
  if (how == 1) EVP_KDF_CTX_reset(kdf.get());
  if (how == 1 || how == 2) {  // used again
    const parameters others = kdf_parameters(random);
    const bool again = EVP_KDF_derive(kdf.get(), out.data(), out.size(), how == 1 ? others.get() : with.get()) == 1;
    heard.push_back(again);
    if (again) heard.insert(heard.end(), out.begin(), out.end());
  }
  return heard;
}

TEST_CASE("tls_provider: TLS13-KDF gives what OpenSSL's gives, errors included") {
  const library own;
  const library plain(false);
  int good = 0;
  for (unsigned seed = 1; seed <= 6000; ++seed) {
    CAPTURE(seed);
    const octets mine = converse_with_kdf(own, seed);
    REQUIRE(mine == converse_with_kdf(plain, seed));
    good += mine.size() > 4 ? 1 : 0;
  }
  CHECK(good > 1500);
  ERR_clear_error();
}

// RFC 8448 3: "Simple 1-RTT Handshake".
TEST_CASE("tls_provider: TLS13-KDF and the key schedule of RFC 8448") {
  const library own;
  const auto derive = [&own](int mode, const octets& key, const octets& salt, const char* label, const octets& data,
                             std::size_t size) {
    parameters with;
    with.number(OSSL_KDF_PARAM_MODE, mode).text(OSSL_KDF_PARAM_DIGEST, "SHA256").data(OSSL_KDF_PARAM_PREFIX, prefix);
    if (!key.empty()) with.data(OSSL_KDF_PARAM_KEY, key);
    if (!salt.empty()) with.data(OSSL_KDF_PARAM_SALT, salt);
    with.data(OSSL_KDF_PARAM_LABEL, octets(label, label + std::strlen(label)));
    if (!data.empty()) with.data(OSSL_KDF_PARAM_DATA, data);
    octets out(size);
    REQUIRE(EVP_KDF_derive(new_kdf(own).get(), out.data(), out.size(), with.get()) == 1);
    return out;
  };
  const auto extract = [&](const octets& key, const octets& salt) {
    return derive(EVP_KDF_HKDF_MODE_EXTRACT_ONLY, key, salt, "derived", {}, 32);
  };
  const auto expand = [&](const octets& secret, const char* label, const octets& data, std::size_t size) {
    return derive(EVP_KDF_HKDF_MODE_EXPAND_ONLY, secret, {}, label, data, size);
  };
  const octets early = extract({}, {});
  CHECK(early == from_hex("33ad0a1c607ec03b09e6cd9893680ce210adf300aa1f2660e1b22e10f170f92a"));
  const octets handshake =
      extract(from_hex("8bd4054fb55b9d63fdfbacf9f04b9f0d35e6d63f537563efd46272900f89492d"), early);
  CHECK(handshake == from_hex("1dc826e93606aa6fdc0aadc12f741b01046aa6b99f691ed221a9f0ca043fbeac"));
  const octets transcript = from_hex("860c06edc07858ee8e78f0e7428c58edd6b43f2ca3e6e95f02ed063cf0e1cad8");
  const octets server = expand(handshake, "s hs traffic", transcript, 32);
  CHECK(server == from_hex("b67b7d690cc16c4e75e54213cb2d37b4e9c912bcded9105d42befd59d391ad38"));
  CHECK(expand(server, "key", {}, 16) == from_hex("3fce516009c21727d0f2e4e86ee403bc"));
  CHECK(expand(server, "iv", {}, 12) == from_hex("5d313eb2671276ee13000b30"));
  CHECK(extract({}, handshake) == from_hex("18df06843d13a08bf2a449844c5f8a478001bc4d4c627984d5a41da8d0402919"));
}

TEST_CASE("tls_provider: TLS13-KDF may write over the secret it is given") {  // as a key update does
  const library own;
  octets secret(32, 5);
  const OSSL_PARAM key = OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_KEY, secret.data(), secret.size());
  parameters others;
  others.number(OSSL_KDF_PARAM_MODE, EVP_KDF_HKDF_MODE_EXPAND_ONLY).text(OSSL_KDF_PARAM_DIGEST, "SHA256");
  others.data(OSSL_KDF_PARAM_PREFIX, prefix).data(OSSL_KDF_PARAM_LABEL, octets(11, 'u'));
  std::vector<OSSL_PARAM> with{key};
  for (const OSSL_PARAM* p = others.get();; ++p) {
    with.push_back(*p);
    if (p->key == nullptr) break;
  }
  octets apart(32);
  REQUIRE(EVP_KDF_derive(new_kdf(own).get(), apart.data(), apart.size(), with.data()) == 1);
  REQUIRE(EVP_KDF_derive(new_kdf(own).get(), secret.data(), secret.size(), with.data()) == 1);
  CHECK(secret == apart);
}

TEST_CASE("tls_provider: several threads may use one library context") {
  const library own;
  const library plain(false);
  std::vector<octets> expected;
  for (unsigned seed = 1; seed <= 40; ++seed) expected.push_back(converse_with_mac(plain, seed));
  std::vector<int> wrong(4);
  std::vector<std::thread> threads;
  for (int& mistakes : wrong) {
    threads.emplace_back([&] {
      for (unsigned seed = 1; seed <= 40; ++seed) {
        mistakes += converse_with_mac(own, seed) != expected[seed - 1] ? 1 : 0;
        (void)converse_with_kdf(own, seed);
      }
    });
  }
  for (auto& thread : threads) thread.join();
  CHECK(wrong == std::vector<int>(4));
}

}  // namespace
}  // namespace percore::test
