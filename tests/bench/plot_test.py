"""The .dat files and charts of a made-up result: they exist, and hold the series that they should."""

import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from perf.bench import results  # noqa: E402

PLOT = ROOT / "scripts/plot"
NAMES = ("percore", "nginx")


def entry(rate, marks=()):
    spread = {"median": rate, "min": rate * 0.9, "max": rate * 1.1}
    return {"requests_per_s": spread, "cpu_us_per_request": {"median": 1e6 / rate, "min": 9e5 / rate, "max": 1.1e6 / rate,
                                                            "user": 1.0, "system": 2.0},
            "ratio": {"to": "percore", "median": 1.0, "low": 0.9, "high": 1.1}, "marks": list(marks), "samples": []}


def group(test, cores, servers):
    return {"test": test, "title": f"title of {test}", "cores": cores, "partial": False, "servers": servers}


def made_up():
    parameters = {"connections": 1000, "load": "wrk", "profile": "tuned"}
    known = {"cpu_model": "Made Up(R) CPU", "cpus_usable": 4, "hypervisor": False, "kernel": "6.1.0-x",
             "date": "2026-01-02 03:04 UTC"}
    result = results.new(parameters, known)
    for cores in (1, 2, 4):
        result["groups"][f"1/{cores}"] = group("1", cores, {"percore": entry(30000 * cores), "nginx": entry(
            20000 * cores, ("generator-bound",) if cores == 4 else ())})
    result["groups"]["5/1"] = group("5", 1, {"percore": entry(10000)}) | {"connections": 50}
    curve = {str(p): 10.0 * (1 + p) for p in (0, 50, 90, 99, 99.9, 100)}
    result["latency"]["1/4"] = {name: {share: {"rate": 1000, "latency_us": curve, "errors": 0, "unanswered": 0}
                                       for share in ("50", "80")} for name in NAMES}
    result["idle"] = {name: {"connections": 1000, "bytes_per_connection": 961.0} for name in NAMES}
    return result


def plot(folder):
    return subprocess.run([PLOT, folder], capture_output=True, text=True, timeout=100)


