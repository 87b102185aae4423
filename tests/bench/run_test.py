"""scripts/bench end to end, shortly: a whole --quick of one test, what fails in the midst, Ctrl-C, going on."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/support"))

import marked  # noqa: E402

BENCH = ROOT / "scripts/bench"
BIN = os.environ["PERCORE_BIN_DIR"]
WAIT_S = 100
SHORT = ("--connections", "20", "--latency", "none", "--idle", "0", "--no-plot")
ENOUGH_CPUS = len(os.sched_getaffinity(0)) >= 2
NEEDED = [name for name in ("wrk", "openssl") if not shutil.which(name)] + \
    ([] if shutil.which("lstopo") or shutil.which("lstopo-no-graphics") else ["lstopo"])


@unittest.skipUnless(ENOUGH_CPUS, "server and load need a core each")
@unittest.skipIf(NEEDED, f"not installed: {' '.join(NEEDED)}")
class Runs(marked.Marked, unittest.TestCase):
    prefix = "bench-"

    def setUp(self):
        super().setUp()
        self.out = pathlib.Path(self.folder.name, "out")

    def words(self, *arguments):
        return [BENCH, *arguments, "--bin-dir", BIN, "--out", str(self.out)]

    def bench(self, *arguments, **environment):
        return subprocess.run(self.words(*arguments), env=self.environment | environment, capture_output=True, text=True,
                              timeout=WAIT_S)

    def result(self):
        return json.loads((self.out / "result.json").read_text())

    def config(self, text):
        path = pathlib.Path(self.folder.name, "servers")
        path.write_text(text)
        return str(path)

    def test_a_whole_quick_run_of_one_test(self):
        done = self.bench("2", "--quick", "--servers", "percore,floor", "--connections", "100", "--idle", "200", "--cores",
                          "1")
        self.assertEqual(done.returncode, 0, done.stderr)
        result = self.result()
        self.assertTrue(result["complete"])
        group = result["groups"]["2/1"]
        self.assertFalse(set(group["server_cpus"]) & set(group["load_cpus"]))
        for name in ("percore", "floor"):
            found = group["servers"][name]
            self.assertEqual(len(found["samples"]), 8)
            self.assertGreater(found["requests_per_s"]["median"], 0)
            cost = found["cpu_us_per_request"]
            self.assertAlmostEqual(cost["user"] + cost["system"], cost["median"])
            self.assertGreater(found["peak_rss_bytes"], 1e5)
            self.assertNotIn("errors", found["marks"])
            self.assertNotIn(str(ROOT), found["command"])
            for share in ("50", "80"):
                latency = result["latency"]["2/1"][name][share]
                self.assertGreater(latency["latency_us"]["99"], 0)
                self.assertLessEqual(latency["latency_us"]["50"], latency["latency_us"]["99"])
            self.assertEqual(result["idle"][name]["connections"], 200)
        for known in ("cpu_model", "kernel", "mitigations", "governor", "smt", "versions", "open_files"):
            self.assertIn(known, result["machine"])
        self.assertNotIn(f'"{os.uname().nodename}"', json.dumps(result))
        self.assertRegex(done.stdout, r"(?m)^  percore +\d+")
        self.assertIn("scale:", done.stdout)
        if shutil.which("gnuplot"):
            for name in ("test-2.png", "test-2-cpu.svg", "latency-2-1-50.png", "memory.svg"):
                self.assertTrue((self.out / name).exists(), name)

    def test_rounds(self):
        done = self.bench("1-tls", "--servers", "percore,floor", "--rounds", "2", "--duration", "1", *SHORT)
        self.assertEqual(done.returncode, 0, done.stderr)
        group = self.result()["groups"]["1-tls/1"]
        self.assertEqual((list(group["servers"]), group["connections"]), (["percore", "floor"], 20))
        for found in group["servers"].values():
            self.assertEqual(len(found["samples"]), 2)
            self.assertIn("50", found["samples"][0]["latency_us"])

    @unittest.skipUnless(shutil.which("h2load"), "h2load is not installed")
    def test_h2load(self):
        done = self.bench("1", "2", "--load", "h2load", "--servers", "percore", "--rounds", "1", "--duration", "1", *SHORT)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(list(self.result()["groups"]), ["2/1"])  # no 'Connection: close' with h2load

    def test_servers_that_fail_are_named_and_the_others_measured(self):
        dies = pathlib.Path(self.folder.name, "dies")
        # Serves with another program for a moment, then is gone.
        dies.write_text(f"#!/bin/sh\ntimeout -s KILL 1.5 {BIN}/floor \"$@\"\nexit 7\n")
        dies.chmod(0o755)
        config = self.config(f"dies all {dies} --listen 127.0.0.1:{{port}}\n"
                             f"refuses all {BIN}/floor --listen 127.0.0.1:{{port}} --no-such-option\n")
        for mode in (("--interleave", "fine", "--duration", "3", "--rounds", "15"), ("--duration", "2", "--rounds", "1")):
            with self.subTest(mode=mode):
                done = self.bench("2", "--config", config, "--servers", "percore,dies,refuses", *mode, *SHORT)
                self.assertEqual(done.returncode, 1, done.stderr)
                result = self.result()
                self.assertEqual({f["server"] for f in result["failures"]}, {"dies", "refuses"})
                self.assertIn("percore", result["groups"]["2/1"]["servers"])
                self.assertIn("refuses: server refuses ended with status 2", done.stderr)
                shutil.rmtree(self.out)

    def test_interrupted_kept_and_gone_on_with(self):
        arguments = ("1", "2", "--servers", "percore", "--rounds", "1", "--duration", "1", *SHORT)
        with subprocess.Popen(self.words(*arguments), env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              text=True) as run:
            for line in run.stderr:
                if "test 2" in line:
                    break
            run.send_signal(signal.SIGINT)
            rest = run.stderr.read()
            self.assertEqual(run.wait(WAIT_S), 130)
        self.assertIn("interrupted", rest)
        self.assertFalse(self.result()["complete"])
        first = self.result()["groups"]["1/1"]
        self.assertFalse(first["partial"])

        again = self.bench(*arguments)  # nothing is overwritten
        self.assertEqual(again.returncode, 2)
        self.assertIn("--resume", again.stderr)
        other = self.bench(*arguments, "--resume", "--connections", "30")
        self.assertEqual(other.returncode, 1)
        self.assertIn("connections 20, not 30", other.stderr)
        done = self.bench(*arguments, "--resume")
        self.assertEqual(done.returncode, 0, done.stderr)
        result = self.result()
        self.assertTrue(result["complete"])
        self.assertEqual(result["groups"]["1/1"], first)
        self.assertFalse(result["groups"]["2/1"]["partial"])

    def test_nothing_to_go_on_with(self):
        done = self.bench("2", "--resume", *SHORT)
        self.assertEqual(done.returncode, 2)
        self.assertIn("--resume: there is no ", done.stderr)

    def test_missing_tools_are_named(self):
        bare = pathlib.Path(self.folder.name, "tools")
        bare.mkdir()
        for name in ("lstopo", "lstopo-no-graphics", "env", "python3"):
            if shutil.which(name):
                (bare / name).symlink_to(sys.executable if name == "python3" else shutil.which(name))
        done = self.bench("2", "--servers", "percore", *SHORT, PATH=str(bare))
        self.assertEqual(done.returncode, 1)
        self.assertIn("wrk is not installed", done.stderr)

    def test_a_server_that_is_not_here(self):
        done = self.bench("2", "--config", self.config("gone all /nonexistent/server {port}\n"), "--servers", "gone", *SHORT)
        self.assertEqual(done.returncode, 1)
        self.assertIn("server gone is not here (/nonexistent/server)", done.stderr)

    def test_too_many_connections_for_the_limit_of_files(self):
        words = " ".join(f"'{word}'" for word in self.words("2", "--servers", "percore", *SHORT, "--connections", "500"))
        done = subprocess.run(["bash", "-c", f"ulimit -n 300; exec {words}"], env=self.environment, capture_output=True,
                              text=True, timeout=WAIT_S)
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stderr, re.compile("500 connections need more open files than 300"))


if __name__ == "__main__":
    unittest.main()
