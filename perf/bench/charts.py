"""From result.json to the .dat files and the charts that gnuplot draws of them."""

import os
import pathlib
import shutil
import subprocess

from perf.bench import machine, report, servers, workloads

GNUPLOT = pathlib.Path(__file__).resolve().parents[2] / "gnuplot"
FORMATS = ("png", "svg")
MEANING = {"generator-bound": "the generator was the bottleneck", "errors": "some requests failed",
           "noisy": "something else used the servers' CPUs too", "ended-early": "the server ended early"}
# Of the published figures: a server has the same one in every chart. Ours are told by servers.built_in's order.
REFERENCE_COLOURS = {"net/http": "#7777aa", "evio": "#aaaa77", "gnet": "#77aa77", "fasthttp": "#aa7777", "tcpserver": "#333333"}
REFERENCE_NOTES = {"5": "\ntcpserver's server answered first and slept afterwards"}


class ChartError(Exception):
    """The text is for the user."""


def number(value):
    return "NaN" if value is None else f"{value:.6g}"


def write(path, comment, lines):
    with open(path, "w", encoding="utf-8") as file:
        file.write(f"# {comment}\n" + "\n".join(lines) + "\n")


def marks_of(entry):
    return "".join(report.MARKS[mark] for mark in entry["marks"]) or "-"


def names_of(groups):
    """All servers of some groups, in the order in which they came."""
    return list(dict.fromkeys(name for group in groups for name in group["servers"]))


def rows(groups, names, key, value):
    """A line per group: key(group), then value, low, high and marks of each server."""
    lines = []
    for group in groups:
        words = [key(group)]
        for name in names:
            entry = group["servers"].get(name)
            found = value(entry) if entry else None
            words += [number(v) for v in found] + [marks_of(entry)] if found else ["NaN", "NaN", "NaN", "-"]
        lines.append(" ".join(words))
    return lines


def triple(figures):
    return figures["median"], figures["min"], figures["max"]


