"""The command line as a user meets it: real processes, a toy configuration."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from vega_policy.spec import ContractError

SCRIPTS = Path(__file__).parents[2] / "scripts"

FILES = {
    "configs/toy.yaml": """
defaults:
  - arm: left
  - _self_
suite: libero_object
name: trial-${suite}
seed: null
rate_hz: 20.0
is_quick: false
tasks: [0, 1]
rollout:
  init_states: 2
  workers: 1
""",
    "configs/placed.yaml": "defaults:\n  - arm@tool: left\n  - _self_\nn: 1\n",
    "configs/arm/left.yaml": "side: left\nreach_m: 0.8\n",
    "configs/arm/right.yaml": "side: right\nreach_m: 0.7\n",
    "configs/needy.yaml": "arm: none\ncheckpoint: ???\n",
    "toy.py": """
\"\"\"A toy script.\"\"\"
import logging, os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv.pop(1))
from hydra_cli import run
from vega_policy.spec import ContractError, EnvFault

def main(config):
    logging.getLogger("toy").info("working")
    print("a table")
    if config.get("suite") == "contract":
        raise ContractError("unknown suite 'contract'; did you mean 'libero_object'?")
    if config.get("suite") == "fault":
        raise EnvFault("the simulator broke")
    if config.get("suite") == "interrupt":
        # A process started in the background inherits that the signal is ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.kill(os.getpid(), signal.SIGINT)
    return {"config": config, "run_dir": Path("runs/x"), "loss": float("nan")}

