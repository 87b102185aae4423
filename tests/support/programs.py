"""Starts the programs that a build has made, for tests in Python.

PERCORE_BIN_DIR names the folder that they are in.
"""

import os
import pathlib
import select
import signal
import socket
import subprocess
import time

PATIENCE = 30  # seconds that any single wait may take; only a hang reaches it


def binary(name):
    return pathlib.Path(os.environ["PERCORE_BIN_DIR"]) / name


def is_sanitized(name):
    content = binary(name).read_bytes()
    return b"__asan_init" in content or b"__tsan_init" in content


def run(name, *arguments):
    """A program that ends on its own: (exit status, standard output, standard error)."""
    done = subprocess.run([binary(name), *arguments], capture_output=True, text=True, timeout=PATIENCE)
    return done.returncode, done.stdout, done.stderr


class Server:
    """A program that prints "listening on ADDRESS" once it serves and obeys signals, and ends with one. For use in a with statement, which ends
    it with SIGTERM and sees that it ends well."""

    def __init__(self, name, *arguments):
        self._ended = None
        self._signalled = False
        self._process = subprocess.Popen([binary(name), *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            line = self._first_line()
            if not line.startswith("listening on "):
                raise AssertionError(f"{name} said {line!r} and {self._process.communicate(timeout=PATIENCE)[1]!r}")
        except BaseException:
            self._process.kill()
            self._process.communicate()
            raise
        self.address = line[len("listening on "):].rstrip("\n")
        self.pid = self._process.pid

    def _first_line(self):
        line = b""
        deadline = time.monotonic() + PATIENCE
        while not line.endswith(b"\n"):
            readable, _, _ = select.select([self._process.stdout], [], [], deadline - time.monotonic())
            byte = os.read(self._process.stdout.fileno(), 1) if readable else b""
            if not byte:
                break
            line += byte
        return line.decode()

    def line(self):
        """The next line on standard output."""
        return self._first_line()

    def error_line(self):
        """The next line on standard error; wait() gives what is left of it."""
        return self._process.stderr.readline().decode()

    def signal(self, number=signal.SIGTERM):
        self._signalled = self._signalled or number != signal.SIGHUP
        self._process.send_signal(number)

    def wait(self):
        """Waits for its end: (exit status, standard error)."""
        if not self._ended:
            _, errors = self._process.communicate(timeout=PATIENCE)
            self._ended = (self._process.returncode, errors.decode())
        return self._ended

    def running(self):
        return self._process.poll() is None

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        try:
            # A second signal would find the default action in force again when it comes just before the exit.
            if not self._signalled:
                self.signal()
            status, errors = self.wait()
            if kind is None and (status != 0 or errors):
                raise AssertionError(f"ended with status {status} and said {errors}")
        finally:
            if self.running():
                self._process.kill()
                self._process.communicate()


def connect(address, receive_buffer_bytes=None):
    """A blocking socket that is connected to an address as percore writes it."""
    if address.startswith("unix:"):
        family, where = socket.AF_UNIX, address[len("unix:"):]
        if where.startswith("@"):
            where = "\0" + where[1:]
    else:
        host, port = address.rsplit(":", 1)
        family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
        where = (host.strip("[]"), int(port))
    connection = socket.socket(family, socket.SOCK_STREAM)
    try:
        connection.settimeout(PATIENCE)
        if receive_buffer_bytes:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        connection.connect(where)
    except BaseException:
        connection.close()
        raise
    return connection


def receive_exactly(connection, count):
    data = b""
    while len(data) < count:
        part = connection.recv(count - len(data))
        if not part:
            raise AssertionError(f"the stream ended after {data[:200]!r}")
        data += part
    return data


def receive_to_end(connection):
    data = b""
    while part := connection.recv(65536):
        data += part
    return data


def has_ipv6():
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::1", 0))
        return True
    except OSError:
        return False
