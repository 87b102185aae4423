"""What scripts/bench --plan says, against the published set-up, and what it says to bad usage."""

import contextlib
import io
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import unittest
import unittest.mock

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from perf.bench import cli, plan, servers, topology, workloads  # noqa: E402

BENCH = ROOT / "scripts/bench"


def bench(*arguments, **environment):
    return subprocess.run([BENCH, *arguments], capture_output=True, text=True, timeout=60, env=os.environ | environment)


def refused(*arguments):
    """In this process, which is quicker: (exit status, standard error)."""
    before = signal.getsignal(signal.SIGTERM)
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors), unittest.mock.patch.object(sys, "argv", ["bench", *arguments]):
            return cli.main(), errors.getvalue()
    except SystemExit as end:  # argparse
        return end.code, errors.getvalue()
    finally:
        signal.signal(signal.SIGTERM, before)


def planned(*arguments):
    done = bench("--plan", *arguments)
    if done.returncode != 0:
        raise AssertionError(done.stderr)
    return done.stdout


def cpus_of(text):
    cpus = []
    for item in text.split(","):
        first, _, last = item.partition("-")
        cpus += range(int(first), int(last or first) + 1)
    return cpus


class Published(unittest.TestCase):
    """benchmark/benchmark.sh of the Go library on c5.metal: servers on node 0 with GOMAXPROCS=N, load on node 1, 1000
    connections, 10 s. Linux numbers the CPUs of node 0 there 0-23 and 48-71, those of node 1 24-47 and 72-95."""

    @classmethod
    def setUpClass(cls):
        cls.text = planned("--topology", "c5.metal")

    def reference_counts(self, test):
        path = ROOT / "gnuplot/reference/c5.metal" / workloads.ALL[test].reference
        rows = [line.split() for line in path.read_text().splitlines() if not line.startswith("#")][1:]
        return [int(row[0]) for row in rows]

    def test_core_counts_of_every_test(self):
        for name in workloads.DEFAULT_NAMES:
            counts = [int(n) for n in re.findall(rf"(?m)^## test {re.escape(name)}: .*; cores (\d+)$", self.text)]
            self.assertEqual(counts, self.reference_counts(name), name)

    def test_servers_on_node_0_and_load_on_node_1(self):
        node0, node1 = {*range(24), *range(48, 72)}, {*range(24, 48), *range(72, 96)}
        server_lines = re.findall(r"(?m)^GOMAXPROCS=(\d+) taskset -c (\S+) ", self.text)
        self.assertTrue(server_lines)
        for cores, cpus in server_lines:
            self.assertEqual(len(cpus_of(cpus)), int(cores))
            self.assertLessEqual(set(cpus_of(cpus)), node0)
            # First threads first: up to 24 none shares a core.
            self.assertEqual(len({cpu % 48 for cpu in cpus_of(cpus)}), min(int(cores), 24))
        load = re.findall(r"(?m)^  taskset -c (\S+) wrk", self.text)
        self.assertTrue(load)
        self.assertLessEqual({cpu for cpus in load for cpu in cpus_of(cpus)}, node1)

    def test_connections_duration_and_responses(self):
        for section in self.text.split("\n## ")[1:]:
            name = section.split(":")[0].removeprefix("test ")
            if name not in workloads.ALL:
                continue
            one_server = section.split("\n# ")[1]
            self.assertEqual(sum(int(n) for n in re.findall(r" -c(\d+) ", one_server)), 1000)
            self.assertEqual(set(re.findall(r" -d(\S+) ", one_server)), {"10s"})
            body, keep_alive = re.search(r"--body (\d+) --keep-alive (\w+)", one_server).groups()
            published = {"1": ("1024", "off"), "1-tls": ("1024", "off"), "2": ("1024", "on"), "2-tls": ("1024", "on"),
                         "3": ("1024", "off"), "4": ("1024", "on"), "5": ("128", "on"), "6": ("16384", "off")}
            self.assertEqual((body, keep_alive), published[name])
            self.assertEqual("--aes128" in one_server, name in ("3", "4"))
            self.assertEqual("--sleep-ms 1" in one_server, name == "5")
            self.assertEqual("--tls" in one_server, name.endswith("-tls"))
            self.assertIn("Connection: " + ("keep-alive" if keep_alive == "on" else "close"), one_server)

    def test_no_instance_shares_a_cpu(self):
        for section in self.text.split("\n## ")[1:]:
            for server in section.split("\n# ")[1:]:
                load = re.findall(r"(?m)^  taskset -c (\d+) ", server)
                self.assertEqual(len(load), len(set(load)))


class Profiles(unittest.TestCase):
    def test_tuned_options_are_for_short_connections_and_for_all_servers(self):
        text = planned("1", "2")
        short, long = text.split("## test 2:")[0], text.split("## test 2:")[1].split("## latency")[0]
        self.assertEqual(short.count("--defer-accept 10"), short.count("GOMAXPROCS="))
        self.assertNotIn("--defer-accept", long)

    def test_as_published_has_none_of_them(self):
        text = planned("--profile", "as-published")
        self.assertNotIn("--defer-accept", text)
        self.assertNotIn("--fin-with-data on", text)

    def test_what_a_peer_cannot_is_left_out(self):
        text = planned("1-tls", "5")
        tls, sleep = text.split("## test 5:")
        self.assertNotIn("libuv", tls)
        self.assertNotIn("nginx", sleep.split("## latency")[0].split("## memory")[0])


