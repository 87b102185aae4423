"""Each server answers each test that it takes part in with the same bytes as percore-http, but for Date, Server and, where
a library writes its own head, the order of the fields."""

import os
import pathlib
import re
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from perf.bench import servers, slices, workloads  # noqa: E402

CPU = min(os.sched_getaffinity(0))
KINDS = servers.built_in(os.environ["PERCORE_BIN_DIR"], str(ROOT))
OWN_ORDER = ("nginx", "fasthttp", "net-http")
PATIENCE_S = 20


def present(kind):
    return os.access(kind.program, os.X_OK)


class Answers(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.certificate = (f"{cls.folder.name}/cert.pem", f"{cls.folder.name}/key.pem")
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                        "-subj", "/CN=localhost", "-out", cls.certificate[0], "-keyout", cls.certificate[1]], check=True,
                       capture_output=True)
        cls.count = 0

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def start(self, kind, test, profile="tuned"):
        type(self).count += 1
        command = servers.command(kind, test, [CPU], profile, self.certificate)
        server = slices.Server(kind.name, command, {CPU}, self.folder.name, self.count, servers.environment([CPU]))
        self.addCleanup(server.end)
        server.wait_ready()
        return server

    def connect(self, server, test):
        plain = socket.create_connection(("127.0.0.1", server.port), PATIENCE_S)
        if test.tls:
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            plain = context.wrap_socket(plain)
        self.addCleanup(plain.close)
        return plain

    def exchange(self, connection, test):
        """One response: (head, body)."""
        word = "keep-alive" if test.keep_alive else "close"
        connection.sendall(f"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: {word}\r\n\r\n".encode())
        data = b""
        while b"\r\n\r\n" not in data:
            part = connection.recv(65536)
            self.assertTrue(part, data)
            data += part
        head, _, body = data.partition(b"\r\n\r\n")
        length = int(re.search(rb"\r\nContent-Length: (\d+)", head)[1])
        while len(body) < length:
            part = connection.recv(65536)
            self.assertTrue(part)
            body += part
        self.assertEqual(len(body), length)
        return head.decode(), body

    def fields(self, head, sort):
        status, *lines = head.split("\r\n")
        date = next(line for line in lines if line.startswith("Date: "))
        self.assertRegex(date, r"^Date: [A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT$")
        self.assertEqual(sum(line.startswith("Server: ") for line in lines), 1)
        kept = [line for line in lines if not line.startswith(("Date: ", "Server: "))]
        return [status, *(sorted(kept) if sort else kept)]

    def decrypted(self, body):
        done = subprocess.run(["openssl", "enc", "-d", "-aes-128-cbc", "-K", b"0123456789ABCDEF".hex(), "-iv",
                               body[:16].hex()], input=body[16:], capture_output=True, check=True)
        return done.stdout

    def check(self, kind, test, expected):
        server = self.start(kind, test)
        connection = self.connect(server, test)
        head, body = self.exchange(connection, test)
        self.assertEqual(self.fields(head, kind.name in OWN_ORDER), expected[0] if kind.name not in OWN_ORDER
                         else [expected[0][0], *sorted(expected[0][1:])])
        if test.aes:
            self.assertEqual(len(body), 16 + 1040)
            self.assertEqual(self.decrypted(body), b"x" * 1024)
            if test.keep_alive:  # a fresh vector each time
                self.assertNotEqual(self.exchange(connection, test)[1][:16], body[:16])
        else:
            self.assertEqual(body, expected[1])
        if test.keep_alive:
            self.assertEqual(self.fields(self.exchange(connection, test)[0], True), self.fields(head, True))
        else:
            self.assertEqual(connection.recv(100), b"")

    def test_all_servers_in_all_tests(self):
        for test in workloads.ALL.values():
            server = self.start(KINDS[0], test)
            head, body = self.exchange(self.connect(server, test), test)
            expected = self.fields(head, False), body
            self.assertEqual(len(body), test.body if not test.aes else 16 + test.body + 16)
            for kind in KINDS:
                if kind.takes(test) and present(kind):
                    with self.subTest(test=test.name, server=kind.name):
                        self.check(kind, test, expected)

    def test_what_is_here(self):
        """Says which servers were left out, and fails when one of this repository's own is."""
        for kind in KINDS:
            if not present(kind):
                print(f"not here: {kind.name} (Debian: {kind.package})", file=sys.stderr)
        self.assertTrue(present(KINDS[0]) and present(KINDS[1]))
        if shutil.which("go"):
            self.assertTrue(present(next(k for k in KINDS if k.name == "net-http")))

    def test_full_handshakes_where_tickets_are_off(self):
        for kind in KINDS:
            for test, resumes in ((workloads.ALL["1-tls"], True), (workloads.ALL["1-tls-full"], False)):
                if not (kind.takes(test) and present(kind)):
                    continue
                with self.subTest(server=kind.name, test=test.name):
                    server = self.start(kind, test)
                    text = ""
                    for options in (["-sess_out", f"{self.folder.name}/s"], ["-sess_in", f"{self.folder.name}/s"]):
                        path = pathlib.Path(self.folder.name, "s")
                        if options[0] == "-sess_in" and not path.exists():
                            break  # no session was given: none can be resumed
                        text = subprocess.run(["openssl", "s_client", "-connect", f"127.0.0.1:{server.port}", "-ign_eof",
                                               *options], input=b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
                                              capture_output=True, timeout=PATIENCE_S).stdout.decode("latin-1")
                    self.assertEqual("Reused, TLS" in text, resumes)
                    pathlib.Path(self.folder.name, "s").unlink(missing_ok=True)

    def test_fasthttp_has_an_instance_per_cpu(self):
        kind = next(k for k in KINDS if k.name == "fasthttp")
        cpus = sorted(os.sched_getaffinity(0))[:2]
        if len(cpus) < 2 or not present(kind):
            self.skipTest("needs two CPUs and fasthttp")
        test = workloads.ALL["2-tls"]
        type(self).count += 1
        server = slices.Server("fasthttp", servers.command(kind, test, cpus, "tuned", self.certificate), set(cpus),
                               self.folder.name, self.count, servers.environment(cpus))
        self.addCleanup(server.end)
        server.wait_ready()
        instances = [pid for pid in server.pids() if pid != server.child.pid]
        self.assertEqual(sorted(os.sched_getaffinity(pid) for pid in instances), [{cpu} for cpu in cpus])
        for _ in range(8):
            self.assertEqual(self.exchange(self.connect(server, test), test)[1], b"x" * 1024)
        server.child.process.terminate()
        self.assertEqual(server.child.process.wait(PATIENCE_S), 0)

    def test_bad_usage_is_status_2(self):
        for kind in KINDS:
            if not present(kind):
                continue
            program = kind.template.split()[0]
            for arguments in (["--no-such"], ["--keep-alive", "maybe"], ["--listen", "127.0.0.1:0", "superfluous"]):
                with self.subTest(server=kind.name, arguments=arguments):
                    done = subprocess.run([program, *arguments], capture_output=True, timeout=PATIENCE_S)
                    self.assertEqual(done.returncode, 2)
                    self.assertTrue(done.stderr)

    def test_a_port_that_is_taken_is_status_1(self):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            where = f"127.0.0.1:{taken.getsockname()[1]}"
            for kind in KINDS:
                if present(kind):
                    extra = ["--dir", self.folder.name] if kind.name == "nginx" else []
                    with self.subTest(server=kind.name):
                        done = subprocess.run([kind.template.split()[0], "--listen", where, "--cpus", str(CPU), *extra],
                                              capture_output=True, text=True, timeout=PATIENCE_S)
                        self.assertEqual(done.returncode, 1)
                        self.assertIn("in use", done.stderr)


if __name__ == "__main__":
    unittest.main()
