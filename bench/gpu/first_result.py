"""On a GPU: is what Zerowake restores right, and how long from nothing to the first result?

    PYTHONPATH=src python bench/gpu/first_result.py            # needs a GPU; a few minutes
    PYTHONPATH=src python bench/gpu/first_result.py --dry-run  # the same path, tiny, on the CPU

Needs Python 3.11+, Linux, torch with CUDA, safetensors and numpy; nothing else is imported. Needs
about four times ``--nbytes`` of disk below ``--work`` and of memory, and twice of GPU memory.

1. Freezes a conv net (64 MB, float32) and a decoder stack (``--nbytes``, bfloat16), both random.
2. Checks: the weights on the device equal the original's bit for bit, outputs those of a plain
   ``.to(device)`` within a tolerance, arenas written again and again keep every byte.
3. Fork hygiene: a parent with torch imported stays CUDA-clean while its children use the device.
4. Compiles the restored model with ``torch.compile``, on a card a Triton kernel too, and checks that another
   process, which is handed the caches as a form keeps them, compiles nothing again.
5. Measures process start to first result, page cache warm, each run in a fresh process, the first
   run discarded, median of the others: Zerowake from nothing and forked, beside safetensors and
   ``torch.load(mmap=True)``, which build their model on meta and assign, as a careful user would.

Prints a table, ends with one line of JSON, exits 1 when a check fails.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
JIT_LIMIT = 1 << 30  # bytes of a cache's file
SEEDS = (1, 2, 3)
STAGES = ("fork", "imports", "open", "context", "(context)", "copy", "bind", "first forward")
TOLERANCE = {"conv": 1e-2, "stack": 6e-2}  # of the largest output: TF32 and bfloat16 kernels
RINGS = ((2, 32), (4, 16), (8, 8), (8, 16), (16, 8))  # slots, MiB each


@dataclass(frozen=True, slots=True)
class Case:
    """One model: its kind and about how large. Its files are named after it."""

    kind: str
    nbytes: int


class Stopwatch:
    """Milliseconds of consecutive stages; starts when the parent spawned or forked us."""

    def __init__(self, began_s: float) -> None:
        self.began_s = self._last_s = began_s
        self.ms: dict[str, float] = {}

    def mark(self, stage: str) -> None:
        now_s = time.monotonic()
        self.ms[stage] = (now_s - self._last_s) * 1e3
        self._last_s = now_s

    def report(self, result: list[float], **more: Any) -> dict[str, Any]:
        total_ms = (self._last_s - self.began_s) * 1e3
        return {"stages_ms": self.ms, "total_ms": total_ms, "result": result, **more}


# --- what runs in a process of its own ---------------------------------------------------------


def run_freeze(case: Case, work: Path, device: str) -> dict[str, Any]:
    """The original as torch and safetensors files, and the snapshot."""
    import models
    import safetensors.torch
    import torch

    from zerowake.snapshot.code import collect
    from zerowake.snapshot.device import resolve_device
    from zerowake.snapshot.freeze import Recipe, freeze

    resolve_device(device)  # where there is no GPU, say so before the work
    function = models.load(case.kind, case.nbytes)
    state = function.model.state_dict()
    torch.save(state, work / f"{case.kind}.pt")
    safetensors.torch.save_file(state, work / f"{case.kind}.safetensors")

    def probe(instance: Any, items: list[bytes]) -> list[list[bytes]]:
        return [[json.dumps(instance.predict(json.loads(item))).encode()] for item in items]

    def prove(path: Path) -> list[list[list[bytes]]]:
        answers = spawn("prove", case, work, "cpu", "--snapshot", str(path))["answers"]
        return [[[answer.encode()]] for answer in answers]

    recipe = Recipe(
        name=case.kind,
        function={"target": f"models:{type(function).__name__}"},
        code=collect(HERE / "models.py", HERE),
        make=lambda: function,
        cases=[[json.dumps({"seed": seed}).encode()] for seed in SEEDS],
        probe=probe,
        prove=prove,
    )
    began_s = time.monotonic()
    path = freeze(recipe, work / "snapshots", lambda _stage, _done, _total: None)
    return {
        "snapshot": str(path),
        "nbytes": sum(tensor.nbytes for tensor in state.values()),
        "freeze_ms": (time.monotonic() - began_s) * 1e3,
    }


def opened(path: Path) -> tuple[Any, Any]:
    from zerowake.snapshot.code import load_code
    from zerowake.snapshot.store import open_snapshot

    snapshot = open_snapshot(path)
    return snapshot, load_code(snapshot, trusted=frozenset(), code_dir=HERE)


def restored(path: Path, device: str) -> Any:
    from zerowake.snapshot.restore import restore

    return restore(*opened(path), device=device).object


def run_prove(case: Case, path: Path) -> dict[str, Any]:
    """The probe's answers from a snapshot that is being made."""
    instance = restored(path, "cpu")
    return {"answers": [json.dumps(instance.predict({"seed": seed})) for seed in SEEDS]}


