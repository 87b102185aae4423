// The one seam to the kernel: every system call that the engine makes is a wrapper in this file.
//
// Convention: a result >= 0 is the kernel's, a negative one is -errno. No wrapper touches errno for its caller,
// none retries, none throws. In the test build (PERCORE_FAULTS) each first asks faults.hpp.
#pragma once

#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "engine/sys/direct_call.hpp"
#include "engine/sys/faults.hpp"

namespace percore::sys {

template <class T>
inline T or_errno(T result) noexcept {
  return result < 0 ? static_cast<T>(-errno) : result;
}

#ifdef PERCORE_FAULTS
#define PERCORE_FAULT_POINT(which, fd)                                               \
  do {                                                                               \
    if (auto verdict = before_call(call::which, fd, 0); verdict.injected)            \
      return static_cast<int>(verdict.result);                                       \
  } while (false)
#define PERCORE_FAULT_POINT_LENGTH(which, fd, length)                                \
  do {                                                                               \
    auto verdict = before_call(call::which, fd, length);                             \
    if (verdict.injected) return static_cast<ssize_t>(verdict.result);               \
    length = verdict.length;                                                         \
  } while (false)
#else
#define PERCORE_FAULT_POINT(which, fd) ((void)0)
#define PERCORE_FAULT_POINT_LENGTH(which, fd, length) ((void)0)
#endif

// --- sockets ---------------------------------------------------------------------------------------------

inline int socket(int domain, int type, int protocol) noexcept {
  PERCORE_FAULT_POINT(socket, -1);
  return or_errno(::socket(domain, type, protocol));
}

inline int bind(int fd, const sockaddr* address, socklen_t length) noexcept {
  PERCORE_FAULT_POINT(bind, fd);
  return or_errno(::bind(fd, address, length));
}

inline int listen(int fd, int backlog) noexcept {
  PERCORE_FAULT_POINT(listen, fd);
  return or_errno(::listen(fd, backlog));
}

inline int connect(int fd, const sockaddr* address, socklen_t length) noexcept {
  PERCORE_FAULT_POINT(connect, fd);
  return or_errno(::connect(fd, address, length));
}

// Takes a TCP connection apart with a RST (connect(2), AF_UNSPEC), while another thread may be using the descriptor: not
// through the C library, whose connect ThreadSanitizer takes for the making of what the others use.
inline int disconnect(int fd) noexcept {
  PERCORE_FAULT_POINT(connect, fd);
  sockaddr nobody{};
  nobody.sa_family = AF_UNSPEC;
  return or_errno(static_cast<int>(::syscall(SYS_connect, fd, &nobody, sizeof nobody)));
}

inline int accept4(int fd, sockaddr* address, socklen_t* length, int flags) noexcept {
  PERCORE_FAULT_POINT(accept4, fd);
#if PERCORE_DIRECT_CALLS
  return static_cast<int>(direct_call(SYS_accept4, fd, as_argument(address), as_argument(length), flags));
#else
  return or_errno(::accept4(fd, address, length, flags));
#endif
}

inline ssize_t recv(int fd, void* buffer, std::size_t length, int flags) noexcept {
  PERCORE_FAULT_POINT_LENGTH(recv, fd, length);
#if PERCORE_DIRECT_CALLS
  return direct_call(SYS_recvfrom, fd, as_argument(buffer), static_cast<long>(length), flags);
#else
  return or_errno(::recv(fd, buffer, length, flags));
#endif
}

inline ssize_t send(int fd, const void* buffer, std::size_t length, int flags) noexcept {
  PERCORE_FAULT_POINT_LENGTH(send, fd, length);
#ifdef PERCORE_FAULTS
  if (kernel_stand_in* instead = stand_in_for(fd)) {
    const iovec piece{const_cast<void*>(buffer), length};
    msghdr message{};
    message.msg_iov = const_cast<iovec*>(&piece);
    message.msg_iovlen = 1;
    return instead->sendmsg(fd, &message, flags);
  }
#endif
#if PERCORE_DIRECT_CALLS
  return direct_call(SYS_sendto, fd, as_argument(buffer), static_cast<long>(length), flags);
#else
  return or_errno(::send(fd, buffer, length, flags));
#endif
}

// Scatter-gather send. An injected short write sends part of the first non-empty piece only; a message with control
// data is never cut.
inline ssize_t sendmsg(int fd, const msghdr* message, int flags) noexcept {
#ifdef PERCORE_FAULTS
  kernel_stand_in* const instead = stand_in_for(fd);
  for (std::size_t i = 0; i < message->msg_iovlen; ++i) {
    std::size_t length = message->msg_iov[i].iov_len;
    if (length == 0) continue;
    const std::size_t whole = length;
    PERCORE_FAULT_POINT_LENGTH(sendmsg, fd, length);
    if (length == whole || message->msg_controllen != 0) break;
    const iovec part{message->msg_iov[i].iov_base, length};
    msghdr cut{};
    cut.msg_iov = const_cast<iovec*>(&part);
    cut.msg_iovlen = 1;
    return instead != nullptr ? instead->sendmsg(fd, &cut, flags) : or_errno(::sendmsg(fd, &cut, flags));
  }
  if (instead != nullptr) return instead->sendmsg(fd, message, flags);
#endif
#if PERCORE_DIRECT_CALLS
  return direct_call(SYS_sendmsg, fd, as_argument(message), flags);
#else
  return or_errno(::sendmsg(fd, message, flags));
#endif
}

// The next entry of a socket's error queue, its control data only: what has become of sends with MSG_ZEROCOPY. -EAGAIN: none.
inline ssize_t receive_notification(int fd, msghdr* message) noexcept {
  PERCORE_FAULT_POINT(recvmsg, fd);
#ifdef PERCORE_FAULTS
  if (const notification_stand_in instead = notifications()) return instead(fd, message);
#endif
  return or_errno(::recvmsg(fd, message, MSG_ERRQUEUE | MSG_DONTWAIT));
}

// Bytes that a socket was given and its peer has not acknowledged (SIOCOUTQ, tcp(7)).
inline int unacknowledged_bytes(int fd) noexcept {
  PERCORE_FAULT_POINT(ioctl, fd);
  int bytes = 0;
  const int result = or_errno(::ioctl(fd, SIOCOUTQ, &bytes));
  return result < 0 ? result : bytes;
}

// From a file's `offset` on, which the call moves, into a socket.
inline ssize_t sendfile(int fd, int file, off_t* offset, std::size_t length) noexcept {
  PERCORE_FAULT_POINT_LENGTH(sendfile, fd, length);
#ifdef PERCORE_FAULTS
  if (kernel_stand_in* instead = stand_in_for(fd)) return instead->sendfile(fd, file, offset, length);
#endif
  return or_errno(::sendfile(fd, file, offset, length));
}

// Between a pipe and a socket, in either direction, without waiting; `socket` is the one of the two that is a socket.
inline ssize_t splice(int from, int to, std::size_t length, [[maybe_unused]] int socket) noexcept {
  PERCORE_FAULT_POINT_LENGTH(splice, socket, length);
  return or_errno(::splice(from, nullptr, to, nullptr, length, SPLICE_F_MOVE | SPLICE_F_NONBLOCK));
}

inline int pipe2(int* ends, int flags) noexcept {
  PERCORE_FAULT_POINT(pipe2, -1);
  return or_errno(::pipe2(ends, flags));
}

inline int shutdown(int fd, int how) noexcept {
  PERCORE_FAULT_POINT(shutdown, fd);
  return or_errno(::shutdown(fd, how));
}

// Linux releases the descriptor even when close reports EINTR (close(2)), so nobody may call it again.
inline int close(int fd) noexcept {
#ifdef PERCORE_FAULTS
  note_close(fd);
  (void)before_call(call::close, fd, 0);
#endif
#if PERCORE_DIRECT_CALLS
  return static_cast<int>(direct_call(SYS_close, fd, 0));
#else
  return or_errno(::close(fd));
#endif
}

inline int setsockopt(int fd, int level, int name, const void* value, socklen_t length) noexcept {
  PERCORE_FAULT_POINT(setsockopt, fd);
#ifdef PERCORE_FAULTS
  if (kernel_stand_in* instead = stand_in_asked(level, name)) {
    return instead->setsockopt(fd, level, name, value, length);
  }
#endif
  return or_errno(::setsockopt(fd, level, name, value, length));
}

inline int getsockopt(int fd, int level, int name, void* value, socklen_t* length) noexcept {
  PERCORE_FAULT_POINT(getsockopt, fd);
  return or_errno(::getsockopt(fd, level, name, value, length));
}

inline int getsockname(int fd, sockaddr* address, socklen_t* length) noexcept {
  PERCORE_FAULT_POINT(getsockname, fd);
  return or_errno(::getsockname(fd, address, length));
}

// Gives the calling thread a copy of the process's descriptor table for its own (unshare(2), CLONE_FILES).
inline int unshare_descriptors() noexcept {
  PERCORE_FAULT_POINT(unshare, -1);
  const int result = or_errno(::unshare(CLONE_FILES));
#ifdef PERCORE_FAULTS
  if (result == 0) note_unshare();
#endif
  return result;
}

// The process as a descriptor (pidfd_open(2), Linux 5.3), and through it a copy, in the calling thread's own table, of
// a descriptor of the process's: that of its first thread (pidfd_getfd(2), Linux 5.6). Close both.
inline int own_process() noexcept { return or_errno(static_cast<int>(::syscall(SYS_pidfd_open, ::getpid(), 0))); }
inline int descriptor_of_process(int process, int fd) noexcept {
  return or_errno(static_cast<int>(::syscall(SYS_pidfd_getfd, process, fd, 0)));
}

inline int unlink(const char* path) noexcept {
  PERCORE_FAULT_POINT(unlink, -1);
  return or_errno(::unlink(path));
}

inline int chmod(const char* path, mode_t mode) noexcept {
  PERCORE_FAULT_POINT(chmod, -1);
  return or_errno(::chmod(path, mode));
}

inline int lstat(const char* path, struct stat* result) noexcept {
  PERCORE_FAULT_POINT(lstat, -1);
  return or_errno(::lstat(path, result));
}

// Descriptor flags and status flags (F_GETFL, F_SETFL, F_GETFD, F_SETFD).
inline int fcntl(int fd, int command, int argument) noexcept {
  PERCORE_FAULT_POINT(fcntl, fd);
  return or_errno(::fcntl(fd, command, argument));
}

// Waits for single descriptors outside of a loop, as set-up does. Not for the request path.
inline int poll(pollfd* entries, nfds_t count, int timeout_ms) noexcept {
  PERCORE_FAULT_POINT(poll, -1);
  return or_errno(::poll(entries, count, timeout_ms));
}

// getaddrinfo(3), which blocks; its results are EAI_* values.
inline int resolve(const char* host, const addrinfo* hints, addrinfo** found) noexcept {
#ifdef PERCORE_FAULTS
  if (before_call(call::getaddrinfo, -1, 0).injected) return EAI_AGAIN;
  if (const resolver_stand_in instead = resolver()) return instead(host, hints, found);
#endif
  return ::getaddrinfo(host, nullptr, hints, found);
}

// Index of a network interface by its name; 0 if there is none of that name.
inline unsigned interface_index(const char* name) noexcept { return ::if_nametoindex(name); }

// --- readiness and wake-ups ------------------------------------------------------------------------------

inline int epoll_create1(int flags) noexcept {
  PERCORE_FAULT_POINT(epoll_create1, -1);
  return or_errno(::epoll_create1(flags));
}

// What epoll_add and epoll_modify have in common.
inline int epoll_set(int operation, int epoll_fd, int fd, std::uint32_t events, std::uint64_t data) noexcept {
  epoll_event event{};
  event.events = events;
  event.data.u64 = data;
#ifdef PERCORE_FAULTS
  note_epoll_add(epoll_fd, fd, events, data);
#endif
  return or_errno(::epoll_ctl(epoll_fd, operation, fd, &event));
}

inline int epoll_add(int epoll_fd, int fd, std::uint32_t events, std::uint64_t data) noexcept {
  PERCORE_FAULT_POINT(epoll_ctl_add, fd);
  return epoll_set(EPOLL_CTL_ADD, epoll_fd, fd, events, data);
}

inline int epoll_modify(int epoll_fd, int fd, std::uint32_t events, std::uint64_t data) noexcept {
  PERCORE_FAULT_POINT(epoll_ctl_mod, fd);
  return epoll_set(EPOLL_CTL_MOD, epoll_fd, fd, events, data);
}

inline int epoll_delete(int epoll_fd, int fd) noexcept {
  PERCORE_FAULT_POINT(epoll_ctl_del, fd);
#ifdef PERCORE_FAULTS
  note_close(fd);
#endif
  epoll_event unused{};
  return or_errno(::epoll_ctl(epoll_fd, EPOLL_CTL_DEL, fd, &unused));
}

// Waits until `timeout_ns` (0: look only, negative: no limit). Nanoseconds by epoll_pwait2 (Linux 5.11); an older
// kernel gets epoll_wait and whole milliseconds, rounded up.
[[gnu::hot]] int epoll_wait(int epoll_fd, epoll_event* events, int capacity, std::int64_t timeout_ns) noexcept;

inline int eventfd(unsigned initial, int flags) noexcept {
  PERCORE_FAULT_POINT(eventfd, -1);
  return or_errno(::eventfd(initial, flags));
}

inline ssize_t read(int fd, void* buffer, std::size_t length) noexcept {
  PERCORE_FAULT_POINT(read, fd);
  return or_errno(::read(fd, buffer, length));
}

inline ssize_t pread(int fd, void* buffer, std::size_t length, off_t offset) noexcept {
  PERCORE_FAULT_POINT(pread, fd);
  return or_errno(::pread(fd, buffer, length, offset));
}

inline ssize_t write(int fd, const void* buffer, std::size_t length) noexcept {
  PERCORE_FAULT_POINT(write, fd);
  return or_errno(::write(fd, buffer, length));
}

// A file for lines that are appended, made with mode 0600.
inline int open_append(const char* path) noexcept {
  return or_errno(::open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600));
}

