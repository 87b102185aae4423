"""perf/servers/floor over real sockets: its bytes, its options, its exit statuses."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from programs import (PATIENCE, Server, connect, has_ipv6, receive_exactly, receive_to_end,  # noqa: E402
                      run)

REQUEST = b"GET / HTTP/1.1\r\nHost: floor\r\n\r\n"


def floor_server(*options, listen="127.0.0.1:0"):
    return Server("floor", "--listen", listen, *options)


def ask(floor):
    connection = connect(floor.address)
    connection.sendall(REQUEST)
    return connection


def expected(body_bytes, connection):
    """The whole response as a pattern; the date is fixed at start."""
    head = (rf"HTTP/1\.1 200 OK\r\nServer: floor\r\n"
            rf"Date: [A-Z][a-z]{{2}}, \d\d [A-Z][a-z]{{2}} \d{{4}} \d\d:\d\d:\d\d GMT\r\n"
            rf"Content-Type: text/plain\r\nContent-Length: {body_bytes}\r\nConnection: {connection}\r\n\r\n")
    return head.encode() + b"x{%d}" % body_bytes


class Responses(unittest.TestCase):
    def check_curl(self, body_bytes, keep_alive, *options):
        with floor_server("--body", str(body_bytes), "--keep-alive", keep_alive, *options) as floor:
            for _ in range(2):
                answer = subprocess.run(["curl", "-sSi", f"http://{floor.address}/"], check=True,
                                        timeout=PATIENCE, stdout=subprocess.PIPE).stdout
                connection = "keep-alive" if keep_alive == "on" else "close"
                self.assertRegex(answer, b"^" + expected(body_bytes, connection) + b"$")

    def test_curl_gets_the_exact_bytes(self):
        for body_bytes in (0, 1, 1024, 16384):
            for keep_alive in ("on", "off"):
                with self.subTest(body_bytes=body_bytes, keep_alive=keep_alive):
                    self.check_curl(body_bytes, keep_alive)

    def test_every_socket_option_gives_the_same_bytes(self):
        for options in (["--fin-with-data"], ["--defer-accept", "10"], ["--accept-first-read", "on"],
                        ["--defer-accept", "10", "--accept-first-read", "off"],
                        ["--defer-accept", "10", "--fin-with-data"]):
            with self.subTest(options=options):
                self.check_curl(1024, "off", *options)

    def test_keep_alive_answers_on_one_connection(self):
        for options in ([], ["--accept-first-read", "on"], ["--defer-accept", "10"]):
            with self.subTest(options=options), floor_server("--body", "100", *options) as floor:
                with connect(floor.address) as connection:
                    answers = set()
                    for _ in range(100):
                        connection.sendall(REQUEST)
                        head = b""
                        while not head.endswith(b"\r\n\r\n"):
                            head += receive_exactly(connection, 1)
                        answers.add(head + receive_exactly(connection, 100))
                self.assertEqual(len(answers), 1)

    def test_without_keep_alive_the_stream_ends(self):
        with floor_server("--keep-alive", "off") as floor, ask(floor) as connection:
            self.assertRegex(receive_to_end(connection), b"^" + expected(1024, "close") + b"$")

    def test_half_close_is_answered_then_closed(self):
        with floor_server("--body", "1") as floor, ask(floor) as connection:
            connection.shutdown(socket.SHUT_WR)
            self.assertRegex(receive_to_end(connection), b"^" + expected(1, "keep-alive") + b"$")

    def test_a_body_larger_than_the_socket_buffer_arrives_whole(self):
        body_bytes = 32 << 20
        with floor_server("--body", str(body_bytes), "--keep-alive", "off") as floor, ask(floor) as connection:
            received = 0
            while more := connection.recv(1 << 20):
                received += len(more)
            self.assertEqual(received - received % body_bytes, body_bytes)
            self.assertLess(received - body_bytes, 300)

    @staticmethod
    def affinities(floor):
        return [os.sched_getaffinity(int(thread)) for thread in os.listdir(f"/proc/{floor.pid}/task")]

    def test_several_loops_share_one_port(self):
        cpus = sorted(os.sched_getaffinity(0))
        with floor_server("--cpus", ",".join(map(str, cpus)), "--keep-alive", "off") as floor:
            deadline = time.monotonic() + PATIENCE
            while not all({cpu} in self.affinities(floor) for cpu in cpus):
                self.assertLess(time.monotonic(), deadline, "the loops are not pinned")
                time.sleep(0.001)
            for _ in range(50):
                with ask(floor) as connection:
                    self.assertTrue(receive_exactly(connection, 15).endswith(b"200 OK"))


class Life(unittest.TestCase):
    def test_prints_its_address(self):
        with floor_server() as floor:
            self.assertRegex(floor.address, r"\A127\.0\.0\.1:[1-9]\d*\Z")

    def test_serves_ipv6(self):
        if not has_ipv6():
            self.skipTest("this machine has no IPv6")
        with floor_server(listen="[::1]:0") as floor:
            self.assertRegex(floor.address, r"\A\[::1\]:[1-9]\d*\Z")
            with ask(floor) as connection:
                self.assertEqual(receive_exactly(connection, 15), b"HTTP/1.1 200 OK")

    def test_signals_end_it_with_status_0(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            with floor_server() as floor, ask(floor) as connection:
                receive_exactly(connection, 15)
                floor.signal(number)
                self.assertEqual(floor.wait(), (0, ""))

    def test_help(self):
        status, output, errors = run("floor", "--help")
        self.assertEqual((status, errors), (0, ""))
        for option in ("listen", "body", "keep-alive", "cpus", "defer-accept", "fin-with-data",
                       "accept-first-read", "backlog"):
            self.assertIn(f"--{option}", output)

    def test_bad_usage_is_status_2(self):
        here = ["--listen", "127.0.0.1:0"]
        for arguments in ([], ["--listen", "127.0.0.1"], ["--listen", ":1"], ["--listen", "127.0.0.1:65536"],
                          ["--listen", "no.such.name:0"], [*here, "--body", "-1"], [*here, "--body", "1k"],
                          [*here, "--keep-alive", "yes"], [*here, "--cpus", "5-3"], [*here, "--cpus", ""],
                          [*here, "--cpus", "0,"], [*here, "--cpus", "100000"], [*here, "--fin-with-data"],
                          [*here, "--accept-first-read", "1"], [*here, "--defer-accept", "x"],
                          [*here, "--backlog", "0"], [*here, "--no-such-option"], [*here, "argument"],
                          ["--listen"]):
            with self.subTest(arguments=arguments):
                status, output, errors = run("floor", *arguments)
                self.assertEqual((status, output), (2, ""))
                self.assertIn("floor: ", errors)

    def test_a_taken_address_is_status_1(self):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            status, _, errors = run("floor", "--listen", f"127.0.0.1:{taken.getsockname()[1]}")
        self.assertEqual(status, 1)
        self.assertIn("bind", errors)


if __name__ == "__main__":
    unittest.main()
