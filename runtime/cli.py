"""The ``zerowake`` command. Each verb imports what it needs when it runs."""

import argparse
import contextlib
import json
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zerowake.runtime.config import COMPILE_TIMEOUT_S, COMPILE_TOLERANCE, ServeConfig
from zerowake.runtime.depth import Depth
from zerowake.runtime.errors import ConfigError, RemoteError
from zerowake.snapshot.errors import ZerowakeError

if TYPE_CHECKING:
    from zerowake.runtime.progress import ProgressBar
    from zerowake.runtime.remote import OpenStore
    from zerowake.snapshot.storage import Store

DEFAULT_URL = "http://127.0.0.1:8000"
TARGET_HELP = "path/app.py:Class or package.module:Class"
SNAPSHOT_HELP = "a snapshot's folder, or its URL (s3://...)"
COMPILING = "compiling for this machine, half a minute or more"


Verb = Callable[..., argparse.ArgumentParser]


def _no_stores(url: str) -> "Store":
    raise ConfigError(f"{url}: this command was put together without object stores")


def main(
    arguments: Sequence[str] | None = None,
    *,
    more: Callable[[Verb], None] = lambda verb: None,
    open_store: "OpenStore" = _no_stores,
) -> int:
    """Run one command; errors of ours are one line on standard error and exit code 1.

    more: adds the verbs of higher floors; it is given ``verb(name, run, about, more)``.
    open_store: opens what the URL of a snapshot names; verbs find it among their options.
    """
    # As Ctrl-C: what is open is closed and child processes are ended on the way out.
    signal.signal(signal.SIGTERM, _terminate)
    if "ZEROWAKE_PARENT" in os.environ:  # a gateway has started us
        from zerowake.runtime.process import end_with_parent

        end_with_parent(os.environ)
    options, unknown = _parser(more, open_store).parse_known_args(arguments)
    if unknown:  # said by the verb's parser, with the verb's usage
        options.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    code = _run(options)
    if options.verb == "freeze":  # threads that load has started must not keep us
        from zerowake.runtime.process import leave

        return leave(code)
    return code


