"""What the doctor found before the run."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from vega_policy.rollout.report.markup import scrolled

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vega_policy.rollout.report.reading import Run
    from vega_policy.spec import Check

MARKS = {"failed": "&#10007;", "warning": "!", "skipped": "&ndash;", "ok": "&#10003;"}
"""By status, the worst first."""


def section(run: Run) -> str:
    """Write every check with what was found and what to do; those that passed are folded away."""
    if run.verdict is None:
        return ""
    checks = run.verdict.checks
    good = [check for check in checks if check.status == "ok"]
    rank = list(MARKS)
    bad = sorted((c for c in checks if c.status != "ok"), key=lambda c: rank.index(c.status))
    n = {status: sum(c.status == status for c in checks) for status in MARKS}
    counted = ", ".join(
        text
        for text in (
            f"{n['failed']} failed" if n["failed"] else "",
            f"{n['warning']} with a warning" if n["warning"] else "",
            f"{n['skipped']} skipped" if n["skipped"] else "",
            f"{n['ok']} passed",
        )
        if text
    )
    forced = " The run was forced past what failed." if run.verdict.is_forced else ""
    wall_s = sum(check.wall_s for check in checks)
    n_checks = "1 check" if len(checks) == 1 else f"{len(checks)} checks"
    parts = [
        f'<h2 id="preflight">Preflight</h2><p class="soft">{n_checks} before the latest '
        f"start, {wall_s:.1f} s: {counted}.{forced}</p>"
    ]
    if bad:
        parts.append(scrolled(_table(bad), label="Checks that did not pass"))
    if good:
        parts.append(
            f'<details class="card folded"><summary>{len(good)} passed</summary>'
            f'<div class="scroll results" tabindex="0" role="region" aria-label="Checks that passed">'
            f"{_table(good)}</div></details>"
        )
    return "".join(parts)


def _table(checks: Iterable[Check]) -> str:
    lines = "".join(
        f'<tr class="{c.status}"><td><b class="mark {c.status}" title="{c.status}">'
        f"{MARKS[c.status]}</b>{c.status}</td>"
        f"<td>{c.area}</td><td>{escape(c.name.replace('_', ' '))}</td>"
        f'<td class="prose">{escape(c.found)}</td><td class="prose">{escape(c.expected)}</td>'
        f'<td class="prose">{escape(c.fix)}</td></tr>'
        for c in checks
    )
    return (
        "<table><thead><tr><th></th><th>area</th><th>check</th><th>found</th><th>expected</th>"
        f"<th>what to do</th></tr></thead><tbody>{lines}</tbody></table>"
    )
