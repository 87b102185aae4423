"""The example file server."""

import http.client
import os
import pathlib
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from programs import PATIENCE, Server, connect, receive_exactly, receive_to_end, run  # noqa: E402


class StaticFiles(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = pathlib.Path(folder.name, "root")
        (self.root / "sub").mkdir(parents=True)
        self.files = {"small": b"x", "empty": b"", "large": os.urandom(5_000_000), "sub/a b": b"inside"}
        self.files["sub/index.html"] = b"<p>index</p>"
        for name, content in self.files.items():
            (self.root / name).write_bytes(content)
        pathlib.Path(folder.name, "secret").write_text("secret")
        (self.root / "link").symlink_to("../secret")
        (self.root / "inner").symlink_to("small")
        os.mkfifo(self.root / "pipe")

    def test_files(self):
        with Server("static_files", str(self.root), "127.0.0.1:0") as server:
            peer = http.client.HTTPConnection(*server.address.split(":"), timeout=PATIENCE)
            for _ in range(3):
                for name, content in self.files.items():
                    peer.request("GET", "/" + name.replace(" ", "%20") + "?query")
                    answer = peer.getresponse()
                    self.assertEqual((answer.status, answer.read()), (200, content))
            peer.request("HEAD", "/large")
            answer = peer.getresponse()
            self.assertEqual((answer.status, answer.headers["Content-Length"], answer.read()), (200, "5000000", b""))
            peer.close()

    def test_what_is_not_there(self):
        with Server("static_files", str(self.root), "127.0.0.1:0") as server:
            for line, status in (("GET /none", 404), ("GET /", 404), ("GET /sub", 301), ("GET /link", 404),
                                 ("GET /inner", 404), ("GET /pipe", 404), ("GET /../secret", 404),
                                 ("GET /sub/../../secret", 404), ("GET /%2e%2e/secret", 404), ("GET //etc/passwd", 404),
                                 ("GET /%00", 400), ("GET /%4", 400), ("POST /small", 405), ("GET", 400)):
                with self.subTest(line), connect(server.address) as peer:
                    peer.sendall(f"{line} HTTP/1.1\r\nConnection: close\r\n\r\n".encode())
                    head, body = receive_to_end(peer).split(b"\r\n\r\n", 1)
                    self.assertEqual((int(head.split()[1]), body), (status, b""))

    def ask(self, peer, path, status, **fields):
        peer.request(fields.pop("method", "GET"), path, headers={name.replace("_", "-"): value for name, value in fields.items()})
        answer = peer.getresponse()
        body = answer.read()
        self.assertEqual(answer.status, status)
        return answer.headers, body

    def test_parts(self):
        with Server("static_files", str(self.root), "127.0.0.1:0") as server:
            peer = http.client.HTTPConnection(*server.address.split(":"), timeout=PATIENCE)
            large = self.files["large"]
            for range_, begin, end in (("0-0", 0, 1), ("100-", 100, None), ("4999999-", 4999999, None), ("-10", 4999990, None),
                                       ("10-99999999", 10, None), ("-99999999", 0, None), ("1000-2999999", 1000, 3000000)):
                with self.subTest(range_):
                    headers, body = self.ask(peer, "/large", 206, Range=f"bytes={range_}")
                    expected = large[begin:end]
                    self.assertEqual(body, expected)
                    self.assertEqual(headers["Content-Range"], f"bytes {begin}-{begin + len(expected) - 1}/5000000")
            for range_ in ("bytes=5-4", "bytes=a-b", "bytes=0-1,3-4", "lines=1-2", "bytes=", "bytes=-", "bytes=1--2", "bytes=5"):
                with self.subTest(range_):
                    self.assertEqual(self.ask(peer, "/large", 200, Range=range_)[1], large)
            for name, range_ in (("large", "bytes=5000000-"), ("large", "bytes=-0"), ("empty", "bytes=0-"), ("empty", "bytes=-1")):
                with self.subTest(range_):
                    headers, body = self.ask(peer, f"/{name}", 416, Range=range_)
                    self.assertEqual((headers["Content-Range"], body), (f"bytes */{len(self.files[name])}", b""))
            headers, body = self.ask(peer, "/large", 206, Range="bytes=7-9", method="HEAD")
            self.assertEqual((headers["Content-Length"], body), ("3", b""))
            tag = headers["ETag"]
            self.ask(peer, "/large", 206, Range="bytes=7-9", If_Range=tag)
            self.ask(peer, "/large", 206, Range="bytes=7-9", If_Range=headers["Last-Modified"])
            self.ask(peer, "/large", 200, Range="bytes=7-9", If_Range='"other"')
            peer.close()

    def test_what_a_client_has_already(self):
        with Server("static_files", str(self.root), "127.0.0.1:0") as server:
            peer = http.client.HTTPConnection(*server.address.split(":"), timeout=PATIENCE)
            os.utime(self.root / "small", (1_000_000_000, 1_000_000_000))
            headers, _ = self.ask(peer, "/small", 200)
            tag, date = headers["ETag"], headers["Last-Modified"]
            self.assertEqual(date, "Sun, 09 Sep 2001 01:46:40 GMT")
            for fields in ({"If_None_Match": tag}, {"If_None_Match": "*"}, {"If_None_Match": f'"x", W/{tag}'},
                           {"If_Modified_Since": date}, {"If_Modified_Since": "Mon, 10 Sep 2001 01:46:40 GMT"}):
                with self.subTest(fields):
                    headers, body = self.ask(peer, "/small", 304, **fields)
                    self.assertEqual((headers["ETag"], body), (tag, b""))
            for fields in ({"If_None_Match": '"x"'}, {"If_None_Match": '"x"', "If_Modified_Since": date},
                           {"If_Modified_Since": "Sat, 08 Sep 2001 01:46:40 GMT"}, {"If_Modified_Since": "yesterday"}):
                with self.subTest(fields):
                    self.assertEqual(self.ask(peer, "/small", 200, **fields)[1], b"x")
            os.utime(self.root / "small", (1_000_000_001, 1_000_000_001))
            self.assertNotEqual(self.ask(peer, "/small", 200, If_None_Match=tag)[0]["ETag"], tag)
            peer.close()

    def test_folders_and_types(self):
        with Server("static_files", str(self.root), "127.0.0.1:0") as server:
            peer = http.client.HTTPConnection(*server.address.split(":"), timeout=PATIENCE)
            self.assertEqual(self.ask(peer, "/sub", 301)[0]["Location"], "/sub/")
            self.assertEqual(self.ask(peer, "//sub?x", 301)[0]["Location"], "/sub/")  # //sub/ would be another host
            headers, body = self.ask(peer, "/sub/", 200)
            self.assertEqual((headers["Content-Type"], body), ("text/html; charset=utf-8", b"<p>index</p>"))
            self.assertEqual(self.ask(peer, "http://any.host/small", 200)[1], b"x")
            self.assertEqual(self.ask(peer, "/small", 200)[0]["Content-Type"], "application/octet-stream")
            peer.close()

    def test_more_than_4_gib(self):
        size = 5 * 2**30
        with open(self.root / "sparse", "wb") as file:
            file.truncate(size)
            file.seek(size - 3)
            file.write(b"end")
        with Server("static_files", str(self.root), "127.0.0.1:0") as server:
            peer = http.client.HTTPConnection(*server.address.split(":"), timeout=PATIENCE)
            self.assertEqual(self.ask(peer, "/sparse", 200, method="HEAD")[0]["Content-Length"], str(size))
            self.assertEqual(self.ask(peer, "/sparse", 206, Range="bytes=-4")[1], b"\0end")
            self.assertEqual(self.ask(peer, "/sparse", 206, Range=f"bytes={2**32 - 1}-{2**32 + 1}")[1], b"\0\0\0")
            peer.close()

    def test_pipelined_requests(self):
        with Server("static_files", str(self.root), "127.0.0.1:0") as server, connect(server.address) as peer:
            count = 500
            peer.sendall(count * b"GET /small HTTP/1.1\r\nHost: x\r\n\r\n" + b"GET /none HTTP/1.1\r\nconnection: Close\r\n\r\n")
            answers = receive_to_end(peer)
            self.assertEqual(answers.count(b"HTTP/1.1 200 OK\r\n"), count)
            self.assertEqual(answers.count(b"HTTP/1.1 404 Not Found\r\n"), 1)

    def test_a_body_is_not_taken_for_a_request(self):
        hidden = b"GET /small HTTP/1.1\r\n\r\n"
        with Server("static_files", str(self.root), "127.0.0.1:0") as server:
            for field in (f"content-length: {len(hidden)}", "TRANSFER-ENCODING: chunked"):
                with connect(server.address) as peer:
                    peer.sendall(f"GET /empty HTTP/1.1\r\n{field}\r\n\r\n".encode() + hidden)
                    try:
                        self.assertEqual(receive_to_end(peer).count(b"HTTP/1.1"), 1)
                    except ConnectionResetError:
                        pass

    def test_heads_that_are_none(self):
        with Server("static_files", str(self.root), "127.0.0.1:0") as server:
            for text, status in (("GET /small HTTP/1.1\r\nno colon\r\n\r\n", 400), ("GET /small HTTP/1.1\r\n: x\r\n\r\n", 400),
                                 ("GET /small HTTP/1.1\r\nA : x\r\n\r\n", 400), ("GET /small HTTP/1.1\r\n A: x\r\n\r\n", 400),
                                 ("GET /sm\x01all HTTP/1.1\r\n\r\n", 400), ("\r\n\r\n", 400),
                                 ("GET / HTTP/1.1\r\nA: " + 9000 * "x" + "\r\n\r\n", 431)):
                with self.subTest(text[:40]), connect(server.address) as peer:
                    peer.sendall(text.encode())
                    self.assertEqual(int(receive_exactly(peer, 12).split()[1]), status)

    def test_usage(self):
        status, output, errors = run("static_files", "--help")
        self.assertEqual((status, errors), (0, ""))
        self.assertTrue(output.startswith("usage: static_files"))
        for arguments in ([], ["--nonsense"], [str(self.root), "127.0.0.1:0", "more"], [str(self.root / "none")],
                          [str(self.root), "not an address"]):
            status, output, errors = run("static_files", *arguments)
            self.assertEqual((status, output), (2, ""))
            self.assertNotEqual(errors, "")


if __name__ == "__main__":
    unittest.main()
