"""Processes that a test starts, and what they start, bear a mark in their environment, so that none of them can live on
unseen; their temporary files lie in a folder of the test's own."""

import os
import pathlib
import tempfile
import time
import uuid

NAME = "PERCORE_TEST_MARK"


class Marked:
    """For a unittest.TestCase, which lists it first. Processes started with `environment` are looked for at the end of
    each test, and temporary files whose names begin with `prefix`."""

    prefix = ""

    def setUp(self):
        super().setUp()
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.value = str(uuid.uuid4())
        self.environment = os.environ | {NAME: self.value, "TMPDIR": self.folder.name}

    def tearDown(self):
        """Whatever happened, nothing that was started lives on and no file is left."""
        deadline = time.monotonic() + 10  # killed processes take their time to go
        while self.marked() and time.monotonic() < deadline:
            time.sleep(0.02)
        self.assertEqual(self.marked(), [])
        self.assertEqual([name for name in os.listdir(self.folder.name) if name.startswith(self.prefix)], [])
        super().tearDown()

    def marked(self):
        """The ids of those that live."""
        mark = f"{NAME}={self.value}".encode()
        found = []
        for entry in filter(str.isdigit, os.listdir("/proc")):
            try:
                environment = pathlib.Path(f"/proc/{entry}/environ").read_bytes()
            except OSError:
                continue
            if mark in environment.split(b"\0"):
                found.append(int(entry))
        return found
