"""What a collection of demonstrations is like: lengths, speed, successes, starts, leakage."""

# ruff: noqa: ANN401

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from envs.suites import Task, init_states, parse_problem, tasks
from vega_policy.spec import ContractError
from vega_policy.spec.intervals import wilson

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_RATE_HZ = 20.0
_ROBOT = 9
"""Seven arm joints and two fingers come first in a state, after the time."""
_LEAK_M = 1e-3
"""Nearer than this to an evaluation state, in every object, a start counts as leaked."""


@dataclass(frozen=True)
class Start:
    """Where an episode began."""

    joints: NDArray[np.float64]
    """(7,) radians."""
    objects: NDArray[np.float64]
    """(n, 2) horizontal positions of the movable objects, metres."""


@dataclass(frozen=True)
class Recorded:
    """What the report needs of one demonstration."""

    n_steps: int
    n_steps_to_success: int
    speed: NDArray[np.float64]
    """(t - 1,) of the end effector, metres per second."""
    expert_share: float
    """Of the steps, those the expert chose."""
    start: Start
    origin: str
    """``sampled``, an upset, or ``learner``."""
    stored_distance: float | None
    """To the nearest evaluation state as measured when it was recorded; None where not stored."""


@dataclass(frozen=True)
class TaskReport:
    """One task of a collection."""

    task_id: int
    name: str
    instruction: str
    objects: tuple[str, ...]
    demos: tuple[Recorded, ...]
    n_failures: int | None
    """Attempts that failed up to the last demonstration; None where only merged files are left."""
    evaluation: tuple[Start, ...]

    @property
    def numbers(self) -> dict[str, Any]:
        """The figures of the task; lengths in steps, distances in metres."""
        lengths = np.array([d.n_steps for d in self.demos])
        speeds = np.concatenate([d.speed for d in self.demos])
        starts = np.stack([d.start.objects for d in self.demos])
        joints = np.stack([d.start.joints for d in self.demos])
        attempts = None if self.n_failures is None else len(self.demos) + self.n_failures
        leak = [nearest(d.start, self.evaluation) for d in self.demos]
        stored = [d.stored_distance for d in self.demos if d.stored_distance is not None]
        origins: dict[str, int] = {}
        for demo in self.demos:
            origins[demo.origin] = origins.get(demo.origin, 0) + 1
        return {
            "task_id": self.task_id,
            "name": self.name,
            "demonstrations": len(self.demos),
            "attempts": attempts,
            "success_rate": None if attempts is None else len(self.demos) / attempts,
            "success_interval": None if attempts is None else wilson(len(self.demos), attempts),
            "length_min": int(lengths.min()),
            "length_median": float(np.median(lengths)),
            "length_max": int(lengths.max()),
            "steps_to_success_mean": float(np.mean([d.n_steps_to_success for d in self.demos])),
            "speed_median_m_s": float(np.median(speeds)),
            "speed_p95_m_s": float(np.percentile(speeds, 95)),
            "idle_share": float((speeds < 0.01).mean()),
            "expert_share": float(np.mean([d.expert_share for d in self.demos])),
            "origins": origins,
            "object_spread_m": {
                name: float(np.linalg.norm(starts[:, i].std(axis=0)))
                for i, name in enumerate(self.objects)
            },
            "evaluation_spread_m": {
                name: float(
                    np.linalg.norm(np.stack([e.objects[i] for e in self.evaluation]).std(axis=0))
                )
                for i, name in enumerate(self.objects)
            },
            "joint_spread_rad": float(joints.std(axis=0).mean()),
            "nearest_evaluation_m": float(min(leak)),
            "nearest_evaluation_stored": min(stored) if stored else None,
            "n_leaked": int(sum(distance < _LEAK_M for distance in leak)),
            "nearest_other_m": nearest_other([d.start for d in self.demos]),
        }


def nearest(start: Start, others: Sequence[Start]) -> float:
    """Return the least, over the others, of the largest distance of any object, metres.

    Heights and turns do not count: published states are stored before the objects have come to
    rest, recorded ones after.
    """
    return min(
        float(np.linalg.norm(start.objects - other.objects, axis=1).max()) for other in others
    )


def nearest_other(starts: Sequence[Start]) -> float | None:
    """Return how near the two most alike starts of a collection are; None for a single one."""
    pairs = [nearest(s, starts[i + 1 :]) for i, s in enumerate(starts[:-1])]
    return min(pairs) if pairs else None


