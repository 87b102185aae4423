"""Which system calls the echo example makes once it has warmed up, as strace sees them."""

import collections
import pathlib
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from programs import PATIENCE, Server, connect, is_sanitized, receive_exactly, receive_to_end  # noqa: E402


class NotPermitted(Exception):
    pass


def threads_that_serve(pid):
    """All but the one that watches for stalls, which is there in debug builds."""
    tasks = pathlib.Path(f"/proc/{pid}/task").iterdir()
    return [task.name for task in tasks if not (task / "comm").read_text().strip().endswith("/watch")]


class Trace:
    """strace, attached to the threads of a process."""

    def __init__(self, pid, *options):
        self._output = tempfile.NamedTemporaryFile(prefix="percore-")
        threads = threads_that_serve(pid)
        which = [word for thread in threads for word in ("-p", thread)]
        self._strace = subprocess.Popen(
            ["strace", *which, "-o", self._output.name, *options], stderr=subprocess.PIPE)
        said = b""
        deadline = time.monotonic() + PATIENCE
        while said.count(b" attached") < len(threads):
            ready, _, _ = select.select([self._strace.stderr], [], [], max(0, deadline - time.monotonic()))
            part = self._strace.stderr.read1() if ready else b""
            said += part
            if not part:
                self._strace.kill()
                self._strace.communicate()
                if b"ermitted" in said:
                    raise NotPermitted(said.decode().strip())
                raise AssertionError(f"strace said {said.decode()!r}")

    def end(self):
        self._strace.send_signal(signal.SIGINT)
        self._strace.communicate(timeout=PATIENCE)
        with self._output:
            return self._output.read().decode()


def counts(summary):
    """The table of strace -c as {name: calls}."""
    calls = collections.Counter()
    for line in summary.splitlines():
        if match := re.match(r"\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+)\s+(?:\d+\s+)?([a-z]\w*)$", line):
            if match[2] != "total":
                calls[match[2]] = int(match[1])
    return calls


def exchange(peer, text, times):
    for _ in range(times):
        peer.sendall(text)
        if receive_exactly(peer, len(text)) != text:
            raise AssertionError("an answer differs")


def short_connections(address, count):
    for _ in range(count):
        with connect(address) as peer:
            exchange(peer, b"hello", 1)
            peer.shutdown(socket.SHUT_WR)
            receive_to_end(peer)


@unittest.skipUnless(shutil.which("strace"), "strace is not installed")
class SteadyState(unittest.TestCase):
    def trace(self, server, *options):
        try:
            return Trace(server.pid, *options)
        except NotPermitted as reason:
            print(f"not tested, tracing is not permitted here: {reason}", flush=True)
            self.skipTest(str(reason))

    def test_keep_alive(self):
        exchanges, connections = 10_000, 10
        with Server("echo", "127.0.0.1:0") as server:
            peers = [connect(server.address) for _ in range(connections)]
            for peer in peers:
                self.addCleanup(peer.close)
                exchange(peer, b"warm", 100)
            trace = self.trace(server, "-c")
            for peer in peers:
                exchange(peer, b"hello", exchanges // connections)
            calls = counts(trace.end())
        print(dict(calls), flush=True)
        waits = calls["epoll_wait"] + calls["epoll_pwait"] + calls["epoll_pwait2"]
        # Two calls for each exchange and, since the client asks one question at a time, one wait. strace interrupts a
        # few calls when it comes and goes.
        few = 2 * connections + 20
        for what, count in (("recvfrom", calls["recvfrom"]), ("sendto", calls["sendto"]), ("wait", waits)):
            self.assertGreaterEqual(count, exchanges - few, what)
            self.assertLessEqual(count, exchanges + few, what)
        self.assertEqual(calls["epoll_ctl"], 0)
        if not is_sanitized("echo"):  # a sanitizer makes calls of its own
            self.assertEqual(calls["futex"], 0)
            self.assertLessEqual(calls.total() - calls["recvfrom"] - calls["sendto"] - waits, few)

    def test_short_connections(self):
        connections = 500
        with Server("echo", "127.0.0.1:0") as server:
            short_connections(server.address, 100)
            trace = self.trace(server, "-e", "trace=epoll_ctl,futex,accept4,setsockopt,fcntl,ioctl,close")
            short_connections(server.address, connections)
            calls = collections.Counter()
            # "PID accept4(...) = 8", a call that another thread's line cut in two counted at its first part
            for line in trace.end().splitlines():
                if match := re.match(r"\d+ +(\w+)\((.*)", line):
                    operation = re.search(r"EPOLL_CTL_\w+", match[2])
                    calls[operation[0] if operation else match[1]] += 1
        print(dict(calls), flush=True)
        self.assertGreaterEqual(calls["accept4"], connections)
        self.assertLessEqual(calls["accept4"], 2 * connections + 10)  # at most one that finds nothing for each
        self.assertLessEqual(calls["EPOLL_CTL_ADD"], connections + 5)
        for never in ("EPOLL_CTL_MOD", "EPOLL_CTL_DEL", "setsockopt", "fcntl", "ioctl"):
            self.assertEqual(calls[never], 0, never)
        if not is_sanitized("echo"):
            self.assertEqual(calls["futex"], 0)


if __name__ == "__main__":
    unittest.main()
