#!/usr/bin/env python3
"""Builds a separate project that uses percore in one of the ways a user can, runs it and checks what it got.

The ways: add_subdirectory, fetch_content, and installed (find_package and pkg-config from one installation).
With --mimalloc on, percore is configured with PERCORE_MIMALLOC=ON (the build tree that `installed` takes must be so);
off leaves the option at its default.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parent.parent
# What percore compiles itself with, and a program that embeds it must not inherit.
OWN_FLAGS = ["-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror", "-DPERCORE"]

# Some distributions' linkers drop a library none of whose functions is named, which is mimalloc's case.
LINKER_FLAGS = "-Wl,--as-needed"


def run(*command, **options):
    """Runs a command to its end and returns its standard output; any failure ends the test."""
    words = [str(word) for word in command]
    print("+", " ".join(words), flush=True)
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
    print(done.stdout, end="", flush=True)
    if done.returncode != 0:
        sys.exit(f"failed with status {done.returncode}: {' '.join(words)}")
    return done.stdout


def check(condition, message):
    if not condition:
        sys.exit(f"failed: {message}")


def configure(args, source, build, *definitions):
    run("cmake", "-S", source, "-B", build, "-G", args.generator, f"-DCMAKE_CXX_COMPILER={args.compiler}",
        "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON", f"-DCMAKE_EXE_LINKER_FLAGS={LINKER_FLAGS}", *definitions)


def build_all(build):
    run("cmake", "--build", build, "--parallel", len(os.sched_getaffinity(0)))


def run_consumer(args, program):
    """The program serves, and holds mimalloc if and only if it was asked for. Returns the version it reports."""
    lines = dict(line.split(" ", 1) for line in run(program, timeout=60).splitlines())
    check(lines["echoed"] == "yes", "the consumer's echo server did not answer")
    expected = "yes" if args.mimalloc == "on" else "no"
    check(lines["mimalloc"] == expected, f"mimalloc in the process: {lines['mimalloc']}, expected {expected}")
    return lines["version"]


def check_compile_commands(build, engine_is_built):
    """percore's flags and programs stay in percore."""
    commands = json.loads((build / "compile_commands.json").read_text())
    consumers = [entry for entry in commands if entry["file"].endswith("/consumer.cpp")]
    others = [entry for entry in commands if entry not in consumers]
    check(len(consumers) == 1, "the consumer is compiled once")
    for flag in OWN_FLAGS:
        check(flag not in consumers[0]["command"], f"{flag} leaked into the consumer's command line")
    check(bool(others) == engine_is_built, "the engine is compiled if and only if it is embedded")
    for entry in others:
        check(Path(entry["file"]).is_relative_to(SOURCE / "engine"),
              f"an embedded percore compiles only its engine, not {entry['file']}")
        check("-Wconversion" in entry["command"], "percore compiles its own sources with its warnings")


def test_embedded(args, project):
    build = args.work / "build"
    definitions = ["-DPERCORE_MIMALLOC=ON"] if args.mimalloc == "on" else []
    if args.installable:
        definitions.append("-DPERCORE_INSTALL=ON")
    configure(args, HERE / project, build, f"-DPERCORE_SOURCE={SOURCE}", *definitions)
    build_all(build)
    check_compile_commands(build, engine_is_built=True)
    run_consumer(args, build / "consumer")


def install(args):
    """Installs percore and moves the installation, so that a path that was written down breaks. Returns its place."""
    first, prefix = args.work / "first", args.work / "prefix"
    for old in (first, prefix):
        shutil.rmtree(old, ignore_errors=True)
    run("cmake", "--install", args.built, "--prefix", first)
    first.rename(prefix)
    for file in prefix.rglob("*"):
        if file.suffix in (".cmake", ".pc"):
            for path in (SOURCE, args.built, first):
                check(str(path) not in file.read_text(), f"{file} names {path}")
    return prefix


def test_find_package(args, prefix):
    build = args.work / "find_package"
    shutil.rmtree(build, ignore_errors=True)
    configure(args, HERE / "with_find_package", build, f"-DCMAKE_PREFIX_PATH={prefix}")
    build_all(build)
    check_compile_commands(build, engine_is_built=False)
    return run_consumer(args, build / "consumer")


def test_pkg_config(args, prefix, version):
    pc_file = next(prefix.rglob("percore.pc"))
    environment = dict(os.environ, PKG_CONFIG_PATH=str(pc_file.parent))

    def ask(*words):
        return run("pkg-config", *words, "percore", env=environment).split()

    check(ask("--modversion") == [version], f"percore.pc names the version of the library, {version}")
    cflags = ask("--cflags")
    for flag in OWN_FLAGS:
        check(flag not in " ".join(cflags), f"{flag} leaked into percore.pc")
    compiled = args.work / "consumer.o"
    run(args.compiler, "-std=c++20", *cflags, "-c", HERE / "consumer.cpp", "-o", compiled)
    for mode in ([], ["--static"]):
        program = args.work / "consumer"
        run(args.compiler, LINKER_FLAGS, compiled, "-o", program, *ask("--libs", *mode))
        run_consumer(args, program)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("way", choices=["add_subdirectory", "fetch_content", "installed"])
    parser.add_argument("--mimalloc", choices=["on", "off"], default="off")
    parser.add_argument("--work", type=Path, required=True, help="folder of this test's own, kept between runs")
    parser.add_argument("--installable", action="store_true", help="embedded: with percore's install rules")
    parser.add_argument("--built", type=Path, help="installed: the build tree that percore is installed from")
    parser.add_argument("--compiler", required=True)
    parser.add_argument("--generator", required=True)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)

    if args.way == "installed":
        prefix = install(args)
        version = test_find_package(args, prefix)
        test_pkg_config(args, prefix, version)
    else:
        test_embedded(args, f"with_{args.way}")


if __name__ == "__main__":
    main()
