#include "engine/connection/read_buffers.hpp"

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "engine/sys/numa_memory.hpp"

namespace percore::test {
namespace {

using engine::read_buffer;
using engine::read_buffer_pool;
using ready_list = base::intrusive_list<detail::ready_node>;

constexpr std::size_t buffer_bytes = 1024;

// A pool with as much memory as it asks for and not a page more.
struct pool_of_3 {
  static constexpr std::size_t limit = 3;
  sys::numa_region memory{read_buffer_pool::region_bytes(buffer_bytes, limit), std::nullopt};
  ready_list ready;
  read_buffer_pool pool{memory.data(), buffer_bytes, limit};
};

TEST_CASE_FIXTURE(pool_of_3, "read_buffers: lends as many as its limit and each one whole") {
  std::vector<read_buffer*> lent;
  for (std::size_t i = 0; i < limit; ++i) {
    read_buffer* buffer = pool.take();
    REQUIRE(buffer != nullptr);
    CHECK(buffer->capacity == buffer_bytes);
    CHECK_FALSE(buffer->parked);
    CHECK(buffer->data() >= memory.data());
    CHECK(buffer->data() + buffer_bytes <=
          memory.data() + read_buffer_pool::region_bytes(buffer_bytes, limit));
    std::memset(buffer->data(), static_cast<int>(i), buffer_bytes);
    lent.push_back(buffer);
  }
  CHECK(pool.take() == nullptr);
  CHECK(pool.take() == nullptr);
  for (std::size_t i = 0; i < limit; ++i) {  // nobody has written into another's
    CHECK(lent[i]->capacity == buffer_bytes);
    for (std::size_t at = 0; at < buffer_bytes; ++at)
      REQUIRE(lent[i]->data()[at] == static_cast<std::byte>(i));
  }
  pool.give_back(lent[1], ready);
  CHECK(pool.take() == lent[1]);
  CHECK(pool.take() == nullptr);
  CHECK(pool.buffer_bytes() == buffer_bytes);
}

TEST_CASE_FIXTURE(pool_of_3, "read_buffers: the one used last is lent next") {
  read_buffer* a = pool.take();
  read_buffer* b = pool.take();
  pool.give_back(a, ready);
  pool.give_back(b, ready);
  CHECK(pool.take() == b);
  CHECK(pool.take() == a);
  read_buffer* c = pool.take();  // a fresh one only when no used one is free
  CHECK(c != nullptr);
  CHECK(c != a);
  CHECK(c != b);
}

TEST_CASE_FIXTURE(pool_of_3,
                  "read_buffers: beginnings of neighbours are not a multiple of the buffer size apart") {
  read_buffer* a = pool.take();
  read_buffer* b = pool.take();
  const auto distance = reinterpret_cast<std::byte*>(b) - reinterpret_cast<std::byte*>(a);
  CHECK(static_cast<std::size_t>(distance) % buffer_bytes != 0);
  CHECK(reinterpret_cast<std::uintptr_t>(a) % 64 == 0);
  CHECK(reinterpret_cast<std::uintptr_t>(b) % 64 == 0);
}

struct waiter : detail::ready_node {};

TEST_CASE_FIXTURE(
    pool_of_3, "read_buffers: each buffer that comes back readies one waiter in the order of their coming") {
  read_buffer* a = pool.take();
  read_buffer* b = pool.take();
  read_buffer* c = pool.take();
  waiter first, second, third;
  pool.wait(first);
  pool.wait(second);
  pool.wait(third);
  CHECK(ready.empty());

  pool.give_back(a, ready);
  CHECK(ready.pop_front() == &first);
  CHECK(ready.empty());
  CHECK(second.linked());

  pool.give_back(b, ready);
  pool.give_back(c, ready);
  CHECK(ready.pop_front() == &second);
  CHECK(ready.pop_front() == &third);
  CHECK(ready.pop_front() == nullptr);

  read_buffer* again = pool.take();
  pool.give_back(again, ready);
  CHECK(ready.empty());  // nobody waits any more
}

TEST_CASE_FIXTURE(pool_of_3, "read_buffers: who has stopped waiting is passed over") {
  read_buffer* a = pool.take();
  waiter second;
  {
    waiter first;
    pool.wait(first);
    pool.wait(second);
  }
  pool.give_back(a, ready);
  CHECK(ready.pop_front() == &second);
}

TEST_CASE_FIXTURE(pool_of_3, "read_buffers: parked bytes take their own size and no buffer of the pool") {
  const std::string text = "the beginning of a message";
  std::vector<read_buffer*> parked;
  for (int i = 0; i < 10; ++i) {
    read_buffer* made = read_buffer_pool::park(reinterpret_cast<const std::byte*>(text.data()), text.size());
    REQUIRE(made != nullptr);
    CHECK(made->parked);
    CHECK(made->capacity == text.size());
    CHECK(std::memcmp(made->data(), text.data(), text.size()) == 0);
    parked.push_back(made);
  }
  std::vector<read_buffer*> lent;
  while (read_buffer* buffer = pool.take()) lent.push_back(buffer);
  CHECK(lent.size() == limit);

  waiter waiting;
  pool.wait(waiting);
  for (read_buffer* buffer : parked) pool.give_back(buffer, ready);
  CHECK(ready.empty());  // a parked one that goes makes no room in the pool
  CHECK(pool.take() == nullptr);
  pool.give_back(lent[0], ready);
  CHECK(ready.pop_front() == &waiting);
}

TEST_CASE("read_buffers: memory that was never lent is never touched") {
  constexpr std::size_t limit = 1000;
  sys::numa_region memory(read_buffer_pool::region_bytes(buffer_bytes, limit), std::nullopt);
  read_buffer_pool pool(memory.data(), buffer_bytes, limit);
  ready_list ready;
  std::set<read_buffer*> used;
  for (int i = 0; i < 100; ++i) {
    read_buffer* a = pool.take();
    read_buffer* b = pool.take();
    used.insert({a, b});
    pool.give_back(a, ready);
    pool.give_back(b, ready);
  }
  CHECK(used.size() == 2);
  for (std::size_t at = read_buffer_pool::region_bytes(buffer_bytes, 2); at < memory.size(); at += 64) {
    REQUIRE(memory.data()[at] == std::byte{0});
  }
}

}  // namespace
}  // namespace percore::test
