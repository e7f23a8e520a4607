"""Which episodes a run consists of, and the random key of every inference in them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from vega_policy.spec import FULL_ARM, ActionSpec, ContractError, EpisodeKey
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
    perturbations: tuple[str, ...] = ("none",)
    """What the simulator can change."""
    arms: tuple[str, ...] = (FULL_ARM,)
    """The variants of the policy there are."""

    def task(self, task_id: int) -> TaskInfo:
        """Return the task of that number."""
        return next(task for task in self.tasks if task.task_id == task_id)


Starts = Literal["evaluation", "sampled"]

SAMPLED_START = "sampled_start"
"""Perturbation of an episode that starts from a placement drawn anew."""


CLEAN = "none"
"""Perturbation of an episode as the benchmark defines it."""


@dataclass(frozen=True, order=True)
class Job:
    """One row to come: an episode, and which variant of the policy plays it."""

    key: EpisodeKey
    arm: str = FULL_ARM

    @property
    def name(self) -> str:
        """As `EpisodeResult.name`."""
        return self.key.name() if self.arm == FULL_ARM else f"{self.key.name()}@{self.arm}"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be run: the product of everything below."""

    suite: str
    tasks: Mapping[int, str]
    """Number to name of every chosen task."""
    init_state_ids: tuple[int, ...]
    perturbations: tuple[str, ...] = (CLEAN,)
    repetitions: int = 1
    arms: tuple[str, ...] = (FULL_ARM,)
    seed: int = 0
    starts: Starts = "evaluation"
    shard: tuple[int, int] = (0, 1)
    """Which part of the work, counted from 0, of how many."""

    @property
    def task_ids(self) -> tuple[int, ...]:
        """The chosen tasks, in order."""
        return tuple(self.tasks)

    def jobs(self) -> list[Job]:
        """Return the rows to come, task by task; arms of one episode follow each other.

        Parts are dealt by task, initial state and repetition, so that what is compared in pairs,
        perturbations and arms, is played on one machine.
        """
        part, n_parts = self.shard
        starts = [
            (t, r, i)
            for t in self.task_ids
            for r in range(self.repetitions)
            for i in self.init_state_ids
        ]
        mine = set(starts[part::n_parts])
        return [
            Job(
                EpisodeKey(
                    suite=self.suite,
                    task_id=t,
                    init_state_id=i,
                    perturbation=p if self.starts == "evaluation" else SAMPLED_START,
                    seed=self.seed,
                    repetition=r,
                ),
                arm,
            )
            for t in self.task_ids
            for p in self.perturbations
            for r in range(self.repetitions)
            for i in self.init_state_ids
            if (t, r, i) in mine
            for arm in self.arms
        ]

    def remaining(self, done: Iterable[Job]) -> list[Job]:
        """Return the rows that are not there yet: resuming is a set difference."""
        finished = set(done)
        return [job for job in self.jobs() if job not in finished]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {**asdict(self), "tasks": {str(t): name for t, name in self.tasks.items()}}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Plan:
        """Read a plan back; unknown fields of a newer version are ignored."""
        known = {k: v for k, v in values.items() if k in cls.__dataclass_fields__}
        for name in ("init_state_ids", "perturbations", "arms", "shard"):
            known[name] = tuple(known.get(name, (0, 1)))
        known["tasks"] = {int(t): str(name) for t, name in known["tasks"].items()}
        return cls(**known)


def choose(
    suite: SuiteInfo,
    *,
    tasks: str | int | Sequence[int],
    init_states: int | Sequence[int],
    perturbations: Sequence[str] = (CLEAN,),
    repetitions: int = 1,
    arms: Sequence[str] = (FULL_ARM,),
    seed: int = 0,
    starts: Starts = "evaluation",
    shard: str | None = None,
) -> Plan:
    """Turn what the user asked for into a plan.

    Args:
        suite: The tasks that exist.
        tasks: ``"all"``, one task number or a list of them.
        init_states: How many initial states, counted from the first, or a list of their numbers.
        perturbations: What the simulator changes; every episode is played once with each.
        repetitions: How often each is played; they differ in the policy's random draws.
        arms: Variants of the policy; every episode is played by each.
        seed: Seed of the environment; 0 is the official protocol.
        starts: ``evaluation`` plays from the benchmark's initial states, ``sampled`` from
            placements drawn anew, for choosing a checkpoint without looking at the former.
        shard: ``"0/4"`` is the first of four parts, None is everything.

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
    for what, values, valid in (
        ("rollout.perturbations", perturbations, suite.perturbations),
        ("rollout.arms", arms, suite.arms),
    ):
        problems += [
            f"unknown name {value!r} in {what}; {nearest(str(value), valid)}"
            for value in values
            if value not in valid
        ]
        if not values or len(set(values)) < len(values):
            problems.append(f"{what} is {list(values)}; name each once, and at least one")
    if starts == "sampled" and tuple(perturbations) != (CLEAN,):
        problems.append(
            "rollout.starts=sampled and rollout.perturbations go together nowhere yet; "
            "perturb the evaluation states, or leave rollout.perturbations out"
        )
    if repetitions < 1:
        problems.append(f"rollout.repetitions is {repetitions}; use at least 1")
    if not 0 <= seed < 2**32:
        problems.append(f"rollout.seed is {seed}; use 0 to {2**32 - 1}, what NumPy takes")
    part, n_parts = _shard(shard, problems)
    if problems:
        raise ContractError("; ".join(problems))
    return Plan(
        suite=suite.name,
        tasks={task.task_id: task.name for task in chosen},
        init_state_ids=states,
        perturbations=tuple(perturbations),
        repetitions=repetitions,
        arms=tuple(arms),
        seed=seed,
        starts=starts,
        shard=(part, n_parts),
    )


def inference_key(key: EpisodeKey, chunk_index: int) -> int:
    """Return the 63-bit key of one inference: a function of the episode and of its place in it."""
    text = f"{key.digest()}:{chunk_index}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def _shard(value: str | None, problems: list[str]) -> tuple[int, int]:
    part, _, n_parts = ("0", "/", "1") if value is None else str(value).partition("/")
    if part.isdecimal() and n_parts.isdecimal() and int(part) < int(n_parts):
        return int(part), int(n_parts)
    problems.append(f"rollout.shard is {value!r}; write 0/4 for the first of four parts, up to 3/4")
    return 0, 1


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