def run_check(case: Case, work: Path, path: Path, device: str) -> dict[str, Any]:
    """Names of the checks and what each found; an empty string where all is well."""
    import models
    import torch

    state = torch.load(work / f"{case.kind}.pt", weights_only=True)
    original = models.build(case.kind, case.nbytes)
    original.model.load_state_dict(state, assign=True)
    original.model.to(device)
    copy = restored(path, device)

    mine, theirs = copy.model.state_dict(), original.model.state_dict()
    wrong = [name for name in theirs if not torch.equal(theirs[name], mine[name])]
    elsewhere = [name for name, tensor in mine.items() if tensor.device.type != device]
    checks = {
        "same tensors": "" if list(mine) == list(theirs) else f"{sorted(set(mine) ^ set(theirs))}",
        "weights bit for bit": f"{wrong[:3]} and others differ" if wrong else "",
        "on the device": f"{elsewhere[:3]} are not on {device}" if elsewhere else "",
    }
    exact = True
    for seed in SEEDS:
        found, wanted = copy.predict({"seed": seed}), original.predict({"seed": seed})
        exact = exact and found == wanted
        checks[f"output {seed}"] = compare(case, found, wanted)
    return {
        "checks": checks,
        "exact": exact,
        "expected": original.predict({"seed": SEEDS[0]}),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "torch": torch.__version__,
    }


def run_rates(case: Case, work: Path, device: str) -> dict[str, Any]:
    """GB/s from the mapped file to the device for several rings, every byte compared."""
    import mmap

    import numpy as np
    import torch

    from zerowake.snapshot.staging import CudaBackend, copy_to_device

    with (work / f"{case.kind}.safetensors").open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE)
    half = len(mapped) // 2 // 64 * 64
    segments = [memoryview(mapped)[:half], memoryview(mapped)[half:]]
    wanted = [torch.from_numpy(np.frombuffer(segment, np.uint8)).to(device) for segment in segments]
    checks, rates = {}, {}
    for slots, mib in RINGS:
        backend = CudaBackend(device, mib << 20, slots)
        ring, different, seconds = f"{slots} x {mib} MiB", 0, []
        for _ in range(3):
            arena = copy_to_device(segments, device, backend)
            arena.wait()
            for index, tensor in enumerate(wanted):
                different += int(torch.count_nonzero(arena.view(index, 0, tensor.nbytes) != tensor))
            # The next arena gets this memory while this is still running: it must come too late.
            for _ in range(20):
                arena.memory.fill_(0xEE)
            del arena
        for _ in range(6):
            torch.cuda.synchronize()
            began_s = time.monotonic()
            copy_to_device(segments, device, backend).wait()
            torch.cuda.synchronize()
            seconds.append(time.monotonic() - began_s)
        checks[f"every byte, ring of {ring}"] = f"{different} bytes differ" if different else ""
        rates[ring] = len(mapped) / statistics.median(seconds[1:]) / 1e9
    return {"checks": checks, "gb_per_s": rates}