// Waits without limit until `fd` is readable: 1, or -EINTR.
inline int poll_readable(int fd) noexcept {
  pollfd entry{fd, POLLIN, 0};
  return or_errno(::poll(&entry, 1, -1));
}

inline int getrlimit(int resource, rlimit* limit) noexcept {
  return or_errno(::getrlimit(static_cast<__rlimit_resource>(resource), limit));
}

inline int sigaction(int signal, const struct sigaction* action, struct sigaction* previous) noexcept {
  return or_errno(::sigaction(signal, action, previous));
}

// --- threads ---------------------------------------------------------------------------------------------

// futex(2), private to the process: sleeps while `word` is `expected`, at most `timeout_ns` (negative: no limit). 0
// when woken, -EAGAIN when it was another value, -ETIMEDOUT, -EINTR; the caller looks at the word in any case.
int futex_wait(const std::atomic<std::uint32_t>& word, std::uint32_t expected, std::int64_t timeout_ns) noexcept;
// Wakes up to `count` threads that sleep on `word`.
int futex_wake(const std::atomic<std::uint32_t>& word, int count) noexcept;

// Sends a signal to one thread of this process (tgkill(2)).
int signal_thread(pid_t thread, int signal) noexcept;

// --- memory and time -------------------------------------------------------------------------------------

