"""``report.html``: everything about a run in one file that opens from disk.

It reads the run directory alone, so it can be made again at any time, and it loads nothing from
elsewhere.
"""

from __future__ import annotations

import base64
import io
import json
import math
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vega_policy.rollout import figures
from vega_policy.rollout.gate_map import GateTrace, colours, overlay
from vega_policy.rollout.ledger import (
    RunHeader,
    job_of,
    planned,
    read_faults,
    read_header,
    read_rows,
    read_starts,
    task_names,
)
from vega_policy.rollout.page import SCRIPT, STYLE
from vega_policy.rollout.plan import CLEAN, SAMPLED_START
from vega_policy.rollout.statistics import Summary, Tally, summarise
from vega_policy.rollout.video import CHUNK_FPS, first_frame
from vega_policy.spec import EpisodeKey, EpisodeResult
from vega_policy.spec.files import write_atomic

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

REPORT = "report.html"
MAX_EMBEDDED = 60
"""Videos inside the file; further ones are linked."""
MAX_EMBEDDED_BYTES = 40_000_000
OUTCOMES = {"success": "success", "failure": "failure", "policy_fault": "policy fault"}


@dataclass(frozen=True, kw_only=True)
class _Run:
    """A run directory, read once."""

    path: Path
    header: RunHeader
    rows: list[EpisodeResult]
    summary: Summary
    faults: list[dict[str, Any]]
    starts: list[dict[str, Any]]
    names: dict[int, str]
    """Task number to what the task says."""
    missing: list[EpisodeKey]

    def of_task(self, task_id: int) -> list[EpisodeResult]:
        """Return the episodes of a task by initial state."""
        return sorted((r for r in self.rows if r.key.task_id == task_id), key=lambda r: r.key)


def write_report(run_dir: Path) -> Path:
    """Write ``report.html`` into the run directory and return its path.

    Raises:
        ContractError: The directory holds no run, or a damaged one.
    """
    run = _read(run_dir)
    embedded = _choose_embedded(run)
    title = f"{run.header.defines.get('suite', 'run')}: {run.path.name}"
    body = "\n".join(
        part
        for part in (
            _head(run),
            _results(run),
            _videos(run, embedded),
            _gates(run),
            _timing(run),
            _notes(run),
            _provenance(run),
        )
        if part
    )
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title><style>{STYLE}</style></head>
<body><main>
{body}
</main><script>{SCRIPT}</script></body></html>
"""
    path = run_dir / REPORT
    write_atomic(path, page)
    return path


def _read(run_dir: Path) -> _Run:
    header = read_header(run_dir)
    rows = read_rows(run_dir)
    names = {t: name.replace("_", " ") for t, name in task_names(header).items()}
    names |= {
        r.key.task_id: r.instruction
        for r in rows
        if r.instruction and r.key.perturbation in (CLEAN, SAMPLED_START)
    }
    done = set(map(job_of, rows))
    missing = [job.key for job in planned(header) if job not in done]
    return _Run(
        path=run_dir.resolve(),
        header=header,
        rows=rows,
        summary=summarise(rows, task_ids=names),
        faults=read_faults(run_dir),
        starts=read_starts(run_dir),
        names=names,
        missing=missing,
    )


def _head(run: _Run) -> str:
    total, header = run.summary.total, run.header
    low, high = total.interval
    rate = "-" if total.rate is None else _percent(total.rate)
    checkpoint = Path(str(header.configuration.get("checkpoint", ""))).name
    speed = _steps_per_s(run)
    chunk_ms = _percentile(_policy_ms(run.rows).get("total", []), 50)
    facts = [
        (str(total.episodes), f"episodes, {len(run.summary.tasks)} tasks"),
        (_steps(total.mean_steps_success), "mean steps of successes"),
        (_steps(total.mean_steps), "mean steps of all"),
        (str(total.policy_faults), "policy faults"),
        ("-" if chunk_ms is None else f"{chunk_ms:.0f} ms", "per inference (median)"),
        ("-" if speed is None else f"{speed:.0f}/s", "control steps, all workers"),
    ]
    cells = "".join(
        f'<div class="fact"><b>{escape(value)}</b><span>{escape(label)}</span></div>'
        for value, label in facts
    )
    banner = ""
    if run.missing:
        last = f": {escape(str(run.faults[-1]['detail']))}" if run.faults else ""
        banner = (
            f'<div class="banner"><b>{len(run.missing)} of '
            f"{len(run.missing) + total.episodes} planned episodes have no row</b> and are not "
            f"counted; start the run again with the same name to play them{last}</div>"
        )
    created = header.created.replace("T", " ").replace("+00:00", " UTC")
    return f"""<header><p class="eyebrow">Rollout</p>
