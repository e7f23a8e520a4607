"""Collect demonstrations of a suite in parallel, so that a kill loses at most what was in hand.

Each attempt ends as one small file of its own: the demonstration, or a note that the expert
failed. What is there is never made again; the task files are merged from the parts at the end.
"""

# ruff: noqa: ANN401

from __future__ import annotations

import json
import logging
import multiprocessing
import os
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from envs.expert import require_skills
from envs.expert.measure import TaskScore, demonstration_seed, read_trials, score
from envs.suites import Task, get_task, parse_problem, tasks
from vega_policy.data.progress import Progress
from vega_policy.spec import ContractError, EnvFault
from vega_policy.spec.files import write_atomic
from vega_policy.spec.processes import end_with_parent, worker_environment

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_log = logging.getLogger(__name__)
_MAX_RESTARTS = 5


@dataclass(frozen=True)
class CollectSettings:
    """What to collect."""

    suite: str
    data_dir: Path
    """Task files go to ``<data_dir>/<suite>/``, parts to ``<data_dir>/<suite>/parts/``."""
    task_ids: tuple[int, ...] = ()
    """Empty means all."""
    demos_per_task: int = 50
    seed: int = 0
    """Another seed draws other placements."""
    camera_px: int = 128
    workers: int = 2
    disturbed: float = 0.7
    """Share of the demonstrations in which the arm is pushed off its way."""
    look_every: int = 1
    """Images are drawn at one in so many steps: nearly all the time of a demonstration goes into them,
    and a policy that acts on single observations does not need them all."""
    checkpoint: str | None = None
    """A policy that drives first, so that the expert shows how to recover from its states."""
    max_learner_chunks: int = 12
    max_attempts_factor: float = 3.0
    """A task is given up after this many attempts per wanted demonstration."""


@dataclass(frozen=True)
class TaskCount:
    """How a task went."""

    task_id: int
    name: str
    attempts: int
    successes: int
    mean_steps: float


@dataclass(frozen=True)
class CollectResult:
    """What was collected."""

    counts: tuple[TaskCount, ...]
    files: tuple[Path, ...] = field(default=())


def collect(settings: CollectSettings) -> CollectResult:
    """Collect until every task has its demonstrations, then merge the task files.

    Raises:
        ContractError: Unknown suite or task, a number out of range, or the folder holds
            demonstrations made with other settings.
        EnvFault: Worker processes keep dying, or the attempts at some task are used up; the files
            of all tasks are written before that is said.
    """
    chosen = _check(settings)
    _remember_settings(settings)
    open_tasks = [t for t in chosen if len(_parts(settings, t)) < settings.demos_per_task]
    if open_tasks:
        _run_workers(settings, open_tasks, total=settings.demos_per_task * len(chosen))
    files = tuple(_merge(settings, task) for task in chosen if _parts(settings, task))
    if short := [t for t in chosen if len(_parts(settings, t)) < settings.demos_per_task]:
        raise EnvFault(
            f"{settings.suite}: {_limit(settings)} attempts at a task were not enough for "
            f"{settings.demos_per_task} demonstrations of each: "
            + "; ".join(f"{t.name} has {len(_parts(settings, t))}" for t in short)
            + ". What there is was written to the task files; ask for fewer, or choose another seed"
        )
    return CollectResult(counts=tuple(_count(settings, task) for task in chosen), files=files)


def _check(settings: CollectSettings) -> list[Task]:
    wrong = [
        f"collect.{name} is {value!r}, expected a whole number of at least {least}"
        for name, value, least in (
            ("demos_per_task", settings.demos_per_task, 1),
            ("workers", settings.workers, 1),
            ("camera_px", settings.camera_px, 16),
            ("look_every", settings.look_every, 1),
            ("max_learner_chunks", settings.max_learner_chunks, 0),
            ("seed", settings.seed, 0),
        )
        if not isinstance(value, int) or value < least
    ]
    if not 0.0 <= settings.disturbed <= 1.0:
        wrong.append(f"collect.disturbed is {settings.disturbed}, expected a share in [0, 1]")
    if settings.checkpoint is not None:
        wrong += _disagreements(settings, settings.checkpoint)
    if wrong:
        raise ContractError("; ".join(wrong))
    ids = settings.task_ids or tuple(range(len(tasks(settings.suite))))
    chosen = [get_task(settings.suite, i) for i in ids]
    for task in chosen:
        require_skills(parse_problem(task)["goal_state"])
    return chosen


def _disagreements(settings: CollectSettings, checkpoint: str) -> list[str]:
    from vega_policy.policy.pretrained import load_config, resolve

    wanted = load_config(resolve(checkpoint)).image_px
    if wanted == settings.camera_px:
        return []
    return [f"collect.camera_px is {settings.camera_px}, the checkpoint takes {wanted} px"]


def _folder(settings: CollectSettings) -> Path:
    return settings.data_dir / settings.suite


