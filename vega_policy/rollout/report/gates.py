"""Where the policy looks to its prior, of the headline's episodes."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

import numpy as np

from vega_policy.rollout import figures
from vega_policy.rollout.gate_map import GateTrace, colours, overlay
from vega_policy.rollout.report.markup import OUTCOMES, jpeg, start_words

if TYPE_CHECKING:
    from vega_policy.rollout.report.reading import Run


def section(run: Run) -> str:
    """Write a card per task: the gate over the camera images, and its mean over time."""
    cards = [_gate_card(run, t) for t in run.summary.tasks]
    if not any(cards):
        return ""
    return f"""<h2 id="gates">Where the policy looks to its prior</h2>
<p class="soft">The gate weighs, token by token, what the vision encoder saw (1) against the frozen
video prior (0). Each map is one inference a third into an episode, drawn over what the camera saw;
its colours span the smallest to the largest gate of that moment, so compare places within a map,
and numbers between maps.</p>
<div class="gates">{"".join(cards)}</div>"""


def _gate_card(run: Run, task_id: int) -> str:
    rows = [
        r
        for r in run.main_rows
        if r.key.task_id == task_id and (run.path / str(r.info.get("gates"))).is_file()
    ]
    if not rows:
        return ""
    row = next((r for r in rows if r.outcome == "success"), rows[0])
    trace = GateTrace.load(run.path / str(row.info["gates"]))
    now = trace.gates[trace.moment]
    low, high = float(now.min()), float(now.max())
    stills = "".join(
        f'<figure><div class="pair"><img alt="{escape(camera)} camera" src="{jpeg(image)}">'
        f'<img alt="{escape(camera)} gate" '
        f'src="{jpeg(overlay(image, gate, low=low, high=high))}"></div>'
        f"<figcaption>{escape(camera)}, mean {gate.mean():.3f}</figcaption></figure>"
        for camera, image, gate in zip(trace.cameras, trace.images, now, strict=True)
    )
    stops = ", ".join("rgb({} {} {})".format(*c) for c in colours(np.linspace(0, 1, 6)))
    n_execute = row.n_steps / max(1, row.n_chunks)
    means = {c: trace.gates[:, v].mean(axis=(1, 2)).tolist() for v, c in enumerate(trace.cameras)}
    plot = figures.line_plot(
        means, x_step=n_execute, x_label="control step", y_label="mean gate over time"
    )
    legend = "".join(
        f'<span class="legend"><i class="{kind}"></i>{escape(camera)}</span>'
        for kind, camera in zip(figures.LINES, means, strict=False)
    )
    return f"""<div class="card gate"><h3>{escape(run.names[task_id])}</h3>
<div class="small soft">{start_words(row)}, {OUTCOMES[row.outcome]}</div>
<div class="stills">{stills}</div>
<div class="bar"><span>{low:.3f} prior</span><i style="background:linear-gradient(90deg,{stops})"></i>
<span>semantic {high:.3f}</span></div>{plot}{legend}</div>"""
