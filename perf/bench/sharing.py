"""How often cache lines go from one thread's core to another's, from a trace of every load and store.

Valgrind's lackey prints each access of user space, and valgrind's scheduler, which runs one thread at a time, says which
thread goes on: together they tell who touched what, in which order. Slow, but nothing in it depends on time."""

import os
import re
import select
import shutil
import socket
import threading
import time

from perf.bench import servers, slices
from perf.bench.children import Failure

CACHE_LINE_BYTES = 64
CONNECTIONS = 16   # half of them made on each of two CPUs: whatever chooses the thread, both get some
START_TIMEOUT_S = 120.0
REQUESTS = 2 * CONNECTIONS
QUIET_S = 0.3      # without an access the server is at rest
QUIET_LIMIT_S = 20.0
ANSWER_TIMEOUT_S = 30.0
PIPE_READ_BYTES = 1 << 20
PREFIX = "valgrind --tool=lackey --trace-mem=yes --trace-sched=yes --log-file={log} "
GOES_ON = re.compile(rb"SCHED\[(\d+)\]:  acquired lock")
ACCESS = re.compile(rb"^ ([LSM]) ([0-9a-f]+),(\d+)$", re.ASCII)


class Lines:
    """Cache lines as if each thread had a core with a cache of its own that keeps everything (MESI in short): a load needs
    the line's last state, a store needs it alone. What happened before the trace counts for nothing."""

    def __init__(self):
        self.thread = 0    # that runs now
        self.threads = set()
        self.holders = {}  # line -> threads that have its last state
        self.stored = set()
        self.moves = {}    # line -> how often it had to come from another thread, or be taken from one

    def follow(self, chunk):
        """Only who runs: for what is not counted."""
        at = chunk.rfind(b"acquired lock")
        if at >= 0 and (found := GOES_ON.search(chunk, chunk.rfind(b"\n", 0, at) + 1)):
            self.thread = int(found[1])

    def count(self, chunk):
        """Whole lines of the trace."""
        for line in chunk.split(b"\n"):
            if line[:1] == b"I":  # an instruction fetched; most lines are
                continue
            if found := ACCESS.match(line):
                self.threads.add(self.thread)
                first = int(found[2], 16) // CACHE_LINE_BYTES
                last = (int(found[2], 16) + int(found[3]) - 1) // CACHE_LINE_BYTES
                for at in range(first, last + 1):
                    self.touch(at, found[1] != b"L")
            elif found := GOES_ON.search(line):
                self.thread = int(found[1])

    def touch(self, at, stores):
        holders = self.holders.setdefault(at, {self.thread})
        missed = self.thread not in holders
        if (missed and at in self.stored) or (stores and len(holders) > (0 if missed else 1)):
            self.moves[at] = self.moves.get(at, 0) + 1
        if stores:
            self.stored.add(at)
            self.holders[at] = {self.thread}
        else:
            holders.add(self.thread)


class Reader(threading.Thread):
    """Takes the trace from a named pipe, all the time, since the server waits for that."""

    def __init__(self, path):
        super().__init__(daemon=True)
        os.mkfifo(path)
        self.pipe = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self.lines = Lines()
        self.counting = self.ended = False
        self.last_s = time.monotonic()

    def run(self):
        rest = b""
        while not self.ended:
            select.select([self.pipe], [], [], 0.05)
            try:
                chunk = os.read(self.pipe, PIPE_READ_BYTES)
            except BlockingIOError:
                chunk = b""
            if not chunk:  # nothing now, or nobody has opened the other end yet
                time.sleep(0.005)
                continue
            whole, _, rest = (rest + chunk).rpartition(b"\n")
            (self.lines.count if self.counting else self.lines.follow)(whole)
            self.last_s = time.monotonic()

    def wait_quiet(self):
        deadline = time.monotonic() + QUIET_LIMIT_S
        while time.monotonic() < deadline:
            if time.monotonic() - self.last_s > QUIET_S:
                return
            time.sleep(0.02)
        raise Failure("the server does not come to rest")

    def end(self):
        self.ended = True
        self.join()
        os.close(self.pipe)


class Client:
    """Connections made in turn on each of some CPUs."""

    def __init__(self, port, keep_alive, cpus):
        self.port, self.keep_alive, self.cpus = port, keep_alive, cpus
        self.request = (f"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: {'keep-alive' if keep_alive else 'close'}\r\n\r\n"
                        ).encode()
        self.open = []

    def connect(self, number):
        os.sched_setaffinity(0, {self.cpus[number % len(self.cpus)]})
        return socket.create_connection(("127.0.0.1", self.port), ANSWER_TIMEOUT_S)

    def round(self):
        """A request on each connection, one after the other."""
        if self.keep_alive and not self.open:
            self.open = [self.connect(number) for number in range(CONNECTIONS)]
        for number in range(CONNECTIONS):
            connection = self.open[number] if self.keep_alive else self.connect(number)
            connection.sendall(self.request)
            data = b""
            while not (found := re.search(rb"(?i)\r\ncontent-length: (\d+).*?\r\n\r\n", data, re.DOTALL)) \
                    or len(data) < found.end() + int(found[1]):
                part = connection.recv(65536)
                if not part:
                    raise Failure("the server closed a connection without an answer")
                data += part
            if not self.keep_alive:
                connection.close()

    def end(self):
        for connection in self.open:
            connection.close()


def is_possible():
    return shutil.which("valgrind") is not None


def count(kind, test, cpus, root, index):
    """{lines_moved, busiest_line_moved} per request of a server with a thread on each CPU. Raises Failure."""
    before = os.sched_getaffinity(0)
    log = os.path.join(root, f"trace{index}")
    reader = Reader(log)
    reader.start()
    server = client = None
    try:
        command = PREFIX.replace("{log}", log) + servers.command(kind, test, cpus, "as-published", ("", ""))
        server = slices.Server(kind.name, command, set(cpus), root, f"traced{index}", servers.environment(cpus))
        server.wait_ready(START_TIMEOUT_S)
        client = Client(server.port, test.keep_alive, cpus)
        client.round()
        client.round()
        reader.wait_quiet()
        reader.counting = True
        client.round()
        client.round()
        reader.wait_quiet()
        reader.counting = False
        if len(reader.lines.threads) < 2:
            raise Failure("one thread got all requests")
        moves = reader.lines.moves.values()
        return {"lines_moved": sum(moves) / REQUESTS, "busiest_line_moved": max(moves, default=0) / REQUESTS}
    except OSError as error:
        raise Failure(str(error)) from error
    finally:
        os.sched_setaffinity(0, before)
        if client:
            client.end()
        if server:
            server.child.end(9, 5.0)
        reader.end()
