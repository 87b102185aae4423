"""The constant-rate generator, the counter of instructions and the host report."""

import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/support")]

import programs  # noqa: E402
from perf.bench import servers, sharing, workloads  # noqa: E402

STEPCOUNT = programs.binary("stepcount")


def floor(*arguments):
    return programs.Server("floor", "--listen", "127.0.0.1:0", *arguments)


def pace(server, *arguments):
    status, out, errors = programs.run("pace", "--address", server.address, *arguments)
    if status != 0:
        raise AssertionError(errors)
    return json.loads(out)


class Pace(unittest.TestCase):
    def test_the_number_of_requests_is_the_rate_times_the_duration(self):
        for extra in ([], ["--close"], ["--threads", "2"]):
            with self.subTest(extra=extra), floor("--keep-alive", "off" if "--close" in extra else "on") as server:
                found = pace(server, "--rate", "400", "--duration", "1", "--warm-up", "0.2", *extra)
                self.assertLessEqual(abs(found["requests"] - 400), 2)
                self.assertEqual((found["errors"], found["unanswered"]), (0, 0))
                values = list(found["latency_us"].values())
                self.assertEqual(values, sorted(values))
                self.assertGreater(values[0], 0)

    def test_tls(self):
        for extra in ([], ["--full-handshakes"]):
            with self.subTest(extra=extra), floor("--tls", "fd", "--keep-alive", "off") as server:
                found = pace(server, "--rate", "50", "--duration", "1", "--warm-up", "0", "--tls", "--close", *extra)
                self.assertLessEqual(abs(found["requests"] - 50), 1)
                self.assertEqual(found["errors"], 0)

    def test_waiting_for_a_free_connection_counts(self):
        """Coordinated omission: one connection, answers that take 100 ms, 50 requests a second. A generator that measured
        from the sending would see 100 ms each; from the intended time the last of 50 waits some 4 s."""
        with floor("--sleep-ms", "100") as server:
            found = pace(server, "--rate", "50", "--connections", "1", "--duration", "1", "--warm-up", "0")
        self.assertEqual(found["requests"], 50)
        self.assertGreater(found["unanswered"], 0)   # what does not come within 2 s of the end
        self.assertGreater(found["latency_us"]["90"], 1e6)
        self.assertGreater(found["latency_us"]["50"], 5e5)

    def test_it_asks_for_the_target(self):
        """Only requests for /slow wait: 100 ms each."""
        with programs.Server("percore-http", "--listen", "127.0.0.1:0", "--sleep-ms", "100", "--sleep-target",
                             "/slow") as server:
            requests = ["--rate", "20", "--duration", "0.5", "--warm-up", "0"]
            slow = pace(server, *requests, "--target", "/slow")
            self.assertEqual((slow["requests"], slow["errors"], slow["unanswered"]), (10, 0, 0))
            # Its histogram's steps are a few percent wide.
            self.assertGreater(min(slow["latency_us"].values()), 95e3)
            target = "/" + "x" * 3000  # unlike "/", which pace asks for without the option
            for other in (["--target", "/"], [], ["--target", target]):
                found = pace(server, *requests, *other)
                self.assertEqual((found["requests"], found["errors"], found["unanswered"]), (10, 0, 0))

    def test_answers_that_are_none_are_errors(self):
        with programs.Server("percore-http", "--listen", "127.0.0.1:0", "--tls") as server:  # it wants TLS
            found = pace(server, "--rate", "50", "--duration", "0.5", "--warm-up", "0")
        self.assertEqual(found["errors"], found["requests"])

    def test_idle_connections_stay_open(self):
        with floor() as server:
            process = subprocess.Popen([programs.binary("pace"), "--address", server.address, "--idle", "300"],
                                       stdout=subprocess.PIPE, text=True)
            try:
                self.assertEqual(process.stdout.readline(), "idle 300\n")
                descriptors = len(os.listdir(f"/proc/{server.pid}/fd"))
                self.assertGreater(descriptors, 300)
            finally:
                process.terminate()
                process.communicate()
            self.assertEqual(process.returncode, 0)

    def test_bad_usage(self):
        for arguments in ([], ["--address", "127.0.0.1:1"], ["--address", "localhost:1", "--rate", "1"],
                          ["--address", "127.0.0.1:1", "--rate", "0"], ["--address", "127.0.0.1:1", "--rate", "nan"],
                          ["--address", "127.0.0.1:1", "--rate", "1", "--idle", "1"], ["--no-such"], ["stray"],
                          ["--address", "127.0.0.1:1", "--rate", "1", "--threads", "101"],
                          ["--address", "127.0.0.1:1", "--rate", "1", "--target", "no-path"],
                          ["--address", "127.0.0.1:1", "--rate", "1", "--target", "/two words"]):
            with self.subTest(arguments=arguments):
                status, _, errors = programs.run("pace", *arguments)
                self.assertEqual(status, 2)
                self.assertTrue(errors)


