"""Snapshots to and from stores whose clients must not share the project's environment.

A process of another environment moves them, and says when it would wait before it tries again.
"""

import os
import subprocess
import tempfile
import textwrap
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from support import PATIENCE_S, ROOT

Act = Callable[[], None]
WAITS = "waits to try again"

MOVE = f"""
    import os
    import sys
    from pathlib import Path

    from zerowake.adapters.stores import open_store
    from zerowake.snapshot import remote
    from zerowake.snapshot.errors import ZerowakeError
    from zerowake.snapshot.remote import Remote

    def pause(seconds):  # as long as the test takes to see it, and no longer
        os.write(1, b"{WAITS}\\n")  # by many threads at once
        os.read(0, 1)

    verb, url, path = sys.argv[1:]
    try:
        if verb == "upload":
            remote.upload(Path(path), open_store(url), pause=pause)
        else:
            print(remote.fetch(Remote(url), open_store(url), Path(path), pause=pause))
    except ZerowakeError as error:
        sys.exit(f"{{type(error).__name__}}: {{error}}")
"""


@dataclass(frozen=True)
class Ran:
    """pauses: how often it would have waited; left out of ``stdout``."""

    returncode: int
    stdout: str
    stderr: str
    pauses: int


def nothing() -> None:
    pass


def run_apart(
    python: Path, script: str, *arguments: object, env: Mapping[str, str], on_pause: Act = nothing
) -> Ran:
    """Run ``script`` in another environment, with our source. on_pause: called at each wait."""
    command = [str(python), "-c", textwrap.dedent(script), *map(str, arguments)]
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "src"), **env}
    said: list[str] = []
    pauses = 0
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environ,
        ) as process,
    ):
        assert process.stdin is not None and process.stdout is not None
        timer = threading.Timer(PATIENCE_S, process.kill)
        timer.start()
        for line in process.stdout:
            if line != f"{WAITS}\n":
                said.append(line)
                continue
            pauses += 1
            on_pause()
            process.stdin.write("\n")
            process.stdin.flush()
        process.wait()
        timer.cancel()
        errors.seek(0)
        return Ran(process.returncode, "".join(said), errors.read(), pauses)
