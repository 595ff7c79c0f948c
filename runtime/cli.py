"""The ``zerowake`` command. Each verb imports what it needs when it runs."""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from zerowake.runtime import cli_gateway, cli_snapshots
from zerowake.runtime.cli_options import Terminated, Verb
from zerowake.runtime.errors import ConfigError
from zerowake.snapshot.errors import ZerowakeError

if TYPE_CHECKING:
    from zerowake.runtime.remote import OpenStore
    from zerowake.snapshot.storage import Store


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

    cli_snapshots.add_verbs(verb)
    cli_gateway.add_verbs(verb)
    more_verbs(verb)
    return parser
