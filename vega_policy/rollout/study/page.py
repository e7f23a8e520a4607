"""``study.html``: a study in one file that opens from disk."""

from __future__ import annotations

from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from vega_policy.rollout.figures import svg
from vega_policy.rollout.page import STYLE
from vega_policy.rollout.report.markup import perturbation_words, plain_table, scrolled, typeset
from vega_policy.rollout.study.findings import ALL, PERTURBED
from vega_policy.rollout.study.text import (
    difference_cells,
    error_cells,
    expected_sensitivity,
)
from vega_policy.rollout.table import percent, points

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vega_policy.rollout.study.contrast import Contrast
    from vega_policy.rollout.study.declaration import Study
    from vega_policy.rollout.study.findings import ArmRate, Findings, GroupFindings

_STYLE = """
.results :is(th, td) { padding-left: 8px; padding-right: 8px; }
.results td.arm { white-space: normal; min-width: 160px; line-height: 1.3; padding: 9px 8px 9px 14px; }
.results :is(td, th).plot-cell { width: 190px; min-width: 150px; padding-left: 4px; padding-right: 4px; }
.seed { fill: var(--accent); opacity: 0.55; }
tr.reference td { background: var(--band); }
.sweeps { display: grid; grid-template-columns: repeat(auto-fit, minmax(380px, 540px)); gap: 18px; }
"""
_WIDTH, _MARGIN = 190, 10


def page(study: Study, findings: Findings) -> str:
    """Return the page as HTML."""
    whole = findings.groups[0]
    missing = "".join(
        f'<div class="banner">{len(findings.missing)} runs have not been made yet; what follows is of the '
        "others.</div>"
        for _ in findings.missing[:1]
    )
    notes = "".join(f'<div class="banner">{typeset(note)}</div>' for note in findings.notes)
    groups = "".join(
        f"<h2>{escape(_group_words(group.name))}</h2>{_table(study, group)}"
        for group in findings.groups
    )
    sizes = plain_table(
        (study.arm(name).words, f"{n:,} trained weights") for name, n in findings.n_trained.items()
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(study.name)}</title><style>{STYLE}{_STYLE}</style></head><body><main>"
        f'<p class="eyebrow">Study</p><h1>{escape(study.question)}</h1>'
        f"<p>{_answer(study, whole)}</p>{missing}{notes}"
        f"{groups}{_sweeps(study, whole)}{_errors(study, findings)}"
        f"<h2>How it was made</h2><p>{_method(study)}</p>"
        f'<div class="card">{sizes}</div></main></body></html>\n'
    )


def _group_words(name: str) -> str:
    if name == ALL:
        return "What all arms played"
    evaluation, comma, perturbation = name.partition(", ")
    if not comma:
        return evaluation.replace("_", " ")
    return (
        "All perturbed episodes" if perturbation == PERTURBED else perturbation_words(perturbation)
    )


def _answer(study: Study, whole: GroupFindings) -> str:
    tested = [c for c in whole.contrasts if c.n_seeds > 1]
    apart = [c for c in tested if c.verdict != "not separated"]
    if not tested:
        return "No difference has been tested yet."
    sentences = [
        f"<b>{escape(study.arm(c.name).words)}</b> is {c.verdict} than "
        f"{escape(_opponent(study, c.name))} by {typeset(points(abs(c.difference), signed=False))} "
        f"points ({typeset(points(c.interval[0]))} to {typeset(points(c.interval[1]))})."
        for c in apart
    ]
    rest = len(tested) - len(apart)
    if rest:
        sentences.append(
            f"{rest} of {len(tested)} arms are <b>not separated</b> from "
            f"{escape(_opponents(study, tested))}, which is not the same as equal: each row says "
            "what it could have shown."
        )
    return " ".join(sentences)


def _opponent(study: Study, arm: str) -> str:
    return study.arm(study.opponent(arm)).words


def _opponents(study: Study, tested: Sequence[Contrast]) -> str:
    names = {_opponent(study, c.name) for c in tested}
    return names.pop() if len(names) == 1 else "what they are compared with"


