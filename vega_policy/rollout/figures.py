"""Drawings of the report as inline SVG; colours come from the page's style sheet."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING

from vega_policy.rollout.table import points

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from vega_policy.rollout.paired import Finding
    from vega_policy.rollout.statistics import Tally

LINES = ("line-a", "line-b", "line-c")
"""Classes of the lines of a plot, in order."""

_WIDTH = 300
_MARGIN = 18


def interval_bar(tally: Tally, total: Tally, *, is_total: bool = False) -> str:
    """Draw a success rate as a dot on its interval, over the band of the total's interval."""
    height, middle = 26, 13
    parts = [svg(_WIDTH, height, "interval")]
    low, high = (_x(v) for v in total.interval)
    if total.episodes and not is_total:
        parts.append(
            f'<rect class="band" x="{low:.1f}" y="0" width="{high - low:.1f}" height="26"/>'
        )
    parts += [f'<line class="grid" x1="{_x(v)}" x2="{_x(v)}" y1="0" y2="26"/>' for v in _TICKS]
    if tally.rate is not None:
        a, b = (_x(v) for v in tally.interval)
        kind = "total" if is_total else "task"
        parts.append(f'<line class="whisker {kind}" x1="{a:.1f}" x2="{b:.1f}" y1="13" y2="13"/>')
        parts += [
            f'<line class="whisker {kind}" x1="{x:.1f}" x2="{x:.1f}" y1="9" y2="17"/>'
            for x in (a, b)
        ]
        parts.append(
            f'<circle class="dot {kind}" cx="{_x(tally.rate):.1f}" cy="{middle}" r="5.5"/>'
        )
    return "".join(parts) + "</svg>"


def interval_axis() -> str:
    """Draw the axis that goes above a column of `interval_bar`."""
    labels = "".join(
        f'<text x="{_x(v)}" y="13" text-anchor="middle">{100 * v:.0f}</text>' for v in _TICKS
    )
    return f"{svg(_WIDTH, 18, 'interval axis')}{labels}</svg>"


def difference_bar(finding: Finding, *, limit: float = 1.0, is_total: bool = False) -> str:
    """Draw a difference of rates as a dot on its interval, over a line at zero.

    Args:
        finding: What to draw; without pairs there is no dot.
        limit: How far the axis reaches to either side.
        is_total: Draw it larger.
    """
    said = f"difference {points(finding.difference)} points"
    parts = [svg(_WIDTH, 26, "interval", label=said)]
    places = [(v, _dx(v, limit)) for v in _difference_ticks(limit)]
    parts += [
        f'<line class="{"grid" if v else "zero"}" x1="{x}" x2="{x}" y1="0" y2="26"/>'
        for v, x in places
    ]
    a, b = (_dx(v, limit) for v in finding.interval)
    kind = "task" if finding.verdict == "not separated" else "total"
    parts.append(f'<line class="whisker {kind}" x1="{a}" x2="{b}" y1="13" y2="13"/>')
    parts += [f'<line class="whisker {kind}" x1="{x}" x2="{x}" y1="9" y2="17"/>' for x in (a, b)]
    if finding.pairs.n:
        parts.append(
            f'<circle class="dot {kind}" cx="{_dx(finding.difference, limit)}" cy="13" '
            f'r="{6.5 if is_total else 5.5}"/>'
        )
    return "".join(parts) + "</svg>"


def difference_axis(limit: float = 1.0) -> str:
    """Draw the axis that goes above a column of `difference_bar`."""
    labels = "".join(
        f'<text x="{_dx(v, limit)}" y="13" text-anchor="middle">{_signed(v)}</text>'
        for v in _difference_ticks(limit)
    )
    return f"{svg(_WIDTH, 18, 'interval axis')}{labels}</svg>"


def difference_limit(findings: Iterable[Finding]) -> float:
    """Return how far an axis has to reach so that every interval fits on it."""
    widest = max(abs(v) for f in findings for v in f.interval)
    return next(limit for limit in _LIMITS if widest <= limit)