run(sys.argv.pop(1), main, config_dir=Path(__file__).parent / "configs")
""",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("project")
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.fixture
def toy(folder):
    def call(*overrides, config="toy"):
        before = {path for path in folder.rglob("*") if "__pycache__" not in path.parts}
        done = subprocess.run(
            [sys.executable, "toy.py", str(SCRIPTS), config, *overrides],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        after = {path for path in folder.rglob("*") if "__pycache__" not in path.parts}
        assert after == before, "the command line wrote a file"
        return done

    return call


@pytest.fixture(scope="module")
def hydra_cli():
    spec = importlib.util.spec_from_file_location("hydra_cli", SCRIPTS / "hydra_cli.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def result_of(done):
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_last_line_is_the_result_and_logs_go_to_standard_error(toy):
    done = toy()
    assert result_of(done)["config"] == {
        "suite": "libero_object",
        "name": "trial-libero_object",
        "seed": None,
        "rate_hz": 20.0,
        "is_quick": False,
        "tasks": [0, 1],
        "rollout": {"init_states": 2, "workers": 1},
        "arm": {"side": "left", "reach_m": 0.8},
    }
    assert "working" in done.stderr
    assert "working" not in done.stdout


def test_result_is_strict_json(toy):
    result = result_of(toy())
    assert (result["run_dir"], result["loss"]) == ("runs/x", None)


def test_overrides_groups_and_interpolations_reach_the_script(toy):
    arguments = ("arm=right", "arm.reach_m=1", "seed=[1,2]", "suite=3", "is_quick=true")
    config = result_of(toy(*arguments, "rollout={workers: 4}"))["config"]
    assert config["arm"] == {"side": "right", "reach_m": 1}
    assert (config["seed"], config["is_quick"]) == ([1, 2], True)
    assert (config["suite"], config["name"]) == ("3", "trial-3")
    assert config["rollout"] == {"init_states": 2, "workers": 4}


@pytest.mark.parametrize(
    ("override", "advice"),
    [
        ("rollout.init_state=5", "did you mean 'rollout.init_states'?"),
        ("init_states=5", "did you mean 'rollout.init_states'?"),
        ("suit=libero_object", "did you mean 'suite'?"),
        ("hydra.run.dir=elsewhere", "unknown setting 'hydra.run.dir'"),
        ("zzz=1", "--help lists them"),
        ("arm=rigth", "did you mean 'right'?"),
        ("arm.reach=1", "did you mean 'arm.reach_m'?"),
        ("rollout={worker: 4}", "did you mean 'rollout.workers'?"),
        ("rollout={workers: {x: 4}}", "unknown setting 'rollout.workers.x'"),
        ("+rollout.init_states=5", "write rollout.init_states=VALUE"),
        ("++seed=5", "write seed=VALUE"),
        ("~seed", "write seed=VALUE"),
        ("suite", "settings are key=value"),
        ("=5", "settings are key=value"),
        ("", "settings are key=value"),
        ("tasks=[0,", "cannot be read"),
        ("rollout.workers=1,2", "rollout.workers=[a,b]"),
        ("--multirun", "unknown option '--multirun'"),
        ("rollout.init_states=abc", 'rollout.init_states is "abc", expected a whole number'),
        ("rollout.init_states=2.5", "expected a whole number such as the default 2"),
        ("rollout.init_states=true", "expected a whole number"),
        ("rollout.init_states=null", "expected a whole number"),
        ("rollout={workers: many}", 'rollout.workers is "many", expected a whole number'),
        ("rollout=5", "expected a group of settings"),
        ("rate_hz=fast", "expected a number"),
        ("is_quick=1", "expected true or false"),
        ("tasks=0", "expected a list"),
        ("tasks=[0,x]", 'tasks[1] is "x", expected a whole number'),
        ("suite=[a,b]", "expected text"),
        ("suite=${nowhere}", "nowhere"),
    ],
)
def test_bad_override_is_answered_with_advice(hydra_cli, folder, override, advice):
    with pytest.raises(ContractError) as error:
        hydra_cli.load_config("toy", [override], config_dir=folder / "configs")
    assert advice in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("override", ["rollout.init_state=5", "arm=rigth", "rollout.workers=abc"])
def test_bad_override_ends_with_one_sentence_and_exit_code_2(toy, override):
    done = toy("suite=contract", override)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: ")


def test_setting_without_default_is_asked_for(toy):
    done = toy(config="needy")
    assert (done.returncode, done.stderr) == (
        2,
        "error: checkpoint has no default; add checkpoint=VALUE\n",
    )
    assert result_of(toy("checkpoint=a/b", config="needy"))["config"]["checkpoint"] == "a/b"


def test_plain_setting_may_have_the_name_of_a_group_it_does_not_choose_from(hydra_cli, folder):
    arguments = ["arm=both", "checkpoint=x"]
    config = hydra_cli.load_config("needy", arguments, config_dir=folder / "configs")
    assert config == {"arm": "both", "checkpoint": "x"}


@pytest.mark.parametrize(
    ("suite", "code", "last_line"),
    [
        ("contract", 2, "error: unknown suite 'contract'; did you mean 'libero_object'?"),
        ("fault", 1, "error: the simulator broke"),
        ("interrupt", 130, "interrupted"),
    ],
)
def test_errors_of_the_script_keep_their_exit_code(toy, suite, code, last_line):
    done = toy(f"suite={suite}")
    assert done.returncode == code
    assert done.stderr.splitlines()[-1] == last_line
    assert "Traceback" not in done.stderr


def test_help_shows_docstring_groups_and_defaults(toy):
    done = toy("--help")
    assert done.returncode == 0
    for part in ("A toy script.", "arm: left, right", "init_states: 2", "name: trial-${suite}"):
        assert part in done.stdout


def test_cfg_prints_what_the_script_would_get(toy):
    done = toy("--cfg", "rollout.workers=3")
    assert done.returncode == 0
    assert "workers: 3" in done.stdout
    assert "name: trial-libero_object" in done.stdout


def test_arguments_without_a_name_fill_settings_in_order(hydra_cli):
    named = hydra_cli.named
    assert named(["x", "mode=fast", "y"], ["a", "b"]) == ["a='x'", "mode=fast", "b='y'"]
    assert named(["b=1", "x"], ["a", "b"]) == ["b=1", "a='x'"]
    # A path may hold an equals sign.
    assert named(["runs/lr=1e-4"], ["run"]) == ["run='runs/lr=1e-4'"]
    assert named(["x", "it's"], ["runs..."]) == ["runs=['x','it\\'s']"]
    with pytest.raises(ContractError, match="one argument too many"):
        named(["x", "y"], ["a"])


def test_a_group_put_elsewhere_goes_by_the_name_of_its_place(toy):
    config = result_of(toy("tool=right", "tool.reach_m=0.5", config="placed"))["config"]
    assert config == {"n": 1, "tool": {"side": "right", "reach_m": 0.5}}
    assert "unknown tool 'middle'; valid: left, right" in toy("tool=middle", config="placed").stderr
    assert "tool: left, right" in toy("--help", config="placed").stdout
