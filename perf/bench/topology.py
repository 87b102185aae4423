"""Where servers and load run. hwloc's lstopo describes this machine and synthetic ones in the same XML."""

import dataclasses
import os
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree

from perf.bench import workloads

# The same description that the engine has for it: Linux numbers first the first threads of all cores, package by
# package, then the second ones.
SYNTHETIC = {"c5.metal": "pack:2 [numa] core:24 pu:2(indexes=core)"}


class TopologyError(Exception):
    """The text is for the user."""


@dataclasses.dataclass(frozen=True)
class Pu:
    """A hardware thread: its kernel number, its core and NUMA node (logical), and which thread of its core it is."""
    cpu: int
    core: int
    node: int
    thread: int


def lstopo_xml(topology):
    program = shutil.which("lstopo-no-graphics") or shutil.which("lstopo")
    if not program:
        raise TopologyError("hwloc's lstopo is not installed (Debian: hwloc)")
    command = [program, "--of", "xml"]
    if topology != "local":
        command += ["--input", SYNTHETIC.get(topology, topology)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    if done.returncode != 0 or "<topology" not in done.stdout:
        raise TopologyError(f"hwloc knows no topology '{topology}': {done.stderr.strip() or 'no answer'}\n"
                            f"known: local, {', '.join(SYNTHETIC)}, or a description such as 'pack:2 [numa] core:8 pu:2'")
    return done.stdout


def parse_xml(text):
    """The hardware threads in hwloc's logical order."""
    found, counts = [], {"core": 0, "node": 0}

    def walk(element, node, core):
        children = element.findall("object")
        if any(child.get("type") == "NUMANode" for child in children):
            node = counts["node"]
            counts["node"] += 1
        if element.get("type") == "Core":
            core = counts["core"]
            counts["core"] += 1
        if element.get("type") == "PU":
            thread = sum(1 for pu in found if pu.core == core and core >= 0)
            found.append(Pu(int(element.get("os_index")), core if core >= 0 else int(element.get("os_index")),
                            max(node, 0), thread))
        for child in children:
            if child.get("type") != "NUMANode":
                walk(child, node, core)

    for top in ElementTree.fromstring(text).findall("object"):
        walk(top, -1, -1)
    return found


def read(topology="local"):
    """All hardware threads that may be used; on this machine those of the process's affinity (taskset, cpuset)."""
    pus = parse_xml(lstopo_xml(topology))
    if topology == "local":
        allowed = os.sched_getaffinity(0)
        pus = [pu for pu in pus if pu.cpu in allowed]
    if not pus:
        raise TopologyError(f"topology '{topology}' has no CPUs")
    return pus


@dataclasses.dataclass(frozen=True)
class Placement:
    server: list  # CPUs in the order in which core counts take them: first threads, then second ones
    load: list
    why: str

    def schedule(self):
        return workloads.published_schedule(len(self.server))


def by_thread(pus):
    return [pu.cpu for pu in sorted(pus, key=lambda pu: pu.thread)]  # stable: logical order within


def place(pus):
    """Two NUMA nodes or more: servers on the first, load on the second, as published. One: its cores are halved; server
    and load never share a core."""
    nodes = sorted({pu.node for pu in pus})
    if len(nodes) >= 2:
        server, load = ([pu for pu in pus if pu.node == node] for node in nodes[:2])
        return Placement(by_thread(server), by_thread(load), f"servers on NUMA node {nodes[0]}, load on {nodes[1]}")
    cores = list(dict.fromkeys(pu.core for pu in pus))
    if len(cores) < 2:
        raise TopologyError("server and load need a core each, and only one core may be used here: no measurement")
    mine = set(cores[:len(cores) // 2])
    return Placement(by_thread([pu for pu in pus if pu.core in mine]),
                     by_thread([pu for pu in pus if pu.core not in mine]),
                     f"one NUMA node: servers on {len(mine)} of its {len(cores)} cores, load on the others")


def cpu_list(cpus):
    """[0, 1, 2, 5] -> '0-2,5', the notation of taskset and of the servers."""
    parts, ranked = [], sorted(cpus)
    for cpu in ranked:
        if parts and cpu == parts[-1][1] + 1:
            parts[-1][1] = cpu
        else:
            parts.append([cpu, cpu])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)
