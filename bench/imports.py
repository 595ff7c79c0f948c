"""What ``zerowake run`` imports on AWS Lambda until it asks for its first invocation, in CPU time.

The modules are taken from a real start, against a Runtime API that gives no invocation. Then
processes that do nothing but import them take turns with bare ones, user and system time counted.
"""

import argparse
import os
import socket
import statistics
import subprocess
import sys
import threading
from pathlib import Path

import emulator
import ours
from common import OUR_BIN, child_env, machine, table, write_json

PYTHON = str(OUR_BIN / "python")
SAYS = ["-X", "importtime"]
ADAPTER = "zerowake.adapters.aws"
LOAD = """
import gc, sys
gc.disable()  # as the command does
for name in sys.argv[1:]:
    try:
        __import__(name)
    except ImportError:  # asked for, and not there on this system
        pass
"""
REPLY = (
    "HTTP/1.1 200 OK\r\nLambda-Extension-Identifier: bench\r\nContent-Type: application/json\r\n"
    "Content-Length: 2\r\n\r\n{}"
)


def imported(command: list[str]) -> list[str]:
    """The modules of a start until the first poll, in the order in which they are there."""
    polled = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        threading.Thread(target=_platform, args=(server, polled), daemon=True).start()
        env = child_env({"AWS_LAMBDA_RUNTIME_API": address})
        started = [PYTHON, *SAYS, *command]
        with subprocess.Popen(started, env=env, stderr=subprocess.PIPE, text=True) as process:
            lines: list[str] = []
            assert process.stderr is not None
            reader = threading.Thread(target=lines.extend, args=(process.stderr,))
            reader.start()
            if not polled.wait(60):
                process.kill()
                raise SystemExit(f"it has not polled:\n{''.join(lines)}")
            process.terminate()
            reader.join()
    found = [line.split("|")[-1].strip() for line in lines if line.count("|") == 2]
    if "_ssl" not in found:  # it was asked for, and kept away
        found = [name for name in found if name != "ssl"]
    # A package is told after what it imports, and this one chooses how asyncio is imported.
    return list(dict.fromkeys([ADAPTER, *found[1:]]))


def _platform(server: socket.socket, polled: threading.Event) -> None:
    """Answer the extension's registration, and leave every poll waiting."""
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        threading.Thread(target=_talk, args=(connection, polled), daemon=True).start()


def _talk(connection: socket.socket, polled: threading.Event) -> None:
    with connection:
        while request := connection.recv(1 << 16):
            path = request.split(b" ", 2)[1]
            if path.endswith(b"/register"):
                connection.sendall(REPLY.encode())
            elif path.endswith(b"/invocation/next"):
                polled.set()


def cpu_ms(command: list[str]) -> float:
    """User and system time of one process, with those of its children that it has waited for."""
    process = subprocess.Popen(command, env=child_env({"AWS_LAMBDA_RUNTIME_API": "127.0.0.1:9"}))
    _pid, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert not process.returncode, command
    return 1e3 * (used.ru_utime + used.ru_stime)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--list", action="store_true", help="show the modules too")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    echo = ours.freeze_target("bench/echo/app.py:echo", "echo", ["--no-compile"])
    before = machine()
    snapshots = {"echo": echo, "MiniLM": ours.freeze("zerowake")}
    modules = {name: imported(emulator.our_command(path)) for name, path in snapshots.items()}
    if args.list:
        print("\n".join(modules["MiniLM"]))
    commands = {
        "bare": [PYTHON, "-c", "pass"],
        "asyncio": [PYTHON, "-c", LOAD, "asyncio"],
        **{f"zerowake run, {name}": [PYTHON, "-c", LOAD, *of] for name, of in modules.items()},
    }
    took: dict[str, list[float]] = {name: [] for name in commands}
    for run in range(args.runs + 1):  # the first compiles bytecode
        for name, command in commands.items():
            used = cpu_ms(command)
            if run:
                took[name].append(used)
    bare = {how: how(took["bare"]) for how in (statistics.median, min)}
    rows = [
        [name, *(f"{how(runs):.1f} ({how(runs) - bare[how]:+.1f})" for how in bare)]
        for name, runs in took.items()
    ]
    print(
        f"machine: {before}\n{sys.version.split()[0]}, {' and '.join(str(len(of)) for of in modules.values())} modules"
    )
    print(table(["CPU time of imports, ms (over bare)", "median", "least"], rows))
    write_json(args.json, {"machine": before, "modules": modules, "cpu_ms": took})


if __name__ == "__main__":
    main()
