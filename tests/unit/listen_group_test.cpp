#include "engine/sys/listen_group.hpp"

#include <dirent.h>
#include <doctest/doctest.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <barrier>
#include <cerrno>
#include <cstdlib>
#include <fstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/support/waiting.hpp"

#ifdef PERCORE_FAULTS
#include "engine/sys/faults.hpp"
#endif

using percore::address;
using percore::listen_error;
using percore::socket_option;
using percore::socket_options;
using percore::sys::listen_group;

namespace {

constexpr int unpinned[] = {-1, -1, -1, -1};

std::size_t open_descriptors() {
  DIR* const listing = ::opendir("/proc/self/fd");
  REQUIRE(listing != nullptr);
  std::size_t count = 0;
  while (::readdir(listing) != nullptr) ++count;
  ::closedir(listing);
  return count;
}

// Checks that a test closes what it opens.
struct no_leak {
  ~no_leak() { CHECK(open_descriptors() == before); }
  const std::size_t before = open_descriptors();
};

class temporary_directory {
 public:
  temporary_directory() { REQUIRE(::mkdtemp(path_) != nullptr); }
  temporary_directory(const temporary_directory&) = delete;
  temporary_directory& operator=(const temporary_directory&) = delete;
  ~temporary_directory() { CHECK_MESSAGE(::rmdir(path_) == 0, "something is left in the directory"); }
  std::string file(const char* name) const { return std::string(path_) + "/" + name; }

