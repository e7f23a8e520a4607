"""What each perturbation costs, against the clean episodes it is paired with."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from vega_policy.rollout import charts, figures
from vega_policy.rollout.paired import judge
from vega_policy.rollout.plan import CLEAN
from vega_policy.rollout.report.arms import added, difference_cells, paired
from vega_policy.rollout.report.markup import (
    arm_words,
    perturbation_words,
    scrolled,
    typeset,
)
from vega_policy.rollout.statistics import Tally, tally
from vega_policy.rollout.table import percent_range

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vega_policy.rollout.paired import Finding
    from vega_policy.rollout.report.reading import Run


def section(run: Run) -> str:
    """Write chart and table where the run has several perturbations."""
    changed = [name for name in run.perturbations if name != CLEAN]
    if len(run.perturbations) < 2:
        return ""
    arm = run.main[0]
    tallies = {
        a: {name: tally(run.groups.get((a, name), [])) for name in run.perturbations}
        for a in run.arms
    }
    series = {arm_words(a): tallies[a] for a in run.arms}
    chart = charts.robustness(series, clusters=clusters(changed), clean=CLEAN)
    legend = "".join(
        f'<span class="legend"><i class="{kind}"></i>{escape(name)}</span>'
        for kind, name in zip(figures.LINES, series, strict=False)
    )
    pairs = {name: added(paired(run, (arm, name), (arm, CLEAN)).values()) for name in changed}
    tested = [name for name in changed if pairs[name].n]
    findings = dict(
        zip(tested, judge([(name, pairs[name]) for name in tested]), strict=True) if tested else ()
    )
    clean = tallies[arm].get(CLEAN)
    lines = "".join(
        _line(name, tallies[arm][name], clean, findings.get(name)) for name in run.perturbations
    )
    table = f"""<table><thead><tr><th>perturbation</th><th class="plot-cell">success rate in % with
its 95 % Wilson interval{figures.interval_axis()}</th><th class="number">successes</th>
<th class="number">interval</th><th class="plot-cell">difference from the clean episodes in
points, 95&nbsp;% interval{figures.difference_axis()}</th><th class="number">difference</th>
<th class="number">p, Holm</th><th>verdict</th></tr></thead><tbody>{lines}</tbody></table>"""
    return f"""<h2 id="robustness">Robustness</h2>
<p class="soft">Success under each perturbation, levels from mild to strong. The line across is the
clean rate of the {escape(arm_words(arm))} arm, the band its 95 % interval. Differences are taken
episode by episode: a perturbed one minus the clean one from the same initial state.</p>
<div class="card scroll chart" tabindex="0" role="region" aria-label="Robustness chart">{chart}
<p class="keys">{legend}</p></div>
<h3 class="second">{escape(arm_words(arm).capitalize())}</h3>
{scrolled(table, label="Robustness", kind="results tight")}"""


def clusters(names: Iterable[str]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Put perturbations of one kind together: title, then (tick, name) of each.

    The levels of ``<kind>-<level>`` are in order; LIBERO-PRO's are one cluster without order.
    """
    found: dict[str, list[tuple[str, str]]] = {}
    for name in names:
        kind, _, level = name.rpartition("-")
        if name.startswith("pro_"):
            found.setdefault("LIBERO-PRO", []).append((name.removeprefix("pro_"), name))
        elif level.isdigit():
            found.setdefault(perturbation_words(kind), []).append((level, name))
        else:
            found.setdefault(perturbation_words(name), []).append(("", name))
    return [
        (title, members if title == "LIBERO-PRO" else sorted(members, key=lambda m: m[0]))
        for title, members in found.items()
    ]


def _line(name: str, found: Tally, clean: Tally | None, finding: Finding | None) -> str:
    against = clean or found
    is_clean = name == CLEAN
    rest = (
        difference_cells(finding)
        if finding is not None
        else '<td class="plot-cell"></td><td class="number">-</td><td class="number">-</td><td></td>'
    )
    return (
        f'<tr><td class="words">{escape(perturbation_words(name))}</td>'
        f'<td class="plot-cell">{figures.interval_bar(found, against, is_total=is_clean)}</td>'
        f'<td class="number">{found.successes} / {found.episodes}</td>'
        f'<td class="number">{typeset(percent_range(found))}</td>{rest}</tr>'
    )