def _method(study: Study) -> str:
    least = expected_sensitivity(study)
    said = (
        ""
        if least is None
        else f"Before the runs, {typeset(points(least, signed=False))} points were expected to be found in "
        f"{100 * study.power:.0f}&nbsp;% of cases. "
    )
    return (
        f"{len(study.arms)} arms with training seeds {', '.join(map(str, study.seeds))}; every trained policy "
        f"played the same episodes. {said}A difference counts where both a paired t test over training "
        "seeds and one over episodes find it, and one over both together, with Holm's correction over the arms of the question, and over "
        f"the others by themselves{_explorers(study)}; the widest of the three intervals is shown. Dots are "
        "training seeds."
    )


def _explorers(study: Study) -> str:
    names = [arm.words for family in study.families[1:] for arm in family]
    return f" ({escape(', '.join(names))})" if names else ""


def _table(study: Study, group: GroupFindings) -> str:
    found = {c.name: c for c in group.contrasts}
    limit = _limit(group.contrasts)
    rows = "".join(_row(study, rate, found.get(rate.name), limit=limit) for rate in group.rates)
    head = (
        "<tr><th>arm</th><th class='number'>success</th><th class='plot-cell'>by training seed, %</th>"
        f"<th class='plot-cell'>difference in points (&plusmn;{100 * limit:.0f})</th>"
        "<th class='number'>difference</th><th>interval</th><th class='number'>p, Holm</th>"
        "<th class='number'>could show</th><th>verdict</th></tr>"
    )
    return scrolled(
        f"<table><thead>{head}</thead><tbody>{rows}</tbody></table>", label=_group_words(group.name)
    )


def _row(study: Study, rate: ArmRate, contrast: Contrast | None, *, limit: float) -> str:
    is_reference = rate.name == study.reference
    difference, interval, p, verdict = difference_cells(study, rate.name, contrast)
    apart = contrast is not None and contrast.verdict != "not separated"
    least = "" if contrast is None or contrast.detectable is None else contrast.detectable
    return (
        f"<tr{' class=reference' if is_reference else ''}><td class='arm'>"
        f"{escape(study.arm(rate.name).words)}</td><td class='number'>{percent(rate.rate)}&nbsp;%</td>"
        f"<td class='plot-cell'>{_seeds(rate)}</td>"
        f"<td class='plot-cell'>{_difference(contrast, limit=limit)}</td>"
        f"<td class='number'>{typeset(difference)}</td><td>{typeset(interval)}</td>"
        f"<td class='number'>{typeset(p)}</td>"
        f"<td class='number'>{typeset(points(least, signed=False)) if least != '' else ''}</td>"
        f"<td class='verdict{' apart' if apart else ''}'>{escape(verdict)}</td></tr>"
    )


def _x(share: float, low: float, high: float) -> float:
    return _MARGIN + (min(max(share, low), high) - low) / (high - low) * (_WIDTH - 2 * _MARGIN)


def _seeds(rate: ArmRate) -> str:
    ticks = "".join(
        f'<line class="grid" x1="{_x(v, 0, 1):.1f}" x2="{_x(v, 0, 1):.1f}" y1="0" y2="26"/>'
        for v in (0, 0.25, 0.5, 0.75, 1)
    )
    dots = "".join(
        f'<circle class="seed" cx="{_x(v, 0, 1):.1f}" cy="13" r="5"/>' for v in rate.by_seed
    )
    mean = _x(rate.rate, 0, 1)
    return (
        f"{svg(_WIDTH, 26, 'interval', label=f'{percent(rate.rate)} percent')}{ticks}"
        f'<line class="whisker total" x1="{mean:.1f}" x2="{mean:.1f}" y1="4" y2="22"/>{dots}</svg>'
    )


def _difference(contrast: Contrast | None, *, limit: float) -> str:
    zero = _x(0.0, -limit, limit)
    parts = [
        svg(_WIDTH, 26, "interval", label="difference from the reference"),
        f'<line class="zero" x1="{zero:.1f}" x2="{zero:.1f}" y1="0" y2="26"/>',
    ]
    if contrast is not None:
        low, high = (_x(v, -limit, limit) for v in contrast.interval)
        if contrast.n_seeds > 1:
            parts.append(f'<line class="whisker" x1="{low:.1f}" x2="{high:.1f}" y1="13" y2="13"/>')
        parts += [
            f'<circle class="seed" cx="{_x(v, -limit, limit):.1f}" cy="13" r="3"/>'
            for v in contrast.by_seed
        ]
        middle = _x(contrast.difference, -limit, limit)
        parts.append(f'<circle class="dot" cx="{middle:.1f}" cy="13" r="5.5"/>')
    return "".join(parts) + "</svg>"