def report_collection(data_dir: Path, suite: str) -> list[TaskReport]:
    """Read what there is of a suite: merged task files, else the parts a collection is made of.

    Args:
        data_dir: As given to ``scripts/collect.py``; only read.
        suite: Its name; the folder ``<data_dir>/<suite>`` holds the demonstrations.

    Raises:
        ContractError: There are none, or a file is something else.
    """
    found: list[TaskReport] = []
    for task in tasks(suite):
        files, n_failures = _files(data_dir / suite, task)
        if files:
            found.append(_report_task(task, files, n_failures))
    if not found:
        raise ContractError(
            f"no demonstrations of {suite} in {data_dir / suite}, expected <task>_demo.hdf5 files "
            "or parts/<task>/attempt_*.hdf5; set data_dir and suite, or run scripts/collect.py"
        )
    return found


def _files(folder: Path, task: Task) -> tuple[list[Path], int | None]:
    from vega_policy.data.libero_hdf5 import SUFFIX

    parts = sorted((folder / "parts" / task.name).glob("attempt_*.hdf5"))
    if not parts:
        merged = folder / f"{task.name}{SUFFIX}"
        return ([merged] if merged.is_file() else []), None
    last = _number(parts[-1])
    notes = [p for p in (folder / "parts" / task.name).glob("attempt_*.json") if _number(p) <= last]
    return parts, sum(_is_failure(note) for note in notes)


def _number(path: Path) -> int:
    return int(path.name.split(".")[0].split("_")[1])


def _is_failure(note: Path) -> bool:
    outcome = json.loads(note.read_text()).get("outcome")
    return outcome == "failure" or note.name.endswith(".failed.json")


def _report_task(task: Task, files: Sequence[Path], n_failures: int | None) -> TaskReport:
    from vega_policy.data.libero_hdf5 import list_demos

    objects = tuple(n for names in parse_problem(task)["objects"].values() for n in names)
    states = init_states(task.suite, task.task_id)
    return TaskReport(
        task_id=task.task_id,
        name=task.name,
        instruction=task.instruction,
        objects=objects,
        demos=tuple(_read(ref, n_objects=len(objects)) for ref in list_demos(files)),
        n_failures=n_failures,
        evaluation=tuple(read_start(state, n_objects=len(objects)) for state in states),
    )


def read_start(state: NDArray[Any], *, n_objects: int) -> Start:
    """Take arm and objects out of a flattened simulator state (time, positions, velocities).

    LIBERO puts the movable objects directly behind the robot, seven numbers each.

    Raises:
        ContractError: There are no unit quaternions where they should be.
    """
    poses = np.asarray(state[1 + _ROBOT : 1 + _ROBOT + 7 * n_objects], dtype=np.float64)
    lengths = np.linalg.norm(poses.reshape(-1, 7)[:, 3:], axis=1) if len(poses) else np.zeros(0)
    if len(poses) != 7 * n_objects or np.abs(lengths - 1.0).max(initial=0.0) > 1e-2:
        raise ContractError(
            f"a state of {len(state)} numbers does not hold the poses of {n_objects} objects behind "
            "the robot; the file belongs to another task or was made with another robot"
        )
    return Start(joints=np.array(state[1:8]), objects=poses.reshape(-1, 7)[:, :2])


def _read(ref: Any, *, n_objects: int) -> Recorded:
    from vega_policy.data.libero_hdf5 import ATTRIBUTES_KEY, open_demo, read_low_dimensional

    with open_demo(ref) as group:
        low = read_low_dimensional(group)
        attributes = json.loads(str(group.attrs.get(ATTRIBUTES_KEY, "{}")))
        if "states" not in group:
            raise ContractError(
                f"{ref.file}, {ref.name}, holds no simulator states, so its start is unknown; the "
                "report is for demonstrations of scripts/collect.py or the published files"
            )
        states: Any = group["states"]
        first = np.asarray(states[0], dtype=np.float64)
    place = low["proprio"][:, :3].astype(np.float64)
    speed = np.linalg.norm(np.diff(place, axis=0), axis=1) * _RATE_HZ
    return Recorded(
        n_steps=len(low["actions"]),
        n_steps_to_success=int(attributes.get("n_steps_to_success", len(low["actions"]))),
        speed=speed,
        expert_share=float(low["expert_mask"].mean()),
        start=read_start(first, n_objects=n_objects),
        origin=str(attributes.get("start", "unknown")),
        stored_distance=attributes.get("evaluation_distance"),
    )
