"""Which episodes a run consists of, and the random key of every inference in them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from vega_policy.spec import ActionSpec, ContractError, EpisodeKey
from vega_policy.spec.names import nearest

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


@dataclass(frozen=True, kw_only=True)
class TaskInfo:
    """One task of a suite, known without building a simulator."""

    task_id: int
    name: str
    n_init_states: int
    """How many evaluation initial states the benchmark publishes."""


@dataclass(frozen=True, kw_only=True)
class SuiteInfo:
    """A suite as the script hands it over: the package itself imports no simulator."""

    name: str
    tasks: tuple[TaskInfo, ...]
    action_spec: ActionSpec
    """What the simulator takes the policy's numbers for."""

    def task(self, task_id: int) -> TaskInfo:
        """Return the task of that number."""
        return next(task for task in self.tasks if task.task_id == task_id)


Starts = Literal["evaluation", "sampled"]

SAMPLED_START = "sampled_start"
"""Perturbation of an episode that starts from a placement drawn anew."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be run: every chosen task from every chosen initial state."""

    suite: str
    task_ids: tuple[int, ...]
    init_state_ids: tuple[int, ...]
    seed: int = 0
    starts: Starts = "evaluation"

    def keys(self) -> list[EpisodeKey]:
        """Return the episodes, task by task."""
        return [
            EpisodeKey(
                suite=self.suite,
                task_id=t,
                init_state_id=i,
                perturbation="none" if self.starts == "evaluation" else SAMPLED_START,
                seed=self.seed,
            )
            for t in self.task_ids
            for i in self.init_state_ids
        ]

    def remaining(self, done: Iterable[EpisodeKey]) -> list[EpisodeKey]:
        """Return the episodes that are not done yet: resuming is a set difference."""
        finished = set(done)
        return [key for key in self.keys() if key not in finished]


def choose(
    suite: SuiteInfo,
    *,
    tasks: str | int | Sequence[int],
    init_states: int | Sequence[int],
    seed: int = 0,
    starts: Starts = "evaluation",
) -> Plan:
    """Turn what the user asked for into a plan.

    Args:
        suite: The tasks that exist.
        tasks: ``"all"``, one task number or a list of them.
        init_states: How many initial states, counted from the first, or a list of their numbers.
        seed: Seed of the environment; 0 is the official protocol.
        starts: ``evaluation`` plays from the benchmark's initial states, ``sampled`` from
            placements drawn anew, for choosing a checkpoint without looking at the former.

    Raises:
        ContractError: Something does not exist; every problem is listed.
    """
    problems: list[str] = []
    known = [task.task_id for task in suite.tasks]
    task_ids = _numbers(tasks, everything=known, what="rollout.tasks", problems=problems)
    unknown = [t for t in task_ids if t not in known]
    if unknown:
        problems.append(
            f"suite {suite.name} has tasks {known[0]} to {known[-1]}, not "
            f"{', '.join(map(str, unknown))}; choose rollout.tasks among them or write all"
        )
    chosen = [suite.task(t) for t in task_ids if t in known]
    states = _init_states(init_states, problems)
    if starts not in get_args(Starts):
        problems.append(f"unknown rollout.starts {starts!r}; {nearest(starts, get_args(Starts))}")
    for task in chosen if starts == "evaluation" else []:
        beyond = [i for i in states if not 0 <= i < task.n_init_states]
        if beyond:
            problems.append(
                f"task {task.task_id} of suite {suite.name} has {task.n_init_states} initial "
                f"states (0 to {task.n_init_states - 1}), rollout.init_states asks for "
                f"{', '.join(map(str, beyond[:5]))}{' ...' if len(beyond) > 5 else ''}; "
                f"use at most rollout.init_states={task.n_init_states}"
            )
            break
    if seed < 0:
        problems.append(f"rollout.seed is {seed}; use 0 or a positive number")
    if problems:
        raise ContractError("; ".join(problems))
    return Plan(
        suite=suite.name, task_ids=task_ids, init_state_ids=states, seed=seed, starts=starts
    )


def inference_key(key: EpisodeKey, chunk_index: int) -> int:
    """Return the 63-bit key of one inference: a function of the episode and of its place in it."""
    text = f"{key.digest()}:{chunk_index}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def _init_states(value: object, problems: list[str]) -> tuple[int, ...]:
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 1:
            problems.append(f"rollout.init_states is {value}; ask for at least 1")
        return tuple(range(value))
    return _numbers(value, everything=None, what="rollout.init_states", problems=problems)


def _numbers(
    value: object, *, everything: Sequence[int] | None, what: str, problems: list[str]
) -> tuple[int, ...]:
    if everything is not None and value == "all":
        return tuple(everything)
    items: list[object] = list(value) if isinstance(value, list | tuple) else [value]  # pyright: ignore[reportUnknownArgumentType]
    if not items or not all(isinstance(i, int) and not isinstance(i, bool) for i in items):
        hint = "all, a number" if everything is not None else "a number"
        problems.append(f"{what} is {value!r}; write {hint} or a list of numbers like [0,3]")
        return ()
    return tuple(sorted({i for i in items if isinstance(i, int)}))
