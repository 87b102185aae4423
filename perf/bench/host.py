"""What on this host limits or disturbs a benchmark of many connections. Reads only."""

import dataclasses
import glob
import os
import re
import resource
import shutil
import subprocess

from perf.bench.machine import read

CONNECTIONS = 1000  # of the published tests


@dataclasses.dataclass(frozen=True)
class Finding:
    what: str
    value: str
    verdict: str       # ok, limits, disturbs or unknown
    why: str = ""
    change: str = ""   # the command that would change it


def number(text, default=0):
    match = re.match(r"-?\d+", text or "")
    return int(match[0]) if match else default


def sysctl(name, default=""):
    return read("/proc/sys/" + name.replace(".", "/"), default)


def open_files():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    text = f"soft {soft}, hard {'unlimited' if hard == resource.RLIM_INFINITY else hard}"
    if hard != resource.RLIM_INFINITY and hard < 20000:
        return Finding("open files", text, "limits", "the idle memory test wants 10000 connections, of server and load each",
                       "ulimit -Hn 1048576 (as root), or 'DefaultLimitNOFILE=1048576' in /etc/systemd/system.conf")
    return Finding("open files", text, "ok", "the suite raises the soft limit itself")


def listen_queue():
    found = []
    somaxconn = number(sysctl("net.core.somaxconn"))
    found.append(Finding("net.core.somaxconn", str(somaxconn), "ok" if somaxconn >= 4096 else "limits",
                         "caps every listen queue; a full one costs a client a second", "sysctl -w net.core.somaxconn=4096"))
    backlog = number(sysctl("net.ipv4.tcp_max_syn_backlog"))
    found.append(Finding("net.ipv4.tcp_max_syn_backlog", str(backlog), "ok" if backlog >= CONNECTIONS else "limits",
                         "connections half open at the same time, without SYN cookies",
                         "sysctl -w net.ipv4.tcp_max_syn_backlog=4096"))
    return found


def ports():
    words = [number(word) for word in sysctl("net.ipv4.ip_local_port_range").split()] + [0, 0]
    count = words[1] - words[0] + 1
    reuse = sysctl("net.ipv4.tcp_tw_reuse")
    return [Finding("net.ipv4.ip_local_port_range", f"{words[0]} to {words[1]}: {count} ports",
                    "ok" if count >= 28000 else "limits", "client ports to one server address",
                    "sysctl -w net.ipv4.ip_local_port_range='1024 65535'"),
            Finding("net.ipv4.tcp_tw_reuse", reuse, "ok" if reuse in ("1", "2") else "limits",
                    "2, the default since Linux 4.19: ports in TIME_WAIT are used again on loopback",
                    "sysctl -w net.ipv4.tcp_tw_reuse=2")]


def mitigations():
    folder = "/sys/devices/system/cpu/vulnerabilities"
    active = [name for name in sorted(os.listdir(folder)) if read(os.path.join(folder, name)).startswith("Mitigation")] \
        if os.path.isdir(folder) else []
    if not active:
        return Finding("CPU mitigations", "none active", "ok")
    return Finding("CPU mitigations", ", ".join(active), "limits", "they make every system call dearer, for all servers alike",
                   "kernel parameter mitigations=off, for a machine that does nothing else")


def governor():
    paths = glob.glob("/sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor")
    kinds = sorted({read(path) for path in paths})
    if not kinds:
        return Finding("CPU frequency", "not visible (virtual machine?)", "unknown", "the clock may change under the test")
    verdict = "ok" if kinds == ["performance"] else "disturbs"
    return Finding("CPU governor", ", ".join(kinds), verdict, "another one lets the clock follow the load",
                   "cpupower frequency-set -g performance")


def smt():
    state = read("/sys/devices/system/cpu/smt/active")
    return Finding("SMT", {"1": "on", "0": "off"}.get(state, "unknown"), "disturbs" if state == "1" else "ok",
                   "two threads of a core share its caches; the plan never gives one core to server and load",
                   "echo off > /sys/devices/system/cpu/smt/control")


