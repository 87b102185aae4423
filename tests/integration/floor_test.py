"""perf/servers/floor over real sockets: its bytes, its options, its exit statuses."""

import os
import pathlib
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
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
            rf"Connection: {connection}\r\nContent-Type: text/plain\r\nContent-Length: {body_bytes}\r\n\r\n")
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


class TlsClient:
    """A connection whose segments the test makes: OpenSSL works on memory."""

    def __init__(self, floor, session=None, version=None):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if version:
            context.minimum_version = context.maximum_version = version
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, session=session)
        self.socket = connect(floor.address)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def take(self):
        """What OpenSSL wants to send."""
        return self.outgoing.read()

    def complete(self, call, hold=False):
        """Runs a call to its end; what it wants to send is sent unless it is held back after the end."""
        while True:
            try:
                result = call()
                if not hold:
                    self.socket.sendall(self.take())
                return result
            except ssl.SSLWantReadError:
                self.socket.sendall(self.take())
                data = self.socket.recv(65536)
                if data:
                    self.incoming.write(data)
                else:
                    self.incoming.write_eof()

    def handshake(self, hold=False):
        self.complete(self.tls.do_handshake, hold)

    def read_exactly(self, count):
        data = b""
        while len(data) < count:
            more = self.complete(lambda: self.tls.read(min(count - len(data), 65536)))
            if not more:
                raise AssertionError(f"end of stream after {len(data)} of {count} bytes")
            data += more
        return data

    def response(self, body_bytes):
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += self.read_exactly(1)
        return head + self.read_exactly(body_bytes)

    def read_to_end(self):
        """Everything up to close_notify; an end without one is SSLEOFError."""
        data = b""
        try:
            while more := self.complete(lambda: self.tls.read(65536)):
                data += more
        except ssl.SSLZeroReturnError:
            pass
        return data


FORMS = ("fd", "shared")
VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


