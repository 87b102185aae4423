"""Scale on paper where there are few cores: what a request costs in things that many cores would fight for."""

import json
import os
import signal
import subprocess
import tempfile

from perf.bench import servers, sharing, slices, topology, workloads
from perf.bench.children import Failure
from perf.bench.kernel import ProcessGone

TESTS = ("2", "1")
REQUESTS = 16
THREADS_COUNTED = 2
TIMEOUT_S = 150
OF_PROCESSES = ("nginx",)  # one worker is started, so that it gets all requests
OF_GO = ("fasthttp", "net-http")  # their runtime's threads are none that valgrind could follow
PER_REQUEST = 1  # less than that is done once a second, not once a request
# What it costs at least when a cache line goes from one core of a big server to another: 50 to 100 ns within a package, more
# between packages. A figure to reckon with, not measured here.
TRANSFER_NS = 100
THREADS = 96

ASSUMPTIONS = f"""\
How to read it. Each server has {THREADS_COUNTED} threads and is executed instruction by instruction, one request at a time, so nothing is
batched: a request costs at most so many system calls. Atomics: read-modify-writes in user space (glibc 2.36 makes two of them
for each system call that is a cancellation point, on a line of the thread's own: they cost little and do not limit).
Shared: those on cache lines that more than one thread changed in this way. Moved: how often a cache line that one thread had
stored to, plainly or not, was touched by the other, or one that both had loaded was stored to, so that it went from core to
core; by valgrind, over {sharing.REQUESTS} requests one after the other of which about every second is the other thread's (with many
threads nearly every one is: up to twice as much). Not for processes and Go. These are what cores queue for. If a line moves
once per request, {THREADS} threads can not do more than {1e9 / TRANSFER_NS:,.0f} requests/s ({TRANSFER_NS} ns for each move, an assumption); the column
"at most/s" tells this for the line that moves most, and where lines were not followed as if all shared atomics were on one.
Less than {PER_REQUEST} in a request is what happens once a second, such as a new date: then user space has no such limit and scales
with the cores, and what limits is the kernel, the memory and the load.
What this does not show: what the kernel stores, for itself or into a server's buffers; processes (nginx has one worker here;
what workers share is what they map together); plain stores of Go's. A runtime that works by the clock is counted too high
(Go: a request takes some 100 ms here, so its scheduler, timers and preemption signals come too often, and with them its
instructions, futexes and atomics): read Go's figures as upper bounds.
The kernel's limit, by published figures: on c5.metal none of the published servers got beyond 232,000 short connections/s or
1,120,000 keep-alive requests/s with up to 48 threads of a node (gnuplot/reference/c5.metal)."""


def count(kind, test, placement, bin_dir, root, index):
    """{instructions, atomics, system_calls, futexes} per request. Raises Failure."""
    # Not a measurement of time, so that two threads may sit on CPUs that the load would have, where there are only two.
    threads = 1 if kind.name in OF_PROCESSES else THREADS_COUNTED
    cpus = (placement.server + placement.load)[:threads]
    server = slices.Server(kind.name, servers.command(kind, test, cpus, "as-published", ("", "")), set(cpus), root, index,
                           servers.environment(cpus))
    try:
        server.wait_ready()
        leader = server.pids()
        traced = max(leader, key=lambda pid: len(os.listdir(f"/proc/{pid}/task")) * 10**7 + pid)  # nginx: its worker
        words = [str(bin_dir / "stepcount"), str(traced), str(server.port), str(REQUESTS)]
        done = subprocess.run(words + ([] if test.keep_alive else ["close"]), capture_output=True, text=True,
                              timeout=TIMEOUT_S, check=False)
        if done.returncode != 0:
            raise Failure(done.stderr.strip() or f"stepcount ended with status {done.returncode}")
        return json.loads(done.stdout)
    except (ValueError, OSError, ProcessGone) as error:
        raise Failure(str(error)) from error
    except subprocess.TimeoutExpired as error:
        raise Failure(f"not counted within {TIMEOUT_S} s") from error
    finally:
        server.child.send(signal.SIGKILL)
        server.child.end(signal.SIGKILL, 5.0)


def line(name, found):
    shared = found["shared_atomics"]
    moved = found.get("lines_moved")
    limiting = found.get("busiest_line_moved", shared)
    most = f"{1e9 / (limiting * TRANSFER_NS):12,.0f}" if limiting >= PER_REQUEST else f"{'no limit':>12}"
    return (f"  {name:10}  {found['instructions']:12.0f} {found['system_calls']:13.1f} {found['futexes']:9.2f} "
            f"{found['atomics']:9.1f} {shared:9.1f} {'-' if moved is None else f'{moved:.1f}':>9}  {most}")


def table(kinds, bin_dir, say):
    """The lines; failures are lines too. {test: {server: counts}} beside them."""
    placement = topology.place(topology.read())
    lines, everything, index = [], {}, 0
    traced = sharing.is_possible()
    if not traced:
        say("valgrind is not installed (scripts/setup --bench): cache lines are not followed")
    with tempfile.TemporaryDirectory(prefix="scale-") as root:
        for name in TESTS:
            test = workloads.ALL[name]
            lines += [f"test {name}: {test.title}; per request, in user space, each request on its own",
                      f"  {'':10}  instructions  system calls   futexes   atomics    shared     moved      at most/s"]
            for kind in kinds:
                if not kind.takes(test):
                    continue
                index += 1
                say(f"test {name}: {kind.name}")
                try:
                    everything.setdefault(name, {})[kind.name] = found = count(kind, test, placement, bin_dir, root, index)
                    if traced and kind.name not in OF_PROCESSES + OF_GO:
                        cpus = (placement.server + placement.load)[:THREADS_COUNTED]
                        found |= sharing.count(kind, test, cpus, root, index)
                    lines.append(line(kind.name, found))
                except Failure as failure:
                    lines.append(f"  {kind.name:10}  {failure}")
            lines.append("")
    return lines + [ASSUMPTIONS], everything