def run_jit(case: Case, work: Path, path: Path, device: str, kept: bool) -> dict[str, Any]:
    """The restored model's answer, compiled; from what is kept, or into what is then to be kept."""
    import hashlib

    from zerowake.snapshot import jit
    from zerowake.snapshot.listed import Listed

    folder = work / f"{case.kind}.caches"
    before = jit.files_in(folder)
    if kept:
        digests = {n: hashlib.sha256(f.read_bytes()).hexdigest() for n, f in before.items()}
        listed = {name: Listed(before[name], digests[name], JIT_LIMIT) for name in before}
        jit.use(listed, "sha256:" + hashlib.sha256(case.kind.encode()).hexdigest())
    else:
        os.environ.update(jit.environment(folder, {}))
    import torch

    instance = restored(path, device)
    began_s = time.monotonic()
    instance.model = torch.compile(instance.model)
    result = instance.predict({"seed": SEEDS[0]})
    if device == "cuda":
        import kernel

        kernel.check(device)
    compiled_ms = (time.monotonic() - began_s) * 1e3
    found = torch._dynamo.utils.counters["inductor"]
    there = Path(os.environ["TRITON_CACHE_DIR"]).parent
    code = {n for n in jit.files_in(there) if n.endswith((".so", ".cubin"))}
    checks = {}
    if kept:
        missed = found["fxgraph_cache_miss"] or not found["fxgraph_cache_hit"]
        checks["graphs are found"] = f"{dict(found)}" if missed else ""
        more = sorted(code - before.keys())
        checks["nothing is compiled again"] = f"{more[:3]} and others are new" if more else ""
    else:
        if device == "cuda":
            cubin = any(name.startswith("triton/") and name.endswith(".cubin") for name in code)
            checks["Triton has left kernels"] = "" if cubin else f"only {sorted(code)[:3]}"
        jit.finish(folder)
    return {"result": result, "checks": checks, "compiled_ms": compiled_ms}


def first_zerowake(path: Path, device: str, watch: Stopwatch) -> dict[str, Any]:
    import zerowake.snapshot.restore
    import zerowake.snapshot.staging  # noqa: F401

    watch.mark("imports")
    return restore_and_call(path, device, watch)


def restore_and_call(path: Path, device: str, watch: Stopwatch) -> dict[str, Any]:
    from zerowake.snapshot.restore import restore
    from zerowake.snapshot.staging import begin

    started = begin(device) if device != "cpu" else None
    snapshot, code = opened(path)
    watch.mark("open")
    back = restore(snapshot, code, device=device)
    watch.mark("bind")
    watch.ms["copy"] = back.report.get("copy", 0.0)
    watch.ms["bind"] -= watch.ms["copy"]
    result = back.object.predict({"seed": SEEDS[0]})
    watch.mark("first forward")
    if started is not None:
        ring = started.result()
        watch.ms["(context)"] = ring.context_ms + ring.ring_ms
    return watch.report(result, phases_ms=back.report)


def first_peer(case: Case, work: Path, device: str, watch: Stopwatch, peer: str) -> dict[str, Any]:
    import models
    import torch

    if peer == "safetensors":
        import safetensors.torch
    watch.mark("imports")
    if device == "cuda":
        torch.zeros(1, device=device)
        torch.cuda.synchronize()
    watch.mark("context")
    if peer == "safetensors":
        state = safetensors.torch.load_file(work / f"{case.kind}.safetensors", device=device)
    else:
        state = torch.load(work / f"{case.kind}.pt", mmap=True, weights_only=True)
        state = {name: tensor.to(device) for name, tensor in state.items()}
    if device == "cuda":
        torch.cuda.synchronize()
    watch.mark("copy")
    function = models.build(case.kind, case.nbytes)
    function.model.load_state_dict(state, assign=True)
    watch.mark("bind")
    result = function.predict({"seed": SEEDS[0]})
    watch.mark("first forward")
    return watch.report(result)


