"""The verbs of the ``zerowake`` command that know platforms."""

import argparse
import os
import sys
from pathlib import Path

from zerowake.adapters import ADAPTER, KNOWN
from zerowake.runtime.cli_options import (
    SNAPSHOT_HELP,
    TARGET_HELP,
    Terminated,
    Verb,
    add_serving,
    serving,
)


def add_verbs(verb: Verb) -> None:
    """Add them to the command, through what ``runtime.cli.main`` gives."""
    run = verb(
        "run",
        _run,
        "run one function on the platform that this is",
        "Finds out from the environment whether it is AWS Lambda, Cloud Run, SageMaker, ...; "
        "ZEROWAKE_SNAPSHOT, ZEROWAKE_ADAPTER and ZEROWAKE_TRUST (digests) stand in for what is not "
        "given here, FUNCTION_TARGET in FUNCTION_SOURCE (main.py) for a function in source. The port "
        "is PORT's (8080), or that of the platform's own variable (docs/adapters.md); ZEROWAKE_OBJECTS "
        "names the buckets whose objects events may have fetched. The function sees the whole "
        "environment.",
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
    add_serving(run, drain="what the platform gives: docs/adapters.md")

    deploy = verb(
        "deploy",
        _deploy,
        "write what a platform has to be told about a function",
        "Memory, timeout, concurrency and GPU are filled in from the snapshot. It talks to no "
        "platform: --dry-run prints or writes files, and the vendor's tool deploys them.",
    )
    deploy.add_argument("platform", metavar="PLATFORM", choices=_PLATFORMS, help=_PLATFORM_HELP)
    _add_source(deploy)
    deploy.add_argument("--dry-run", action="store_true", help="render; without it, be told how")
    deploy.add_argument("--out", type=Path, metavar="DIR", help="write there instead of printing")
    deploy.add_argument(
        "--image", default="", metavar="URI", help="the image, as it is called in its registry"
    )
    deploy.add_argument(
        "--memory-mb",
        type=_whole,
        metavar="MB",
        help="of a container (default: the weights, what a process of this form was measured to "
        "need beside them, and half as much again)",
    )

    bundle = verb(
        "bundle",
        _bundle,
        "write a folder with all that a function needs, for an image",
        "requirements.txt (pinned to what is installed here, and nothing that only load needs), our "
        "wheel, bootstrap, a Dockerfile, and the snapshot unless --url says where it is.",
    )
    _add_source(bundle)
    bundle.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    bundle.add_argument(
        "--platform",
        choices=["container", "lambda"],
        default="container",
        help="what the image is for (%(default)s)",
    )
    bundle.add_argument(
        "--with-snapshot",
        action="store_true",
        help="put the snapshot into the image: for small ones, as each image then carries it; "
        "deploy --url /opt/zerowake/snapshot goes with it",
    )
    bundle.add_argument(
        "--with",
        dest="extra",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="bring this installed package as well (repeatable)",
    )
    bundle.add_argument(
        "--declared",
        action="store_true",
        help="bring all that the packages declare, also what is known to be unused there",
    )


_PLATFORMS = (
    "lambda", "kubernetes", "knative", "keda", "cloud-run", "sagemaker", "azure", "runpod", "runpod-queue",
    "vertex",
)  # fmt: skip
_PLATFORM_HELP = (
    "lambda (SAM template), kubernetes, knative, keda (Helm chart and values), cloud-run (service), "
    "sagemaker (CloudFormation), azure (container app), runpod (load balancing), runpod-queue, vertex (REST bodies)"
)


def _add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "snapshot", metavar="SNAPSHOT", help=f"{SNAPSHOT_HELP}, or {TARGET_HELP} to freeze"
    )
    parser.add_argument(
        "--url",
        default="",
        metavar="URL",
        help="where containers find the snapshot: s3://BUCKET/KEY, or the absolute path of a folder that "
        "is mounted, or in the image: /opt/zerowake/snapshot (default: SNAPSHOT if that is a URL)",
    )
    parser.add_argument("--gpu", action="store_true", help="for an NVIDIA GPU")
    parser.add_argument(
        "--eager",
        action="store_true",
        help="provide for the model's libraries too, for processors that the compiled form is not for",
    )
    parser.add_argument(
        "--trust",
        action="append",
        default=[],
        metavar="DIGEST",
        help="let the code of a snapshot run there that was not made here (repeatable)",
    )


def _whole(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError("wanted a whole number of 1 or more")
    return int(text)


def _deploy(options: argparse.Namespace) -> None:
    from zerowake.adapters.deploy.commands import deploy

    deploy(
        options.platform,
        options.snapshot,
        dry_run=options.dry_run,
        out=options.out,
        image=options.image,
        url=options.url,
        gpu=options.gpu,
        eager=options.eager,
        memory_mb=options.memory_mb,
        named=tuple(options.trust),
    )


def _bundle(options: argparse.Namespace) -> None:
    from zerowake.adapters.deploy.commands import bundle

    bundle(
        options.snapshot,
        options.out,
        platform=options.platform,
        url=options.url,
        gpu=options.gpu,
        eager=options.eager,
        inside=options.with_snapshot,
        extra=tuple(options.extra),
        declared=options.declared,
        named=tuple(options.trust),
    )


def _run(options: argparse.Namespace) -> int:
    from zerowake.adapters.port import PlatformExit
    from zerowake.adapters.run import run

    try:
        run(options.target, options.adapter, serving(options), os.environ, drain_s=options.drain_s)
    except Terminated:  # told to stop before anything was served: an orderly end as well
        return 0
    except PlatformExit as error:
        print(f"zerowake run: {error}", file=sys.stderr)
        return error.exit_code
    return 0