class Plot(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.path = pathlib.Path(self.folder.name)

    def lines(self, name):
        return (self.path / name).read_text().splitlines()

    @unittest.skipUnless(shutil.which("gnuplot"), "gnuplot is not installed")
    def test_all_charts(self):
        (self.path / "result.json").write_text(json.dumps(made_up()))
        done = plot(self.path)
        self.assertEqual(done.returncode, 0, done.stderr)
        names = ["test-1", "test-1-cpu", "test-1-scaling", "test-5", "test-5-cpu", "overview-1", "latency-1-4-50",
                 "latency-1-4-80", "memory"]
        for name in names:
            self.assertTrue((self.path / f"{name}.dat").exists(), name)
            self.assertEqual((self.path / f"{name}.png").read_bytes()[:8], b"\x89PNG\r\n\x1a\n")
            self.assertIn("</svg>", (self.path / f"{name}.svg").read_text())
        found = {p.stem for p in self.path.iterdir() if p.suffix in (".png", ".svg")}
        self.assertEqual(found, set(names))

        self.assertEqual(self.lines("test-1.dat")[1:], ["1 30000 27000 33000 - 20000 18000 22000 -",
                                                        "2 60000 54000 66000 - 40000 36000 44000 -",
                                                        "4 120000 108000 132000 - 80000 72000 88000 G"])
        self.assertEqual(self.lines("test-1-scaling.dat")[1:], ["1 1 1", "2 1 1", "4 1 1"])
        # nginx is not in test 5.
        self.assertEqual(self.lines("overview-1.dat")[1:], ["1 1 0.9 1.1 - 1 0.9 1.1 -", "5 1 0.9 1.1 - NaN NaN NaN -"])
        self.assertEqual(self.lines("memory.dat")[1:], ["percore 961 1", "nginx 961 6"])
        latency = self.lines("latency-1-4-50.dat")
        self.assertIn('"percore"', latency)
        self.assertIn("2 510", latency)
        self.assertIn("100 1000", latency)

        svg = (self.path / "test-1.svg").read_text()
        for text in ("percore", "nginx", "Made Up", "2026-01-02", "requests/s", "cores of the server", "tcpserver", ">G<",
                     "the generator was the bottleneck"):
            self.assertIn(text, svg)
        # Each server has its colour, whoever else is in the chart: percore the first, nginx the sixth.
        for name in ("test-1.svg", "test-1-scaling.svg", "latency-1-4-50.svg", "memory.svg"):
            svg = (self.path / name).read_text().replace(" ", "").lower()
            for colour in ("#0072b2", "#d55e00"):
                self.assertTrue(colour in svg or "rgb({},{},{})".format(*bytes.fromhex(colour[1:])) in svg, (name, colour))
        self.assertIn("1000 connections, wrk", (self.path / "test-1.svg").read_text())
        self.assertIn("1000 connections (50 in test 5), wrk", (self.path / "overview-1.svg").read_text())
        self.assertIn("answered first and slept", (self.path / "test-5.svg").read_text())
        self.assertIn("ideal", (self.path / "test-1-scaling.svg").read_text())
        self.assertIn("bytes per idle connection", (self.path / "memory.svg").read_text())
        self.assertIn("99.9%", (self.path / "latency-1-4-80.svg").read_text())

    @unittest.skipUnless(shutil.which("gnuplot"), "gnuplot is not installed")
    def test_a_small_copy(self):
        result = made_up()
        result["groups"]["5/1"]["servers"]["percore"]["samples"] = [{"round": 0}] * 1000
        (self.path / "result.json").write_text(json.dumps(result))
        done = subprocess.run([PLOT, self.path, "--into", self.path / "small"], capture_output=True, text=True, timeout=100)
        self.assertEqual(done.returncode, 0, done.stderr)
        small = json.loads((self.path / "small/result.json").read_text())
        self.assertNotIn("samples", small["groups"]["5/1"]["servers"]["percore"])
        self.assertEqual(plot(self.path / "small").returncode, 0)  # enough to draw from

    def test_without_a_result(self):
        done = plot(self.path)
        self.assertEqual(done.returncode, 1)
        self.assertIn("No such file", done.stderr)
        (self.path / "result.json").write_text("{}")
        self.assertIn("no result of this version", plot(self.path).stderr)
        (self.path / "result.json").write_text("{")
        self.assertIn("no result of this program", plot(self.path).stderr)


class Reference(unittest.TestCase):
    """The published figures: a few of them once more, from the same source, by another way than the files were made."""

    def rows(self, name):
        text = (ROOT / "gnuplot/reference/c5.metal" / name).read_text()
        self.assertIn("github.com/maurice2k/tcpserver", text)
        self.assertIn("not measured by this project", text)
        lines = [line.split() for line in text.splitlines() if not line.startswith("#")]
        return [dict(zip(lines[0], row)) for row in lines[1:]]

    def test_values(self):
        for name, cores, server, value in (("test01.dat", "1", "tcpserver", "55004"), ("test01_tls.dat", "48", "net/http", "9849"),
                                           ("test02.dat", "12", "tcpserver", "1113261"), ("test03.dat", "24", "evio", "NaN"),
                                           ("test05.dat", "1", "gnet", "28332"), ("test06.dat", "48", "evio", "58343")):
            row = next(row for row in self.rows(name) if row["cores"] == cores)
            self.assertEqual(row[server], value)

    def test_every_file_has_the_16_core_counts(self):
        for path in (ROOT / "gnuplot/reference/c5.metal").glob("*.dat"):
            rows = self.rows(path.name)
            self.assertEqual(len(rows), 16)
            for row in rows:
                for value in row.values():
                    self.assertTrue(re.fullmatch(r"\d+|NaN", value))


if __name__ == "__main__":
    unittest.main()
