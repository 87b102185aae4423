"""Bulk data through the engine's relay: a gigabyte with a checksum, and iperf3."""

import hashlib
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import threading
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from programs import PATIENCE, Server, connect, is_sanitized  # noqa: E402

BLOCK = os.urandom(1_000_003)  # no multiple of any buffer's size
BYTES = 100_000_000 if is_sanitized("percore-relay") else 1_000_000_000
IPERF3 = shutil.which("iperf3")


def relay(to):
    return Server("percore-relay", "--listen", "127.0.0.1:0", "--to", to)


def send(one, digest):
    left = BYTES
    while left:
        part = memoryview(BLOCK)[:left]
        one.sendall(part)
        digest.update(part)
        left -= len(part)
    one.shutdown(socket.SHUT_WR)


def receive(one, digest):
    buffer, total = bytearray(1 << 20), 0
    while got := one.recv_into(buffer):
        digest.update(memoryview(buffer)[:got])
        total += got
    return total


class Checksum(unittest.TestCase):
    def transfer(self, upwards):
        with socket.create_server(("127.0.0.1", 0)) as listener, relay("127.0.0.1:%d" % listener.getsockname()[1]) as server, \
                connect(server.address) as near:
            listener.settimeout(PATIENCE)
            far, _ = listener.accept()
            with far:
                far.settimeout(PATIENCE)
                source, target = (near, far) if upwards else (far, near)
                sent, received = hashlib.sha256(), hashlib.sha256()
                sender = threading.Thread(target=send, args=(source, sent))
                sender.start()
                try:
                    self.assertEqual(receive(target, received), BYTES)
                finally:
                    sender.join()
                self.assertEqual(received.hexdigest(), sent.hexdigest())
                target.sendall(b"the other direction still flows")
                target.shutdown(socket.SHUT_WR)
                self.assertEqual(source.recv(100), b"the other direction still flows")
                self.assertEqual(source.recv(1), b"")

    def test_up(self):
        self.transfer(True)

    def test_down(self):
        self.transfer(False)


@unittest.skipUnless(IPERF3, "there is no iperf3")
class Iperf3(unittest.TestCase):
    def run_iperf3(self, *more):
        # iperf3 cannot be given a socket: a loopback address of our own makes it unlikely that somebody has its port.
        host = "127.%d.%d.%d" % (1 + os.getpid() % 250, os.urandom(1)[0], 1 + os.urandom(1)[0] % 250)
        with socket.socket() as probe:
            probe.bind((host, 0))
            port = str(probe.getsockname()[1])
        target = subprocess.Popen([IPERF3, "--server", "--one-off", "--forceflush", "--bind", host, "--port", port], stdout=subprocess.PIPE, text=True)
        try:
            for line in target.stdout:
                if "listening" in line:
                    break
            with relay(f"{host}:{port}") as server:
                near, _, near_port = server.address.rpartition(":")
                done = subprocess.run([IPERF3, "--client", near, "--port", near_port, "--bytes", str(BYTES // 2), "--json", *more],
                                      capture_output=True, timeout=3 * PATIENCE)
        finally:
            if target.poll() is None:
                target.terminate()
            target.communicate(timeout=PATIENCE)
        result = json.loads(done.stdout)
        self.assertEqual((done.returncode, result.get("error")), (0, None))
        self.assertGreaterEqual(result["end"]["sum_sent"]["bytes"], BYTES // 2)
        self.assertGreater(result["end"]["sum_received"]["bytes"], 0)

    def test_up(self):
        self.run_iperf3("--parallel", "3")

    def test_down(self):
        self.run_iperf3("--reverse")


if __name__ == "__main__":
    unittest.main()