<h1>{escape(str(header.defines.get("suite", "")))}</h1>
<p class="soft">checkpoint <b>{escape(str(checkpoint))}</b> &middot; run {escape(run.path.name)}
&middot; {escape(created)}{_commit(header)}</p>
<nav>{_links(run)}</nav></header>
<section class="hero"><div class="card headline">
<div class="rate">{rate}<small>&thinsp;%</small></div>
<p class="soft">{total.successes} of {total.episodes} episodes succeeded; 95 % interval
{_percent(low)} to {_percent(high)} %</p>
{figures.interval_bar(total, total, is_total=True)}{figures.interval_axis()}</div>
<div class="card facts">{cells}</div></section>{banner}"""


def _links(run: _Run) -> str:
    sections = [("results", "Results", True)]
    sections.append(("episodes", "Episodes", any(r.info.get("video") for r in run.rows)))
    sections.append(("gates", "Gate maps", any(r.info.get("gates") for r in run.rows)))
    sections += [(i, i.capitalize(), True) for i in ("timing", "notes", "provenance")]
    return "".join(f'<a href="#{i}">{label}</a>' for i, label, is_there in sections if is_there)


def _results(run: _Run) -> str:
    total = run.summary.total
    lines = "".join(
        f'<tr><td class="number soft">{t}</td><td class="words">{escape(run.names[t])}</td>'
        f"<td>{_strip(run, t)}</td>"
        f'<td class="plot-cell">{figures.interval_bar(tally, total)}</td>{_tally_cells(tally)}</tr>'
        for t, tally in run.summary.tasks.items()
    )
    return f"""<h2 id="results">Results per task</h2>
<div class="card scroll results"><table>
<thead><tr><th></th><th>task</th><th>episodes</th><th class="plot-cell">success rate in % with its
95 % Wilson interval{figures.interval_axis()}</th><th class="number">successes</th>
<th class="number">interval</th><th class="number">steps,<br>successes</th>
<th class="number">steps,<br>all</th></tr></thead>
<tbody>{lines}</tbody>
<tfoot><tr><td></td><td>total</td><td></td>
<td class="plot-cell">{figures.interval_bar(total, total, is_total=True)}</td>
{_tally_cells(total)}</tr></tfoot></table>
<div class="key"><span><i class="success"></i>success</span><span><i class="failure"></i>failure</span>
<span><i class="policy_fault"></i>policy fault</span><span><i></i>not played</span>
<span><i class="bandkey"></i>interval of the total</span></div></div>"""


def _tally_cells(tally: Tally) -> str:
    low, high = tally.interval
    interval = f"{_percent(low)} - {_percent(high)} %" if tally.episodes else "-"
    return "".join(
        f'<td class="number">{cell}</td>'
        for cell in (
            f"{tally.successes} / {tally.episodes}",
            interval,
            _steps(tally.mean_steps_success),
            _steps(tally.mean_steps),
        )
    )


def _strip(run: _Run, task_id: int) -> str:
    rows = {r.key.init_state_id: r for r in run.of_task(task_id)}
    states = sorted({*rows, *(k.init_state_id for k in run.missing if k.task_id == task_id)})
    squares: list[str] = []
    for state in states:
        row = rows.get(state)
        if row is None:
            squares.append(f'<i title="initial state {state}: not played"></i>')
            continue
        label = f"initial state {state}: {OUTCOMES[row.outcome]}, {row.n_steps} steps"
        squares.append(
            f'<a class="{row.outcome}" title="{label}" aria-label="{label}" '
            f'href="#{row.key.name()}"></a>'
        )
    return f'<div class="strip">{"".join(squares)}</div>'


def _gates(run: _Run) -> str:
    cards = [_gate_card(run, t) for t in run.summary.tasks]
    if not any(cards):
        return ""
    return f"""<h2 id="gates">Where the policy looks to its prior</h2>
