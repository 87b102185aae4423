"""percore-http as an HTTP/1.1 server: what it answers, and how the bytes may come."""

import email.utils
import re
import subprocess
import time
import unittest

from http_server import GET, WAIT_S, Server

BODY = b"x" * 1024


def curl(*options, data=None):
    return subprocess.run(["curl", "-sS", "--max-time", str(WAIT_S), *options], check=True, input=data,
                          stdout=subprocess.PIPE).stdout


def post(body, *fields, target="/"):
    head = [f"POST {target} HTTP/1.1", "Host: test", f"Content-Length: {len(body)}", *fields]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def chunked(*chunks, trailer=b""):
    body = b"".join(b"%x;ext=1\r\n%s\r\n" % (len(c), c) for c in chunks)
    return (b"PUT /c HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n" + body + b"0\r\n" + trailer +
            b"\r\n")


HEAD = b"HEAD / HTTP/1.1\r\nHost: test\r\n\r\n"
# Every kind of request that gets a 200, and whether its response is a head only.
REQUESTS = [(GET, False), (post(b"hello"), False), (HEAD, True), (chunked(b"abc", b"d" * 300), False),
            (b"\r\n" + GET, False), (post(b""), False), (chunked(trailer=b"X-Sum: 1\r\n"), False),
            (b"OPTIONS * HTTP/1.1\r\nHost: test\r\n\r\n", False)]

