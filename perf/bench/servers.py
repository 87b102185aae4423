"""The servers that the suite knows, those of a configuration file, and the command of each for a test."""

import dataclasses
import os
import re
import shutil

from perf.bench import topology, workloads

DEFER_ACCEPT_S = 10  # longer than a generator is ever stopped, see perf/README.md
PROFILES = ("tuned", "as-published")
SAME_OPTIONS = ("--listen 127.0.0.1:{port} --cpus {cpus} --body {body} --keep-alive {keep_alive} {if_aes:--aes128} "
                "{if_sleep:--sleep-ms {sleep_ms}} {if_defer:--defer-accept {defer_accept}} --fin-with-data {fin} "
                "{if_tls:--tls --cert {cert} --key {key}} {if_full:--tickets off}")
ALL_ABILITIES = frozenset(("tls", "aes", "sleep"))


class ConfigError(Exception):
    """The text is for the user."""


@dataclasses.dataclass(frozen=True)
class Kind:
    name: str
    title: str
    template: str  # command; see `command` for its placeholders
    can: frozenset = ALL_ABILITIES
    tests: tuple = ()      # of a configured server: exactly these; empty: all that it can
    program: str = ""      # file that must be there
    target: str = ""       # what the build calls it
    package: str = ""      # Debian's package that it needs

    def takes(self, test):
        return test.name in self.tests if self.tests else test.needs <= self.can


def built_in(bin_dir, source_dir):
    """In the order of the charts. The first is the one that others are compared with."""
    def ours(name, title, program, template=SAME_OPTIONS, can=ALL_ABILITIES, package=""):
        path = os.path.join(bin_dir, program)
        return Kind(name, title, f"{path} {template}", frozenset(can), (), path, program, package)

    nginx = os.path.join(source_dir, "perf/peers/nginx/peer-nginx")
    floor = ("--listen 127.0.0.1:{port} --cpus {cpus} --body {body} --keep-alive {keep_alive} {if_aes:--aes128} "
             "{if_sleep:--sleep-ms {sleep_ms}} {if_defer:--defer-accept {defer_accept}} {if_fin:--fin-with-data} "
             "{if_tls:--tls fd --cert {cert} --key {key}} {if_full:--tickets off}")
    return [
        ours("percore", "percore", "percore-http"),
        ours("floor", "bare epoll loop, no parsing", "floor", floor),
        ours("asio", "Asio", "peer-asio", package="libasio-dev"),
        ours("libevent", "libevent", "peer-libevent", package="libevent-dev"),
        ours("libuv", "libuv", "peer-libuv", can=("aes", "sleep"), package="libuv1-dev"),
        Kind("nginx", "nginx", f"{nginx} --dir {{dir}} {SAME_OPTIONS}", frozenset(("tls",)), (), "/usr/sbin/nginx", "",
             "nginx-light"),
        ours("fasthttp", "Go fasthttp", "peer-fasthttp", SAME_OPTIONS + " {if_tuned:--instance-per-cpu}", package="golang-github-valyala-fasthttp-dev"),
        ours("net-http", "Go net/http", "peer-net-http", package="golang-go"),
    ]


def read_config(path):
    """Further servers, one per line: NAME TESTS COMMAND; '#' begins a comment. TESTS: names with commas, or all."""
    kinds = []
    try:
        with open(path, encoding="utf-8") as file:
            lines = list(file)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    for number, line in enumerate(lines, 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        words = line.split(None, 2)
        if len(words) < 3:
            raise ConfigError(f"{path}:{number}: NAME TESTS COMMAND expected")
        name, names, template = words
        tests = tuple(workloads.ALL) if names == "all" else tuple(names.split(","))
        for test in tests:
            if test not in workloads.ALL:
                raise ConfigError(f"{path}:{number}: no test '{test}'; there are {' '.join(workloads.ALL)}")
        if not re.fullmatch(r"[A-Za-z0-9_.+-]+", name):
            raise ConfigError(f"{path}:{number}: a name has letters, digits and _.+- only, not '{name}'")
        kinds.append(Kind(name, name, template, tests=tests, program=shutil.which(template.split()[0]) or
                          template.split()[0]))
    return kinds


def expand_conditions(template, conditions):
    """{if_tls:TEXT} stands for TEXT where `tls` holds, else for nothing. TEXT may hold {placeholders}."""
    def replace(match):
        if match[1] not in conditions:
            raise ConfigError(f"no condition '{match[1]}' in '{template}'; there are {' '.join(conditions)}")
        return match[2] if conditions[match[1]] else ""
    return re.sub(r"\{if_(\w+):((?:[^{}]|\{\w+\})*)\}", replace, template)


def command(kind, test, cpus, profile, certificate):
    """The server's command; {port} and {dir} are left for the start. `certificate`: (certificate file, key file)."""
    tuned = profile == "tuned"
    conditions = {"aes": test.aes, "tls": test.tls, "sleep": test.sleep_ms > 0, "full": not test.tickets,
                  "defer": tuned and not test.keep_alive, "fin": tuned and not test.keep_alive,
                  "close": not test.keep_alive, "tuned": tuned}
    values = {"cpus": topology.cpu_list(cpus), "cores": len(cpus), "body": test.body, "sleep_ms": test.sleep_ms,
              "keep_alive": "on" if test.keep_alive else "off", "keep_alive_01": int(test.keep_alive),
              "fin": "on" if conditions["fin"] else "off", "defer_accept": DEFER_ACCEPT_S if conditions["defer"] else 0,
              "cert": certificate[0], "key": certificate[1]}
    text = expand_conditions(kind.template, conditions)
    return " ".join(re.sub(r"\{(\w+)\}", lambda m: str(values.get(m[1], m[0])), text).split())


def environment(cpus):
    """Go takes as many threads as the published script gave it, whatever the server's own options."""
    return os.environ | {"GOMAXPROCS": str(len(cpus))}
