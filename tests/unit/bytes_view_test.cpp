#include <percore/bytes_view.hpp>

#include <doctest/doctest.h>

#include <array>
#include <concepts>
#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

namespace percore::test {
namespace {

// The text of what a function that takes a view is given.
std::string text_of(bytes_view view) {
  return std::string(view.text());
}

TEST_CASE("bytes_view: is made of every usual view of text and bytes") {
  const std::string text = "some bytes";
  CHECK(text_of("some bytes") == text);
  CHECK(text_of(text) == text);
  CHECK(text_of(std::string_view(text)) == text);
  CHECK(text_of({text.data(), text.size()}) == text);
  CHECK(text_of({reinterpret_cast<const std::byte*>(text.data()), text.size()}) == text);

  std::vector<char> chars(text.begin(), text.end());
  const std::vector<unsigned char> octets(text.begin(), text.end());
  std::vector<std::byte> bytes;
  for (const char c : text) bytes.push_back(static_cast<std::byte>(c));
  CHECK(text_of(chars) == text);
  CHECK(text_of(octets) == text);
  CHECK(text_of(bytes) == text);
  CHECK(text_of(std::span(chars)) == text);
  CHECK(text_of(std::span(octets)) == text);
  CHECK(text_of(std::span<const std::byte>(bytes)) == text);
  CHECK(text_of(std::as_bytes(std::span(text))) == text);

  std::array<char, 4> fixed{'a', 'b', '\0', 'c'};
  CHECK(text_of(std::span<char, 4>(fixed)) == std::string("ab\0c", 4));
  CHECK(text_of(std::span<const char, 4>(fixed)) == std::string("ab\0c", 4));
}

TEST_CASE("bytes_view: points at the bytes and copies nothing") {
  std::string text = "abc";
  const bytes_view view = text;
  CHECK(static_cast<const void*>(view.data()) == text.data());
  text[1] = 'x';
  CHECK(view.text() == "axc");
}

TEST_CASE("bytes_view: converts to text and to a span of bytes") {
  const bytes_view view = "abc";
  const std::string_view text = view;
  CHECK(text == "abc");
  const std::span<const std::byte> bytes = view;
  REQUIRE(bytes.size() == 3);
  CHECK(bytes.data() == view.data());
  CHECK(bytes[2] == std::byte{'c'});
}

TEST_CASE("bytes_view: is false exactly when it is empty") {
  CHECK_FALSE(bytes_view());
  CHECK(bytes_view().empty());
  CHECK(bytes_view().size() == 0);
  CHECK(bytes_view().data() == nullptr);
  CHECK(bytes_view().text().empty());
  CHECK_FALSE(bytes_view(""));
  CHECK_FALSE(bytes_view(std::string()));
  CHECK(bytes_view("x"));
  CHECK_FALSE(bytes_view("x").empty());
  CHECK(bytes_view(std::string_view("\0", 1)));
  CHECK_FALSE(std::is_convertible_v<bytes_view, bool>);  // only in conditions: a view is no number
}

TEST_CASE("bytes_view: a part of it stays inside of it") {
  const bytes_view view = "0123456789";
  CHECK(view.subview(0).text() == "0123456789");
  CHECK(view.subview(3).text() == "3456789");
  CHECK(view.subview(3, 4).text() == "3456");
  CHECK(view.subview(3, 100).text() == "3456789");
  CHECK(view.subview(9, 1).text() == "9");
  CHECK(view.subview(3, 0).empty());
  CHECK(view.subview(10).empty());
  CHECK(view.subview(11).empty());
  CHECK(view.subview(11).data() == view.data() + 10);
  CHECK(view.subview(static_cast<std::size_t>(-1), static_cast<std::size_t>(-1)).empty());
  CHECK(bytes_view().subview(1, 1).empty());
}

TEST_CASE("bytes_view: what is wider than a byte is no bytes") {
  CHECK_FALSE(std::is_constructible_v<bytes_view, std::vector<int>>);
  CHECK_FALSE(std::is_constructible_v<bytes_view, std::span<const char16_t>>);
  CHECK_FALSE(std::is_constructible_v<bytes_view, std::u16string>);
}

// Held by awaiters in coroutine frames: GCC 12 must have nothing of it to destroy.
static_assert(std::is_trivially_destructible_v<bytes_view> && std::is_trivially_copyable_v<bytes_view>);

}  // namespace
}  // namespace percore::test
