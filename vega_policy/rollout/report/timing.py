"""How long inference takes, and where the time of an episode goes."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from vega_policy.rollout import charts
from vega_policy.rollout.report.markup import plain_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vega_policy.rollout.report.reading import Run
    from vega_policy.spec import EpisodeResult


def section(run: Run) -> str:
    """Write histograms, shares and totals; of every row, whatever its arm or perturbation."""
    stages = policy_ms(run.rows)
    waits = [float(ms) for r in run.rows for ms in _of_run(r).get("wait_ms", [])]
    if not stages and not waits:
        return ""
    shown = {"policy, per call": stages.get("total", []), "worker's wait for its chunk": waits}
    drawn = "".join(
        f'<div class="card"><h3>{escape(name)}</h3>{charts.histogram(values, unit="ms")}</div>'
        for name, values in shown.items()
        if values
    )
    table = {**stages, **({"worker's wait for its chunk": waits} if waits else {})}
    lines = "".join(
        f"<tr><td>{escape(name.replace('_', ' '))}</td>"
        + "".join(f'<td class="number">{percentile(values, q):.1f}</td>' for q in (50, 90, 99))
        + "</tr>"
        for name, values in table.items()
    )
    return f"""<h2 id="timing">Timing</h2>
<p class="soft">A call answers a batch; an episode counts each call it was part of.</p>
<div class="two">{drawn}</div>
<div class="two"><div class="card"><h3>Where an episode's time goes</h3>{_shares(run)}</div>
<div class="card"><table class="plain"><tr><th>ms per inference</th><th class="number">median</th>
<th class="number">90 %</th><th class="number">99 %</th></tr>{lines}</table></div></div>
<div class="card totals">{plain_table(_totals(run))}</div>"""


def _shares(run: Run) -> str:
    """Draw which part of the workers' time went where."""
    sums = {
        "simulating": _sum(run, "simulate_s"),
        "waiting for a chunk": sum(sum(_of_run(r).get("wait_ms", [])) for r in run.rows) / 1000,
        "resetting": _sum(run, "reset_s"),
        "building simulators": _sum(run, "build_s"),
    }
    wall = sum(r.wall_s for r in run.rows)
    sums["the rest (videos, records)"] = max(0.0, wall - sum(sums.values()))
    return charts.shares(sums, unit="s")


def _totals(run: Run) -> list[tuple[str, str]]:
    host = run.header.host
    n_steps = sum(r.n_steps for r in run.rows)
    simulate_s = _sum(run, "simulate_s")
    speed = steps_per_s(run)
    return [
        ("control steps played", f"{n_steps:,}"),
        ("control steps per second", "-" if speed is None else f"{speed:.1f}"),
        ("simulator, per control step", f"{1000 * simulate_s / max(1, n_steps):.1f} ms"),
        ("wall time of finished starts", f"{sum(float(s['wall_s']) for s in run.starts):.0f} s"),
        ("simulator processes", str(host.get("workers", "-"))),
        ("simulator faults, tried again", str(len(run.faults))),
        ("machine", f"{host.get('cpu', '')}, {host.get('cores', '?')} cores"),
    ]


def policy_ms(rows: Sequence[EpisodeResult]) -> dict[str, list[float]]:
    """Return milliseconds by stage over every inference, the total last."""
    stages: dict[str, list[float]] = {}
    for row in rows:
        timings: list[Mapping[str, float]] = _of_run(row).get("policy_ms", [])
        for timed in timings:
            for stage, ms in timed.items():
                stages.setdefault(stage, []).append(float(ms))
    return dict(sorted(stages.items(), key=lambda item: item[0] == "total"))


def steps_per_s(run: Run) -> float | None:
    """Return control steps per second over all finished starts; None before the first."""
    wall = sum(float(s["wall_s"]) for s in run.starts)
    n_steps = sum(float(s["control_steps"]) for s in run.starts)
    return n_steps / wall if wall else None


def percentile(values: Sequence[float], q: float) -> float | None:
    """Return a percentile; None of nothing."""
    return float(np.percentile(values, q)) if values else None


def _of_run(row: EpisodeResult) -> Mapping[str, Any]:
    """Return what of a row depends on machine and moment."""
    return row.info.get("run", {})


def _sum(run: Run, name: str) -> float:
    return sum(float(_of_run(r).get(name, 0.0)) for r in run.rows)
