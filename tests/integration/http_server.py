"""A running percore-http and a raw HTTP client for the tests of it."""

import os
import re
import select
import signal
import socket
import subprocess
import time

PROGRAM = os.path.join(os.environ["PERCORE_BIN_DIR"], "percore-http")
WAIT_S = 60  # for anything that must happen; never how long it may take
GET = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"


def run(*options):
    """Runs percore-http to its end."""
    return subprocess.run([PROGRAM, *options], timeout=WAIT_S, text=True, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)


class Server:
    """percore-http on ports of the kernel's choice. Ends with the `with` block."""

    def __init__(self, *options, listen=("127.0.0.1:0",), environment=None):
        where = [word for address in listen for word in ("--listen", address)]
        self.process = subprocess.Popen([PROGRAM, *where, *options], text=True, stdin=subprocess.DEVNULL,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                        env={**os.environ, **(environment or {})})
        self.addresses = []
        ready = select.select([self.process.stdout], [], [], WAIT_S)[0]  # for the lines, which come together
        for _ in listen:
            line = self.process.stdout.readline() if ready else "nothing"
            if not line.startswith("listening on "):
                self.process.kill()
                raise AssertionError(f"{line!r}, {self.process.communicate(timeout=WAIT_S)}")
            self.addresses.append(line.split()[-1])
        self.url = f"http://{self.addresses[0]}/"
        self.output = self.errors = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.returncode is None:
            self.end()

    def send_signal(self, number):
        self.process.send_signal(number)

    def end(self, number=signal.SIGTERM):
        """Sends a signal (or none) and returns the exit status."""
        if number is not None:
            self.send_signal(number)
        try:
            self.output, self.errors = self.process.communicate(timeout=WAIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            raise
        return self.process.returncode

    def cores(self):
        """After end(): (accepted, requests) of each core."""
        found = re.findall(r"^core \d+ cpu \d+ accepted (\d+) requests (\d+)$", self.output, re.M)
        return [(int(accepted), int(requests)) for accepted, requests in found]

    def requests(self):
        return sum(requests for _, requests in self.cores())

    def counter(self, name):
        """After end(), with --stats."""
        return int(re.search(rf"^{name} (\d+)$", self.output, re.M).group(1))

    def descriptors(self):
        # Of all threads: each core may have a table of its own.
        threads = os.listdir(f"/proc/{self.process.pid}/task")
        return sum(len(os.listdir(f"/proc/{self.process.pid}/task/{thread}/fd")) for thread in threads)

    def client(self, address=None, receive_buffer_bytes=None):
        return Client(address or self.addresses[0], receive_buffer_bytes)


class Client:
    """One connection. Responses are parsed strictly."""

    def __init__(self, address, receive_buffer_bytes=None):
        if address.startswith("unix:"):
            self.socket = socket.socket(socket.AF_UNIX)
            target = re.sub("^@", "\0", address[5:])
        else:
            host, _, port = address.rpartition(":")
            self.socket = socket.socket(socket.AF_INET6 if host.startswith("[") else socket.AF_INET)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            target = (host.strip("[]"), int(port))
        if receive_buffer_bytes is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        self.socket.settimeout(WAIT_S)
        self.pending = b""
        try:
            self.socket.connect(target)
        except OSError:
            self.socket.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, data):
        self.socket.sendall(data)

    def receive(self):
        data = self.socket.recv(65536)
        self.pending += data
        return bool(data)

    def at_end(self):
        """Whether the server has ended the stream, and nothing but what was read came before."""
        return not self.pending and self.socket.recv(1) == b""

    def response(self, head_only=False):
        """(status, fields, body) of the next response."""
        while b"\r\n\r\n" not in self.pending:
            if not self.receive():
                raise AssertionError(f"end of stream in a head: {self.pending!r}")
        head, _, self.pending = self.pending.partition(b"\r\n\r\n")
        lines = head.decode("ascii").split("\r\n")
        status = re.fullmatch(r"HTTP/1\.1 (\d{3}) [ -~]+", lines[0])
        if not status:
            raise AssertionError(f"status line {lines[0]!r}")
        fields = {}
        for line in lines[1:]:
            name, _, value = line.partition(": ")
            if name in fields:
                raise AssertionError(f"{name} twice")
            fields[name] = value
        length = 0 if head_only else int(fields.get("Content-Length", 0))
        while len(self.pending) < length:
            if not self.receive():
                raise AssertionError(f"end of stream after {len(self.pending)} of {length} bytes of a body")
        body, self.pending = self.pending[:length], self.pending[length:]
        return int(status.group(1)), fields, body

    def ask(self, request=GET, head_only=False):
        self.send(request)
        return self.response(head_only)


def wait_until(condition, what):
    end = time.monotonic() + WAIT_S
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"waited in vain until {what}")
        time.sleep(0.005)
