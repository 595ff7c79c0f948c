"""``zerowake.runtime.compiling``: what is said when the system refuses something."""

import errno
import os
from pathlib import Path

import pytest

from zerowake.runtime import compiling
from zerowake.snapshot.errors import CannotCompile


@pytest.mark.parametrize(
    "code, said",
    [
        (errno.ENOSPC, "^/s/compiled cannot be written to: No space left on device$"),
        (errno.EROFS, "^/s/compiled cannot be written to: Read-only file system$"),
        (errno.ENOMEM, "^the system refuses something: .*Cannot allocate memory$"),  # of a fork
    ],
)
def test_errors_of_the_system_are_told_as_what_they_are(code: int, said: str) -> None:
    with (
        pytest.raises(CannotCompile, match=said),
        compiling._system_errors_told(Path("/s/compiled")),
    ):
        raise OSError(code, os.strerror(code))