class Tls(unittest.TestCase):
    def each(self, check, *options, versions=("1.2", "1.3")):
        """Checks a floor of each form with each version of the client's."""
        for form in FORMS:
            for version in versions:
                with self.subTest(form=form, version=version, options=options):
                    with floor_server("--tls", form, *options) as floor:
                        check(floor, version)

    def test_curl_gets_the_exact_bytes_of_two_requests_on_one_connection(self):
        def check(floor, version):
            url = f"https://{floor.address}/"
            answer = subprocess.run(["curl", "-ksSi", f"--tlsv{version}", "--tls-max", version, url, url, "-w",
                                     "connects %{num_connects}"], check=True, timeout=PATIENCE,
                                    stdout=subprocess.PIPE).stdout
            one = expected(1024, "keep-alive")
            self.assertRegex(answer, b"^" + one + b"connects 1" + one + b"connects 0$")

        self.each(check)

    def s_client(self, floor, version, *options):
        done = subprocess.run(["openssl", "s_client", "-connect", floor.address, "-ign_eof",
                               "-tls" + version.replace(".", "_"), *options], input=REQUEST, timeout=PATIENCE,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        text = done.stdout.decode("latin-1")
        self.assertEqual(done.returncode, 0, text)  # not without close_notify
        self.assertIn("HTTP/1.1 200 OK", text)
        return text

    def test_s_client_resumes_on_every_loop(self):
        cpus = ",".join(map(str, sorted(os.sched_getaffinity(0))))
        with tempfile.TemporaryDirectory() as folder:
            session = os.path.join(folder, "session")
            def check(floor, version):
                self.assertIn("\nNew, ", self.s_client(floor, version, "-sess_out", session))
                for _ in range(4):
                    text = self.s_client(floor, version, "-sess_in", session, "-sess_out", session)
                    self.assertIn("\nReused, ", text)
                    self.assertIn("AES128-GCM" if version == "1.2" else "AES_128_GCM", text)

            self.each(check, "--keep-alive", "off", "--cpus", cpus)

    def test_without_tickets_nothing_resumes(self):
        with tempfile.TemporaryDirectory() as folder:
            session = os.path.join(folder, "session")
            def check(floor, version):
                text = self.s_client(floor, version, "-sess_out", session)
                self.assertNotIn("session ticket:", text)
                if os.path.exists(session):
                    self.assertIn("\nNew, ", self.s_client(floor, version, "-sess_in", session))

            self.each(check, "--keep-alive", "off", "--tickets", "off")

    def test_versions(self):
        for form in FORMS:
            for low, high, refused in (("1.2", "1.2", "1.3"), ("1.3", "1.3", "1.2")):
                with self.subTest(form=form, refused=refused):
                    with floor_server("--tls", form, "--tls-min", low, "--tls-max", high) as floor:
                        with TlsClient(floor, version=VERSIONS[refused]) as client:
                            self.assertRaises(ssl.SSLError, client.handshake)
                        with TlsClient(floor) as client:
                            client.handshake()
                            self.assertEqual(client.tls.version(), "TLSv" + low)

    def test_key_types(self):
        for kind, bits in (("ecdsa", 256), ("rsa2048", 2048), ("rsa4096", 4096)):
            with self.subTest(kind=kind), \
                    floor_server("--tls", "fd", "--key-type", kind, "--keep-alive", "off") as floor:
                self.assertRegex(self.s_client(floor, "1.3"), rf"Server public key is {bits} bit")

    def test_close_ends_with_close_notify(self):
        def check(floor, version):
            with TlsClient(floor, version=VERSIONS[version]) as client:
                client.handshake()
                client.tls.write(REQUEST)
                self.assertRegex(client.read_to_end(), b"^" + expected(1024, "close") + b"$")

        for options in ([], ["--fin-with-data"], ["--accept-first-read", "on"], ["--defer-accept", "10"]):
            self.each(check, "--keep-alive", "off", *options)

    def test_close_notify_is_answered(self):
        def check(floor, version):
            with TlsClient(floor, version=VERSIONS[version]) as client:
                client.handshake()
                client.tls.write(REQUEST)
                client.response(1024)
                client.complete(client.tls.unwrap)  # SSLEOFError without an answer
                self.assertEqual(client.socket.recv(1), b"")

        self.each(check)

    def test_a_request_behind_the_end_of_the_handshake_in_one_segment(self):
        def check(floor, version):
            with TlsClient(floor, version=VERSIONS[version]) as client:
                client.handshake(hold=True)
                client.tls.write(REQUEST)
                client.socket.sendall(client.take())
                self.assertRegex(client.response(1024), b"^" + expected(1024, "keep-alive") + b"$")

        self.each(check, versions=("1.3",))

    def test_every_record_of_a_segment_is_answered(self):
        def check(floor, version):
            with TlsClient(floor, version=VERSIONS[version]) as client:
                client.handshake()
                for _ in range(1000):  # 70 kB: more than a recv takes
                    client.tls.write(REQUEST)
                client.socket.sendall(client.take())
                one = client.response(1024)
                self.assertEqual(client.read_exactly(999 * len(one)), 999 * one)

        self.each(check)

    def test_records_in_single_bytes(self):
        def check(floor, version):
            with TlsClient(floor, version=VERSIONS[version]) as client:
                client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.assertRaises(ssl.SSLWantReadError, client.tls.do_handshake)
                for byte in client.take():
                    client.socket.sendall(bytes([byte]))
                client.handshake()
                client.tls.write(REQUEST)
                for byte in client.take():
                    client.socket.sendall(bytes([byte]))
                client.response(1)

        self.each(check, "--body", "1")

    def test_a_body_larger_than_the_socket_buffer_arrives_whole(self):
        body_bytes = 8 << 20

        def check(floor, version):
            with TlsClient(floor, version=VERSIONS[version]) as client:
                client.handshake()
                client.tls.write(REQUEST)
                answer = client.read_to_end()
                self.assertTrue(answer.startswith(b"HTTP/1.1 200 OK"))
                self.assertEqual(len(answer.partition(b"\r\n\r\n")[2]), body_bytes)

        self.each(check, "--body", str(body_bytes), "--keep-alive", "off")

    def test_bad_peers_do_not_disturb_others(self):
        def check(floor, version):
            with connect(floor.address) as garbage, connect(floor.address) as cut, TlsClient(floor) as good:
                garbage.sendall(REQUEST)
                try:
                    while garbage.recv(65536):
                        pass
                except ConnectionResetError:
                    pass
                cut.sendall(b"\x16\x03\x01\x02\x00\x01")
                cut.shutdown(socket.SHUT_WR)
                while cut.recv(65536):  # maybe an alert
                    pass
                good.handshake()
                good.tls.write(REQUEST)
                good.response(1024)

        self.each(check)

    def make_pair(self, folder, name):
        key, certificate = (os.path.join(folder, f"{name}.{part}") for part in ("key", "crt"))
        subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}", "-keyout",
                        key, "-out", certificate], check=True, timeout=PATIENCE, stderr=subprocess.DEVNULL)
        return certificate, key

    def test_files(self):
        with tempfile.TemporaryDirectory() as folder:
            certificate, key = self.make_pair(folder, "one.test")
            _, other_key = self.make_pair(folder, "two.test")
            with floor_server("--tls", "shared", "--cert", certificate, "--key", key, "--keep-alive", "off") as floor:
                self.assertIn("CN = one.test", self.s_client(floor, "1.3"))
            empty = pathlib.Path(folder, "empty")
            empty.touch()
            for pair, word in (((certificate, other_key), "key values mismatch"), ((key, key), "--cert"),
                               ((certificate, certificate), "--key"), ((str(empty), key), "--cert"),
                               (("/no/such/file", key), "No such file"), ((certificate, folder), "--key")):
                with self.subTest(pair=pair):
                    status, output, errors = run("floor", "--listen", "127.0.0.1:0", "--tls", "fd", "--cert",
                                                 pair[0], "--key", pair[1])
                    self.assertEqual((status, output), (1, ""))
                    self.assertRegex(errors, rf"^floor: .*{word}.*\n$")


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
                       "accept-first-read", "backlog", "tls", "cert", "key", "key-type", "tls-min", "tls-max",
                       "tickets"):
            self.assertIn(f"--{option}", output)

    def test_bad_usage_is_status_2(self):
        here = ["--listen", "127.0.0.1:0"]
        for arguments in ([], ["--listen", "127.0.0.1"], ["--listen", ":1"], ["--listen", "127.0.0.1:65536"],
                          ["--listen", "no.such.name:0"], [*here, "--body", "-1"], [*here, "--body", "1k"],
                          [*here, "--keep-alive", "yes"], [*here, "--cpus", "5-3"], [*here, "--cpus", ""],
                          [*here, "--cpus", "0,"], [*here, "--cpus", "100000"], [*here, "--fin-with-data"],
                          [*here, "--accept-first-read", "1"], [*here, "--defer-accept", "x"],
                          [*here, "--backlog", "0"], [*here, "--no-such-option"], [*here, "argument"],
                          ["--listen"], [*here, "--tls", "on"], [*here, "--tls"], [*here, "--cert", "c"],
                          [*here, "--tickets", "on"], [*here, "--tls", "fd", "--cert", "c"],
                          [*here, "--tls", "fd", "--key", "k"], [*here, "--tls", "fd", "--key-type", "dsa"],
                          [*here, "--tls", "fd", "--tls-min", "1.1"], [*here, "--tls", "fd", "--tickets", "2"],
                          [*here, "--tls", "fd", "--tls-min", "1.3", "--tls-max", "1.2"],
                          [*here, "--tls", "fd", "--cert", "c", "--key", "k", "--key-type", "ecdsa"]):
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