def run_forks(path: Path, device: str, runs: int) -> dict[str, Any]:
    """Forks ``runs`` children that restore to ``device``; the parent must stay CUDA-clean."""
    import zerowake.snapshot.restore  # noqa: F401
    from zerowake.snapshot.device import assert_cuda_untouched, resolve_device

    checks = {"device found": "" if resolve_device(device) == device else "not by resolve_device"}
    threads = len(os.listdir("/proc/self/task"))
    checks["zygote has one thread"] = "" if threads == 1 else f"it has {threads}"
    children = []
    for index in range(runs):
        assert_cuda_untouched()
        reader, writer = os.pipe()
        began_s = time.monotonic()
        pid = os.fork()
        if pid == 0:
            _answer_and_exit(path, device, began_s, writer)
        os.close(writer)
        with os.fdopen(reader, "rb") as answers:
            answer = json.loads(answers.read() or '{"error": "the child died"}')
        os.waitpid(pid, 0)
        checks[f"forked child {index}"] = str(answer.get("error", ""))
        children.append(answer)
    assert_cuda_untouched()
    return {"checks": checks, "children": children}


def _answer_and_exit(path: Path, device: str, began_s: float, writer: int) -> None:
    """A forked child: never returns, so that nothing of the parent's runs twice."""
    try:
        watch = Stopwatch(began_s)
        watch.mark("fork")
        answer = restore_and_call(path, device, watch)
    except BaseException as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    with os.fdopen(writer, "w") as out:
        out.write(json.dumps(answer))
    os._exit(0)


# --- the parent --------------------------------------------------------------------------------


def compare(case: Case, found: Sequence[float], wanted: Sequence[float]) -> str:
    """What is wrong with an output; empty when it is within the tolerance of its kind."""
    if len(found) != len(wanted):
        return f"{len(found)} values, wanted {len(wanted)}"
    scale = max(abs(value) for value in wanted)
    worst = max(abs(x - y) for x, y in zip(found, wanted, strict=True))
    limit = TOLERANCE[case.kind] * scale
    return "" if worst <= limit else f"differs by {worst:.3g}, wanted at most {limit:.3g}"


