"""scripts/train.py from the outside: real processes, real signals."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vega_policy.policy import from_pretrained
from vega_policy.policy.config import PolicyConfig
from vega_policy.testing.demos import write_suite
from vega_policy.testing.tiny_policy import tiny_config
from vega_policy.train.config import TrainConfig

ROOT = Path(__file__).parents[2]


def flat(values, prefix=""):
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def command(*overrides):
    return [sys.executable, "scripts/train.py", "threads=1", "device=cpu", *overrides]


def tiny_overrides():
    """Return what makes the nano settings those of the tiny policy."""
    nano = dict(flat(PolicyConfig().to_dict()))
    return [
        f"policy.{key}={json.dumps(value)}"
        for key, value in flat(tiny_config().to_dict())
        if nano[key] != value
    ]


def test_sigterm_saves_and_the_same_command_continues(tmp_path):
    data = write_suite(tmp_path / "data", n_demos=2, px=32)
    arguments = command(
        f"data_dir={data}",
        f"out_dir={tmp_path / 'runs'}",
        "name=x",
        "prior_path=random",
        "steps=1000000",
        "batch_size=2",
        "log_every=1",
        *tiny_overrides(),
    )
    metrics = tmp_path / "runs" / "x" / "metrics.jsonl"
    steps = []
    for _ in range(2):
        before = metrics.read_text().count("\n") if metrics.exists() else 0
        with (tmp_path / "stderr").open("w") as stderr:
            process = subprocess.Popen(
                arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=stderr, text=True
            )
            while not metrics.exists() or metrics.read_text().count("\n") < before + 2:
                assert process.poll() is None, (tmp_path / "stderr").read_text()
                time.sleep(0.05)
            os.kill(process.pid, signal.SIGTERM)
            out, _ = process.communicate()
        assert process.returncode == 0
        result = json.loads(out.splitlines()[-1])
        assert result["ending"] == "signal"
        steps.append(result["steps"])
    assert steps[1] > steps[0] >= 2
    recorded = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert recorded == sorted(set(recorded))
    from_pretrained(result["checkpoint"])


@pytest.mark.parametrize(
    ("overrides", "advice"),
    [
        (["stepss=3"], "'steps'"),
        (["data_dir=nowhere"], "collect"),
        (["init_from=nowhere", "data_dir=DATA"], "nowhere"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(tmp_path, overrides, advice):
    data = write_suite(tmp_path / "data", n_demos=1, px=32)
    before = sorted(data.rglob("*"))
    ready = [o.replace("DATA", str(data)) for o in overrides]
    done = subprocess.run(
        command(f"out_dir={tmp_path / 'runs'}", "prior_path=random", *ready),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert advice in done.stderr.splitlines()[-1]
    assert not (tmp_path / "runs").exists()
    assert sorted(data.rglob("*")) == before


def test_the_yaml_is_accepted_as_it_stands(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from hydra_cli import load_config
    from train import train_settings

    composed = load_config("train", ["prior_path=random", "data.dirs=[a,b]"])
    config = TrainConfig.from_dict(train_settings(composed))
    assert config.policy == PolicyConfig.preset("nano")
    assert config.data.dirs == ("a", "b")
    assert config.data.suites == ("libero_object",)
    assert set(dict(flat(config.to_dict()))) >= set(dict(flat(TrainConfig().to_dict())))


def test_the_published_policy_brings_its_recipe_prior_and_fusion(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from hydra_cli import load_config
    from train import train_settings

    config = TrainConfig.from_dict(train_settings(load_config("train", ["policy=oft_7b"])))
    published = PolicyConfig.preset("7b").to_dict()
    assert config.policy.to_dict() == {**published, "fusion": config.policy.fusion.__dict__}
    assert config.policy.fusion.name == "residual_zero"
    assert (config.tune, config.lora.rank, config.batch_size, config.graft) == (
        "lora",
        32,
        64,
        True,
    )
    chosen = load_config("train", ["policy=oft_7b", "fusion=token_gate", "steps=3"])
    assert (chosen["policy"]["fusion"]["name"], chosen["steps"]) == ("token_gate", 3)