def _remember_settings(settings: CollectSettings) -> None:
    """Refuse to mix demonstrations that were made differently in one folder."""
    path = _folder(settings) / "parts" / "settings.json"
    defining = (
        *("suite", "seed", "camera_px", "disturbed", "look_every"),
        *("checkpoint", "max_learner_chunks"),
    )
    mine = {name: asdict(settings)[name] for name in defining}
    if not path.is_file():
        write_atomic(path, json.dumps(mine, indent=2))
        return
    theirs = json.loads(path.read_text())
    wrong = [
        # A folder of before a setting was remembered goes with any value of it.
        f"{k} is {mine[k]!r} now, was {theirs[k]!r}"
        for k in mine
        if mine[k] != theirs.get(k, mine[k])
    ]
    if wrong:
        raise ContractError(
            f"{path.parent} holds demonstrations made with other settings: {'; '.join(wrong)}; "
            "choose another data_dir, or the same settings to continue"
        )


def _part_folder(settings: CollectSettings, task: Task) -> Path:
    return _folder(settings) / "parts" / task.name


def _parts(settings: CollectSettings, task: Task) -> list[Path]:
    found = sorted(_part_folder(settings, task).glob("attempt_*.hdf5"))
    return found[: settings.demos_per_task]


def _run_workers(settings: CollectSettings, open_tasks: Sequence[Task], *, total: int) -> None:
    os.environ.update(worker_environment(os.environ))
    closed = total - settings.demos_per_task * len(open_tasks)
    have = closed + _count_parts(settings, open_tasks)
    left, restarts = list(open_tasks), 0
    with Progress(total, what="demonstrations", unit="demos", start=have) as progress:

        def tick() -> None:
            nonlocal have
            now = closed + _count_parts(settings, open_tasks)
            progress.update(now - have)
            have = now

        while left:
            try:
                _run_pool(settings, left, tick=tick)
                return
            except BrokenProcessPool as error:
                restarts += 1
                if restarts > _MAX_RESTARTS:
                    raise EnvFault(
                        f"simulator processes died {restarts} times, the last time with "
                        f"{len(left)} tasks open; what is done is kept, run the same command again"
                    ) from error
                _log.warning("a simulator process died; its attempt is made again")
                left = [t for t in left if len(_parts(settings, t)) < settings.demos_per_task]


def _run_pool(settings: CollectSettings, left: Sequence[Task], *, tick: Callable[[], None]) -> None:
    # One task per process: MuJoCo's textures and the GL context go with it.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(settings.workers, mp_context=context, max_tasks_per_child=1) as pool:
        running: set[Future[None]] = {
            pool.submit(collect_task, settings, task.task_id) for task in left
        }
        try:
            while running:
                done, running = wait(running, timeout=1.0, return_when=FIRST_COMPLETED)
                tick()
                for future in done:
                    future.result()
        except BaseException:
            # Otherwise leaving the block would first play every task that still waits. (The pool's
            # own cancelling breaks together with `max_tasks_per_child` and then never returns.)
            for future in running:
                future.cancel()
            raise


def _count_parts(settings: CollectSettings, some: Sequence[Task]) -> int:
    return sum(len(_parts(settings, task)) for task in some)


def collect_task(settings: CollectSettings, task_id: int) -> None:
    """Collect one task in this process, until its attempts are used up; what there is is kept."""
    from envs.expert.demonstrate import Disturbances, demonstrate
    from envs.libero import LiberoEnv
    from vega_policy.data.libero_hdf5 import write_demo

    _end_with_main_process()
    task = get_task(settings.suite, task_id)
    folder = _part_folder(settings, task)
    learner = _load_learner(settings.checkpoint, suite=settings.suite)
    env = LiberoEnv(suite=settings.suite, task_id=task_id, camera_px=settings.camera_px)
    for k in range(_limit(settings)):
        if len(_parts(settings, task)) >= settings.demos_per_task:
            break
        part, note = folder / f"attempt_{k:04d}.hdf5", folder / f"attempt_{k:04d}.json"
        if part.exists() or note.exists():
            continue
        try:
            attempt = demonstrate(
                env,
                seed=_seed(settings, task_id, k),
                disturbances=Disturbances(probability=settings.disturbed),
                learner=learner,
                max_learner_chunks=settings.max_learner_chunks,
                look_every=settings.look_every,
            )
        except EnvFault as error:
            # The same seed would break again; another scene takes its place.
            write_atomic(note, json.dumps({"outcome": "fault", "detail": str(error)}))
            continue
        if attempt.demo is None:
            write_atomic(note, json.dumps({"outcome": attempt.outcome, "steps": attempt.n_steps}))
        else:
            write_demo(part, attempt.demo)
    env.close()


def _limit(settings: CollectSettings) -> int:
    return int(settings.demos_per_task * settings.max_attempts_factor) + 5


