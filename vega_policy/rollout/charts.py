"""Larger drawings of the report as inline SVG; colours come from the page's style sheet."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

import numpy as np

from vega_policy.rollout.figures import LINES, nice, svg

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from vega_policy.rollout.statistics import Tally

_WIDTH, _GAP = 1096, 24
"""Width of the page's column, and what is between two kinds."""


def robustness(
    series: Mapping[str, Mapping[str, Tally]],
    *,
    clusters: Sequence[tuple[str, Sequence[tuple[str, str]]]],
    clean: str,
) -> str:
    """Draw success rates with their intervals, by kind of perturbation and level.

    Args:
        series: Name of an arm to the tally of each perturbation; the clean rate of the first is
            the line across.
        clusters: Title of a kind and, per level, what stands below it and its name in ``series``.
        clean: Name of the clean episodes in ``series``.
    """
    left, right, top, bottom, height = 44, 16, 30, 48, 316
    n = sum(len(members) for _, members in clusters)
    room = (_WIDTH - left - right - _GAP * len(clusters)) / max(1, n)
    slot = min(120.0, max(36.0, room))
    width = round(left + right + _GAP * len(clusters) + slot * n)

    def py(share: float) -> float:
        return top + (1 - share) * (height - top - bottom)

    label = "Success rate in percent by perturbation and level"
    parts = [
        svg(width, height, "robustness", label=label, is_fixed=True),
        f'<text x="{left}" y="14">success rate in %</text>',
    ]
    base = next(iter(series.values())).get(clean)
    if base is not None and base.rate is not None:
        low, high = (py(v) for v in base.interval)
        parts.append(
            f'<rect class="band" x="{left}" y="{high:.1f}" width="{width - left - right}" '
            f'height="{low - high:.1f}"/>'
        )
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = py(share)
        parts.append(
            f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{100 * share:.0f}</text>'
        )
    if base is not None and base.rate is not None:
        y = py(base.rate)
        parts.append(
            f'<line class="clean" x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
    x = left + _GAP / 2
    for title, members in clusters:
        places = [x + slot * (i + 0.5) for i in range(len(members))]
        names = [name for _, name in members]
        for number, tallies in enumerate(series.values()):
            shift = 10 * (number - (len(series) - 1) / 2)
            shifted = [place + shift for place in places]
            found = [tallies.get(name) for name in names]
            is_scale = all(tick.isdigit() for tick, _ in members)
            parts.append(_dots(shifted, found, LINES[number % len(LINES)], py, is_joined=is_scale))
        parts += [
            f'<text x="{place:.1f}" y="{height - bottom + 18}" text-anchor="middle">'
            f"{escape(tick)}</text>"
            for place, (tick, _) in zip(places, members, strict=True)
        ]
        middle = (places[0] + places[-1]) / 2
        parts.append(
            f'<text class="title" x="{middle:.1f}" y="{height - bottom + 37}" '
            f'text-anchor="middle">{escape(title)}</text>'
        )
        x = places[-1] + slot / 2 + _GAP
    return "".join(parts) + "</svg>"


def _dots(
    places: Sequence[float],
    found: Sequence[Tally | None],
    kind: str,
    py: Callable[[float], float],
    *,
    is_joined: bool,
) -> str:
    parts: list[str] = []
    seen = [(x, tally) for x, tally in zip(places, found, strict=True) if tally and tally.episodes]
    if is_joined and len(seen) > 1:
        line = " ".join(f"{x:.1f},{py(tally.rate or 0.0):.1f}" for x, tally in seen)
        parts.append(f'<polyline class="{kind} thin" points="{line}"/>')
    for x, tally in seen:
        low, high = (py(v) for v in tally.interval)
        said = f"{tally.successes} of {tally.episodes}"
        parts.append(
            f'<g class="{kind}"><title>{said}</title>'
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{high:.1f}" y2="{low:.1f}"/>'
            f'<circle cx="{x:.1f}" cy="{py(tally.rate or 0.0):.1f}" r="4.5"/></g>'
        )
    return "".join(parts)


def histogram(values: Sequence[float], *, unit: str) -> str:
    """Draw how often a duration occurs, with its median, 90 % and 99 % marked.

    The axis ends a little after the 99 %, sooner where those are stragglers; what lies beyond is
    counted in words.
    """
    width, height, left, right, top, bottom = 520, 190, 12, 12, 44, 34
    numbers = np.asarray(values, dtype=np.float64)
    marks = {q: float(np.percentile(numbers, q)) for q in (50, 90, 99)}
    end = max(min(1.12 * marks[99], 3.0 * marks[90]), 1.0)
    beyond = int((numbers > end).sum())
    counts, _ = np.histogram(numbers, bins=40, range=(0.0, end))
    tallest = max(1, int(counts.max()))
    bar = (width - left - right) / len(counts)

    def px(value: float) -> float:
        return left + value / end * (width - left - right)

    foot = height - bottom
    label = ", ".join(f"{q} percent below {value:.1f} {unit}" for q, value in marks.items())
    parts = [svg(width, height, "histogram", label=label)]
    for i, count in enumerate(counts):
        tall = count / tallest * (foot - top)
        if count:
            parts.append(
                f'<rect class="column" x="{left + i * bar + 0.5:.1f}" y="{foot - tall:.1f}" '
                f'width="{bar - 1:.1f}" height="{tall:.1f}"/>'
            )
    ticks, decimals = nice(0.0, end, 6)
    parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{foot}" y2="{foot}"/>')
    parts += [
        f'<text x="{px(tick):.1f}" y="{foot + 15}" text-anchor="middle">{tick:.{decimals}f}</text>'
        for tick in ticks
    ]
    for row, (q, value) in enumerate(marks.items()):
        # The first is written on the lowest line; each has a line of its own, so none collide.
        y = top - 5 - 13 * (2 - row)
        name = "median" if q == 50 else f"{q} %"
        place = px(min(value, end))
        if value <= end:
            parts.append(
                f'<line class="mark" x1="{place:.1f}" x2="{place:.1f}" y1="{y - 8}" y2="{foot}"/>'
            )
        is_left = place > width / 2
        parts.append(
            f'<text class="marked" x="{place + (-4 if is_left else 4):.1f}" y="{y}" '
            f'text-anchor="{"end" if is_left else "start"}">{name} {value:.1f}'
            f"{'' if value <= end else ' &rarr;'}</text>"
        )
    more = f"; {beyond} beyond the axis" if beyond else ""
    parts.append(
        f'<text x="{width - right}" y="{height - 3}" text-anchor="end">{unit}, '
        f"{len(numbers):,} inferences{more}</text></svg>"
    )
    return "".join(parts)


def shares(parts: Mapping[str, float], *, unit: str) -> str:
    """Draw a bar divided in proportion, with a list that says the shares."""
    total = sum(parts.values()) or 1.0
    bar = "".join(
        f'<i class="share-{i}" style="flex:{value / total:.5f}" title="{escape(name)}"></i>'
        for i, (name, value) in enumerate(parts.items())
    )
    lines = "".join(
        f'<tr><td><i class="share-{i}"></i>{escape(name)}</td><td class="number">'
        f'{value:.1f} {unit}</td><td class="number">{100 * value / total:.1f} %</td></tr>'
        for i, (name, value) in enumerate(parts.items())
    )
    return f'<div class="shares">{bar}</div><table class="plain">{lines}</table>'
