"""Clients that are not ours at the echo example: asyncio in crowds and curl, over every address family."""

import asyncio
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from programs import PATIENCE, Server, has_ipv6  # noqa: E402


async def open_connection(address):
    if address.startswith("unix:@"):
        return await asyncio.open_unix_connection("\0" + address[len("unix:@"):])
    if address.startswith("unix:"):
        return await asyncio.open_unix_connection(address[len("unix:"):])
    host, port = address.rsplit(":", 1)
    return await asyncio.open_connection(host.strip("[]"), int(port))


async def converse(address, seed, rounds, largest):
    """Sends and reads at the same time, so that neither side can wait for the other, and compares."""
    numbers = random.Random(seed)
    reader, writer = await open_connection(address)
    try:
        for _ in range(rounds):
            # Mostly small, now and then large: sizes of every order of magnitude.
            text = numbers.randbytes(int(largest ** numbers.random()))

            async def send():
                writer.write(text)
                await writer.drain()

            _, answer = await asyncio.gather(send(), reader.readexactly(len(text)))
            if answer != text:
                raise AssertionError(f"an answer of {len(answer)} bytes differs, seed {seed}")
        if numbers.random() < 0.5:
            writer.write_eof()
            if await reader.read() != b"":
                raise AssertionError("something after the last answer")
    finally:
        writer.close()


async def crowd(address, seed, clients, rounds, largest):
    await asyncio.wait_for(
        asyncio.gather(*(converse(address, seed + i, rounds, largest) for i in range(clients))), 3 * PATIENCE)


class Asyncio(unittest.TestCase):
    def check(self, where, clients, rounds, largest):
        seed = random.randrange(2**32)
        print(f"{where}: {clients} clients, seed {seed}", flush=True)
        with Server("echo", where) as server:
            asyncio.run(crowd(server.address, seed, clients, rounds, largest))

    def test_a_thousand_at_a_time(self):
        self.check("127.0.0.1:0", 1000, 5, 200_000)

    def test_few_with_much(self):
        self.check("127.0.0.1:0", 10, 10, 5_000_000)

    @unittest.skipUnless(has_ipv6(), "this machine has no IPv6")
    def test_ipv6(self):
        self.check("[::1]:0", 200, 5, 100_000)

    def test_socket_file(self):
        with tempfile.TemporaryDirectory(prefix="percore-") as folder:
            path = os.path.join(folder, "socket")
            self.check("unix:" + path, 200, 5, 100_000)
            self.assertFalse(os.path.exists(path))

    def test_abstract_name(self):
        self.check(f"unix:@percore-clients-{os.getpid()}", 200, 5, 100_000)

    def test_many_short_connections(self):
        with Server("echo", "127.0.0.1:0") as server:
            async def one_after_the_other(first):
                for i in range(20):
                    await converse(server.address, first + i, 1, 1000)

            async def all_of_them():
                await asyncio.gather(*(one_after_the_other(1000 * i) for i in range(100)))

            asyncio.run(asyncio.wait_for(all_of_them(), 3 * PATIENCE))


@unittest.skipUnless(shutil.which("curl"), "curl is not installed")
class Curl(unittest.TestCase):
    def telnet(self, address):
        client = subprocess.Popen(["curl", "--silent", "--no-buffer", f"telnet://{address}"],
                                  stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            for text in (b"hello from curl\n", b"and again\n"):
                client.stdin.write(text)
                client.stdin.flush()
                self.assertEqual(client.stdout.readline(), text)
        finally:
            client.kill()
            client.communicate()

    def test_telnet(self):
        with Server("echo", "127.0.0.1:0") as server:
            self.telnet(server.address)

    @unittest.skipUnless(has_ipv6(), "this machine has no IPv6")
    def test_telnet_over_ipv6(self):
        with Server("echo", "[::1]:0") as server:
            self.telnet(server.address)


if __name__ == "__main__":
    unittest.main()
