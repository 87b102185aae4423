"""One JSON with everything that was measured: kept after each step, so that nothing is lost and a run can go on."""

import json
import os
import statistics

from perf.bench import slices

VERSION = 1
GENERATOR_BUSY = 0.9  # of its CPUs: above it, and above the server's share, the generator was the bottleneck
NOISE = 0.1           # of the servers' CPUs used by others
STEAL = 0.02          # of the servers' CPUs' time


class ResultError(Exception):
    """The text is for the user."""


def new(parameters, machine):
    return {"version": VERSION, "complete": False, "parameters": parameters, "machine": machine, "groups": {},
            "latency": {}, "idle": {}, "failures": []}


def save(result, path):
    """Whole or not at all, whatever happens meanwhile."""
    temporary = f"{path}.new"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(result, file, indent=1)
        file.write("\n")
    os.replace(temporary, path)


def without_samples(result):
    """A copy that is small: the summaries of all, the slices and rounds of none. Charts need no more."""
    groups = {key: group | {"servers": {name: {k: v for k, v in entry.items() if k != "samples"}
                                        for name, entry in group["servers"].items()}}
              for key, group in result["groups"].items()}
    return result | {"groups": groups}


def load(path):
    try:
        with open(path, encoding="utf-8") as file:
            result = json.load(file)
    except OSError as error:
        raise ResultError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise ResultError(f"{path} is no result of this program: {error}") from error
    if not isinstance(result, dict) or result.get("version") != VERSION:
        raise ResultError(f"{path} is no result of this version of the program")
    return result


def check_resumable(result, parameters):
    """A run may only go on with what it began with."""
    for name, value in parameters.items():
        if result["parameters"].get(name) != value:
            raise ResultError(f"--resume: the kept result has {name} {result['parameters'].get(name)}, not {value}")


def spread(values):
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def balance(samples):
    """Busiest of the servers' CPUs against their mean, over all samples; 1.0 is perfect."""
    busy = {}
    for sample in samples:
        for cpu, ticks in sample["cpu_lines"].items():
            busy[cpu] = busy.get(cpu, 0) + sum(ticks) - ticks[3] - ticks[4] - (ticks[7] if len(ticks) > 7 else 0)
    mean = sum(busy.values()) / len(busy) if busy else 0
    return max(busy.values()) / mean if mean else 1.0


def steal_share(samples):
    ticks = sum(line[7] for sample in samples for line in sample["cpu_lines"].values())
    everything = sum(sum(line[:8]) for sample in samples for line in sample["cpu_lines"].values())
    return ticks / everything if everything else 0.0


def marks(summary, errors):
    """What a reader of the figures must know."""
    used, found = summary["cpus_used"], []
    if used["load_share"] > GENERATOR_BUSY and used["server_share"] < used["load_share"]:
        found.append("generator-bound")
    if any(errors.values()):
        found.append("errors")
    if used["others_share"] > NOISE or summary["steal_share"] > STEAL:
        found.append("noisy")
    return found


def summarise(samples, cores, instances, errors, peak_rss_bytes, connections):
    """Figures of one server in one group. A sample is a slice or a round."""
    requests = sum(s["requests"] for s in samples)
    ticks = sum(s["user_ticks"] + s["system_ticks"] for s in samples)
    share = sum(s["user_ticks"] for s in samples) / ticks if ticks else 0.0
    cost = spread([s["cpu_ns"] / s["requests"] / 1e3 for s in samples if s["requests"]])
    wall = sum(s["seconds"] for s in samples)
    per = lambda key, count: sum(s[key] for s in samples) / 1e9 / wall / count
    summary = {
        "requests_per_s": spread([s["requests"] / s["seconds"] for s in samples]),
        "requests": requests,
        "cpu_us_per_request": cost | {"user": cost["median"] * share, "system": cost["median"] * (1 - share)},
        "switches_per_request": {"voluntary": sum(s["switches"][0] for s in samples) / requests,
                                 "involuntary": sum(s["switches"][1] for s in samples) / requests},
        "cpus_used": {"server_share": per("cpu_ns", cores), "load_share": per("load_cpu_ns", instances),
                      "others_share": per("others_cpu_ns", cores)},
        "balance": balance(samples), "steal_share": steal_share(samples),
        "peak_rss_bytes": peak_rss_bytes, "connections": connections, "errors": errors}
    summary["marks"] = marks(summary, errors)
    return summary


def add_ratios(servers, baseline):
    """Each server's CPU per request against the baseline's, sample by sample: median and its 95 % interval."""
    base = servers.get(baseline, {}).get("samples")
    for entry in servers.values():
        if not base or "samples" not in entry:
            continue
        by_round = {s["round"]: s["cpu_ns"] / s["requests"] for s in base if s["requests"]}
        ratios = [s["cpu_ns"] / s["requests"] / by_round[s["round"]] for s in entry["samples"]
                  if s["requests"] and s["round"] in by_round]
        if ratios:
            low, high = slices.interval(ratios)
            entry["ratio"] = {"to": baseline, "median": statistics.median(ratios), "low": low, "high": high}


