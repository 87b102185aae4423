// What a server and its listeners can be told.
#pragma once

#include <signal.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <percore/address.hpp>
#include <percore/connection_handle.hpp>
#include <percore/placement.hpp>
#include <percore/proxy_protocol.hpp>
#include <percore/socket_options.hpp>
#include <percore/tls.hpp>

namespace percore {

class server;

// What happens when a limit of open connections is reached.
enum class limit_policy {
  pause,   // stop accepting: clients wait in the kernel's accept queue until a connection ends
  refuse,  // accept and reset at once: clients learn it immediately; counted in stats().refused_limit
};

// What a core does with work for its helpers when the queue to them is full.
enum class full_queue {
  wait,    // it waits on the core, in order, and its connection with it: clients feel the backpressure
  refuse,  // errc::queue_full; a connection for a blocking handler is reset
};

// A helper thread that has not come back when its server ended.
struct stuck_helper {
  std::size_t core = 0;
  bool serves_connection = false;  // else it runs something without one, and the rest says nothing
  std::size_t listener = 0;
  address peer;
  std::chrono::nanoseconds running{0};  // since it has begun
};

// The helper threads of each core, for what blocks or burns CPU: connection::offload and blocking handlers. Without
// such work there are none. They are bound to the CPUs of core_placement::helper_cpus and named as their core's thread with
// ".0", ".1", ... behind it.
struct helper_options {
  unsigned floor = 0;           // threads of each core that stay when they are idle
  unsigned most_per_core = 64;  // 1 to 4096. A blocking handler keeps one as long as its connection lives.
  // Over all cores, at least 1. A core that finds them all with others waits until some of those have retired.
  unsigned most = 4096;
  std::size_t queue = 1024;     // jobs that wait for a helper of one core, 1 to 1,048,576
  full_queue at_full = full_queue::wait;
  // Above the floor, a thread that has had nothing to do for so long ends (a quarter of it later at the latest).
  std::chrono::milliseconds idle_lifetime{10'000};
  std::size_t stack_bytes = 1024 * 1024;  // of each thread; plain pages, touched only as needed
  // How long halt(), or the end of a shutdown's grace, waits for helpers that run something; whoever halts again does
  // not make it longer. Those that are not back then are reported to on_stuck and left to themselves: the memory of
  // their core stays until they return, if ever, and what they run must not touch anything that has ended with the
  // server.
  std::chrono::milliseconds patience{1'000};
  // Called on the core's thread; must not throw. Default: a line on standard error.
  std::function<void(const stuck_helper&)> on_stuck;
};

// Something that has kept a core from everything else: a step of a handler (from where it goes on to where it waits
// again), a posted function, or a step of a coroutine that no connection's handler waits for.
struct stall {
  std::size_t core = 0;
  bool in_handler = false;  // else listener, connection and peer say nothing
  std::size_t listener = 0;
  connection_handle connection;
  address peer;
  std::chrono::nanoseconds duration{0};  // so far: it may go on
  std::vector<void*> frames;             // return addresses of the core's thread, the innermost first
  std::vector<std::string> symbols;      // the same as text, with names if the program has them (link with -rdynamic)
  std::uint64_t unreported = 0;          // stalls of this core since its last report
};

// A thread that looks whether the cores get on. It costs them two stores for each step of a handler whether it is on or
// not, and nothing more until one stalls.
struct stall_options {
  // What counts as a stall, 1 ms to 1 h; 0: there is no watch. Unset: 100 ms in debug builds of the library, else 0.
  std::optional<std::chrono::milliseconds> threshold;
  // At most once a second for each core, on the watch's thread, while it still stalls; must not throw nor wait for the
  // server's end. Default: lines on standard error.
  std::function<void(const stall&)> on_stall;
  // Sent to the core's thread for its backtrace. What it blocks in may then end with EINTR (signal(7)), once for each
  // report. An action that the program has for it is called for signals that are not ours.
  int signal = SIGURG;
};

// Taking a core over from a handler that keeps it. A slice of a coroutine handler (a step of it, from where it goes on to
// where it waits again) that has blocked its core's thread for long loses the core: another thread, which stands by, goes
// on with everything else of that core, and the one that was kept stands by in its turn when it comes back. So even the
// first blocking call of a handler that was thought fast delays its neighbours by milliseconds only. What is said of
// handlers at `spilling` holds for all coroutine handlers of a server with this on, but for the helper thread: core_index()
// and all else stay as they are, and percore::offload(f) still goes to a helper. Functions given to post() keep their core.
struct takeover_options {
  bool on = false;
  // 1 ms to 1 h; it may take nearly as long again until it is noticed, most often less.
  std::chrono::milliseconds after{5};
  // Of each core, besides the one that runs it: those that stand by, and those that are kept. 1 to 1024. When all are
  // kept, the core waits. One is started with the core, others as needed: a thread whenever the core is taken over and
  // nobody else stands by. One that the kernel refuses (core_stats::takeover_refused) is tried again each second.
  unsigned most_threads = 16;
};

struct server_options {
  placement_options placement;
  helper_options helpers;
  stall_options stalls;
  takeover_options takeover;

  // Open connections per core, at most 4,194,304; 0: what RLIMIT_NOFILE allows, at most 262,144. The slots for all
  // of them are reserved as address space at start and take memory only once used.
  std::size_t max_connections_per_core = 0;
  // Open connections of the whole server; 0: no limit beyond the cores' own. While set, each accept and each close
  // costs one write to a counter that all cores share.
  std::size_t max_connections = 0;
  limit_policy at_limit = limit_policy::pause;
  // After this many accepted connections, exactly, over all cores, the server shuts down with shutdown_grace; 0:
  // never. While set, each accept costs one write to a counter that all cores share. Clients beyond it are not
  // accepted: the kernel resets them when the listeners close.
  std::uint64_t max_accepted = 0;

  // One connection's slot: its state (448 bytes) and its handler's coroutine frame, nested frames and context.
  // What does not fit goes to the heap and is counted. 512 to 65,536, a multiple of 64.
  std::size_t slot_bytes = 960;
  // Size of the buffers that reads lend, 1024 to 16 MiB, and how many may be lent by one core at a time, 1 to
  // 1,048,576. A read that finds none left waits until one is given back.
  std::size_t read_buffer_bytes = 32 * 1024;
  std::size_t read_buffers_per_core = 2048;
  // Pipes for copying between sockets (relay, connection::copy_to), each of two descriptors: at most so many of one core
  // hold something at a time, 0 to 65,536; without one left bytes are read and written. And the size of each, 4096 to 1 MiB
  // (what the kernel refuses, pipe(7), stays at its 64 KiB).
  std::size_t pipes_per_core = 256;
  std::size_t pipe_bytes = 256 * 1024;
  // Messages that a core's mailbox holds, 1 to 16,777,216, rounded up to a power of two; more are answered with
  // queue_full.
  std::size_t mailbox_messages = 4096;
  // Consecutive operations of one connection that succeed without waiting, before others get their turn; 1 to 1,000,000.
  unsigned operations_per_turn = 64;
  // TLS handshakes cost up to milliseconds each (RSA-4096: about 5 ms of signing). When those of one turn of a core's
  // loop have taken this long, the rest waits for the next turn, behind what became ready meanwhile; from 1 us to 1 s.
  std::chrono::microseconds handshake_budget{2000};
  // Each core's thread has a descriptor table of its own (unshare(2), CLONE_FILES). The kernel then takes no
  // reference to a file for a system call on it (fdget, about 3 % of a keep-alive request), cores no longer contend
  // for the process's one table lock in accept and close, and RLIMIT_NOFILE counts for each core. The price: in
  // handlers only descriptors that were open at start() or that handlers of the same core have opened are valid;
  // one that another thread opens later is not, though its number may be. What was open at start() stays open in
  // the cores until the server ends, also a socket that the program closes: its peer then sees no end. Threads that
  // a handler starts share its core's table, and must neither make a server nor post to one. ThreadSanitizer knows one table only and
  // reports false races with this on.
  bool private_descriptors = false;
  // Stack of each core's thread; plain pages, touched only as needed.
  std::size_t core_stack_bytes = 1024 * 1024;
  // Threads are named "NAME/0", "NAME/1", ...; at most 11 bytes of it are used (pthread_setname_np(3) allows 15).
  std::string thread_name = "percore";

  // serve() lets SIGINT and SIGTERM shut down (a second one halts) and restores the previous actions afterwards.
  bool handle_signals = true;
  // Grace of a shutdown that a signal or max_accepted began; 0: no limit.
  std::chrono::milliseconds shutdown_grace{0};

  // Called at the end of start(), on its thread; when serve() has started the server, it catches signals by then.
  // What it throws leaves start(), after the server has been halted.
  std::function<void(server&)> on_started;
  // Called on the core's thread when an exception leaves a handler (the connection is then closed) or a function
  // given to post(); must not throw. Default: nothing but the count in stats().handler_errors.
  std::function<void(std::exception_ptr)> on_exception;
  // Called on the core's thread when a TLS handshake has failed: the cause, OpenSSL's reason (valid forever; may be
  // empty) and the peer; must not throw. Default: nothing but the counts in stats().
  std::function<void(tls_failure, std::string_view, const address&)> on_tls_failure;
  // Called during start(), on its thread, with one line of text: options that the kernel lacks, a placement that is
  // not all that was asked for, memory that could not be bound to its NUMA node. Default: standard error.
  std::function<void(const std::string&)> on_warning;
};

// Where the slices of a coroutine handler run; a slice is a step of it, from where it goes on to where it waits again.
// On a helper thread of the core (server_options::helpers) a slice keeps nobody else waiting, at the price of two trips
// between threads. A connection has one slice at a time, wherever it runs, so its state needs no lock in either case. What
// changes for a handler whose slices may run on helpers:
// - Another slice may run on another thread: nothing of a thread may be kept across a co_await (thread_local, locks).
// - What handlers share with others, even of the same core, they share with other threads.
// - Other connections, even of the same core, are reached through their handles only. A debug build ends the program with a
//   message when a handler uses one itself; a release build does when that would change it, or wait for it.
// - All functions of the connection work as ever. What needs the core (everything that is awaited except most writes;
//   close, reset, shutdown_write, what try_write has accepted) is done when the slice ends, so error(), fd() and
//   unsent_bytes() do not know of it before. conn.offload(f) and percore::offload(f) call f at once: a helper is there already.
// - now() reads the clock on a helper.
// - A function posted to the connection waits for the end of a slice, as does a timeout that runs out meanwhile. At
//   most 4096 functions wait so for one connection; more are dropped, and reported as exceptions of theirs.
// - When a grace ends, the coroutines of a connection hear of it one after the other. If one of them is away then, those
//   behind it do not: their frames are destroyed where they wait.
// - At most 32 coroutines of one connection may wait at a time, or else the program ends with a message.
// - What a slice has read stays in one of the core's read buffers until the slice has run: a slow listener with many
//   slices in the queue needs server_options::read_buffers_per_core for them and for others.
// - A stuck slice cannot be halted: see helper_options::patience. Afterwards it must not use owner().
enum class spilling {
  never,
  when_slow,  // while the slices of this listener, on this core, take too long: see listen_options::spill_budget
  always,
};

struct listen_options {
  // Options of the listening sockets and of what they accept.
  socket_options socket;

  // Timeouts; 0 is none, resolution 1 ms, longest 49 days (2^32 - 1 ms). What runs out fails with errc::timed_out.
  // They count from the time of the loop turn in which the operation starts (the connection, for the lifetime; the
  // bytes, for the idle time), since a core reads the clock once per turn. So one may run out early, by as long as what
  // ran before it in the same turn took: keep them well above what handlers do without waiting.
  std::chrono::milliseconds read_timeout{0};      // one read operation, from its call until it is done
  std::chrono::milliseconds write_timeout{0};     // unsent bytes of which the socket takes none for so long
  std::chrono::milliseconds idle_timeout{0};      // no byte in either direction while an operation waits
  std::chrono::milliseconds lifetime_timeout{0};  // the whole connection

  // TLS from the first byte: the handler starts when the handshake is done, and reads and writes as it would without.
  std::optional<tls_context> tls;
  // A whole handshake, also that of start_tls; resolution and limit as above, 0 is none.
  std::chrono::milliseconds handshake_timeout{10'000};

  // Connections come from a balancer that says whom it brings, before everything else (before TLS too); then peer_address()
  // is that client's, and connection::proxied() all that was said. Not for blocking handlers.
  std::optional<proxy_protocol_options> proxy_protocol;

  // How much of a write may be kept when the socket does not take it, at most 1 GiB; over it the writer waits.
  // With TLS it is counted in encrypted bytes, and up to 64 KiB more may be kept: what is encrypted has to be sent.
  std::size_t unsent_tail_bytes = 64 * 1024;
  // Writes of so many bytes or more are sent without copying them into the kernel (MSG_ZEROCOPY): 0, the default, never; else
  // 4096 to 1 GiB. Such a write is done only when the peer has acknowledged all of it, because until then the kernel reads
  // `data` again and again (a copied one is done once the socket has taken it): a connection that writes one such piece after
  // the other sends one piece per round trip. When the connection ends in its midst, the write fails once the kernel has
  // given the memory back, which is at once but for what a network card is sending; a halt waits for it too.
  // It costs some 2 us per call besides that wait; copying costs 0.1 s of CPU per GB or more. Measured: 60 kB that leave by a
  // device take half the CPU, 16 kB hardly less, 4 kB more than copied ones. On loopback, and wherever packets are tapped or
  // delivered on the same host, the kernel copies nevertheless and it costs 10 % (1 MB) to 50 % (64 kB) more CPU: a connection on which the
  // kernel tells so 8 times in a row gives it up. So it is for large responses over a real network card: 256 KiB and more.
  // TLS, unix sockets, blocking handlers, try_write, relay and what is in the core's read buffers are always copied. Memory
  // that the kernel may hold is limited by net.core.optmem_max and, for a program without CAP_IPC_LOCK, RLIMIT_MEMLOCK; over it is copied.
  std::size_t zero_copy_from_bytes = 0;
  // After the handler has returned or close() was called: how long what is unsent may make no progress when there
  // is no write_timeout. Then the connection is reset.
  std::chrono::milliseconds close_timeout{30'000};
  spilling spill = spilling::never;
  // For when_slow: what one slice may take, 10 us to 1 s. A core adds up what its slices of this listener take beyond it
  // (of each at most four budgets) and forgets a 64th of the time that passes. From a sum of over four budgets on, which
  // two slices can bring about, slices run on helpers, until all is forgotten: after at most 16 * 64 budgets without a
  // slow slice, half a second with the default. The time that slices take does not count as passed. The clock is read for
  // 16 slices at a time, or for those of a turn of the core's loop; only once they have taken too long together, by the rule
  // above as if they were one, each is timed, until nothing has been slow for long again. So the first few slow slices (4 or 5
  // of one client, some tens where a turn has many), and those after long, do not count. Time in which the kernel let others
  // have the thread's CPU counts as nobody's, as far as the kernel tells of it (proc(5), schedstat).
  std::chrono::microseconds spill_budget{500};

  // Connections accepted per loop turn of one core, at most (1 or more); the rest waits for the next turn.
  unsigned accepts_per_turn = 64;
};

}  // namespace percore
