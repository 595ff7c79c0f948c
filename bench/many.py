"""Many compiled functions asleep at `cold`: the memory of the whole, and each one's first call.

Snapshots of the example with names and weights of their own: of twelve weights files one differs, and
the packed weights of the form. Runs in our venv: `.venv/bin/python bench/many.py`, and takes 15 GB of
disk. A compiled form belongs to one snapshot, and compiling takes half a minute, so the first one's is
written down for all, as they differ in values only.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import memory
import ours
from client import Connection
from common import CACHE, free_port, machine, write_json
from process import running, tree
from texts import SHORT

from zerowake.snapshot import layout, state, store
from zerowake.snapshot.form import CONSTANTS, find_form
from zerowake.snapshot.manifest import canonical

SEGMENT_NBYTES = 8 << 20
LIMIT_MB = 10.0
CALLED = 12


def first_snapshot(home: Path) -> Path:
    """The example, frozen into weights files of 8 MiB and compiled."""
    layout.place.__defaults__ = (SEGMENT_NBYTES,)
    from zerowake.runtime.build import freeze_target
    from zerowake.runtime.compiling import compile_snapshot

    path = freeze_target(str(ours.ROOT / ours.TARGET), home / "first")
    compile_snapshot(path)
    return path


def clone(first: Path, home: Path, number: int) -> Path:
    """A snapshot like `first` of another name, one weights file of which holds other values.

    So do the packed weights; which of them is of no account to what is measured.
    """
    name = f"embed-{number:03}"
    path = home / name
    shutil.copytree(first, path, copy_function=os.link)
    plain: dict[str, Any] = json.loads((first / "manifest.json").read_bytes())
    segment = plain["segments"][1 + number % (len(plain["segments"]) - 1)]
    weights = bytearray((first / segment["file"]).read_bytes())
    weights[segment["data_offset"] + 4 * number] ^= 1  # the lowest bit of one number
    blocks = range(0, len(weights), segment["block_nbytes"])
    segment["blocks"] = [
        hashlib.sha256(weights[at : at + segment["block_nbytes"]]).hexdigest() for at in blocks
    ]
    data = canonical({**plain, "name": name})
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    (form_path,) = path.glob("compiled/*/form.json")
    constants = form_path.with_name(CONSTANTS)
    packed = bytearray(constants.read_bytes())
    packed[4 * number] ^= 1
    fields = json.loads(form_path.read_bytes())
    fields |= {"snapshot": digest}
    fields["files"] |= {CONSTANTS: hashlib.sha256(packed).hexdigest()}
    form = json.dumps(fields).encode()
    for file, content in (
        (path / segment["file"], bytes(weights)),
        (constants, bytes(packed)),
        (path / "manifest.json", data),
        (form_path, form),
    ):
        file.unlink()  # it is a link to the first one's
        file.write_bytes(content)
    state.record_trust(digest)
    state.record_trust("sha256:" + hashlib.sha256(form).hexdigest())
    return path


def measure(paths: Sequence[Path], calls: Sequence[str]) -> dict[str, Any]:
    """Memory of a gateway that serves all of them, asleep, and the first call of some."""
    port = free_port()
    argv = [str(ours.COMMAND), "serve", *map(str, paths), "--port", str(port), "--depth", "cold"]
    with running("zerowake-many", argv, {}) as process:
        connection = Connection(port)
        while True:
            try:
                connection.ensure_open()
                if connection.send("GET", "/readyz").status == 200:
                    break
            except OSError:
                pass
            time.sleep(0.1)
        warm_up, *calls = calls  # once, so that the gateway has done everything for a first time
        call(connection, warm_up)
        kept = memory.of_processes(tree(process.pid))
        first_ms = [call(connection, name) for name in calls]
    return {"memory": kept.report(), "first_ms": first_ms}


def call(connection: Connection, name: str) -> float:
    """Milliseconds of a call that finds `name` at cold; it is put to sleep again."""
    connection.ensure_open()
    started = time.perf_counter()
    reply = connection.send("POST", f"/invoke/{name}", {"text": SHORT})
    took_ms = 1e3 * (time.perf_counter() - started)
    if reply.status != 200 or reply.headers["zerowake-depth"] != "cold":
        raise SystemExit(f"{name}: {reply.status} {reply.headers} {reply.body[:300]!r}")
    connection.ensure_open()
    connection.send("POST", f"/functions/{name}/sleep", {"depth": "cold"})
    time.sleep(0.3)
    return took_ms


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--functions", type=int, default=300)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    home = CACHE / "many"
    shutil.rmtree(home, ignore_errors=True)
    first = first_snapshot(home)
    paths = [clone(first, home, number) for number in range(args.functions)]
    for path in paths:  # only now: each link to a file changes the times by which it is known
        snapshot = store.open_snapshot(path)
        store.check_digests(snapshot)
        find_form(snapshot).listed(CONSTANTS).mapped()  # hashed, as after a compile
    print(f"{len(paths)} snapshots", flush=True)
    alone = measure(paths[:1], [paths[0].name] * (CALLED + 1))
    chosen = random.Random(7).sample([path.name for path in paths], CALLED)
    together = measure(paths, [paths[0].name, *chosen])
    more_mb = (together["memory"]["pss_nbytes"] - alone["memory"]["pss_nbytes"]) / memory.MB
    ms = [statistics.median(one["first_ms"]) for one in (alone, together)]
    print(f"machine: {machine()}")
    print(f"one function asleep: {alone['memory']['pss_nbytes'] / memory.MB:.1f} MB PSS in all")
    print(f"{len(paths)} functions asleep: {more_mb:.1f} MB more (goal {LIMIT_MB:g})")
    print(f"first call from cold: {ms[0]:.1f} ms alone, {ms[1]:.1f} ms as one of {len(paths)}")
    write_json(args.json, {"alone": alone, "together": together})
    shutil.rmtree(home)


if __name__ == "__main__":
    main()
