#include "tests/support/clean_process.hpp"

#include <dirent.h>

#include <doctest/doctest.h>

#include <memory>
#include <thread>

#include "tests/support/waiting.hpp"

namespace percore::test {
namespace {

std::size_t entries(const char* folder) {
  std::size_t count = 0;
  const std::unique_ptr<DIR, int (*)(DIR*)> all(::opendir(folder), &::closedir);
  REQUIRE(all);
  while (const dirent* entry = ::readdir(all.get())) count += entry->d_name[0] != '.';
  return count;
}

}  // namespace

std::size_t open_descriptors() { return entries("/proc/self/fd") - 1; }  // one is that of the count itself

std::size_t running_threads() { return entries("/proc/self/task"); }

clean_process::clean_process() {
  // A sanitizer starts its own thread together with the first one of the program.
  std::thread([] {}).join();
  (void)eventually([] { return running_threads() <= (sanitized ? 2U : 1U); }, std::chrono::seconds(1));
  descriptors_ = open_descriptors();
  threads_ = running_threads();
  alive_ = alive::count();
}

clean_process::~clean_process() {
  CHECK(open_descriptors() == descriptors_);
  // A joined thread is listed by /proc until the kernel has taken it down, which nobody is told.
  CHECK(eventually([this] { return running_threads() <= threads_; }, std::chrono::seconds(10)));
  CHECK(alive::count() == alive_);
}

}  // namespace percore::test
