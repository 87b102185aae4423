"""Runs a plan. Whatever fails is noted and left out; the rest goes on."""

import os
import resource
import signal
import subprocess
import time

from perf.bench import generators, kernel, plan, results, servers, slices
from perf.bench.children import Child, Failure, fill

START_TRIES = 3       # a port that was free may be taken a moment later
WARM_UP_S = 1
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
ENDED = (Failure, kernel.ProcessGone, generators.GeneratorError)


class Runner:
    def __init__(self, settings, result, path, root, progress):
        self.settings, self.result, self.path = settings, result, path
        self.root, self.progress = root, progress
        self.started = 0
        self.running = []  # servers that must be ended

    def published(self, command):
        """A command as it is kept: without the paths of this machine."""
        return command.replace(ROOT + os.sep, "").replace(self.root, "{dir}")

    # ---- what all kinds of runs need ----------------------------------------------------------------------

    def start_server(self, group, kind):
        """Started and listening. Raises Failure."""
        cpus = set(plan.server_cpus(group, self.settings, kind))
        for attempt in range(START_TRIES):
            self.started += 1
            server = slices.Server(kind.name, plan.server_command(group, self.settings, kind), cpus, self.root,
                                   self.started, servers.environment(group.server_cpus))
            self.running.append(server)
            try:
                server.wait_ready()
                return server
            except Failure as failure:
                self.end(server)
                if attempt + 1 == START_TRIES or "in use" not in str(failure):
                    raise
        raise AssertionError("unreachable")

    def end(self, server):
        server.end()
        self.running.remove(server)

    def end_all(self):
        for server in list(self.running):
            self.end(server)

    def save(self):
        results.save(self.result, self.path)

    def note_failure(self, where, name, failure):
        text = str(failure).strip()
        self.result["failures"].append({"where": where, "server": name,
                                        "text": self.published(text[-2000:])})
        self.progress.note(f"{where}: {name}: {text}")
        self.save()

    # ---- requests per second and CPU ----------------------------------------------------------------------

    def run_groups(self):
        for group in plan.groups(self.settings):
            known = self.result["groups"].get(group.key)
            if known and not known.get("partial"):
                self.progress.skip(self.planned(group))
                continue
            if self.settings.interleave == "fine":
                self.run_fine(group)
            else:
                self.run_rounds(group)
            self.progress.advance(self.planned(group))

    def planned(self, group):
        if self.settings.interleave == "fine":
            return len(group.kinds) * (0.6 + (self.settings.rounds + 2) * (group.slice_s + 0.07))
        return len(group.kinds) * self.settings.rounds * (self.settings.duration_s + 2.2)

    def keep(self, group, entries, partial):
        measured = {name: entry for name, entry in entries.items() if entry["samples"]}
        for entry in measured.values():
            entry |= results.summarise(entry["samples"], group.cores, len(group.instances), entry.pop("errors_found"),
                                       entry.pop("peak"), sum(connections for _, connections in group.instances))
        for entry in measured.values():
            if not partial and len(entry["samples"]) < self.settings.rounds:
                entry["marks"].append("ended-early")
        results.add_ratios(measured, group.kinds[0].name)
        self.result["groups"][group.key] = {
            "test": group.test.name, "title": group.test.title, "cores": group.cores, "partial": partial,
            "connections": sum(connections for _, connections in group.instances),
            "server_cpus": group.server_cpus, "load_cpus": [cpu for cpu, _ in group.instances], "servers": measured}
        self.save()

    # Fine: all servers up, slices in turn, the load of all others stopped (perf/README.md).
    def run_fine(self, group):
        setting = slices.Setting(
            server_cpus=set(group.server_cpus), load=generators.command("wrk", group.test, live=True),
            instances=[slices.Instance({cpu}, connections) for cpu, connections in group.instances],
            slice_s=group.slice_s, servers=len(group.kinds), keep_alive=group.test.keep_alive)
        entries, alive = {}, []
        where = f"test {group.test.name}, cores {group.cores}"
        finished = False
        try:
            for kind in group.kinds:
                self.progress.show(f"{where}: warm-up of {kind.name}", step=kind is group.kinds[0])
                self.try_server(where, kind.name, alive, lambda k=kind: self.begin_fine(group, k, setting, entries))
            for round_ in range(self.settings.rounds):
                for server in list(alive if round_ % 2 == 0 else reversed(alive)):
                    self.progress.show(f"{where}: slice {round_ + 1} of {self.settings.rounds}: {server.name}")
                    self.try_server(where, server.name, alive,
                                    lambda s=server, r=round_: self.take_slice(s, setting, r, entries), server)
            for server in list(alive):
                self.try_server(where, server.name, alive, lambda s=server: self.finish_fine(s, entries), server)
            finished = True
        finally:
            self.end_all()
            self.keep(group, entries, partial=not finished)

    def try_server(self, where, name, alive, action, server=None):
        """A server that fails leaves the round; the others stay."""
        try:
            made = action()
            if made is not None:
                alive.append(made)
        except ENDED as failure:
            self.note_failure(where, name, failure)
            if server is None:
                server = next((s for s in self.running if s.name == name), None)
            if server in self.running:
                self.end(server)
            if server in alive:
                alive.remove(server)

    def begin_fine(self, group, kind, setting, entries):
        server = self.start_server(group, kind)
        slices.warm_up(server, setting)
        entries[kind.name] = {
            "command": self.published(server.command), "load_command": self.published(server.load_command),
            "samples": [], "errors_found": {}, "peak": 0}
        return server

    def take_slice(self, server, setting, round_, entries):
        sample = server.take_slice(setting)
        if sample["requests"] == 0:
            raise Failure(f"no request was served in a slice\n{server.child.output()[-1000:]}")
        entries[server.name]["samples"].append(sample | {"round": round_})

    def finish_fine(self, server, entries):
        entry = entries[server.name]
        entry["peak"] = kernel.peak_rss_bytes(server.pids())
        server.finish_load()
        errors = dict(server.totals["errors"] or {}, status=server.totals["not_2xx_or_3xx"])
        entry["errors_found"] = {kind: count for kind, count in errors.items() if count}

    # Rounds: a fresh server and one whole run of the generator for each, A B C A B C.
    def run_rounds(self, group):
        entries = {}
        where = f"test {group.test.name}, cores {group.cores}"
        finished = False
        try:
            round_ = 0
            while round_ < self.settings.rounds:
                for kind in list(group.kinds):
                    self.progress.show(f"{where}: round {round_ + 1} of {self.settings.rounds}: {kind.name}", step=True)
                    try:
                        self.one_round(group, kind, round_, entries)
                    except ENDED as failure:
                        self.note_failure(where, kind.name, failure)
                        group.kinds = [other for other in group.kinds if other is not kind] or group.kinds
                    self.end_all()
                round_ += 1
                if round_ == 1 and self.more_load(group, entries):
                    entries.clear()
                    round_ = 0
            finished = True
        finally:
            self.end_all()
            self.keep(group, entries, partial=not finished)

    def more_load(self, group, entries):
        """After the first round: twice the instances, for all servers, if one of them waited for its generator."""
        count = len(group.instances)
        more = plan.load_places(self.settings.placement.load, group.cores, self.settings.connections,
                                2 * count / group.cores)
        if len(more) <= count:
            return False
        busy = any(s["load_cpu_ns"] / s["seconds"] / 1e9 / count > results.GENERATOR_BUSY and
                   s["cpu_ns"] / s["seconds"] / 1e9 / group.cores < results.GENERATOR_BUSY
                   for entry in entries.values() for s in entry["samples"])
        if busy:
            self.progress.note(f"the generator was the bottleneck: {len(more)} instances instead of {count}")
            group.instances = more
        return busy

    def one_round(self, group, kind, round_, entries):
        server = self.start_server(group, kind)
        self.load_once(group, server, WARM_UP_S)
        sample, found, command = self.load_measured(group, server, self.settings.duration_s)
        entry = entries.setdefault(kind.name, {"command": self.published(server.command), "load_command": command,
                                               "samples": [], "errors_found": {}, "peak": 0})
        if not sample["requests"]:
            raise Failure(f"no request was served\n{server.child.output()[-1000:]}")
        entry["samples"].append(sample | {"round": round_, "latency_us": found["latency_us"]})
        entry["peak"] = max(entry["peak"], kernel.peak_rss_bytes(server.pids()))
        for error, count in found["errors"].items():
            entry["errors_found"][error] = entry["errors_found"].get(error, 0) + count

    def load_once(self, group, server, seconds):
        """All instances, to their end: (their results added, the first one's command)."""
        children = []
        try:
            for index, (cpu, connections) in enumerate(group.instances):
                words = fill(generators.command(self.settings.load, group.test), {
                    "threads": 1, "connections": connections, "duration": f"{seconds:g}", "port": server.port,
                    "header": "Connection: " + ("keep-alive" if group.test.keep_alive else "close")})
                children.append(Child(words, {cpu}, signal.SIGKILL, os.path.join(server.directory, f"load{index}.out"),
                                      f"load for {server.name}"))
            deadline = time.monotonic() + seconds + 30
            while any(child.process.poll() is None for child in children):
                server.child.check_alive()
                if time.monotonic() > deadline:
                    raise Failure(f"the load for {server.name} did not end")
                time.sleep(0.02)
            for child in children:
                if child.process.returncode != 0:
                    raise Failure(f"{child.what} ended with status {child.process.returncode}:\n{child.output()[-2000:]}")
            parse = generators.PARSERS[self.settings.load]
            return generators.add([parse(child.output()) for child in children]), " ".join(words)
        finally:
            for child in children:
                child.end(signal.SIGKILL, 5.0)

    def load_measured(self, group, server, seconds):
        pids, cpus = server.pids(), set(group.server_cpus)
        lines, busy, cpu = kernel.cpu_lines(cpus), kernel.busy_ns(cpus), kernel.cpu_ns(pids)
        ticks, switches = kernel.cpu_ticks(pids), kernel.context_switches(pids)
        load_before = resource.getrusage(resource.RUSAGE_CHILDREN)
        found, command = self.load_once(group, server, seconds)
        server.wait_idle()
        used = kernel.cpu_ns(pids) - cpu
        load = resource.getrusage(resource.RUSAGE_CHILDREN)
        load_s = load.ru_utime + load.ru_stime - load_before.ru_utime - load_before.ru_stime
        after, ticks_after = kernel.context_switches(pids), kernel.cpu_ticks(pids)
        lines_after = kernel.cpu_lines(cpus)
        sample = {"seconds": found["seconds"], "requests": found["requests"], "cpu_ns": used,
                  "user_ticks": ticks_after[0] - ticks[0], "system_ticks": ticks_after[1] - ticks[1],
                  "load_cpu_ns": int(load_s * 1e9), "others_cpu_ns": max(0, kernel.busy_ns(cpus) - busy - used),
                  "switches": [a - b for a, b in zip(after, switches)],
                  "cpu_lines": {c: [a - b for a, b in zip(lines_after[c], lines[c])] for c in lines}}
        return sample, found, command

    # ---- latency and memory -------------------------------------------------------------------------------

    def run_latency(self):
        for group in plan.latency_groups(self.settings):
            for kind in group.kinds:
                known = self.result["groups"].get(group.key, {}).get("servers", {}).get(kind.name)
                kept = self.result["latency"].setdefault(group.key, {})
                planned_s = 2 * (self.settings.latency_s + 0.8) + 0.5
                if not known or kind.name in kept:
                    self.progress.skip(planned_s)
                    continue
                self.progress.show(f"latency, test {group.test.name}: {kind.name}", step=True)
                try:
                    kept[kind.name] = self.latency_of(group, kind, known["requests_per_s"]["median"])
                except ENDED as failure:
                    self.note_failure(f"latency, test {group.test.name}", kind.name, failure)
                self.end_all()
                self.save()
                self.progress.advance(planned_s)

    def latency_of(self, group, kind, peak):
        server = self.start_server(group, kind)
        found = {}
        for share in (50, 80):
            words = plan.pace_words(group, self.settings, server.port, f"{max(1.0, peak * share / 100):.0f}")
            try:
                done = subprocess.run(words, capture_output=True, text=True, timeout=self.settings.latency_s + 30,
                                      preexec_fn=lambda: os.sched_setaffinity(0, {c for c, _ in group.instances}),
                                      check=False)
            except (OSError, subprocess.TimeoutExpired) as error:
                raise Failure(f"pace: {error}") from error
            if done.returncode != 0:
                raise Failure(f"pace ended with status {done.returncode}: {done.stderr}")
            found[str(share)] = generators.parse_pace(done.stdout)
            server.child.check_alive()
        return found

    def run_idle(self):
        """Memory of connections that have had one answer and wait."""
        if not self.settings.idle_connections:
            return
        test = next((t for t in self.settings.tests if t.keep_alive and not t.needs), None)
        for group in [g for g in plan.groups(self.settings) if g.test is test][:1]:
            for kind in group.kinds:
                if kind.name in self.result["idle"]:
                    self.progress.skip(plan.IDLE_S)
                    continue
                self.progress.show(f"memory of idle connections: {kind.name}", step=True)
                try:
                    self.result["idle"][kind.name] = self.idle_of(group, kind)
                except ENDED as failure:
                    self.note_failure("idle connections", kind.name, failure)
                self.end_all()
                self.save()
                self.progress.advance(plan.IDLE_S)

    def idle_of(self, group, kind):
        server = self.start_server(group, kind)
        with self.hold(server, group, 1):
            before = kernel.pss_bytes(server.pids())
        count = self.settings.idle_connections
        with self.hold(server, group, count):
            after = kernel.pss_bytes(server.pids())
        return {"connections": count, "before_bytes": before, "after_bytes": after,
                "bytes_per_connection": (after - before) / count}

    def hold(self, server, group, count):
        return Held([self.settings.pace, "--address", f"127.0.0.1:{server.port}", "--idle", str(count)],
                    {group.instances[0][0]}, os.path.join(server.directory, f"idle{count}.out"))


class Held:
    """Idle connections, open inside a with statement."""

    def __init__(self, words, cpus, output_path):
        self.child = Child(words, cpus, signal.SIGKILL, output_path, "pace --idle")

    def __enter__(self):
        deadline = time.monotonic() + 30
        while "idle " not in self.child.output():
            self.child.check_alive()
            if time.monotonic() > deadline:
                self.child.end(signal.SIGKILL, 5.0)
                raise Failure("pace --idle was not ready after 30 s")
            time.sleep(0.01)
        time.sleep(0.1)  # the server returns from its last answers

    def __exit__(self, *_):
        self.child.end(signal.SIGTERM, 5.0)
