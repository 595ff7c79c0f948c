"""The main job on a real model: freeze, serve, sink to each depth, wake, show what it took."""

import http.client
import json
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
OUT = ROOT / ".demo"
SENTENCES = [
    "A serverless function that costs nothing while it sleeps.",
    "The lake lay still under the first snow of the year.",
    "Ein zweiter Satz, diesmal auf Deutsch.",
]
LIMIT_S = 120.0


def main() -> int:
    zerowake = [sys.executable, "-m", "zerowake"]
    print("1. Freeze examples/embed/app.py:Embed (runs load once, proves the result)", flush=True)
    target = str(ROOT / "examples" / "embed" / "app.py:Embed")
    frozen = subprocess.run(
        [*zerowake, "freeze", target, "--out", str(OUT)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    snapshot = frozen.stdout.splitlines()[-1]
    print(f"   -> {snapshot}\n")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    print("2. Serve it from nothing and call it", flush=True)
    command = [
        *zerowake,
        "serve",
        snapshot,
        "--port",
        str(port),
        "--depth",
        "cold",
        "--idle-s",
        "3600",
    ]
    started = time.perf_counter()
    with (OUT / "gateway.log").open("w") as log:
        gateway = subprocess.Popen(command, stderr=log)
    try:
        connection = connect(port, gateway)
        first = call(connection, SENTENCES[0])
        nothing_ms = 1e3 * (time.perf_counter() - started)
        print(
            f"   first answer {nothing_ms:.0f} ms after the process was started: "
            f"{len(first['value'])} numbers, {first['value'][:3]} ...\n"
        )
        tour(connection, gateway)
    finally:
        gateway.send_signal(signal.SIGTERM)
        gateway.wait(LIMIT_S)
    print(
        f"\nThe gateway has drained and ended (exit code {gateway.returncode}); nothing is left running."
    )
    return gateway.returncode


def connect(port: int, gateway: "subprocess.Popen[bytes]") -> http.client.HTTPConnection:
    deadline = time.monotonic() + LIMIT_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT_S)
        except ConnectionRefusedError:
            if gateway.poll() is not None or time.monotonic() > deadline:
                log = (OUT / "gateway.log").read_text()
                raise SystemExit(f"the gateway did not start:\n{log}") from None
            time.sleep(0.005)


def request(
    connection: http.client.HTTPConnection, method: str, path: str, body: Any = None
) -> Any:
    connection.request(method, path, None if body is None else json.dumps(body))
    reply = connection.getresponse()
    value = json.loads(reply.read())
    if reply.status != 200:
        raise SystemExit(f"{method} {path}: {value}")
    return value, reply.headers


def call(connection: http.client.HTTPConnection, text: str) -> dict[str, Any]:
    started = time.perf_counter()
    value, headers = request(connection, "POST", "/invoke/embed", {"text": text})
    return {
        "ms": 1e3 * (time.perf_counter() - started),
        "value": value["embedding"],
        "depth": headers["Zerowake-Depth"],
        "timings": {
            n: float(d) for n, d in re.findall(r"([\w-]+);dur=([\d.]+)", headers["Server-Timing"])
        },
    }


def base_of(gateway_pid: int) -> int:
    children = Path(f"/proc/{gateway_pid}/task/{gateway_pid}/children").read_text().split()
    names = {int(pid): Path(f"/proc/{pid}/comm").read_text().strip() for pid in children}
    return next(pid for pid, name in names.items() if name == "zw-base")


def tour(connection: http.client.HTTPConnection, gateway: "subprocess.Popen[bytes]") -> None:
    """Sink to each depth, look at what it keeps, call, and print the table."""
    print("3. Sink to each depth and call again")
    heading = (
        "depth found",
        "first response",
        "warm response",
        "kept while asleep (private + page tables)",
    )
    print("   {:12} {:>15} {:>15}   {}".format(*heading))
    cold: dict[str, Any] = {}
    for depth in ("prewarmed", "zygote", "cold"):
        request(connection, "POST", "/functions/embed/sleep", {"depth": depth})
        time.sleep(0.3)  # let the kernel finish with the processes that have ended
        (function,), _ = request(connection, "GET", "/functions")
        kept = ", ".join(map(kept_by, function["processes"]))
        first = call(connection, SENTENCES[1])
        warm = statistics.median(call(connection, SENTENCES[1])["ms"] for _ in range(20))
        print(
            f"   {first['depth']:12} {first['ms']:12.1f} ms {warm:12.1f} ms   {kept or 'nothing'}"
        )
        if depth == "cold":
            cold = first
    rollup = Path(f"/proc/{base_of(gateway.pid)}/smaps_rollup").read_text()
    private_kb = sum(int(n) for n in re.findall(r"^Private_\w+:\s+(\d+)", rollup, re.M))
    print(
        f"   the base zygote, shared by all functions, keeps {private_kb / 1e3:.0f} MB of its own"
    )
    waterfall(cold["timings"])


def kept_by(process: dict[str, Any]) -> str:
    """Private memory of a process, and how much of it is page cache that the kernel may drop."""
    rollup = Path(f"/proc/{process['pid']}/smaps_rollup").read_text()
    clean = int(re.findall(r"^Private_Clean:\s+(\d+)", rollup, re.M)[0]) / 1e3
    cache = f" ({clean:.0f} of it page cache)" if clean > 1 else ""
    return f"{process['role']} {process['private_nbytes'] / 1e6:.0f} MB{cache}"


def waterfall(timings: dict[str, float]) -> None:
    """The cold call from left to right; what its restore does not account for is the fork."""
    phases = {n.removeprefix("restore-"): ms for n, ms in timings.items() if "restore-" in n}
    forked = timings["restore"] - sum(phases.values())
    bars = {"fork and open": forked, **phases, "predict": timings["predict"]}
    bars["reply"] = timings["total"] - sum(bars.values())
    print("\n4. Waterfall of that cold start")
    at, scale = 0.0, 60 / timings["total"]
    for name, ms in bars.items():
        bar = "#" * max(1, round(ms * scale))
        print(f"   {name:14} {ms:7.1f} ms  {' ' * round(at * scale)}{bar}")
        at += ms
    print(f"   {'total':14} {at:7.1f} ms")


if __name__ == "__main__":
    sys.exit(main())
