// No heap allocation between accept and close once a server has warmed up.
//
// Counted is every allocation of the core's threads, those inside libc and libstdc++ included. Without a sanitizer
// this program's own malloc family replaces that of libc for all libraries of the process (the dynamic linker looks
// into the program first) and passes on to the __libc_ functions; a sanitizer owns malloc but offers a hook.
#include <doctest/doctest.h>

#include <errno.h>
#include <stdlib.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <new>
#include <span>
#include <string>
#include <vector>

#include "tests/support/clean_process.hpp"
#include "tests/support/test_server.hpp"
#include "tests/support/tls_client.hpp"
#include "tests/support/tls_server.hpp"

namespace {

thread_local bool counting = false;
std::atomic<long> allocations = 0;
std::atomic<long> large_allocations = 0;  // of them, those that OpenSSL needs for no record

#if defined(__GNUC__) && !defined(__clang__)
__attribute__((no_sanitize_thread))
#endif
void count_allocation(std::size_t bytes) noexcept {
  if (!counting) return;
  allocations.fetch_add(1, std::memory_order_relaxed);
  if (bytes > 32 * 1024) large_allocations.fetch_add(1, std::memory_order_relaxed);
}

}  // namespace

#ifdef PERCORE_TEST_SANITIZED

// Of <sanitizer/allocator_interface.h>, which g++ does not install.
extern "C" int __sanitizer_install_malloc_and_free_hooks(void (*malloc_hook)(const volatile void*, std::size_t),
                                                         void (*free_hook)(const volatile void*));

namespace {
[[maybe_unused]] const int hooked = __sanitizer_install_malloc_and_free_hooks(
    [](const volatile void*, std::size_t bytes) { count_allocation(bytes); }, [](const volatile void*) {});
}  // namespace

#else

extern "C" {

void* __libc_malloc(std::size_t);
void* __libc_calloc(std::size_t, std::size_t);
void* __libc_realloc(void*, std::size_t);
void* __libc_memalign(std::size_t, std::size_t);
void __libc_free(void*);

void* malloc(std::size_t bytes) noexcept {
  count_allocation(bytes);
  return __libc_malloc(bytes);
}
void* calloc(std::size_t count, std::size_t bytes) noexcept {
  count_allocation(count * bytes);
  return __libc_calloc(count, bytes);
}
void* realloc(void* old, std::size_t bytes) noexcept {
  count_allocation(bytes);
  return __libc_realloc(old, bytes);
}
void* memalign(std::size_t alignment, std::size_t bytes) noexcept {
  count_allocation(bytes);
  return __libc_memalign(alignment, bytes);
}
void* aligned_alloc(std::size_t alignment, std::size_t bytes) noexcept {
  count_allocation(bytes);
  return __libc_memalign(alignment, bytes);
}
int posix_memalign(void** result, std::size_t alignment, std::size_t bytes) noexcept {
  count_allocation(bytes);
  *result = __libc_memalign(alignment, bytes);
  return *result == nullptr ? ENOMEM : 0;
}
void free(void* memory) noexcept { __libc_free(memory); }

}  // extern "C"

