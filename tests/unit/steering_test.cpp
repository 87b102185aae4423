#include "engine/sys/steering.hpp"

#include <doctest/doctest.h>
#include <sched.h>
#include <sys/utsname.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

namespace fs = std::filesystem;
using percore::address;
using percore::steering;
using percore::sys::decide_steering;
using percore::sys::interface_spread;
using percore::sys::make_cpu_program;
using percore::sys::steering_check;
using percore::sys::steering_decision;
using percore::sys::steering_facts;

namespace {

// What the kernel's interpreter does with the instructions that the program uses.
std::uint32_t run_on_cpu(const std::vector<sock_filter>& program, std::uint32_t cpu) {
  std::uint32_t a = 0;
  for (std::size_t pc = 0; pc < program.size(); ++pc) {
    const sock_filter& in = program[pc];
    switch (in.code) {
      case BPF_LD | BPF_W | BPF_ABS:
        REQUIRE(in.k == static_cast<std::uint32_t>(SKF_AD_OFF + SKF_AD_CPU));
        a = cpu;
        break;
      case BPF_JMP | BPF_JEQ | BPF_K:
        pc += a == in.k ? in.jt : in.jf;
        break;
      case BPF_JMP | BPF_JGE | BPF_K:
        pc += a >= in.k ? in.jt : in.jf;
        break;
      case BPF_JMP | BPF_JGT | BPF_K:
        pc += a > in.k ? in.jt : in.jf;
        break;
      case BPF_ALU | BPF_ADD | BPF_K:
        a += in.k;
        break;
      case BPF_RET | BPF_K:
        return in.k;
      case BPF_RET | BPF_A:
        return a;
      default:
        FAIL("unexpected instruction ", in.code);
    }
  }
  FAIL("the program has no end");
  return 0;
}

// A machine on which steering makes sense: 4 cores, a network card that reaches them all, a kernel that
// obeys.
struct good_machine {
  good_machine() {
    facts.where = address("0.0.0.0:80");
    facts.cpus = cpus;
    facts.interfaces = interfaces;
    facts.incoming_cpu = facts.cbpf = steering_check::obeyed;
  }
  good_machine(const good_machine&) = delete;
  good_machine& operator=(const good_machine&) = delete;

  std::vector<int> cpus = {0, 2, 4, 6};
  std::vector<interface_spread> interfaces = {{"eth0", 8, std::vector<int>{0, 1, 2, 3, 4, 5, 6, 7}}};
  steering_facts facts;
};

bool contains(const std::string& text, const char* part) {
  return text.find(part) != std::string::npos;
}

class fake_machine {
 public:
  fake_machine() {
    REQUIRE(::mkdtemp(path_) != nullptr);
    fs::create_directories(sys() / "class" / "net");
  }
  fake_machine(const fake_machine&) = delete;
  fake_machine& operator=(const fake_machine&) = delete;
  ~fake_machine() { fs::remove_all(path_); }

  fs::path sys() const { return fs::path(path_) / "sys"; }
  fs::path proc() const { return fs::path(path_) / "proc"; }

  void write(const fs::path& file, const std::string& text) {
    fs::create_directories(file.parent_path());
    std::ofstream(file) << text << '\n';
  }
  void add_queue(const char* interface, int queue, const char* rps) {
    const fs::path at = sys() / "class" / "net" / interface;
    write(at / "operstate", "up");
    write(at / "queues" / ("rx-" + std::to_string(queue)) / "rps_cpus", rps);
    write(at / "queues" / ("tx-" + std::to_string(queue)) / "xps_cpus", "0");
    fs::create_directories(at / "device");
  }
  void add_interrupt(const fs::path& list, int irq, const char* cpus) {
    write(list / std::to_string(irq), "msix");
    write(proc() / "irq" / std::to_string(irq) / "effective_affinity_list", cpus);
  }
  std::vector<interface_spread> read() const { return percore::sys::read_interface_spread(sys(), proc()); }

 private:
  char path_[32] = "/tmp/percore-test-XXXXXX";
};

std::vector<int> allowed_cpus() {
  cpu_set_t allowed;
  REQUIRE(::sched_getaffinity(0, sizeof allowed, &allowed) == 0);
  std::vector<int> cpus;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(static_cast<unsigned>(cpu), &allowed)) cpus.push_back(cpu);
  }
  return cpus;
}

bool kernel_is_at_least(int major, int minor) {
  utsname name{};
  REQUIRE(::uname(&name) == 0);
  int has_major = 0;
  int has_minor = 0;
  REQUIRE(std::sscanf(name.release, "%d.%d", &has_major, &has_minor) == 2);
  return has_major > major || (has_major == major && has_minor >= minor);
}

}  // namespace

