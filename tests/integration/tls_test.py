"""TLS clients that are not ours: Python's ssl, asyncio in crowds, openssl s_client, curl and wrk."""

import asyncio
import os
import pathlib
import random
import shutil
import ssl
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
import http_server  # noqa: E402
from certificates import Authority  # noqa: E402
from programs import PATIENCE, Server, connect, is_sanitized, receive_exactly, receive_to_end  # noqa: E402

authority = None
certificate = key = alice = None
VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


def setUpModule():
    global authority, certificate, key, alice
    authority = Authority()
    unittest.addModuleCleanup(authority.__exit__)
    certificate, key = authority.issue("localhost", "DNS:localhost,IP:127.0.0.1")
    alice = authority.issue("alice")


def echo_server():
    return Server("mtls_echo", "--cert", certificate, "--key", key, "--authorities", authority.root, "127.0.0.1:0")


def web_server(*options):
    return http_server.Server("--tls", "--cert", str(certificate), "--key", str(key), *options)


def client_context(version=None):
    context = ssl.create_default_context(cafile=authority.root)
    context.load_cert_chain(*alice)
    if version:
        context.minimum_version = context.maximum_version = VERSIONS[version]
    return context


class Alpn(unittest.TestCase):
    def test_empty_names_and_lists_are_refused(self):
        hello = ssl.MemoryBIO()
        context = client_context()
        context.set_alpn_protocols(["h2", "h3"])
        with self.assertRaises(ssl.SSLWantReadError):
            context.wrap_bio(ssl.MemoryBIO(), hello, server_hostname="localhost").do_handshake()
        hello = hello.read()
        # RFC 7301: extension 16, its length, the list's length, names with a length each.
        extension = bytes.fromhex("0010 0008 0006") + b"\x02h2\x02h3"
        self.assertEqual(hello.count(extension), 1)
        with web_server() as server:
            for content in ("0008 0000 000000000000", "0008 0006 000000000000", "0008 0006 026832 00 0000"):
                with self.subTest(content=content), connect(server.addresses[0]) as peer:
                    peer.sendall(hello.replace(extension, bytes.fromhex("0010" + content)))
                    alert = receive_to_end(peer)
                    self.assertEqual((alert[0], alert[-2:]), (21, bytes([2, 50])))  # fatal, decode_error


class Python(unittest.TestCase):
    def test_versions_and_resumption(self):
        with echo_server() as server:
            for version in VERSIONS:
                context, session = client_context(version), None
                for number in range(3):
                    with connect(server.address) as plain, context.wrap_socket(
                            plain, server_hostname="localhost", session=session) as peer:
                        self.assertEqual(receive_exactly(peer, 13), b"hello, alice\n")
                        self.assertEqual(peer.version(), f"TLSv{version}")
                        self.assertEqual(peer.session_reused, number > 0)
                        text = random.randbytes(100_000)
                        peer.sendall(text)
                        self.assertEqual(receive_exactly(peer, len(text)), text)
                        session = peer.session
                        peer.unwrap()

    def test_truncation_is_no_clean_end_for_the_client_either(self):
        with echo_server() as server:
            with connect(server.address) as plain, client_context().wrap_socket(
                    plain, server_hostname="localhost", suppress_ragged_eofs=False) as peer:
                receive_exactly(peer, 13)
                server.signal()  # idle connections end: cleanly
                self.assertEqual(peer.recv(1), b"")

    def test_verification_works_on_the_client(self):
        with echo_server() as server, connect(server.address) as plain:
            with self.assertRaises(ssl.SSLCertVerificationError):
                client_context().wrap_socket(plain, server_hostname="other.example")


async def converse(where, context, seed, rounds, largest):
    numbers = random.Random(seed)
    host, port = where.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port), ssl=context, server_hostname="localhost")
    try:
        if await reader.readexactly(13) != b"hello, alice\n":
            raise AssertionError("another greeting")
        for _ in range(rounds):
            text = numbers.randbytes(int(largest ** numbers.random()))

            async def send():
                writer.write(text)
                await writer.drain()

            _, answer = await asyncio.gather(send(), reader.readexactly(len(text)))
            if answer != text:
                raise AssertionError(f"an answer of {len(answer)} bytes differs, seed {seed}")
    finally:
        writer.close()
        try:
            await writer.wait_closed()  # sees that the server answers close_notify
        except ConnectionError:
            pass


class Asyncio(unittest.TestCase):
    def check(self, clients, rounds, largest, version):
        seed = random.randrange(2**32)
        print(f"{clients} clients, TLS {version}, seed {seed}", flush=True)
        context = client_context(version)

        async def crowd(address):
            await asyncio.wait_for(asyncio.gather(
                *(converse(address, context, seed + i, rounds, largest) for i in range(clients))), 3 * PATIENCE)

        with echo_server() as server:
            asyncio.run(crowd(server.address))

    def test_many_at_a_time(self):
        for version in VERSIONS:
            self.check(40 if is_sanitized("mtls_echo") else 200, 5, 100_000, version)

    def test_few_with_much(self):
        for version in VERSIONS:
            self.check(5, 5, 3_000_000, version)


