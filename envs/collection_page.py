"""The report of a collection as one page that loads nothing."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from vega_policy.rollout.page import STYLE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from envs.collection_report import TaskReport

_COLOURS = ("#3b4cc0", "#d9782d", "#1f8a4c", "#c8453b", "#8a5cc2", "#0f8b8d", "#a86f0c", "#5c6573")
_BINS = 24
_PLOTS = """
.plots { display: grid; grid-template-columns: 1fr 1fr; gap: 14px; padding: 14px 20px 18px; }
.plots svg { width: 100%; height: auto; }
.plots text { font-size: 11px; fill: var(--soft); }
.frame { fill: none; stroke: var(--line); }
table { border-collapse: collapse; width: 100%; font-size: 13px; }
td, th { padding: 5px 8px; text-align: right; border-bottom: 1px solid var(--line); }
td { white-space: nowrap; }
td:first-child, th:first-child { text-align: left; }
.wide { overflow-x: auto; margin-top: 14px; }
"""


def page(suite: str, reports: Sequence[TaskReport]) -> str:
    """Return the page: a table of all tasks, and two plots for each."""
    numbers = [report.numbers for report in reports]
    n_demos = sum(n["demonstrations"] for n in numbers)
    n_leaked = sum(n["n_leaked"] for n in numbers)
    closest = min(n["nearest_evaluation_m"] for n in numbers)
    said = (
        f"{n_demos} demonstrations of {len(reports)} tasks. "
        + (
            "No start coincides with an evaluation initial state"
            if n_leaked == 0
            else f"<b>{n_leaked} starts coincide with evaluation initial states</b>"
        )
        + f"; the nearest is {1e3 * closest:.1f} mm away (the object that differs most)."
    )
    cards = "".join(_card(report, found) for report, found in zip(reports, numbers, strict=True))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(suite)}: '
        f"demonstrations</title><style>{STYLE}{_PLOTS}</style></head><body><main>"
        f'<p class="eyebrow">Demonstrations</p><h1>{escape(suite)}</h1><p>{said}</p>'
        f'<div class="wide">{_table(numbers)}</div>'
        '<p class="small soft">Speed: of the end effector. Expert: share of the steps whose action '
        "the expert chose; the others were pushes. Spread: standard deviation of the start in the "
        "plane, mean over the objects, ours / evaluation. Nearest: least distance of a start to an "
        "evaluation state, and of two starts to each other, in the object that differs most.</p>"
        f"{cards}</main></body></html>"
    )


def _table(numbers: Sequence[dict[str, Any]]) -> str:
    head = (
        *("task", "demos", "solved", "length", "speed m/s", "idle", "expert"),
        *("spread cm", "arm rad", "nearest eval. mm", "nearest own mm"),
    )
    rows = "".join(f"<tr>{''.join(f'<td>{c}</td>' for c in _cells(n))}</tr>" for n in numbers)
    return f"<table><tr>{''.join(f'<th>{h}</th>' for h in head)}</tr>{rows}</table>"


def _cells(n: dict[str, Any]) -> list[str]:
    low, high = n["success_interval"] or (0.0, 0.0)
    solved = (
        "-"
        if n["attempts"] is None
        else f"{n['demonstrations']}/{n['attempts']} ({100 * low:.0f} - {100 * high:.0f} %)"
    )
    ours, theirs = (
        100 * float(np.mean(list(n[key].values())))
        for key in ("object_spread_m", "evaluation_spread_m")
    )
    own = n["nearest_other_m"]
    return [
        f"{n['task_id']} {escape(n['name'].replace('_', ' '))}",
        str(n["demonstrations"]),
        solved,
        f"{n['length_min']} / {n['length_median']:.0f} / {n['length_max']}",
        f"{n['speed_median_m_s']:.2f} / {n['speed_p95_m_s']:.2f}",
        f"{100 * n['idle_share']:.0f} %",
        f"{100 * n['expert_share']:.0f} %",
        f"{ours:.1f} / {theirs:.1f}",
        f"{n['joint_spread_rad']:.3f}",
        f"{1e3 * n['nearest_evaluation_m']:.1f}",
        "-" if own is None else f"{1e3 * own:.1f}",
    ]


def _card(report: TaskReport, found: dict[str, Any]) -> str:
    origins = ", ".join(f"{n} {escape(origin)}" for origin, n in found["origins"].items())
    return (
        f"<h2>{report.task_id} {escape(report.instruction)}</h2>"
        f'<p class="small soft">Starts: {origins}.</p><div class="card"><div class="plots">'
        f"{_starts(report)}{_lengths(report)}</div></div>"
    )


def _starts(report: TaskReport) -> str:
    """Draw where the objects stood, seen from above: dots ours, rings the evaluation states."""
    width, height, margin = 520, 300, 30
    ours = np.stack([d.start.objects for d in report.demos])
    theirs = np.stack([e.objects for e in report.evaluation])
    every = np.concatenate([ours.reshape(-1, 2), theirs.reshape(-1, 2)])
    low, high = every.min(axis=0), every.max(axis=0)
    # The robot looks along +x; in the picture it stands below.
    scale = min(
        (width - 170 - margin) / max(high[1] - low[1], 1e-3),
        (height - 2 * margin) / max(high[0] - low[0], 1e-3),
    )

    def at(point: Any) -> tuple[float, float]:  # noqa: ANN401
        return margin + (high[1] - point[1]) * scale, height - margin - (point[0] - low[0]) * scale

    parts = [
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="starts of the objects">',
        f'<rect class="frame" x="1" y="1" width="{width - 2}" height="{height - 2}"/>',
    ]
    for i, name in enumerate(report.objects):
        colour = _COLOURS[i % len(_COLOURS)]
        for place in theirs[:, i]:
            x, y = at(place)
            parts.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.4" fill="none" stroke="{colour}" '
                'stroke-opacity=".45"/>'
            )
        for place in ours[:, i]:
            x, y = at(place)
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="1.8" fill="{colour}"/>')
        parts.append(
            f'<circle cx="{width - 158}" cy="{20 + 16 * i}" r="4" fill="{colour}"/>'
            f'<text x="{width - 148}" y="{24 + 16 * i}">{escape(name)}</text>'
        )
    bar = 0.1 * scale
    parts.append(
        f'<line x1="{margin}" x2="{margin + bar:.1f}" y1="{height - 10}" y2="{height - 10}" '
        f'stroke="currentColor"/><text x="{margin + bar + 6:.1f}" y="{height - 6}">10 cm; '
        "dots: demonstrations, rings: evaluation</text></svg>"
    )
    return "".join(parts)


def _lengths(report: TaskReport) -> str:
    """Draw how long the demonstrations are, and how fast the hand moves in them."""
    rows = (
        ("steps", np.array([d.n_steps for d in report.demos], dtype=np.float64), 0),
        ("speed, m/s", np.concatenate([d.speed for d in report.demos]), 2),
    )
    width, tall, gap = 520, 100, 50
    parts = [f'<svg viewBox="0 0 {width} 300" role="img" aria-label="lengths and speeds">']
    for row, (label, values, decimals) in enumerate(rows):
        foot = 20 + tall + row * (tall + gap)
        end = float(values.max()) or 1.0
        counts, _ = np.histogram(values, bins=_BINS, range=(0.0, end))
        bar = (width - 40) / _BINS
        for i, count in enumerate(counts):
            h = tall * count / max(1, int(counts.max()))
            parts.append(
                f'<rect x="{20 + i * bar:.1f}" y="{foot - h:.1f}" width="{bar - 1:.1f}" '
                f'height="{h:.1f}" fill="var(--accent)"/>'
            )
        parts.append(
            f'<line class="frame" x1="20" x2="{width - 20}" y1="{foot}" y2="{foot}"/>'
            f'<text x="20" y="{foot + 14}">0</text><text x="{width - 20}" y="{foot + 14}" '
            f'text-anchor="end">{end:.{decimals}f}</text>'
            f'<text x="{width / 2}" y="{foot + 14}" text-anchor="middle">{label} '
            f"(median {np.median(values):.{decimals}f})</text>"
        )
    return "".join([*parts, "</svg>"])
