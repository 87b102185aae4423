// Fault injection at the seam to the kernel: tests only.
//
// The library is built twice in a test build: `percore` without this, and `percore_faulty` with PERCORE_FAULTS
// defined, in which every wrapper of calls.hpp first asks here. Without PERCORE_FAULTS nothing of this file is
// compiled into the engine.
#pragma once

#include <netdb.h>
#include <sys/socket.h>
#include <sys/types.h>

#include <array>
#include <cstddef>
#include <cstdint>

namespace percore::sys {

// One enumerator for each wrapped system call.
enum class call : std::uint8_t {
  accept4,
  bind,
  chmod,
  clock_gettime,
  close,
  connect,
  epoll_create1,
  epoll_ctl_add,
  epoll_ctl_del,
  epoll_ctl_mod,
  epoll_wait,
  eventfd,
  fcntl,
  futex_wait,
  getaddrinfo,
  getsockname,
  getsockopt,
  ioctl,
  listen,
  lstat,
  mmap,
  pipe2,
  poll,
  pread,
  read,
  recv,
  recvmsg,
  send,
  sendfile,
  sendmsg,
  setsockopt,
  shutdown,
  socket,
  splice,
  thread_create,
  unlink,
  unshare,
  write,
  count_
};

inline constexpr std::size_t call_count = static_cast<std::size_t>(call::count_);

const char* call_name(call which) noexcept;

// Probabilities from 0 to 1, each drawn on its own for every call that it applies to.
struct fault_plan {
  std::uint64_t seed = 0;         // the same seed gives each thread (numbered in order of first use) the same draws
  double short_read = 0;          // recv (and splice from a socket) takes 1..n-1 of the bytes asked for
  double short_write = 0;         // send, sendmsg, sendfile and splice take 1..n-1 of the bytes offered
  double would_block = 0;         // EAGAIN from recv, recvmsg, send, sendmsg, sendfile, splice and accept4
  double interrupted = 0;         // EINTR from the same and epoll_wait
  double connection_aborted = 0;  // ECONNABORTED from accept4
  double too_many_files = 0;      // EMFILE from accept4 and socket
  double no_memory = 0;           // ENOMEM from accept4, epoll_ctl(ADD), sends and mmap
  double reset = 0;               // ECONNRESET from receives and sends; the socket really is reset by its close
  // After the first fail_after[c] calls of kind c, which pass, the next fail_next[c] fail with fail_errno[c], whatever
  // the probabilities. Counted over all threads from set_fault_plan on.
  std::array<std::uint32_t, call_count> fail_after{};
  std::array<std::uint32_t, call_count> fail_next{};
  std::array<int, call_count> fail_errno{};
  // Whether EAGAIN by count is followed by the edge that it swallows, as EAGAIN by chance is. Without it a socket stays
  // full until something else happens to it.
  bool edge_follows = false;
};

// Installs a plan for all threads, or takes it away (nullptr). The plan is copied. Any thread; not while another
// thread is inside the same call.
void set_fault_plan(const fault_plan* plan);

// Calls made since the start of the process or the last reset, injected failures included. Any thread.
std::uint64_t calls_made(call which) noexcept;
std::uint64_t faults_injected(call which) noexcept;
void reset_call_counters() noexcept;

// What the wrappers of calls.hpp ask before they go to the kernel.
struct fault_verdict {
  bool injected = false;    // true: do not call, answer `result`
  long result = 0;          // negative errno
  std::size_t length = 0;   // the length to use, shortened or not
};
fault_verdict before_call(call which, int fd, std::size_t length) noexcept;

// An injected EAGAIN or short read swallows an edge that the kernel will not repeat: the seam remembers what was
// added to which epoll instance and asks for the edge again.
void note_epoll_add(int epoll_fd, int fd, std::uint32_t events, std::uint64_t data) noexcept;
void note_close(int fd) noexcept;
void note_unshare() noexcept;  // the calling thread has a descriptor table of its own now

// A part of the kernel that the machine may lack, in the test's own words: kernel TLS. Results as in calls.hpp; called
// on the engine's threads.
class kernel_stand_in {
 public:
  // TCP_ULP, and everything of level SOL_TLS.
  virtual int setsockopt(int fd, int level, int name, const void* value, socklen_t length) noexcept = 0;
  // For descriptors that has() knows: send as well.
  virtual ssize_t sendmsg(int fd, const msghdr* message, int flags) noexcept = 0;
  virtual ssize_t sendfile(int fd, int file, off_t* offset, std::size_t length) noexcept = 0;
  [[nodiscard]] virtual bool has(int fd) const noexcept = 0;
  virtual void closed(int fd) noexcept = 0;

 protected:
  ~kernel_stand_in() = default;
};

// Installs it for all threads, or takes it away (nullptr). Not while a server runs.
void set_kernel_stand_in(kernel_stand_in* instead) noexcept;
kernel_stand_in* stand_in_for(int fd) noexcept;                         // nullptr: the kernel itself
kernel_stand_in* stand_in_asked(int level, int name) noexcept;  // the same, for an option

// What names resolve to instead of asking the system, as getaddrinfo(3) answers; nullptr: the system is asked. The answer is
// given back with freeaddrinfo(3). Not while a server runs.
using resolver_stand_in = int (*)(const char* host, const addrinfo* hints, addrinfo** found);
void set_resolver_stand_in(resolver_stand_in instead) noexcept;
resolver_stand_in resolver() noexcept;

// What a socket's error queue says, instead of the kernel's; results as in calls.hpp. nullptr: the kernel is asked.
// Not while a server runs.
using notification_stand_in = ssize_t (*)(int fd, msghdr* message);
void set_notification_stand_in(notification_stand_in instead) noexcept;
notification_stand_in notifications() noexcept;

}  // namespace percore::sys
