"""What an idle plain connection costs the echo example in user-space memory."""

import ctypes
import os
import pathlib
import re
import resource
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from programs import Server, connect, is_sanitized, receive_exactly  # noqa: E402

MOST_BYTES = 1000    # for a connection, its coroutine frame included
CONNECTIONS = 10_000
FEWEST = 2_000       # below it a few pages that are not of connections would weigh too much
WARM_UP = 64

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
