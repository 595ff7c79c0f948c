"""What an author wants done before this process is snapshotted by its platform, and after its restore.

Authors register it with https://pypi.org/project/snapshot-restore-py/, as they do for AWS Lambda's
own Python runtime; whoever has not imported that has registered nothing. In its order: the last
registered runs first before a snapshot, the first registered first after a restore.
"""

import sys
from enum import StrEnum
from typing import Any

from zerowake.runtime import process

REGISTRY = "snapshot_restore_py"


class Moment(StrEnum):
    """When hooks run."""

    BEFORE_SNAPSHOT = "before_snapshot"
    AFTER_RESTORE = "after_restore"


def run(moment: Moment) -> None:
    """Run them, after a restore with random numbers of its own. Raises what they raise."""
    registry: Any = sys.modules.get(REGISTRY)
    if moment is Moment.AFTER_RESTORE:
        process.reseed()  # all that are restored from one snapshot would draw the same
        hooks = list(registry.get_after_restore()) if registry else []
    else:
        hooks = list(reversed(registry.get_before_snapshot())) if registry else []
    for function, arguments, named in hooks:
        function(*arguments, **named)