// So that an allocator that replaces operator new of its own accord (mimalloc's library does) is counted as well.
void* operator new(std::size_t bytes) {
  if (void* memory = malloc(bytes)) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept { free(memory); }
void operator delete(void* memory, std::size_t) noexcept { free(memory); }

#endif

namespace percore::test {
namespace {

using namespace std::chrono_literals;

void count_on_every_core(server& host, bool on) {
  event done;
  for (std::size_t core = 0; core < host.core_count(); ++core)
    REQUIRE(host.post(core, [&, on] {
      counting = on;
      done.set();
    }) == post_result::posted);
  done.wait(host.core_count());
}

// Runs `traffic` to warm the server up and once more with the count on.
template <class F>
long allocations_of(server& host, F traffic) {
  traffic();
  // A connection is over for its client before it is for its core.
  CHECK(eventually([&] { return host.stats().total.active == 0; }));
  count_on_every_core(host, true);
  allocations = 0;
  traffic();
  CHECK(eventually([&] { return host.stats().total.active == 0; }));
  const long counted = allocations;
  count_on_every_core(host, false);
  return counted;
}

void converse(const address& where, std::string_view text, int exchanges, int connections) {
  for (int i = 0; i < connections; ++i) {
    client peer(where);
    for (int k = 0; k < exchanges; ++k) {
      peer.send_all(text);
      CHECK(peer.recv_exactly(text.size()) == text);
    }
    if (i % 3 == 0) peer.reset();
    if (i % 3 == 1) {
      peer.half_close();
      CHECK(peer.recv_to_end().empty());
    }
  }
}

TEST_CASE_FIXTURE(clean_process, "allocation: the count sees what is allocated on a core") {
  test_server server(echo);
  count_on_every_core(*server, true);
  allocations = 0;
  event done;
  std::string* text = nullptr;
  server->post(0, [&] {
    text = new std::string(1000, 'x');
    done.set();
  });
  done.wait();
  CHECK(allocations.load() >= 2);
  delete text;
  allocations = 0;
  server->post(0, [&] {
    ::free(::malloc(100));
    ::free(::calloc(10, 10));
    ::free(::realloc(nullptr, 100));
    done.set();
  });
  done.wait(2);
  CHECK(allocations.load() >= 3);
  count_on_every_core(*server, false);
}

TEST_CASE_FIXTURE(clean_process, "allocation: none for keep-alive and short connections") {
  test_server server(echo, all_cores());
  CHECK(allocations_of(*server, [&] {
          converse(server.where(), "hello", 500, 6);
          converse(server.where(), "hello", 1, 500);
        }) == 0);
  CHECK(server.total().frames_on_heap == 0);
}

TEST_CASE_FIXTURE(clean_process, "allocation: none with timeouts and every kind of operation and a context") {
  struct session {
    std::array<char, 40> name{};
    int messages = 0;
  };
  listen_options listening;
  listening.read_timeout = 30s;
  listening.write_timeout = 30s;
  listening.idle_timeout = 30s;
  listening.lifetime_timeout = 300s;
  server_options options = all_cores();
  options.max_accepted = 1'000'000;
  options.max_connections = 1'000;
  test_server server(
      [](connection& conn) -> task<> {
        session& mine = conn.emplace_context<session>();
        std::array<std::byte, 4> head;
        while (co_await conn.read_full(head)) {
          auto line = co_await conn.read_until("\n", 100);
          if (!line) co_return;
          conn.unread(1);
          auto end = co_await conn.read();
          if (!end) co_return;
          ++mine.messages;
          if (mine.messages % 3 == 0) co_await conn.sleep_for(200us);
          if (mine.messages % 3 == 1) co_await conn.yield();
          conn.set_read_timeout(20s);
          const std::array<bytes_view, 3> pieces = {bytes_view(std::span<const std::byte>(head)),
                                                    bytes_view("tail"), bytes_view("\n")};
          if (!co_await conn.write(std::span<const bytes_view>(pieces))) co_return;
        }
      },
      options, listening);
  CHECK(allocations_of(*server, [&] {
          converse(server.where(), "headtail\n", 100, 6);
          converse(server.where(), "headtail\n", 1, 200);
        }) == 0);
}

TEST_CASE_FIXTURE(clean_process, "allocation: none for nested tasks that fit the slot") {
  struct nested {
    static task<int> length(connection& conn) {
      auto data = co_await conn.read();
      if (data) co_await conn.write(data);
      co_return static_cast<int>(data.size());
    }
  };
  test_server server(
      [](connection& conn) -> task<> {
        while (co_await nested::length(conn) > 0) {
        }
      },
      all_cores());
  CHECK(allocations_of(*server, [&] { converse(server.where(), "hello", 20, 50); }) == 0);
  CHECK(server.total().frames_on_heap == 0);
}

TEST_CASE_FIXTURE(clean_process, "allocation: none for small posts and posted writes to a roomy socket") {
  channel<connection_handle> handles;
  test_server server([&](connection& conn) -> task<> {
    counting = false;  // the channel is the test's
    handles.put(conn.handle());
    co_await conn.yield();
    counting = true;
    co_await conn.read();
  });
  client peer = server.connect();
  const connection_handle handle = handles.take();
  count_on_every_core(*server, true);
  allocations = 0;
  std::atomic<int> ran = 0;
  for (int i = 0; i < 1000; ++i) {
    while (server->post(0, [&ran] { ++ran; }) != post_result::posted) std::this_thread::yield();
    while (handle.post([&ran](connection&) { ++ran; }) != post_result::posted) std::this_thread::yield();
    // A closure that fits its message; the text itself is allocated by the thread that sends it.
    while (handle.write("some text that is not small") != post_result::posted) std::this_thread::yield();
    CHECK(peer.recv_exactly(27) == "some text that is not small");
  }
  CHECK(eventually([&] { return ran == 2000; }));
  CHECK(allocations.load() == 0);
  count_on_every_core(*server, false);
}

// What is kept of it grows by doubling. Growth batch by batch would copy it 256 times, half of it on average.
TEST_CASE_FIXTURE(clean_process, "allocation: few for a large write over TLS that the socket does not take") {
  const std::string text(16 * 1024 * 1024, 'x');
  listen_options listening = small_send_buffer();
  listening.unsent_tail_bytes = 2 * text.size();
  std::atomic<long> counted = -1;
  test_server server(
      [&](connection& conn) -> task<> {
        co_await conn.read();
        large_allocations = 0;
        counting = true;
        const bool written = co_await conn.write(text);
        counting = false;
        counted = written ? large_allocations.load() : -1;
        conn.reset();
      },
      one_core(), over_tls(server_tls(), listening));
  client::options socket;
  socket.receive_buffer_bytes = 4096;
  tls_client peer(server.where(), tls_profile(), {}, socket);
  peer.handshake().send_all("go");
  CHECK(peer.socket().wait_for_end() == ending::reset);
  CHECK(counted >= 1);
  CHECK(counted <= 40);
}

}  // namespace
}  // namespace percore::test