TEST_CASE("steering: the program answers the index of every core's CPU and none for others") {
  const std::vector<std::vector<int>> lists = {
      {0},
      {0, 1},
      {1, 0},
      {0, 1, 2, 3, 4, 5, 6, 7},
      {0, 2, 4, 6},
      {3, 2, 1, 0},
      {4, 5, 6, 0, 1, 9},
      {0, 1, 2, 48, 49, 50, 7},
      {5, 5, 6},
      {-1, 3, 4},
      {},
  };
  for (const auto& cpus : lists) {
    const auto program = make_cpu_program(cpus);
    REQUIRE_FALSE(program.empty());
    for (std::uint32_t cpu = 0; cpu < 64; ++cpu) {
      std::uint32_t expected = 0xffffffff;
      for (std::size_t i = cpus.size(); i-- > 0;) {
        if (cpus[i] >= 0 && static_cast<std::uint32_t>(cpus[i]) == cpu)
          expected = static_cast<std::uint32_t>(i);
      }
      CAPTURE(cpu);
      CHECK(run_on_cpu(program, cpu) == expected);
    }
  }
}

TEST_CASE("steering: the program of consecutive CPUs is short, and one too long is not made") {
  std::vector<int> cpus;
  for (int cpu = 0; cpu < 1000; ++cpu) cpus.push_back(cpu);
  CHECK(make_cpu_program(cpus).size() == 6);
  for (int& cpu : cpus) cpu *= 2;
  CHECK(make_cpu_program(cpus).size() == 2002);
  for (int cpu = 0; cpu < 2000; ++cpu) cpus.push_back(10'000 + 2 * cpu);
  CHECK(make_cpu_program(cpus).empty());
}

TEST_CASE("steering: automatic steers only where nothing speaks against it") {
  good_machine machine;
  steering_facts& facts = machine.facts;
  const auto decide = [&] { return decide_steering(facts); };
  CHECK(decide().method == steering::incoming_cpu);
  CHECK_FALSE(decide().reason.empty());

  SUBCASE("an old kernel takes the program") {
    facts.incoming_cpu = steering_check::ignored;
    CHECK(decide().method == steering::cbpf);
    facts.joins_group = true;
    CHECK(decide().method == steering::hash);
    facts.joins_group = false;
    facts.cbpf = steering_check::not_made;
    CHECK(decide().method == steering::hash);
    CHECK(contains(decide().reason, "loopback pair"));
  }
  SUBCASE("loopback") {
    for (const char* where : {"127.0.0.1:80", "[::1]:80"}) {
      facts.where = address(where);
      CHECK(decide().method == steering::hash);
      CHECK(contains(decide().reason, "client"));
    }
  }
  SUBCASE("unix") {
    facts.where = address("unix:@x");
    CHECK(contains(decide().reason, "unix"));
  }
  SUBCASE("one core") {
    facts.cpus = facts.cpus.first(1);
    CHECK(contains(decide().reason, "only one core"));
  }
  SUBCASE("cores that are not pinned, or to the same CPU") {
    for (const int second : {-1, 0}) {
      machine.cpus[1] = second;
      CHECK(decide().method == steering::hash);
      CHECK(contains(decide().reason, "pinned"));
    }
  }
  SUBCASE("a core whose CPU gets no packets") {
    machine.interfaces[0].cpus = std::vector<int>{0, 1, 2, 3, 4, 5};
    CHECK(decide().method == steering::hash);
    CHECK(decide().reason == "eth0 delivers nothing to CPU 6");
  }
  SUBCASE("queues whose CPUs are not known are counted") {
    machine.interfaces[0].cpus.reset();
    CHECK(decide().method == steering::incoming_cpu);
    machine.interfaces[0].queues = 3;
    CHECK(decide().reason == "eth0 has 3 receive queues for 4 cores");
  }
  SUBCASE("every interface must reach all cores") {
    machine.interfaces.push_back({"eth1", 1, std::vector<int>{0}});
    facts.interfaces = machine.interfaces;
    CHECK(decide().reason == "eth1 delivers nothing to CPU 2");
  }
  SUBCASE("no device") {
    facts.interfaces = {};
    CHECK(contains(decide().reason, "no network device"));
  }
  CHECK_FALSE(decide().refused);
}

TEST_CASE("steering: an explicit choice is taken unless it is impossible") {
  good_machine machine;
  steering_facts& facts = machine.facts;
  facts.where = address("127.0.0.1:80");
  facts.interfaces = {};
  for (const auto wanted : {steering::incoming_cpu, steering::cbpf}) {
    CAPTURE(to_string(wanted));
    facts.wanted = wanted;
    facts.incoming_cpu = facts.cbpf = steering_check::not_made;
    CHECK(decide_steering(facts).method == wanted);
    facts.incoming_cpu = facts.cbpf = steering_check::ignored;
    CHECK(decide_steering(facts).method == steering::hash);
    CHECK(decide_steering(facts).refused);
    facts.incoming_cpu = facts.cbpf = steering_check::obeyed;
    facts.joins_group = true;
    CHECK(decide_steering(facts).refused == (wanted == steering::cbpf));
    facts.joins_group = false;
    machine.cpus[3] = -1;
    CHECK(decide_steering(facts).refused);
    machine.cpus[3] = 6;
  }
  facts.wanted = steering::hash;
  CHECK(decide_steering(facts).method == steering::hash);
  CHECK_FALSE(decide_steering(facts).refused);
  facts.wanted = steering::cbpf;
  facts.cpus = facts.cpus.first(1);
  CHECK(decide_steering(facts).method == steering::hash);
  CHECK_FALSE(decide_steering(facts).refused);  // nothing to steer is no loss
}

TEST_CASE("steering: reads where the interfaces deliver") {
  fake_machine machine;
  CHECK(machine.read().empty());

  SUBCASE("receive packet steering") {
    machine.add_queue("eth0", 0, "00000001,0000000f");
    machine.add_queue("eth0", 1, "000000f0");
    const auto found = machine.read();
    REQUIRE(found.size() == 1);
    CHECK(found[0].name == "eth0");
    CHECK(found[0].queues == 2);
    CHECK(found[0].cpus == std::vector<int>{0, 1, 2, 3, 4, 5, 6, 7, 32});
  }
  SUBCASE("interrupts") {
    machine.add_queue("eth0", 0, "0");
    machine.add_queue("eth0", 1, "0");
    const fs::path list = machine.sys() / "class" / "net" / "eth0" / "device" / "msi_irqs";
    machine.add_interrupt(list, 24, "3");
    machine.add_interrupt(list, 25, "0-1,3");
    CHECK(machine.read()[0].cpus == std::vector<int>{0, 1, 3});
  }
  SUBCASE("interrupts of the bus device under a virtio device") {
    machine.add_queue("eth0", 0, "0");
    const fs::path bus = machine.sys() / "devices" / "pci0";
    fs::create_directories(bus / "virtio1");
    const fs::path device = machine.sys() / "class" / "net" / "eth0" / "device";
    fs::remove(device);
    fs::create_directory_symlink(bus / "virtio1", device);
    machine.add_interrupt(bus / "msi_irqs", 30, "5");
    CHECK(machine.read()[0].cpus == std::vector<int>{5});
  }
  SUBCASE("nothing known but the number of queues") {
    for (int queue = 0; queue < 3; ++queue) machine.add_queue("eth0", queue, "00,00000000");
    const auto found = machine.read();
    CHECK(found[0].queues == 3);
    CHECK_FALSE(found[0].cpus.has_value());
  }
  SUBCASE("rubbish is not a mask") {
    machine.add_queue("eth0", 0, "xyz");
    CHECK_FALSE(machine.read()[0].cpus.has_value());
  }
  SUBCASE("interfaces that are down or have no device do not count") {
    machine.add_queue("eth0", 0, "3");
    machine.add_queue("eth1", 0, "1");
    machine.write(machine.sys() / "class" / "net" / "eth1" / "operstate", "down");
    machine.add_queue("veth0", 0, "0");
    fs::remove(machine.sys() / "class" / "net" / "veth0" / "device");
    const auto found = machine.read();
    REQUIRE(found.size() == 1);
    CHECK(found[0].cpus == std::vector<int>{0, 1});
  }
}

TEST_CASE("steering: this machine's interfaces can be read") {
  for (const interface_spread& interface : percore::sys::read_interface_spread("/sys", "/proc")) {
    CHECK_FALSE(interface.name.empty());
    CHECK(interface.queues >= 1);
  }
}

TEST_CASE("steering: the check on a loopback pair") {
  CHECK(percore::sys::check_steering(steering::incoming_cpu, -1, 0) == steering_check::not_made);
  CHECK(percore::sys::check_steering(steering::cbpf, 0, 1'000'000) == steering_check::not_made);
  const std::vector<int> cpus = allowed_cpus();
  if (cpus.size() < 2) return;
  CHECK(percore::sys::check_steering(steering::cbpf, cpus[1], cpus[0]) == steering_check::obeyed);
  const auto incoming = percore::sys::check_steering(steering::incoming_cpu, cpus[1], cpus[0]);
  CHECK(incoming != steering_check::not_made);
  if (kernel_is_at_least(6, 2)) CHECK(incoming == steering_check::obeyed);
  // A hash does not follow the CPU: the check does find that out.
  CHECK(percore::sys::check_steering(steering::hash, cpus[0], cpus[1]) == steering_check::ignored);
}

TEST_CASE("steering: the choice on this machine is a method that works here") {
  const std::vector<int> cpus = allowed_cpus();
  const auto automatic = percore::sys::choose_steering(steering::automatic, address(":0"), cpus, false);
  CHECK(automatic.method != steering::automatic);
  CHECK_FALSE(automatic.reason.empty());
  const auto loopback =
      percore::sys::choose_steering(steering::automatic, address("127.0.0.1:0"), cpus, false);
  CHECK(loopback.method == steering::hash);
  if (cpus.size() < 2) return;
  const auto wanted = percore::sys::choose_steering(steering::cbpf, address("127.0.0.1:0"), cpus, false);
  CHECK(wanted.method == steering::cbpf);
}
