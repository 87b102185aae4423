// A forked process that runs a function of the test, for what needs limits or descriptors of its own.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <functional>
#include <string>

namespace percore::test {

// Fork it before the test starts a server: only a process of one thread can be forked and go on safely. The child
// ends with the function (an exception is told on standard error); the destructor kills a child that is still there.
class child_process {
 public:
  // The child's end of two pipes of text lines, one in each direction.
  class parent {
   public:
    parent(int from, int to) noexcept : from_(from), to_(to) {}
    void tell(const std::string& line) const;
    // Empty when the other side has ended.
    std::string hear() const;

   private:
    int from_;
    int to_;
  };

  explicit child_process(const std::function<void(const parent&)>& body);
  child_process(const child_process&) = delete;
  child_process& operator=(const child_process&) = delete;
  ~child_process();

  void tell(const std::string& line) const { parent(from_, to_).tell(line); }
  std::string hear() const { return parent(from_, to_).hear(); }
  // Waits for the child's end: 0 when the function returned.
  int wait();
  void kill() noexcept;
  // CPU time of the whole child so far, in seconds.
  [[nodiscard]] double cpu_seconds() const;
  [[nodiscard]] pid_t pid() const noexcept { return pid_; }

 private:
  pid_t pid_ = -1;
  int from_ = -1;
  int to_ = -1;
};

// Whether a child that runs `body` ends by an assertion of the engine. What that says is not told, nor is a core dumped.
bool ends_by_assertion(const std::function<void()>& body);

// Raises the soft limit of descriptors to at most `wanted` and returns what it is then.
std::size_t raise_descriptor_limit(std::size_t wanted);
void lower_descriptor_limit(std::size_t limit);

}  // namespace percore::test
