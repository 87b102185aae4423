"""The command line of scripts/bench."""

import argparse
import datetime
import math
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import tempfile

from perf.bench import generators, machine, plan, progress, report, results, runner, servers, topology, workloads

ROOT = pathlib.Path(__file__).resolve().parents[2]
RESULT = "result.json"
LEAST_SLICE_S = 0.05

DESCRIPTION = """\
Measures percore and other servers in the eight tests that the Go library tcpserver publishes, and draws charts.
Installs what is missing (scripts/setup --bench), builds, plans, runs, plots. perf/README.md tells the method."""

EPILOG = """\
tests: {tests}
core counts: as published (1,2,3,4,6,8,10,12,14,16,18,24,...), up to the CPUs for servers

  scripts/bench --quick                     all eight tests in less than 5 minutes on 2 CPUs
  scripts/bench --plan --topology c5.metal  every command that would run there
  scripts/bench 1 2 --cores 1,2,4 --servers percore,nginx

exit status: 0 done, 1 something failed (what could be measured is kept), 2 bad usage, 130 interrupted (likewise)"""


class Usage(Exception):
    """Bad usage; the text is for the user."""


def number(kind, low, high=math.inf):
    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"a number of at least {low} expected, not '{text}'")
        return value
    return parse


def core_list(text):
    counts = [number(int, 1)(word) for word in text.split(",")]
    return sorted(set(counts))


