"""One progress line for long loops: a moving bar on a terminal, spaced log records elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

logger = logging.getLogger(__name__)

_BAR_WIDTH = 24


class Progress:
    """Count units of work and say on standard error how far, how fast and how long still.

    On a terminal the line is redrawn five times a second; in a log file a record is written every
    ten seconds, so that a run of hours stays readable.
    """

    def __init__(self, total: int, *, what: str, unit: str, start: int = 0) -> None:
        self._total = total
        self._what = what
        self._unit = unit
        self._start = start
        self._done = start
        self._is_terminal = sys.stderr.isatty()
        self._began_s = time.monotonic()
        self._shown_s = self._began_s

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._show("")
        if self._is_terminal:
            sys.stderr.write("\n")

    def update(self, n: int, note: str = "") -> None:
        """Add ``n`` units; ``note`` is appended to the line."""
        self._done += n
        if time.monotonic() - self._shown_s >= (0.2 if self._is_terminal else 10.0):
            self._show(note)

    def line(self, note: str = "") -> str:
        """Return the line as text."""
        elapsed = max(time.monotonic() - self._began_s, 1e-9)
        rate = (self._done - self._start) / elapsed
        left_s = (self._total - self._done) / rate if rate > 0 else float("inf")
        filled = _BAR_WIDTH * self._done // max(self._total, 1)
        bar = "#" * filled + "." * (_BAR_WIDTH - filled)
        return (
            f"{self._what} [{bar}] {self._done}/{self._total} {self._unit}, "
            f"{rate:.1f}/s, {_clock(left_s)} left{'; ' + note if note else ''}"
        )

    def _show(self, note: str) -> None:
        self._shown_s = time.monotonic()
        if self._is_terminal:
            sys.stderr.write(f"\r\x1b[2K{self.line(note)}")
            sys.stderr.flush()
        else:
            logger.info("%s", self.line(note))


def _clock(seconds: float) -> str:
    if seconds == float("inf"):
        return "?"
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}"
