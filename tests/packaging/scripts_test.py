#!/usr/bin/env python3
"""The commands of scripts/ as a stranger meets them: help, bad usage, a system without apt, and a short demo."""

import os
import re
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent.parent.parent / "scripts"
BIN_DIR = os.environ["PERCORE_BIN_DIR"]


def run(name, *words, **environment):
    """Runs a script from a folder that is not the repository's."""
    return subprocess.run([SCRIPTS / name, *words], cwd="/", env=dict(os.environ, **environment), timeout=100,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


class Usage(unittest.TestCase):
    def test_help_is_an_answer(self):
        for name in ("setup", "test", "demo"):
            with self.subTest(name):
                done = run(name, "--help")
                self.assertEqual(done.returncode, 0, done.stderr)
                self.assertTrue(done.stdout.startswith(f"Usage: scripts/{name}"), done.stdout)

    def test_bad_usage_has_status_2_and_does_nothing(self):
        for words in (["setup", "--no-such"], ["test", "--no-such"], ["test", "--preset"], ["test", "--preset", "no"],
                      ["test", "-R"], ["demo", "stray"], ["demo", "--seconds"], ["demo", "--seconds", "0"],
                      ["demo", "--connections", "many"], ["demo", "--keep-alive", "perhaps"]):
            with self.subTest(words):
                done = run(*words)
                self.assertEqual(done.returncode, 2, done.stderr)
                self.assertEqual(done.stdout, "")
                self.assertIn("--help", done.stderr)


class Setup(unittest.TestCase):
    def test_another_distribution_is_told_what_is_missing(self):
        with tempfile.TemporaryDirectory() as folder:
            release = Path(folder, "os-release")
            release.write_text("ID=another\n")
            tools = Path(folder, "bin")
            tools.mkdir()
            for tool in ("bash", "dirname", "basename", "awk", "sort", "head", "cmake", "g++"):
                tools.joinpath(tool).symlink_to(shutil.which(tool))
            done = run("setup", PATH=str(tools), PERCORE_OS_RELEASE=str(release))
        self.assertEqual(done.returncode, 1, done.stderr)
        missing = set(re.findall(r"^  (\S+)$", done.stderr, re.MULTILINE))
        self.assertLessEqual({"ninja-build", "pkg-config", "libhwloc-dev", "wrk", "curl", "strace"}, missing)
        self.assertFalse({"cmake", "g++"} & missing, "what is there is not missing")


    def test_the_benchmark_suite_has_packages_of_its_own(self):
        with tempfile.TemporaryDirectory() as folder:
            release = Path(folder, "os-release")
            release.write_text("ID=another\n")
            tools = Path(folder, "bin")
            tools.mkdir()
            for tool in ("bash", "dirname", "basename", "awk"):
                tools.joinpath(tool).symlink_to(shutil.which(tool))
            missing = [run("setup", *words, PATH=str(tools), PERCORE_OS_RELEASE=str(release)).stderr
                       for words in ([], ["--bench"])]
        for package in ("hwloc", "gnuplot-nox"):  # the tests run the suite, shortly
            self.assertIn(package, missing[0])
        for package in ("golang-go", "nghttp2-client", "valgrind"):
            self.assertNotIn(package, missing[0])
            self.assertIn(package, missing[1])


class Demo(unittest.TestCase):
    def test_a_short_run_prints_the_figures(self):
        for keep_alive in ("on", "off"):
            with self.subTest(keep_alive=keep_alive):
                done = run("demo", "--bin-dir", BIN_DIR, "--seconds", "1", "--connections", "20",
                           "--keep-alive", keep_alive)
                self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
                requests = int(re.search(r"\((\d+) requests\)", done.stdout)[1])
                self.assertGreater(requests, 0)
                self.assertRegex(done.stdout, r"latency .*50% .*99% ")
                self.assertRegex(done.stdout, r"CPU per request +[0-9.]+ us")
                rows = re.findall(r"^ *\d+ +\d+ +\d+ +(\d+) +[0-9.]+%$", done.stdout, re.MULTILINE)
                self.assertTrue(rows, done.stdout)
                # wrk does not count what was still under way at its end.
                self.assertGreaterEqual(sum(map(int, rows)), requests)


if __name__ == "__main__":
    unittest.main(verbosity=2)
