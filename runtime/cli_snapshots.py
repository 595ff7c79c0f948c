"""The verbs that make snapshots and look at them: freeze, inspect, compile, verify."""

import argparse
import contextlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zerowake.runtime.cli_options import (
    SNAPSHOT_HELP,
    TARGET_HELP,
    Verb,
    add_trust,
    fraction,
    local,
    more_seconds,
)
from zerowake.runtime.config import COMPILE_TIMEOUT_S, COMPILE_TOLERANCE
from zerowake.runtime.errors import ConfigError

if TYPE_CHECKING:
    from zerowake.runtime.progress import ProgressBar

COMPILING = "compiling for this machine, half a minute or more"


def add_verbs(verb: Verb) -> None:
    """Add them to the command."""
    freeze = verb(
        "freeze",
        _freeze,
        "run load once and publish the result as a snapshot",
        "Standard output is the snapshot's path, or its URL; what load and predict print goes to "
        "standard error.",
    )
    freeze.add_argument("target", metavar="TARGET", help=TARGET_HELP)
    freeze.add_argument(
        "--out", required=True, help="folder that holds snapshots, or a URL (s3://bucket/prefix)"
    )
    freeze.add_argument("--name", help="name to serve it under (default: the function's own)")
    freeze.add_argument(
        "--probe",
        type=Path,
        metavar="FILE",
        help="inputs that prove and warm the snapshot, instead of examples=: a JSON list, JSON "
        "lines, or the bytes themselves for a function of bytes",
    )

    freeze.add_argument(
        "--no-compile",
        action="store_true",
        help="have no compiled form, which takes half a minute or more to make; one that the same "
        "snapshot has for this machine is removed",
    )
    _compile_options(freeze)

    inspect = verb("inspect", _inspect, "show what is in a snapshot", "Runs nothing of it.")
    inspect.add_argument("snapshot", metavar="SNAPSHOT", help=SNAPSHOT_HELP)
    inspect.add_argument(
        "--json",
        action="store_true",
        help="the digest, the manifest and the compiled forms as JSON",
    )

    compiling = verb(
        "compile",
        _compile,
        "compile a snapshot's modules for this machine",
        "Freeze does it by itself; this is for a snapshot that comes from elsewhere. Standard output "
        "is the form's digest.",
    )
    compiling.add_argument("snapshot", metavar="SNAPSHOT", help=SNAPSHOT_HELP)
    _compile_options(compiling)
    add_trust(compiling)

    verify = verb(
        "verify",
        _verify,
        "hash every block and replay the proof, also in the form compiled for this machine",
        "Exit code 0, or 1 with the reason.",
    )
    verify.add_argument("snapshot", metavar="SNAPSHOT", help=SNAPSHOT_HELP)
    add_trust(verify)


def _compile_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dtype", choices=["bfloat16", "float16"], help="of the compiled weights and arithmetic"
    )
    parser.add_argument(
        "--tolerance",
        type=fraction,
        help="largest error of the compiled form on the probe: cosine distance of vectors, relative "
        f"error of numbers (default {COMPILE_TOLERANCE})",
    )
    parser.add_argument(
        "--compile-timeout",
        type=more_seconds,
        metavar="S",
        help="seconds that compiling may take, and after it answering the probe, before it is given "
        f"up and the function serves eagerly (default {COMPILE_TIMEOUT_S:g})",
    )


def _compiling(options: argparse.Namespace) -> dict[str, Any]:
    """What ``_compile_options`` say, as ``compile_snapshot`` takes it."""
    tolerance, timeout_s = options.tolerance, options.compile_timeout
    return {
        "dtype": options.dtype,
        "tolerance": COMPILE_TOLERANCE if tolerance is None else tolerance,
        "timeout_s": COMPILE_TIMEOUT_S if timeout_s is None else timeout_s,
    }


def _freeze(options: argparse.Namespace) -> None:
    from zerowake.runtime.progress import ProgressBar
    from zerowake.snapshot.remote import is_remote

    if options.no_compile:
        for name in ("dtype", "tolerance", "compile_timeout"):
            if getattr(options, name) is not None:
                option = "--" + name.replace("_", "-")
                raise ConfigError(
                    f"{option} is about the compiled form, and --no-compile leaves that out; leave "
                    "out one of the two"
                )
    # What load and predict print must not come between the path and who reads it.
    with contextlib.redirect_stdout(sys.stderr), ProgressBar() as bar:
        made: object
        if is_remote(options.out):
            made = _freeze_remote(options, bar)
        else:
            _check_folder(Path(options.out))
            made = _freeze_below(Path(options.out), options, bar)
    print(made)


