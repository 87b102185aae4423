"""Interleaved slices: all servers up, each with its own generators, of which only one server's run at a time.

This is the measuring core of scripts/compare and of the suite's fine interleaving. perf/README.md tells the method.
"""

import dataclasses
import math
import mmap
import os
import re
import shlex
import signal
import socket
import struct
import time

from perf.bench import kernel
from perf.bench.children import Child, Failure, fill

COUNTER_BYTES = 4096
START_TIMEOUT_S = 15.0
WARM_UP_TIMEOUT_S = 30.0
IDLE_PROBE_S = 0.005  # a server is at rest when it used less than 1 % of the CPU for this long, and wants none
IDLE_LIMIT_S = 2.0

# wrk calls request() for every request it sends. One shared cache line per wrk thread holds that count.
WRK_COUNTER_LUA = """\
local ffi = require("ffi")
ffi.cdef[[
int open(const char *, int);
void *mmap(void *, size_t, int, int, int, long);
]]
local threads = 0
function setup(thread)
  thread:set("slot", threads)
  threads = threads + 1
end
function init(args)
  local fd = ffi.C.open("@COUNTER@", 2)
  counter = ffi.cast("uint64_t *", ffi.C.mmap(nil, @BYTES@, 3, 1, fd, 0)) + slot * 8
  text = wrk.format()
end
function request()
  counter[0] = counter[0] + 1
  return text
end
"""


@dataclasses.dataclass
class Instance:
    """One process of a load generator."""
    cpus: set
    connections: int
    threads: int = 1


@dataclasses.dataclass
class Setting:
    """What all servers of one comparison have in common."""
    server_cpus: set
    instances: list  # of each server's generators
    load: str        # command with placeholders: {port} {connections} {threads} {duration} {timeout} {header} ...
    slice_s: float
    servers: int     # how many take turns: the others are stopped for so many slices
    keep_alive: bool

    @property
    def connections(self):
        return sum(instance.connections for instance in self.instances)

    @property
    def counted(self):
        return "{counter" in self.load

    def timeout_s(self):
        """Longer than a generator is ever stopped; wrk keeps 8 MB of (untouched) histogram per second of it."""
        return 5 + math.ceil(3 * (self.slice_s + IDLE_LIMIT_S) * self.servers)


class Generator:
    """One running instance of the load generator, with its live count of requests sent."""

    def __init__(self, instance, setting, port, directory, index, server_name):
        counter_path = os.path.join(directory, f"counter{index}")
        script_path = os.path.join(directory, f"counter{index}.lua")
        with open(counter_path, "wb") as file:
            file.truncate(COUNTER_BYTES)
        with open(counter_path, "r+b") as file:
            self.counter = mmap.mmap(file.fileno(), COUNTER_BYTES)
        with open(script_path, "w", encoding="ascii") as file:
            file.write(WRK_COUNTER_LUA.replace("@COUNTER@", counter_path).replace("@BYTES@", str(COUNTER_BYTES)))
        words = fill(setting.load, {
            "port": port, "connections": instance.connections, "threads": instance.threads,
            "duration": "36000s", "timeout": f"{setting.timeout_s()}s",
            "header": "Connection: " + ("keep-alive" if setting.keep_alive else "close"),
            "counter": counter_path, "counter_script": script_path})
        self.command = shlex.join(words)
        self.child = Child(words, instance.cpus, signal.SIGKILL, os.path.join(directory, f"load{index}.out"),
                           f"load for {server_name}")

    def sent(self):
        return sum(struct.unpack_from(f"={COUNTER_BYTES // 8}Q", self.counter))

    def totals(self):
        """What wrk prints at its end; errors is None when it reports none."""
        text = self.child.output()
        requests = re.search(r"(\d+) requests in", text)
        refused = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
        errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
        names = ("connect", "read", "write", "timeout")
        return {"requests": int(requests[1]) if requests else None, "sent": self.sent() or None,
                "not_2xx_or_3xx": int(refused[1]) if refused else 0,
                "errors": dict(zip(names, map(int, errors.groups()))) if errors else None}


