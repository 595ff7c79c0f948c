"""Log lines, as JSON or text: the gateway's own, and what functions print.

What a function prints is split into lines and tagged with the function's name and the ids of the
invocations that run at that moment; the traceback of an error is one line of JSON, and of text as
many as it has, tagged at its end. Lines go to file descriptor 2 in one write each, so lines of
many processes do not mix. Knows nothing of processes or invocations beyond their names.
"""

import codecs
import contextlib
import io
import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from zerowake.runtime.config import LogFormat

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


def invocation_fields(ids: Iterable[str]) -> dict[str, object]:
    """The field by which a line is found again: ``invocations``, a list, if there are any."""
    found = list(ids)
    return {"invocations": found} if found else {}


def _utc(seconds: float) -> str:
    """As ``datetime`` spells it, which would be 1.5 ms of a start."""
    whole, part = divmod(int(1e3 * seconds), 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{part:03}+00:00"


def _format(log_format: LogFormat, level: str, message: str, fields: dict[str, object]) -> str:
    now = _utc(time.time())
    if log_format == "json":
        return json.dumps({"time": now, "level": level, "message": message, **fields}, default=str)
    tags = " ".join(
        f"{key}={','.join(value) if isinstance(value, list) else value}"
        for key, value in fields.items()
    )
    return f"{now} {level:<7} {message}" + (f"  [{tags}]" if tags else "")


class _Formatter(logging.Formatter):
    def __init__(self, log_format: LogFormat) -> None:
        super().__init__()
        self._log_format: LogFormat = log_format

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        if record.exc_info:
            message += "\n" + self.formatException(record.exc_info)
        fields = getattr(record, "fields", {})
        return _format(self._log_format, record.levelname, message, fields)


def configure(log_format: LogFormat, level: int = logging.INFO) -> None:
    """Send the ``zerowake`` loggers to standard error in ``log_format``."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(log_format))
    logger = logging.getLogger("zerowake")
    logger.handlers = [handler]
    logger.setLevel(level)
    logger.propagate = False


def print_exception(error: BaseException) -> None:
    """As ``traceback.print_exception``; where a function's output goes to the log, in one record."""
    if isinstance(sys.stderr, _Lines):
        sys.stderr.record("ERROR", "".join(traceback.format_exception(error)).rstrip("\n"))
    else:
        traceback.print_exception(error)


class _Lines(io.TextIOBase):
    """A text stream whose every finished line becomes one log line: ``write(stream, level, line)``."""

    def __init__(self, stream: str, write: Callable[[str, str, str], None]) -> None:
        self._stream = stream
        self._write = write
        self._rest: list[str] = []  # the parts of a line that has no end yet
        self.buffer = _Bytes(self)

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8"

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return 2

    def write(self, text: str) -> int:
        *lines, rest = text.replace("\r", "\n").split("\n")  # a progress bar writes lines too
        for line in lines:
            self._write(self._stream, "PRINT", "".join((*self._rest, line)))
            self._rest.clear()
        if rest:
            self._rest.append(rest)
        return len(text)

    def record(self, level: str, text: str) -> None:
        """What is one thing, whatever lines it has."""
        self.finish()
        self._write(self._stream, level, text)

    def finish(self) -> None:
        if self._rest:
            self.write("\n")


class _Records(logging.Handler):
    """Our own log records, in a process that runs a function."""

    def __init__(self, lines: _Lines) -> None:
        super().__init__()
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.record(record.levelname, record.getMessage())


class _Bytes(io.RawIOBase):
    """``sys.stdout.buffer``: bytes are decoded as UTF-8, across writes."""

    def __init__(self, lines: _Lines) -> None:
        self._lines = lines
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._lines.fileno()

    def write(self, data: "ReadableBuffer") -> int:
        taken = bytes(data)
        self._lines.write(self._decoder.decode(taken))
        return len(taken)


class FunctionOutput:
    """Takes over ``sys.stdout`` and ``sys.stderr`` of a process that runs one function."""

    def __init__(self, function: str, log_format: LogFormat) -> None:
        self._function = function
        self._log_format: LogFormat = log_format
        self.invocations: tuple[str, ...] = ()

    def install(self) -> None:
        sys.stdout = self._stdout = _Lines("stdout", self._write)
        sys.stderr = self._stderr = _Lines("stderr", self._write)
        logger = logging.getLogger("zerowake")  # what is ours is no print of the function
        logger.handlers = [_Records(self._stderr)]
        logger.propagate = False

    def flush(self) -> None:
        """Write out a last line without its newline, while the invocations are still known."""
        self._stdout.finish()
        self._stderr.finish()

    def during(self, *invocations: str) -> "FunctionOutput":
        """What is printed in its ``with`` belongs to these invocations. There is one at a time."""
        self.invocations = invocations
        return self

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_raised: object) -> None:
        self.flush()
        self.invocations = ()

    def _write(self, stream: str, level: str, line: str) -> None:
        fields: dict[str, object] = {
            "function": self._function,
            "stream": stream,
            "pid": os.getpid(),
        }
        fields |= invocation_fields(self.invocations)
        text = _format(self._log_format, level, line, fields) + "\n"
        # Nobody may be reading the log any more: the function must not fail for it.
        with contextlib.suppress(OSError):
            os.write(2, text.encode("utf-8", "replace"))
