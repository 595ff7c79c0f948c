"""AWS Lambda: our own client of its Runtime API, and the events that it brings."""

import os
import sys


def _import_asyncio() -> None:
    """Without ``ssl``, which is 5 of the 80 ms that a start on Lambda imports: its API is plain HTTP.

    Not where a snapshot is to be fetched, as there are stores whose clients speak TLS over asyncio; nor
    anywhere but on Lambda. Who imports ``ssl`` later gets it: boto3, for what events tell of.
    """
    fetched = any("://" in text for text in (*sys.argv, os.environ.get("ZEROWAKE_SNAPSHOT", "")))
    if fetched or "AWS_LAMBDA_RUNTIME_API" not in os.environ or "ssl" in sys.modules:
        return
    sys.modules["ssl"] = None  # type: ignore[assignment]  # to ``import`` it is not there
    try:
        import asyncio  # noqa: F401
    finally:
        del sys.modules["ssl"]


_import_asyncio()
