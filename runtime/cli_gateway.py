"""The verbs that serve functions and speak with a running gateway: serve, invoke, ps, sleep, wake."""

import argparse
import json
import os
import shlex
import sys
from pathlib import Path

from zerowake.runtime.cli_options import (
    SNAPSHOT_HELP,
    TARGET_HELP,
    Terminated,
    Verb,
    add_serving,
    depth,
    port,
    seconds,
    serving,
    variable,
)
from zerowake.runtime.config import ServeConfig
from zerowake.runtime.depth import Depth
from zerowake.runtime.errors import ConfigError, RemoteError

DEFAULT_URL = "http://127.0.0.1:8000"


def add_verbs(verb: Verb) -> None:
    """Add them to the command."""
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
        "--port", type=port, default=defaults.port, help="port, 0 for a free one (%(default)s)"
    )
    serve.add_argument(
        "--depth",
        type=depth,
        choices=list(Depth),
        default=defaults.depth,
        help="where functions start and rest: hot (an instance), prewarmed (a fork that has warmed "
        "up), zygote (mapped, not running), cold (nothing but the snapshot); default %(default)s",
    )
    serve.add_argument(
        "--idle-s",
        type=seconds,
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
        type=variable,
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


def _add_client(parser: argparse.ArgumentParser, *, name: bool = False) -> None:
    if name:
        parser.add_argument("name", metavar="NAME", help="the function's name")
    parser.add_argument(
        "--url",
        default=os.environ.get("ZEROWAKE_URL", DEFAULT_URL),
        help="the gateway (%(default)s, or $ZEROWAKE_URL)",
    )


def _serve(options: argparse.Namespace) -> int:
    from zerowake.runtime.gateway.http import HttpIngress
    from zerowake.runtime.gateway.serve import serve

    config = serving(options)._replace(
        host=options.host,
        port=options.port,
        depth=options.depth,
        idle_s=options.idle_s,
        environment=tuple(options.env),
    )
    try:
        ingress = HttpIngress(config)
        serve(options.targets, config, ingress, options.open_store, reload=options.reload)
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