 private:
  char path_[32] = "/tmp/percore-test-XXXXXX";
};

bool exists(const std::string& path) {
  struct stat unused {};
  return ::lstat(path.c_str(), &unused) == 0;
}

int number(int fd, int level, int name) {
  int value = -1;
  socklen_t length = sizeof value;
  REQUIRE(::getsockopt(fd, level, name, &value, &length) == 0);
  return value;
}

class owned_fd {
 public:
  explicit owned_fd(int fd) : fd_(fd) {}
  owned_fd(owned_fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  owned_fd& operator=(owned_fd&&) = delete;
  ~owned_fd() {
    if (fd_ >= 0) ::close(fd_);
  }
  operator int() const { return fd_; }

 private:
  int fd_;
};

int try_connect(const address& where, int& error) {
  sockaddr_storage raw{};
  const socklen_t length = where.to_sockaddr(raw);
  const int fd = ::socket(raw.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  REQUIRE(fd >= 0);
  error = ::connect(fd, reinterpret_cast<sockaddr*>(&raw), length) == 0 ? 0 : errno;
  return fd;
}

owned_fd connect_to(const address& where) {
  int error = 0;
  owned_fd fd(try_connect(where, error));
  REQUIRE(error == 0);
  return fd;
}

int connect_error(const address& where) {
  int error = 0;
  const owned_fd fd(try_connect(where, error));
  return error;
}

// Accepts what waits at each core's socket and returns how many that were.
std::vector<int> accept_all(const listen_group& group) {
  std::vector<int> counts;
  for (std::size_t core = 0; core < group.cores(); ++core) {
    counts.push_back(0);
    for (;;) {
      const owned_fd accepted(::accept4(group.fd(core), nullptr, nullptr, SOCK_CLOEXEC));
      if (accepted < 0) break;
      ++counts.back();
    }
    CHECK(errno == EAGAIN);
  }
  return counts;
}

int total(const std::vector<int>& counts) {
  int sum = 0;
  for (const int count : counts) sum += count;
  return sum;
}

owned_fd plain_listener(bool reuse_port, address& where) {
  owned_fd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const int on = 1;
  if (reuse_port) REQUIRE(::setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on) == 0);
  sockaddr_storage raw{};
  socklen_t length = where.to_sockaddr(raw);
  REQUIRE(::bind(fd, reinterpret_cast<sockaddr*>(&raw), length) == 0);
  REQUIRE(::listen(fd, 8) == 0);
  REQUIRE(::getsockname(fd, reinterpret_cast<sockaddr*>(&raw), &length) == 0);
  where = address::from_sockaddr(reinterpret_cast<sockaddr*>(&raw), length);
  return fd;
}

template <class F>
std::string listen_failure(F&& f, int expected_errno) {
  try {
    f();
  } catch (const listen_error& error) {
    CHECK(error.code().value() == expected_errno);
    return error.what();
  }
  FAIL_CHECK("no listen_error");
  return {};
}

// Containers often have none.
bool has_ipv6() {
  const owned_fd fd(::socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in6 loopback{};
  loopback.sin6_family = AF_INET6;
  loopback.sin6_addr = IN6ADDR_LOOPBACK_INIT;
  return fd >= 0 && ::bind(fd, reinterpret_cast<sockaddr*>(&loopback), sizeof loopback) == 0;
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("listen_group: one TCP socket for each core on a port from the kernel") {
  const no_leak check;
  for (const char* where : {"127.0.0.1:0", "[::1]:0", ":0"}) {
    CAPTURE(where);
    if (address(where).family() == percore::address_family::ipv6 && !has_ipv6()) continue;
    const auto group = listen_group::bind(where, {}, unpinned);
    CHECK(group->cores() == 4);
    CHECK_FALSE(group->shared());
    const address bound = group->bound_address();
    CHECK(bound.port() != 0);
    CHECK(bound.with_port(0) == address(where));
    if (!bound.is_wildcard()) CHECK(connect_error(bound) == ECONNREFUSED);  // bound, and not listening yet
    group->listen();
    for (std::size_t core = 0; core < 4; ++core) {
      const int fd = group->fd(core);
      CHECK(number(fd, SOL_SOCKET, SO_ACCEPTCONN) == 1);
      CHECK(number(fd, SOL_SOCKET, SO_REUSEPORT) == 1);
      CHECK((::fcntl(fd, F_GETFL) & O_NONBLOCK) != 0);
      CHECK((::fcntl(fd, F_GETFD) & FD_CLOEXEC) != 0);
      CHECK(number(fd, IPPROTO_TCP, TCP_NODELAY) == 1);
    }
    CHECK(group->fd(0) != group->fd(1));
    const address target = bound.is_wildcard() ? address("127.0.0.1:0").with_port(bound.port()) : bound;
    std::vector<owned_fd> clients;
    for (int i = 0; i < 64; ++i) clients.push_back(connect_to(target));
    const std::vector<int> counts = accept_all(*group);
    CHECK(total(counts) == 64);
    // A hash that leaves one of four sockets without any of 64 connections: 1 in 25 million.
    for (const int count : counts) CHECK(count > 0);
  }
}

TEST_CASE("listen_group: one core needs no group") {
  const no_leak check;
  const auto group = listen_group::bind("127.0.0.1:0", {}, std::vector<int>{0});
  group->listen();
  CHECK_FALSE(group->shared());
  CHECK(number(group->fd(0), SOL_SOCKET, SO_REUSEPORT) == 0);
  CHECK(group->steered_by().reason == "there is only one core");
  const owned_fd client = connect_to(group->bound_address());
  CHECK(total(accept_all(*group)) == 1);
}

TEST_CASE("listen_group: v6_only decides who reaches [::]") {
  const no_leak check;
  if (!has_ipv6()) return;
  socket_options options;
  for (const bool only : {true, false}) {
    CAPTURE(only);
    options.v6_only = only;
    const auto group = listen_group::bind("[::]:0", options, unpinned);
    group->listen();
    CHECK(number(group->fd(3), IPPROTO_IPV6, IPV6_V6ONLY) == (only ? 1 : 0));
    const std::uint16_t port = group->bound_address().port();
    CHECK(connect_error(address("[::1]:0").with_port(port)) == 0);
    CHECK(connect_error(address("127.0.0.1:0").with_port(port)) == (only ? ECONNREFUSED : 0));
  }
}

TEST_CASE("listen_group: release closes a core's own socket and no other") {
  const no_leak check;
  const auto group = listen_group::bind("127.0.0.1:0", {}, unpinned);
  group->listen();
  const int kept = group->fd(1);
  group->release(0);
  group->release(2);
  group->release(3);
  CHECK(number(kept, SOL_SOCKET, SO_ACCEPTCONN) == 1);
  CHECK(connect_error(group->bound_address()) == 0);
  group->release(1);
  CHECK(connect_error(group->bound_address()) == ECONNREFUSED);
}

TEST_CASE("listen_group: reuse_port off gives one socket that all cores share") {
  const no_leak check;
  socket_options options;
  options.reuse_port = false;
  options.steering = percore::steering::incoming_cpu;
  std::vector<std::string> warnings;
  const auto group = listen_group::bind("127.0.0.1:0", options, unpinned,
                                        [&](const std::string& text) { warnings.push_back(text); });
  group->listen();
  CHECK(group->shared());
  CHECK(group->fd(0) == group->fd(3));
  REQUIRE(warnings.size() == 1);
  CHECK(contains(warnings[0], "steering"));
  for (const std::size_t core : {2U, 0U, 3U}) group->release(core);
  CHECK(connect_error(group->bound_address()) == 0);
  group->release(1);
  CHECK(connect_error(group->bound_address()) == ECONNREFUSED);
}

TEST_CASE("listen_group: an address in use is refused, whoever uses it") {
  const no_leak check;
  const auto try_to_listen = [](const address& where) {
    const auto group = listen_group::bind(where, {}, unpinned);
    group->listen();
  };
  SUBCASE("a socket without SO_REUSEPORT") {
    address where("127.0.0.1:0");
    const owned_fd other = plain_listener(false, where);
    const std::string text = listen_failure([&] { try_to_listen(where); }, EADDRINUSE);
    CAPTURE(text);
    CHECK(contains(text, where.to_string()));
    CHECK(contains(text, "bind"));
    CHECK(contains(text, "ss -ltnp"));
  }
  SUBCASE("a group that the kernel would let us join") {
    address where("127.0.0.1:0");
    const owned_fd other = plain_listener(true, where);
    const std::string text = listen_failure([&] { try_to_listen(where); }, EADDRINUSE);
    CHECK(contains(text, "share_port"));
    socket_options options;
    options.share_port = true;
    const auto group = listen_group::bind(where, options, unpinned);
    group->listen();
    CHECK(group->bound_address() == where);
  }
  SUBCASE("another listen_group") {
    const auto group = listen_group::bind("127.0.0.1:0", {}, unpinned);
    group->listen();
    listen_failure([&] { try_to_listen(group->bound_address()); }, EADDRINUSE);
  }
  SUBCASE("another listen_group that is not listening yet loses or wins at listen") {
    const auto group = listen_group::bind("127.0.0.1:0", {}, std::vector<int>{-1});
    const auto other = listen_group::bind(group->bound_address(), {}, std::vector<int>{-1});
    group->listen();
    listen_failure([&] { other->listen(); }, EADDRINUSE);
    CHECK(connect_error(group->bound_address()) == 0);
  }
}

TEST_CASE("listen_group: a restart is not kept waiting by connections in TIME_WAIT") {
  const no_leak check;
  address where("127.0.0.1:0");
  for (int round = 0; round < 3; ++round) {
    const auto group = listen_group::bind(where, {}, unpinned);
    group->listen();
    where = group->bound_address();
    const owned_fd client = connect_to(where);
    for (std::size_t core = 0; core < 4; ++core) {
      const owned_fd accepted(::accept4(group->fd(core), nullptr, nullptr, SOCK_CLOEXEC));  // closes first
    }
  }
}

TEST_CASE("listen_group: errors name address, step, reason and remedy") {
  const no_leak check;
  const std::string unknown =
      listen_failure([] { listen_group::bind("192.0.2.1:0", {}, unpinned); }, EADDRNOTAVAIL);
  CAPTURE(unknown);
  CHECK(contains(unknown, "percore: cannot listen on 192.0.2.1:0: bind failed"));
  CHECK(contains(unknown, "no network interface"));
  CHECK(contains(unknown, "Cannot assign requested address"));
  if (has_ipv6()) {
    const std::string zoneless =
        listen_failure([] { listen_group::bind("[fe80::1]:0", {}, unpinned); }, EINVAL);
    CHECK(contains(zoneless, "zone"));
  }
  const std::string no_directory =
      listen_failure([] { listen_group::bind("unix:/no/such/directory/x", {}, unpinned); }, ENOENT);
  CHECK(contains(no_directory, "unix:/no/such/directory/x"));
  CHECK(contains(no_directory, "directory"));
  CHECK_THROWS_AS(listen_group::bind(address(), {}, unpinned), std::invalid_argument);
  CHECK_THROWS_AS(listen_group::bind("127.0.0.1:0", {}, {}), std::invalid_argument);
  socket_options wrong;
  wrong.backlog = -1;
  CHECK_THROWS_AS(listen_group::bind("127.0.0.1:0", wrong, unpinned), std::invalid_argument);
}

TEST_CASE("listen_group: the backlog is the one asked for, as far as somaxconn goes") {
  const no_leak check;
  std::ifstream file("/proc/sys/net/core/somaxconn");
  unsigned somaxconn = 0;
  file >> somaxconn;
  file.close();
  const auto backlog_of = [](int fd) {
    tcp_info info{};
    socklen_t length = sizeof info;
    REQUIRE(::getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length) == 0);
    return info.tcpi_sacked;
  };
  std::vector<std::string> warnings;
  const auto warn = [&](const std::string& text) { warnings.push_back(text); };
  socket_options options;
  for (const int asked : {0, 17, 2'000'000'000}) {
    CAPTURE(asked);
    options.backlog = asked;
    warnings.clear();
    const auto group = listen_group::bind("127.0.0.1:0", options, unpinned, warn);
    group->listen();
    CHECK(backlog_of(group->fd(3)) == (asked == 17 ? 17 : somaxconn));
    CHECK(warnings.size() == (asked > 17 ? 1 : 0));
  }
  for (const char* where : {"127.0.0.1:0", "unix:@"}) {
    CAPTURE(where);
    options.required = {};
    warnings.clear();
    listen_group::bind(where, options, unpinned, warn)->listen();
    CHECK(warnings.size() == 1);
    options.required = {socket_option::backlog};
    const auto group = listen_group::bind(where, options, unpinned, warn);
    const std::string text = listen_failure([&] { group->listen(); }, EOPNOTSUPP);
    CHECK(contains(text, "backlog"));
    CHECK(contains(text, "net.core.somaxconn"));
  }
}

TEST_CASE("listen_group: a required option that the kernel does not give leaves nothing behind") {
  const no_leak check;
  socket_options options;
  options.receive_buffer_bytes = 1'000'000'000;
  options.required = {socket_option::receive_buffer_bytes};
  std::ifstream file("/proc/sys/net/core/rmem_max");
  long limit = 0;
  file >> limit;
  file.close();
  if (limit >= options.receive_buffer_bytes) return;
  const std::string text =
      listen_failure([&] { listen_group::bind("127.0.0.1:0", options, unpinned); }, EOPNOTSUPP);
  CHECK(contains(text, "receive_buffer_bytes"));
  int warnings = 0;
  options.required = {};
  listen_group::bind("127.0.0.1:0", options, unpinned, [&](const std::string&) { ++warnings; });
  CHECK(warnings == 1);  // one for all four sockets
}

TEST_CASE("listen_group: explicit steering brings a connection to the core of its CPU") {
  const no_leak check;
  cpu_set_t allowed;
  REQUIRE(::sched_getaffinity(0, sizeof allowed, &allowed) == 0);
  std::vector<int> cpus;
  for (int cpu = CPU_SETSIZE - 1; cpu >= 0; --cpu) {
    if (CPU_ISSET(static_cast<unsigned>(cpu), &allowed))
      cpus.push_back(cpu);  // descending: not the kernel's order
  }
  if (cpus.size() < 2) return;
  for (const auto method : {percore::steering::incoming_cpu, percore::steering::cbpf}) {
    CAPTURE(to_string(method));
    socket_options options;
    options.steering = method;
    const auto group = listen_group::bind("127.0.0.1:0", options, cpus);
    if (group->steered_by().method != method) continue;  // this kernel does not
    group->listen();
    for (std::size_t core = 0; core < cpus.size(); ++core) {
      std::thread([&] {
        cpu_set_t one;
        CPU_ZERO(&one);
        CPU_SET(static_cast<unsigned>(cpus[core]), &one);
        REQUIRE(::sched_setaffinity(0, sizeof one, &one) == 0);
        for (int i = 0; i < 8; ++i) connect_to(group->bound_address());
      }).join();
      const std::vector<int> counts = accept_all(*group);
      CHECK(counts[core] == 8);
      CHECK(total(counts) == 8);
    }
  }
}

TEST_CASE("listen_group: steering that cannot be had warns, or fails if required") {
  const no_leak check;
  socket_options options;
  options.steering = percore::steering::cbpf;
  std::vector<std::string> warnings;
  const auto group = listen_group::bind("127.0.0.1:0", options, unpinned,
                                        [&](const std::string& text) { warnings.push_back(text); });
  CHECK(group->steered_by().method == percore::steering::hash);
  REQUIRE(warnings.size() == 1);
  CHECK(contains(warnings[0], "steering"));
  CHECK(contains(warnings[0], "pinned"));
  options.required = {socket_option::steering};
  const std::string text =
      listen_failure([&] { listen_group::bind("127.0.0.1:0", options, unpinned); }, EOPNOTSUPP);
  CHECK(contains(text, "steering"));
}

TEST_CASE("listen_group: a unix socket is shared and its file is removed with it") {
  const no_leak check;
  const temporary_directory directory;
  const std::string path = directory.file("s");
  socket_options options;
  options.unix_permissions = 0620;
  const auto group = listen_group::bind("unix:" + path, options, unpinned);
  CHECK(connect_error(group->bound_address()) == ECONNREFUSED);
  group->listen();
  CHECK(group->shared());
  CHECK(group->fd(0) == group->fd(3));
  CHECK(group->bound_address() == address("unix:" + path));
  struct stat file {};
  REQUIRE(::lstat(path.c_str(), &file) == 0);
  CHECK((file.st_mode & 0777U) == 0620U);
  const owned_fd client = connect_to(group->bound_address());
  CHECK(total(accept_all(*group)) == 1);
  for (const std::size_t core : {0U, 1U, 2U}) group->release(core);
  CHECK(exists(path));
  group->release(3);
  CHECK_FALSE(exists(path));
}

TEST_CASE("listen_group: abstract names, also from the kernel") {
  const no_leak check;
  const std::string name = "unix:@percore-test-" + std::to_string(::getpid());
  for (const std::string& where : {name, std::string("unix:@")}) {
    CAPTURE(where);
    const auto group = listen_group::bind(where, {}, unpinned);
    group->listen();
    CHECK(group->bound_address().is_abstract());
    CHECK_FALSE(group->bound_address().path().empty());
    const owned_fd client = connect_to(group->bound_address());
    CHECK(total(accept_all(*group)) == 1);
    const std::string text =
        listen_failure([&] { listen_group::bind(group->bound_address(), {}, unpinned); }, EADDRINUSE);
    CHECK(contains(text, group->bound_address().to_string()));
  }
}

TEST_CASE("listen_group: an abstract name has no permissions and says so") {
  const no_leak check;
  std::vector<std::string> warnings;
  socket_options options;
  options.unix_permissions = 0600;
  (void)listen_group::bind("unix:@", options, unpinned, [&](const std::string& text) { warnings.push_back(text); });
  REQUIRE(warnings.size() == 1);
  CHECK(contains(warnings[0], "unix_permissions"));
  options.required = {socket_option::unix_permissions};
  const std::string text = listen_failure([&] { listen_group::bind("unix:@", options, unpinned); }, EOPNOTSUPP);
  CHECK(contains(text, "unix_permissions"));
}

TEST_CASE("listen_group: stale socket files are replaced, live ones and other files are not") {
  const no_leak check;
  const temporary_directory directory;
  const std::string path = directory.file("s");
  const address where("unix:" + path);
  SUBCASE("stale") {
    {
      sockaddr_storage raw{};
      const socklen_t length = where.to_sockaddr(raw);
      const owned_fd dead(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
      REQUIRE(::bind(dead, reinterpret_cast<sockaddr*>(&raw), length) == 0);
    }
    REQUIRE(exists(path));
    socket_options options;
    options.unlink_stale = false;
    listen_failure([&] { listen_group::bind(where, options, unpinned); }, EADDRINUSE);
    REQUIRE(exists(path));
    const auto group = listen_group::bind(where, {}, unpinned);
    group->listen();
    CHECK(connect_error(where) == 0);
  }
  SUBCASE("live") {
    const auto group = listen_group::bind(where, {}, unpinned);
    group->listen();
    const std::string text = listen_failure([&] { listen_group::bind(where, {}, unpinned); }, EADDRINUSE);
    CHECK(contains(text, "another process listens"));
    CHECK(connect_error(where) == 0);
  }
  SUBCASE("a file that is no socket") {
    std::ofstream(path) << "content";
    const std::string text = listen_failure([&] { listen_group::bind(where, {}, unpinned); }, EADDRINUSE);
    CHECK(contains(text, "no socket"));
    CHECK(exists(path));
    ::unlink(path.c_str());
  }
  SUBCASE("a file that took the place of ours stays") {
    const auto group = listen_group::bind(where, {}, unpinned);
    group->listen();
    ::unlink(path.c_str());
    std::ofstream(path) << "another's";
    for (std::size_t core = 0; core < 4; ++core) group->release(core);
    CHECK(exists(path));
    ::unlink(path.c_str());
  }
  CHECK_FALSE(exists(path));
}

TEST_CASE("listen_group: adopts a listening socket") {
  const no_leak check;
  address where("127.0.0.1:0");
  {
    const int fd = ::dup(plain_listener(false, where));
    socket_options options;
    options.backlog = 33;
    options.keepalive.on = true;
    const auto group = listen_group::adopt(fd, options, 3);
    group->listen();
    CHECK(group->shared());
    CHECK(group->cores() == 3);
    CHECK(group->fd(2) == fd);
    CHECK(group->bound_address() == where);
    CHECK((::fcntl(fd, F_GETFL) & O_NONBLOCK) != 0);
    CHECK((::fcntl(fd, F_GETFD) & FD_CLOEXEC) != 0);
    CHECK(number(fd, SOL_SOCKET, SO_KEEPALIVE) == 1);
    const owned_fd client = connect_to(where);
    CHECK(total(accept_all(*group)) == 1);
  }
  CHECK(connect_error(where) == ECONNREFUSED);
}

TEST_CASE("listen_group: the file of an adopted unix socket stays") {
  const no_leak check;
  const temporary_directory directory;
  const std::string path = directory.file("s");
  sockaddr_storage raw{};
  const socklen_t length = address("unix:" + path).to_sockaddr(raw);
  const int fd = ::socket(AF_UNIX, SOCK_STREAM, 0);
  REQUIRE(::bind(fd, reinterpret_cast<sockaddr*>(&raw), length) == 0);
  REQUIRE(::listen(fd, 4) == 0);
  {
    const auto group = listen_group::adopt(fd, {}, 1);
    CHECK_FALSE(group->shared());
    CHECK(group->bound_address() == address("unix:" + path));
    group->release(0);
  }
  CHECK(exists(path));
  ::unlink(path.c_str());
}

TEST_CASE("listen_group: what cannot be adopted stays the caller's") {
  const no_leak check;
  const auto refused = [](int fd, int error, const char* part) {
    const std::string text = listen_failure([fd] { listen_group::adopt(fd, {}, 2); }, error);
    CAPTURE(text);
    CHECK(contains(text, part));
  };
  const owned_fd not_listening(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const owned_fd datagram(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  const owned_fd foreign(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, 0));
  const owned_fd file(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  refused(not_listening, EINVAL, "does not listen");
  refused(datagram, EPROTOTYPE, "not a stream socket");
  refused(foreign, EAFNOSUPPORT, "neither a TCP nor a unix socket");
  refused(file, ENOTSOCK, "not an open socket");
  refused(-1, EBADF, "not an open socket");
  for (const int fd : {int(not_listening), int(datagram), int(foreign), int(file)})
    CHECK(::fcntl(fd, F_GETFD) >= 0);
}

TEST_CASE("listen_group: cores with descriptor tables of their own" * doctest::skip(percore::test::under_tsan)) {
  const no_leak check;
  const int two[] = {-1, -1};
  for (const char* where : {"127.0.0.1:0", "unix:@"}) {
    CAPTURE(where);
    const auto group = listen_group::bind(where, {}, two);
    const bool shared = group->shared();
    std::barrier step(3);
    std::atomic<int> accepted{0};
    std::atomic<int> failures{0};
    const auto run_core = [&](std::size_t core) {
      if (::unshare(CLONE_FILES) != 0) ++failures;
      group->close_others_here(core);
      const int other = group->fd(1 - core);
      if (!shared && ::fcntl(other, F_GETFD) >= 0) ++failures;
      step.arrive_and_wait();  // tables are made
      step.arrive_and_wait();  // the group listens, the clients are in
      for (;;) {
        const owned_fd connection(::accept4(group->fd(core), nullptr, nullptr, SOCK_CLOEXEC));
        if (connection < 0) break;
        ++accepted;
      }
      const int own = group->fd(core);
      step.arrive_and_wait();
      group->release(core);
      if (::fcntl(own, F_GETFD) >= 0) ++failures;
      step.arrive_and_wait();  // released, while the threads still live
      step.arrive_and_wait();
    };
    std::thread first(run_core, 0);
    std::thread second(run_core, 1);
    step.arrive_and_wait();
    group->listen();
    const int number_here = group->fd(0);
    group->close_here();
    const bool closed_here = ::fcntl(number_here, F_GETFD) < 0;
    std::vector<owned_fd> clients;
    for (int i = 0; i < 16; ++i) clients.push_back(connect_to(group->bound_address()));
    step.arrive_and_wait();
    step.arrive_and_wait();
    step.arrive_and_wait();
    const int after_release = connect_error(group->bound_address());
    step.arrive_and_wait();
    first.join();
    second.join();
    CHECK(closed_here);
    CHECK(accepted == 16);
    CHECK(failures == 0);
    CHECK(after_release == ECONNREFUSED);
  }
}

TEST_CASE("listen_group: after close_here the numbers are no longer the group's") {
  const no_leak check;
  auto group = listen_group::bind("127.0.0.1:0", {}, unpinned);
  group->listen();
  const int number_here = group->fd(0);
  group->close_here();
  const owned_fd null(::open("/dev/null", O_RDONLY | O_CLOEXEC));  // takes the lowest free number
  const owned_fd foreign(null == number_here ? -1 : ::fcntl(null, F_DUPFD_CLOEXEC, number_here));
  REQUIRE((null == number_here || foreign == number_here));
  group.reset();
  CHECK(::fcntl(number_here, F_GETFD) >= 0);
}

#ifdef PERCORE_FAULTS

namespace {

using percore::sys::call;

// The calls of one kind after the first `after` fail, `times` of them.
void fail_calls(call which, std::uint32_t after, std::uint32_t times, int error) {
  percore::sys::fault_plan plan;
  const auto kind = static_cast<std::size_t>(which);
  plan.fail_after[kind] = after;
  plan.fail_next[kind] = times;
  plan.fail_errno[kind] = error;
  percore::sys::reset_call_counters();
  percore::sys::set_fault_plan(&plan);
}

}  // namespace

TEST_CASE("listen_group: whichever call fails, nothing is left behind") {
  const no_leak check;
  const temporary_directory directory;
  const std::string path = directory.file("s");
  socket_options options;
  options.unix_permissions = 0600;
  options.required = {socket_option::reuse_port, socket_option::no_delay, socket_option::unix_permissions};
  for (const std::string& where : {std::string("127.0.0.1:0"), std::string("[::1]:0"), "unix:" + path}) {
    if (where.starts_with('[') && !has_ipv6()) continue;
    for (const call which : {call::socket, call::bind, call::listen, call::getsockname, call::lstat,
                             call::chmod, call::setsockopt}) {
      int failures = 0;
      for (std::uint32_t after = 0; after < 64; ++after) {
        CAPTURE(where);
        CAPTURE(percore::sys::call_name(which));
        CAPTURE(after);
        fail_calls(which, after, 1, EPERM);
        const std::size_t before = open_descriptors();
        bool failed = false;
        try {
          const auto group = listen_group::bind(where, options, unpinned);
          group->listen();
          percore::sys::set_fault_plan(nullptr);
          CHECK(connect_error(group->bound_address()) == 0);
        } catch (const listen_error& error) {
          failed = true;
          CHECK(error.code().value() == EPERM);
          CHECK(contains(error.what(), where));
        }
        percore::sys::set_fault_plan(nullptr);
        CHECK(open_descriptors() == before);
        CHECK_FALSE(exists(path));
        if (failed) ++failures;
        if (percore::sys::faults_injected(which) == 0) break;  // there was no such call any more
      }
      const bool is_unix = where.starts_with("unix:");
      if (which == call::bind) CHECK(failures == (is_unix ? 1 : 4));
      if (which == call::socket) CHECK(failures == (is_unix ? 1 : 4));
      if (which == call::chmod) CHECK(failures == (is_unix ? 1 : 0));
    }
  }
}

TEST_CASE("listen_group: port 0 is tried again with another port, at most 8 times") {
  const no_leak check;
  for (const call which : {call::bind, call::listen}) {
    CAPTURE(percore::sys::call_name(which));
    fail_calls(which, 2, 1, EADDRINUSE);
    const auto group = listen_group::bind("127.0.0.1:0", {}, unpinned);
    group->listen();
    percore::sys::set_fault_plan(nullptr);
    CHECK(percore::sys::faults_injected(which) == 1);
    CHECK(number(group->fd(3), SOL_SOCKET, SO_ACCEPTCONN) == 1);
    CHECK(connect_error(group->bound_address()) == 0);

    fail_calls(which, 0, 1000, EADDRINUSE);
    listen_failure([] { listen_group::bind("127.0.0.1:0", {}, unpinned)->listen(); }, EADDRINUSE);
    percore::sys::set_fault_plan(nullptr);
    CHECK(percore::sys::faults_injected(which) == 8);

    // A port that was asked for is not changed.
    const address fixed = group->bound_address();
    for (std::size_t core = 0; core < group->cores(); ++core) group->release(core);
    fail_calls(which, 0, 1, EADDRINUSE);
    listen_failure([&] { listen_group::bind(fixed, {}, unpinned)->listen(); }, EADDRINUSE);
    percore::sys::set_fault_plan(nullptr);
    CHECK(percore::sys::faults_injected(which) == 1);
  }
}

TEST_CASE("listen_group: a kernel without SO_REUSEPORT gets one shared socket and one warning") {
  const no_leak check;
  // For IPv4 the calls are SO_REUSEADDR, TCP_NODELAY, then SO_REUSEPORT.
  fail_calls(call::setsockopt, 2, 1, ENOPROTOOPT);
  std::vector<std::string> warnings;
  const auto group = listen_group::bind("127.0.0.1:0", {}, unpinned,
                                        [&](const std::string& text) { warnings.push_back(text); });
  percore::sys::set_fault_plan(nullptr);
  group->listen();
  CHECK(group->shared());
  REQUIRE(warnings.size() == 1);
  CHECK(contains(warnings[0], "reuse_port"));
  CHECK(connect_error(group->bound_address()) == 0);
}

TEST_CASE("listen_group: a privileged port names the capability") {
  fail_calls(call::bind, 0, 1, EACCES);
  const std::string text = listen_failure([] { listen_group::bind("127.0.0.1:80", {}, unpinned); }, EACCES);
  percore::sys::set_fault_plan(nullptr);
  CHECK(contains(text, "CAP_NET_BIND_SERVICE"));
}

#endif  // PERCORE_FAULTS
