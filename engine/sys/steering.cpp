#include "engine/sys/steering.hpp"

#include <algorithm>
#include <charconv>
#include <fstream>
#include <system_error>

#include "engine/sys/calls.hpp"
#include "engine/sys/threads.hpp"

namespace percore::sys {
namespace {

namespace fs = std::filesystem;

// --- interfaces ------------------------------------------------------------------------------------------
// Files of /sys and /proc may be missing and are read once at start, so through the standard library.

std::string read_line(const fs::path& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

void sort_and_unite(std::vector<int>& cpus) {
  std::sort(cpus.begin(), cpus.end());
  cpus.erase(std::unique(cpus.begin(), cpus.end()), cpus.end());
}

// "0-3,8" as in /proc/irq/N/effective_affinity_list.
std::vector<int> parse_cpu_list(const std::string& text) {
  std::vector<int> cpus;
  const char* at = text.data();
  const char* const end = at + text.size();
  while (at != end) {
    int first = 0;
    const auto from = std::from_chars(at, end, first);
    if (from.ec != std::errc{}) break;
    at = from.ptr;
    int last = first;
    if (at != end && *at == '-') at = std::from_chars(at + 1, end, last).ptr;
    for (int cpu = first; cpu <= last; ++cpu) cpus.push_back(cpu);
    if (at != end && *at == ',') ++at;
  }
  return cpus;
}

// "00000000,0000000f": groups of 32 bits, the highest first, as in queues/rx-N/rps_cpus.
std::vector<int> parse_cpu_mask(const std::string& text) {
  std::vector<int> cpus;
  int base = 0;
  for (auto digit = text.rbegin(); digit != text.rend(); ++digit) {
    if (*digit == ',') continue;
    unsigned nibble = 0;
    const char* const position = &*digit;
    if (std::from_chars(position, position + 1, nibble, 16).ec != std::errc{}) return {};
    for (int bit = 0; bit < 4; ++bit) {
      if ((nibble >> bit & 1U) != 0) cpus.push_back(base + bit);
    }
    base += 4;
  }
  return cpus;
}

// The interrupts of the device, or of the bus device under it (virtio): those of the send queues and of
// control are among them, which cannot be told apart but share the CPUs of the receive queues as a rule.
std::vector<int> read_interrupt_cpus(const fs::path& device, const fs::path& procfs) {
  std::vector<int> cpus;
  for (const fs::path& list : {device / "msi_irqs", device / ".." / "msi_irqs"}) {
    std::error_code error;
    for (const auto& entry : fs::directory_iterator(list, error)) {
      const fs::path irq = procfs / "irq" / entry.path().filename();
      const auto more = parse_cpu_list(read_line(irq / "effective_affinity_list"));
      cpus.insert(cpus.end(), more.begin(), more.end());
    }
    if (!cpus.empty()) break;
  }
  return cpus;
}

interface_spread read_one_interface(const fs::path& interface, const fs::path& procfs) {
  interface_spread result;
  result.name = interface.filename().string();
  std::vector<int> cpus;
  bool all_steered_by_rps = true;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(interface / "queues", error)) {
    if (!entry.path().filename().string().starts_with("rx-")) continue;
    ++result.queues;
    const auto rps = parse_cpu_mask(read_line(entry.path() / "rps_cpus"));
    cpus.insert(cpus.end(), rps.begin(), rps.end());
    if (rps.empty()) all_steered_by_rps = false;
  }
  bool known = result.queues != 0;
  if (!all_steered_by_rps) {
    const auto interrupts = read_interrupt_cpus(interface / "device", procfs);
    cpus.insert(cpus.end(), interrupts.begin(), interrupts.end());
    known = known && !interrupts.empty();
  }
  sort_and_unite(cpus);
  if (known) result.cpus = std::move(cpus);
  return result;
}

// --- the decision ----------------------------------------------------------------------------------------

bool all_pinned_apart(std::span<const int> cpus) {
  std::vector<int> sorted(cpus.begin(), cpus.end());
  std::sort(sorted.begin(), sorted.end());
  return sorted.empty() ||
         (sorted.front() >= 0 && std::adjacent_find(sorted.begin(), sorted.end()) == sorted.end());
}

// Why some core would starve; empty if none does.
std::string starvation(std::span<const interface_spread> interfaces, std::span<const int> cpus) {
  if (interfaces.empty()) return "no network device shows its receive queues";
  for (const interface_spread& interface : interfaces) {
    if (!interface.cpus.has_value()) {
      if (interface.queues >= cpus.size()) continue;
      return interface.name + " has " + std::to_string(interface.queues) + " receive queues for " +
             std::to_string(cpus.size()) + " cores";
    }
    for (const int cpu : cpus) {
      if (std::binary_search(interface.cpus->begin(), interface.cpus->end(), cpu)) continue;
      return interface.name + " delivers nothing to CPU " + std::to_string(cpu);
    }
  }
  return {};
}

// Why steering by CPU makes no sense for these cores, whatever the kernel and the network do; empty if it
// does.
std::string obstacle(const steering_facts& facts) {
  if (facts.where.is_unix()) return "unix sockets have no group";
  if (!all_pinned_apart(facts.cpus)) return "the cores are not each pinned to a CPU of their own";
  return {};
}

steering_decision decide_explicit(const steering_facts& facts) {
  if (std::string why = obstacle(facts); !why.empty()) return {steering::hash, std::move(why), true};
  if (facts.wanted == steering::cbpf && facts.joins_group) {
    // A socket that joins a group loses its program to the group's (reuseport_add_sock() in
    // net/core/sock_reuseport.c).
    return {steering::hash, "in a group shared with another process a program numbers the wrong sockets",
            true};
  }
  const steering_check check = facts.wanted == steering::cbpf ? facts.cbpf : facts.incoming_cpu;
  if (check == steering_check::ignored) {
    return {steering::hash, "this kernel does not steer by it on a loopback pair", true};
  }
  return {facts.wanted, "chosen by the caller", false};
}

// --- the check on a loopback pair ------------------------------------------------------------------------

class probe_socket {
 public:
  explicit probe_socket(int fd) noexcept : fd_(fd) {}
  probe_socket(const probe_socket&) = delete;
  probe_socket& operator=(const probe_socket&) = delete;
  ~probe_socket() {
    if (fd_ < 0) return;
    const ::linger no_time_wait{1, 0};
    (void)sys::setsockopt(fd_, SOL_SOCKET, SO_LINGER, &no_time_wait, sizeof no_time_wait);
    (void)sys::close(fd_);
  }

