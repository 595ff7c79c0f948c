"""Options that several verbs of the ``zerowake`` command share, and the kinds of their values."""

import argparse
import os
import re
from collections.abc import Callable
from pathlib import Path

from zerowake.runtime.config import ServeConfig
from zerowake.runtime.depth import Depth
from zerowake.runtime.errors import ConfigError

TARGET_HELP = "path/app.py:Class or package.module:Class"
SNAPSHOT_HELP = "a snapshot's folder, or its URL (s3://...)"

Verb = Callable[..., argparse.ArgumentParser]
"""``verb(name, run, about, more)`` adds a verb and gives its parser."""


class Terminated(KeyboardInterrupt):
    """SIGTERM came. Goes where Ctrl-C goes: through everything that catches the author's errors."""


def add_serving(parser: argparse.ArgumentParser, *, drain: str = "") -> None:
    """The options of whatever serves functions; ``serving`` reads them.

    drain: what --drain-s is where it is not given, if not as in ``ServeConfig``.
    """
    defaults = ServeConfig()
    parser.add_argument(
        "--drain-s",
        type=seconds,
        help=f"seconds that calls may still take after SIGTERM ({drain or f'{defaults.drain_s:g}'})",
    )
    parser.add_argument(
        "--start-timeout-s",
        type=seconds,
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
    add_trust(parser)
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
        drain_s=ServeConfig().drain_s if options.drain_s is None else options.drain_s,
        start_timeout_s=options.start_timeout_s,
        device=options.device,
        trusted=tuple(options.trust),
        code_dir=options.code.resolve() if options.code else None,
        max_queued=options.max_queue,
        max_body_nbytes=int(options.max_body_mb * 2**20),
        log_format=options.log_format,
    )


def add_trust(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trust",
        type=digest,
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


def seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e9:
        raise argparse.ArgumentTypeError("wanted a number of seconds, 0 or more")
    return value


def more_seconds(text: str) -> float:
    if not (value := seconds(text)):
        raise argparse.ArgumentTypeError("wanted a number of seconds, more than 0")
    return value


def fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError("wanted a number from 0 to 1")
    return value


def port(text: str) -> int:
    value = int(text) if text.isdecimal() else -1
    if not 0 <= value <= 65535:
        raise argparse.ArgumentTypeError("wanted a port number, 0 to 65535")
    return value


def variable(text: str) -> str:
    if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no name of an environment variable; write --env NAME and set its value "
            "in the environment of this command"
        )
    return text


def digest(text: str) -> str:
    if not re.fullmatch("sha256:[0-9a-f]{64}", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no digest; wanted sha256: and 64 hexadecimal digits, as inspect shows it"
        )
    return text


def depth(text: str) -> Depth:
    try:
        return Depth(text)
    except ValueError:
        known = ", ".join(Depth)
        raise argparse.ArgumentTypeError(f"{text!r} is no depth; wanted one of {known}") from None


def local(text: str, options: argparse.Namespace) -> str:
    """What is named, or the folder in the cache of the snapshot whose URL it is.

    Raises SnapshotError, StoreError.
    """
    from zerowake.runtime.remote import localize

    return localize(text, options.open_store, os.environ)
