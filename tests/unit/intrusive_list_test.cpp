#include "engine/base/intrusive_list.hpp"

#include <doctest/doctest.h>

#include <array>
#include <optional>
#include <vector>

namespace percore::test {
namespace {

struct node : detail::link {
  explicit node(int n) : number(n) {}
  int number;
};
using list = base::intrusive_list<node>;

std::vector<int> drain(list& from) {
  std::vector<int> numbers;
  while (node* first = from.pop_front()) {
    CHECK_FALSE(first->linked());
    numbers.push_back(first->number);
  }
  CHECK(from.empty());
  return numbers;
}

using numbers = std::vector<int>;

TEST_CASE("intrusive_list: first in and first out") {
  list l;
  CHECK(l.empty());
  CHECK(l.pop_front() == nullptr);
  node a(1), b(2), c(3);
  CHECK_FALSE(a.linked());
  l.push_back(a);
  l.push_back(b);
  CHECK_FALSE(l.empty());
  CHECK(a.linked());
  CHECK(l.pop_front() == &a);
  l.push_back(c);
  l.push_back(a);
  CHECK(drain(l) == numbers{2, 3, 1});
  CHECK(l.pop_front() == nullptr);
}

TEST_CASE("intrusive_list: a node leaves from any position") {
  for (int leaving = 0; leaving < 3; ++leaving) {
    CAPTURE(leaving);
    list l;
    std::array<node, 3> nodes{node(0), node(1), node(2)};
    for (auto& n : nodes) l.push_back(n);
    auto& gone = nodes[static_cast<std::size_t>(leaving)];
    gone.unlink();
    CHECK_FALSE(gone.linked());
    gone.unlink();  // again: nothing happens
    numbers expected{0, 1, 2};
    expected.erase(expected.begin() + leaving);
    CHECK(drain(l) == expected);
  }
  list l;
  node only(1);
  l.push_back(only);
  only.unlink();
  CHECK(l.empty());
}

TEST_CASE("intrusive_list: a node that dies leaves its list") {
  list l;
  node a(1), c(3);
  {
    node b(2);
    l.push_back(a);
    l.push_back(b);
    l.push_back(c);
  }
  CHECK(drain(l) == numbers{1, 3});
}

TEST_CASE("intrusive_list: a list that dies leaves its nodes unlinked") {
  node a(1), b(2);
  {
    list l;
    l.push_back(a);
    l.push_back(b);
  }
  CHECK_FALSE(a.linked());
  CHECK_FALSE(b.linked());
  list other;
  other.push_back(b);
  other.push_back(a);
  CHECK(drain(other) == numbers{2, 1});
}

TEST_CASE("intrusive_list: take appends all nodes of another list") {
  node a(1), b(2), c(3), d(4);
  list target, source;

  target.take(source);  // both empty
  CHECK(target.empty());

  source.push_back(a);
  source.push_back(b);
  target.take(source);  // into an empty list
  CHECK(source.empty());
  CHECK(source.pop_front() == nullptr);

  source.push_back(c);
  source.push_back(d);
  target.take(source);
  target.take(source);  // from an empty list
  CHECK(source.empty());

  b.unlink();
  source.push_back(b);
  CHECK(drain(target) == numbers{1, 3, 4});
  CHECK(drain(source) == numbers{2});
}

TEST_CASE("intrusive_list: nodes that were taken can leave at both ends") {
  node a(1), b(2), c(3);
  list target;
  {
    list source;
    source.push_back(a);
    source.push_back(b);
    source.push_back(c);
    target.take(source);
  }  // the death of the source does not touch them
  CHECK(a.linked());
  a.unlink();
  c.unlink();
  CHECK(drain(target) == numbers{2});
}

}  // namespace
}  // namespace percore::test
