"""Asking one question of a set-up and turning whatever happens into a `Check`."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from vega_policy.spec.check import Area, Check

if TYPE_CHECKING:
    from collections.abc import Callable


def judge(
    area: Area,
    name: str,
    found: str,
    *,
    expected: str,
    fix: str = "",
    is_failed: bool = False,
    is_warning: bool = False,
) -> Check:
    """Return a check whose status follows from two conditions; a good one carries no fix."""
    status = "failed" if is_failed else "warning" if is_warning else "ok"
    kept = "" if status == "ok" else fix
    return Check(area=area, name=name, status=status, found=found, expected=expected, fix=kept)


def skipped(area: Area, name: str, why: str) -> Check:
    """Return a check that could not be looked at."""
    return Check(area=area, name=name, status="skipped", found=why)


def run_probe(area: Area, name: str, probe: Callable[[], Check]) -> Check:
    """Ask, and note the seconds; a probe that raises is a failed check, not the end of the rest."""
    started = time.perf_counter()
    try:
        check = probe()
    except Exception as error:  # noqa: BLE001 - whatever foreign code raises is what was found
        check = Check(
            area=area,
            name=name,
            status="failed",
            found=f"it cannot be asked: {type(error).__name__}: {error}",
            expected="an answer",
            fix="repair what the message names, then ask again",
        )
    return replace(check, wall_s=round(time.perf_counter() - started, 4))
