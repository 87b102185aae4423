// A view of bytes that somebody else owns.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

namespace percore {

template <class T>
concept byte_like = std::is_same_v<T, char> || std::is_same_v<T, unsigned char> || std::is_same_v<T, std::byte>;

// Pointer and length, nothing owned. What `read` returns and `write` takes: converts from and to the usual views
// of text and bytes. False when empty, which is how a read tells end of stream or an error.
class bytes_view {
 public:
  constexpr bytes_view() noexcept = default;
  constexpr bytes_view(const std::byte* data, std::size_t size) noexcept : data_(data), size_(size) {}
  bytes_view(const void* data, std::size_t size) noexcept
      : data_(static_cast<const std::byte*>(data)), size_(size) {}
  bytes_view(std::string_view text) noexcept : bytes_view(static_cast<const void*>(text.data()), text.size()) {}
  bytes_view(const char* text) noexcept : bytes_view(std::string_view(text)) {}
  bytes_view(const std::string& text) noexcept : bytes_view(std::string_view(text)) {}
  template <byte_like T, std::size_t N>
  bytes_view(std::span<T, N> bytes) noexcept : bytes_view(static_cast<const void*>(bytes.data()), bytes.size()) {}
  template <byte_like T, std::size_t N>
  bytes_view(std::span<const T, N> bytes) noexcept
      : bytes_view(static_cast<const void*>(bytes.data()), bytes.size()) {}
  template <byte_like T>
  bytes_view(const std::vector<T>& bytes) noexcept
      : bytes_view(static_cast<const void*>(bytes.data()), bytes.size()) {}

  [[nodiscard]] constexpr const std::byte* data() const noexcept { return data_; }
  [[nodiscard]] constexpr std::size_t size() const noexcept { return size_; }
  [[nodiscard]] constexpr bool empty() const noexcept { return size_ == 0; }
  constexpr explicit operator bool() const noexcept { return size_ != 0; }

  // The same bytes as text; no encoding is checked.
  [[nodiscard]] std::string_view text() const noexcept {
    return {reinterpret_cast<const char*>(data_), size_};
  }
  operator std::string_view() const noexcept { return text(); }
  constexpr operator std::span<const std::byte>() const noexcept { return {data_, size_}; }

  // The bytes from `offset` on, at most `count`; an offset past the end gives an empty view.
  [[nodiscard]] constexpr bytes_view subview(std::size_t offset,
                                             std::size_t count = static_cast<std::size_t>(-1)) const noexcept {
    if (offset > size_) offset = size_;
    return {data_ + offset, count < size_ - offset ? count : size_ - offset};
  }

 private:
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace percore