<p class="soft">The gate weighs, token by token, what the vision encoder saw (1) against the frozen
video prior (0). Each map is one inference a third into an episode, drawn over what the camera saw;
its colours span the smallest to the largest gate of that moment, so compare places within a map,
and numbers between maps.</p>
<div class="gates">{"".join(cards)}</div>"""


def _gate_card(run: _Run, task_id: int) -> str:
    rows = [r for r in run.of_task(task_id) if (run.path / str(r.info.get("gates"))).is_file()]
    if not rows:
        return ""
    row = next((r for r in rows if r.outcome == "success"), rows[0])
    trace = GateTrace.load(run.path / str(row.info["gates"]))
    now = trace.gates[trace.moment]
    low, high = float(now.min()), float(now.max())
    stills = "".join(
        f'<figure><div class="pair"><img alt="{escape(camera)} camera" src="{_jpeg(image)}">'
        f'<img alt="{escape(camera)} gate" '
        f'src="{_jpeg(overlay(image, gate, low=low, high=high))}"></div>'
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
<div class="small soft">{_start(row)}, {OUTCOMES[row.outcome]}</div>
<div class="stills">{stills}</div>
<div class="bar"><span>{low:.3f} prior</span><i style="background:linear-gradient(90deg,{stops})"></i>
<span>semantic {high:.3f}</span></div>{plot}{legend}</div>"""


def _start(row: EpisodeResult) -> str:
    kind = "sampled start" if row.key.perturbation == SAMPLED_START else "initial state"
    return f"{kind} {row.key.init_state_id}"


def _choose_embedded(run: _Run) -> set[str]:
    """Choose the videos that go into the file: failures first, then evenly over the tasks."""
    rank = {r.key: i for t in run.names for i, r in enumerate(run.of_task(t))}
    order = sorted(
        (r for r in run.rows if (run.path / str(r.info.get("video"))).is_file()),
        key=lambda r: (r.outcome == "success", rank[r.key], r.key),
    )
    chosen: set[str] = set()
    size = 0
    for row in order[:MAX_EMBEDDED]:
        size += (run.path / str(row.info["video"])).stat().st_size
        if size > MAX_EMBEDDED_BYTES:
            break
        chosen.add(row.key.name())
    return chosen


def _videos(run: _Run, embedded: set[str]) -> str:
    if not any(r.info.get("video") for r in run.rows):
        return ""
    present = {r.outcome for r in run.rows}
    buttons = "".join(
        f'<button data-outcome="{kind}" aria-pressed="{"true" if kind == "all" else "false"}">'
        f"{label}</button>"
        for kind, label in [("all", "all"), *OUTCOMES.items()]
        if kind == "all" or kind in present
    )
    groups = "".join(_group(run, t, embedded) for t in run.summary.tasks)
    every = run.header.configuration.get("rollout", {}).get("video") == "all"
    speed = (
        "Every control step is shown, in real time."
        if every
        else f"A frame is what the policy saw at one inference; {CHUNK_FPS} frames a second are "
        "about twice real time."
    )
    n_linked = sum(r.key.name() not in embedded for r in run.rows if r.info.get("video"))
    linked = (
        f" {n_linked} further videos are linked and play while this file stays in its folder."
        if n_linked
        else ""
    )
    return f"""<h2 id="episodes">Episodes</h2>
<p class="soft">Third-person camera on the left, wrist camera on the right, gate maps below. {speed}
Point at a video to play it, click it for controls.{linked}</p><div class="filters">{buttons}</div>{groups}"""


