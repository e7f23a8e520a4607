"""``report.html``: everything about a run in one file that opens from disk.

It reads the run directory alone, so it can be made again at any time, and it loads nothing from
elsewhere. Every section is a module whose ``section`` turns the run into a piece of the page, "" where
it has nothing to say. Arms and perturbations are never counted together: the headline is of one
group of episodes.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from vega_policy.rollout.page import SCRIPT, STYLE
from vega_policy.rollout.report import (
    arms,
    episodes,
    gates,
    notes,
    preflight,
    provenance,
    results,
    robustness,
    timing,
)
from vega_policy.rollout.report.head import head
from vega_policy.rollout.report.reading import read
from vega_policy.spec.files import write_atomic

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["REPORT", "write_report"]

REPORT = "report.html"
SECTIONS = (
    ("results", "Results", results),
    ("arms", "Arms", arms),
    ("robustness", "Robustness", robustness),
    ("episodes", "Episodes", episodes),
    ("gates", "Gate maps", gates),
    ("timing", "Timing", timing),
    ("preflight", "Preflight", preflight),
    ("notes", "Notes", notes),
    ("provenance", "Provenance", provenance),
)
"""Id of the heading, name in the list at the top, and who writes the section."""


def write_report(run_dir: Path) -> Path:
    """Write ``report.html`` into the run directory and return its path.

    Raises:
        ContractError: The directory holds no run, or a damaged one.
    """
    run = read(run_dir)
    parts = {(id_, name): module.section(run) for id_, name, module in SECTIONS}
    links = "".join(f'<a href="#{id_}">{name}</a>' for (id_, name), part in parts.items() if part)
    body = "\n".join([head(run, links), *filter(None, parts.values())])
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">
<title>{escape(run.suite)}: {escape(run.path.name)}</title><style>{STYLE}</style></head>
<body><main>
{body}
</main><script>{SCRIPT}</script></body></html>
"""
    path = run_dir / REPORT
    write_atomic(path, page)
    return path
