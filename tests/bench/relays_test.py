"""scripts/compare-relays measures, with slices too short to say anything."""

import os
import pathlib
import subprocess
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts/compare-relays"
CPU = str(min(os.sched_getaffinity(0)))


def run(*arguments):
    done = subprocess.run([SCRIPT, "--bin", os.environ["PERCORE_BIN_DIR"], "--server-cpu", CPU, "--load-cpu", CPU, *arguments],
                          capture_output=True, text=True, timeout=100, check=False)
    return done.returncode, done.stdout, done.stderr


class Modes(unittest.TestCase):
    def check(self, *arguments, rows):
        status, output, errors = run(*arguments)
        self.assertEqual(status, 0, output + errors)
        for row in rows:
            self.assertRegex(output, f"(?m)^{row} +")

    def test_bulk(self):
        self.check("bulk", "--rounds", "1", "--slice", "0.2", "--only", "splice-loop,percore", rows=("splice-loop", "percore"))

    def test_short(self):
        self.check("short", "--rounds", "1", "--slice", "0.2", "--connections", "4", "--only", "percore,haproxy",
                   rows=("percore", "haproxy"))

    def test_files(self):
        self.check("files", "--size", "16k", "--rounds", "1", "--slice", "0.2", "--only", "percore,nginx", rows=("percore", "nginx"))

    def test_idle(self):
        self.check("idle", "--pairs", "200", "--only", "percore,haproxy", rows=("percore", "haproxy"))

    def test_mistakes(self):
        self.assertEqual(run("nonsense")[0], 2)
        status, _, errors = run("bulk", "--only", "apache")
        self.assertEqual(status, 1)
        self.assertIn('no server "apache"', errors)


if __name__ == "__main__":
    unittest.main()