def _group(run: _Run, task_id: int, embedded: set[str]) -> str:
    rows = run.of_task(task_id)
    tally = run.summary.tasks[task_id]
    clips = "".join(_clip(run, r) for r in rows if r.key.name() in embedded)
    links = " ".join(
        f'<a id="{r.key.name()}" data-is="{r.outcome}" href="{escape(str(r.info["video"]))}">'
        f"{_start(r)} ({OUTCOMES[r.outcome]})</a>"
        for r in rows
        if r.key.name() not in embedded and r.info.get("video")
    )
    more = f'<p class="more">{links}</p>' if links else ""
    return (
        f'<div class="group"><h3>{escape(run.names[task_id])}'
        f"<span>{tally.successes} of {tally.episodes}</span></h3>"
        f'<div class="clips">{clips}</div>{more}</div>'
    )


def _clip(run: _Run, row: EpisodeResult) -> str:
    path = run.path / str(row.info["video"])
    poster = first_frame(path)
    poster_uri = "" if poster is None else f' poster="{_jpeg(poster)}"'
    source = "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode()
    detail = f'<div class="detail">{escape(row.detail)}</div>' if row.detail else ""
    return (
        f'<div class="card clip" id="{row.key.name()}" data-is="{row.outcome}">'
        f'<video controls muted loop playsinline preload="none"{poster_uri} src="{source}"></video>'
        f'<div class="line"><span class="badge {row.outcome}">{OUTCOMES[row.outcome]}</span>'
        f"<span>{_start(row)}</span><span>{row.n_steps} steps</span></div>"
        f"{detail}</div>"
    )


def _timing(run: _Run) -> str:
    stages = _policy_ms(run.rows)
    waits = [float(ms) for r in run.rows for ms in r.info.get("run", {}).get("wait_ms", [])]
    if waits:
        stages["worker's wait for its chunk"] = waits
    if not stages:
        return ""
    lines = "".join(
        f"<tr><td>{escape(name.replace('_', ' '))}</td>"
        + "".join(f'<td class="number">{_percentile(values, q):.1f}</td>' for q in (50, 90, 99))
        + "</tr>"
        for name, values in stages.items()
    )
    wall = sum(float(s["wall_s"]) for s in run.starts)
    steps = sum(r.n_steps for r in run.rows)
    build = [float(r.info.get("run", {}).get("build_s", 0.0)) for r in run.rows]
    simulate = sum(float(r.info.get("run", {}).get("simulate_s", 0.0)) for r in run.rows)
    speed = _steps_per_s(run)
    rows = [
        ("control steps played", f"{steps:,}"),
        ("control steps per second", "-" if speed is None else f"{speed:.1f}"),
        ("simulator, per control step", f"{1000 * simulate / max(1, steps):.1f} ms"),
        ("building simulators, in all", f"{sum(build):.0f} s"),
        ("wall time of finished starts", f"{wall:.0f} s"),
        ("simulator processes", str(run.header.host.get("workers", "-"))),
        ("simulator faults, tried again", str(len(run.faults))),
        ("machine", f"{run.header.host.get('cpu', '')}, {run.header.host.get('cores', '?')} cores"),
    ]
    return f"""<h2 id="timing">Timing</h2><div class="two">
<div class="card"><table class="plain"><tr><th>ms per inference call</th><th class="number">median</th>
<th class="number">90 %</th><th class="number">99 %</th></tr>{lines}</table>
<p class="small soft">A call answers a batch; an episode counts the call it was part of.</p></div>
<div class="card">{_plain_table(rows)}</div></div>"""


