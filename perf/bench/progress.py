"""One line about what is being done and how long it will still take."""

import sys
import time


class Progress:
    def __init__(self, planned_s):
        self.planned_s, self.done_s = max(planned_s, 1.0), 0.0
        self.start = time.monotonic()
        self.terminal = sys.stderr.isatty()
        self.width = 0

    def left_s(self):
        """What is planned, corrected by how well the plan has been kept so far."""
        elapsed = time.monotonic() - self.start
        pace = elapsed / self.done_s if self.done_s > 5 else 1.0
        return max(0.0, (self.planned_s - self.done_s) * pace)

    def advance(self, planned_s):
        self.done_s += planned_s

    def skip(self, planned_s):
        """Was done in an earlier run, or cannot be."""
        self.planned_s = max(1.0, self.planned_s - planned_s)

    def show(self, text, step=False):
        """`step`: worth a line of its own where there is no terminal."""
        left = round(self.left_s())
        line = f"bench: {min(99, int(100 * self.done_s / self.planned_s))} %, {left // 60}:{left % 60:02d} left: {text}"
        if self.terminal:
            print("\r" + line.ljust(self.width), end="", file=sys.stderr, flush=True)
            self.width = len(line)
        elif step:
            print(line, file=sys.stderr, flush=True)

    def note(self, text):
        if self.terminal and self.width:
            print("\r" + " " * self.width + "\r", end="", file=sys.stderr)
        print(f"bench: {text}", file=sys.stderr, flush=True)
