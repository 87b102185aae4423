"""The example file server."""

import http.client
import os
import pathlib
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from programs import PATIENCE, Server, connect, receive_to_end, run  # noqa: E402


class StaticFiles(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = pathlib.Path(folder.name, "root")
        (self.root / "sub").mkdir(parents=True)
        self.files = {"small": b"x", "empty": b"", "large": os.urandom(5_000_000), "sub/a b": b"inside"}
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
            for line, status in (("GET /none", 404), ("GET /", 404), ("GET /sub", 404), ("GET /link", 404),
                                 ("GET /inner", 404), ("GET /pipe", 404), ("GET /../secret", 404),
                                 ("GET /sub/../../secret", 404), ("GET /%2e%2e/secret", 404), ("GET //etc/passwd", 404),
                                 ("GET /%00", 400), ("GET /%4", 400), ("POST /small", 405), ("GET", 400)):
                with self.subTest(line), connect(server.address) as peer:
                    peer.sendall(f"{line} HTTP/1.1\r\nConnection: close\r\n\r\n".encode())
                    head, body = receive_to_end(peer).split(b"\r\n\r\n", 1)
                    self.assertEqual((int(head.split()[1]), body), (status, b""))

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
