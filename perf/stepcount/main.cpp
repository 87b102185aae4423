// stepcount: executes a server's requests instruction by instruction (ptrace(2), PTRACE_SINGLESTEP) and
// counts what limits scaling to many cores: atomic read-modify-writes, futexes, system calls. x86-64 only.
//
// The requests are its own: one connection at a time, one request after the other, so that nothing is batched
// and each count is what a request costs at most. Instructions inside the kernel are not seen.

#include <arpa/inet.h>
#include <dirent.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <limits>
#include <string>
#include <string_view>
#include <thread>
#include <unordered_map>

#include "perf/program.hpp"
#include "perf/stepcount/decode.hpp"

namespace {

using stepcount::instruction;
using stepcount::kind;

constexpr int connections = 8;  // enough that each of two threads has some, whatever their ports hash to

struct counts {
  std::uint64_t instructions = 0;
  std::uint64_t atomics = 0;
  std::uint64_t system_calls = 0;
  std::uint64_t futexes = 0;
};

using program::die;

// A cache line that atomics have changed.
struct line {
  pid_t first = 0;  // thread
  bool shared = false;
  std::uint64_t changes = 0;  // while counting
};

class stepper {
 public:
  explicit stepper(pid_t pid) : pid_(pid) {
    const std::string folder = "/proc/" + std::to_string(pid) + "/task";
    DIR* tasks = opendir(folder.c_str());
    if (tasks == nullptr) die("--pid");
    while (const dirent* entry = readdir(tasks)) {
      const pid_t thread = std::atoi(entry->d_name);
      if (thread <= 0) continue;
      constexpr long options = PTRACE_O_TRACECLONE;  // threads that are started meanwhile are counted too
      if (ptrace(PTRACE_SEIZE, thread, nullptr, options) != 0) die("ptrace");
      if (ptrace(PTRACE_INTERRUPT, thread, nullptr, nullptr) != 0) die("ptrace");
    }
    closedir(tasks);
  }

  // Goes on until `done`, which another thread sets; that thread's last signal wakes us.
  void run(const std::atomic<bool>& done) {
    while (!done) {
      int status = 0;
      const pid_t thread = waitpid(-1, &status, __WALL | WNOHANG);
      if (thread < 0) die("the server ended: waitpid");
      if (thread == 0) {
        std::this_thread::yield();
        continue;
      }
      if (WIFSTOPPED(status)) step(thread, status);
    }
  }

  // Counts are added up by the stepping thread and read by the one that sends the requests, when all is at
  // rest.
  [[nodiscard]] counts now() const {
    return {instructions_.load(), atomics_.load(), system_calls_.load(), futexes_.load()};
  }

  void start_counting() { counting_ = true; }
  void stop_counting() { counting_ = false; }

  // Changes by atomics, while counting, of lines that more than one thread has changed at any time. After
  // run().
  [[nodiscard]] std::uint64_t shared_changes() const {
    std::uint64_t sum = 0;
    for (const auto& [at, each] : lines_) sum += each.shared ? each.changes : 0;
    return sum;
  }

 private:
  void step(pid_t thread, int status) {
    const int number = WSTOPSIG(status);
    const int event = status >> 16;
    if (number == SIGTRAP && event == 0) count(thread);
    const long deliver = number == SIGTRAP || event != 0 ? 0 : number;
    ptrace(PTRACE_SINGLESTEP, thread, nullptr, deliver);  // fails when the thread is gone
  }

  // The thread is about to execute what its instruction pointer names.
  void count(pid_t thread) {
    user_regs_struct registers{};
    if (ptrace(PTRACE_GETREGS, thread, nullptr, &registers) != 0) return;
    instructions_.fetch_add(1, std::memory_order_relaxed);
    const instruction& next = instruction_at(registers.rip);
    switch (next.what) {
      case kind::atomic:
        atomics_.fetch_add(1, std::memory_order_relaxed);
        change(stepcount::operand_address(next, registers) / 64, thread);
        break;
      case kind::system_call:
        system_calls_.fetch_add(1, std::memory_order_relaxed);
        if (registers.rax == SYS_futex) futexes_.fetch_add(1, std::memory_order_relaxed);
        break;
      case kind::plain:
        break;
    }
  }

  void change(std::uint64_t at, pid_t thread) {
    line& changed = lines_.try_emplace(at, line{.first = thread}).first->second;
    changed.shared = changed.shared || changed.first != thread;
    if (counting_) ++changed.changes;
  }

