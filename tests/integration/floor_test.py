"""perf/servers/floor over real sockets: its bytes, its options, its exit statuses."""

import os
import re
import select
import signal
import socket
import subprocess
import time
import unittest

FLOOR = os.path.join(os.environ["PERCORE_BIN_DIR"], "floor")
REQUEST = b"GET / HTTP/1.1\r\nHost: floor\r\n\r\n"
WAIT_S = 30


class Floor:
    """A running floor on a port of the kernel's choice."""

    def __init__(self, *options, listen="127.0.0.1:0"):
        self.process = subprocess.Popen([FLOOR, "--listen", listen, *options],
                                        stdout=subprocess.PIPE, text=True)
        if not select.select([self.process.stdout], [], [], WAIT_S)[0]:
            raise AssertionError("floor printed nothing")
        self.line = self.process.stdout.readline()
        self.port = int(self.line.rpartition(":")[2])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end(signal.SIGTERM)

    def end(self, number):
        self.process.send_signal(number)
        status = self.process.wait(WAIT_S)
        self.process.stdout.close()
        return status

    def connect(self):
        return socket.create_connection(("127.0.0.1", self.port), WAIT_S)


def read_exactly(connection, count):
    data = b""
    while len(data) < count:
        more = connection.recv(count - len(data))
        if not more:
            raise AssertionError(f"end of stream after {len(data)} of {count} bytes")
        data += more
    return data


def expected(body_bytes, connection):
    """The whole response as a pattern; the date is fixed at start."""
    head = (rf"HTTP/1\.1 200 OK\r\nServer: floor\r\n"
            rf"Date: [A-Z][a-z]{{2}}, \d\d [A-Z][a-z]{{2}} \d{{4}} \d\d:\d\d:\d\d GMT\r\n"
            rf"Content-Type: text/plain\r\nContent-Length: {body_bytes}\r\nConnection: {connection}\r\n\r\n")
    return head.encode() + b"x{%d}" % body_bytes


class Responses(unittest.TestCase):
    def check_curl(self, body_bytes, keep_alive, *options):
        with Floor("--body", str(body_bytes), "--keep-alive", keep_alive, *options) as floor:
            for _ in range(2):
                answer = subprocess.run(["curl", "-sSi", f"http://127.0.0.1:{floor.port}/"], check=True,
                                        timeout=WAIT_S, stdout=subprocess.PIPE).stdout
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
            with self.subTest(options=options), Floor("--body", "100", *options) as floor:
                with floor.connect() as connection:
                    answers = set()
                    for _ in range(100):
                        connection.sendall(REQUEST)
                        head = b""
                        while not head.endswith(b"\r\n\r\n"):
                            head += read_exactly(connection, 1)
                        answers.add(head + read_exactly(connection, 100))
                self.assertEqual(len(answers), 1)

    def test_without_keep_alive_the_stream_ends(self):
        with Floor("--keep-alive", "off") as floor, floor.connect() as connection:
            connection.sendall(REQUEST)
            answer = b""
            while more := connection.recv(65536):
                answer += more
            self.assertRegex(answer, b"^" + expected(1024, "close") + b"$")

    def test_half_close_is_answered_then_closed(self):
        with Floor("--body", "1") as floor, floor.connect() as connection:
            connection.sendall(REQUEST)
            connection.shutdown(socket.SHUT_WR)
            answer = b""
            while more := connection.recv(65536):
                answer += more
            self.assertRegex(answer, b"^" + expected(1, "keep-alive") + b"$")

    def test_a_body_larger_than_the_socket_buffer_arrives_whole(self):
        body_bytes = 32 << 20
        with Floor("--body", str(body_bytes), "--keep-alive", "off") as floor, floor.connect() as connection:
            connection.sendall(REQUEST)
            received = 0
            while more := connection.recv(1 << 20):
                received += len(more)
            self.assertEqual(received - received % body_bytes, body_bytes)
            self.assertLess(received - body_bytes, 300)

    @staticmethod
    def affinities(floor):
        return [os.sched_getaffinity(int(thread)) for thread in os.listdir(f"/proc/{floor.process.pid}/task")]

    def test_several_loops_share_one_port(self):
        cpus = sorted(os.sched_getaffinity(0))
        with Floor("--cpus", ",".join(map(str, cpus)), "--keep-alive", "off") as floor:
            deadline = time.monotonic() + WAIT_S
            while not all({cpu} in self.affinities(floor) for cpu in cpus):
                self.assertLess(time.monotonic(), deadline, "the loops are not pinned")
                time.sleep(0.001)
            for _ in range(50):
                with floor.connect() as connection:
                    connection.sendall(REQUEST)
                    self.assertTrue(read_exactly(connection, 15).endswith(b"200 OK"))


class Life(unittest.TestCase):
    def test_prints_its_address(self):
        with Floor() as floor:
            self.assertRegex(floor.line, r"^listening on 127\.0\.0\.1:[1-9]\d*\n$")

    def test_serves_ipv6(self):
        if not os.path.exists("/proc/net/if_inet6"):
            self.skipTest("this kernel has no IPv6")
        with Floor(listen="[::1]:0") as floor:
            self.assertRegex(floor.line, r"^listening on \[::1\]:[1-9]\d*\n$")
            with socket.create_connection(("::1", floor.port), WAIT_S) as connection:
                connection.sendall(REQUEST)
                self.assertEqual(read_exactly(connection, 15), b"HTTP/1.1 200 OK")

    def test_signals_end_it_with_status_0(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            floor = Floor()
            with floor.connect() as connection:
                connection.sendall(REQUEST)
                read_exactly(connection, 15)
                self.assertEqual(floor.end(number), 0)

    def test_help(self):
        done = subprocess.run([FLOOR, "--help"], stdout=subprocess.PIPE, text=True, timeout=WAIT_S)
        self.assertEqual(done.returncode, 0)
        for option in ("listen", "body", "keep-alive", "cpus", "defer-accept", "fin-with-data",
                       "accept-first-read", "backlog"):
            self.assertIn(f"--{option}", done.stdout)

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
                done = subprocess.run([FLOOR, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                      text=True, timeout=WAIT_S)
                self.assertEqual(done.returncode, 2)
                self.assertEqual(done.stdout, "")
                self.assertTrue(re.search("floor: ", done.stderr), done.stderr)

    def test_a_taken_address_is_status_1(self):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            done = subprocess.run([FLOOR, "--listen", f"127.0.0.1:{taken.getsockname()[1]}"],
                                  stderr=subprocess.PIPE, text=True, timeout=WAIT_S)
        self.assertEqual(done.returncode, 1)
        self.assertIn("bind", done.stderr)


if __name__ == "__main__":
    unittest.main()
