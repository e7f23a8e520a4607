"""Suites can be listed without a simulator, without a question and without a trace."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vega_policy.spec import ContractError

pytestmark = pytest.mark.sim

ASKING = """\
import os
folder = os.environ.get("LIBERO_CONFIG_PATH", os.path.expanduser("~/.libero"))
os.makedirs(folder, exist_ok=True)
if not os.path.exists(os.path.join(folder, "config.yaml")):
    answer = input("Do you want to specify a custom path? (Y/N): ")
    open(os.path.join(folder, "config.yaml"), "w").write(answer)
"""


def test_suites_hold_what_the_benchmark_defines():
    from envs import suites

    assert [suites.n_tasks(name) for name in suites.SUITES] == [10, 10, 10, 10, 90]
    assert suites.HORIZONS["libero_10"] == 520
    task = suites.get_task("libero_object", 0)
    assert task.instruction == "pick up the alphabet soup and place it in the basket"
    assert suites.n_init_states("libero_object", 0) == 50


def test_unknown_suite_names_the_nearest():
    from envs import suites

    with pytest.raises(ContractError, match="did you mean 'libero_object'"):
        suites.tasks("libero_objects")
    with pytest.raises(ContractError, match="tasks 0 to 9, got 10"):
        suites.get_task("libero_object", 10)


def test_the_published_perturbed_suites_are_complete():
    """The table in docs/perturbations.md: 160 tasks, what differs from the stock ones."""
    from envs import suites

    assert len(suites.PRO_SUITES) == 16
    told, aims, things, rules = set(), set(), set(), set()
    for suite, name in suites.PRO_SUITES.values():
        for stock in suites.tasks(suite):
            task = suites.get_task(suite, stock.task_id, name)
            states = suites.init_states(suite, stock.task_id, name)
            usual = suites.init_states(suite, stock.task_id)
            assert states.shape == usual.shape
            assert len({s.tobytes() for s in states}) == 50
            ours, theirs = suites.parse_problem(task), suites.parse_problem(stock)
            key = (suite, stock.task_id, name)
            for changed, is_changed in (
                (told, task.instruction != stock.instruction),
                (aims, ours["goal_state"] != theirs["goal_state"]),
                (things, any(ours[k] != theirs[k] for k in ("objects", "fixtures"))),
                (rules, ours["initial_state"] != theirs["initial_state"]),
            ):
                if is_changed:
                    changed.add(key)
    for changed, names in (
        (told, {"pro_lan", "pro_task"}),
        (aims, {"pro_object", "pro_task"}),
        (things, {"pro_object"}),
        (rules, {"pro_object", "pro_swap"}),
    ):
        assert {name for *_, name in changed} == names
        assert len(changed) == 40 * len(names)


def test_a_perturbed_suite_that_was_never_published_is_refused():
    from envs import suites

    assert suites.split_suite("libero_goal_swap") == ("libero_goal", "pro_swap")
    with pytest.raises(ContractError, match="did you mean 'libero_goal_swap'"):
        suites.split_suite("libero_goal_swaps")
    with pytest.raises(ContractError, match="LIBERO-PRO has no pro_swap of libero_90"):
        suites.get_task("libero_90", 0, "pro_swap")


def run_python(code: str, home: Path, **extra: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "HOME": str(home), **extra}
    environment.pop("LIBERO_CONFIG_PATH", None)
    return subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def test_listing_tasks_prints_nothing_and_writes_nothing_to_home(tmp_path):
    code = "from envs import suites; suites.tasks('libero_goal')"
    done = run_python(code, tmp_path)
    assert (done.returncode, done.stdout) == (0, "")
    assert list(tmp_path.rglob("*.yaml")) == []


def test_a_distribution_that_asks_at_import_is_answered(tmp_path):
    home, package = tmp_path / "home", tmp_path / "site" / "libero" / "libero"
    home.mkdir()
    package.mkdir(parents=True)
    (package.parent / "__init__.py").write_text("")
    (package / "__init__.py").write_text(ASKING)
    code = "from envs.installed import libero_module; print(libero_module().__file__)"
    here = str(Path(__file__).parents[2])
    path = os.pathsep.join([str(package.parents[1]), here])
    done = run_python(code, home, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    assert str(package) in done.stdout
    assert list(home.iterdir()) == []
