// The listening sockets of one address: one for each core where the kernel can balance, one for all where it
// cannot.
#pragma once

#include <sys/types.h>

#include <percore/address.hpp>
#include <percore/socket_options.hpp>

#include <atomic>
#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/sys/socket_options.hpp"
#include "engine/sys/steering.hpp"

namespace percore::sys {

// Life: bind() or adopt() -> listen() -> fd() for each core -> release() by each core -> destruction.
//
// Order. All sockets are bound before the first of them listens: while none listens no client gets in, so an
// address that is taken, or a core too many, is found before anybody could be promised service. Then they
// listen in core order, because the kernel numbers the sockets of a group in the order of their listen calls
// and the CBPF program answers with that number. From the first listen on clients connect; those that the
// kernel gives to a socket whose core does not serve yet wait in its accept queue.
//
// Sockets are non-blocking and close-on-exec. All members are for one thread, except release().
class listen_group {
 public:
  // Opens and binds a socket for each core, or one for all (see shared()). `cpus` holds the CPU of each core
  // in core order, -1 for a core that is not pinned; its size is the number of cores, at least 1. `warn` is
  // called for options without full effect, during bind() and listen() only.
  //
  // Port 0: the kernel picks a port for the first socket and the others take it; if another process gets in
  // between, all start again with a new port, at most 8 times.
  //
  // Throws listen_error, or std::invalid_argument for options out of range and an unspecified address. Then
  // no descriptor and no socket file is left.
  static std::unique_ptr<listen_group> bind(const address& where, const socket_options& options,
                                            std::span<const int> cpus, warning_callback warn = {});

  // Takes over a socket that listens already, from a service manager or from another process: a TCP or unix
  // stream socket, made non-blocking (for every process that holds it) and close-on-exec. The group owns and
  // closes it, unless this throws: then it stays the caller's. It is shared by all cores. Options are set on
  // it except v6_only, reuse_port, share_port, steering and unix_permissions, which are decided before a
  // socket listens; a backlog of 0 leaves its own. A socket file stays when it is closed. Throws listen_error
  // or std::invalid_argument.
  static std::unique_ptr<listen_group> adopt(int fd, const socket_options& options, std::size_t cores,
                                             warning_callback warn = {});

  listen_group(const listen_group&) = delete;
  listen_group& operator=(const listen_group&) = delete;
  ~listen_group();  // as if every core had called release()

  // Lets clients connect. Throws listen_error; then the group is closed. Nothing to do for an adopted socket.
  void listen();

  // The socket of a core; the group owns it. Valid until that core's release().
  int fd(std::size_t core) const noexcept { return fds_[shared_ ? 0 : core]; }
  std::size_t cores() const noexcept { return cores_; }

  // One socket for all cores: unix sockets, adopted ones, reuse_port off or not known to the kernel, with
  // more than one core. Each core adds it to its epoll instance with EPOLLEXCLUSIVE, so that a connection
  // does not wake them all (epoll_ctl(2), Linux 4.5), and takes it out again before release().
  bool shared() const noexcept { return shared_; }

  // The core accepts no more: closes its socket. A shared one is closed with the release of the last core;
  // then also the socket file is removed, if it is still the one that was bound. Once for each core, from the
  // core's own thread. Connections that are in the accept queue of a closed socket are reset: accept them
  // first.
  void release(std::size_t core) noexcept;

  // For cores with descriptor tables of their own (unshare(2)), all of them or none. By each core after it
  // has made its table and before listen(): closes in it the copies of the other cores' sockets. Any thread.
  void close_others_here(std::size_t core) noexcept;
  // Then, after listen(), by the thread that has bound: closes the copies in the process's table, so that
  // release() really ends the listening. Neither changes what fd() answers.
  void close_here() noexcept;

  // What clients connect to: with the real port, or the abstract name, that the kernel picked.
  const address& bound_address() const noexcept { return bound_; }

  // How connections find their core, and why so.
  const steering_decision& steered_by() const noexcept { return steering_; }

  // See socket_options.hpp.
  bool needs_per_connection_setup() const noexcept {
    return sys::needs_per_connection_setup(bound_.family(), options_);
  }
  int apply_to_connection(int fd) const noexcept {
    return sys::apply_to_connection(fd, bound_.family(), options_);
  }

 private:
  struct file_identity {
    dev_t device;
    ino_t inode;
  };

  listen_group(const address& where, const socket_options& options, std::size_t cores, warning_callback warn);

  [[noreturn]] void fail(const char* step, int error, std::string_view remedy = {}) const;
  bool another_port_may_do(const listen_error& error, unsigned attempt) const noexcept;
  void bind_all();
  void bind_all_once();
  void bind_one(bool is_first);
  void bind_socket_file(int fd);
  void remove_if_stale();
  bool allow_sharing(int fd);
  void listen_all_once();
  void require_steering(int result);
  void check_backlog(int fd);
  void close_all() noexcept;
  void remove_socket_file() noexcept;

  address requested_;
  address bound_;
  socket_options options_;
  option_report report_;
  std::size_t cores_;
  std::vector<int> cpus_;
  std::vector<int> fds_;  // -1 once closed; an element is written by its own core only
  bool shared_ = false;
  bool adopted_ = false;
  steering_decision steering_;
  std::optional<file_identity> socket_file_;
  std::atomic<std::size_t> holders_{0};      // cores that have not released yet
  std::atomic<bool> private_tables_{false};  // every core has copies of the sockets in a table of its own
  bool closed_here_ = false;
};

}  // namespace percore::sys
