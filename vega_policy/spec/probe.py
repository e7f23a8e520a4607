"""Asking one question of a set-up and turning whatever happens into a `Check`."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from vega_policy.spec.check import Area, Check
from vega_policy.spec.errors import ContractError

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


def run_probe(
    area: Area,
    name: str,
    probe: Callable[[], Check],
    *,
    fix: str = "repair what the message names, then ask again",
) -> Check:
    """Ask, and note the seconds; a probe that raises is a failed check, not the end of the rest.

    Args:
        area: Where the check belongs.
        name: Its name, whatever the probe called it.
        probe: Looks.
        fix: What to do where it raises and does not say so itself, as a `ContractError` does.
    """
    started = time.perf_counter()
    try:
        check = probe()
    except Exception as error:  # noqa: BLE001 - whatever foreign code raises is what was found
        said, fix = _said(error, fix)
        check = Check(
            area=area,
            name=name,
            status="failed",
            found=f"it cannot be asked: {said}",
            expected="an answer",
            fix=fix,
        )
    wall_s = round(time.perf_counter() - started, 4)
    return replace(check, area=area, name=name, wall_s=wall_s)


def first_line(error: Exception) -> str:
    """Return an error as a table can show it."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


def _said(error: Exception, fix: str) -> tuple[str, str]:
    """Return what an error says, and what to do; ours end with that, after a semicolon."""
    if isinstance(error, ContractError):
        what, _, to_do = str(error).rpartition("; ")
        return (what, to_do) if what else (to_do, fix)
    return first_line(error), fix
