"""What the kernel tells about processes and CPUs: proc(5), clock_getcpuclockid(3)."""

import os
import re
import time

CLOCK_TICKS = os.sysconf("SC_CLK_TCK")  # unit of utime and stime in /proc/PID/stat, proc(5)
NETSTAT_FIELDS = ("ListenOverflows", "ListenDrops", "TCPTimeWaitOverflow", "TCPTimeouts")


class ProcessGone(Exception):
    """A process ended while it was measured."""


def stat_fields(path):
    """The fields of a /proc stat file from the third (state) on; None when the process is gone."""
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def task_stats(pid):
    try:
        return [f"/proc/{pid}/task/{tid}/stat" for tid in os.listdir(f"/proc/{pid}/task")]
    except FileNotFoundError:
        return []


def session_members(leader):
    """Processes of the session that a child of ours leads, zombies left out."""
    members = []
    for entry in os.listdir("/proc"):
        fields = stat_fields(f"/proc/{entry}/stat") if entry.isdigit() else None
        if fields and int(fields[3]) == leader and fields[0] != "Z":
            members.append(int(entry))
    return members


def cpu_ns(pids):
    """Exact CPU time of whole processes, ended threads included: clock_getcpuclockid(3)."""
    try:
        return sum(time.clock_gettime_ns((~pid << 3) | 2) for pid in pids)
    except OSError as error:
        raise ProcessGone("a process of a server or generator ended while it was measured") from error


def cpu_ticks(pids):
    """(user, system) time in clock ticks."""
    fields = [stat_fields(f"/proc/{pid}/stat") or [0] * 15 for pid in pids]
    return sum(int(f[11]) for f in fields), sum(int(f[12]) for f in fields)


def any_runnable(pids):
    """Whether a thread of theirs runs, or would if it had a CPU."""
    return any((stat_fields(stat) or "?")[0] == "R" for pid in pids for stat in task_stats(pid))


def status_numbers(path, names):
    """The numbers behind the given names in a /proc status file; {} when the process is gone."""
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            words = [line.split() for line in file]
    except (FileNotFoundError, ProcessLookupError):
        return {}
    return {w[0].rstrip(":"): int(w[1]) for w in words if len(w) > 1 and w[0].rstrip(":") in names}


def context_switches(pids):
    """(voluntary, involuntary) of all threads that are alive; those of ended threads are lost."""
    names = ("voluntary_ctxt_switches", "nonvoluntary_ctxt_switches")
    totals = [0, 0]
    for pid in pids:
        for stat in task_stats(pid):
            found = status_numbers(os.path.dirname(stat) + "/status", names)
            for i, name in enumerate(names):
                totals[i] += found.get(name, 0)
    return tuple(totals)


def peak_rss_bytes(pids):
    """Sum of the processes' peaks (VmHWM): pages that they share are counted once for each."""
    return 1024 * sum(status_numbers(f"/proc/{pid}/status", ("VmHWM",)).get("VmHWM", 0) for pid in pids)


def pss_bytes(pids):
    """Memory of the processes now, shared pages by share (Pss of smaps_rollup)."""
    return 1024 * sum(status_numbers(f"/proc/{pid}/smaps_rollup", ("Pss",)).get("Pss", 0) for pid in pids)


def softirq_threads(cpus):
    """The kernel threads that take over network work of these CPUs when a process cannot keep up with it."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/comm", encoding="ascii", errors="replace") as file:
                    name = file.read().strip()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if name in {f"ksoftirqd/{cpu}" for cpu in cpus}:
                found.append(int(entry))
    return found


def cpu_lines(cpus):
    """{cpu: its numbers in /proc/stat, in ticks}: user nice system idle iowait irq softirq steal ..."""
    lines = {}
    with open("/proc/stat", encoding="ascii") as file:
        for line in file:
            match = re.match(r"cpu(\d+) ", line)
            if match and int(match[1]) in cpus:
                lines[int(match[1])] = [int(word) for word in line.split()[1:]]
    return lines


def busy_ns(cpus):
    """Time these CPUs were not idle since boot, counted to now; one tick of error per CPU."""
    idle = sum(line[3] + line[4] for line in cpu_lines(cpus).values())
    return time.monotonic_ns() * len(cpus) - idle * (1_000_000_000 // CLOCK_TICKS)


def steal_ticks(cpus):
    """Time that a hypervisor gave to other machines while these CPUs had work."""
    return sum(line[7] for line in cpu_lines(cpus).values())


def netstat():
    with open("/proc/net/netstat", encoding="ascii") as file:
        lines = [line.split() for line in file if line.startswith("TcpExt:")]
    values = dict(zip(lines[0], lines[1]))
    return {field: int(values.get(field, 0)) for field in NETSTAT_FIELDS}


def listens(port):
    """Does somebody listen on this TCP port?"""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        if os.path.exists(table):
            with open(table, encoding="ascii") as file:
                for line in file:
                    words = line.split()
                    if words[3] == "0A" and words[1].endswith(f":{port:04X}"):
                        return True
    return False
