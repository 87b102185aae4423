"""What will be run: every (test, core count) with its servers, places and generators."""

import dataclasses
import shlex

from perf.bench import generators, servers, topology, workloads

# Between two slices a short TLS connection waits half way through its handshake, and its request counts in another slice
# than the handshake does. Few connections and longer slices keep that small: perf/README.md has figures.
FINE_SHORT_TLS_CONNECTIONS = 50
FINE_SHORT_TLS_SLICE = 2  # times the slice of other tests
# A wrk thread costs about what the server's work costs with keep-alive, more where handshakes are made.
LOAD_CPUS_PER_CORE = 2
IDLE_S = 2.0  # that the memory of one server's idle connections takes


class PlanError(Exception):
    """Bad usage; the text is for the user."""


@dataclasses.dataclass
class Settings:
    tests: list
    kinds: list           # of servers
    placement: topology.Placement
    cores: list           # core counts; empty: the schedule
    connections: int
    duration_s: float
    rounds: int
    slice_s: float        # fine interleaving
    interleave: str       # fine or rounds
    profile: str
    load: str             # generator
    latency_tests: list
    latency_s: float
    idle_connections: int
    certificate: tuple    # (certificate file, key file)
    pace: str             # the program


@dataclasses.dataclass
class Group:
    """One test with one core count: all servers take turns in it."""
    test: workloads.Test
    cores: int
    server_cpus: list
    instances: list   # (CPU, connections) of each generator instance
    kinds: list
    slice_s: float = 0.0

    @property
    def key(self):
        return f"{self.test.name}/{self.cores}"


def load_places(load_cpus, cores, connections, factor=LOAD_CPUS_PER_CORE):
    """One instance per CPU, pinned; connections in equal shares."""
    count = max(1, min(len(load_cpus), factor * cores, connections))
    share, rest = divmod(connections, count)
    return [(cpu, share + (1 if i < rest else 0)) for i, cpu in enumerate(load_cpus[:count])]


def core_counts(settings):
    available = settings.placement.schedule()
    if not settings.cores:
        return available
    most = len(settings.placement.server)
    for count in settings.cores:
        if count > most:
            raise PlanError(f"--cores: {count} is more than the {most} CPUs for servers here ({settings.placement.why})")
    return settings.cores


def groups(settings):
    found = []
    for test in settings.tests:
        kinds = [kind for kind in settings.kinds if kind.takes(test)]
        if not generators.can(settings.load, test):
            continue
        for cores in core_counts(settings):
            connections, slice_s = settings.connections, settings.slice_s
            if settings.interleave == "fine" and test.tls and not test.keep_alive:
                connections = min(connections, FINE_SHORT_TLS_CONNECTIONS * cores)
                slice_s *= FINE_SHORT_TLS_SLICE
            places = load_places(settings.placement.load, cores, connections)
            found.append(Group(test, cores, settings.placement.server[:cores], places, kinds, slice_s))
    return found


def server_cpus(group, settings, kind):
    """The CPUs on which the process may run. As published, a server that does not pin its threads (a Go program) had
    the whole node, and GOMAXPROCS limited it."""
    if settings.profile == "as-published" and kind.name in ("net-http", "fasthttp"):
        return settings.placement.server
    return group.server_cpus


def server_command(group, settings, kind):
    return servers.command(kind, group.test, group.server_cpus, settings.profile, settings.certificate)


def load_command(group, settings, connections):
    live = settings.interleave == "fine"
    text = generators.command(settings.load, group.test, live)
    header = "Connection: " + ("keep-alive" if group.test.keep_alive else "close")
    words = {"threads": 1, "connections": connections, "header": shlex.quote(header),
             "duration": "36000s" if live else f"{settings.duration_s:g}"}
    for name, value in words.items():
        text = text.replace("{" + name + "}", str(value))
    return text


def seconds(settings):
    """How long all of it will take, roughly, without the building."""
    total = 0.0
    for group in groups(settings):
        slow = 1.5 if group.test.tls else 1.0
        if settings.interleave == "fine":
            # A slice ends when the server rests; warm-up takes about two slices and the connecting.
            total += len(group.kinds) * (0.6 * slow + (settings.rounds + 2) * (group.slice_s + 0.07 * slow))
        else:
            total += len(group.kinds) * settings.rounds * (settings.duration_s + 2.2)
    for group in latency_groups(settings):
        total += len(group.kinds) * (2 * (settings.latency_s + 0.8) + 0.5)
    if settings.idle_connections:
        total += IDLE_S * len(settings.kinds)
    return total


def latency_groups(settings):
    """The latency tests at the largest core count."""
    names = {test.name for test in settings.latency_tests}
    last = max(core_counts(settings))
    return [group for group in groups(settings) if group.test.name in names and group.cores == last]


def describe(settings):
    """The lines of --plan: every command that would run."""
    lines = [f"# {settings.placement.why}", f"# servers may have CPUs {topology.cpu_list(settings.placement.server)}, "
             f"load CPUs {topology.cpu_list(settings.placement.load)}",
             f"# profile {settings.profile}, {settings.connections} connections, "
             + (f"{settings.rounds} interleaved slices of {settings.slice_s:g} s"
                if settings.interleave == "fine" else f"{settings.rounds} rounds of {settings.duration_s:g} s")
             + f", about {max(1, round(seconds(settings) / 60))} min"]
    for group in groups(settings):
        lines.append(f"\n## test {group.test.name}: {group.test.title}; cores {group.cores}")
        for kind in group.kinds:
            cpus = topology.cpu_list(server_cpus(group, settings, kind))
            lines.append(f"# {kind.name}")
            lines.append(f"GOMAXPROCS={group.cores} taskset -c {cpus} {server_command(group, settings, kind)}")
            for cpu, connections in group.instances:
                lines.append(f"  taskset -c {cpu} {load_command(group, settings, connections)}")
    for group in latency_groups(settings):
        lines.append(f"\n## latency, test {group.test.name}; cores {group.cores}; at 50 % and 80 % of each peak")
        lines.append(f"taskset -c {topology.cpu_list([cpu for cpu, _ in group.instances])} "
                     + " ".join(pace_words(group, settings, "{port}", "{rate}")))
    if settings.idle_connections:
        lines.append(f"\n## memory of {settings.idle_connections} idle connections, for each server")
        lines.append(f"{settings.pace} --address 127.0.0.1:{{port}} --idle {settings.idle_connections}")
    return "\n".join(lines)


def pace_words(group, settings, port, rate):
    words = [settings.pace, "--address", f"127.0.0.1:{port}", "--rate", str(rate), "--connections",
             str(settings.connections), "--duration", f"{settings.latency_s:g}", "--warm-up", "0.5", "--threads",
             str(min(len(group.instances), settings.connections))]
    if not group.test.keep_alive:
        words.append("--close")
    if group.test.tls:
        words.append("--tls")
        if not group.test.tickets:
            words.append("--full-handshakes")
    return words