// Anonymous private memory, zeroed and not yet touched; nullptr when the kernel refuses.
inline void* map_memory(std::size_t bytes) noexcept {
#ifdef PERCORE_FAULTS
  if (before_call(call::mmap, -1, 0).injected) return nullptr;
#endif
  void* p = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return p == MAP_FAILED ? nullptr : p;
}

// For whole pages of map_memory's: a child of fork(2) finds them zeroed (Linux 4.14), and core dumps leave them out.
// -EINVAL: an older kernel.
inline int keep_from_children(void* p, std::size_t bytes) noexcept {
  (void)::madvise(p, bytes, MADV_DONTDUMP);
  return or_errno(::madvise(p, bytes, MADV_WIPEONFORK));
}

inline void unmap_memory(void* p, std::size_t bytes) noexcept { (void)::munmap(p, bytes); }

// Seconds since 1970 by the system's clock, which may be set. Through the vDSO.
inline std::int64_t unix_seconds() noexcept { return static_cast<std::int64_t>(::time(nullptr)); }

// Nanoseconds of CLOCK_MONOTONIC, through the vDSO: no system call on the usual clock sources.
inline std::int64_t monotonic_ns() noexcept {
  timespec now{};
  (void)::clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<std::int64_t>(now.tv_sec) * 1'000'000'000 + now.tv_nsec;
}

}  // namespace percore::sys
