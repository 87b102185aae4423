"""The programs of tests/examples, as a user runs them."""

import pathlib
import signal
import socket
import sys
import threading
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from programs import PATIENCE, Server, connect, receive_exactly, receive_to_end, run  # noqa: E402

ANYWHERE = "127.0.0.1:0"


def lines_of(connection):
    """The lines that come, one at a time."""
    pending = b""
    while True:
        while b"\n" not in pending:
            part = connection.recv(65536)
            if not part:
                return
            pending += part
        line, pending = pending.split(b"\n", 1)
        yield line.decode()


class EveryExample(unittest.TestCase):
    examples = ("echo", "chat", "delimiter")

    def test_help(self):
        for name in self.examples:
            with self.subTest(name):
                status, output, errors = run(name, "--help")
                self.assertEqual((status, errors), (0, ""))
                self.assertTrue(output.startswith(f"usage: {name}"), output)

    def test_bad_usage(self):
        for name in self.examples:
            for arguments in (["--nonsense"], [ANYWHERE, "too much"], ["not an address"], ["127.0.0.1:70000"]):
                with self.subTest(f"{name} {arguments}"):
                    status, output, errors = run(name, *arguments)
                    self.assertEqual((status, output), (2, ""))
                    self.assertNotEqual(errors, "")

    def test_address_in_use(self):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            where = f"127.0.0.1:{taken.getsockname()[1]}"
            for name in self.examples:
                with self.subTest(name):
                    status, output, errors = run(name, where)
                    self.assertEqual((status, output), (1, ""))
                    self.assertIn(where, errors)

    def test_signals_end_it(self):
        for name in self.examples:
            for number in (signal.SIGINT, signal.SIGTERM):
                with self.subTest(f"{name} {number}"), Server(name, ANYWHERE) as server:
                    with connect(server.address) as idle:
                        server.signal(number)
                        receive_to_end(idle)
                    self.assertEqual(server.wait(), (0, ""))

    def test_two_signals_end_it_whoever_is_connected(self):
        with Server("echo", ANYWHERE) as server, connect(server.address) as deaf:
            # More than all buffers hold: the handler stays in its write.
            deaf.setblocking(False)
            sent_last = time.monotonic()
            while time.monotonic() - sent_last < 0.3:
                try:
                    deaf.send(bytes(65536))
                    sent_last = time.monotonic()
                except BlockingIOError:
                    time.sleep(0.01)  # nothing tells that it will never take more
            server.signal()
            # A drain waits for the writer: only a second signal can end it.
            deadline = time.monotonic() + PATIENCE
            while time.monotonic() < deadline:
                try:
                    with connect(server.address):
                        pass
                except ConnectionError:
                    break
            self.assertTrue(server.running())
            server.signal()
            self.assertEqual(server.wait(), (0, ""))


class Echo(unittest.TestCase):
    def test_echoes(self):
        with Server("echo", ANYWHERE) as server, connect(server.address) as peer:
            for text in (b"x", b"hello\r\n", bytes(range(256)) * 400):
                peer.sendall(text)
                self.assertEqual(receive_exactly(peer, len(text)), text)
            peer.shutdown(socket.SHUT_WR)
            self.assertEqual(receive_to_end(peer), b"")


