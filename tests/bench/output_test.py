"""What the load generators print, and the arithmetic on it."""

import os
import pathlib
import subprocess
import sys
import tempfile
import time
import unittest
import unittest.mock

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from perf.bench import generators, kernel, progress, report, results, sharing, usl  # noqa: E402

WRK = """\
Running 10s test @ http://127.0.0.1:8080/
  1 threads and 1000 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency    19.31ms    2.05ms   1.20s    81.80%
    Req/Sec    51.09k   426.57    52.77k    60.00%
  Latency Distribution
     50%  247.00us
     75%    3.06ms
     90%    4.95ms
     99%    1.10s
  515215 requests in 10.02s, 572.12MB read
  Socket errors: connect 1, read 2, write 3, timeout 4
  Non-2xx or 3xx responses: 5
Requests/sec:  51418.66
Transfer/sec:     57.10MB
"""

H2LOAD = """\
finished in 1.50s, 42197.00 req/s, 47.04MB/s
requests: 63300 total, 63310 started, 63297 done, 63295 succeeded, 2 failed, 1 errored, 1 timeout
status codes: 63290 2xx, 5 3xx, 1 4xx, 1 5xx
traffic: 47.04MB (49328293) total, 4.27MB (4472882) headers (space savings 0.00%), 41.21MB (43209728) data
                     min         max         mean         sd        +/- sd
time for request:       40us     16.11ms       236us       977us    97.39%
"""

BOMBARDIER = """{"spec":{"numberOfConnections":125,"testType":"timed","testDurationSeconds":2,"method":"GET",\
"url":"http://127.0.0.1:8080/","body":"","stream":false,"timeoutSeconds":10,"client":"fasthttp"},\
"result":{"bytesRead":1,"bytesWritten":2,"timeTakenSeconds":2.0,"req1xx":0,"req2xx":2000,"req3xx":0,"req4xx":3,\
"req5xx":0,"others":4,"errors":[{"description":"timeout","count":4}],"latency":{"mean":500.5,"stddev":10.1,"max":9000,\
"percentiles":{"50":400,"75":500,"90":600,"99":700}},"rps":{"mean":1000.5,"stddev":1,"max":1100,\
"percentiles":{"50":1.0,"75":1.0,"90":1.0,"99":1.0}}}}"""


class Parsing(unittest.TestCase):
    def test_wrk(self):
        found = generators.parse_wrk(WRK)
        self.assertEqual((found["requests"], found["seconds"]), (515215, 10.02))
        self.assertAlmostEqual(found["requests_per_s"], 515215 / 10.02)
        self.assertEqual(found["errors"], {"connect": 1, "read": 2, "write": 3, "timeout": 4, "status": 5})
        self.assertEqual(found["latency_us"], {"50": 247.0, "75": 3060.0, "90": 4950.0, "99": 1.1e6, "100": 1.2e6})

    def test_wrk_without_errors_has_none(self):
        clean = "\n".join(line for line in WRK.splitlines() if "rrors" not in line and "Non-2xx" not in line)
        self.assertEqual(generators.parse_wrk(clean)["errors"], {})

    def test_h2load(self):
        found = generators.parse_h2load(H2LOAD)
        self.assertEqual((found["requests"], found["seconds"]), (63295, 1.5))
        self.assertEqual(found["errors"], {"failed": 2, "timeout": 1, "status": 2})
        self.assertEqual(found["latency_us"], {"100": 16110.0})

    def test_bombardier(self):
        found = generators.parse_bombardier(BOMBARDIER)
        self.assertEqual((found["requests"], found["requests_per_s"]), (2000, 1000.0))
        self.assertEqual(found["errors"], {"status": 3, "others": 4})
        self.assertEqual(found["latency_us"], {"50": 400.0, "75": 500.0, "90": 600.0, "99": 700.0, "100": 9000.0})

    def test_what_is_no_result_is_an_error(self):
        for parse in (*generators.PARSERS.values(), generators.parse_pace):
            with self.assertRaises(generators.GeneratorError):
                parse("unable to connect to 127.0.0.1:1 Connection refused\n")

    def test_instances_are_added(self):
        found = generators.add([generators.parse_wrk(WRK), generators.parse_wrk(WRK)])
        self.assertEqual(found["requests"], 2 * 515215)
        self.assertAlmostEqual(found["requests_per_s"], 2 * 515215 / 10.02)
        self.assertEqual(found["errors"]["timeout"], 8)
        self.assertEqual(found["latency_us"]["99"], 1.1e6)


def sample(round_, requests=1000, cpu_ns=10_000_000, load_cpu_ns=500_000_000, others=0, steal=0, busy=(50,)):
    return {"round": round_, "seconds": 1.0, "requests": requests, "cpu_ns": cpu_ns, "user_ticks": 1, "system_ticks": 3,
            "load_cpu_ns": load_cpu_ns, "others_cpu_ns": others, "switches": [10, 5],
            "cpu_lines": {cpu: [b, 0, 0, 100 - b - steal, 0, 0, 0, steal, 0, 0] for cpu, b in enumerate(busy)}}


class Installed(unittest.TestCase):
    def test_a_bombardier_that_is_a_game_is_refused(self):
        with tempfile.TemporaryDirectory() as folder:
            program = pathlib.Path(folder, "bombardier")
            for text, good in (("Drop the bombs with the space bar", False), ("  --fasthttp  Use fasthttp client", True)):
                program.write_text(f"#!/bin/sh\necho '{text}'\n")
                program.chmod(0o755)
                with unittest.mock.patch.dict(os.environ, PATH=folder + ":" + os.environ["PATH"]):
                    if good:
                        generators.check("bombardier")
                    else:
                        with self.assertRaises(generators.GeneratorError):
                            generators.check("bombardier")

    def test_what_is_missing_is_named(self):
        with unittest.mock.patch.dict(os.environ, PATH="/nonexistent"):
            with self.assertRaisesRegex(generators.GeneratorError, "h2load is not installed .*nghttp2-client"):
                generators.check("h2load")


