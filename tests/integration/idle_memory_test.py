"""What an idle connection costs in user-space memory: in plain the echo example, over TLS 1.3 percore-http."""

import ctypes
import os
import pathlib
import re
import resource
import socket
import ssl
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from programs import Server, connect, is_sanitized, receive_exactly  # noqa: E402

MOST_BYTES = 1000    # for a connection, its coroutine frame included
CONNECTIONS = 10_000
FEWEST = 2_000       # below it a few pages that are not of connections would weigh too much
WARM_UP = 64

# Over TLS: the slot and the session are 1.2 kB of it. OpenSSL 3.0 itself holds 13.5 kB in 37 blocks for one connection
# without record buffers, of which 7624 bytes are its SSL object, 1920 the states of AES-GCM in both directions and
# 928 the SSL_SESSION; the allocator's size classes bring the rest.
MOST_TLS_BYTES = 17_000
TLS_CONNECTIONS = 1000  # so much larger that fewer do

PR_SET_THP_DISABLE = 41  # prctl(2)


def resident_bytes(pid):
    """Counted page by page; the kernel's own counters (VmRSS in status) may be late by a few hundred kB (proc(5))."""
    rollup = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(re.search(r"^Rss: +(\d+) kB$", rollup, re.M).group(1)) * 1024


def allowed_connections():
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # the server inherits it
    return CONNECTIONS if hard == resource.RLIM_INFINITY else min(CONNECTIONS, hard - 200)


@unittest.skipIf(is_sanitized("echo"), "a sanitizer's own memory would be counted")
class IdleMemory(unittest.TestCase):
    def test_an_idle_connection_costs_at_most_one_kilobyte(self):
        count = allowed_connections()
        if count < FEWEST:
            self.skipTest(f"the descriptor limit allows only {count} connections")
        # One core and small pages, both of which the server inherits: slots fill pages without gaps, so that the last page
        # of a core is the only one that is not used in full. That is 0.4 bytes for each of 10,000 connections; many
        # cores, or huge pages where the system gives them unasked, would make it kilobytes or megabytes.
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        self.assertEqual(ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0), 0)
        with Server("echo", "127.0.0.1:0") as server:
            connections = []
            try:
                self.echo_on_new(server, connections, WARM_UP)
                before = resident_bytes(server.pid)
                self.echo_on_new(server, connections, count)
                each = (resident_bytes(server.pid) - before) / count
                print(f"{count} idle connections: {each:.0f} bytes each")
                self.assertLessEqual(each, MOST_BYTES)
                self.assertGreater(each, 100)  # else it was not their memory that was measured
                for connection in connections[::100]:  # they are still served
                    self.echo(connection)
                server.signal()
                server.wait()  # it closes first, so that it is not the clients' ports that rest in TIME_WAIT
            finally:
                for connection in connections:
                    connection.close()

    def test_an_idle_connection_over_tls(self):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        self.assertEqual(ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0), 0)
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        connections = []

        def visit(address, count):
            for _ in range(count):
                peer = context.wrap_socket(connect(address))
                peer.sendall(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
                answer = b""
                while len(answer) < 1024:  # the body alone
                    answer += peer.recv(4096)
                connections.append(socket.socket(fileno=peer.detach()))  # without the client's own SSL object

        with Server("percore-http", "--listen", "127.0.0.1:0", "--tls", "--unit", "thread", "--cores", "1") as server:
            try:
                visit(server.address, WARM_UP)
                before = resident_bytes(server.pid)
                visit(server.address, TLS_CONNECTIONS)
                each = (resident_bytes(server.pid) - before) / TLS_CONNECTIONS
                print(f"{TLS_CONNECTIONS} idle connections over TLS 1.3: {each:.0f} bytes each")
                self.assertLessEqual(each, MOST_TLS_BYTES)
                self.assertGreater(each, 5000)  # else it was not their memory that was measured
            finally:
                for connection in connections:
                    connection.close()

    @staticmethod
    def echo(connection):
        connection.sendall(b"hello")
        assert receive_exactly(connection, 5) == b"hello"

    def echo_on_new(self, server, connections, count):
        for _ in range(count):
            connections.append(connect(server.address))
            self.echo(connections[-1])


if __name__ == "__main__":
    unittest.main()
