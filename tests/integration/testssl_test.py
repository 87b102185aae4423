"""testssl.sh against percore-http with its default TLS settings: protocols, categories of ciphers, known weaknesses."""

import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
import http_server  # noqa: E402
from certificates import Authority  # noqa: E402
from programs import is_sanitized  # noqa: E402

LIMIT_S = 110  # alone on two CPUs it takes a fraction of that
HARMLESS = ("OK", "INFO", "LOW")
# Says that OpenSSL's command line has no engine: nothing about the server.
NOT_OF_THE_SERVER = ("engine_problem",)

program = shutil.which("testssl") or shutil.which("testssl.sh")


@unittest.skipUnless(program, "testssl.sh is not installed")
@unittest.skipIf(is_sanitized("percore-http"), "its program is the same, and slower")
class TestSsl(unittest.TestCase):
    def findings(self, *checks):
        with Authority() as authority, tempfile.TemporaryDirectory(prefix="percore-") as folder:
            certificate, key = authority.issue("localhost", "DNS:localhost,IP:127.0.0.1")
            report = pathlib.Path(folder) / "report.json"
            with http_server.Server("--tls", "--cert", str(certificate), "--key", str(key)) as server:
                port = server.addresses[0].rsplit(":", 1)[1]
                done = subprocess.run(
                    [program, "--quiet", "--color", "0", "--warnings", "batch", "--ip", "127.0.0.1", "--add-ca",
                     str(authority.root), "--jsonfile", str(report), *checks, f"localhost:{port}"],
                    stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT_S)
            self.assertTrue(report.exists(), done.stdout + done.stderr)
            return json.loads(report.read_text())

    def test_nothing_above_low(self):
        found = self.findings("--protocols", "--std", "--heartbleed", "--ccs", "--ticketbleed", "--renegotiation",
                              "--compression", "--tls-fallback", "--sweet32")
        seen = {one["id"]: one["finding"] for one in found}
        self.assertIn("not offered", seen["TLS1_1"])
        self.assertIn("offered", seen["TLS1_2"])
        self.assertIn("offered", seen["TLS1_3"])
        self.assertIn("secure_client_renego", seen)
        bad = [one for one in found if one["severity"] not in HARMLESS and one["id"] not in NOT_OF_THE_SERVER]
        self.assertEqual(bad, [])


if __name__ == "__main__":
    unittest.main()