def measure(
    settings: CollectSettings, *, n: int, start: str = "sampled", trials: Path | None = None
) -> list[TaskScore]:
    """Count how often the expert solves freshly sampled scenes; nothing is rendered.

    Args:
        settings: Suite, tasks, seed, disturbances and workers.
        n: Scenes per task.
        start: What happens before the expert's turn, one of `envs.expert.measure.STARTS`.
        trials: Keeps every scene's outcome; what is there is not played again. None: nothing is kept.
    """
    chosen = _check(settings)
    os.environ.update(worker_environment(os.environ))
    context = multiprocessing.get_context("spawn")
    with (
        TemporaryDirectory() as folder,
        Progress(len(chosen), what="expert", unit="tasks") as progress,
        ProcessPoolExecutor(settings.workers, mp_context=context, max_tasks_per_child=1) as pool,
    ):
        path = trials or Path(folder) / "trials.jsonl"
        read_trials(path)  # a wrong file is refused before anything runs
        for future in [
            pool.submit(measure_task, settings, t.task_id, n, start, path) for t in chosen
        ]:
            future.result()
            progress.update(1)
        wanted = {_key(settings, t.task_id, k, start) for t in chosen for k in range(n)}
        return score(trial for trial in read_trials(path) if trial.key in wanted)


def measure_task(settings: CollectSettings, task_id: int, n: int, start: str, trials: Path) -> None:
    """Measure one task in this process, adding to a file of trials."""
    from envs.expert.measure import append_trial, run_trials
    from envs.libero import LiberoEnv

    _end_with_main_process()
    known = {trial.key for trial in read_trials(trials)}
    ks = [k for k in range(n) if _key(settings, task_id, k, start) not in known]
    if not ks:
        return
    is_driven = start == "learner"
    env = LiberoEnv(
        suite=settings.suite, task_id=task_id, render=is_driven, camera_px=settings.camera_px
    )
    run_trials(
        env,
        ks=ks,
        seed=settings.seed,
        disturbed=settings.disturbed,
        start=start,
        learner=_load_learner(settings.checkpoint if is_driven else None, suite=settings.suite),
        max_learner_chunks=settings.max_learner_chunks,
        record=lambda trial: append_trial(trials, trial),
    )
    env.close()


def _key(
    settings: CollectSettings, task_id: int, k: int, start: str
) -> tuple[str, int, str, float, int]:
    return settings.suite, task_id, start, settings.disturbed, _seed(settings, task_id, k)


def _seed(settings: CollectSettings, task_id: int, k: int) -> int:
    return demonstration_seed(suite=settings.suite, task_id=task_id, k=k, seed=settings.seed)


def _end_with_main_process() -> None:
    """Leave at once when the parent is killed, instead of simulating on unseen."""
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid is not None:
        end_with_parent(parent.pid)


def _load_learner(checkpoint: str | None, *, suite: str) -> Any:
    if checkpoint is None:
        return None
    import torch

    from vega_policy.policy import from_pretrained
    from vega_policy.policy.pretrained import statistics_key

    torch.set_num_threads(1)
    policy = from_pretrained(checkpoint, unnorm_key=statistics_key(checkpoint, suite=suite))
    return lambda observation, key: policy.act([observation], keys=[key])[0].actions


def _merge(settings: CollectSettings, task: Task) -> Path:
    from vega_policy.data.libero_hdf5 import SUFFIX, TaskAttributes, merge_demos

    out = _folder(settings) / f"{task.name}{SUFFIX}"
    bddl = Path(task.bddl_file)
    attributes = TaskAttributes(
        instruction=task.instruction,
        problem_name=str(parse_problem(task)["problem_name"]),
        bddl_file_name=f"{bddl.parent.name}/{bddl.name}",
        extra={"starts_from_evaluation_states": False, "seed": settings.seed},
    )
    merge_demos(_parts(settings, task), out, task=attributes)
    return out


def _count(settings: CollectSettings, task: Task) -> TaskCount:
    import h5py

    from vega_policy.data.libero_hdf5 import ATTRIBUTES_KEY

    parts = _parts(settings, task)
    last = int(parts[-1].stem.split("_")[1]) if parts else -1
    notes = {
        int(note.stem.split("_")[1]): json.loads(note.read_text())["outcome"]
        for note in _part_folder(settings, task).glob("attempt_*.json")
    }
    failures = [k for k, outcome in notes.items() if outcome == "failure" and k <= last]
    steps = []
    for part in parts:
        with h5py.File(part) as file:
            attributes = file["data/demo_0"].attrs[ATTRIBUTES_KEY]
            steps.append(json.loads(str(attributes))["n_steps_to_success"])
    return TaskCount(
        task_id=task.task_id,
        name=task.name,
        attempts=len(parts) + len(failures),
        successes=len(parts),
        mean_steps=float(sum(steps) / max(len(steps), 1)),
    )