class Charts:
    def __init__(self, result, folder):
        self.result, self.folder = result, pathlib.Path(folder)
        self.machine = machine.one_line(result["machine"])
        self.made = []
        known = [kind.name for kind in servers.built_in("", "")]
        found = names_of(result["groups"].values()) + [name for measured in result["latency"].values() for name in measured]
        found += result["idle"]
        self.order = known + [name for name in dict.fromkeys(found) if name not in known]
        marked = {mark for g in result["groups"].values() for entry in g["servers"].values() for mark in entry["marks"]}
        self.legend = "\n" + ", ".join(f"{report.MARKS[m]}: {MEANING[m]}" for m in sorted(marked)) if marked else ""

    def how(self, groups):
        """Under which conditions. Not all tests have the same number of connections with fine interleaving."""
        parameters = self.result["parameters"]
        counts = {}
        for group in groups:
            counts.setdefault(group.get("connections", parameters["connections"]), []).append(group["test"])
        usual = max(counts, key=lambda count: len(counts[count]), default=parameters["connections"])
        others = [f"{count} in test {', '.join(dict.fromkeys(tests))}" for count, tests in sorted(counts.items())
                  if count != usual]
        return (f"{self.machine}; {usual} connections{''.join(f' ({other})' for other in others)}, {parameters['load']}, "
                f"profile {parameters['profile']}")

    def styles(self, names):
        """A server's number, for its colour and pattern: the same in every chart."""
        return " ".join(str(self.order.index(name) + 1) for name in names)

    def draw(self, template, name, title, variables):
        """Both formats. The variables are handed to gnuplot, which takes strings in double quotes."""
        settings = {"folder": str(GNUPLOT), "title": title} | variables
        for term in FORMATS:
            output = self.folder / f"{name}.{term}"
            text = "; ".join(f"{key} = " + (f'"{escape(value)}"' if isinstance(value, str) else str(value))
                             for key, value in (settings | {"term": term, "output": str(output)}).items())
            done = subprocess.run(["gnuplot", "-e", text, str(GNUPLOT / template)], capture_output=True, text=True,
                                  timeout=120, check=False)
            if done.returncode != 0 or not output.exists() or output.stat().st_size == 0:
                raise ChartError(f"gnuplot could not draw {output.name}: {done.stderr.strip()[-2000:]}")
            self.made.append(output)

    def groups_of(self, test):
        return [g for g in self.result["groups"].values() if g["test"] == test and g["servers"]]

    def tests(self):
        return [name for name in workloads.ALL if self.groups_of(name)]

    def clusters(self, name, title, names, lines, ylabel, xlabel, groups, reference=None, note=""):
        data = self.folder / f"{name}.dat"
        header = " ".join(f"{n} low high marks" for n in names)
        write(data, f"{title}. {ylabel}. Columns: {xlabel.replace(' ', '_')} {header}", lines)
        extra = {"reference": "", "reference_title": "", "reference_columns": 0, "reference_colours": ""}
        if reference:
            columns = next(line for line in reference.read_text(encoding="utf-8").splitlines() if not line.startswith("#"))
            extra = {"reference": str(reference), "reference_columns": len(columns.split()),
                     "reference_colours": " ".join(REFERENCE_COLOURS[column] for column in columns.split()[1:]),
                     "reference_title": "Published by the Go library tcpserver on an EC2 c5.metal (2 x Xeon Platinum 8275CL):\n"
                                        f"another machine and another generator, not measured here{note}"}
        self.draw("clusters.gp", name, title, {"data": str(data), "names": " ".join(names), "count": len(names),
                                               "styles": self.styles(names), "rows": len(lines), "ylabel": ylabel, "xlabel": xlabel,
                                               "sub": f"{self.how(groups)}{self.legend}"} | extra)

    def per_test(self, test):
        groups = sorted(self.groups_of(test), key=lambda g: g["cores"])
        names, title = names_of(groups), f"Test {test}: {groups[0]['title']}"
        if any(group["partial"] for group in groups):
            title += " (not finished)"
        reference = GNUPLOT / "reference/c5.metal" / (workloads.ALL[test].reference or "none")
        cores = lambda group: str(group["cores"])
        self.clusters(f"test-{test}", title, names, rows(groups, names, cores, lambda e: triple(e["requests_per_s"])),
                      "requests/s (bars: median, lines: min to max)", "cores of the server", groups,
                      reference if reference.exists() else None, REFERENCE_NOTES.get(test, ""))
        self.clusters(f"test-{test}-cpu", title, names, rows(groups, names, cores, lambda e: triple(e["cpu_us_per_request"])),
                      "server CPU per request, us (median, min to max)", "cores of the server", groups)
        if len({g["cores"] for g in groups}) > 1:
            self.scaling(test, title, names, groups)

    def scaling(self, test, title, names, groups):
        data = self.folder / f"test-{test}-scaling.dat"
        first = {name: next(((g["cores"], g["servers"][name]["requests_per_s"]["median"]) for g in groups
                             if name in g["servers"]), None) for name in names}
        lines = []
        for group in groups:
            shares = [group["servers"][n]["requests_per_s"]["median"] / group["cores"] / (first[n][1] / first[n][0])
                      if n in group["servers"] else None for n in names]
            lines.append(" ".join([str(group["cores"])] + [number(s) for s in shares]))
        write(data, f"{title}. requests/s per core, share of one core's. Columns: cores {' '.join(names)}", lines)
        self.draw("scaling.gp", f"test-{test}-scaling", title,
                  {"data": str(data), "names": " ".join(names), "count": len(names), "styles": self.styles(names),
                   "sub": self.how(groups)})

    def overview(self):
        """CPU per request in all tests, as a ratio to the first server, for each core count that several tests have."""
        for cores in sorted({g["cores"] for g in self.result["groups"].values()}):
            groups = [g for test in self.tests() for g in self.groups_of(test) if g["cores"] == cores]
            ratio = lambda e: (e["ratio"]["median"], e["ratio"]["low"], e["ratio"]["high"]) if "ratio" in e else None
            if len(groups) < 2:
                continue
            names = names_of(groups)
            self.clusters(f"overview-{cores}", f"Server CPU per request, {cores} core{'s' if cores > 1 else ''} "
                          f"(lower is better)", names, rows(groups, names, lambda g: g["test"], ratio),
                          f"ratio to {names[0]} (95 % interval)", "test", groups)

    def latency(self):
        for key, measured in self.result["latency"].items():
            test, cores = key.split("/")
            for share in ("50", "80"):
                found = {name: shares[share] for name, shares in measured.items() if share in shares}
                if not found:
                    continue
                name = f"latency-{test}-{cores}-{share}"
                blocks = []
                for server, figures in found.items():
                    points = [(1 / (1 - float(p) / 100), us) for p, us in figures["latency_us"].items() if 50 <= float(p) < 100]
                    blocks.append(f'"{server}"\n' + "\n".join(f"{x:.6g} {us:.6g}" for x, us in points))
                title = f"Test {test}, {cores} core{'s' if cores != '1' else ''}: latency at {share} % of each server's peak"
                write(self.folder / f"{name}.dat", f"{title}. Columns: 1/(1-percentile) us; a block for each server",
                      ["\n\n\n".join(blocks)])
                self.draw("latency.gp", name, title, {"data": str(self.folder / f"{name}.dat"), "count": len(found),
                                                      "names": " ".join(found), "styles": self.styles(found),
                                                      "sub": self.how([])})

    def memory(self):
        idle = self.result["idle"]
        if not idle:
            return
        data = self.folder / "memory.dat"
        write(data, "Memory of an idle connection. Columns: server bytes colour",
              [f"{name} {found['bytes_per_connection']:.6g} {self.styles([name])}" for name, found in idle.items()])
        count = next(iter(idle.values()))["connections"]
        self.draw("memory.gp", "memory", f"Memory of an idle connection, of {count}, after one request each (kernel's part "
                  "not included)", {"data": str(data), "sub": self.machine})


def escape(text):
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def draw_all(result, folder):
    """The files drawn. Raises ChartError."""
    if not shutil.which("gnuplot"):
        raise ChartError("gnuplot is not installed (Debian: gnuplot-nox); the result is kept, scripts/plot draws it later")
    os.makedirs(folder, exist_ok=True)
    charts = Charts(result, folder)
    for test in charts.tests():
        charts.per_test(test)
    charts.overview()
    charts.latency()
    charts.memory()
    return charts.made
