"""Memory errors and leaks of the torch-free form: compiled modules called in every kind of array.

Compiles ``memcheck_app.py`` and makes the calls of ``memcheck_calls.py``, in a process without torch,
three times: under valgrind's memcheck; with the generated C++ built with GCC's address and undefined
behaviour sanitizers; and plainly, for many more rounds, to see whether memory grows.
Prints what was found and ends with 1 if that is anything. Takes half an hour of a core.

Needs valgrind (Debian: ``apt-get install valgrind``), and GCC with libasan and libubsan (in ``g++``).
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as xml
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from zerowake.snapshot import installed_torch

HERE = Path(__file__).resolve().parent
CHECKS = ("valgrind", "sanitize", "growth")
CALLS_PER_ROUND = 17
# Valgrind 3.19 knows no AVX-512, so neither libtorch nor the generated code may use it.
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "TORCHINDUCTOR_CPP_MARCH": "haswell"}
SANITIZERS = "-O1 -fsanitize=address,undefined -fno-sanitize=vptr -fno-omit-frame-pointer -g1"
# What is read, written or freed wrongly counts wherever it is; what is uninitialised or lost only in
# our frames: to valgrind Python's small integers look uninitialised, and its objects lost at the end.
OURS = re.compile(r"/compiled/|_ctypes|libffi")
LOST = "Leak_DefinitelyLost"
ONLY_OURS = ("UninitCondition", "UninitValue", LOST)
NEVER = ("Leak_PossiblyLost",)
# What is lost once for each library: a handle for each weight (torch 2.13), and what dlopen keeps.
ONCE = re.compile(r"::update_constant_buffer\(|^_dl_open$")
LOADER = re.compile(r"/ld-linux")  # reads words of paths, past their ends
FRAMES = 12  # to print
GROWTH_NBYTES = 3 << 20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(CHECKS), help="comma-separated, of these")
    parser.add_argument("--rounds", type=int, default=250, help="under a checker (%(default)s)")
    parser.add_argument("--many", type=int, default=6_300, help="without (%(default)s)")
    options = parser.parse_args()
    wanted = options.only.split(",")
    if odd := set(wanted) - set(CHECKS):
        parser.error(f"unknown: {', '.join(odd)}; known: {', '.join(CHECKS)}")
    if "valgrind" in wanted and shutil.which("valgrind") is None:
        parser.error("valgrind is not installed: apt-get install valgrind")
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if "valgrind" in wanted:
            failed |= valgrind(work, options.rounds)
        if "sanitize" in wanted:
            failed |= sanitize(work, options.rounds)
        if "growth" in wanted:
            failed |= growth(work, options.many)
    sys.exit(failed)


def valgrind(work: Path, rounds: int) -> bool:
    snapshot, env = compiled(work / "avx2", AVX2)
    found = work / "found.xml"
    run = calls(
        ["valgrind", "--num-callers=30", "--error-limit=no", "--xml=yes", f"--xml-file={found}"],
        snapshot, rounds, {**env, "PYTHONMALLOC": "malloc"},
    )  # fmt: skip
    errors = xml.parse(found).getroot().findall("error")
    kinds: Counter[str] = Counter()
    ours = 0
    for error in errors:
        kind = error.findtext("kind", "")
        kinds[kind] += 1
        frames = error.findall("stack/frame")
        objects = [frame.findtext("obj", "") for frame in frames]
        if kind in NEVER or LOADER.search(objects[0]):
            continue
        if kind == LOST and any(ONCE.search(frame.findtext("fn", "")) for frame in frames):
            continue
        if kind in ONLY_OURS and not any(map(OURS.search, objects)):
            continue
        ours += 1
        print(kind, error.findtext("what") or error.findtext("xwhat/text"))
        for frame in frames[:FRAMES]:
            print("   ", frame.findtext("fn", "?"), "in", frame.findtext("obj", "?"))
    others = ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "none"
    return told("valgrind", run, rounds, ours, f"; all contexts, Python's too: {others}")


def sanitize(work: Path, rounds: int) -> bool:
    compiler = work / "g++"
    # The compiler itself runs as always: the libraries are loaded before anything else.
    compiler.write_text(f'#!/bin/sh\nunset LD_PRELOAD\nexec g++ "$@" {SANITIZERS}\n')
    compiler.chmod(0o755)
    names = ("libasan.so", "libubsan.so")
    libraries = [
        subprocess.check_output(["g++", f"-print-file-name={n}"], text=True).strip() for n in names
    ]
    env = {
        "CXX": str(compiler),
        "LD_PRELOAD": ":".join(libraries),
        # Loads in the place of who calls dlopen, and so knows nothing of that one's folders.
        "LD_LIBRARY_PATH": os.path.dirname(installed_torch.library() or ""),
        # Python leaves memory to the kernel at its end; growth is looked at without a checker.
        "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    snapshot, env = compiled(work / "sanitized", env)
    built = list(snapshot.glob("compiled/*/*.so"))
    if not all(b"__asan_report" in library.read_bytes() for library in built):
        sys.exit("the libraries were built without the sanitizers")
    run = calls([], snapshot, rounds, {**env, "PYTHONMALLOC": "malloc"})
    lines = [s for s in run.stderr.splitlines() if "runtime error:" in s or "ERROR: Addr" in s]
    for line, count in Counter(lines).items():
        print(count, "times", line)
    return told("sanitizers", run, rounds, len(lines))


def growth(work: Path, rounds: int) -> bool:
    snapshot, env = compiled(work / "plain", {})
    run = calls([], snapshot, rounds, env)
    grown = int(run.stdout or 0)
    return told("growth", run, rounds, int(grown > GROWTH_NBYTES), f"; {grown} bytes more")


def compiled(folder: Path, extra: Mapping[str, str]) -> tuple[Path, dict[str, str]]:
    """A snapshot with its form, and the environment that both belong to."""
    state = {"ZEROWAKE_STATE": str(folder / "state"), "XDG_CACHE_HOME": str(folder / "cache")}
    env = {**os.environ, **state, **extra}
    made = python(
        ["-m", "zerowake", "freeze", f"{HERE / 'memcheck_app.py'}:Nets", "--out", str(folder),
         "--compile-timeout", "1800"], env,
    )  # fmt: skip
    if made.returncode or "it needs no torch" not in made.stderr:
        sys.exit(f"the functions to check cannot be compiled: {made.stderr}")
    return Path(made.stdout.splitlines()[-1]), env


def calls(
    under: Sequence[str], snapshot: Path, rounds: int, env: Mapping[str, str]
) -> "subprocess.CompletedProcess[str]":
    return python([str(HERE / "memcheck_calls.py"), str(snapshot), str(rounds)], env, under)


def python(
    arguments: Sequence[str], env: Mapping[str, str], under: Sequence[str] = ()
) -> "subprocess.CompletedProcess[str]":
    command = [*under, sys.executable, *arguments]
    return subprocess.run(
        command, check=False, capture_output=True, text=True, errors="replace", env=env
    )


def told(
    name: str, run: "subprocess.CompletedProcess[str]", rounds: int, errors: int, more: str = ""
) -> bool:
    """Say what came of it; whether that is anything bad."""
    print(f"{name}: {rounds * CALLS_PER_ROUND} calls, {errors} errors{more}")
    if run.returncode:
        print(f"ended with {run.returncode}: {run.stderr[-2000:]}")
    return bool(errors or run.returncode)


if __name__ == "__main__":
    main()
