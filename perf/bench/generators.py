"""Load generators: how each is called and what it prints."""

import json
import re
import shutil
import subprocess


class GeneratorError(Exception):
    """The text is for the user."""


WRK_LIVE = ("wrk -t{threads} -c{connections} -d{duration} --timeout {timeout} -H {header} -s {counter_script} "
            "@SCHEME@://127.0.0.1:{port}/")
COMMANDS = {
    "wrk": "wrk -t{threads} -c{connections} -d{duration}s --timeout 10s --latency -H {header} "
           "@SCHEME@://127.0.0.1:{port}/",
    "bombardier": "bombardier -c {connections} -d {duration}s -t 10s -l -k -p r -o j --fasthttp -H {header} "
                  "@SCHEME@://127.0.0.1:{port}/",
    # h2load has no 'Connection: close': keep-alive only.
    "h2load": "h2load --h1 -t{threads} -c{connections} -D{duration} @SCHEME@://127.0.0.1:{port}/",
}
NAMES = tuple(COMMANDS)


def command(name, test, live=False):
    """The template for one instance; `live`: with a count of requests while it runs, which only wrk has."""
    template = WRK_LIVE if live else COMMANDS[name]
    return template.replace("@SCHEME@", "https" if test.tls else "http")


def can(name, test):
    return name != "h2load" or test.keep_alive


def check(name):
    """Is it installed, and is it what its name says? Debian's package bombardier is a game."""
    if not shutil.which(name):
        raise GeneratorError(f"{name} is not installed" + {
            "wrk": " (Debian: wrk)", "h2load": " (Debian: nghttp2-client)",
            "bombardier": " (github.com/codesenberg/bombardier; Debian's package of that name is a game)"}[name])
    if name == "bombardier":
        try:
            done = subprocess.run([name, "--help"], capture_output=True, text=True, timeout=10, check=False)
            text = done.stdout + done.stderr
        except (OSError, subprocess.TimeoutExpired):
            text = ""
        if "--fasthttp" not in text:
            raise GeneratorError("the bombardier here is not github.com/codesenberg/bombardier")


UNIT_US = {"us": 1.0, "ms": 1e3, "s": 1e6, "m": 60e6, "h": 3600e6}
SIZE = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9}


def time_us(text):
    match = re.fullmatch(r"([\d.]+)(us|ms|s|m|h)", text)
    if not match:
        raise GeneratorError(f"'{text}' is no time")
    return float(match[1]) * UNIT_US[match[2]]


def result(requests, seconds, errors, latency_us):
    """errors: {kind: count}, kinds without one left out."""
    return {"requests": requests, "seconds": seconds, "requests_per_s": requests / seconds if seconds else 0.0,
            "errors": {kind: count for kind, count in errors.items() if count}, "latency_us": latency_us}


def parse_wrk(text):
    found = re.search(r"(\d+) requests in ([\d.]+(?:us|ms|s|m|h)), ", text)
    if not found:
        raise GeneratorError(f"wrk printed no result:\n{text[-2000:]}")
    errors = {}
    sockets = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    if sockets:
        errors = dict(zip(("connect", "read", "write", "timeout"), map(int, sockets.groups())))
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    errors["status"] = int(refused[1]) if refused else 0
    latency = {share: time_us(value) for share, value in re.findall(r"(?m)^ +(\d+(?:\.\d+)?)% +([\d.]+[a-z]+)$", text)}
    longest = re.search(r"Latency +[\d.]+\w+ +[\d.]+\w+ +([\d.]+(?:us|ms|s|m|h)) ", text)
    if longest:
        latency["100"] = time_us(longest[1])
    return result(int(found[1]), time_us(found[2]) / 1e6, errors, latency)


def parse_bombardier(text):
    start = text.find("{")
    try:
        found = json.loads(text[start:])["result"]
    except (ValueError, KeyError) as error:
        raise GeneratorError(f"bombardier printed no result:\n{text[-2000:]}") from error
    requests = found["req2xx"] + found["req3xx"]
    errors = {"status": found["req1xx"] + found["req4xx"] + found["req5xx"], "others": found["others"]}
    latency = {share.strip(): float(us) for share, us in found.get("latency", {}).get("percentiles", {}).items()}
    if "max" in found.get("latency", {}):
        latency["100"] = float(found["latency"]["max"])
    return result(requests, found["timeTakenSeconds"], errors, latency)


def parse_h2load(text):
    time = re.search(r"finished in ([\d.]+(?:us|ms|s|m|h)), ", text)
    counts = re.search(r"requests: .* (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", text)
    codes = re.search(r"status codes: (\d+) 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx", text)
    if not (time and counts and codes):
        raise GeneratorError(f"h2load printed no result:\n{text[-2000:]}")
    errors = {"failed": int(counts[2]), "timeout": int(counts[4]), "status": int(codes[3]) + int(codes[4])}
    latency = {}
    row = re.search(r"time for request: +(\S+) +(\S+) +(\S+) ", text)
    if row:
        latency["100"] = time_us(row[2])
    return result(int(counts[1]), time_us(time[1]) / 1e6, errors, latency)


PARSERS = {"wrk": parse_wrk, "bombardier": parse_bombardier, "h2load": parse_h2load}


def parse_pace(text):
    try:
        return json.loads(text)
    except ValueError as error:
        raise GeneratorError(f"pace printed no result:\n{text[-2000:]}") from error


def add(parts):
    """One result of several instances that ran at the same time. Percentiles of different processes cannot be added:
    the worst of each is kept."""
    errors, latency = {}, {}
    for part in parts:
        for kind, count in part["errors"].items():
            errors[kind] = errors.get(kind, 0) + count
        for share, value in part["latency_us"].items():
            latency[share] = max(latency.get(share, 0.0), value)
    return {"requests": sum(p["requests"] for p in parts), "seconds": max(p["seconds"] for p in parts),
            "requests_per_s": sum(p["requests_per_s"] for p in parts), "errors": errors, "latency_us": latency}
