// Random numbers of a core's library context: a buffer must neither repeat nor share what it hands out.
#include <doctest/doctest.h>

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/rand.h>

#include "engine/tls/library.hpp"

namespace percore::test {
namespace {

using tls::library;
using block = std::array<unsigned char, 16>;

block draw(const library& from, bool secret = false) {
  block made{};
  const int result = secret ? RAND_priv_bytes_ex(from.get(), made.data(), made.size(), 0)
                            : RAND_bytes_ex(from.get(), made.data(), made.size(), 0);
  REQUIRE(result == 1);
  return made;
}

std::string kind_of(EVP_RAND_CTX* random) { return EVP_RAND_get0_name(EVP_RAND_CTX_get0_rand(random)); }

TEST_CASE("tls_random: public and private numbers of a library context come from generators of the engine's") {
  const library own;
  const library plain(false);
  CHECK(kind_of(RAND_get0_public(own.get())) == "PERCORE-BUFFERED");
  CHECK(kind_of(RAND_get0_private(own.get())) == "PERCORE-BUFFERED");
  CHECK(RAND_get0_public(own.get()) != RAND_get0_private(own.get()));
  CHECK(kind_of(RAND_get0_public(plain.get())) == "CTR-DRBG");
  CHECK(EVP_RAND_get_strength(RAND_get0_public(own.get())) == EVP_RAND_get_strength(RAND_get0_public(plain.get())));
  CHECK(EVP_RAND_get_state(RAND_get0_public(own.get())) == EVP_RAND_STATE_READY);
}

TEST_CASE("tls_random: no number comes twice, whatever sizes are asked for") {
  const library own;
  std::set<block> seen;
  std::array<int, 256> counts{};
  int drawn = 0;
  for (int i = 0; i < 20'000; ++i) {
    for (const bool secret : {false, true}) {
      const block made = draw(own, secret);
      seen.insert(made);
      for (const unsigned char byte : made) ++counts[byte];
      ++drawn;
    }
    std::vector<unsigned char> other(static_cast<std::size_t>(i % 100), 0);
    REQUIRE(RAND_bytes_ex(own.get(), other.data(), other.size(), 0) == 1);
    if (other.size() >= 16) {
      block first{};
      std::memcpy(first.data(), other.data(), first.size());
      seen.insert(first);
      ++drawn;
    }
  }
  CHECK(seen.size() == static_cast<std::size_t>(drawn));
  // 2500 of each value are expected, with a standard deviation of 50.
  CHECK(*std::min_element(counts.begin(), counts.end()) > 2000);
  CHECK(*std::max_element(counts.begin(), counts.end()) < 3000);
}

TEST_CASE("tls_random: a child of fork() does not draw what its parent draws") {
  const library own;
  for (const bool secret : {false, true}) {
    CAPTURE(secret);
    (void)draw(own, secret);  // there is something left in the buffer
    int ends[2];
    REQUIRE(::pipe(ends) == 0);
    const pid_t child = ::fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      block made{};
      const int result = secret ? RAND_priv_bytes_ex(own.get(), made.data(), made.size(), 0)
                                : RAND_bytes_ex(own.get(), made.data(), made.size(), 0);
      const bool ok = result == 1 && ::write(ends[1], made.data(), made.size()) == static_cast<ssize_t>(made.size());
      ::_exit(ok ? 0 : 1);
    }
    block theirs{};
    CHECK(::read(ends[0], theirs.data(), theirs.size()) == static_cast<ssize_t>(theirs.size()));
    ::close(ends[0]);
    ::close(ends[1]);
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
    CHECK(status == 0);
    for (int i = 0; i < 100; ++i) CHECK(draw(own, secret) != theirs);
  }
}

TEST_CASE("tls_random: what a buffer cannot serve goes to the generator behind it") {
  const library own;
  const library plain(false);
  for (const library* in : {&own, &plain}) {
    CAPTURE(in->has_own_provider());
    EVP_RAND_CTX* random = RAND_get0_public(in->get());
    block made{};
    const unsigned char additional[] = "additional input";
    CHECK(EVP_RAND_generate(random, made.data(), made.size(), 256, 0, nullptr, 0) == 1);
    CHECK(EVP_RAND_generate(random, made.data(), made.size(), 0, 1, nullptr, 0) == 1);
    CHECK(EVP_RAND_generate(random, made.data(), made.size(), 0, 0, additional, sizeof additional) == 1);
    CHECK(EVP_RAND_generate(random, made.data(), made.size(), 257, 0, nullptr, 0) == 0);  // too strong
    std::vector<unsigned char> much(300'000);
    CHECK(EVP_RAND_generate(random, much.data(), much.size(), 0, 0, nullptr, 0) == 1);
    CHECK(std::count(much.end() - 100, much.end(), 0) < 10);
    CHECK(EVP_RAND_reseed(random, 0, nullptr, 0, additional, sizeof additional) == 1);
    CHECK(EVP_RAND_generate(random, nullptr, 0, 0, 0, nullptr, 0) == 1);
    ERR_clear_error();
  }
}

TEST_CASE("tls_random: a generator that was taken out of use does as OpenSSL's, and can be set up again") {
  const library own;
  const library plain(false);
  std::vector<int> results;
  for (const library* in : {&own, &plain}) {
    EVP_RAND_CTX* random = RAND_get0_public(in->get());
    const block before = draw(*in);
    REQUIRE(EVP_RAND_uninstantiate(random) == 1);
    block made{};
    results.push_back(EVP_RAND_generate(random, made.data(), made.size(), 0, 0, nullptr, 0));  // it starts again
    CHECK(made != before);
    CHECK(EVP_RAND_uninstantiate(random) == 1);
    CHECK(EVP_RAND_instantiate(random, 256, 0, nullptr, 0, nullptr) == 1);
    CHECK(draw(*in) != before);
  }
  CHECK(results[0] == results[1]);
  ERR_clear_error();
}

TEST_CASE("tls_random: threads draw different numbers") {
  const library own;
  std::vector<std::vector<block>> drawn(4);
  std::vector<std::thread> threads;
  for (auto& mine : drawn) {
    threads.emplace_back([&own, &mine] {
      for (int i = 0; i < 2000; ++i) mine.push_back(draw(own, i % 2 == 0));
      OPENSSL_thread_stop_ex(own.get());
    });
  }
  for (auto& thread : threads) thread.join();
  std::set<block> all;
  for (const auto& mine : drawn) all.insert(mine.begin(), mine.end());
  CHECK(all.size() == 8000);
}

}  // namespace
}  // namespace percore::test
