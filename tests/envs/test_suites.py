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
