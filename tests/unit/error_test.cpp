#include <percore/error.hpp>

#include <doctest/doctest.h>

#include <ostream>  // doctest prints error codes
#include <set>
#include <string>
#include <system_error>

namespace percore::test {
namespace {

TEST_CASE("error: every condition has a message of its own") {
  std::set<std::string> messages;
  for (const errc code : {errc::end_of_stream, errc::connection_reset, errc::timed_out, errc::shutting_down,
                          errc::limit_exceeded, errc::closed, errc::no_memory}) {
    const std::error_code error = code;
    CAPTURE(error.value());
    CHECK(error);  // none is 0, which means success
    CHECK_FALSE(error.message().empty());
    CHECK(error.message().find("unknown") == std::string::npos);
    CHECK(messages.insert(error.message()).second);
  }
}

TEST_CASE("error: compares with the enumerators") {
  const std::error_code error = errc::timed_out;
  CHECK(error == errc::timed_out);
  CHECK(error != errc::closed);
  CHECK(error == make_error_code(errc::timed_out));
  CHECK(error != std::error_code(error.value(), std::system_category()));
  CHECK(std::error_code() != errc::end_of_stream);
}

TEST_CASE("error: the category is one object and has a name") {
  CHECK(&error_category() == &error_category());
  CHECK(std::error_code(errc::closed).category() == error_category());
  CHECK(std::string(error_category().name()) == "percore");
}

TEST_CASE("error: an unknown value is told as such") {
  const std::error_code error(4711, error_category());
  CHECK(error.message() == "unknown error 4711");
}

}  // namespace
}  // namespace percore::test