@unittest.skipUnless(STEPCOUNT.exists(), "x86-64 only")
class Stepcount(unittest.TestCase):
    def test_the_floors_system_calls(self):
        """Keep-alive: epoll_wait, recv, send; a connection each: accept4 twice (the second finds none), epoll_ctl, close and a
        wait more."""
        for keep_alive, extra, calls in (("on", [], 3), ("off", ["close"], 8)):
            with self.subTest(keep_alive=keep_alive):
                cpu = str(min(os.sched_getaffinity(0)))
                process = subprocess.Popen([programs.binary("floor"), "--listen", "127.0.0.1:0", "--cpus", cpu, "--keep-alive",
                                            keep_alive], stdout=subprocess.PIPE, text=True)
                try:
                    port = process.stdout.readline().strip().rsplit(":", 1)[1]
                    status, out, errors = programs.run("stepcount", str(process.pid), port, "10", *extra)
                finally:
                    process.kill()
                    process.communicate()
                if status != 0 and "Operation not permitted" in errors:
                    self.skipTest("may not trace")
                self.assertEqual(status, 0, errors)
                found = json.loads(out)
                self.assertEqual((found["requests"], found["system_calls"], found["futexes"]), (10, calls, 0))
                self.assertEqual(found["shared_atomics"], 0)
                self.assertGreater(found["instructions"], 50)

    def test_bad_usage(self):
        for arguments in ([], ["1", "2"], ["x", "1", "1"], ["1", "1", "1", "open"]):
            self.assertEqual(programs.run("stepcount", *arguments)[0], 2)


class Innocents(unittest.TestCase):
    WAYS = ["no blockers", "inline", "when_slow", "takeover", "both"]

    def run_it(self, *arguments):
        cpus = ",".join(map(str, sorted(os.sched_getaffinity(0))))
        return subprocess.run([ROOT / "scripts/innocents", "--bin", programs.binary("."), "--server-cpus", cpus, "--load-cpus",
                               cpus, *arguments], capture_output=True, text=True, timeout=100)

    def test_a_short_run_of_every_way(self):
        with tempfile.TemporaryDirectory() as root:
            kept = pathlib.Path(root, "innocents.json")
            done = self.run_it("--rounds", "1", "--duration", "0.5", "--rate", "200", "--connections", "5", "--json", kept)
            self.assertEqual((done.returncode, done.stderr), (0, ""))
            results = json.loads(kept.read_text())
        self.assertEqual(list(results), self.WAYS)
        for rounds in results.values():
            self.assertEqual(len(rounds), 1)
            self.assertLessEqual(abs(rounds[0]["requests"] - 100), 2)
            self.assertEqual((rounds[0]["errors"], rounds[0]["unanswered"]), (0, 0))
        head, *rows = done.stdout.splitlines()
        self.assertRegex(head, r"p50 +p90 +p99 +p99\.9")
        self.assertEqual([row[:12].strip() for row in rows], self.WAYS)
        for row in rows:
            self.assertRegex(row[12:], r"^( +\d+){4} +\d+\.\d\d +\d+$")
        self.assertIn(" 1.00 ", rows[0])

    def test_what_goes_wrong_is_said(self):
        done = self.run_it("--ways", "inline,sideways")
        self.assertEqual(done.returncode, 2)
        self.assertIn("unknown ways: sideways", done.stderr)
        done = self.run_it("--rounds", "1", "--ways", "inline", "--", "--no-such-option")
        self.assertEqual(done.returncode, 1)
        self.assertIn("percore-http does not serve", done.stderr)


class HostCheck(unittest.TestCase):
    def test_it_reports_and_changes_nothing(self):
        paths = ["net/core/somaxconn", "net/ipv4/ip_local_port_range", "net/ipv4/tcp_tw_reuse"]
        settings = lambda: [pathlib.Path("/proc/sys", path).read_text() for path in paths]
        before = settings()
        done = subprocess.run([ROOT / "scripts/host-check"], capture_output=True, text=True, timeout=60)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertEqual(settings(), before)
        for word in ("open files", "somaxconn", "ip_local_port_range", "tcp_tw_reuse", "mitigations", "conntrack",
                     "netfilter", "SMT", "RPS of lo", "irqbalance", "load average"):
            self.assertIn(word, done.stdout)
        for line in done.stdout.splitlines():
            self.assertRegex(line, re.compile(r"^(ok|limits|disturbs|unknown| ) "))

    def test_bad_usage(self):
        done = subprocess.run([ROOT / "scripts/host-check", "--fix"], capture_output=True, timeout=60)
        self.assertEqual(done.returncode, 2)


class Scale(unittest.TestCase):
    def test_bad_usage(self):
        done = subprocess.run([ROOT / "scripts/scale", "--servers", "no"], capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, 2)
        self.assertIn("no server 'no'", done.stderr)

    @unittest.skipUnless(sharing.is_possible(), "valgrind is not installed")
    @unittest.skipIf(len(os.sched_getaffinity(0)) < 2, "two threads need a CPU each")
    @unittest.skipIf("PERCORE_DEBUG_BUILD" in os.environ, "the stall watch of debug builds never rests")
    def test_no_line_moves_between_cores(self):
        """The first rule of the engine: nothing on the request path that two cores write."""
        kind = next(k for k in servers.built_in(str(programs.binary(".")), str(ROOT)) if k.name == "percore")
        with tempfile.TemporaryDirectory() as root:
            found = sharing.count(kind, workloads.ALL["1"], sorted(os.sched_getaffinity(0))[:2], root, 0)
        self.assertLess(found["lines_moved"], 1)

    def test_without_programs(self):
        done = subprocess.run([ROOT / "scripts/scale", "--bin-dir", "/nonexistent"], capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, 1)
        self.assertIn("no stepcount", done.stderr)


if __name__ == "__main__":
    unittest.main()
