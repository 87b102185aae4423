"""Processes that a measurement starts: pinned, leaders of their own session, ended with it."""

import ctypes
import os
import re
import shlex
import signal
import subprocess
import time

from perf.bench import kernel

PR_SET_PDEATHSIG = 1  # prctl(2): if the script is killed outright, the kernel ends what it started
LIBC = ctypes.CDLL(None, use_errno=True)


class Failure(Exception):
    """Something we started did not do its part; the text is for the user."""


def fill(template, values):
    """The words of a command with its {placeholders} replaced; other braces stay."""
    words = shlex.split(template)
    return [re.sub(r"\{(\w+)\}", lambda m: str(values.get(m[1], m[0])), word) for word in words]


class Child:
    """A process of ours, leader of its own session, pinned; its output goes to a file."""

    def __init__(self, words, cpus, death_signal, output_path, what, environment=None):
        self.what = what
        self.output_path = output_path

        def prepare():
            os.sched_setaffinity(0, cpus)
            LIBC.prctl(PR_SET_PDEATHSIG, int(death_signal))

        with open(self.output_path, "wb") as output:
            try:
                self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=output,
                                                stderr=subprocess.STDOUT, start_new_session=True,
                                                preexec_fn=prepare, env=environment)
            except OSError as error:
                raise Failure(f"{what}: cannot run {words[0]}: {error.strerror}") from error
            except subprocess.SubprocessError as error:  # preexec_fn failed
                raise Failure(f"{what}: cannot be pinned to CPUs {sorted(cpus)}") from error
        self.pid = self.process.pid

    def output(self):
        with open(self.output_path, encoding="utf-8", errors="replace") as file:
            return file.read()

    def check_alive(self):
        if self.process.poll() is not None:
            raise Failure(f"{self.what} ended with status {self.process.returncode}:\n"
                          + self.output()[-2000:])

    def send(self, number):
        if self.process.poll() is None:
            os.killpg(self.pid, number)

    def wait_stopped(self):
        """SIGSTOP stops each thread when that thread next meets it."""
        while True:
            self.check_alive()
            states = [kernel.stat_fields(path) for pid in kernel.session_members(self.pid)
                      for path in kernel.task_stats(pid)]
            if all(fields is None or fields[0] in "Tt" for fields in states):
                return
            time.sleep(0.0005)

    def end(self, first_signal, timeout_s):
        """Asks, waits, then kills what is left of the session, which holds only what we started."""
        self.send(first_signal)
        self.send(signal.SIGCONT)
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            pass
        for pid in kernel.session_members(self.pid):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.process.wait()