def netfilter():
    found = []
    count = read("/proc/sys/net/netfilter/nf_conntrack_count")
    if count == "0":
        found.append(Finding("conntrack", "loaded, tracks nothing now", "ok"))
    elif count:
        found.append(Finding("conntrack", f"{count} of {read('/proc/sys/net/netfilter/nf_conntrack_max')} entries", "limits",
                             "looks up every packet, and a full table drops connections",
                             "iptables -t raw -A PREROUTING -i lo -j NOTRACK; iptables -t raw -A OUTPUT -o lo -j NOTRACK"))
    else:
        found.append(Finding("conntrack", "not loaded", "ok"))
    tables = read("/proc/net/ip_tables_names").split()
    rules = ""
    if shutil.which("nft") and os.geteuid() == 0:
        try:
            rules = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, timeout=10, check=False).stdout
        except (OSError, subprocess.TimeoutExpired):
            pass
    if tables or rules.strip():
        found.append(Finding("netfilter rules", f"tables {' '.join(tables) or 'of nftables'}", "limits",
                             "walked for every packet, on loopback too", "nft flush ruleset (this opens the host)"))
    else:
        found.append(Finding("netfilter rules", "none seen", "ok"))
    return found


def steering():
    """Loopback has no interrupts: a packet is received on the CPU that sent it, unless RPS says otherwise."""
    mask = read("/sys/class/net/lo/queues/rx-0/rps_cpus", "0")
    loopback = int(mask.replace(",", "") or "0", 16)
    found = [Finding("RPS of lo", mask, "ok" if not loopback else "disturbs",
                     "0: received where it was sent, in the sender's time", "echo 0 > /sys/class/net/lo/queues/rx-0/rps_cpus")]
    running = any(read(path) == "irqbalance" for path in glob.glob("/proc/[0-9]*/comm"))
    found.append(Finding("irqbalance", "running" if running else "not running", "disturbs" if running else "ok",
                         "moves the interrupts of network cards between CPUs while the test runs",
                         "systemctl stop irqbalance"))
    busiest = interrupts()
    if busiest:
        found.append(Finding("interrupts since boot", busiest, "ok", "for a test over a network card: keep them off the "
                             "servers' CPUs", "echo CPU > /proc/irq/N/smp_affinity_list"))
    return found


def interrupts():
    """The share of each CPU in the interrupts of devices."""
    lines = read("/proc/interrupts").splitlines()
    if len(lines) < 2:
        return ""
    cpus = len(lines[0].split())
    totals = [0] * cpus
    for line in lines[1:]:
        words = line.split()
        if words and re.fullmatch(r"\d+:", words[0]):
            for i, word in enumerate(words[1:1 + cpus]):
                totals[i] += number(word)
    everything = sum(totals)
    order = sorted(range(cpus), key=lambda cpu: -totals[cpu])[:4]
    return ", ".join(f"CPU {cpu} {totals[cpu] / everything:.0%}" for cpu in order) if everything else ""


def quota():
    text = read("/sys/fs/cgroup/cpu.max") or read("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "max")
    limited = not text.startswith(("max", "-1"))
    return Finding("CPU quota of the cgroup", text or "none", "limits" if limited else "ok",
                   "stops all threads for the rest of each period when it is used up",
                   "start the benchmark outside the container, or without --cpus")


def noise():
    load = read("/proc/loadavg").split()[:3]
    busy = float(load[0]) > 0.5 if load else False
    words = [number(word) for word in (re.search(r"(?m)^cpu +(.*)$", read("/proc/stat")) or ["", ""])[1].split()] + [0] * 8
    steal = words[7] / max(1, sum(words[:8]))
    return [Finding("load average", " ".join(load), "disturbs" if busy else "ok", "figures to publish need a quiet machine",
                    "end what else runs"),
            Finding("steal since boot", f"{steal:.1%}", "disturbs" if steal > 0.01 else "ok",
                    "the hypervisor gave our CPUs to others", "a dedicated or metal instance")]


def clock():
    source = read("/sys/devices/system/clocksource/clocksource0/current_clocksource")
    fast = source in ("tsc", "kvm-clock", "arch_sys_counter", "")
    return Finding("clock source", source or "unknown", "ok" if fast else "limits",
                   "reading another one is a system call", "echo tsc > /sys/devices/system/clocksource/clocksource0/current_clocksource")


def findings():
    return [open_files(), *listen_queue(), *ports(), mitigations(), governor(), smt(), *netfilter(), *steering(), quota(),
            clock(), *noise()]


def report(found):
    width = max(len(f.what) for f in found)
    lines = []
    for f in found:
        lines.append(f"{f.verdict:8}  {f.what:{width}}  {f.value}")
        if f.verdict != "ok":
            if f.why:
                lines.append(f"{'':10}{'':{width}}  {f.why}")
            if f.change:
                lines.append(f"{'':10}{'':{width}}  to change it: {f.change}")
    return "\n".join(lines)
