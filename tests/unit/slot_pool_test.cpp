#include "engine/connection/slot_pool.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <set>
#include <vector>

#include "tests/support/bare_core.hpp"

namespace percore::test {
namespace {

using engine::slot;

TEST_CASE("slot_pool: gives out every slot once and then none") {
  bare_core core(5);
  auto& pool = core->slots;
  CHECK(pool.count() == 5);
  std::set<slot*> taken;
  for (std::uint32_t i = 0; i < 5; ++i) {
    CHECK(pool.touched() == i);
    CHECK(pool.in_use() == i);
    slot* s = pool.take(*core);
    REQUIRE(s != nullptr);
    CHECK(taken.insert(s).second);
    CHECK(s->index == i);
    CHECK(&pool.at(i) == s);
    CHECK(s->core == &*core);
    CHECK(s->phase == engine::slot_phase::free);
    CHECK(reinterpret_cast<std::uintptr_t>(s) % 64 == 0);
  }
  CHECK(pool.take(*core) == nullptr);
  CHECK(pool.take(*core) == nullptr);
  CHECK(pool.in_use() == 5);
  CHECK(pool.touched() == 5);
}

TEST_CASE("slot_pool: slots lie slot_bytes apart") {
  bare_core core(3, 1024);
  CHECK(core->slots.slot_bytes() == 1024);
  auto* first = reinterpret_cast<std::byte*>(core->slots.take(*core));
  auto* second = reinterpret_cast<std::byte*>(core->slots.take(*core));
  CHECK(second - first == 1024);
}

TEST_CASE("slot_pool: a slot given back is not reused before the end of the turn") {
  bare_core core(4);
  auto& pool = core->slots;
  slot* a = pool.take(*core);
  slot* b = pool.take(*core);
  pool.give_back(*a);
  CHECK(pool.in_use() == 1);
  slot* c = pool.take(*core);
  CHECK(c != a);
  slot* d = pool.take(*core);
  CHECK(d != a);
  CHECK(pool.take(*core) == nullptr);  // the only other one is closed, not free
  CHECK(pool.end_of_turn() == 1);
  CHECK(pool.take(*core) == a);
  CHECK(pool.end_of_turn() == 0);
  for (slot* s : {a, b, c}) pool.give_back(*s);
  CHECK(pool.end_of_turn() == 3);
  CHECK(pool.end_of_turn() == 0);
  CHECK(pool.in_use() == 1);
}

TEST_CASE("slot_pool: the slot closed last is used next and fresh ones only when none is free") {
  bare_core core(8);
  auto& pool = core->slots;
  slot* a = pool.take(*core);
  slot* b = pool.take(*core);
  slot* c = pool.take(*core);
  for (slot* closed : {b, a, c}) {
    pool.give_back(*closed);
    CHECK(pool.end_of_turn() == 1);
  }
  CHECK(pool.take(*core) == c);
  CHECK(pool.take(*core) == a);
  CHECK(pool.take(*core) == b);
  CHECK(pool.touched() == 3);
  CHECK(pool.take(*core)->index == 3);
}

TEST_CASE("slot_pool: a slot in which nothing was opened is free at once") {
  bare_core core(1);
  auto& pool = core->slots;
  slot* s = pool.take(*core);
  pool.put_back(*s);
  CHECK(pool.in_use() == 0);
  CHECK(pool.take(*core) == s);
  CHECK(pool.in_use() == 1);
}

TEST_CASE("slot_pool: every connection in a slot has a generation of its own") {
  bare_core core(1);
  std::set<std::uint32_t> generations;
  std::set<std::uint64_t> tokens;
  for (int i = 0; i < 5; ++i) {
    slot& s = core.run([&](connection& conn) -> task<> {
      slot& mine = slot::of(conn);
      CHECK(mine.generation != 0);  // 0 marks what is no connection
      CHECK(generations.insert(mine.generation).second);
      CHECK(tokens.insert(mine.token()).second);
      co_return;
    });
    CHECK(s.phase == engine::slot_phase::free);  // its handler has returned
    CHECK(core->slots.in_use() == 0);
    core.end_of_turn();
  }
}

TEST_CASE("slot_pool: generations wrap around without the value that stands for none") {
  bare_core core(1);
  core->slots.take(*core)->generation = 0xffff'ffff;
  core->slots.put_back(core->slots.at(0));
  slot& s = core.run([](connection&) -> task<> { co_return; });
  CHECK(s.generation == 1);
}

TEST_CASE("slot_pool: a handle finds its connection and no later one in the same slot") {
  bare_core core(1);
  gate first_wait;
  const auto handler = [&first_wait](connection&) -> task<> { co_await first_wait; };
  slot& first = core.run(handler);
  const std::uint32_t generation = first.generation;
  CHECK(detail::find_connection(*core, 0, generation) == &first);
  CHECK(detail::find_connection(*core, 0, generation + 1) == nullptr);
  CHECK(detail::find_connection(*core, 1, generation) == nullptr);  // never touched
  first_wait.open(first);
  CHECK(detail::find_connection(*core, 0, generation) == nullptr);
  core.end_of_turn();
  slot& second = core.run(handler);
  CHECK(&second == &first);
  CHECK(detail::find_connection(*core, 0, generation) == nullptr);
  CHECK(detail::find_connection(*core, 0, second.generation) == &second);
  second.halt();
  CHECK(detail::find_connection(*core, 0, second.generation) == nullptr);
}

}  // namespace
}  // namespace percore::test