  int fd() const noexcept { return fd_; }

 private:
  int fd_;
};

bool bind_probe(int fd, sockaddr_storage& where, socklen_t length) noexcept {
  const int on = 1;
  return fd >= 0 && sys::setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on) == 0 &&
         sys::bind(fd, reinterpret_cast<const sockaddr*>(&where), length) == 0 &&
         sys::getsockname(fd, reinterpret_cast<sockaddr*>(&where), &length) == 0;
}

// Which of the two listeners gets one connection made on this CPU: 0, 1, or -1 if none could be made.
int connect_once(std::span<const int> listeners, const sockaddr_storage& where, socklen_t length) noexcept {
  const int family = where.ss_family;
  const probe_socket client(sys::socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (client.fd() < 0) return -1;
  const int result = sys::connect(client.fd(), reinterpret_cast<const sockaddr*>(&where), length);
  if (result < 0 && result != -EINPROGRESS) return -1;
  pollfd ready[2] = {{listeners[0], POLLIN, 0}, {listeners[1], POLLIN, 0}};
  constexpr int patience_ms = 200;  // loopback answers within connect() as a rule
  if (sys::poll(ready, 2, patience_ms) <= 0) return -1;
  const int hit = (ready[0].revents & POLLIN) != 0 ? 0 : 1;
  const probe_socket accepted(
      sys::accept4(listeners[static_cast<std::size_t>(hit)], nullptr, nullptr, SOCK_CLOEXEC));
  return accepted.fd() < 0 ? -1 : hit;
}

// Makes the connections of one CPU and sees where they go.
steering_check check_from(int cpu, int expected, std::span<const int> listeners,
                          const sockaddr_storage& where, socklen_t length) {
  steering_check result = steering_check::obeyed;
  // A thread of its own, so that the caller's affinity stays as it is.
  core_thread prober;
  const auto probe = [&] {
    constexpr int connections_per_cpu = 8;
    for (int i = 0; i < connections_per_cpu && result == steering_check::obeyed; ++i) {
      const int hit = connect_once(listeners, where, length);
      if (hit < 0) result = steering_check::not_made;
      if (hit == 1 - expected) result = steering_check::ignored;
    }
  };
  try {
    prober.start(probe, "percore-probe", {static_cast<unsigned>(cpu)}, 64 * 1024);
    prober.join();
  } catch (const std::system_error&) {
    return steering_check::not_made;  // this process may not run there
  }
  return result;
}

steering_check check_on(const address& loopback, steering method, std::span<const int, 2> cpus) {
  sockaddr_storage where{};
  const socklen_t length = loopback.to_sockaddr(where);
  const int type = SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC;
  const probe_socket first(sys::socket(where.ss_family, type, 0));
  const probe_socket second(sys::socket(where.ss_family, type, 0));
  if (!bind_probe(first.fd(), where, length) || !bind_probe(second.fd(), where, length)) {
    return steering_check::not_made;
  }
  const int listeners[] = {first.fd(), second.fd()};
  for (const std::size_t i : {0U, 1U}) {
    if (set_incoming_cpu(method, listeners[i], cpus[i]) != 0) return steering_check::ignored;
    if (sys::listen(listeners[i], 16) != 0) return steering_check::not_made;
    if (i == 0 && attach_cpu_program(method, listeners[i], cpus) != 0) return steering_check::ignored;
  }
  const steering_check result = check_from(cpus[0], 0, listeners, where, length);
  return result == steering_check::obeyed ? check_from(cpus[1], 1, listeners, where, length) : result;
}

constexpr std::uint32_t no_index = 0xffffffffU;

}  // namespace

std::vector<interface_spread> read_interface_spread(const fs::path& sysfs, const fs::path& procfs) {
  std::vector<interface_spread> result;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(sysfs / "class" / "net", error)) {
    std::error_code missing;
    if (!fs::exists(entry.path() / "device", missing)) continue;
    if (read_line(entry.path() / "operstate") == "down") continue;
    result.push_back(read_one_interface(entry.path(), procfs));
  }
  std::sort(result.begin(), result.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
  return result;
}

steering_decision decide_steering(const steering_facts& facts) {
  if (facts.wanted == steering::hash) return {steering::hash, "chosen by the caller", false};
  if (facts.cpus.size() < 2) return {steering::hash, "there is only one core", false};
  if (facts.wanted != steering::automatic) return decide_explicit(facts);
  if (std::string why = obstacle(facts); !why.empty()) return {steering::hash, std::move(why), false};
  if (facts.where.is_loopback()) {
    return {steering::hash, "on loopback the CPU of a connection is that of its client", false};
  }
  if (std::string why = starvation(facts.interfaces, facts.cpus); !why.empty()) {
    return {steering::hash, std::move(why), false};
  }
  const char* const proof = "every core's CPU receives packets and the kernel steers by CPU";
  if (facts.incoming_cpu == steering_check::obeyed) return {steering::incoming_cpu, proof, false};
  if (facts.cbpf == steering_check::obeyed && !facts.joins_group) return {steering::cbpf, proof, false};
  return {steering::hash, "the kernel was not seen to steer by CPU on a loopback pair", false};
}

steering_decision choose_steering(steering wanted, const address& where, std::span<const int> cpus,
                                  bool joins_group) {
  steering_facts facts;
  facts.wanted = wanted;
  facts.where = where;
  facts.cpus = cpus;
  facts.joins_group = joins_group;
  std::vector<interface_spread> interfaces;
  if (wanted == steering::automatic) {
    interfaces = read_interface_spread("/sys", "/proc");
    facts.interfaces = interfaces;
  }
  // Would it steer if the kernel obeyed? Only then is the check worth its milliseconds.
  facts.incoming_cpu = facts.cbpf = steering_check::obeyed;
  if (decide_steering(facts).method == steering::hash) return decide_steering(facts);
  facts.incoming_cpu = facts.cbpf = steering_check::not_made;
  if (wanted != steering::cbpf) facts.incoming_cpu = check_steering(steering::incoming_cpu, cpus[0], cpus[1]);
  const bool by_program = wanted == steering::automatic && facts.incoming_cpu != steering_check::obeyed;
  if (wanted == steering::cbpf || by_program) facts.cbpf = check_steering(steering::cbpf, cpus[0], cpus[1]);
  return decide_steering(facts);
}

steering_check check_steering(steering method, int first_cpu, int second_cpu) {
  const int cpus[] = {first_cpu, second_cpu};
  if (first_cpu < 0 || second_cpu < 0) return steering_check::not_made;
  const steering_check result = check_on(address("127.0.0.1:0"), method, cpus);
  return result == steering_check::not_made ? check_on(address("[::1]:0"), method, cpus) : result;
}

std::vector<sock_filter> make_cpu_program(std::span<const int> cpus) {
  struct run {
    std::uint32_t first_cpu, length, first_index;
  };
  std::vector<run> runs;
  std::vector<int> seen;
  for (std::size_t i = 0; i < cpus.size(); ++i) {
    if (cpus[i] < 0 || std::find(seen.begin(), seen.end(), cpus[i]) != seen.end()) continue;
    seen.push_back(cpus[i]);
    const auto cpu = static_cast<std::uint32_t>(cpus[i]);
    const auto index = static_cast<std::uint32_t>(i);
    const bool continues = !runs.empty() && cpu == runs.back().first_cpu + runs.back().length &&
                           index == runs.back().first_index + runs.back().length;
    if (continues) {
      ++runs.back().length;
    } else {
      runs.push_back({cpu, 1, index});
    }
  }
  const auto ancillary_cpu = static_cast<std::uint32_t>(SKF_AD_OFF + SKF_AD_CPU);
  std::vector<sock_filter> program = {BPF_STMT(BPF_LD | BPF_W | BPF_ABS, ancillary_cpu)};
  for (const run& r : runs) {
    if (r.length == 1) {
      program.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, r.first_cpu, 0, 1));
      program.push_back(BPF_STMT(BPF_RET | BPF_K, r.first_index));
      continue;
    }
    program.push_back(BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, r.first_cpu, 0, 3));
    program.push_back(BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, r.first_cpu + r.length - 1, 2, 0));
    program.push_back(BPF_STMT(BPF_ALU | BPF_ADD | BPF_K, r.first_index - r.first_cpu));  // modulo 2^32
    program.push_back(BPF_STMT(BPF_RET | BPF_A, 0));
  }
  program.push_back(BPF_STMT(BPF_RET | BPF_K, no_index));
  if (program.size() > BPF_MAXINSNS) program.clear();
  return program;
}

int set_incoming_cpu(steering method, int fd, int cpu) noexcept {
  if (method != steering::incoming_cpu) return 0;
  return sys::setsockopt(fd, SOL_SOCKET, SO_INCOMING_CPU, &cpu, sizeof cpu);
}

int attach_cpu_program(steering method, int first_fd, std::span<const int> cpus) noexcept {
  if (method != steering::cbpf) return 0;
  std::vector<sock_filter> program = make_cpu_program(cpus);
  if (program.empty()) return -E2BIG;
  const sock_fprog attached{static_cast<unsigned short>(program.size()), program.data()};
  return sys::setsockopt(first_fd, SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, &attached, sizeof attached);
}

}  // namespace percore::sys