@unittest.skipUnless(shutil.which("openssl"), "openssl is not installed")
class SClient(unittest.TestCase):
    def s_client(self, server, *options, data=b""):
        address = server.addresses[0]
        done = subprocess.run(["openssl", "s_client", "-connect", address, "-CAfile", authority.root,
                               "-verify_return_error", "-verify_hostname", "localhost", *map(str, options)],
                              input=data, capture_output=True, timeout=PATIENCE)
        return done.returncode, (done.stdout + done.stderr).decode(errors="replace")

    def test_versions_and_ciphers(self):
        with web_server() as server:
            for options, wanted in (
                    (["-tls1_2"], "New, TLSv1.2, Cipher is ECDHE-ECDSA-AES128-GCM-SHA256"),
                    (["-tls1_3"], "New, TLSv1.3, Cipher is TLS_AES_128_GCM_SHA256"),
                    (["-tls1_2", "-cipher", "ECDHE-ECDSA-CHACHA20-POLY1305"], "ECDHE-ECDSA-CHACHA20-POLY1305"),
                    (["-tls1_3", "-ciphersuites", "TLS_AES_256_GCM_SHA384"], "TLS_AES_256_GCM_SHA384"),
                    (["-tls1_3", "-groups", "P-384"], "ECDH, secp384r1, 384 bits"),
                    (["-tls1_3", "-groups", "P-521:P-256"], "ECDH, prime256v1, 256 bits")):
                with self.subTest(options):
                    status, text = self.s_client(server, *options)
                    self.assertEqual(status, 0, text)
                    self.assertIn("Verification: OK", text)
                    self.assertIn(wanted, text)
                    self.assertIn("Compression: NONE", text)
            for options in (["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"], ["-tls1_2", "-cipher", "AES128-SHA"],
                            ["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA256"], ["-tls1_3", "-groups", "P-521"]):
                with self.subTest(options):
                    self.assertNotEqual(self.s_client(server, *options)[0], 0)

    def test_resumption(self):
        with web_server() as server:
            status, text = self.s_client(server, "-tls1_2", "-reconnect")
            self.assertEqual((status, text.count("Reused, TLSv1.2"), text.count("New, TLSv1.2")), (0, 5, 1), text)
            with tempfile.TemporaryDirectory(prefix="percore-") as folder:
                kept = os.path.join(folder, "session")
                # Its ticket comes behind the handshake, so there has to be an answer that it reads.
                request = b"GET / HTTP/1.0\r\n\r\n"
                status, text = self.s_client(server, "-tls1_3", "-sess_out", kept, "-ign_eof", data=request)
                self.assertIn("New, TLSv1.3", text)
                status, text = self.s_client(server, "-tls1_3", "-sess_in", kept, "-ign_eof", data=request)
                self.assertEqual(status, 0, text)
                self.assertIn("Reused, TLSv1.3", text)

    def test_renegotiation_and_key_update(self):
        with web_server() as server:
            # Two requests around what s_client does for the letters R and K (openssl-s_client(1), connected commands).
            text = self.s_client(server, "-tls1_2", data=b"R\n")[1]
            self.assertIn("no renegotiation", text)
            for letter in (b"K\n", b"k\n"):
                status, text = self.s_client(server, "-tls1_3", "-crlf", "-ign_eof", data=letter)
                self.assertNotIn("alert", text)


@unittest.skipUnless(shutil.which("curl"), "curl is not installed")
class Curl(unittest.TestCase):
    def curl(self, *options):
        done = subprocess.run(["curl", "--silent", "--show-error", "--cacert", authority.root, *options],
                              capture_output=True, timeout=PATIENCE)
        return done.returncode, done.stdout, done.stderr.decode()

    def test_get(self):
        with web_server("--stats") as server:
            port = server.addresses[0].rsplit(":", 1)[1]
            url = f"https://localhost:{port}/"
            for options in ([], ["--tlsv1.3"], ["--tls-max", "1.2"], ["--http1.0"], ["--no-sessionid"]):
                with self.subTest(options):
                    status, body, errors = self.curl("--ipv4", *options, url, url)  # twice on one connection
                    self.assertEqual((status, errors), (0, ""))
                    self.assertEqual(len(body) % 2, 0)
                    self.assertEqual(body[:len(body) // 2], body[len(body) // 2:])
                    self.assertGreater(len(body), 0)
            self.assertNotEqual(self.curl("--ipv4", "--tls-max", "1.1", url)[0], 0)
            # Plain HTTP on the port: an end without an answer.
            self.assertEqual(self.curl(f"http://127.0.0.1:{port}/")[0], 52)
        self.assertEqual(server.counter("tls_failed_plain_http"), 1)

    def test_kernel_tls(self):
        """Whether this machine's kernel can or not."""
        with web_server("--stats", "--kernel-tls", "on", "--body", "100000") as server:
            port = server.addresses[0].rsplit(":", 1)[1]
            for version in ("1.2", "1.3"):
                with self.subTest(version):
                    status, body, errors = self.curl("--ipv4", "--tls-max", version, f"https://localhost:{port}/")
                    self.assertEqual((status, errors, len(body)), (0, "", 100000))
        self.assertEqual(server.counter("tls_handshakes"), 2)
        self.assertIn(server.counter("tls_kernel_sends"), (0, 2))


@unittest.skipUnless(shutil.which("wrk"), "wrk is not installed")
class Wrk(unittest.TestCase):
    def test_keep_alive_and_short(self):
        with web_server() as server:
            url = f"https://{server.addresses[0]}/"
            for options in ([], ["--header", "Connection: close"]):
                done = subprocess.run(
                    ["wrk", "--threads", "1", "--connections", "20", "--duration", "1s", *options, url],
                    capture_output=True, text=True, timeout=PATIENCE)
                self.assertEqual(done.returncode, 0, done.stderr)
                self.assertNotIn("Socket errors", done.stdout)
                self.assertNotIn("Non-2xx", done.stdout)
                self.assertRegex(done.stdout, r"[1-9]\d* requests in")


if __name__ == "__main__":
    unittest.main()
