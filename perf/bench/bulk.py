"""Bulk data for scripts/compare-relays, run as a program: a source that sends without end to whoever connects, an echo server
that keeps every connection, and a generator that receives and throws away. Neither end touches the bytes (sendfile from
memory, MSG_TRUNC), so that the CPU they need leaves the most to the relay between them.
"""

import argparse
import mmap
import os
import re
import select
import socket
import struct
import sys

CHUNK = 1 << 20
PAGE_CONNECTIONS = 4096


def serve(address, accepted, ready):
    """An epoll loop: `accepted(socket)` gives the events to wait for, `ready(socket, events)` False when it is over."""
    host, port = address.rsplit(":", 1)
    listener = socket.create_server((host, int(port)), backlog=PAGE_CONNECTIONS)
    listener.setblocking(False)
    print("listening on %s:%d" % listener.getsockname(), flush=True)
    poller, sockets = select.epoll(), {}
    poller.register(listener, select.EPOLLIN)
    while True:
        for descriptor, events in poller.poll():
            if descriptor == listener.fileno():
                try:
                    while True:
                        one = listener.accept()[0]
                        one.setblocking(False)
                        sockets[one.fileno()] = one
                        poller.register(one, accepted(one))
                except BlockingIOError:
                    continue
            try:
                go_on = ready(sockets[descriptor], events)
            except BlockingIOError:
                continue
            except OSError:
                go_on = False
            if not go_on:
                sockets.pop(descriptor).close()


def source(options):
    memory = os.memfd_create("bulk")
    os.ftruncate(memory, CHUNK)
    os.pwrite(memory, os.urandom(CHUNK), 0)

    def ready(one, _events):
        os.sendfile(one.fileno(), memory, 0, CHUNK)
        return True

    serve(options.listen, lambda one: select.EPOLLOUT, ready)


def echo(options):
    def ready(one, _events):
        data = one.recv(65536)
        if data:
            one.sendall(data)
        return bool(data)

    serve(options.listen, lambda one: select.EPOLLIN, ready)


class Sink:
    """One connection: takes whatever comes, or asks for one file again and again."""

    def __init__(self, options):
        self.socket = socket.create_connection(("127.0.0.1", options.port))
        self.request = f"GET {options.get} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode() if options.get else None
        self.response_bytes = self.left = None
        if self.request:
            self.socket.sendall(self.request)

    def measure_response(self):
        """Every response is as long as the first, whose head says its length."""
        head, end, _ = self.socket.recv(4096, socket.MSG_PEEK).partition(b"\r\n\r\n")
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        if not end or not length or b" 200 " not in head.split(b"\r\n")[0]:
            raise SystemExit(f"bulk: no response to use: {head[:200]!r}")
        self.response_bytes = self.left = len(head) + 4 + int(length[1])

    def receive(self, buffer):
        if self.request and self.response_bytes is None:
            self.measure_response()
        got = self.socket.recv_into(buffer, min(len(buffer), self.left or len(buffer)), socket.MSG_TRUNC)
        if got == 0:
            raise SystemExit("bulk: the server has closed")
        if self.request:
            self.left -= got
            if self.left == 0:
                self.left = self.response_bytes
                self.socket.sendall(self.request)
        return got


def sink(options):
    with open(options.counter, "r+b") as file:
        counter = mmap.mmap(file.fileno(), 8)
    sinks = {}
    poller = select.epoll()
    for _ in range(options.connections):
        one = Sink(options)
        sinks[one.socket.fileno()] = one
        poller.register(one.socket, select.EPOLLIN)
    buffer, total = bytearray(CHUNK), 0
    while True:
        for descriptor, _ in poller.poll():
            total += sinks[descriptor].receive(buffer)
        struct.pack_into("=Q", counter, 0, total // options.unit)


def main():
    parser = argparse.ArgumentParser(prog="bulk", description=__doc__)
    parser.add_argument("role", choices=("source", "echo", "sink"))
    parser.add_argument("--listen", default="127.0.0.1:0", help="of the source and the echo server")
    parser.add_argument("--port", type=int, help="the sink connects to 127.0.0.1 here")
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--get", metavar="PATH", help="ask for it by HTTP, with keep-alive, one after the other")
    parser.add_argument("--counter", help="a file to map; its first 8 bytes count what was received")
    parser.add_argument("--unit", type=int, default=1_000_000, help="bytes that count as one (default 1000000)")
    options = parser.parse_args()
    {"source": source, "echo": echo, "sink": sink}[options.role](options)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(0)
