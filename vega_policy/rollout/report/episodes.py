"""A video per episode, failures first, with filters."""

from __future__ import annotations

import base64
from html import escape
from typing import TYPE_CHECKING

from vega_policy.rollout.plan import CLEAN, SAMPLED_START
from vega_policy.rollout.report.markup import (
    OUTCOMES,
    arm_words,
    group_words,
    jpeg,
    perturbation_words,
    start_words,
)
from vega_policy.rollout.statistics import group_of, tally
from vega_policy.rollout.video import CHUNK_FPS, first_frame
from vega_policy.spec import FULL_ARM

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vega_policy.rollout.report.reading import Run
    from vega_policy.spec import EpisodeResult

MAX_EMBEDDED = 60
"""Videos inside the file; further ones are linked."""
MAX_EMBEDDED_BYTES = 40_000_000


def section(run: Run) -> str:
    """Write filters and the videos by task."""
    if not any(r.info.get("video") for r in run.rows):
        return ""
    embedded = _choose_embedded(run)
    groups = "".join(_task(run, t, embedded) for t in run.summary.tasks)
    every = run.header.configuration.get("rollout", {}).get("video") == "all"
    speed = (
        "Every control step is shown, in real time."
        if every
        else f"A frame is what the policy saw at one inference; {CHUNK_FPS} frames a second are "
        "about twice real time."
    )
    n_linked = sum(r.name not in embedded for r in run.rows if r.info.get("video"))
    linked = (
        f" {n_linked} further videos are linked and play while this file stays in its folder."
        if n_linked
        else ""
    )
    present = {r.outcome for r in run.rows}
    filters = "".join(
        (
            _filter(
                "outcome", {kind: label for kind, label in OUTCOMES.items() if kind in present}
            ),
            _filter("arm", {arm: arm_words(arm) for arm in run.arms}),
            _filter("perturbation", {p: perturbation_words(p) for p in run.perturbations}),
        )
    )
    return f"""<h2 id="episodes">Episodes</h2>
<p class="soft">Third-person camera on the left, wrist camera on the right, gate maps below. {speed}
Failures come first. Point at a video to play it; click or focus it for controls.{linked}</p>
{filters}<p class="small soft" id="shown" aria-live="polite"></p>{groups}"""


def _filter(field: str, choices: Mapping[str, str]) -> str:
    """Write the buttons of one property; none where there is nothing to choose."""
    if len(choices) < 2:
        return ""
    buttons = "".join(
        f'<button data-is="{escape(value)}" aria-pressed="{"false" if value else "true"}">'
        f"{escape(label)}</button>"
        for value, label in {"": "all", **choices}.items()
    )
    return (
        f'<div class="filters" data-filter="{field}" role="group" aria-label="Filter by {field}">'
        f"<span>{field}</span>{buttons}</div>"
    )


def _choose_embedded(run: Run) -> set[str]:
    """Choose the videos that go into the file.

    Failures first, those of the headline before others, then evenly over the tasks.
    """
    rank: dict[str, int] = {}
    for rows in run.groups.values():
        for task_id in run.names:
            mine = [r for r in rows if r.key.task_id == task_id]
            rank |= {r.name: i for i, r in enumerate(mine)}
    order = sorted(
        (r for r in run.rows if (run.path / str(r.info.get("video"))).is_file()),
        key=lambda r: (r.outcome == "success", group_of(r) != run.main, rank[r.name], r.key, r.arm),
    )
    chosen: set[str] = set()
    size = 0
    for row in order[:MAX_EMBEDDED]:
        size += (run.path / str(row.info["video"])).stat().st_size
        if size > MAX_EMBEDDED_BYTES:
            break
        chosen.add(row.name)
    return chosen


def _task(run: Run, task_id: int, embedded: set[str]) -> str:
    rows = [
        row
        for group in run.groups.values()
        for row in group
        if row.key.task_id == task_id and row.info.get("video")
    ]
    rows.sort(key=lambda r: r.outcome == "success")
    counted = tally([r for r in run.main_rows if r.key.task_id == task_id])
    clips = "".join(_clip(run, r) for r in rows if r.name in embedded)
    links = " ".join(
        f'<a id="{escape(r.name)}" {_data(r)} href="{escape(str(r.info["video"]))}">'
        f"{escape(', '.join([start_words(r), *_tags(r)]))} ({OUTCOMES[r.outcome]})</a>"
        for r in rows
        if r.name not in embedded
    )
    more = f'<p class="more">{links}</p>' if links else ""
    if not rows:
        return ""
    which = f" {escape(group_words(run.main))}" if len(run.groups) > 1 else ""
    return (
        f'<div class="group"><h3>{escape(run.names[task_id])}'
        f"<span>{counted.successes} of {counted.episodes}{which}</span></h3>"
        f'<div class="clips">{clips}</div>{more}</div>'
    )


def _clip(run: Run, row: EpisodeResult) -> str:
    path = run.path / str(row.info["video"])
    poster = first_frame(path)
    poster_uri = "" if poster is None else f' poster="{jpeg(poster)}"'
    source = "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode()
    detail = f'<div class="detail">{escape(row.detail)}</div>' if row.detail else ""
    tags = "".join(f"<i>{escape(tag)}</i>" for tag in _tags(row))
    label = escape(f"{', '.join([start_words(row), *_tags(row)])}: {OUTCOMES[row.outcome]}")
    told = (
        f'<div class="told">{escape(row.instruction)}</div>'
        if row.instruction and row.instruction != run.names[row.key.task_id]
        else ""
    )
    return f"""<div class="card clip" id="{escape(row.name)}" {_data(row)}>
<video controls muted loop playsinline preload="none" aria-label="{label}"{poster_uri}
src="{source}"></video><div class="line"><span class="badge {row.outcome}">{OUTCOMES[row.outcome]}</span>
<span>{start_words(row)}</span><span>{row.n_steps} steps</span></div>
{f'<div class="tags">{tags}</div>' if tags else ""}{told}{detail}</div>"""


def _data(row: EpisodeResult) -> str:
    """Return what the filters go by."""
    return (
        f'data-outcome="{row.outcome}" data-arm="{escape(row.arm)}" '
        f'data-perturbation="{escape(row.key.perturbation)}"'
    )


def _tags(row: EpisodeResult) -> list[str]:
    """Say in which way an episode is not a clean one of the full arm."""
    change = row.key.perturbation
    return [
        *([perturbation_words(change)] if change not in (CLEAN, SAMPLED_START) else []),
        *([arm_words(row.arm)] if row.arm != FULL_ARM else []),
    ]
