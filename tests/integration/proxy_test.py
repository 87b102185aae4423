"""The example proxy, as curl and others use it."""

import hashlib
import http.server
import os
import pathlib
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from programs import PATIENCE, Server, connect, has_ipv6, receive_exactly, receive_to_end, run  # noqa: E402

CONTENT = os.urandom(3_000_000)
CURL = shutil.which("curl")


class Target(http.server.BaseHTTPRequestHandler):
    """Answers with CONTENT, or with what was posted; remembers the heads."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.answer(CONTENT)

    def do_POST(self):
        body = b""
        if self.headers["Transfer-Encoding"] == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size + 2)[:size]
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(body)

    def answer(self, body):
        self.server.heads.append((self.command, self.path, dict(self.headers)))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class TargetServer(http.server.ThreadingHTTPServer):
    def __init__(self, host="127.0.0.1"):
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.heads = []
        super().__init__((host, 0), Target)

    def __enter__(self):
        self.thread = threading.Thread(target=self.serve_forever)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.thread.join()
        self.server_close()

    @property
    def port(self):
        return self.server_address[1]


def proxy(*options):
    return Server("proxy", *options, "127.0.0.1:0")


LOCAL = ("--allow", "127.0.0.0/8", "--allow", "::1")


@unittest.skipUnless(CURL, "there is no curl")
class Curl(unittest.TestCase):
    def fetch(self, server, mode, url, *more):
        """(exit status, body) of curl in one mode."""
        how = {"connect": ("--proxytunnel", "--proxy", f"http://{server.address}"),
               "http": ("--proxy", f"http://{server.address}"),
               "socks5": ("--proxy", f"socks5://{server.address}"),
               "socks5h": ("--proxy", f"socks5h://{server.address}")}[mode]
        done = subprocess.run([CURL, "--silent", "--fail", "--noproxy", "", "--max-time", str(PATIENCE), *how, *more, url],
                              capture_output=True, timeout=2 * PATIENCE)
        return done.returncode, done.stdout

    def check(self, result, expected=CONTENT):
        status, body = result
        self.assertEqual(status, 0)
        self.assertEqual(hashlib.sha256(body).hexdigest(), hashlib.sha256(expected).hexdigest())

    MODES = ("connect", "http", "socks5", "socks5h")

    def test_every_mode(self):
        with TargetServer() as target, proxy(*LOCAL) as server:
            for mode in self.MODES:
                for host in ("127.0.0.1", "localhost"):
                    with self.subTest(f"{mode} {host}"):
                        self.check(self.fetch(server, mode, f"http://{host}:{target.port}/"))

    @unittest.skipUnless(has_ipv6(), "there is no IPv6")
    def test_ipv6(self):
        with TargetServer("::1") as target, proxy(*LOCAL) as server:
            for mode in self.MODES:
                with self.subTest(mode):
                    self.check(self.fetch(server, mode, f"http://[::1]:{target.port}/"))

    def test_bodies_are_passed_on(self):
        with TargetServer() as target, proxy(*LOCAL) as server, tempfile.NamedTemporaryFile() as file:
            file.write(CONTENT)
            file.flush()
            for mode in self.MODES:
                with self.subTest(mode):
                    self.check(self.fetch(server, mode, f"http://127.0.0.1:{target.port}/", "--data-binary", f"@{file.name}"))

    def test_chunked_bodies_are_passed_on(self):
        with TargetServer() as target, proxy(*LOCAL) as server, tempfile.NamedTemporaryFile() as file:
            file.write(CONTENT)
            file.flush()
            self.check(self.fetch(server, "http", f"http://127.0.0.1:{target.port}/", "--data-binary", f"@{file.name}",
                                  "--header", "Transfer-Encoding: chunked"))
            self.assertEqual(target.heads[0][2]["Transfer-Encoding"], "chunked")
            self.assertNotIn("Content-Length", target.heads[0][2])
            self.assertIn(f'"done" {len(CONTENT)} up', server.line())

    def test_expect_100_continue(self):
        with TargetServer() as target, proxy(*LOCAL) as server, tempfile.NamedTemporaryFile() as file:
            file.write(CONTENT)
            file.flush()
            for more in ((), ("--header", "Transfer-Encoding: chunked")):
                self.check(self.fetch(server, "http", f"http://127.0.0.1:{target.port}/", "--data-binary", f"@{file.name}",
                                      "--header", "Expect: 100-continue", "--expect100-timeout", "20", *more))

    def test_a_refusal_reaches_a_client_that_is_still_sending(self):
        with proxy("--user", "a:b") as server, tempfile.NamedTemporaryFile() as file:
            file.write(CONTENT)
            file.flush()
            for _ in range(5):
                done = subprocess.run([CURL, "--silent", "--proxy", f"http://{server.address}", "--noproxy", "", "--max-time",
                                       str(PATIENCE), "--header", "Expect:", "--output", os.devnull, "--write-out", "%{http_code}",
                                       "--data-binary", f"@{file.name}", "http://192.0.2.1/"],
                                      capture_output=True, timeout=2 * PATIENCE)
                self.assertEqual(done.stdout, b"407")

    def test_users(self):
        with TargetServer() as target, proxy(*LOCAL, "--user", "alice:se:cret", "--user", "bob:b") as server:
            url = f"http://127.0.0.1:{target.port}/"
            for mode in self.MODES:
                with self.subTest(mode):
                    self.check(self.fetch(server, mode, url, "--proxy-user", "alice:se:cret"))
                    self.check(self.fetch(server, mode, url, "--proxy-user", "bob:b"))
                    for wrong in (("--proxy-user", "alice:secret"), ("--proxy-user", "carol:b"), ()):
                        status, body = self.fetch(server, mode, url, *wrong)
                        self.assertNotEqual(status, 0, wrong)
                        self.assertEqual(body, b"")
            self.assertNotIn("Proxy-Authorization", str(target.heads))

    def test_what_is_not_public_is_denied(self):
        with TargetServer() as target, proxy() as server:
            for mode in self.MODES:
                for host in ("127.0.0.1", "localhost", "0.0.0.0"):
                    with self.subTest(f"{mode} {host}"):
                        status, body = self.fetch(server, mode, f"http://{host}:{target.port}/")
                        self.assertNotEqual(status, 0)
                        self.assertEqual(body, b"")
            self.assertEqual(target.heads, [])

    def test_rules_with_ports(self):
        with TargetServer() as allowed, TargetServer() as denied:
            with proxy("--deny", f"127.0.0.1,{denied.port}", *LOCAL) as server:
                self.check(self.fetch(server, "socks5", f"http://127.0.0.1:{allowed.port}/"))
                self.assertNotEqual(self.fetch(server, "socks5", f"http://127.0.0.1:{denied.port}/")[0], 0)


class Socks(unittest.TestCase):
    def request(self, peer, command, address_type, address, port):
        peer.sendall(b"\x05\x01\x00")
        self.assertEqual(receive_exactly(peer, 2), b"\x05\x00")
        peer.sendall(bytes((5, command, 0, address_type)) + address + struct.pack(">H", port))
        answer = receive_exactly(peer, 10)
        self.assertEqual(answer[0], 5)
        return answer[1]

    def test_errors(self):
        with socket.socket() as dead, proxy(*LOCAL) as server:
            dead.bind(("127.0.0.1", 0))
            port = dead.getsockname()[1]
            local = socket.inet_aton("127.0.0.1")
            name = b"\x17no-such-name.at.invalid"
            for arguments, expected in (((1, 1, local, port), 5), ((2, 1, local, port), 7), ((3, 1, local, port), 7),
                                        ((9, 1, local, port), 7), ((1, 9, local, port), 8),
                                        ((1, 1, socket.inet_aton("10.0.0.1"), port), 2), ((1, 3, name, port), 4),
                                        ((1, 3, b"\x00", port), 1), ((1, 3, b"\x03a\x00b", port), 1)):
                with self.subTest(arguments), connect(server.address) as peer:
                    self.assertEqual(self.request(peer, *arguments), expected)
                    self.assertEqual(receive_to_end(peer), b"")

    def test_a_request_in_single_bytes_with_data_right_behind(self):
        with TargetServer() as target, proxy(*LOCAL) as server, connect(server.address) as peer:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            get = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
            whole = (b"\x05\x01\x00" + b"\x05\x01\x00\x01" + socket.inet_aton("127.0.0.1") +
                     struct.pack(">H", target.port) + get)
            for i in range(len(whole)):
                peer.sendall(whole[i:i + 1])
            self.assertEqual(receive_exactly(peer, 2), b"\x05\x00")
            self.assertEqual(receive_exactly(peer, 10)[:2], b"\x05\x00")
            self.assertTrue(receive_to_end(peer).endswith(CONTENT))

    def test_what_is_no_request(self):
        with proxy() as server:
            for bytes_ in (b"\x04\x01", b"\x00", b"\x05\x01\x05", b"\x05\x01\x00\x04", b"hello\r\n\r\n"):
                with self.subTest(bytes_), connect(server.address) as peer:
                    peer.sendall(bytes_)
                    peer.shutdown(socket.SHUT_WR)
                    receive_to_end(peer)

    def test_a_client_that_says_nothing_is_not_waited_for(self):
        with proxy("--request", "1") as server, connect(server.address) as peer, connect(server.address) as slow:
            slow.sendall(b"\x05")
            for one in (peer, slow):
                try:
                    receive_to_end(one)
                except ConnectionResetError:
                    pass


class Http(unittest.TestCase):
    def ask(self, server, text):
        with connect(server.address) as peer:
            peer.sendall(text)
            return receive_to_end(peer)

    def status(self, server, text):
        return int(self.ask(server, text).split()[1])

    def test_requests_that_are_refused(self):
        with socket.socket() as dead, proxy(*LOCAL) as server:
            dead.bind(("127.0.0.1", 0))
            where = f"127.0.0.1:{dead.getsockname()[1]}"
            end = " HTTP/1.1\r\nHost: x\r\n\r\n"
            for text, expected in (
                    (f"GET http://{where}/{end}", 502), (f"CONNECT {where}{end}", 502),
                    (f"GET http://10.0.0.1/{end}", 403), (f"CONNECT 10.0.0.1:443{end}", 403),
                    (f"CONNECT no-such-name.invalid:443{end}", 502),
                    (f"GET /path{end}", 400), (f"GET https://x/{end}", 400), (f"CONNECT x{end}", 400),
                    (f"CONNECT x:0{end}", 400), (f"CONNECT x:70000{end}", 400), (f"GET http://a@b/{end}", 400),
                    ("GET http://x/ HTTP/2.0\r\n\r\n", 400), ("GET\r\n\r\n", 400),
                    (f"GET http://{where}/ HTTP/1.1\r\nbad header: 1\r\n\r\n", 400),
                    (f"POST http://{where}/ HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
                    (f"POST http://{where}/ HTTP/1.1\r\nContent-Length: +1\r\n\r\n", 400),
                    (f"POST http://{where}/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n", 400),
                    (f"POST http://{where}/ HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
                    ("GET http://[::ffff:127.0.0.1]:1/" + end, 502), ("GET http://[64:ff9b::7f00:1]/" + end, 403),
                    ("CONNECT 192.168.0.1:80" + end, 403), ("CONNECT 9.9.9.9:25" + end, 403),
                    ("GET http://x/ HTTP/1.1\r\nX: " + 20000 * "x" + "\r\n\r\n", 431)):
                with self.subTest(text[:80]):
                    self.assertEqual(self.status(server, text.encode()), expected)

    def test_what_is_sent_on(self):
        with TargetServer() as target, proxy(*LOCAL) as server:
            where = f"127.0.0.1:{target.port}"
            answer = self.ask(server, (f"GET http://{where}?a=b#c HTTP/1.1\r\nHost: elsewhere\r\nX-Kept: 1\r\n"
                                       "Connection: keep-alive, x-named\r\nX-Named: 1\r\nProxy-Connection: keep-alive\r\n"
                                       "TE: trailers\r\n\r\n").encode())
            self.assertTrue(answer.endswith(CONTENT))
            method, path, headers = target.heads.pop()
            self.assertEqual((method, path), ("GET", "/?a=b"))
            self.assertEqual(headers, {"Host": where, "X-Kept": "1", "Via": "1.1 proxy", "Connection": "close"})

    def test_a_second_request_does_not_reach_the_first_ones_server(self):
        with TargetServer() as target, proxy(*LOCAL) as server:
            first = (f"POST http://127.0.0.1:{target.port}/one HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc").encode()
            answer = self.ask(server, first + b"GET /two HTTP/1.1\r\nHost: x\r\n\r\n")
            self.assertTrue(answer.endswith(b"abc"))
            self.assertEqual([path for _, path, _ in target.heads], ["/one"])

    def raw_target(self):
        listener = socket.create_server(("127.0.0.1", 0))
        listener.settimeout(PATIENCE)
        self.addCleanup(listener.close)
        return listener, f"POST http://127.0.0.1:{listener.getsockname()[1]}/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n".encode()

    def take(self, listener):
        one, _ = listener.accept()
        self.addCleanup(one.close)
        one.settimeout(PATIENCE)
        data = b""
        while not data.endswith(b"\r\n\r\n"):
            data += receive_exactly(one, 1)
        return one

    def test_a_broken_chunk_ends_both_sides(self):
        listener, head = self.raw_target()
        with proxy(*LOCAL) as server, connect(server.address) as peer:
            peer.sendall(head + b"3\r\nabc\r\n")
            up = self.take(listener)
            self.assertEqual(receive_exactly(up, 8), b"3\r\nabc\r\n")
            peer.sendall(b"2\r\nabX")
            self.assertIn(b"HTTP/1.1 400 ", receive_to_end(peer))
            with self.assertRaises(ConnectionResetError):  # not an end that could be taken for one
                receive_to_end(up)
            peer.close()
            self.assertIn('"400"', server.line())

    def test_a_chunked_request_that_is_cut_off_is_not_whole_for_its_target(self):
        listener, head = self.raw_target()
        with proxy(*LOCAL) as server, connect(server.address) as peer:
            peer.sendall(head + b"3\r\nabc\r\n")
            up = self.take(listener)
            self.assertEqual(receive_exactly(up, 8), b"3\r\nabc\r\n")
            peer.shutdown(socket.SHUT_WR)
            with self.assertRaises(ConnectionResetError):
                receive_to_end(up)

    def test_an_answer_before_the_chunked_body_is_whole(self):
        listener, head = self.raw_target()
        with proxy(*LOCAL) as server, connect(server.address) as peer:
            peer.sendall(head + b"3\r\nabc\r\n")
            with self.take(listener) as up:
                self.assertEqual(receive_exactly(up, 8), b"3\r\nabc\r\n")
                up.sendall(b"HTTP/1.1 413 Large\r\nContent-Length: 0\r\n\r\n")
            self.assertEqual(receive_to_end(peer), b"HTTP/1.1 413 Large\r\nContent-Length: 0\r\nVia: 1.1 proxy\r\nConnection: close\r\n\r\n")

    def test_a_second_request_behind_chunks_is_not_sent_on(self):
        listener, head = self.raw_target()
        with proxy(*LOCAL) as server, connect(server.address) as peer:
            peer.sendall(head + b"1\r\na\r\n2;x\r\nbc\r\n0\r\nTrailer: x\r\n\r\nGET http://127.0.0.1/ HTTP/1.1\r\n\r\n")
            with self.take(listener) as up:
                self.assertEqual(receive_exactly(up, 13), b"3\r\nabc\r\n0\r\n\r\n")
                up.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                up.shutdown(socket.SHUT_WR)
                self.assertEqual(receive_to_end(peer), b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nVia: 1.1 proxy\r\nConnection: close\r\n\r\n")
                peer.close()
                self.assertEqual(up.recv(1), b"")

    def test_a_target_that_keeps_the_connection_or_answers_nonsense(self):
        closing = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nVia: 1.1 proxy\r\nConnection: close\r\n\r\n"
        for given, expected in (
                (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: keep-alive\r\nKeep-Alive: 5\r\n\r\n", closing),
                (b"HTTP/1.1 103 Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
                 b"HTTP/1.1 103 Hints\r\nLink: x\r\n\r\n" + closing),
                (17 * b"HTTP/1.1 103 Hints\r\n\r\n", None), (b"HTTP/1.1 101 Switch\r\n\r\n", None), (b"nonsense\r\n\r\n", None),
                (b"nonsense", None), (b"", None), (b"HTTP/1.1 200 OK\r\nX: " + 20000 * b"x" + b"\r\n\r\n", None)):
            with self.subTest(given[:60]):
                listener, head = self.raw_target()
                with proxy(*LOCAL) as server, connect(server.address) as peer:
                    peer.sendall(head + b"0\r\n\r\n")
                    with self.take(listener) as up:
                        self.assertEqual(receive_exactly(up, 5), b"0\r\n\r\n")
                        up.sendall(given)
                    answer = receive_to_end(peer)
                    if expected:
                        self.assertEqual(answer, expected)
                    else:
                        self.assertIn(b"HTTP/1.1 502 ", answer)

    def test_the_target_is_left_when_the_client_is_gone(self):
        listener, _ = self.raw_target()
        with proxy(*LOCAL) as server, connect(server.address) as peer:
            peer.sendall(f"GET http://127.0.0.1:{listener.getsockname()[1]}/ HTTP/1.1\r\n\r\n".encode())
            up = self.take(listener)
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.close()
            with self.assertRaises(ConnectionResetError):
                receive_to_end(up)

    def test_memory_is_bounded_when_the_target_takes_no_chunks(self):
        listener, head = self.raw_target()
        with proxy(*LOCAL) as server, connect(server.address) as peer:
            peer.sendall(head)
            self.take(listener)
            chunk = b"10000\r\n" + 0x10000 * b"x" + b"\r\n"
            peer.settimeout(0.5)
            sent = 0
            with self.assertRaises(TimeoutError):  # the sockets' buffers are full, and nothing else takes it
                while sent < 200_000_000:
                    peer.sendall(chunk)
                    sent += len(chunk)


class Program(unittest.TestCase):
    def test_usage(self):
        status, output, errors = run("proxy", "--help")
        self.assertEqual((status, errors), (0, ""))
        self.assertTrue(output.startswith("usage: proxy"))
        for arguments in (["--nonsense"], ["127.0.0.1:0", "too much"], ["--allow", "10.0.0.0/40"], ["--allow"],
                          ["--allow", "10.0.0.0/8,0"], ["--user", "nobody"], ["--idle", "0"], ["not an address"]):
            with self.subTest(arguments):
                status, output, errors = run("proxy", *arguments)
                self.assertEqual((status, output), (2, ""))
                self.assertNotEqual(errors, "")

    def test_a_warning_to_be_an_open_proxy(self):
        for arguments, warned in ((["0.0.0.0:0"], True), (["0.0.0.0:0", "--user", "a:b"], False), (["127.0.0.1:0"], False)):
            server = Server("proxy", *arguments[1:], arguments[0])
            server.signal()
            status, errors = server.wait()
            self.assertEqual(status, 0)
            self.assertEqual("may use it" in errors, warned, arguments)

    def test_slow_clients_have_their_time(self):
        with proxy(*LOCAL, "--request", "1") as server:
            for start in (b"GET http://127.0.0.1/ HTTP/1.1\r\nX: ", b"\x05\x01\x00\x05\x01\x00\x03\xff"):
                with self.subTest(start), connect(server.address) as peer:
                    peer.sendall(start)
                    peer.settimeout(0.1)
                    ended = False
                    for _ in range(10 * PATIENCE):  # a byte now and then does not help
                        try:
                            peer.sendall(b"x")
                            ended = ended or peer.recv(100) == b""
                        except TimeoutError:
                            continue
                        except (ConnectionResetError, BrokenPipeError):
                            ended = True
                        if ended:
                            break
                    self.assertTrue(ended)

    def test_silence_has_its_time(self):
        with socket.create_server(("127.0.0.1", 0)) as listener, proxy(*LOCAL, "--idle", "1") as server:
            port = listener.getsockname()[1]
            for text in (f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\n\r\n",
                         f"POST http://127.0.0.1:{port}/ HTTP/1.1\r\nContent-Length: 9\r\n\r\nx",
                         f"POST http://127.0.0.1:{port}/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nx",
                         f"POST http://127.0.0.1:{port}/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"):
                with self.subTest(text), connect(server.address) as peer:
                    peer.sendall(text.encode())
                    target, _ = listener.accept()
                    with target:
                        target.settimeout(PATIENCE)
                        for one in (peer, target):
                            try:
                                receive_to_end(one)
                            except ConnectionResetError:
                                pass

    def test_limit_of_connections(self):
        with TargetServer() as target, proxy(*LOCAL, "--connections", "1") as server:
            text = f"CONNECT 127.0.0.1:{target.port} HTTP/1.1\r\n\r\n".encode()
            with connect(server.address) as peer:
                peer.sendall(text)
                self.assertIn(b" 503 ", receive_to_end(peer))

    def test_a_line_for_each_connection(self):
        with TargetServer() as target, proxy(*LOCAL) as server:
            with connect(server.address) as peer:
                peer.sendall(f"CONNECT 127.0.0.1:{target.port} HTTP/1.1\r\n\r\nGET / HTTP/1.0\r\n\r\n".encode())
                self.assertTrue(receive_to_end(peer).endswith(CONTENT))
                client = "%s:%d" % peer.getsockname()
            line = server.line()
            self.assertTrue(line.startswith(f'{client} connect 127.0.0.1:{target.port} "done" 18 up '), line)


if __name__ == "__main__":
    unittest.main()
