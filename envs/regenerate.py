"""Regenerate published LIBERO demonstrations in parallel, so that a kill loses at most what was in hand.

Each demonstration ends as one small file of its own below ``.<name>.parts``, or as a note that its
replay failed; the task files are merged at the end.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import shutil
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from envs.suites import Task, get_task, parse_problem, tasks
from vega_policy.data.libero_hdf5 import (
    SUFFIX,
    DemoRef,
    TaskAttributes,
    list_demos,
    merge_demos,
    open_demo,
    task_files,
    write_demo,
)
from vega_policy.data.progress import Progress
from vega_policy.data.regenerate import Look, replay
from vega_policy.spec import ContractError, EnvFault
from vega_policy.spec.files import write_atomic
from vega_policy.spec.names import require_name
from vega_policy.spec.processes import end_with_parent, worker_environment

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from envs.libero import LiberoEnv

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RegenerateSettings:
    """What to replay."""

    source: Path
    """Folder with the published task files of one suite."""
    to: Path
    """Folder of the new task files; must not exist."""
    suite: str
    camera_px: int = 256
    workers: int = 1
    skip_damaged: bool = False


@dataclass(frozen=True)
class Regenerated:
    """What came of it."""

    episodes: int
    frames: int
    skipped: tuple[str, ...] = field(default=())
    """Replays that failed, and demonstrations that could not be read."""


def regenerate(settings: RegenerateSettings) -> Regenerated:
    """Replay every demonstration of a folder and write the task files.

    Raises:
        ContractError: The suite or a file is unknown or damaged, or the target exists.
        EnvFault: No replay of a task succeeded.
    """
    if settings.to.exists():
        raise ContractError(f"{settings.to} is there already; choose another folder, or delete it")
    found = _match(settings)
    parts = _parts(settings)
    _remember(settings)
    os.environ.update(worker_environment(os.environ))
    context = multiprocessing.get_context("spawn")
    # One task per process: MuJoCo's textures and the GL context go with it.
    with (
        Progress(len(found), what="regenerating", unit="tasks") as progress,
        ProcessPoolExecutor(settings.workers, mp_context=context, max_tasks_per_child=1) as pool,
    ):
        jobs = [pool.submit(regenerate_task, settings, task, file) for task, file in found]
        try:
            for job in as_completed(jobs):
                job.result()
                progress.update(1)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    result = _merge(settings, [task for task, _ in found])
    shutil.rmtree(parts)
    return result


def regenerate_task(settings: RegenerateSettings, task: Task, file: Path) -> None:
    """Replay the demonstrations of one file in this process; what earlier runs left is kept."""
    from envs.libero import LiberoEnv

    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid is not None:
        end_with_parent(parent.pid)
    folder = _parts(settings) / task.name
    env = None
    for index, ref in enumerate(list_demos([file])):
        part, note = folder / f"demo_{index:04d}.hdf5", folder / f"demo_{index:04d}.json"
        if part.exists() or note.exists():
            continue
        if env is None:
            env = LiberoEnv(
                suite=settings.suite, task_id=task.task_id, camera_px=settings.camera_px
            )
        _regenerate_one(settings, ref, index=index, env=env, part=part, note=note)
    if env is not None:
        env.close()


def _regenerate_one(
    settings: RegenerateSettings,
    ref: DemoRef,
    *,
    index: int,
    env: LiberoEnv,
    part: Path,
    note: Path,
) -> None:
    where = f"{ref.file} {ref.name}"
    try:
        actions, first_state = _read(ref)
        demo = replay(
            LiberoReplayer(env),
            actions=actions,
            first_state=first_state,
            index=index,
            instruction=env.task.instruction,
            attributes={"file": ref.file.name, "demonstration": ref.name},
        )
    except EnvFault as error:
        write_atomic(note, json.dumps(f"{where}: {error}"))
    except ContractError as error:
        if not settings.skip_damaged:
            raise
        write_atomic(note, json.dumps(str(error)))
    else:
        if demo is None:
            write_atomic(note, json.dumps(f"{where}: its replay does not reach the goal"))
        else:
            write_demo(part, demo)


class LiberoReplayer:
    """A LIBERO simulation as `vega_policy.data.regenerate.Replayer`."""

    def __init__(self, env: LiberoEnv) -> None:
        self._simulation = env.simulation
        self._px = env.camera_px

    def begin(self, state: NDArray[np.float64], *, index: int) -> None:
        """Reset as upstream: seed 0 once, one reset a demonstration."""
        self._simulation.seed(0)
        self._simulation.reset(index=index)
        self._simulation.set_state(state)

    def look(self) -> Look:
        """Render both cameras and read the sensors."""
        sample = self._simulation.sample
        return Look(
            agentview=self._simulation.image("agentview", self._px),
            wrist=self._simulation.image("wrist", self._px),
            ee_state=sample.ee_state,
            gripper_state=sample.gripper,
            joint_state=sample.joints,
            robot_state=np.concatenate(
                [sample.gripper, sample.eef_position, sample.eef_quaternion]
            ),
            state=self._simulation.state(),
        )

    def step(self, action: NDArray[np.float64]) -> bool:
        """Apply one action."""
        return self._simulation.step(action)


def _read(ref: DemoRef) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    try:
        with open_demo(ref) as group:
            actions = np.asarray(group["actions"], dtype=np.float64)
            first_state = np.asarray(group["states"][0], dtype=np.float64)  # pyright: ignore[reportIndexIssue]
    except (OSError, RuntimeError, ValueError, KeyError, IndexError) as error:
        raise ContractError(
            f"{ref.file} {ref.name} cannot be replayed: {error}; a replay needs actions and states; "
            "download the file again, or skip it with skip_damaged=true"
        ) from error
    return actions, first_state


def _match(settings: RegenerateSettings) -> list[tuple[Task, Path]]:
    """Find the task of each file by its name."""
    known = {task.name: task for task in tasks(settings.suite)}
    files = task_files(settings.source.parent, settings.source.name)
    found: list[tuple[Task, Path]] = []
    for file in files:
        name = file.name.removesuffix(SUFFIX)
        require_name(name, known, what=f"task of {settings.suite}")
        found.append((get_task(settings.suite, known[name].task_id), file))
    return found


def _parts(settings: RegenerateSettings) -> Path:
    return settings.to.with_name(f".{settings.to.name}.parts")


def _remember(settings: RegenerateSettings) -> None:
    """Refuse to go on with what was begun with other settings."""
    path = _parts(settings) / "settings.json"
    mine = {k: str(v) for k, v in asdict(settings).items() if k in ("source", "suite", "camera_px")}
    if path.is_file() and json.loads(path.read_text()) != mine:
        raise ContractError(
            f"{path.parent} was begun with {path.read_text()}, now {json.dumps(mine)}; use the same "
            "settings to continue, or delete it"
        )
    write_atomic(path, json.dumps(mine))


def _merge(settings: RegenerateSettings, chosen: list[Task]) -> Regenerated:
    hidden = settings.to.with_name(f".{settings.to.name}.merging")
    shutil.rmtree(hidden, ignore_errors=True)
    hidden.mkdir(parents=True)
    episodes = frames = 0
    skipped: list[str] = []
    for task in chosen:
        folder = _parts(settings) / task.name
        files = sorted(folder.glob("demo_*.hdf5"))
        skipped += [json.loads(note.read_text()) for note in sorted(folder.glob("demo_*.json"))]
        if not files:
            raise EnvFault(
                f"{task.name}: no replay reached the goal; another MuJoCo or robosuite than the recording's "
                "changes contacts, see scripts/doctor.py"
            )
        bddl = Path(task.bddl_file)
        attributes = TaskAttributes(
            instruction=task.instruction,
            problem_name=str(parse_problem(task)["problem_name"]),
            bddl_file_name=f"{bddl.parent.name}/{bddl.name}",
            extra={"regenerated": True, "camera_px": settings.camera_px},
        )
        frames += merge_demos(files, hidden / f"{task.name}{SUFFIX}", task=attributes)
        episodes += len(files)
    hidden.replace(settings.to)
    return Regenerated(episodes=episodes, frames=frames, skipped=tuple(skipped))
