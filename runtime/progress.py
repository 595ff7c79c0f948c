"""A progress bar on standard error, for work that goes through named stages."""

import sys
from types import TracebackType
from typing import Any, Self


class ProgressBar:
    """One bar a stage; nothing but notes when standard error is no terminal, or tqdm not installed."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._stage = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def update(self, stage: str, done: int, total: int) -> None:
        """``done`` of ``total`` bytes (or steps) of ``stage``."""
        if stage != self._stage:
            self._close()
            self._stage = stage
            self._bar = _bar(stage, total)
        if self._bar is not None:
            self._bar.total = total
            self._bar.update(done - self._bar.n)

    def begin(self, stage: str, text: str) -> None:
        """A stage that takes long and has no steps: a bar, or ``text`` where there are no bars."""
        self.update(stage, 0, 1)
        if self._bar is None:
            self.note(text)

    def note(self, text: str) -> None:
        if self._bar is None:
            print(text, file=sys.stderr)
        else:
            self._bar.write(text, file=sys.stderr)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _bar(stage: str, total: int) -> Any:
    """A bar of tqdm; None where nobody would see it, and in a bundle, which has no tqdm."""
    if not sys.stderr.isatty():
        return None
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm(
        total=total,
        desc=stage,
        unit="B" if total > 9999 else "",
        unit_scale=total > 9999,
        file=sys.stderr,
        leave=True,
        dynamic_ncols=True,
        mininterval=0.05,
    )
