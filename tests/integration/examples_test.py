"""The programs of tests/examples, as a user runs them."""

import pathlib
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from certificates import Authority  # noqa: E402
from programs import PATIENCE, Server, connect, receive_exactly, receive_to_end, run  # noqa: E402

ANYWHERE = "127.0.0.1:0"

authority = None
localhost = ()  # arguments for the certificate and the key


def setUpModule():
    global authority, localhost
    authority = Authority()
    unittest.addModuleCleanup(authority.__exit__)
    certificate, key = authority.issue("localhost", "DNS:localhost,IP:127.0.0.1")
    localhost = ("--cert", certificate, "--key", key)


def needed(name):
    """The arguments that an example cannot do without."""
    return {"starttls": localhost, "mtls_echo": (*localhost, "--authorities", authority.root)}.get(name, ())


def client_context(identity=None):
    context = ssl.create_default_context(cafile=authority.root)
    if identity:
        context.load_cert_chain(*identity)
    return context


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
    examples = ("echo", "chat", "delimiter", "starttls", "mtls_echo")

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
                    status, output, errors = run(name, *needed(name), *arguments)
                    self.assertEqual((status, output), (2, ""))
                    self.assertNotEqual(errors, "")

    def test_address_in_use(self):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            where = f"127.0.0.1:{taken.getsockname()[1]}"
            for name in self.examples:
                with self.subTest(name):
                    status, output, errors = run(name, *needed(name), where)
                    self.assertEqual((status, output), (1, ""))
                    self.assertIn(where, errors)

    def test_signals_end_it(self):
        for name in self.examples:
            for number in (signal.SIGINT, signal.SIGTERM):
                with self.subTest(f"{name} {number}"), Server(name, *needed(name), ANYWHERE) as server:
                    with connect(server.address) as idle:
                        server.signal(number)
                        receive_to_end(idle)
                    self.assertEqual(server.wait(), (0, ""))

    def test_what_is_needed(self):
        for name in ("starttls", "mtls_echo"):
            arguments = needed(name)
            for left_out in range(0, len(arguments), 2):
                status, output, errors = run(name, *arguments[:left_out], *arguments[left_out + 2:], ANYWHERE)
                self.assertEqual((status, output), (2, ""))
                self.assertIn("needed", errors)
            status, output, errors = run(name, *arguments, "--key", authority.root, ANYWHERE)
            self.assertEqual((status, output), (1, ""))
            self.assertIn(str(authority.root), errors)

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


class StartTls(unittest.TestCase):
    def command(self, peer, text, answer):
        peer.sendall(text.encode() + b"\r\n")
        self.assertEqual(receive_exactly(peer, len(answer) + 2), answer.encode() + b"\r\n")

    def upgraded(self, server, context=None):
        peer = connect(server.address)
        self.addCleanup(peer.close)
        self.assertEqual(receive_exactly(peer, 11), b"220 ready\r\n")
        self.command(peer, "hello", "plain: hello")
        self.command(peer, "STARTTLS", "220 go ahead")
        secure = (context or client_context()).wrap_socket(peer, server_hostname="localhost")
        self.addCleanup(secure.close)
        return secure

    def test_upgrade(self):
        with Server("starttls", *localhost, ANYWHERE) as server:
            secure = self.upgraded(server)
            self.command(secure, "password", "secret: password")
            self.command(secure, "STARTTLS", "secret: STARTTLS")
            secure.sendall(b"QUIT\r\n")
            self.assertEqual(receive_to_end(secure), b"221 bye\r\n")  # with close_notify: else it would raise

    def test_injected_plaintext_is_refused(self):
        with Server("starttls", *localhost, ANYWHERE) as server, connect(server.address) as peer:
            peer.sendall(b"STARTTLS\r\ninjected\r\n")
            self.assertEqual(receive_to_end(peer), b"220 ready\r\n220 go ahead\r\n")

    @unittest.skipUnless(shutil.which("openssl"), "openssl is not installed")
    def test_s_client(self):
        with Server("starttls", *localhost, ANYWHERE) as server:
            done = subprocess.run(
                ["openssl", "s_client", "-starttls", "smtp", "-connect", server.address, "-CAfile", authority.root,
                 "-verify_return_error", "-quiet", "-crlf"],
                input=b"from s_client\nQUIT\n", capture_output=True, timeout=PATIENCE)
            self.assertIn(b"secret: from s_client\r\n221 bye\r\n", done.stdout)

    def test_sighup_reloads_the_certificate(self):
        certificate, key = authority.issue("changing", "DNS:localhost")
        first = certificate.read_bytes()
        with Server("starttls", "--cert", certificate, "--key", key, ANYWHERE) as server:
            before = self.upgraded(server)
            authority.issue("changing", "DNS:localhost")
            self.assertNotEqual(certificate.read_bytes(), first)
            server.signal(signal.SIGHUP)
            deadline = time.monotonic() + PATIENCE
            new = ssl.PEM_cert_to_DER_cert(certificate.read_text())
            while self.upgraded(server).getpeercert(binary_form=True) != new:
                self.assertLess(time.monotonic(), deadline)
            self.command(before, "still here", "secret: still here")
            # What is broken is told and changes nothing.
            certificate.write_text("broken")
            server.signal(signal.SIGHUP)
            self.assertRegex(server.error_line(), f"the old certificate stays: .*{re.escape(str(certificate))}")
            self.assertEqual(self.upgraded(server).getpeercert(binary_form=True), new)


class MutualTls(unittest.TestCase):
    def test_greets_by_common_name(self):
        with Server("mtls_echo", *needed("mtls_echo"), ANYWHERE) as server:
            for name in ("alice", "bob"):
                with connect(server.address) as peer, client_context(authority.issue(name)).wrap_socket(
                        peer, server_hostname="localhost") as secure:
                    self.assertEqual(receive_exactly(secure, len(name) + 8), f"hello, {name}\n".encode())
                    secure.sendall(bytes(range(256)) * 100)
                    self.assertEqual(receive_exactly(secure, 25600), bytes(range(256)) * 100)
                    secure.unwrap()  # close_notify both ways

    def test_others_are_not_let_in(self):
        with Authority() as others:
            stranger = others.issue("alice")
            with Server("mtls_echo", *needed("mtls_echo"), ANYWHERE) as server:
                for identity in (None, stranger):
                    with self.subTest(identity), connect(server.address) as peer:
                        with self.assertRaises(ssl.SSLError):
                            secure = client_context(identity).wrap_socket(peer, server_hostname="localhost")
                            with secure:
                                secure.recv(1)


if __name__ == "__main__":
    unittest.main()
