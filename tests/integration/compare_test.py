"""scripts/compare: a short run end to end, its JSON, its failures and its clean-up. No speed is judged."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))

import marked  # noqa: E402

FLOOR = os.path.join(os.environ["PERCORE_BIN_DIR"], "floor")
COMPARE = pathlib.Path(__file__).resolve().parents[2] / "scripts" / "compare"
CPUS = sorted(os.sched_getaffinity(0))
PLACES = ["--server-cpus", str(CPUS[0]), "--load-cpus", str(CPUS[-1])]
SHORT = [*PLACES, "--connections", "20", "--rounds", "3", "--slice", "0.3", "--quick"]
WAIT_S = 100


class Compare(marked.Marked, unittest.TestCase):
    prefix = "compare-"

    def run_compare(self, *arguments):
        return subprocess.run([COMPARE, *arguments], env=self.environment, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True, timeout=WAIT_S)

    def check_result(self, result, keep_alive, counted):
        self.assertEqual(result["parameters"]["keep_alive"], keep_alive)
        self.assertEqual(result["parameters"]["rounds"], 3)
        self.assertEqual([server["name"] for server in result["servers"]], ["one", "two"])
        for server in result["servers"]:
            self.assertEqual(sorted(s["round"] for s in server["slices"]), [0, 1, 2])
            for s in server["slices"]:
                self.assertGreaterEqual(s["seconds"], 0.3)
                self.assertGreater(s["cpu_ns"], 0)
                self.assertGreater(s["load_cpu_ns"], 0)
                if counted:
                    self.assertGreater(s["requests"], 0)
            cost = server["cpu_us_per_request"]
            self.assertGreater(cost["total"], 0)
            self.assertAlmostEqual(cost["user"] + cost["system"], cost["total"])
            self.assertTrue(0 <= server["user_share"] <= 1)
            ratio = server["ratio"]
            self.assertTrue(0 < ratio["min"] <= ratio["low"] <= ratio["median"])
            self.assertTrue(ratio["median"] <= ratio["high"] <= ratio["max"])
            totals = server["load_totals"]
            self.assertGreater(totals["requests"], 0)
            self.assertEqual(totals["not_2xx_or_3xx"], 0)
            # The live count of requests sent against wrk's own count of responses: one per connection is under
            # way at the end, and wrk calls its request function once before it starts.
            if counted:
                self.assertGreater(server["requests_per_s"], 0)
                errors = sum((totals["errors"] or {}).values())
                self.assertLessEqual(abs(totals["sent"] - totals["requests"]), 21 + errors)
        first = result["servers"][0]["ratio"]
        self.assertEqual((first["median"], first["min"], first["max"]), (1, 1, 1))

    def test_two_servers(self):
        for keep_alive in ("on", "off"):
            with self.subTest(keep_alive=keep_alive):
                path = os.path.join(self.folder.name, "result.json")
                floor = f"{FLOOR} --keep-alive {keep_alive} --listen 127.0.0.1:"
                done = self.run_compare("--server", f"one={floor}0", "--server", f"two={floor}{{port}}",
                                        *SHORT, "--keep-alive", keep_alive, "--json", path)
                self.assertEqual(done.returncode, 0, done.stderr)
                self.assertEqual(done.stderr, "")  # no progress with --quick
                self.assertRegex(done.stdout, r"(?m)^one +\d")
                self.assertRegex(done.stdout, r"(?m)^two +\d")
                with open(path, encoding="utf-8") as file:
                    self.check_result(json.load(file), keep_alive, counted=True)

    def test_tls(self):
        path = os.path.join(self.folder.name, "result.json")
        done = self.run_compare("--tls", "--server", f"one={FLOOR} --tls fd --listen 127.0.0.1:0", "--server",
                                f"two={FLOOR} --tls shared --listen 127.0.0.1:0", *SHORT, "--json", path)
        self.assertEqual(done.returncode, 0, done.stderr)
        with open(path, encoding="utf-8") as file:
            result = json.load(file)
        self.assertTrue(result["parameters"]["tls"])
        self.check_result(result, "on", counted=True)

    def test_a_generator_without_a_live_count(self):
        path = os.path.join(self.folder.name, "result.json")
        load = "wrk -t1 -c{connections} -d{duration} http://127.0.0.1:{port}/"
        done = self.run_compare("--server", f"one={FLOOR} --listen 127.0.0.1:0", "--server",
                                f"two={FLOOR} --listen 127.0.0.1:0", *SHORT, "--load", load, "--json", path)
        self.assertEqual(done.returncode, 0, done.stderr)
        with open(path, encoding="utf-8") as file:
            self.check_result(json.load(file), "on", counted=False)

    def test_a_server_that_fails_is_named(self):
        done = self.run_compare("--server", f"good={FLOOR} --listen 127.0.0.1:0", "--server",
                                f"bad={FLOOR} --no-such-option", *SHORT)
        self.assertEqual(done.returncode, 1)
        self.assertIn("server bad ended with status 2", done.stderr)

    def test_a_generator_that_fails_is_named(self):
        done = self.run_compare("--server", f"one={FLOOR} --listen 127.0.0.1:0", "--server",
                                f"two={FLOOR} --listen 127.0.0.1:0", *SHORT, "--load", "false {port}")
        self.assertEqual(done.returncode, 1)
        self.assertIn("load for one ended with status 1", done.stderr)

    def start_and_reach_a_slice(self):
        """A long comparison of which one generator is stopped and one runs."""
        floor = f"{FLOOR} --listen 127.0.0.1:0"
        compare = subprocess.Popen([COMPARE, "--server", f"one={floor}", "--server", f"two={floor}", *PLACES,
                                    "--connections", "20", "--rounds", "100"], env=self.environment,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for line in compare.stderr:
            if line.startswith("slice "):
                break
        self.assertGreaterEqual(len(self.marked()), 5)  # compare, two servers, two generators
        return compare

    def test_interrupt_cleans_up(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            with self.start_and_reach_a_slice() as compare:
                compare.send_signal(number)
                compare.stderr.read()
                self.assertEqual(compare.wait(WAIT_S), 130)
            self.assertEqual(self.marked(), [])

    def test_when_compare_is_killed_what_it_started_dies(self):
        with self.start_and_reach_a_slice() as compare:
            compare.kill()
            compare.wait(WAIT_S)
        deadline = time.monotonic() + WAIT_S
        while self.marked() and time.monotonic() < deadline:
            time.sleep(0.01)
        self.assertEqual(self.marked(), [])
        # A killed process cannot remove its files.
        for left in pathlib.Path(self.folder.name).glob("compare-*"):
            shutil.rmtree(left)

    def test_bad_usage_is_status_2(self):
        one, two = ["--server", "one=true"], ["--server", "two=true"]
        for arguments in ([], one, [*one, *one], [*one, "--server", "two"], [*one, "--server", "=true"],
                          [*one, *two, "--rounds", "0"], [*one, *two, "--slice", "0"],
                          [*one, *two, "--slice", "nan"], [*one, *two, "--keep-alive", "yes"],
                          [*one, *two, "--server-cpus", "1-0"], [*one, *two, "--load-cpus", "99999"],
                          [*one, *two, "--connections", "x"], [*one, *two, "--no-such-option"]):
            with self.subTest(arguments=arguments):
                done = self.run_compare(*arguments)
                self.assertEqual(done.returncode, 2, done.stderr)
                self.assertIn("usage:", done.stderr)

    def test_help(self):
        done = self.run_compare("--help")
        self.assertEqual(done.returncode, 0)
        for option in ("server", "load", "connections", "keep-alive", "tls", "rounds", "slice", "server-cpus",
                       "load-cpus", "json", "quick"):
            self.assertIn(f"--{option}", done.stdout)


if __name__ == "__main__":
    unittest.main()