def spawn(what: str, case: Case, work: Path, device: str, *more: str) -> dict[str, Any]:
    """Runs this script for one job in a fresh process; the answer is its last line."""
    argv = [sys.executable, str(HERE / "first_result.py"), "--child", what]
    argv += ["--kind", case.kind, "--nbytes", str(case.nbytes), "--work", str(work)]
    argv += ["--device", device, "--began", repr(time.monotonic()), *more]
    env = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # or importing numpy starts threads
    done = subprocess.run(argv, env=env, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{what} of {case.kind} ended with {done.returncode}; its error is above")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def child(args: argparse.Namespace) -> dict[str, Any]:
    case, work, path, device = Case(args.kind, args.nbytes), args.work, args.snapshot, args.device
    jobs: dict[str, Callable[[], dict[str, Any]]] = {
        "freeze": lambda: run_freeze(case, work, device),
        "prove": lambda: run_prove(case, path),
        "check": lambda: run_check(case, work, path, device),
        "rates": lambda: run_rates(case, work, device),
        "jit": lambda: run_jit(case, work, path, device, kept=False),
        "jit-kept": lambda: run_jit(case, work, path, device, kept=True),
        "forks": lambda: run_forks(path, device, args.repeats + 1),
        "zerowake": lambda: first_zerowake(path, device, Stopwatch(args.began)),
        "safetensors": lambda: first_peer(case, work, device, Stopwatch(args.began), "safetensors"),
        "torch.load": lambda: first_peer(case, work, device, Stopwatch(args.began), "torch.load"),
    }
    return jobs[args.child]()


def measure(case: Case, work: Path, device: str, repeats: int) -> dict[str, Any]:
    """Everything about one model: checks, rates and the runs of each way (the first discarded)."""
    frozen = spawn("freeze", case, work, device)
    more = ("--snapshot", frozen["snapshot"], "--repeats", str(repeats))
    checked = spawn("check", case, work, device, *more)
    rates = spawn("rates", case, work, device) if device == "cuda" else {}
    compiled = [spawn(what, case, work, device, *more) for what in ("jit", "jit-kept")]
    forks = spawn("forks", case, work, device, *more)
    ways = {
        way: [spawn(way, case, work, device, *more) for _ in range(repeats + 1)]
        for way in ("zerowake", "safetensors", "torch.load")
    }
    ways["zerowake, forked"] = [answer for answer in forks["children"] if "error" not in answer]
    checks = {**checked.pop("checks"), **rates.pop("checks", {}), **forks["checks"]}
    for name, run in zip(("torch.compile", "torch.compile, kept"), compiled, strict=True):
        checks |= run["checks"]
        checks[f"output, {name}"] = compare(case, run["result"], checked["expected"])
    for way, runs in ways.items():
        wrong = [compare(case, run.pop("result"), checked["expected"]) for run in runs]
        checks[f"first result, {way}"] = next(filter(None, wrong), "")
    del checked["expected"]
    return {
        "kind": case.kind,
        **frozen,
        **checked,
        "checks": checks,
        "copy_gb_per_s": rates.get("gb_per_s", {}),
        "compiled_ms": [run["compiled_ms"] for run in compiled],
        "ways": {way: runs[1:] or runs for way, runs in ways.items()},
    }


def rows(measured: dict[str, Any]) -> list[list[str]]:
    """Lines of the table: a way each, medians in ms."""
    lines = []
    for way, runs in measured["ways"].items():
        totals = [run["total_ms"] for run in runs] or [float("nan")]
        line = [f"{measured['kind']} {measured['nbytes'] / 1e6:.0f} MB", way]
        for stage in STAGES:
            found = [run["stages_ms"][stage] for run in runs if stage in run["stages_ms"]]
            line.append(f"{statistics.median(found):.1f}" if found else "")
        lines.append([*line, f"{statistics.median(totals):.1f}"])
    return lines


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[i]) for line in (head, *lines)) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in (head, *lines)
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--nbytes", type=int, default=2 << 30, help="of the decoder stack")
    parser.add_argument("--repeats", type=int, default=5, help="runs after the discarded one")
    parser.add_argument("--work", type=Path, help="where files are made; default: a temporary one")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--dry-run", action="store_true", help="tiny, on the CPU, one run each")
    for name, kind in (("child", str), ("kind", str), ("snapshot", Path), ("began", float)):
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    args = arguments()
    if args.child:
        print(json.dumps(child(args)))
        return 0
    cases = [Case("conv", 64 << 20), Case("stack", args.nbytes)]
    if args.dry_run:
        args.device, args.repeats = "cpu", 0
        cases = [Case("conv", 1 << 20), Case("stack", 1 << 20)]
    with tempfile.TemporaryDirectory(dir=args.work, prefix="first-result-") as work:
        os.environ["ZEROWAKE_STATE"] = f"{work}/state"  # for the children: leave the user's alone
        measured = [measure(case, Path(work), args.device, args.repeats) for case in cases]

    print(
        table(["model", "way", *STAGES, "total ms"], [line for m in measured for line in rows(m)])
    )
    print(
        "medians in ms; Zerowake makes the (context) beside the rest, its copy includes waiting for it"
    )
    failed = 0
    for one in measured:
        for ring, rate in one["copy_gb_per_s"].items():
            print(f"{one['kind']}: mapped file to device, ring of {ring}: {rate:.1f} GB/s")
        anew_ms, kept_ms = one["compiled_ms"]
        print(f"{one['kind']}: torch.compile and a call: {anew_ms:.0f} ms, kept {kept_ms:.0f} ms")
        for name, problem in one["checks"].items():
            failed += bool(problem)
            print(f"{one['kind']}: {name}: {f'FAILED: {problem}' if problem else 'ok'}")
    text = json.dumps(measured)
    if args.json:
        args.json.write_text(text + "\n")
    print(text)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
