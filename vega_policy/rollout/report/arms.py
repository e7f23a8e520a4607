"""Arms against each other on the same episodes: what the policy takes from its prior."""

from __future__ import annotations

from dataclasses import replace
from html import escape
from typing import TYPE_CHECKING

from vega_policy.rollout import figures
from vega_policy.rollout.paired import Finding, Pairs, judge
from vega_policy.rollout.plan import CLEAN
from vega_policy.rollout.report.markup import (
    arm_words,
    group_words,
    perturbation_words,
    scrolled,
    typeset,
)
from vega_policy.rollout.table import p_text, points, sensitivity

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vega_policy.rollout.report.reading import Group, Run
    from vega_policy.spec import EpisodeKey, EpisodeResult

TITLES = {"gate_clamped": "What the trained policy takes from the prior"}
EXPLAINED = {
    "gate_clamped": "Both arms are the same checkpoint, on the same episodes with the same random "
    "draws. In the clamped one the gate is fixed at 1: only the semantic tokens pass and the prior "
    "is shut out. The difference is what this policy, as trained, takes from the prior; a policy "
    "trained without one could do better than the clamped arm."
}


def section(run: Run) -> str:
    """Write a paired comparison of every other arm with that of the headline."""
    first, *others = run.arms or [""]
    return "".join(_compared(run, first, other, i) for i, other in enumerate(others))


def _compared(run: Run, first: str, other: str, number: int) -> str:
    title = TITLES.get(other, f"{arm_words(first)} against {arm_words(other)}".capitalize())
    perturbation = run.main[1]
    pairs = paired(run, (first, perturbation), (other, perturbation))
    anchor = f'<h2 id="arms{"" if number == 0 else number}">{escape(title)}</h2>'
    about = f'<p class="soft">{EXPLAINED.get(other, "")}</p>'
    if not any(p.n for p in pairs.values()):
        return f'{anchor}{about}<p class="soft">No episode was played by both yet.</p>'
    named = [(run.names[t], p) for t, p in pairs.items() if p.n]
    [total] = judge([("total", added([p for _, p in named]))])
    tables = _table(judge(named), total, first=first, other=other, what="task")
    parts = [anchor, about, _sentence(run, total, first, other), tables]
    if len(run.perturbations) > 1:
        changed = [
            (
                perturbation_words(name),
                added(paired(run, (first, name), (other, name)).values()),
            )
            for name in run.perturbations
        ]
        changed = [(name, p) for name, p in changed if p.n]
        parts.append('<h3 class="second">The same under each perturbation</h3>')
        parts.append(_table(judge(changed), None, first=first, other=other, what="perturbation"))
    return "".join(parts)


def _sentence(run: Run, total: Finding, first: str, other: str) -> str:
    pairs = total.pairs
    low, high = total.interval
    found = sensitivity(
        pairs.n, discordant=pairs.discordant or 0.0, detectable=total.detectable, power=0.8
    )
    return f"""<p><b>{typeset(points(pairs.difference))} points</b>, 95&nbsp;% interval
{typeset(points(low))} to {typeset(points(high))}: {escape(arm_words(first))} {pairs.successes_a} of {pairs.n}, {escape(arm_words(other))}
{pairs.successes_b} of {pairs.n} ({escape(group_words((first, run.main[1])).partition(",")[0])}).
The two are {total.verdict.partition(":")[0]} (p {escape(p_text(total.p_value, sign="= "))}). {typeset(found)}</p>"""


def _table(
    findings: Sequence[Finding], total: Finding | None, *, first: str, other: str, what: str
) -> str:
    lines = "".join(
        f'<tr><td class="words">{escape(f.name)}</td>{_cells(f)}</tr>' for f in findings
    )
    foot = (
        ""
        if total is None
        else f"<tfoot><tr><td>total</td>{_cells(total, is_total=True)}</tr></tfoot>"
    )
    table = f"""<table><thead><tr><th>{what}</th><th class="number">pairs</th>
<th class="number">{escape(arm_words(first))}</th><th class="number">{escape(arm_words(other))}</th>
<th class="number">won by<br>one alone</th><th class="plot-cell">difference in points with its 95&nbsp;%
interval{figures.difference_axis()}</th><th class="number">difference</th>
<th class="number">p, Holm</th><th>verdict</th></tr></thead><tbody>{lines}</tbody>{foot}</table>"""
    return scrolled(
        table,
        label=f"{arm_words(first)} against {arm_words(other)} by {what}",
        kind="results tight",
    )


def _cells(finding: Finding, *, is_total: bool = False) -> str:
    pairs = finding.pairs
    numbers = (pairs.n, pairs.successes_a, pairs.successes_b)
    return (
        "".join(f'<td class="number">{n}</td>' for n in numbers)
        + f'<td class="number">{pairs.n_a_only} : {pairs.n_b_only}</td>'
        + difference_cells(finding, is_total=is_total)
    )


def difference_cells(finding: Finding, *, is_total: bool = False) -> str:
    """Write plot, difference, adjusted p value and verdict of a finding, a cell each."""
    drawn = figures.difference_bar(finding, is_total=is_total)
    return (
        f'<td class="plot-cell">{drawn}</td>'
        f'<td class="number">{typeset(points(finding.difference))}</td>'
        f'<td class="number">{escape(p_text(finding.p_adjusted))}</td>'
        f"<td>{verdict_mark(finding)}</td>"
    )


def verdict_mark(finding: Finding) -> str:
    """Return whether the two are told apart, in words."""
    if finding.verdict != "not separated":
        return '<span class="verdict apart">separated</span>'
    return '<span class="verdict">not separated</span>'


def paired(run: Run, a: Group, b: Group) -> dict[int, Pairs]:
    """Pair the episodes of two groups by task; the perturbation may differ, the rest agrees."""
    outcomes: dict[int, list[tuple[bool, bool]]] = {t: [] for t in run.names}
    other = {_place(r): r for r in run.groups.get(b, [])}
    for row in run.groups.get(a, []):
        partner = other.get(_place(row))
        if partner is not None:
            won = (row.outcome == "success", partner.outcome == "success")
            outcomes[row.key.task_id].append(won)
    return {t: Pairs.of(found) for t, found in outcomes.items()}


def added(parts: Iterable[Pairs]) -> Pairs:
    """Count the pairs of several groups together."""
    names = ("n_both", "n_a_only", "n_b_only", "n_neither")
    found = list(parts)
    return Pairs(**{name: sum(getattr(p, name) for p in found) for name in names})


def _place(row: EpisodeResult) -> EpisodeKey:
    return replace(row.key, perturbation=CLEAN)