class Delimiter(unittest.TestCase):
    def test_answers_in_capitals(self):
        with Server("delimiter", ANYWHERE) as server, connect(server.address) as peer:
            peer.sendall(b"hello\r\n")
            self.assertEqual(receive_exactly(peer, 7), b"HELLO\r\n")
            peer.sendall(b"one\r\ntwo\r\n\r\nthr")
            self.assertEqual(receive_exactly(peer, 12), b"ONE\r\nTWO\r\n\r\n")
            for byte in b"ee\r\n":
                peer.sendall(bytes([byte]))
            self.assertEqual(receive_exactly(peer, 7), b"THREE\r\n")
            peer.sendall(b"no end")
            peer.shutdown(socket.SHUT_WR)
            self.assertEqual(receive_to_end(peer), b"")

    def test_slow_client(self):
        with Server("delimiter", "--timeout", "100", ANYWHERE) as server:
            with connect(server.address) as silent:
                self.assertEqual(receive_to_end(silent), b"error: too slow\r\n")
            with connect(server.address) as unfinished:
                unfinished.sendall(b"never finished")
                self.assertEqual(receive_to_end(unfinished), b"error: too slow\r\n")

    def test_long_request(self):
        with Server("delimiter", "--limit", "10", ANYWHERE) as server:
            with connect(server.address) as fits:
                fits.sendall(b"12345678\r\n")
                self.assertEqual(receive_exactly(fits, 10), b"12345678\r\n")
            with connect(server.address) as too_long:
                too_long.sendall(b"1234567890")
                self.assertEqual(receive_to_end(too_long), b"error: too long\r\n")

    def test_shutdown_is_told(self):
        with Server("delimiter", ANYWHERE) as server, connect(server.address) as peer:
            peer.sendall(b"x\r\n")
            self.assertEqual(receive_exactly(peer, 3), b"X\r\n")
            server.signal()
            self.assertEqual(receive_to_end(peer), b"error: shutting down\r\n")

    def test_bad_numbers(self):
        for arguments in (["--timeout"], ["--timeout", "0"], ["--limit", "x"], ["--limit", "-1", ANYWHERE]):
            with self.subTest(arguments):
                self.assertEqual(run("delimiter", *arguments)[0], 2)


class Chat(unittest.TestCase):
    def join(self, server, name, **options):
        """A member that has joined, and the lines that come to it from then on."""
        peer = connect(server.address, **options)
        self.addCleanup(peer.close)
        lines = lines_of(peer)
        self.assertEqual(next(lines), "your name?")
        peer.sendall(name.encode() + b"\n")
        self.assertEqual(next(lines), f"* {name} joined")
        return peer, lines

    def test_everybody_hears_everybody(self):
        with Server("chat", ANYWHERE) as server:
            ann, to_ann = self.join(server, "ann")
            bob, to_bob = self.join(server, "bob")
            self.assertEqual(next(to_ann), "* bob joined")
            ann.sendall(b"hello bob\r\n")
            for lines in (to_ann, to_bob):
                self.assertEqual(next(lines), "ann: hello bob")
            bob.sendall(b"hello ann\nhow are you?\n")
            for lines in (to_ann, to_bob):
                self.assertEqual(next(lines), "bob: hello ann")
                self.assertEqual(next(lines), "bob: how are you?")
            bob.close()
            self.assertEqual(next(to_ann), "* bob left")

    def test_without_a_name(self):
        with Server("chat", ANYWHERE) as server, connect(server.address) as nobody:
            nobody.sendall(b"\n")
            self.assertEqual(receive_to_end(nobody), b"your name?\n")

    def test_a_crowd_on_all_cores(self):
        members, each = 40, 10
        with Server("chat", ANYWHERE) as server:
            crowd = []
            for number in range(members):
                crowd.append(self.join(server, f"m{number}"))
                for _, lines in crowd[:-1]:
                    self.assertEqual(next(lines), f"* m{number} joined")
            for peer, _ in crowd:
                peer.sendall(b"".join(b"line %d\n" % i for i in range(each)))
            for _, lines in crowd:
                heard = {f"m{number}": 0 for number in range(members)}
                for _ in range(members * each):
                    name, text = next(lines).split(": ")
                    self.assertEqual(text, f"line {heard[name]}")  # each speaker's lines in order
                    heard[name] += 1
                self.assertEqual(set(heard.values()), {each})

    def test_a_slow_member_is_dropped_and_the_others_go_on(self):
        with Server("chat", ANYWHERE) as server:
            slow, _ = self.join(server, "slow", receive_buffer_bytes=4096)
            ann, to_ann = self.join(server, "ann")
            left = threading.Event()

            def listen():
                for line in to_ann:
                    if line == "* slow left":
                        left.set()
                        return

            listener = threading.Thread(target=listen)
            listener.start()
            # The kernel keeps some megabytes for a peer that does not read before anything stays unsent.
            deadline = time.monotonic() + PATIENCE
            while not left.is_set() and time.monotonic() < deadline:
                ann.sendall(b"x" * 1000 + b"\n")
            listener.join()
            self.assertTrue(left.is_set())
            with self.assertRaises(ConnectionResetError):
                receive_to_end(slow)


if __name__ == "__main__":
    unittest.main()