def _freeze_below(out: Path, options: argparse.Namespace, bar: "ProgressBar") -> Path:
    from zerowake.runtime.build import freeze_target

    path = freeze_target(
        options.target,
        out,
        name=options.name,
        probe=options.probe,
        progress=bar.update,
        note=lambda text: bar.note(f"note: {text}"),
    )
    if options.no_compile:
        from zerowake.runtime.compiling import leave_uncompiled

        leave_uncompiled(path, lambda text: bar.note(f"note: {text}"))
    else:
        _compile_frozen(path, options, bar)
    return path


def _freeze_remote(options: argparse.Namespace, bar: "ProgressBar") -> str:
    """Freeze into the cache, upload that and forget it; the URL of the snapshot."""
    from zerowake.runtime.cache import cache_directory
    from zerowake.runtime.remote import check_place, push
    from zerowake.snapshot.publish import staged
    from zerowake.snapshot.store import open_snapshot

    check_place(options.out, options.open_store, bar)  # before ``load`` runs
    with staged(cache_directory(os.environ) / "uploads") as folder:
        path = _freeze_below(folder / "made", options, bar)  # the folder itself is locked
        url = push(path, options.out, options.open_store, bar)
        bar.note(f"note: elsewhere its code runs with --trust {open_snapshot(path).digest}")
    return url


def _compile_frozen(path: Path, options: argparse.Namespace, bar: "ProgressBar") -> None:
    """A snapshot serves without a compiled form too, so what stands against one is only told."""
    from zerowake.runtime.compiling import compile_snapshot
    from zerowake.snapshot.errors import CannotCompile, UnusableForm
    from zerowake.snapshot.form import find_form
    from zerowake.snapshot.remote import is_remote
    from zerowake.snapshot.store import open_snapshot

    def note(text: str) -> None:
        bar.note(f"note: {text}")

    snapshot, wanted = open_snapshot(path), _compiling(options)
    if not snapshot.skeleton.needs_torch:
        return
    with contextlib.suppress(UnusableForm):
        there = find_form(snapshot)
        if there.dtype == wanted["dtype"] and there.error <= wanted["tolerance"]:
            note(f"compiled already ({there})")
            return
    try:
        bar.begin("compile", COMPILING)
        compile_snapshot(path, note=note, **wanted)
    except (CannotCompile, UnusableForm, OSError) as error:
        note(f"not compiled: {error}")
    except KeyboardInterrupt:
        if not is_remote(options.out):  # else it goes with its folder
            note(f"the snapshot {path} is there, not compiled; `zerowake compile {path}` does that")
        raise
    bar.update("compile", 1, 1)


def _compile(options: argparse.Namespace) -> None:
    from zerowake.runtime.compiling import compile_snapshot
    from zerowake.snapshot import code
    from zerowake.snapshot.store import open_snapshot

    path = Path(local(options.snapshot, options))
    snapshot = open_snapshot(path)
    code.load_code(snapshot, trusted=frozenset(options.trust), code_dir=options.code)
    if snapshot.skeleton.needs_torch:
        print(COMPILING, file=sys.stderr)
    form = compile_snapshot(
        path, note=lambda text: print(text, file=sys.stderr), **_compiling(options)
    )
    print(f"it lies in {form.path}; others use it with --trust and its digest:", file=sys.stderr)
    sys.stderr.flush()
    print(form.digest)


def _check_folder(out: Path) -> None:
    """Raises ConfigError when no snapshot can be written below ``out``: said before ``load`` runs."""
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not there.is_dir():
        raise ConfigError(f"--out {out}: {there} is a file; name a folder, it is made if need be")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"--out {out}: {there} may not be written; name another folder")
    for path in (there, *there.absolute().parents):
        if all(os.path.exists(path / name) for name in ("manifest.json", "skeleton.json")):
            raise ConfigError(
                f"--out {out}: {path} is a snapshot, which another one in it would damage; name the "
                f"folder above it, {path.absolute().parent}"
            )


def _inspect(options: argparse.Namespace) -> None:
    from zerowake.runtime.inspection import compiled_forms, describe, trusts_code
    from zerowake.snapshot.store import open_snapshot

    snapshot = open_snapshot(Path(local(options.snapshot, options)))
    if options.json:
        manifest = json.loads((snapshot.path / "manifest.json").read_bytes())
        found = {
            "digest": snapshot.digest,
            "code_trusted": trusts_code(snapshot),
            "forms": compiled_forms(snapshot),
            "manifest": manifest,
        }
        print(json.dumps(found, indent=2))
    else:
        print(describe(snapshot))


def _verify(options: argparse.Namespace) -> None:
    from zerowake.runtime.build import verify_snapshot
    from zerowake.runtime.progress import ProgressBar

    path = Path(local(options.snapshot, options))
    with ProgressBar() as bar:
        said = verify_snapshot(
            path,
            trusted=frozenset(options.trust),
            code_dir=options.code,
            progress=bar.update,
        )
    print(said)
