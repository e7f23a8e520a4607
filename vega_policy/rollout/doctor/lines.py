"""Checks as lines a person reads."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vega_policy.rollout.doctor.verdict import Verdict
    from vega_policy.spec import Check

MARKS = {"ok": "ok", "warning": "warn", "failed": "FAIL", "skipped": "-"}
_COLOURS = {"ok": "32", "warning": "33", "failed": "31;1", "skipped": "2"}
_NAME_WIDTH = 24


def line(check: Check, *, is_coloured: bool = False, width: int = 100) -> str:
    """Return a check as one line, and where it is not ok, what was expected and what to do.

    Args:
        check: What was found.
        is_coloured: With terminal colours.
        width: Columns; the second part is wrapped to it, the first never.
    """
    mark = f"{MARKS[check.status]:<4}"
    if is_coloured:
        mark = f"\x1b[{_COLOURS[check.status]}m{mark}\x1b[0m"
    first = f"{mark} {check.name:<{_NAME_WIDTH}} {check.found}"
    if check.status not in ("failed", "warning"):
        return first
    rest: list[str] = []
    for label, text in (("expected", check.expected), ("do", check.fix)):
        if text:
            rest += textwrap.wrap(
                f"{label}: {text}",
                width=max(width, 40),
                initial_indent="     ",
                subsequent_indent="       ",
                break_on_hyphens=False,
                break_long_words=False,
            )
    return "\n".join([first, *rest])


def summary(verdict: Verdict, *, wall_s: float) -> str:
    """Return the last line: how many of each, and the time."""
    counts = dict.fromkeys(MARKS, 0)
    for check in verdict.checks:
        counts[check.status] += 1
    said = ", ".join(_count(counts[status], status) for status in MARKS if counts[status])
    return f"{len(verdict.checks)} checks in {wall_s:.1f} s: {said or 'nothing was looked at'}"


def _count(n: int, status: str) -> str:
    return f"{n} {status}{'s' if status == 'warning' and n != 1 else ''}"
