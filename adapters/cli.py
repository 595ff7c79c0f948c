"""The verbs of the ``zerowake`` command that know platforms."""

import argparse
import os
import sys

from zerowake.adapters import ADAPTER, KNOWN
from zerowake.runtime.cli import SNAPSHOT_HELP, TARGET_HELP, Terminated, Verb, add_serving, serving


def add_verbs(verb: Verb) -> None:
    """Add them to the command, through what ``runtime.cli.main`` gives."""
    run = verb(
        "run",
        _run,
        "run one function on the platform that this is",
        "Finds out from the environment whether it is AWS Lambda, Cloud Run, SageMaker, ...; "
        "ZEROWAKE_SNAPSHOT, ZEROWAKE_ADAPTER and ZEROWAKE_TRUST (digests) stand in for what is not "
        "given here.",
    )
    run.add_argument(
        "target",
        nargs="?",
        metavar="TARGET_OR_SNAPSHOT",
        help=f"{TARGET_HELP}, or {SNAPSHOT_HELP} (default: $ZEROWAKE_SNAPSHOT)",
    )
    run.add_argument(
        "--adapter",
        metavar="NAME",
        help=f"{', '.join(KNOWN)}, or package.module:Class of your own (default: ${ADAPTER}, or as "
        "the environment shows)",
    )
    add_serving(run)


def _run(options: argparse.Namespace) -> int:
    from zerowake.adapters.port import PlatformExit
    from zerowake.adapters.run import run

    try:
        run(options.target, options.adapter, serving(options), os.environ)
    except Terminated:  # told to stop before anything was served: an orderly end as well
        return 0
    except PlatformExit as error:
        print(f"zerowake run: {error}", file=sys.stderr)
        return error.exit_code
    return 0