  const instruction& instruction_at(std::uint64_t address) {
    const auto known = code_.find(address);
    if (known != code_.end()) return known->second;
    std::array<std::uint8_t, 32> code{};
    const iovec into{code.data(), 16};
    const iovec from{reinterpret_cast<void*>(address), 16};  // NOLINT: an address of the other process
    process_vm_readv(pid_, &into, 1, &from, 1,
                     0);  // what cannot be read (the vsyscall page) stays zero: plain
    return code_.emplace(address, stepcount::decode(code.data(), address)).first->second;
  }

  pid_t pid_;
  std::unordered_map<std::uint64_t, instruction> code_;
  std::unordered_map<std::uint64_t, line> lines_;
  std::atomic<bool> counting_{false};
  std::atomic<std::uint64_t> instructions_{0};
  std::atomic<std::uint64_t> atomics_{0};
  std::atomic<std::uint64_t> system_calls_{0};
  std::atomic<std::uint64_t> futexes_{0};
};

struct client {
  sockaddr_in address{};
  bool close_each = false;
  int fd = -1;

  void open() {
    fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0)
      die("connect");
  }

  // One request and its whole response: until the body is as long as the head says, or to the end of the
  // connection.
  void exchange() {
    if (fd < 0) open();
    const std::string request = std::string("GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: ") +
                                (close_each ? "close" : "keep-alive") + "\r\n\r\n";
    if (send(fd, request.data(), request.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(request.size()))
      die("send");
    std::string data;
    std::array<char, 65536> part;
    std::size_t wanted = std::string::npos;
    while (data.size() < wanted || close_each) {
      const ssize_t bytes = recv(fd, part.data(), part.size(), 0);
      if (bytes < 0 || (bytes == 0 && !close_each)) die("recv");
      if (bytes == 0) break;
      data.append(part.data(), static_cast<std::size_t>(bytes));
      const std::size_t end = data.find("\r\n\r\n");
      const std::size_t field = data.find("\r\nContent-Length: ");
      if (end == std::string::npos || field == std::string::npos) continue;
      std::size_t length = 0;
      std::from_chars(data.data() + field + 18, data.data() + end, length);
      wanted = end + 4 + length;
    }
    if (close_each) {
      close(fd);
      fd = -1;
    }
  }
};

void rest() {
  const std::timespec time{0, 200'000'000};  // for what the server does after its answer
  nanosleep(&time, nullptr);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4 || argc > 5 || (argc == 5 && std::string_view(argv[4]) != "close")) {
    std::fputs(
        "usage: stepcount PID PORT REQUESTS [close]\n"
        "Prints what a request costs the server of that process at 127.0.0.1:PORT in user space, as JSON. "
        "close: a\n"
        "connection for each request. Needs the right to trace the process (ptrace(2)), which does not "
        "survive it.\n",
        stderr);
    return 2;
  }
  const pid_t pid = program::parse_number(argv[1], "PID", 1, std::numeric_limits<pid_t>::max());
  const auto port = static_cast<std::uint16_t>(program::parse_number(argv[2], "PORT", 1, 65535));
  const int requests = program::parse_number(argv[3], "REQUESTS", 1, 1'000'000'000);
  std::array<client, connections> loads;
  for (client& load : loads) {
    load.close_each = argc == 5;
    load.address.sin_family = AF_INET;
    load.address.sin_port = htons(port);
    load.address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  }
  const auto send_requests = [&loads](int count) {
    for (int i = 0; i < count; ++i) loads[static_cast<std::size_t>(i % connections)].exchange();
  };
  send_requests(200);  // at full speed: whatever happens only once is over

  stepper tracer(pid);
  std::atomic<bool> done{false};
  counts before;
  counts after;
  std::thread sender([&] {
    send_requests(connections);
    rest();
    before = tracer.now();
    tracer.start_counting();
    send_requests(requests);
    rest();
    tracer.stop_counting();
    after = tracer.now();
    done = true;
  });
  tracer.run(done);
  sender.join();
  const auto each = [requests](std::uint64_t last, std::uint64_t first) {
    return static_cast<double>(last - first) / requests;
  };
  std::printf(
      "{\"requests\": %d, \"instructions\": %.1f, \"atomics\": %.2f, \"shared_atomics\": %.2f, "
      "\"system_calls\": %.2f, \"futexes\": %.2f}\n",
      requests, each(after.instructions, before.instructions), each(after.atomics, before.atomics),
      each(tracer.shared_changes(), 0), each(after.system_calls, before.system_calls),
      each(after.futexes, before.futexes));
  return 0;  // a thread in the midst of a step does not survive the end of the tracing
}