# (what is sent, the status, whether the response has a body)
REFUSED = [
    (b"GET / HTTP/1.1\r\n\r\n", 400),
    (b"GET / HTTP/1.1\nHost: test\n\n", 400),
    (b"GET / HTTP/1.1\r\nHost: test\r\nX: a\0b\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: test\r\n folded\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: test\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: test\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    (b"PUT / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloX", 400),
    (b"PUT / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n100001\r\n", 413),
    (b"PUT / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n1;" + b"x" * 9000, 431),
    (b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 1048577\r\n\r\n", 413),
    (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: test\r\n\r\n", 414),
    (b"GET / HTTP/1.1\r\nHost: test\r\nX: " + b"a" * 9000 + b"\r\n\r\n", 431),
    (b"GET / HTTP/1.1\r\nHost: test\r\nExpect: miracles\r\n\r\n", 417),
    (b"BREW / HTTP/1.1\r\nHost: test\r\n\r\n", 501),
    (b"CONNECT a:1 HTTP/1.1\r\nHost: test\r\n\r\n", 501),
    (b"PUT / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
    (b"GET / HTTP/2.0\r\nHost: test\r\n\r\n", 505),
]


class Protocol(unittest.TestCase):
    def check_ok(self, answer, connection="keep-alive", body=BODY):
        status, fields, content = answer
        self.assertEqual(status, 200)
        self.assertEqual(list(fields), ["Server", "Date", "Connection", "Content-Type", "Content-Length"])
        self.assertEqual((fields["Server"], fields["Connection"], fields["Content-Type"]),
                         ("percore", connection, "text/plain"))
        self.assertEqual(content, body)

    def test_curl(self):
        with Server() as server:
            answer = curl("-i", server.url).split(b"\r\n\r\n", 1)
            self.assertRegex(answer[0], rb"\AHTTP/1\.1 200 OK\r\nServer: percore\r\nDate: ")
            self.assertEqual(answer[1], BODY)
            self.assertIn(b"Content-Length: 1024", curl("-I", server.url))
            self.assertEqual(curl("--data-binary", "@-", server.url, data=b"z" * 300_000), BODY)
            self.assertEqual(curl("-T", "-", server.url, data=b"z" * 300_000), BODY)  # chunked
            both = curl("-w", "%{num_connects} ", "-o", "/dev/null", server.url, "-o", "/dev/null", server.url)
            self.assertEqual(both, b"1 0 ")  # the second on the connection of the first
            refused = curl("-w", "%{http_code}", "-o", "/dev/null", "--data-binary", "@-", server.url,
                           data=b"z" * 3_000_000)
            self.assertEqual(refused, b"413")
            self.assertEqual(server.end(), 0)

    def test_expect_100_continue(self):
        with Server() as server, server.client() as client:
            head = b"POST / HTTP/1.1\r\nHost: test\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
            self.assertEqual(client.ask(head), (100, {}, b""))
            self.check_ok(client.ask(b"hello"))
            client.send(head + b"hello")  # did not wait: no 100 is needed
            self.check_ok(client.response())
            self.assertEqual(curl("-H", "Expect: 100-continue", "--data-binary", "@-", server.url, data=b"z" * 9),
                             BODY)

    def test_keep_alive_semantics(self):
        http_1_0 = b"GET / HTTP/1.0\r\n"
        with Server() as server:
            for request, stays in ((GET, True), (http_1_0 + b"\r\n", False),
                                   (http_1_0 + b"Connection: Keep-Alive\r\n\r\n", True),
                                   (GET[:-2] + b"Connection: foo, Close\r\n\r\n", False),
                                   (post(b"hello", "Connection: close"), False)):
                with self.subTest(request=request), server.client() as client:
                    self.check_ok(client.ask(request), "keep-alive" if stays else "close")
                    if stays:
                        self.check_ok(client.ask(), "keep-alive")
                    else:
                        self.assertTrue(client.at_end())

    def test_keep_alive_off(self):
        for fin in ("on", "off"):
            for body_bytes in (0, 1024, 16384, 100_000, 3_000_000):
                options = ("--keep-alive", "off", "--fin-with-data", fin, "--body", str(body_bytes))
                with self.subTest(options=options), Server(*options) as server:
                    for request, head_only in REQUESTS:
                        with server.client() as client:
                            body = b"" if head_only else b"x" * body_bytes
                            self.check_ok(client.ask(request, head_only), "close", body)
                            self.assertTrue(client.at_end())
                    self.assertEqual(server.end(), 0)
                    self.assertEqual(server.requests(), len(REQUESTS))

    def test_pipelining(self):
        with Server("--stats") as server, server.client() as client:
            client.send(GET * 1000)
            for _ in range(1000):
                self.check_ok(client.response())
            client.send(b"".join(request for request, _ in REQUESTS * 20))
            for _, head_only in REQUESTS * 20:
                self.check_ok(client.response(head_only), body=b"" if head_only else BODY)
            # What follows a closing request is not answered, and does not destroy the answer.
            client.send(GET * 3 + GET[:-2] + b"Connection: close\r\n\r\n" + GET * 3)
            for _ in range(3):
                self.check_ok(client.response())
            self.check_ok(client.response(), "close")
            self.assertTrue(client.at_end())
            self.assertEqual(server.end(), 0)
            self.assertEqual(server.requests(), 1000 + 20 * len(REQUESTS) + 4)
            self.assertEqual(server.counter("handler_errors"), 0)

    def test_requests_cut_at_every_byte(self):
        with Server("--cores", "1", "--stats") as server, server.client() as probe:
            for request, head_only in REQUESTS:
                clients = [server.client() for _ in range(1, len(request))]
                for client in clients:
                    self.check_ok(client.ask())
                for cut, client in enumerate(clients, 1):
                    client.send(request[:cut])
                # The one core takes events in the order in which they came: after this answer it has seen every part.
                self.check_ok(probe.ask())
                for cut, client in enumerate(clients, 1):
                    client.send(request[cut:] + GET)
                for client in clients:
                    self.check_ok(client.response(head_only), body=b"" if head_only else BODY)
                    self.check_ok(client.response())
                    client.socket.close()
            self.assertEqual(server.end(), 0)
            self.assertEqual(server.counter("handler_errors"), 0)

    def test_one_byte_at_a_time(self):
        with Server("--cores", "1") as server, server.client() as client, server.client() as probe:
            for request, head_only in REQUESTS:
                for byte in request[:100]:
                    client.send(bytes([byte]))
                    self.check_ok(probe.ask())
                client.send(request[100:])
                self.check_ok(client.response(head_only), body=b"" if head_only else BODY)

    def check_refusal(self, client, status):
        answer, fields, body = client.response()
        self.assertEqual(answer, status)
        self.assertEqual(fields["Connection"], "close")
        self.assertTrue(body.startswith(b"%d " % status), body)
        self.assertTrue(client.at_end())

    def test_refusals(self):
        with Server("--stats") as server:
            for request, status in REFUSED:
                with self.subTest(request=request[:100]):
                    with server.client() as client:  # behind a good one, all in one segment
                        client.send(GET + request)
                        self.check_ok(client.response())
                        self.check_refusal(client, status)
                    with server.client() as client:  # in two parts, the second much larger than any limit
                        client.send(request[:10])
                        client.send(request[10:])
                        self.check_refusal(client, status)
                        try:
                            client.send(b"z" * 1_000_000)
                        except OSError:
                            pass  # the server has gone, as it may
            with server.client() as client:
                client.send(b"HEAD / HTTP/1.1\r\n\r\n")
                self.assertEqual(client.response(head_only=True)[0], 400)
                self.assertTrue(client.at_end())
            self.assertEqual(server.end(), 0)
            self.assertEqual(server.requests(), len(REFUSED))
            self.assertEqual(server.counter("handler_errors"), 0)

    def test_a_refusal_survives_what_the_client_goes_on_sending(self):
        with Server() as server:
            for _ in range(20):
                with server.client() as client:
                    client.send(b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 2000000\r\n\r\n" + b"z" * 2_000_000)
                    self.check_refusal(client, 413)

    def test_limits_are_options(self):
        with Server("--max-header-bytes", "100", "--max-body-bytes", "10") as server:
            for request, status in ((post(b"x" * 10), 200), (post(b"x" * 11), 413),
                                    (chunked(b"12345", b"67890"), 200), (chunked(b"12345", b"678901"), 413),
                                    (GET[:-2] + b"X: " + b"a" * 65 + b"\r\n\r\n", 200),
                                    (GET[:-2] + b"X: " + b"a" * 66 + b"\r\n\r\n", 431)):
                with self.subTest(request=request), server.client() as client:
                    self.assertEqual(client.ask(request)[0], status)
        with Server("--max-header-bytes", "200000") as server, server.client() as client:
            long = GET[:-2] + b"X: " + b"a" * 190_000 + b"\r\n\r\n"
            self.check_ok(client.ask(long * 3))
            self.check_ok(client.response())
            self.check_ok(client.response())

    def test_date(self):
        with Server("--cores", "1") as server, server.client() as client:
            seen = set()
            end = time.monotonic() + 2.2
            while time.monotonic() < end:
                before = int(time.time())
                date = client.ask()[1]["Date"]
                after = int(time.time())
                self.assertRegex(date, re.compile(r"[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT"))
                told = int(email.utils.parsedate_to_datetime(date).timestamp())
                # The server's time is that of the loop turn, in which the request may have been waiting.
                self.assertLessEqual(before - 1, told)
                self.assertLessEqual(told, after)
                seen.add(told)
            self.assertGreaterEqual(len(seen), 2)


if __name__ == "__main__":
    unittest.main()
