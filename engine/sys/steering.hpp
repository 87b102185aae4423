// Which core gets a new connection: the choice among the kernel's ways, and how each is switched on.
//
// In a SO_REUSEPORT group the kernel picks a socket by a hash of addresses and ports. It can pick by the CPU
// that handles the SYN instead, which keeps a connection's interrupt work and its handler on one CPU. That is
// worth having only if the network spreads its interrupts over the CPUs of all cores: a machine with one
// receive queue would send every connection to one core and starve the others. Hence the rules of
// decide_steering.
#pragma once

#include <linux/filter.h>

#include <percore/address.hpp>
#include <percore/socket_options.hpp>

#include <cstddef>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace percore::sys {

// Where one network interface hands its packets to the stack.
struct interface_spread {
  std::string name;
  std::size_t queues = 0;  // receive queues
  // The CPUs, ascending, that RPS or the interrupts of the queues deliver to; nothing if that cannot be read.
  std::optional<std::vector<int>> cpus;
};

// Reads all interfaces that have a device behind them (not lo, veth, bridges) and are not down, by name.
// `sysfs` is /sys and `procfs` is /proc outside of tests. What cannot be read is left out.
std::vector<interface_spread> read_interface_spread(const std::filesystem::path& sysfs,
                                                    const std::filesystem::path& procfs);

// What the check on a loopback pair found.
enum class steering_check { not_made, obeyed, ignored };

struct steering_facts {
  steering wanted = steering::automatic;
  address where;
  std::span<const int> cpus;  // the CPU of each core, in the order of the group's sockets; -1: not pinned
  bool joins_group = false;   // sockets of another process may be in the group (socket_options::share_port)
  std::span<const interface_spread> interfaces;
  steering_check incoming_cpu = steering_check::not_made;
  steering_check cbpf = steering_check::not_made;
};

struct steering_decision {
  steering method = steering::hash;  // never automatic
  std::string reason;
  bool refused = false;  // the caller asked for a method that cannot be had
};

// Pure. For `automatic` a check not made counts against the method, for an explicit choice it does not.
steering_decision decide_steering(const steering_facts& facts);

// Gathers the facts of this machine, as far as the decision needs them, and decides. Takes up to some
// milliseconds for the loopback check.
steering_decision choose_steering(steering wanted, const address& where, std::span<const int> cpus,
                                  bool joins_group);

// Proves on a loopback pair that the kernel hands connections to the socket of the CPU that they arrive on:
// two listeners for two CPUs and 2 x 8 connections from a thread pinned to each in turn, so that a kernel
// that hashes passes once in 65536. `not_made` if the thread cannot run on these CPUs or a socket cannot be
// had.
steering_check check_steering(steering method, int first_cpu, int second_cpu);

// The classic BPF program that answers, for the CPU it runs on, the index of that CPU in `cpus`, and for any
// other CPU an index that no group has, at which the kernel falls back to its hash. Runs of consecutive CPUs
// take four instructions whatever their length. Of equal entries the first counts. Empty if it would be
// longer than BPF_MAXINSNS.
std::vector<sock_filter> make_cpu_program(std::span<const int> cpus);

// Switching a method on takes two steps; both answer 0 or a negative errno value, and 0 if nothing is to do.
//
// For every socket once it is bound and before it listens: its CPU.
int set_incoming_cpu(steering method, int fd, int cpu) noexcept;

// For the first socket of the group once it listens and before the second does: the program. (Not earlier: a
// bound socket that has a program conflicts with the others of its port, and its listen fails with
// EADDRINUSE; found on Linux 6.18. Nothing is lost, since a group of one has nothing to steer.) The sockets
// that listen later join the group.
int attach_cpu_program(steering method, int first_fd, std::span<const int> cpus) noexcept;

}  // namespace percore::sys