def _notes(run: _Run) -> str:
    total = run.summary.total
    states = sorted({job.key.init_state_id for job in planned(run.header)})
    per_task = sorted({t.episodes for t in run.summary.tasks.values()})
    low, high = total.interval
    span = (
        f"{per_task[0]}" if len(per_task) == 1 else f"{per_task[0]} to {per_task[-1]}"
    ) + " per task"
    starts = (
        f"initial states {_ranges(states)} of the benchmark's evaluation set"
        if run.header.defines.get("starts", "evaluation") == "evaluation"
        else f"placements {_ranges(states)} drawn anew, not from the benchmark's evaluation set"
    )
    notes = [
        f"n = {total.episodes} episodes, {span}, from {starts}. Another selection gives another "
        "number.",
        "The interval is Wilson's, at 95 %: success rates for which a result like this one would "
        "not be unusual if initial states were drawn at random. It knows nothing of other training "
        "seeds, other checkpoints or a real robot.",
        f"It is {100 * (high - low):.0f} points wide here. Two policies whose intervals overlap "
        "are not shown to be equal, nor different: compare them on the same initial states.",
        "Episodes of one task resemble each other. The total is an average over these tasks, not "
        "over tasks in general; an interval per task rests on few episodes.",
        "A policy fault (the policy raised, or answered with an invalid chunk) counts as an "
        "episode without success. An episode whose simulator broke is played again and is never "
        "counted as a failure.",
    ]
    return '<h2 id="notes">How to read this</h2><ul class="notes">' + (
        "".join(f"<li>{escape(note)}</li>" for note in notes) + "</ul>"
    )


def _provenance(run: _Run) -> str:
    header = run.header
    commit = [("commit", header.commit)] if header.commit else []
    versions = [*header.versions.items(), *commit, ("python", header.host.get("python", ""))]
    configuration = escape(json.dumps(header.configuration, indent=2))
    return f"""<h2 id="provenance">What was run</h2><div class="two">
<div class="card"><h3>Decides the results</h3>{_plain_table(header.defines.items())}</div>
<div class="card"><h3>Versions</h3>{_plain_table(versions)}</div></div>
<details class="card"><summary>Resolved configuration</summary><pre>{configuration}</pre></details>
<footer>Made from <code>ledger.jsonl</code> and the files beside it; nothing here is loaded from
the network.</footer>"""


def _plain_table(rows: Iterable[tuple[str, Any]]) -> str:
    lines = "".join(
        f"<tr><td>{escape(str(name))}</td><td>{escape('-' if value is None else str(value))}</td></tr>"
        for name, value in rows
    )
    return f'<table class="plain">{lines}</table>'


def _policy_ms(rows: Sequence[EpisodeResult]) -> dict[str, list[float]]:
    """Return milliseconds by stage over every inference, the total last."""
    stages: dict[str, list[float]] = {}
    for row in rows:
        timings: list[Mapping[str, float]] = row.info.get("run", {}).get("policy_ms", [])
        for timing in timings:
            for stage, ms in timing.items():
                stages.setdefault(stage, []).append(float(ms))
    return dict(sorted(stages.items(), key=lambda item: item[0] == "total"))


def _steps_per_s(run: _Run) -> float | None:
    wall = sum(float(s["wall_s"]) for s in run.starts)
    steps = sum(float(s["control_steps"]) for s in run.starts)
    return steps / wall if wall else None


def _percentile(values: Sequence[float], q: float) -> float | None:
    return float(np.percentile(values, q)) if values else None


def _percent(share: float) -> str:
    """Return percent with a decimal unless it is 0 or 100."""
    return f"{100 * share:.0f}" if share in (0.0, 1.0) else f"{100 * share:.1f}"


def _steps(mean: float | None) -> str:
    return "-" if mean is None else f"{mean:.0f}"


def _ranges(numbers: Sequence[int]) -> str:
    """Write 0, 1, 2, 5 as "0-2, 5"."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(f"{p[0]}-{p[-1]}" if len(p) > 1 else str(p[0]) for p in parts)


def _commit(header: RunHeader) -> str:
    return f" &middot; commit <code>{escape(header.commit)}</code>" if header.commit else ""


def _jpeg(image: NDArray[np.uint8]) -> str:
    """Return an image as a data address; images below 256 px are doubled so they stay sharp."""
    from PIL import Image

    picture = Image.fromarray(image)
    factor = math.ceil(256 / max(picture.size))
    if factor > 1:
        size = (picture.width * factor, picture.height * factor)
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=84)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