class Figures(unittest.TestCase):
    def summary(self, samples, errors=None, cores=1):
        return results.summarise(samples, cores, 1, errors or {}, 1_000_000, 1000)

    def test_costs_and_shares(self):
        found = self.summary([sample(0), sample(1, cpu_ns=20_000_000), sample(2, cpu_ns=30_000_000)])
        self.assertEqual(found["cpu_us_per_request"], {"median": 20.0, "min": 10.0, "max": 30.0, "user": 5.0, "system": 15.0})
        self.assertEqual(found["requests_per_s"], {"median": 1000, "min": 1000, "max": 1000})
        self.assertEqual(found["switches_per_request"], {"voluntary": 0.01, "involuntary": 0.005})
        self.assertEqual(found["marks"], [])

    def test_marks(self):
        self.assertEqual(self.summary([sample(0, load_cpu_ns=950_000_000)])["marks"], ["generator-bound"])
        # A server that is busier still was the bottleneck itself.
        self.assertEqual(self.summary([sample(0, cpu_ns=990_000_000, load_cpu_ns=950_000_000)])["marks"], [])
        self.assertEqual(self.summary([sample(0)], {"read": 1})["marks"], ["errors"])
        self.assertEqual(self.summary([sample(0, others=200_000_000)])["marks"], ["noisy"])
        self.assertEqual(self.summary([sample(0, steal=5)])["marks"], ["noisy"])

    def test_balance(self):
        self.assertAlmostEqual(self.summary([sample(0, busy=(90, 30))], cores=2)["balance"], 1.5)
        self.assertAlmostEqual(self.summary([sample(0, busy=(60, 60))], cores=2)["balance"], 1.0)

    def test_ratios_are_taken_round_by_round(self):
        entries = {"a": {"samples": [sample(0), sample(1, cpu_ns=20_000_000), sample(2)]},
                   "b": {"samples": [sample(0, cpu_ns=20_000_000), sample(1, cpu_ns=40_000_000)]}}
        results.add_ratios(entries, "a")
        self.assertEqual(entries["b"]["ratio"], {"to": "a", "median": 2.0, "low": 2.0, "high": 2.0})
        self.assertEqual(entries["a"]["ratio"]["median"], 1.0)


class Rest(unittest.TestCase):
    def test_who_waits_is_at_rest_and_who_runs_is_not(self):
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as waiting:
            waiting.stdin.write(b"x")
            waiting.stdin.flush()
            waiting.stdout.read(1)  # it runs until it asks for more
            while kernel.any_runnable([waiting.pid]):
                time.sleep(0.001)
            self.assertTrue(kernel.any_runnable([waiting.pid, os.getpid()]))
            waiting.stdin.close()


class Progress(unittest.TestCase):
    def test_what_was_done_before_says_nothing_about_the_time_left(self):
        shown = progress.Progress(100)
        shown.skip(60)  # at once, as --resume does
        self.assertEqual(shown.left_s(), 40)
        shown.advance(2)
        self.assertEqual(shown.left_s(), 38)


class Scale(unittest.TestCase):
    def test_the_fit_finds_what_made_the_points(self):
        model = {"lambda": 1000.0, "sigma": 0.02, "kappa": 1e-4}
        found = usl.fit([(n, usl.throughput(model, n)) for n in (1, 2, 4, 8, 16, 24)])
        for name, value in model.items():
            self.assertAlmostEqual(found[name] / value, 1.0, places=6)
        self.assertAlmostEqual(usl.peak_cores(found), (0.98 / 1e-4) ** 0.5, places=3)

    def test_no_parameter_is_negative(self):
        found = usl.fit([(1, 1000), (2, 2100), (4, 4300), (8, 8800)])  # better than linear
        self.assertEqual((found["sigma"], found["kappa"]), (0.0, 0.0))

    def test_too_few_points(self):
        self.assertIsNone(usl.fit([(1, 10), (2, 20), (3, 30), (3, 31)]))
        result = {"groups": {}}
        self.assertIn("needed for a fit", report.scale_lines(result)[0])

    def test_lines_that_move_between_threads(self):
        """0x1000 is thread 1's alone; 0x2000 is stored to by thread 2 and then touched by 1; 0x3000 is only read."""
        lines = sharing.Lines()
        lines.follow(b"--9--   SCHED[1]:  acquired lock (x)\n S 00002000,8\n"
                     b"--9--   SCHED[2]:  acquired lock (x)\nI  00400000,3")
        lines.count(b" S 00002000,8\n S 00002008,8\n L 00003000,4\nI  00400003,2\n"
                    b"--9--   SCHED[2]: releasing lock (x) -> VgTs_WaitSys\n--9--   SCHED[1]:  acquired lock (x)\n"
                    b" S 00001000,8\n M 00001008,8\n L 00002038,8\n L 00002030,8\n L 00003000,4")
        self.assertEqual(lines.threads, {1, 2})
        self.assertEqual(lines.moves, {0x80: 1})
        lines.count(b" S 00002000,8\n S 00002000,8")  # takes it from thread 2
        self.assertEqual(lines.moves, {0x80: 2})
        lines.count(b"--9--   SCHED[2]:  acquired lock (x)\n L 00000ffc,8\n S 00003000,4")  # the first ends at 0x1000
        self.assertEqual(lines.moves, {0x80: 2, 0x40: 1, 0xc0: 1})


if __name__ == "__main__":
    unittest.main()
