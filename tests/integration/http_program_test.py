"""percore-http as a program: its options, its bodies, how it ends."""

import glob
import hashlib
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import unittest

from http_server import GET, PROGRAM, WAIT_S, Server, run, wait_until

AES_KEY = b"0123456789ABCDEF"


def decrypt(message):
    """The plain text of an initialisation vector and a cipher text, by the openssl command."""
    command = ["openssl", "enc", "-d", "-aes-128-cbc", "-K", AES_KEY.hex(), "-iv", message[:16].hex()]
    return subprocess.run(command, input=message[16:], check=True, stdout=subprocess.PIPE).stdout


class Bodies(unittest.TestCase):
    def test_aes128(self):
        for body_bytes in (0, 15, 16, 1024, 100_000):
            with self.subTest(body_bytes=body_bytes), Server("--aes128", "--body", str(body_bytes)) as server:
                with server.client() as client:
                    client.send(GET * 10)
                    messages = [client.response()[2] for _ in range(10)]
                    client.send(b"HEAD" + GET[3:])
                    length = client.response(head_only=True)[1]["Content-Length"]
                for message in messages:
                    self.assertEqual(len(message), 16 + (body_bytes // 16 + 1) * 16)
                    self.assertEqual(decrypt(message), b"x" * body_bytes)
                self.assertEqual(int(length), len(messages[0]))
                self.assertEqual(len({message[:16] for message in messages}), 10)  # never the same vector
                self.assertEqual(server.end(), 0)

    def test_sha256(self):
        for body_bytes in (0, 1024, 100_000):
            with self.subTest(body_bytes=body_bytes), Server("--sha256", "--body", str(body_bytes)) as server:
                expected = hashlib.sha256(b"x" * body_bytes).hexdigest().encode()
                with server.client() as client:
                    client.send(GET * 10)
                    self.assertEqual([client.response()[2] for _ in range(10)], [expected] * 10)

    def test_responses_of_slow_readers_stay_whole(self):
        # Writers that wait for their readers share one core with others, whose responses are made meanwhile. 6 MB for
        # each reader are more than its 4 kB and the largest send buffer (4 MB in net.ipv4.tcp_wmem) take.
        for options, count, check in ((("--aes128", "--body", "300000"), 20, decrypt),
                                      (("--body", "300000"), 20, bytes)):
            with self.subTest(options=options), Server("--cores", "1", "--stats", *options) as server:
                slow = [server.client(receive_buffer_bytes=4096) for _ in range(5)]
                for client in slow:
                    client.send(GET * count)
                with server.client() as quick:
                    for _ in range(20):
                        self.assertEqual(set(check(quick.ask()[2])), set(b"x"))
                for client in slow:
                    for _ in range(count):
                        self.assertEqual(set(check(client.response()[2])), set(b"x"))
                    client.socket.close()
                self.assertEqual(server.end(), 0)
                self.assertEqual(server.counter("handler_errors"), 0)

    def test_sleep(self):
        with Server("--sleep-ms", "200", "--cores", "1", "--stats") as server:
            clients = [server.client() for _ in range(100)]
            start = time.monotonic()
            for client in clients:
                client.send(GET * 2)
            for client in clients:
                self.assertEqual(client.response()[0], 200)
            self.assertGreaterEqual(time.monotonic() - start, 0.2)
            for client in clients:
                self.assertEqual(client.response()[0], 200)
                client.socket.close()
            elapsed = time.monotonic() - start
            self.assertGreaterEqual(elapsed, 0.4)
            self.assertLess(elapsed, 200 * 0.2)  # they sleep side by side, not one after the other
            self.assertEqual(server.end(), 0)
            self.assertEqual(server.counter("frames_on_heap"), 0)

    def ask_by_twenty(self, server, rounds):
        """Twenty clients ask at once, so many times; then the server ends, and has counted them."""
        clients = [server.client() for _ in range(20)]
        for _ in range(rounds):
            for client in clients:
                client.send(GET)
            for client in clients:
                self.assertEqual(client.response()[0], 200)
        for client in clients:
            client.socket.close()
        self.assertEqual(server.end(), 0)
        self.assertEqual(sum(requests for _, requests in server.cores()), 20 * rounds)

    def test_ways_to_sleep(self):
        for how in ("timer", "offload", "blocking", "inline"):
            with self.subTest(how=how), Server("--sleep-ms", "20", "--sleep-how", how, "--cores", "1", "--helpers", "20",
                                               "--stats") as server:
                self.ask_by_twenty(server, 1)
                self.assertEqual(server.counter("helpers_submitted"), 20 if how in ("offload", "blocking") else 0)

    def test_handlers_that_block_and_spill_or_lose_their_core(self):
        for options in (["--spill", "always"], ["--spill", "when_slow"], ["--takeover", "on", "--takeover-after-ms", "1"]):
            with self.subTest(options=options), Server("--sleep-ms", "5", "--sleep-how", "inline", "--cores", "1",
                                                       "--stats", *options) as server:
                self.ask_by_twenty(server, 3)
                self.assertGreater(server.counter("takeovers" if "--takeover" in options else "spilled"), 0)

    def test_only_one_target_sleeps(self):
        sleepy = b"GET /sleep HTTP/1.1\r\nHost: test\r\n\r\n"
        for how in ("timer", "offload", "blocking", "inline"):
            with self.subTest(how=how), Server("--sleep-ms", "600000" if how == "timer" else "300", "--sleep-how", how,
                                               "--sleep-target", "/sleep", "--grace", "0.1", "--cores", "1") as server:
                with server.client() as quick, server.client() as slow:
                    for _ in range(3):
                        self.assertEqual(quick.ask()[0], 200)
                    start = time.monotonic()
                    slow.send(sleepy)
                    if how == "timer":
                        for _ in range(3):
                            self.assertEqual(quick.ask()[0], 200)
                    else:
                        self.assertEqual(slow.response()[0], 200)
                        self.assertGreaterEqual(time.monotonic() - start, 0.3)
                        slow.send(GET)
                        self.assertEqual(slow.response()[0], 200)
                if how != "timer":
                    self.assertEqual(server.end(), 0)

    def test_threads_that_share_a_core_share_its_responses(self):
        for options in (["--spill", "always"], ["--spill", "when_slow"], ["--takeover", "on"]):
            with self.subTest(options=options), Server("--cores", "1", *options) as server:
                clients = [server.client() for _ in range(20)]
                for _ in range(5):
                    for client in clients:
                        client.send(GET * 40)  # more than one write answers
                    for client in clients:
                        for _ in range(40):
                            self.assertEqual(set(client.response()[2]), set(b"x"))
                for client in clients:
                    client.socket.close()
                self.assertEqual(server.end(), 0)
                self.assertEqual(sum(requests for _, requests in server.cores()), 20 * 5 * 40)

    def test_blocking_handlers_serve_all_kinds_of_requests(self):
        with Server("--sleep-how", "blocking", "--cores", "1") as server:
            with server.client() as client:
                self.assertEqual(client.ask()[0], 200)
                client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" + b"b" * 100000 + GET)
                self.assertEqual(client.response()[0], 200)
                self.assertEqual(client.response()[0], 200)
                client.send(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n" + GET)
                self.assertEqual(client.response()[0], 200)
                self.assertEqual(client.response()[0], 200)
            with server.client() as client:
                client.send(b"nonsense\r\n\r\n")
                self.assertEqual(client.response()[0], 400)
            with server.client() as client:
                client.send(b"GET / HTTP/1.1\r\nHost: x\r\nx: " + b"y" * 9000 + b"\r\n\r\n")
                self.assertEqual(client.response()[0], 431)
            self.assertEqual(server.end(), 0)


class Listening(unittest.TestCase):
    def test_addresses(self):
        with tempfile.TemporaryDirectory() as folder:
            addresses = ["127.0.0.1:0", "127.0.0.1:0", f"unix:{folder}/socket", f"unix:@percore-{os.getpid()}"]
            if socket.has_ipv6 and os.path.exists("/proc/net/if_inet6"):
                addresses.append("[::1]:0")
            with Server(listen=addresses) as server:
                self.assertEqual(len(set(server.addresses)), len(addresses))
                for address in server.addresses:
                    with self.subTest(address=address), server.client(address) as client:
                        self.assertEqual(client.ask()[0], 200)
                self.assertEqual(server.end(), 0)
                self.assertEqual(sum(accepted for accepted, _ in server.cores()), len(addresses))
                self.assertFalse(os.path.exists(f"{folder}/socket"))

    def test_defer_accept(self):
        with Server("--defer-accept", "1", "--keep-alive", "off", "--stats") as server:
            for _ in range(10):
                with server.client() as client:
                    self.assertEqual(client.ask()[0], 200)
            self.assertEqual(server.end(), 0)
            self.assertEqual(server.counter("first_read_hits"), 10)

    def test_steering_backlog_cpus(self):
        cpu = str(min(os.sched_getaffinity(0)))
        for mode in ("automatic", "hash", "incoming_cpu", "cbpf"):
            with Server("--steering", mode, "--backlog", "16", "--cpus", cpu, "--unit", "thread", "--stats") as server:
                with server.client() as client:
                    self.assertEqual(client.ask()[0], 200)
                self.assertEqual(server.end(), 0)
                self.assertEqual(server.cores(), [(1, 1)])
                self.assertIn(f"core 0 cpu {cpu} ", server.output)
                listener = f"listener {server.addresses[0]} steered by hash: "
                why = "chosen by the caller" if mode == "hash" else "there is only one core"
                self.assertIn(listener + why + "\n", server.output)

    def test_limits_of_connections_make_others_wait(self):
        for option in ("--max-connections", "--max-connections-per-core"):
            with Server(option, "1", "--cores", "1") as server:
                first, second = server.client(), server.client()
                second.send(GET)
                self.assertEqual(first.ask()[0], 200)
                first.socket.close()
                self.assertEqual(second.response()[0], 200)
                second.socket.close()

    def test_timeouts_close_without_an_answer(self):
        for option in ("--read-timeout", "--idle-timeout", "--lifetime-timeout"):
            for beginning in (b"", GET[:20], b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 9\r\n\r\nabc"):
                with self.subTest(option=option, beginning=beginning), Server(option, "0.1") as server:
                    with server.client() as client:
                        client.send(beginning)
                        try:
                            self.assertTrue(client.at_end())
                        except ConnectionResetError:
                            self.assertEqual(option, "--lifetime-timeout")


class Memory(unittest.TestCase):
    # hwloc takes this for the machine (its manual, "Environment Variables"): two nodes with numbers that the kernel
    # does not have, so that it refuses what it is asked to bind to them. The first has all CPUs of this process.
    other_nodes = {"HWLOC_SYNTHETIC": f"numa:2(indexes=900,901) pu:{max(os.sched_getaffinity(0)) + 1}",
                   "HWLOC_THISSYSTEM": "1"}

    def test_a_node_that_the_kernel_refuses_is_told_once(self):
        with Server("--unit", "thread", environment=self.other_nodes) as server:
            with server.client() as client:
                self.assertEqual(client.ask()[0], 200)
            self.assertEqual(server.end(), 0)
            self.assertRegex(server.errors, r"\Apercore: [^\n]* NUMA node 900\b[^\n]*\n\Z")

    def test_one_node_alone_gives_no_warning(self):
        if len(glob.glob("/sys/devices/system/node/node[0-9]*")) > 1:
            self.skipTest("this machine has several NUMA nodes, and may really refuse")
        with Server("--unit", "thread") as server:
            self.assertEqual(server.end(), 0)
            self.assertNotIn("NUMA", server.errors)


class Ending(unittest.TestCase):
    def test_drain(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            with Server("--sleep-ms", "300", "--cores", "1") as server:
                idle, busy, posting = server.client(), server.client(), server.client()
                self.assertEqual(posting.ask()[0], 200)
                posting.send(b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 9\r\n\r\nabc")
                busy.send(GET)
                # The one core takes events in the order in which they came: it has seen both by the time of the answer.
                self.assertEqual(idle.ask()[0], 200)
                self.assertEqual(busy.response()[0], 200)
                busy.send(GET)
                server.send_signal(number)
                self.assertTrue(idle.at_end())
                status, fields, _ = busy.response()
                self.assertEqual((status, fields["Connection"]), (200, "close"))
                status, fields, _ = posting.ask(b"defghi")
                self.assertEqual((status, fields["Connection"]), (200, "close"))
                self.assertTrue(posting.at_end())
                self.assertEqual(server.end(None), 0)
                self.assertEqual(len(server.cores()), 1)
                for client in (idle, busy, posting):
                    client.socket.close()

    def test_a_signal_at_once(self):
        for _ in range(30):
            with Server("--cores", "1") as server:
                self.assertEqual(server.end(), 0)
                self.assertEqual(server.cores(), [(0, 0)])

    def test_the_counts_are_of_all_cores(self):
        with Server() as server:
            for _ in range(40):
                with server.client() as client:
                    client.send(GET * 5)
                    for _ in range(5):
                        self.assertEqual(client.response()[0], 200)
            self.assertEqual(server.end(), 0)
            self.assertEqual(server.requests(), 200)
            self.assertEqual(sum(accepted for accepted, _ in server.cores()), 40)
            self.assertEqual(server.errors, "")

    def test_a_second_signal_and_the_end_of_the_grace_end_what_would_take_long(self):
        for options, signals in (((), 2), (("--grace", "0.2"), 1)):
            with self.subTest(options=options), Server("--sleep-ms", "600000", *options, "--cores", "1") as server:
                with server.client() as sleeper, server.client() as idle:
                    sleeper.send(GET)
                    idle.send(b"GET")
                    time.sleep(0.05)  # most likely both are served by now; if not, the result is the same
                    server.send_signal(signal.SIGTERM)
                    if signals == 2:
                        # Two signals at the same moment may merge into one, so the first must have been obeyed.
                        wait_until(lambda: self.refuses_connections(server), "it has stopped listening")
                        server.send_signal(signal.SIGTERM)
                    self.assertEqual(server.end(None), 0)

    @staticmethod
    def refuses_connections(server):
        try:
            server.client().socket.close()
        except OSError:
            return True
        return False

    def test_no_descriptor_is_left(self):
        with Server() as server:
            before = server.descriptors()
            clients = [server.client() for _ in range(200)]
            for number, client in enumerate(clients):
                client.send((GET, GET[:10], b"\0", b"HEAD" + GET[3:], b"")[number % 5])
            wait_until(lambda: server.descriptors() > before, "clients are there")
            for client in clients:
                client.socket.close()
            wait_until(lambda: server.descriptors() == before, "all clients are gone")
            self.assertEqual(server.end(), 0)
            self.assertEqual(server.errors, "")

    @unittest.skipUnless(shutil.which("wrk"), "wrk is not installed")
    def test_wrk(self):
        for options in ((), ("--keep-alive", "off"), ("--aes128",), ("--body", "100000")):
            with self.subTest(options=options), Server(*options, "--stats") as server:
                output = subprocess.run(["wrk", "-t1", "-c50", "-d1s", server.url], check=True, text=True,
                                        timeout=WAIT_S, stdout=subprocess.PIPE).stdout
                answered = int(re.search(r"(\d+) requests in", output).group(1))
                self.assertGreater(answered, 0)
                self.assertNotIn("Socket errors", output)
                self.assertNotIn("Non-2xx", output)
                self.assertEqual(server.end(), 0)
                self.assertGreaterEqual(server.requests(), answered)
                self.assertEqual(server.counter("handler_errors"), 0)


class CommandLine(unittest.TestCase):
    def test_plan(self):
        for options, cores in ((("--topology", "c5.metal"), 48),
                               (("--topology", "c5.metal", "--unit", "thread"), 96),
                               (("--topology", "c5.metal", "--cores", "5"), 5),
                               (("--topology", "pack:2 core:4 pu:2", "--cpus", "0-2,5"), 4),
                               (("--topology", "1cpu"), 1)):
            result = run("--plan", *options)
            self.assertEqual((result.returncode, result.stderr), (0, ""))
            self.assertEqual(len(re.findall(r"^core +\d+: cpu", result.stdout, re.M)), cores, options)
        self.assertEqual(run("--plan").returncode, 0)

    def test_plan_on_chosen_numa_nodes(self):
        # c5.metal's nodes are its packages: CPUs 0-23 and 48-71 are of the first, the others of the second.
        for options, nodes, first_cpu in ((("--numa-nodes", "all"), [0] * 24 + [1] * 24, 0),
                                          (("--numa-nodes", "1"), [1] * 24, 24),
                                          (("--numa-nodes", "1,0"), [1] * 24 + [0] * 24, 24),
                                          (("--numa-nodes", "0-1", "--cores", "3"), [0] * 3, 0),
                                          (("--numa-nodes", "1", "--unit", "thread"), [1] * 48, 24)):
            with self.subTest(options=options):
                result = run("--plan", "--topology", "c5.metal", *options)
                self.assertEqual((result.returncode, result.stderr), (0, ""))
                found = re.findall(r"^core +\d+: cpu +(\d+), package \d+, NUMA node (\d+)", result.stdout, re.M)
                self.assertEqual([int(node) for _, node in found], nodes)
                self.assertEqual(int(found[0][0]), first_cpu)
        result = run("--plan", "--topology", "c5.metal", "--numa-nodes", "2")
        self.assertEqual(result.returncode, 2)
        self.assertRegex(result.stderr, r"^percore-http: .*NUMA node 2\b.* \(see --help\)\n$")

    def test_serves_on_all_numa_nodes(self):
        with Server("--numa-nodes", "all", "--cores", "1") as server, server.client() as client:
            self.assertEqual(client.ask()[0], 200)

    def test_help_and_version(self):
        result = run("--help")
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        for option in ("--listen", "--body", "--keep-alive", "--sleep-ms", "--aes128", "--sha256", "--cores", "--cpus",
                       "--numa-nodes"):
            self.assertIn(option, result.stdout)
        result = run("--version")
        self.assertEqual(result.returncode, 0)
        self.assertRegex(result.stdout, r"^percore-http \d+\.\d+\.\d+\n$")

    def test_bad_usage(self):
        for options in (["--nonsense"], ["-x"], ["extra"], ["--listen"], ["--listen", "nonsense"],
                        ["--listen", "127.0.0.1:99999"], ["--listen", "unix:"], ["--body", "x"], ["--body", "-1"],
                        ["--body", "9999999999"], ["--keep-alive", "yes"], ["--sleep-ms", "1.5"],
                        ["--sleep-how", "well"], ["--spill", "often"], ["--spill-budget-us", "9"], ["--takeover", "maybe"], ["--helpers", "0"], ["--helpers", "5000"],
                        ["--aes128", "--sha256"], ["--cores", "0"], ["--cores", "9999"], ["--cpus", "3-1"],
                        ["--cpus", "8000"], ["--cpus", "0", "--cores", "1"], ["--unit", "socket"],
                        ["--numa-nodes", "x"], ["--numa-nodes", ""], ["--numa-nodes", "1-0"],
                        ["--numa-nodes", "8000"], ["--numa-nodes", "0", "--cpus", "0"],
                        ["--topology", "c5.metal"], ["--plan", "--topology", "nonsense"], ["--defer-accept", "x"],
                        ["--fin-with-data", "1"], ["--steering", "up"], ["--backlog", "-1"],
                        ["--max-header-bytes", "10"], ["--read-timeout", "-1"], ["--grace", "nan"]):
            with self.subTest(options=options):
                result = run(*options)
                self.assertEqual(result.returncode, 2)
                self.assertEqual(result.stdout, "")
                self.assertRegex(result.stderr, r"^percore-http: .+ \(see --help\)\n$")

    def test_an_address_in_use(self):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            result = run("--listen", address)
            self.assertEqual((result.returncode, result.stdout), (1, ""))
            self.assertIn(address, result.stderr)


if __name__ == "__main__":
    unittest.main()
