// A move-only closure that fits a cache line together with its ring cell. Not for users.
#pragma once

#include <cstddef>
#include <memory>
#include <new>
#include <type_traits>
#include <utility>

namespace percore::engine {
struct core_resources;
}

namespace percore::detail {

// Runs once on a core's thread. Closures of up to `inline_bytes` are held in place, larger ones on the heap.
class message {
 public:
  static constexpr std::size_t inline_bytes = 40;

  message() noexcept = default;

  template <class F>
    requires(!std::is_same_v<std::decay_t<F>, message>)
  explicit message(F&& f) {
    using closure = std::decay_t<F>;
    if constexpr (fits<closure>) {
      ::new (static_cast<void*>(storage_)) closure(std::forward<F>(f));
      actions_ = &inline_actions<closure>;
    } else {
      ::new (static_cast<void*>(storage_)) std::unique_ptr<closure>(new closure(std::forward<F>(f)));
      actions_ = &heap_actions<closure>;
    }
  }

  message(message&& other) noexcept { take(other); }
  message& operator=(message&& other) noexcept {
    if (this != &other) {
      clear();
      take(other);
    }
    return *this;
  }
  ~message() { clear(); }

  explicit operator bool() const noexcept { return actions_ != nullptr; }

  void operator()(engine::core_resources& core) { actions_->run(storage_, core); }

 private:
  struct actions {
    void (*run)(void*, engine::core_resources&);
    void (*move)(void* from, void* to) noexcept;
    void (*destroy)(void*) noexcept;
  };

  template <class F>
  static constexpr bool fits =
      sizeof(F) <= inline_bytes && alignof(F) <= alignof(void*) && std::is_nothrow_move_constructible_v<F>;

  template <class F>
  static constexpr actions inline_actions = {
      [](void* p, engine::core_resources& core) { (*static_cast<F*>(p))(core); },
      [](void* from, void* to) noexcept {
        ::new (to) F(std::move(*static_cast<F*>(from)));
        static_cast<F*>(from)->~F();
      },
      [](void* p) noexcept { static_cast<F*>(p)->~F(); }};

  template <class F>
  static constexpr actions heap_actions = {
      [](void* p, engine::core_resources& core) { (**static_cast<std::unique_ptr<F>*>(p))(core); },
      [](void* from, void* to) noexcept {
        using pointer = std::unique_ptr<F>;
        ::new (to) pointer(std::move(*static_cast<pointer*>(from)));
        static_cast<pointer*>(from)->~pointer();
      },
      [](void* p) noexcept {
        using pointer = std::unique_ptr<F>;
        static_cast<pointer*>(p)->~pointer();
      }};

  void take(message& other) noexcept {
    actions_ = std::exchange(other.actions_, nullptr);
    if (actions_ != nullptr) actions_->move(other.storage_, storage_);
  }
  void clear() noexcept {
    if (actions_ != nullptr) std::exchange(actions_, nullptr)->destroy(storage_);
  }

  const actions* actions_ = nullptr;
  alignas(void*) unsigned char storage_[inline_bytes];
};

}  // namespace percore::detail