def line_plot(
    series: Mapping[str, Sequence[float]], *, x_step: float, x_label: str, y_label: str
) -> str:
    """Draw short series over a common axis; the vertical one spans the data, 0.02 at least.

    Args:
        series: Name to values, all at the same places.
        x_step: Distance between two values on the horizontal axis.
        x_label: What is on the horizontal axis.
        y_label: What is on the vertical axis.
    """
    width, height, left, right, top, bottom = 520, 132, 44, 12, 22, 32
    values = [v for s in series.values() for v in s]
    low, high = _padded(min(values), max(values))
    x_end = max(1, max(len(s) for s in series.values()) - 1) * x_step

    def px(x: float) -> float:
        return left + x / x_end * (width - left - right)

    def py(y: float) -> float:
        return height - bottom - (y - low) / (high - low) * (height - top - bottom)

    parts = [svg(width, height, "plot")]
    ticks, decimals = nice(low, high, 3)
    parts += [
        f'<line class="grid" x1="{left}" x2="{width - right}" y1="{py(y):.1f}" y2="{py(y):.1f}"/>'
        f'<text x="{left - 6}" y="{py(y) + 3.5:.1f}" text-anchor="end">{y:.{decimals}f}</text>'
        for y in ticks
    ]
    parts += [
        f'<text x="{px(x):.1f}" y="{height - bottom + 15}" text-anchor="middle">{x:.0f}</text>'
        for x in nice(0, x_end, 6)[0]
    ]
    for kind, values in zip(LINES, series.values(), strict=False):
        path = " ".join(f"{px(i * x_step):.1f},{py(v):.1f}" for i, v in enumerate(values))
        parts.append(f'<polyline class="{kind}" points="{path}"/>')
    parts.append(f'<text x="{left}" y="11">{y_label}</text>')
    parts.append(
        f'<text x="{width - right}" y="{height - 3}" text-anchor="end">{x_label}</text></svg>'
    )
    return "".join(parts)


_TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)
_LIMITS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
"""Round ends of an axis of differences."""


def _x(share: float) -> float:
    return round(_MARGIN + share * (_WIDTH - 2 * _MARGIN), 1)


def _difference_ticks(limit: float) -> tuple[float, ...]:
    return (-limit, -limit / 2, 0.0, limit / 2, limit)


def _dx(difference: float, limit: float) -> float:
    return _x((1 + difference / limit) / 2)


def _signed(difference: float) -> str:
    return f"{100 * difference:+g}".replace("-", "\u2212") if difference else "0"


def svg(width: int, height: int, kind: str, *, label: str = "", is_fixed: bool = False) -> str:
    """Open a drawing.

    Args:
        width: In its own units.
        height: In its own units.
        kind: Its class.
        label: What it shows, for who cannot see it; "" where the words beside it say so.
        is_fixed: Keep the size, with a unit a pixel, instead of filling the width.
    """
    said = f'role="img" aria-label="{escape(label)}"' if label else 'aria-hidden="true"'
    size = f' style="width:{width}px"' if is_fixed else ""
    return f'<svg class="{kind}" viewBox="0 0 {width} {height}" {said}{size}>'


def _padded(low: float, high: float) -> tuple[float, float]:
    """Widen a range a little, and to 0.02 at least, so that noise is not drawn as a mountain."""
    half = max(0.55 * (high - low), 0.01)
    middle = (low + high) / 2
    return middle - half, middle + half


def nice(low: float, high: float, n: int) -> tuple[list[float], int]:
    """Return about ``n`` round numbers between two bounds, and the decimals they need."""
    raw = (high - low) / n
    exponent = math.floor(math.log10(raw))
    step = next(m * 10.0**exponent for m in (1, 2, 5, 10) if m * 10.0**exponent >= raw)
    first = math.ceil(low / step)
    decimals = max(0, -math.floor(math.log10(step)))
    return [i * step for i in range(first, math.floor(high / step) + 1)], decimals