def _run(options: argparse.Namespace) -> int:
    try:
        code: int | None = options.run(options)
    except ZerowakeError as error:
        print(f"zerowake {options.verb}: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # "zerowake ps | head": the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        found = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        remedy = "check the path, its permissions and the space left"
        print(f"zerowake {options.verb}: {found}; {remedy}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print(f"zerowake {options.verb}: interrupted", file=sys.stderr)
        return 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)
    return code or 0


class Terminated(KeyboardInterrupt):
    """SIGTERM came. Goes where Ctrl-C goes: through everything that catches the author's errors."""


def _terminate(signum: int, _frame: object) -> None:
    signal.signal(signum, signal.SIG_DFL)  # a second one ends us where we stand
    raise Terminated


class _Formatter(argparse.HelpFormatter):
    """As wide as the terminal, of which argparse asks shutil, for each option: 3 ms of a start."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=_columns() - 2)


@cache
def _columns() -> int:
    if (given := os.environ.get("COLUMNS", "")).isdecimal() and int(given):
        return int(given)
    try:
        return os.get_terminal_size(sys.__stdout__.fileno()).columns or 80  # type: ignore[union-attr]
    except (AttributeError, ValueError, OSError):  # closed, or no terminal
        return 80


def _parser(more_verbs: Callable[[Verb], None], open_store: "OpenStore") -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="zerowake",
        formatter_class=_Formatter,
        description="Serverless functions for models: frozen once, asleep for nothing, awake in "
        "milliseconds.",
        epilog="A first round:  zerowake serve examples/embed/app.py:Embed   and, beside it,  "
        'zerowake invoke embed --data \'{"text": "hello"}\'',
    )
    import zerowake

    parser.add_argument("--version", action="version", version=zerowake.__version__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, run: Any, about: str, more: str = "") -> argparse.ArgumentParser:
        sub = verbs.add_parser(
            name,
            help=about,
            description=f"{about[0].upper()}{about[1:]}. {more}",
            formatter_class=_Formatter,
        )
        sub.set_defaults(run=run, open_store=open_store, parser=sub)
        return sub

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
    _add_trust(compiling)

    verify = verb(
        "verify",
        _verify,
        "hash every block and replay the proof, also in the form compiled for this machine",
        "Exit code 0, or 1 with the reason.",
    )
    verify.add_argument("snapshot", metavar="SNAPSHOT", help=SNAPSHOT_HELP)
    _add_trust(verify)

    serve = verb(
        "serve",
        _serve,
        "serve functions over HTTP",
        "Sources are frozen first, unless nothing has changed since the last time.",
    )
    serve.add_argument(
        "targets",
        nargs="+",
        metavar="TARGET_OR_SNAPSHOT",
        help=f"{TARGET_HELP}, or {SNAPSHOT_HELP}",
    )
    defaults = ServeConfig()
    serve.add_argument("--host", default=defaults.host, help="address to listen on (%(default)s)")
    serve.add_argument(
        "--port", type=_port, default=defaults.port, help="port, 0 for a free one (%(default)s)"
    )
    serve.add_argument(
        "--depth",
        type=_depth,
        choices=list(Depth),
        default=defaults.depth,
        help="where functions start and rest: hot (an instance), prewarmed (a fork that has warmed "
        "up), zygote (mapped, not running), cold (nothing but the snapshot); default %(default)s",
    )
    serve.add_argument(
        "--idle-s",
        type=_seconds,
        default=defaults.idle_s,
        help="seconds without calls after which a function sinks one step (%(default)s)",
    )
    serve.add_argument(
        "--reload",
        action="store_true",
        help="freeze again, without compiling, when a source file changes",
    )
    serve.add_argument(
        "--env",
        type=_variable,
        action="append",
        default=[],
        metavar="NAME",
        help="environment variable that functions may see (repeatable); others are held back",
    )
    add_serving(serve)

    invoke = verb("invoke", _invoke, "call a function and print its result")
    _add_client(invoke, name=True)
    invoke.add_argument(
        "--data",
        default="null",
        metavar="JSON|@FILE|-",
        help="the body: JSON, @file for a file's content, - for standard input",
    )
    ps = verb("ps", _ps, "list the functions of a running gateway and their processes")
    _add_client(ps)
    ps.add_argument("--json", action="store_true")
    sleep = verb("sleep", _sleep, "put a function to sleep")
    _add_client(sleep, name=True)
    sleep.add_argument(
        "--depth", choices=["prewarmed", "zygote", "cold"], default="cold", help="(%(default)s)"
    )
    wake = verb(
        "wake",
        _wake,
        "wake a function, also one that has failed",
    )
    _add_client(wake, name=True)
    more_verbs(verb)
    return parser


def add_serving(parser: argparse.ArgumentParser) -> None:
    """The options of whatever serves functions; ``serving`` reads them."""
    defaults = ServeConfig()
    parser.add_argument(
        "--drain-s",
        type=_seconds,
        default=defaults.drain_s,
        help="seconds that calls may still take after SIGTERM (%(default)s)",
    )
    parser.add_argument(
        "--start-timeout-s",
        type=_seconds,
        default=defaults.start_timeout_s,
        metavar="S",
        help="seconds that a start may take, wake() included, before it is given up (%(default)s)",
    )
    parser.add_argument(
        "--device",
        choices=["auto", "cpu", "cuda"],
        default=defaults.device,
        help="where weights go; auto takes a GPU if there is one (%(default)s)",
    )
    _add_trust(parser)
    parser.add_argument(
        "--max-queue",
        type=int,
        default=defaults.max_queued,
        help="calls of one function that may wait before 429 (%(default)s)",
    )
    parser.add_argument(
        "--max-body-mb",
        type=float,
        default=defaults.max_body_nbytes / 2**20,
        help="largest body in MiB before 413 (%(default)s)",
    )
    parser.add_argument("--log-format", choices=["text", "json"], default=defaults.log_format)


def serving(options: argparse.Namespace) -> ServeConfig:
    """What the options of ``add_serving`` say. Raises ConfigError."""
    if options.max_queue < 1 or options.max_body_mb <= 0:
        raise ConfigError("--max-queue and --max-body-mb must be greater than 0")
    if not options.start_timeout_s:
        raise ConfigError("--start-timeout-s must be greater than 0")
    return ServeConfig(
        drain_s=options.drain_s,
        start_timeout_s=options.start_timeout_s,
        device=options.device,
        trusted=tuple(options.trust),
        code_dir=options.code.resolve() if options.code else None,
        max_queued=options.max_queue,
        max_body_nbytes=int(options.max_body_mb * 2**20),
        log_format=options.log_format,
    )


def _add_trust(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trust",
        type=_digest,
        action="append",
        default=[],
        metavar="DIGEST",
        help="run the code of a snapshot that was not made here: its digest, as inspect shows it "
        "(repeatable)",
    )
    parser.add_argument(
        "--code",
        type=Path,
        metavar="DIR",
        help="take the code from this folder instead; it must be the same as the snapshot's",
    )


def _add_client(parser: argparse.ArgumentParser, *, name: bool = False) -> None:
    if name:
        parser.add_argument("name", metavar="NAME", help="the function's name")
    parser.add_argument(
        "--url",
        default=os.environ.get("ZEROWAKE_URL", DEFAULT_URL),
        help="the gateway (%(default)s, or $ZEROWAKE_URL)",
    )


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e9:
        raise argparse.ArgumentTypeError("wanted a number of seconds, 0 or more")
    return value


def _more_seconds(text: str) -> float:
    if not (value := _seconds(text)):
        raise argparse.ArgumentTypeError("wanted a number of seconds, more than 0")
    return value


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError("wanted a number from 0 to 1")
    return value


def _port(text: str) -> int:
    value = int(text) if text.isdecimal() else -1
    if not 0 <= value <= 65535:
        raise argparse.ArgumentTypeError("wanted a port number, 0 to 65535")
    return value


def _variable(text: str) -> str:
    if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no name of an environment variable; write --env NAME and set its value "
            "in the environment of this command"
        )
    return text


def _digest(text: str) -> str:
    if not re.fullmatch("sha256:[0-9a-f]{64}", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no digest; wanted sha256: and 64 hexadecimal digits, as inspect shows it"
        )
    return text


def _depth(text: str) -> Depth:
    try:
        return Depth(text)
    except ValueError:
        known = ", ".join(Depth)
        raise argparse.ArgumentTypeError(f"{text!r} is no depth; wanted one of {known}") from None


def _compile_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dtype", choices=["bfloat16", "float16"], help="of the compiled weights and arithmetic"
    )
    parser.add_argument(
        "--tolerance",
        type=_fraction,
        help="largest error of the compiled form on the probe: cosine distance of vectors, relative "
        f"error of numbers (default {COMPILE_TOLERANCE})",
    )
    parser.add_argument(
        "--compile-timeout",
        type=_more_seconds,
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
    from zerowake.runtime.remote import push
    from zerowake.snapshot.publish import staged
    from zerowake.snapshot.store import open_snapshot

    options.open_store(options.out)  # what is missing here is said before ``load`` runs
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
    bar.begin("compile", COMPILING)
    try:
        compile_snapshot(path, note=note, **wanted)
    except (CannotCompile, UnusableForm, OSError) as error:
        note(f"not compiled: {error}")
    bar.update("compile", 1, 1)


def _compile(options: argparse.Namespace) -> None:
    from zerowake.runtime.compiling import compile_snapshot
    from zerowake.snapshot import code
    from zerowake.snapshot.store import open_snapshot

    path = Path(_local(options.snapshot, options))
    snapshot = open_snapshot(path)
    code.load_code(snapshot, trusted=frozenset(options.trust), code_dir=options.code)
    print(COMPILING, file=sys.stderr)
    form = compile_snapshot(
        path, note=lambda text: print(text, file=sys.stderr), **_compiling(options)
    )
    print(f"it lies in {form.path}; others use it with --trust and its digest:", file=sys.stderr)
    sys.stderr.flush()
    print(form.digest)


def _local(text: str, options: argparse.Namespace) -> str:
    """What is named, or the folder in the cache of the snapshot whose URL it is."""
    if "://" not in text:  # nothing is imported for it: what serves is to start first
        return text
    from zerowake.runtime.remote import localize

    return localize(text, options.open_store, os.environ)


def _check_folder(out: Path) -> None:
    """Raises ConfigError when no snapshot can be written below ``out``: said before ``load`` runs."""
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not there.is_dir():
        raise ConfigError(f"--out {out}: {there} is a file; name a folder, it is made if need be")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"--out {out}: {there} may not be written; name another folder")


def _inspect(options: argparse.Namespace) -> None:
    from zerowake.runtime.inspection import compiled_forms, describe, trusts_code
    from zerowake.snapshot.store import open_snapshot

    snapshot = open_snapshot(Path(_local(options.snapshot, options)))
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

    path = Path(_local(options.snapshot, options))
    with ProgressBar() as bar:
        said = verify_snapshot(
            path,
            trusted=frozenset(options.trust),
            code_dir=options.code,
            progress=bar.update,
        )
    print(said)


def _serve(options: argparse.Namespace) -> int:
    from zerowake.runtime.gateway.http import HttpIngress
    from zerowake.runtime.gateway.serve import serve

    config = replace(
        serving(options),
        host=options.host,
        port=options.port,
        depth=options.depth,
        idle_s=options.idle_s,
        environment=tuple(options.env),
    )
    try:
        targets = [_local(text, options) for text in options.targets]
        serve(targets, config, HttpIngress(config), reload=options.reload)
    except Terminated:  # told to stop before anything was served: an orderly end as well
        return 0
    return 0


def _invoke(options: argparse.Namespace) -> int:
    from zerowake.runtime.client import Client

    body = _body(options.data)
    try:
        content_type, chunks = Client(options.url).invoke(options.name, body)
    except RemoteError as error:
        if error.problem.get("code") == "bad_request" and (hint := _quoting(options.data)):
            raise ConfigError(f"{error}; {hint}") from None
        raise
    last = b""
    for last in chunks:
        sys.stdout.buffer.write(last)
        sys.stdout.buffer.flush()
    # Bytes on their way to a file or another program stay as they are.
    if last and not last.endswith(b"\n") and ("json" in content_type or sys.stdout.isatty()):
        print()
    return 0


def _quoting(data: str) -> str:
    """A hint where ``data``, which is no JSON, looks like a text that somebody has not quoted."""
    if not data or data[0] in '-@"{[' or len(data) > 80:
        return ""
    quoted = shlex.quote(json.dumps(data, ensure_ascii=False))
    return f"a JSON string needs quotes of its own: --data {quoted}"


def _body(data: str) -> bytes:
    if data == "-":
        return sys.stdin.buffer.read()
    if data.startswith("@"):
        try:
            return Path(data[1:]).read_bytes()
        except OSError as error:
            raise ConfigError(f"--data {data}: {error.strerror}") from error
    return data.encode()


def _ps(options: argparse.Namespace) -> None:
    from zerowake.runtime.client import Client
    from zerowake.runtime.inspection import table

    functions = Client(options.url).functions()
    print(json.dumps(functions, indent=2) if options.json else table(functions))


def _sleep(options: argparse.Namespace) -> None:
    from zerowake.runtime.client import Client

    Client(options.url).sleep(options.name, options.depth)
    print(f"{options.name} sleeps at {options.depth}")


def _wake(options: argparse.Namespace) -> None:
    from zerowake.runtime.client import Client

    Client(options.url).wake(options.name)
    print(f"{options.name} is awake")
