"""LIBERO's suites, tasks and evaluation initial states, without building a simulator."""
# pyright: basic

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from envs.installed import libero_module, quiet
from envs.perturbations import CLEAN, PRO, is_pro, require
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
PRO_SUITES = {
    f"{suite}_{ending}": (suite, perturbation)
    for suite in SUITES
    if suite != "libero_90"
    for perturbation, ending in PRO.items()
}
"""LIBERO-PRO's published suites: the stock suite, and the perturbation that makes it theirs."""


@dataclass(frozen=True)
class Task:
    """One task of a suite, as the benchmark orders them."""

    suite: str
    task_id: int
    name: str
    """File-name form of the task."""
    instruction: str
    """The task in words, as a policy is told."""
    bddl_file: Path
    init_states_file: Path
    perturbation: str = CLEAN
    """Set where LIBERO-PRO's scene stands in for the stock one."""

    @property
    def published_suite(self) -> str:
        """The name the benchmark registers the task's suite under."""
        return self.suite + (f"_{PRO[self.perturbation]}" if is_pro(self.perturbation) else "")


def require_suite(suite: str) -> str:
    """Return ``suite`` or raise a `ContractError` that names the nearest one."""
    return require_name(suite, SUITES, what="suite")


def split_suite(name: str) -> tuple[str, str]:
    """Return the stock suite and the perturbation of a published suite.

    ``libero_goal`` is ``("libero_goal", "none")``, ``libero_goal_swap`` is ``("libero_goal",
    "pro_swap")``.

    Raises:
        ContractError: There is no such suite; the message names the nearest.
    """
    if name in PRO_SUITES:
        return PRO_SUITES[name]
    return require_name(name, (*SUITES, *PRO_SUITES), what="suite"), CLEAN


@functools.cache
def tasks(suite: str) -> tuple[Task, ...]:
    """List the tasks of a stock suite in the benchmark's default order.

    Raises:
        ContractError: Unknown suite, or no LIBERO distribution.
    """
    require_suite(suite)
    benchmark = libero_module("libero.libero.benchmark")
    with quiet():
        listed = benchmark.get_benchmark(suite)()
    bddl, inits = _folders()
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


def _folders() -> tuple[Path, Path]:
    paths = libero_module("libero.libero").get_libero_path
    with quiet():
        return Path(paths("bddl_files")), Path(paths("init_states"))


def n_tasks(suite: str) -> int:
    """Count the tasks of a suite."""
    return len(tasks(suite))


def task_names(suite: str) -> tuple[str, ...]:
    """List the file-name forms of a suite's tasks."""
    return tuple(task.name for task in tasks(suite))


def get_task(suite: str, task_id: int, perturbation: str = CLEAN) -> Task:
    """Return one task.

    Args:
        suite: A stock suite.
        task_id: Its place in the benchmark's default order.
        perturbation: LIBERO-PRO's kinds change scene, goal, initial states or instruction; all
            others leave the task as it is.

    Raises:
        ContractError: The suite, the task or the perturbation does not exist.
    """
    found = tasks(suite)
    if not 0 <= task_id < len(found):
        raise ContractError(
            f"{suite} has tasks 0 to {len(found) - 1}, got {task_id}; choose one of these"
        )
    stock = found[task_id]
    return _pro_task(stock, perturbation) if is_pro(require(perturbation)) else stock


@functools.cache
def _pro_task(stock: Task, perturbation: str) -> Task:
    """Return LIBERO-PRO's version of a task: the file of the same name in another folder."""
    folder = f"{stock.suite}_{PRO[perturbation]}"
    if folder not in PRO_SUITES:
        raise ContractError(
            f"LIBERO-PRO has no {perturbation} of {stock.suite}; "
            f"it has one of {', '.join(sorted({s for s, _ in PRO_SUITES.values()}))}"
        )
    bddl, inits = _folders()
    file = bddl / folder / stock.bddl_file.name
    if not file.is_file():
        raise ContractError(
            f"{file} is missing; install a distribution with LIBERO-PRO's suites: "
            "pip install -e '.[sim]' -c constraints.txt"
        )
    said, usual = _language(file), _language(stock.bddl_file)
    is_rewritten = _words(said) != _words(usual)
    return replace(
        stock,
        instruction=_as_told(said) if is_rewritten else stock.instruction,
        bddl_file=file,
        init_states_file=inits / folder / stock.init_states_file.name,
        perturbation=perturbation,
    )


def _language(bddl_file: Path) -> str:
    found = re.search(r"\(:language\s+([^)]*)\)", bddl_file.read_text(encoding="utf-8"))
    if found is None:
        raise ContractError(f"{bddl_file} holds no (:language ...); reinstall the distribution")
    return " ".join(found.group(1).split())


def _as_told(language: str) -> str:
    """Write a problem file's language as the suites' instructions are: lower case, plain ASCII."""
    return language.replace("\u2019", "'").rstrip(".").lower()


def _words(language: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", _as_told(language).replace("'", ""))


def parse_problem(task: Task) -> dict[str, Any]:
    """Return LIBERO's reading of a task's problem file (``goal_state``, ``problem_name``, ...)."""
    with quiet():
        return libero_module("libero.libero.envs.bddl_utils").robosuite_parse_problem(
            str(task.bddl_file)
        )


def init_states(suite: str, task_id: int, perturbation: str = CLEAN) -> NDArray[np.float64]:
    """Return the evaluation initial states of a task: (n, s) flattened MuJoCo states.

    Raises:
        ContractError: The suite, the task or the perturbation does not exist.
    """
    return _init_states(get_task(suite, task_id, perturbation))


@functools.cache
def _init_states(task: Task) -> NDArray[np.float64]:
    with quiet():
        benchmark = libero_module("libero.libero.benchmark").get_benchmark(task.published_suite)()
        # By name: the orders of two suites need not agree.
        states = benchmark.get_task_init_states(benchmark.get_task_names().index(task.name))
    array = np.array(states, dtype=np.float64)
    array.setflags(write=False)
    return array


def n_init_states(suite: str, task_id: int, perturbation: str = CLEAN) -> int:
    """Count the evaluation initial states of a task."""
    return len(init_states(suite, task_id, perturbation))