def parse_arguments(words):
    parser = argparse.ArgumentParser(prog="scripts/bench", description=DESCRIPTION, allow_abbrev=False,
                                     epilog=EPILOG.format(tests=" ".join(workloads.ALL)),
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("tests", nargs="*", metavar="TEST", help="default: the eight published ones")
    add("--quick", action="store_true", help="short, finely interleaved; one core and all cores only")
    add("--plan", action="store_true", help="print every command that would run, and end")
    add("--topology", default="local", metavar="NAME", help="with --plan: c5.metal, or hwloc's description of a machine")
    add("--cores", type=core_list, default=[], metavar="LIST", help="core counts of the servers")
    add("--duration", type=number(float, 0.1, 86400), metavar="S", help="seconds of a run, of all slices of a server "
        "with --interleave fine (default 10; 1.6 with --quick)")
    add("--connections", type=number(int, 1, 1000000), default=workloads.PUBLISHED_CONNECTIONS, help="default 1000")
    add("--rounds", type=number(int, 1, 100000), help="runs of each server (default 3), or slices (default 50; 8 with "
        "--quick)")
    add("--interleave", choices=("fine", "rounds"), help="default: rounds; fine with --quick")
    add("--servers", metavar="LIST", help="names, the first is what the others are compared with; default: all that are here")
    add("--config", metavar="FILE", help="further servers, a line each: NAME TESTS COMMAND (perf/README.md)")
    add("--load", choices=generators.NAMES, default="wrk", help="generator (default wrk)")
    add("--profile", choices=servers.PROFILES, default="tuned", help="as-published: no TCP_DEFER_ACCEPT, no FIN with the "
        "data, an RSA-4096 certificate")
    add("--latency", metavar="TESTS", help="tests whose latency is measured at a constant rate, or none (default 1,2; 2 with "
        "--quick)")
    add("--idle", type=number(int, 0, 1000000), metavar="N", help="connections for the memory of idle ones, 0: none "
        "(default 10000)")
    add("--out", metavar="DIR", help="for results and charts (default build/bench/DATE)")
    add("--resume", action="store_true", help="go on with the result in --out (default: the latest)")
    add("--bin-dir", metavar="DIR", help="take the programs from there; neither install nor build")
    add("--no-plot", action="store_true", help="no charts")
    return parser.parse_args(words)


def choose_tests(names):
    for name in names:
        if name not in workloads.ALL:
            raise Usage(f"no test '{name}'; there are {' '.join(workloads.ALL)}")
    return [workloads.ALL[name] for name in dict.fromkeys(names or workloads.DEFAULT_NAMES)]


def choose_servers(arguments, bin_dir):
    kinds = servers.built_in(str(bin_dir), str(ROOT))
    if arguments.config:
        kinds += servers.read_config(arguments.config)
    by_name = {kind.name: kind for kind in kinds}
    if len(by_name) < len(kinds):
        raise Usage(f"{arguments.config}: the name of a server is given twice or is a built-in one")
    if not arguments.servers:
        return kinds, False
    for name in arguments.servers.split(","):
        if name not in by_name:
            raise Usage(f"no server '{name}'; there are {' '.join(by_name)}")
    return [by_name[name] for name in dict.fromkeys(arguments.servers.split(","))], True


def make_settings(arguments, bin_dir, scratch):
    interleave = arguments.interleave or ("fine" if arguments.quick else "rounds")
    fine = interleave == "fine"
    if fine and arguments.load != "wrk":
        raise Usage("--interleave fine needs wrk: no other generator has a count of requests while it runs")
    rounds = arguments.rounds or ((8 if arguments.quick else 50) if fine else (1 if arguments.quick else 3))
    duration = arguments.duration or (1.6 if arguments.quick and fine else 3.0 if arguments.quick
                                      else workloads.PUBLISHED_DURATION_S)
    if fine and duration / rounds < LEAST_SLICE_S:
        raise Usage(f"--duration {duration:g} in {rounds} slices: a slice is at least {LEAST_SLICE_S:g} s long")
    if arguments.load == "h2load" and duration != int(duration):
        raise Usage("h2load takes whole seconds only")
    placement = topology.place(topology.read(arguments.topology))
    kinds, _ = choose_servers(arguments, bin_dir)
    cores = arguments.cores or ([1, len(placement.server)] if arguments.quick else [])
    latency = arguments.latency if arguments.latency is not None else ("2" if arguments.quick else "1,2")
    tests = choose_tests(arguments.tests)
    wanted = [] if latency == "none" else choose_tests(latency.split(","))
    idle = arguments.idle if arguments.idle is not None else 10000
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if files != resource.RLIM_INFINITY:
        idle = min(idle, max(0, files - 500))
    settings = plan.Settings(
        tests=tests, kinds=kinds, placement=placement, cores=sorted(set(cores)), connections=arguments.connections,
        duration_s=duration, rounds=rounds, slice_s=duration / rounds, interleave=interleave, profile=arguments.profile,
        load=arguments.load, latency_tests=[test for test in wanted if test in tests],
        latency_s=1.0 if arguments.quick else 10.0, idle_connections=idle,
        certificate=(os.path.join(scratch, "cert.pem"), os.path.join(scratch, "key.pem")),
        pace=str(bin_dir / "pace"))
    plan.core_counts(settings)  # says now what is wrong
    if not plan.groups(settings):
        raise Usage(f"{arguments.load} can run none of these tests")
    return settings


def parameters_of(arguments, settings):
    """What a result must have in common with the run that resumes it."""
    return {"tests": [t.name for t in settings.tests], "servers": [k.name for k in settings.kinds],
            "cores": plan.core_counts(settings), "connections": settings.connections, "duration_s": settings.duration_s,
            "rounds": settings.rounds, "interleave": settings.interleave, "profile": settings.profile,
            "load": settings.load, "latency_tests": [t.name for t in settings.latency_tests],
            "latency_s": settings.latency_s, "idle_connections": settings.idle_connections}


# ---- set-up -------------------------------------------------------------------------------------------------

def say(text):
    print(f"bench: {text}", file=sys.stderr, flush=True)


def set_up():
    """Installs and builds. What cannot be installed is said by scripts/setup; what is here is used."""
    if subprocess.run([ROOT / "scripts/setup", "--bench"], stdout=sys.stderr, check=False).returncode != 0:
        say("not everything could be installed; going on with what is here")
    jobs = str(len(os.sched_getaffinity(0)))
    say("building")
    steps = [["cmake", "--preset", "release"],
             ["cmake", "--build", "--preset", "release", "--parallel", jobs, "--target", "percore-http", "floor", "pace",
              *(["stepcount"] if os.uname().machine == "x86_64" else [])]]
    for step in steps:
        done = subprocess.run(step, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if done.returncode != 0:
            raise results.ResultError(f"{' '.join(step)} failed:\n{done.stdout[-3000:]}")
    done = subprocess.run(["cmake", "--build", "--preset", "release", "--parallel", jobs, "--target", "peers", "--", "-k", "0"],
                          cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode != 0:
        say(f"some of the other servers cannot be built:\n{done.stdout[-1500:]}")
    return ROOT / "build/release/bin"


def drop_missing(kinds, explicit):
    """Only servers that are here. Those asked for by name must be."""
    present = [kind for kind in kinds if os.access(kind.program, os.X_OK)]
    for kind in kinds:
        if kind not in present:
            text = f"server {kind.name} is not here ({kind.program}" + \
                (f"; Debian: {kind.package})" if kind.package else ")")
            if explicit:
                raise results.ResultError(text)
            say(text + ": left out")
    if not present:
        raise results.ResultError("none of the servers is here")
    return present


def make_certificate(settings):
    """The same pair for all servers."""
    kind = ["rsa:4096"] if settings.profile == "as-published" else ["ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command = ["openssl", "req", "-x509", "-newkey", *kind, "-nodes", "-days", "365", "-subj", "/CN=localhost", "-out",
               settings.certificate[0], "-keyout", settings.certificate[1]]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise results.ResultError(f"openssl: {error.strerror}") from error
    if done.returncode != 0:
        raise results.ResultError(f"openssl made no certificate: {done.stderr}")


def output_folder(arguments):
    base = ROOT / "build/bench"
    if arguments.out:
        return pathlib.Path(arguments.out)
    if arguments.resume:
        kept = sorted(path.parent for path in base.glob(f"*/{RESULT}"))
        if not kept:
            raise Usage(f"--resume: there is no result in {base}; name one with --out")
        return kept[-1]
    return base / datetime.datetime.now().strftime("%Y-%m-%d-%H%M%S")


def check_output(arguments, folder):
    """Before the long set-up."""
    path = folder / RESULT
    if arguments.resume and not path.exists():
        raise Usage(f"--resume: there is no {path}")
    if path.exists() and not arguments.resume:
        raise Usage(f"{path} is there already: give another --out, or --resume to go on with it")


def open_result(arguments, settings, folder):
    path = folder / RESULT
    parameters = parameters_of(arguments, settings)
    if arguments.resume:
        result = results.load(path)
        results.check_resumable(result, parameters)
        result["failures"] = []
        return result, path
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Usage(f"--out {folder}: {error.strerror}") from error
    return results.new(parameters, machine.facts()), path


# ---- the run ------------------------------------------------------------------------------------------------

def raise_file_limit():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def measure(arguments, settings, scratch, folder):
    generators.check(settings.load)
    result, path = open_result(arguments, settings, folder)
    limit = raise_file_limit()
    if limit != resource.RLIM_INFINITY and limit < settings.connections + 200:
        raise results.ResultError(f"{settings.connections} connections need more open files than {limit} (ulimit -n)")
    if any(test.tls for test in settings.tests):
        make_certificate(settings)
    os.sched_setaffinity(0, set(settings.placement.load))  # keeps our own work off the servers' CPUs
    shown = progress.Progress(plan.seconds(settings))
    work = runner.Runner(settings, result, path, scratch, shown)
    interrupted = False
    try:
        work.run_groups()
        work.run_latency()
        work.run_idle()
        result["complete"] = True
    except KeyboardInterrupt:
        interrupted = True
    finally:
        for number_ in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number_, signal.SIG_IGN)  # a second Ctrl-C must not cut the clean-up short
        work.end_all()
        result["machine"]["load_average_after"] = machine.read("/proc/loadavg")
        work.save()
    shown.note(f"{'interrupted; what was measured is' if interrupted else 'done:'} in {path}")
    print(report.whole(result))
    if not arguments.no_plot and result["groups"]:
        subprocess.run([ROOT / "scripts/plot", folder], check=False)
    if interrupted:
        return 130
    return 1 if result["failures"] else 0


def run(words):
    arguments = parse_arguments(words)
    if arguments.topology != "local" and not arguments.plan:
        raise Usage("--topology needs --plan: nothing can be measured on a machine that is not there")
    bin_dir = pathlib.Path(arguments.bin_dir or ROOT / "build/release/bin")
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        if arguments.plan:
            settings = make_settings(arguments, bin_dir, scratch)
            settings.certificate = ("cert.pem", "key.pem")
            print(plan.describe(settings))
            return 0
        for needed in ("wrk", "lstopo"):
            if arguments.bin_dir and not shutil.which(needed) and not shutil.which(needed + "-no-graphics"):
                raise results.ResultError(f"{needed} is not installed (scripts/setup --bench)")
        choose_tests(arguments.tests)          # usage errors come before the long set-up
        choose_servers(arguments, bin_dir)
        folder = output_folder(arguments)
        check_output(arguments, folder)
        if not arguments.bin_dir:
            set_up()
        settings = make_settings(arguments, bin_dir, scratch)
        settings.kinds = drop_missing(settings.kinds, bool(arguments.servers))
        return measure(arguments, settings, scratch, folder)


def main():
    def interrupt(_number, _frame):
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    try:
        status = run(sys.argv[1:])
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # whoever read the standard output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (Usage, servers.ConfigError, plan.PlanError) as problem:
        print(f"bench: {problem}\n\"scripts/bench --help\" tells the usage", file=sys.stderr)
        return 2
    except topology.TopologyError as problem:
        print(f"bench: {problem}", file=sys.stderr)
        return 2
    except (results.ResultError, generators.GeneratorError) as problem:
        print(f"bench: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