class Places(unittest.TestCase):
    def place(self, description):
        return topology.place(topology.read(description))

    def test_one_node_never_shares_a_core(self):
        pus = topology.read("pack:1 core:4 pu:2")
        place = topology.place(pus)
        core = {pu.cpu: pu.core for pu in pus}
        self.assertFalse({core[c] for c in place.server} & {core[c] for c in place.load})
        self.assertEqual(len(place.server) + len(place.load), 8)

    def test_two_cpus(self):
        place = self.place("core:2 pu:1")
        self.assertEqual((place.server, place.load, place.schedule()), ([0], [1], [1]))

    def test_one_core_is_refused(self):
        with self.assertRaises(topology.TopologyError):
            self.place("core:1 pu:2")

    def test_load_places_share_the_connections(self):
        self.assertEqual(plan.load_places([5, 6, 7], 1, 1000), [(5, 500), (6, 500)])
        self.assertEqual(plan.load_places([5, 6, 7], 4, 1000), [(5, 334), (6, 333), (7, 333)])
        self.assertEqual(plan.load_places([5, 6, 7], 4, 1), [(5, 1)])

    def test_cpu_list(self):
        self.assertEqual(topology.cpu_list([5, 0, 1, 2, 7]), "0-2,5,7")


class Configuration(unittest.TestCase):
    def write(self, text):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        path = pathlib.Path(folder.name) / "servers"
        path.write_text(text)
        return str(path)

    def test_a_line_adds_a_server(self):
        path = self.write("# a comment\n\nmine 1,3 /opt/mine -l 127.0.0.1:{port} -a={body} -k={keep_alive_01} {if_aes:-x{body}}\n")
        text = planned("--config", path, "--servers", "mine,percore", "1", "2", "3")
        self.assertIn("/opt/mine -l 127.0.0.1:{port} -a=1024 -k=0\n", text)
        self.assertIn("/opt/mine -l 127.0.0.1:{port} -a=1024 -k=0 -x1024\n", text)
        self.assertNotIn("mine", text.split("## test 2:")[1].split("## test 3:")[0])

    def test_mistakes_are_named(self):
        for text, part in (("mine 1\n", ":1: NAME TESTS COMMAND"), ("mine 9 run\n", "no test '9'"),
                           ("percore 1 run\n", "built-in"), ("a/b 1 run\n", "a name has"),
                           ("mine 1 run {if_moon:x}\n", "no condition 'moon'")):
            status, errors = refused("--plan", "--config", self.write(text))
            self.assertEqual(status, 2, text)
            self.assertIn(part, errors)

    def test_profiles_know_their_certificate_and_options(self):
        kind = servers.built_in("bin", "src")[0]
        command = servers.command(kind, workloads.ALL["1-tls-full"], [0, 1], "tuned", ("c.pem", "k.pem"))
        self.assertIn("--tls --cert c.pem --key k.pem --tickets off", command)


class BadUsage(unittest.TestCase):
    def test_status_2_and_a_reason(self):
        for arguments, part in ((["9"], "no test '9'"), (["--servers", "apache"], "no server 'apache'"),
                                (["--cores", "0"], "at least 1"), (["--cores", "100000"], "is more than"),
                                (["--cores", "1,x"], "--cores"), (["--duration", "0"], "--duration"),
                                (["--duration", "nan"], "--duration"), (["--connections", "-1"], "--connections"),
                                (["--rounds", "x"], "--rounds"), (["--load", "ab"], "--load"),
                                (["--profile", "fast"], "--profile"), (["--no-such"], "--no-such"),
                                (["--topology", "nowhere!"], "no topology 'nowhere!'"),
                                (["--config", "/nonexistent"], "No such file"), (["--latency", "x"], "no test 'x'"),
                                (["--interleave", "fine", "--load", "h2load"], "needs wrk"),
                                (["--interleave", "fine", "--duration", "1", "--rounds", "100"], "at least 0.05"),
                                (["--load", "h2load", "1"], "can run none")):
            with self.subTest(arguments=arguments):
                status, errors = refused("--plan", *arguments)
                self.assertEqual(status, 2, errors)
                self.assertIn(part, errors)

    def test_a_machine_that_is_not_there_cannot_be_measured(self):
        done = bench("--topology", "c5.metal")
        self.assertEqual(done.returncode, 2)
        self.assertIn("--plan", done.stderr)

    def test_a_reader_that_has_seen_enough(self):
        """As `scripts/bench --plan | head -1`. The plan is longer than a pipe is wide."""
        with subprocess.Popen([BENCH, "--plan", "--topology", "c5.metal"], stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE) as run:
            run.stdout.read(1)
            run.stdout.close()
            self.assertEqual(run.stderr.read(), b"")
            self.assertEqual(run.wait(60), 1)

    def test_help(self):
        text = bench("--help").stdout
        for option in ("quick", "plan", "topology", "cores", "duration", "connections", "rounds", "interleave", "servers",
                       "config", "load", "profile", "latency", "idle", "out", "resume", "bin-dir", "no-plot"):
            self.assertIn(f"--{option}", text)


if __name__ == "__main__":
    if not (shutil.which("lstopo") or shutil.which("lstopo-no-graphics")):
        print("lstopo is not installed (Debian: hwloc): skipped")
        sys.exit(77)
    unittest.main()
