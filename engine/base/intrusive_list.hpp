#pragma once

#include <percore/detail/links.hpp>

namespace percore::base {

// A circular doubly linked list of nodes that somebody else owns. T derives from detail::link. A node leaves by its
// own unlink() or destructor; a node of a list that dies is left unlinked.
template <class T>
class intrusive_list {
 public:
  intrusive_list() noexcept { head_.next = head_.previous = &head_; }
  intrusive_list(const intrusive_list&) = delete;
  intrusive_list& operator=(const intrusive_list&) = delete;
  ~intrusive_list() {
    while (!empty()) head_.next->unlink();
    head_.next = head_.previous = nullptr;
  }

  [[nodiscard]] bool empty() const noexcept { return head_.next == &head_; }

  void push_back(T& node) noexcept {
    detail::link& item = node;
    item.previous = head_.previous;
    item.next = &head_;
    head_.previous->next = &item;
    head_.previous = &item;
  }

  void push_front(T& node) noexcept {
    detail::link& item = node;
    item.previous = &head_;
    item.next = head_.next;
    head_.next->previous = &item;
    head_.next = &item;
  }

  // The first node, unlinked; nullptr when there is none.
  T* pop_front() noexcept {
    if (empty()) return nullptr;
    detail::link* first = head_.next;
    first->unlink();
    return static_cast<T*>(first);
  }

  // `f` may take the node that it is given out of the list, and no other.
  template <class F>
  void for_each(F f) {
    for (detail::link* node = head_.next; node != &head_;) {
      detail::link* const next = node->next;
      f(*static_cast<T*>(node));
      node = next;
    }
  }

  // Moves all nodes of `other` behind those of this list.
  void take(intrusive_list& other) noexcept {
    if (other.empty()) return;
    other.head_.next->previous = head_.previous;
    head_.previous->next = other.head_.next;
    other.head_.previous->next = &head_;
    head_.previous = other.head_.previous;
    other.head_.next = other.head_.previous = &other.head_;
  }

 private:
  detail::link head_;
};

}  // namespace percore::base
