"""LIBERO's suites, tasks and evaluation initial states, without building a simulator."""
# pyright: basic

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from envs.installed import libero_module, quiet
from vega_policy.spec import ContractError
from vega_policy.spec.names import require_name

if TYPE_CHECKING:
    from numpy.typing import NDArray

HORIZONS = {
    "libero_spatial": 220,
    "libero_object": 280,
    "libero_goal": 300,
    "libero_10": 520,
    "libero_90": 400,
}
"""Step limits of the published OpenVLA-OFT evaluation, settling steps not counted."""

SUITES = tuple(HORIZONS)


@dataclass(frozen=True)
class Task:
    """One task of a suite, as the benchmark orders them."""

    suite: str
    task_id: int
    name: str
    """File-name form of the task."""
    instruction: str
    """The task in words."""
    bddl_file: Path
    init_states_file: Path


def require_suite(suite: str) -> str:
    """Return ``suite`` or raise a `ContractError` that names the nearest one."""
    return require_name(suite, SUITES, what="suite")


@functools.cache
def tasks(suite: str) -> tuple[Task, ...]:
    """List the tasks of a suite in the benchmark's default order.

    Raises:
        ContractError: Unknown suite, or no LIBERO distribution.
    """
    require_suite(suite)
    benchmark = libero_module("libero.libero.benchmark")
    paths = libero_module("libero.libero").get_libero_path
    with quiet():
        listed = benchmark.get_benchmark(suite)()
        bddl, inits = Path(paths("bddl_files")), Path(paths("init_states"))
    return tuple(
        Task(
            suite=suite,
            task_id=i,
            name=task.name,
            instruction=task.language,
            bddl_file=bddl / task.problem_folder / task.bddl_file,
            init_states_file=inits / task.problem_folder / task.init_states_file,
        )
        for i, task in enumerate(listed.get_task(k) for k in range(listed.get_num_tasks()))
    )


def n_tasks(suite: str) -> int:
    """Count the tasks of a suite."""
    return len(tasks(suite))


def task_names(suite: str) -> tuple[str, ...]:
    """List the file-name forms of a suite's tasks."""
    return tuple(task.name for task in tasks(suite))


def get_task(suite: str, task_id: int) -> Task:
    """Return one task.

    Raises:
        ContractError: The suite or the task does not exist.
    """
    found = tasks(suite)
    if not 0 <= task_id < len(found):
        raise ContractError(
            f"{suite} has tasks 0 to {len(found) - 1}, got {task_id}; choose one of these"
        )
    return found[task_id]


def parse_problem(task: Task) -> dict[str, Any]:
    """Return LIBERO's reading of a task's problem file (``goal_state``, ``problem_name``, ...)."""
    with quiet():
        return libero_module("libero.libero.envs.bddl_utils").robosuite_parse_problem(
            str(task.bddl_file)
        )


@functools.cache
def init_states(suite: str, task_id: int) -> NDArray[np.float64]:
    """Return the evaluation initial states of a task: (n, s) flattened MuJoCo states.

    Raises:
        ContractError: The suite or the task does not exist.
    """
    task = get_task(suite, task_id)
    benchmark = libero_module("libero.libero.benchmark")
    with quiet():
        states = benchmark.get_benchmark(suite)().get_task_init_states(task.task_id)
    array = np.array(states, dtype=np.float64)
    array.setflags(write=False)
    return array


def n_init_states(suite: str, task_id: int) -> int:
    """Count the evaluation initial states of a task."""
    return len(init_states(suite, task_id))