def _limit(contrasts: Sequence[Contrast]) -> float:
    """Return half the width of the axis of differences: what is there, in steps of ten points."""
    reach = [abs(v) for c in contrasts for v in (*c.by_seed, c.difference)]
    reach += [abs(v) for c in contrasts if c.n_seeds > 1 for v in c.interval]
    return min(1.0, max(0.1, float(np.ceil(10 * max(reach, default=0.1)) / 10)))


def _errors(study: Study, findings: Findings) -> str:
    if not findings.errors:
        return ""
    head = (
        "<tr><th>arm</th><th class='number'>error</th><th>by training seed</th>"
        "<th class='number'>change, %</th><th>interval, %</th></tr>"
    )
    rows = "".join(
        f"<tr{' class=reference' if e.name == study.reference else ''}>"
        f"<td class='arm'>{escape(study.arm(e.name).words)}</td>"
        + "".join(
            f"<td{' class=number' if k in (0, 2) else ''}>{typeset(cell)}</td>"
            for k, cell in enumerate(error_cells(study, e))
        )
        + "</tr>"
        for e in findings.errors
    )
    return (
        "<h2>Held-out demonstrations</h2><p>Mean distance to the expert's normalised actions on "
        "demonstrations that nobody was trained on: finer than success, and not what a user wants. "
        "Changes are relative to the reference; the intervals are by a paired t over training seeds, not "
        "corrected for the number of arms.</p>"
        + scrolled(
            f"<table><thead>{head}</thead><tbody>{rows}</tbody></table>", label="held-out error"
        )
    )


def _sweeps(study: Study, whole: GroupFindings) -> str:
    rates = {rate.name: rate for rate in whole.rates}
    names = list(dict.fromkeys(arm.sweep for arm in study.arms if arm.sweep))
    plots: list[str] = []
    for name in names:
        points_ = [
            (arm.at, rates[arm.name])
            for arm in study.arms
            if arm.sweep == name and arm.at is not None and arm.name in rates
        ]
        if len(points_) > 1:
            plots.append(
                f'<div class="card chart"><h3>{escape(name)}</h3>'
                f"{_curve(sorted(points_, key=lambda p: p[0]), rates.get(study.reference), name)}</div>"
            )
    return f'<h2>Sweeps</h2><div class="sweeps">{"".join(plots)}</div>' if plots else ""


def _curve(found: Sequence[tuple[float, ArmRate]], reference: ArmRate | None, label: str) -> str:
    """Draw mean success over a setting, dots for seeds, a dashed line for the reference."""
    width, height, left, right, top, bottom = 480, 240, 40, 14, 12, 34
    low, high = found[0][0], found[-1][0]

    def px(x: float) -> float:
        return left + (x - low) / (high - low) * (width - left - right)

    def py(share: float) -> float:
        return top + (1 - share) * (height - top - bottom)

    parts = [svg(width, height, "curve", label=f"Success in percent over {label}")]
    parts += [
        f'<line class="grid" x1="{left}" x2="{width - right}" y1="{py(share):.1f}" '
        f'y2="{py(share):.1f}"/><text x="{left - 6}" y="{py(share) + 4:.1f}" text-anchor="end">'
        f"{100 * share:.0f}</text>"
        for share in (0, 0.25, 0.5, 0.75, 1)
    ]
    if reference is not None:
        y = py(reference.rate)
        parts.append(
            f'<line class="clean" x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
    parts.append('<g class="line-a">')
    for (x0, a), (x1, b) in pairwise(found):
        parts.append(
            f'<line x1="{px(x0):.1f}" y1="{py(a.rate):.1f}" x2="{px(x1):.1f}" y2="{py(b.rate):.1f}"/>'
        )
    parts += [f'<circle cx="{px(x):.1f}" cy="{py(rate.rate):.1f}" r="4.5"/>' for x, rate in found]
    parts.append("</g>")
    for x, rate in found:
        parts += [
            f'<circle class="seed" cx="{px(x):.1f}" cy="{py(v):.1f}" r="2.5"/>'
            for v in rate.by_seed
        ]
        parts.append(
            f'<text x="{px(x):.1f}" y="{height - bottom + 18}" text-anchor="middle">{x:g}</text>'
        )
    return "".join(parts) + "</svg>"