def add_totals(parts):
    """The sum of what several generators printed."""
    known = [part for part in parts if part["requests"] is not None]
    errors = [part["errors"] for part in parts if part["errors"]]
    return {"requests": sum(p["requests"] for p in known) if len(known) == len(parts) else None,
            "sent": sum(p["sent"] or 0 for p in parts) or None,
            "not_2xx_or_3xx": sum(p["not_2xx_or_3xx"] for p in parts),
            "errors": {name: sum(e[name] for e in errors) for name in errors[0]} if errors else None}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    def __init__(self, name, command, cpus, root, index, environment=None):
        self.name, self.slices, self.generators = name, [], []
        self.directory = os.path.join(root, str(index))
        os.mkdir(self.directory)
        values = {"dir": self.directory}
        if "{port}" in command:
            values["port"] = free_port()
        words = fill(command, values)
        self.command = shlex.join(words)
        self.child = Child(words, cpus, signal.SIGTERM, os.path.join(self.directory, "server.out"),
                           f"server {name}", environment)
        self.port = values.get("port")

    def wait_ready(self, timeout_s=START_TIMEOUT_S):
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            self.child.check_alive()
            if self.port is None:
                match = re.search(r"listening on \S*:(\d+)\s", self.child.output())
                self.port = int(match[1]) if match else None
            if self.port is not None and kernel.listens(self.port):
                return
            time.sleep(0.01)
        raise Failure(f"server {self.name} does not listen after {timeout_s:.0f} s")

    def start_load(self, setting):
        self.cpu_at_load_start = kernel.cpu_ns(self.pids())
        for index, instance in enumerate(setting.instances):
            self.generators.append(Generator(instance, setting, self.port, self.directory, index, self.name))
        self.load_command = self.generators[0].command

    def pids(self):
        self.child.check_alive()
        return kernel.session_members(self.child.pid)

    def load_pids(self):
        return [generator.child.pid for generator in self.generators]

    def sent(self):
        return sum(generator.sent() for generator in self.generators)

    def wait_idle(self):
        """Its generators are stopped: wait until what was sent has been served."""
        deadline = time.monotonic() + IDLE_LIMIT_S
        before = -1e9
        while time.monotonic() < deadline:
            pids = self.pids()
            now = kernel.cpu_ns(pids)
            # Little time may also mean that others have its CPU.
            if now - before < IDLE_PROBE_S * 1e9 * 0.01 and not kernel.any_runnable(pids):
                return
            before = now
            time.sleep(IDLE_PROBE_S)

    def take_slice(self, setting):
        """From rest to rest, so every request sent within is also served within."""
        pids, cpus = self.pids(), setting.server_cpus
        softirqs = kernel.softirq_threads(cpus)
        net, lines, busy = kernel.netstat(), kernel.cpu_lines(cpus), kernel.busy_ns(cpus)
        switches = kernel.context_switches(pids)
        sent, cpu, (user, system) = self.sent(), kernel.cpu_ns(pids), kernel.cpu_ticks(pids)
        load_cpu, softirq = kernel.cpu_ns(self.load_pids()), kernel.cpu_ns(softirqs)
        start = time.monotonic()
        for generator in self.generators:
            generator.child.send(signal.SIGCONT)
        time.sleep(setting.slice_s)
        for generator in self.generators:
            generator.child.send(signal.SIGSTOP)
        for generator in self.generators:
            generator.child.wait_stopped()
        wall = time.monotonic() - start
        self.wait_idle()
        user_after, system_after = kernel.cpu_ticks(pids)
        used = kernel.cpu_ns(pids) - cpu
        softirq = kernel.cpu_ns(softirqs) - softirq
        switches_after = kernel.context_switches(pids)
        net_after, lines_after = kernel.netstat(), kernel.cpu_lines(cpus)
        return {"seconds": wall, "requests": self.sent() - sent, "cpu_ns": used,
                "user_ticks": user_after - user, "system_ticks": system_after - system,
                "load_cpu_ns": kernel.cpu_ns(self.load_pids()) - load_cpu,
                "ksoftirqd_cpu_ns": softirq,
                "others_cpu_ns": max(0, kernel.busy_ns(cpus) - busy - used - softirq),
                "switches": [after - before for after, before in zip(switches_after, switches)],
                "cpu_lines": {cpu_: [a - b for a, b in zip(lines_after[cpu_], lines[cpu_])] for cpu_ in lines},
                "netstat": {field: net_after[field] - net[field] for field in kernel.NETSTAT_FIELDS}}

    def finish_load(self):
        """Ends the generators by SIGINT, which makes wrk print its totals, and reads them."""
        for generator in self.generators:
            generator.child.end(signal.SIGINT, 10.0)
        self.wait_idle()
        self.total_cpu_ns = kernel.cpu_ns(self.pids()) - self.cpu_at_load_start
        self.totals = add_totals([generator.totals() for generator in self.generators])

    def end(self):
        for generator in self.generators:
            generator.child.end(signal.SIGKILL, 5.0)
        self.child.end(signal.SIGTERM, 5.0)


def warm_up(server, setting):
    """Slices that are thrown away, until every connection has been used: a generator on a busy CPU may need
    more than one to connect."""
    server.start_load(setting)
    deadline = time.monotonic() + WARM_UP_TIMEOUT_S
    server.take_slice(setting)
    while setting.counted and server.sent() < 2 * setting.connections and time.monotonic() < deadline:
        server.take_slice(setting)


def measure(servers, setting, rounds, say):
    """Fills each server's slices and totals. `say(text)` is told what comes next."""
    for server in servers:
        server.wait_ready()
    for server in servers:
        say(f"warm-up: {server.name}")
        warm_up(server, setting)
    done = 0
    for round_ in range(rounds):  # back and forth, so that a steady drift cancels out
        for server in servers if round_ % 2 == 0 else reversed(servers):
            done += 1
            say(f"slice {done} of {len(servers) * rounds}: {server.name}")
            result = server.take_slice(setting)
            server.slices.append(result | {"round": round_})
            if setting.counted and result["requests"] == 0:
                for generator in server.generators:
                    generator.child.end(signal.SIGINT, 10.0)
                raise Failure(f"server {server.name} got no request in slice {done}: {result}\n"
                              f"{server.generators[0].child.output()[-2000:]}{server.child.output()[-2000:]}")
    for server in servers:
        server.finish_load()


def interval(values):
    """95 % confidence interval of the median by order statistics; the extremes where values are too few."""
    ranked = sorted(values)
    rank = max(0, math.floor((len(ranked) - 1.96 * math.sqrt(len(ranked))) / 2))
    return ranked[rank], ranked[-1 - rank]
