"""How often the expert reaches the goal, scene by scene, in a file that a later run continues."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from envs.expert.demonstrate import Disturbances, Learner, demonstrate
from envs.expert.upsets import UPSETS
from vega_policy.spec import ContractError, EnvFault
from vega_policy.spec.episode import EpisodeKey
from vega_policy.spec.intervals import wilson

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from envs.libero import LiberoEnv

STARTS = ("sampled", *UPSETS, "learner")
"""``sampled``: a freshly drawn scene. Otherwise what happened before the expert's turn."""


@dataclass(frozen=True)
class Trial:
    """One scene given to the expert."""

    suite: str
    task_id: int
    name: str
    k: int
    seed: int
    start: str
    """One of `STARTS`."""
    disturbed: float
    """Chance that the arm was pushed."""
    outcome: str
    """``success``, ``failure`` (not within the step limit), ``learner`` (nothing left to do) or
    ``fault`` (the physics became unstable)."""
    n_steps: int

    @property
    def key(self) -> tuple[str, int, str, float, int]:
        """What tells it from all others."""
        return self.suite, self.task_id, self.start, self.disturbed, self.seed


@dataclass(frozen=True)
class TaskScore:
    """The trials of one task under one condition."""

    suite: str
    task_id: int
    name: str
    start: str
    disturbed: float
    n: int
    successes: int
    interval: tuple[float, float]
    """Wilson, 95 %."""
    mean_steps: float | None
    """Of the successes."""
    failed_seeds: tuple[int, ...]


def demonstration_seed(*, suite: str, task_id: int, k: int, seed: int) -> int:
    """Return what decides the ``k``-th scene of a task; the same for collecting and measuring."""
    key = EpisodeKey(suite, task_id, k, perturbation="demo", seed=seed)
    return key.digest() % 2**31


def run_trials(
    env: LiberoEnv,
    *,
    ks: Iterable[int],
    seed: int = 0,
    disturbed: float = 0.0,
    start: str = "sampled",
    learner: Learner | None = None,
    max_learner_chunks: int = 0,
    record: Callable[[Trial], None],
) -> None:
    """Give scenes of one task to the expert.

    Args:
        env: An environment of the task; it need not render, unless a learner drives.
        ks: Numbers of the scenes.
        seed: Decides the scenes, with their numbers.
        disturbed: Chance that the arm is pushed.
        start: One of `STARTS`.
        learner: The policy behind ``start="learner"``.
        max_learner_chunks: Largest number of chunks it drives.
        record: Takes each trial when it is over.
    """
    task = env.task
    for k in ks:
        scene = demonstration_seed(suite=task.suite, task_id=task.task_id, k=k, seed=seed)
        try:
            attempt = demonstrate(
                env,
                seed=scene,
                disturbances=Disturbances(probability=disturbed),
                learner=learner,
                max_learner_chunks=max_learner_chunks,
                first=next((kind for kind in UPSETS if kind == start), None),
            )
            outcome, n_steps = attempt.outcome, attempt.n_steps
        except EnvFault:
            outcome, n_steps = "fault", 0
        record(
            Trial(
                suite=task.suite,
                task_id=task.task_id,
                name=task.name,
                k=k,
                seed=scene,
                start=start,
                disturbed=disturbed,
                outcome=outcome,
                n_steps=n_steps,
            )
        )


def append_trial(path: Path, trial: Trial) -> None:
    """Add one line; several processes may write to the same file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file:
        file.write((json.dumps(asdict(trial)) + "\n").encode())


def read_trials(path: Path) -> list[Trial]:
    """Read what was measured so far; a line that a kill cut short is left out.

    Raises:
        ContractError: The file is something else.
    """
    if not path.is_file():
        return []
    lines = path.read_text().split("\n")
    trials, wrong = [], []
    for i, line in enumerate(lines[:-1]):
        try:
            trials.append(Trial(**json.loads(line)))
        except (TypeError, ValueError):
            wrong.append(i + 1)
    if wrong:
        raise ContractError(
            f"{path}, line {wrong[0]}, is no trial of the expert; name another file, or remove it"
        )
    return trials


def score(trials: Iterable[Trial]) -> list[TaskScore]:
    """Count trials per task and condition; a repeated trial counts once, faults do not count."""
    groups: dict[tuple[str, str, float, int], list[Trial]] = {}
    for trial in {t.key: t for t in trials}.values():
        if trial.outcome in ("success", "failure"):
            condition = trial.suite, trial.start, trial.disturbed, trial.task_id
            groups.setdefault(condition, []).append(trial)
    scores = []
    for (suite, start, disturbed, task_id), group in sorted(groups.items()):
        steps = [t.n_steps for t in group if t.outcome == "success"]
        scores.append(
            TaskScore(
                suite=suite,
                task_id=task_id,
                name=group[0].name,
                start=start,
                disturbed=disturbed,
                n=len(group),
                successes=len(steps),
                interval=wilson(len(steps), len(group)),
                mean_steps=sum(steps) / len(steps) if steps else None,
                failed_seeds=tuple(t.seed for t in group if t.outcome == "failure"),
            )
        )
    return scores


def markdown(scores: Sequence[TaskScore]) -> str:
    """Format scores as a table, a row for each task and condition."""
    lines = [
        "| suite | task | start | pushed | solved | 95 % interval | mean steps |",
        "|---|---|---|---|---|---|---|",
    ]
    for s in scores:
        low, high = s.interval
        steps = "-" if s.mean_steps is None else f"{s.mean_steps:.0f}"
        lines.append(
            f"| {s.suite} | {s.task_id} {s.name} | {s.start} | {100 * s.disturbed:.0f} % "
            f"| {s.successes}/{s.n} | {100 * low:.0f} - {100 * high:.0f} % | {steps} |"
        )
    return "\n".join(lines)
