"""Collect demonstrations with the scripted expert, in the layout of the public LIBERO files.

python scripts/collect.py suite=libero_object collect.demos_per_task=50 data_dir=data/object
python scripts/collect.py collect.measure=20 collect.disturbed=0.0      # only count successes
python scripts/collect.py collect.measure=20 collect.trials=runs/expert.jsonl collect.start=dropped
python scripts/collect.py collect.checkpoint=runs/mine/policy data_dir=data/object-round2  # DAgger
"""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra_cli import run

from envs.collect import CollectSettings, TaskCount, collect, measure
from envs.expert.measure import STARTS, markdown
from vega_policy.spec import ContractError
from vega_policy.spec.intervals import wilson

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(config: dict[str, Any]) -> dict[str, Any]:
    """Collect what the configuration describes."""
    chosen = config["collect"]
    settings = CollectSettings(
        suite=config["suite"]["name"],
        data_dir=Path(config["data_dir"]),
        task_ids=_task_ids(chosen["tasks"]),
        demos_per_task=chosen["demos_per_task"],
        seed=chosen["seed"],
        camera_px=chosen["camera_px"],
        workers=(len(os.sched_getaffinity(0)) if chosen["workers"] is None else chosen["workers"]),
        disturbed=float(chosen["disturbed"]),
        look_every=chosen["look_every"],
        checkpoint=chosen["checkpoint"],
        max_learner_chunks=chosen["max_learner_chunks"],
    )
    if chosen["measure"] < 0:
        raise ContractError(f"collect.measure is {chosen['measure']}, expected 0 or more scenes")
    if chosen["measure"]:
        return _measure(settings, chosen)
    counts = collect(settings).counts
    print(table(counts), flush=True)
    return {
        "episodes": sum(c.attempts for c in counts),
        "successes": sum(c.successes for c in counts),
        "data_dir": str(settings.data_dir),
    }


def _measure(settings: CollectSettings, chosen: dict[str, Any]) -> dict[str, Any]:
    start = chosen["start"]
    if start not in STARTS:
        raise ContractError(f"collect.start is {start!r}, expected one of {', '.join(STARTS)}")
    if (start == "learner") != (settings.checkpoint is not None):
        raise ContractError(
            f"collect.start is {start!r} and collect.checkpoint {settings.checkpoint!r}; "
            "a learner drives with collect.start=learner and its checkpoint, else neither"
        )
    trials = None if chosen["trials"] is None else Path(chosen["trials"])
    scores = measure(settings, n=chosen["measure"], start=start, trials=trials)
    print(markdown(scores), flush=True)
    return {
        "episodes": sum(s.n for s in scores),
        "successes": sum(s.successes for s in scores),
        "data_dir": None,
        "tasks": [asdict(score) for score in scores],
    }


def _task_ids(value: object) -> tuple[int, ...]:
    """Read ``null`` (all), a number or a list of them."""
    if value is None:
        return ()
    given = value if isinstance(value, list) else [value]
    ids = tuple(i for i in given if isinstance(i, int) and not isinstance(i, bool))
    if not ids or len(ids) != len(given):
        raise ContractError(
            f"collect.tasks is {value!r}, expected null (all), a number or a list such as [0,3]"
        )
    return ids


def table(counts: Sequence[TaskCount]) -> str:
    """Format the expert's success per task."""
    lines = [f"{'task':<62} {'solved':>9}  {'95 % interval':<16} {'mean steps':>10}"]
    for count in counts:
        low, high = wilson(count.successes, count.attempts)
        solved = f"{count.successes}/{count.attempts}"
        interval = f"{100 * low:5.1f} - {100 * high:5.1f} %"
        lines.append(f"{count.name:<62} {solved:>9}  {interval:<16} {count.mean_steps:>10.1f}")
    return "\n".join(lines)


if __name__ == "__main__":
    run("collect", main)
