"""What a result depends on beside the programs: the machine, the kernel, their settings."""

import datetime
import os
import platform
import re
import resource
import shutil
import subprocess


def read(path, default=""):
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return default


def first_line(*command):
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    lines = (done.stdout + done.stderr).strip().splitlines()
    return lines[0] if lines else ""


def cpu_model():
    match = re.search(r"(?m)^model name\s*: (.*)$", read("/proc/cpuinfo"))
    return match[1] if match else platform.machine()


def mitigations():
    folder = "/sys/devices/system/cpu/vulnerabilities"
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    return {name: read(os.path.join(folder, name)) for name in names}


def package_version(name):
    return first_line("dpkg-query", "--show", "--showformat=${Version}", name) if shutil.which("dpkg-query") else ""


def facts():
    """For the JSON. No host name: results are published."""
    programs = {"gcc": ("g++", "--version"), "go": ("go", "version"), "openssl": ("openssl", "version"),
                "nginx": ("/usr/sbin/nginx", "-v"), "wrk": ("wrk", "-v"), "h2load": ("h2load", "--version"),
                "gnuplot": ("gnuplot", "--version")}
    packages = ("libasio-dev", "libuv1-dev", "libevent-dev", "golang-github-valyala-fasthttp-dev", "libmimalloc2.0")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu_model": cpu_model(),
        "cpus": os.cpu_count(),
        "cpus_usable": len(os.sched_getaffinity(0)),
        "smt": read("/sys/devices/system/cpu/smt/control", "unknown"),
        "governor": read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "none: the clock is not ours to set"),
        "numa_nodes": len([n for n in (os.listdir("/sys/devices/system/node")
                                       if os.path.isdir("/sys/devices/system/node") else [])
                           if re.fullmatch(r"node\d+", n)]) or 1,
        "memory_kib": int((re.search(r"MemTotal: +(\d+)", read("/proc/meminfo")) or [0, 0])[1]),
        "hypervisor": "hypervisor" in read("/proc/cpuinfo"),
        "kernel": re.match(r"[\d.]+(-\d+)?|.*", platform.release())[0],  # without the name of a build
        "mitigations": mitigations(),
        "open_files": {"soft": soft, "hard": hard},
        "somaxconn": read("/proc/sys/net/core/somaxconn"),
        "port_range": read("/proc/sys/net/ipv4/ip_local_port_range"),
        "tcp_tw_reuse": read("/proc/sys/net/ipv4/tcp_tw_reuse"),
        "versions": {name: first_line(*command) for name, command in programs.items()},
        "packages": {name: package_version(name) for name in packages},
        "load_average": read("/proc/loadavg"),
    }


def one_line(known):
    """For the titles of charts."""
    model = re.sub(r"\((R|TM)\)|CPU|Processor", "", known["cpu_model"])
    model = re.sub(r"\s+", " ", model).strip()
    kind = "virtual CPUs" if known["hypervisor"] else "CPUs"
    return f"{known['cpus_usable']} {kind} of {model}, Linux {known['kernel'].split('-')[0]}, {known['date'][:10]}"
