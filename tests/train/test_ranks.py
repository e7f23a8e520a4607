"""Two processes with half the batch each are one process with the whole batch."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vega_policy.data.chunks import ChunkBatches
from vega_policy.data.part import Part
from vega_policy.spec import ContractError
from vega_policy.testing.demos import write_suite
from vega_policy.testing.tiny_policy import tiny_config, tiny_policy
from vega_policy.train.config import TrainConfig
from vega_policy.train.imitation import train
from vega_policy.train.lora import SEMANTIC
from vega_policy.train.metrics import read_records

ROOT = Path(__file__).parents[2]
ROUNDING = 2e-6
"""Largest difference of a weight: gradients of two halves are added in another order."""

SCRIPT = """
    import json, sys, torch
    from vega_policy.train.config import TrainConfig
    from vega_policy.train.imitation import train
    from vega_policy.train.ranks import join
    torch.set_num_threads(1)
    clip = torch.nn.utils.clip_grad_norm_
    gradients = {}
    def watch(weights, limit):
        weights = list(weights)
        gradients.update({str(i): w.grad.clone() for i, w in enumerate(weights)})
        return clip(weights, limit)
    for name, values, stop_at in json.loads(sys.argv[1]):
        config = TrainConfig.from_dict(values)
        ranks = join("cpu", parallel=config.parallel)
        asked = 0
        def should_stop():
            global asked
            asked += 1
            return [ranks.rank, asked] == stop_at
        torch.nn.utils.clip_grad_norm_ = watch if name == "ddp" else clip
        result = train(config, should_stop=should_stop, ranks=ranks)
        if name == "ddp":
            torch.save(gradients, f"{config.run_dir}/gradients-{ranks.rank}.pt")
        print("steps", name, result.steps, flush=True)
    ranks.leave()
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_suite(tmp_path_factory.mktemp("data"), n_demos=3, px=32)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def settings(folder, data, **changes):
    values = {
        "name": "run",
        "run_root": str(folder),
        "steps": 3,
        "batch_size": 4,
        "accumulate": 2,
        "prior_path": "random",
        "device": "cpu",
        "precision": "float32",
        "log_every": 1,
        "checkpoint_every": 2,
        "validate_every": 3,
        "data": {
            "dirs": [str(data)],
            "held_out": 0.3,
            "features": {"cached": False},
            "augment": {
                "style": "openvla",
                "brightness": 0.1,
                "hue": 0.05,
                "crop": 0.1,
                "prior_dropout": changes.pop("prior_dropout", 0.0),
            },
        },
        "optim": {"schedule": {"peak": 3e-3, "warmup_steps": 0}, "eps": 1e-4, "clip_norm": 0.5},
        "policy": {
            **tiny_config().to_dict(),
            "fusion": {"name": changes.pop("fusion", "token_gate")},
        },
        **changes,
    }
    return TrainConfig.from_dict(values)


@dataclass(frozen=True)
class Runs:
    """What two real processes have trained, one run after the other."""

    configs: dict[str, TrainConfig]
    steps: dict[str, list[int]]
    """Updates that each process has made, run by run."""


@pytest.fixture(scope="module")
def two(tmp_path_factory, data):
    """Start processes once: most of the time of a test goes into their imports."""
    folder = tmp_path_factory.mktemp("two")
    tiny_policy(folder / "start")
    lora = {"tune": "lora", "init_from": str(folder / "start"), "prior_dropout": 0.5}

    short = {"base_dtype": "bfloat16", "precision": "bfloat16", "gradient_checkpointing": True}
    short["parallel"] = "fsdp"

    def run(name, **changes):
        return settings(folder / name.partition(" ")[0], data, **changes)

    jobs = {
        "lora-ddp": (run("lora-ddp", **lora), None),
        "lora-fsdp": (run("lora-fsdp", **lora, parallel="fsdp"), None),
        "short": (run("short", **lora, **short), None),
        "idle": (run("idle", fusion="prior_only", steps=2), None),
        "ddp": (run("ddp"), None),
        "ddp-halting": (run("ddp-halting"), [1, 1]),
        "ddp-halting again": (run("ddp-halting"), None),
        "fsdp": (run("fsdp", parallel="fsdp"), None),
        "fsdp-halting": (run("fsdp-halting", parallel="fsdp"), [1, 1]),
        "fsdp-halting again": (run("fsdp-halting", parallel="fsdp"), None),
        "moving": (run("moving", parallel="fsdp"), [0, 2]),
    }
    listed = [(name, config.to_dict(), stop) for name, (config, stop) in jobs.items()]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
            *("--standalone", "--no-python", sys.executable, "-c", textwrap.dedent(SCRIPT)),
            json.dumps(listed),
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    steps = {name: [] for name in jobs}
    for line in done.stdout.splitlines():
        if line.startswith("steps "):
            name, _, count = line.removeprefix("steps ").rpartition(" ")
            steps[name].append(int(count))
    return Runs(configs={name: config for name, (config, _) in jobs.items()}, steps=steps)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, two):
    """Train in one process what `two` has trained in two."""
    folder = tmp_path_factory.mktemp("whole")
    torch.set_num_threads(1)

    def run(name):
        config = dataclasses.replace(two.configs[name], name=name, run_root=str(folder))
        train(config)
        return config

    return {name: run(name) for name in ("lora-ddp", "short", "idle", "ddp")}


def state(config):
    newest = max((config.run_dir / "checkpoint").glob("step-*"))
    return load_file(newest / "tensors.safetensors")


def weights_of_policy(config):
    return load_file(config.run_dir / "policy/model.safetensors")


def losses(config):
    return [r["loss"] for r in read_records(config.run_dir / "metrics.jsonl") if "loss" in r]


def assert_same_weights(one, other):
    a, b = state(one), state(other)
    assert a.keys() == b.keys()
    for name in a:
        if name.startswith(("model/", "average/")):
            torch.testing.assert_close(a[name], b[name], rtol=0, atol=ROUNDING, msg=name)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_halves_of_a_batch_are_the_whole(two, whole, parallel):
    one, other = whole["lora-ddp"], two.configs[f"lora-{parallel}"]
    assert two.steps[f"lora-{parallel}"] == [3, 3]
    assert_same_weights(one, other)
    a, b = weights_of_policy(one), weights_of_policy(other)
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=ROUNDING, msg=name)
    assert losses(one) == pytest.approx(losses(other), abs=1e-6)


def test_divided_short_weights_under_trained_long_ones_learn_alike(two, whole):
    """The recipe's precision: a bfloat16 base, float32 adapters, activations computed twice."""
    one, other = whole["short"], two.configs["short"]
    assert two.steps["short"] == [3, 3]
    for a, b in ((state(one), state(other)), (weights_of_policy(one), weights_of_policy(other))):
        assert {k: v.dtype for k, v in a.items()} == {k: v.dtype for k, v in b.items()}
    base = weights_of_policy(other)["language.embed_tokens.weight"]
    assert base.dtype == torch.bfloat16
    assert losses(one) == pytest.approx(losses(other), rel=0.01)


def test_a_rule_that_leaves_weights_without_gradients_trains_the_rest(two, whole):
    assert two.steps["idle"] == [2, 2]
    assert_same_weights(whole["idle"], two.configs["idle"])
    trained = {n.removeprefix("model/") for n in state(whole["idle"]) if n.startswith("model/")}
    assert "vision.prior_projector.1.weight" in trained
    assert not [n for n in trained if n.startswith(SEMANTIC)]


def test_every_trained_weight_has_the_same_gradient_in_all_processes(two):
    folder = two.configs["ddp"].run_dir
    one, other = (torch.load(folder / f"gradients-{r}.pt", weights_only=True) for r in (0, 1))
    assert len(one) > 50
    assert all(torch.equal(one[i], other[i]) for i in one)
    assert all(bool(g.any()) for g in one.values())


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_stop_in_any_process_ends_all_and_a_resume_is_exact(two, parallel):
    assert two.steps[f"{parallel}-halting"] == [1, 1]
    assert two.steps[f"{parallel}-halting again"] == [3, 3]
    a, b = state(two.configs[parallel]), state(two.configs[f"{parallel}-halting"])
    assert [k for k in a if not torch.equal(a[k], b[k])] == []


def test_a_run_of_two_processes_continues_in_one(two, whole):
    assert two.steps["moving"] == [2, 2]
    moving = two.configs["moving"]
    assert train(moving).steps == 3
    assert_same_weights(whole["ddp"], moving)


def test_the_parts_of_a_batch_are_the_batch(data):
    from vega_policy.data.chunks import ChunkDataset, DataSource

    dataset = ChunkDataset.open(DataSource(dirs=(data,), suites=("libero_object",)), horizon=8)

    def batches(part):
        return ChunkBatches(
            dataset,
            starts=dataset.starts(held_out=False, fraction=0.0),
            targets=dataset.targets,
            proprio=dataset.proprio,
            batch_size=6,
            seed=0,
            part=part,
        )

    for k in range(5):
        parts = [batches(Part(i, 3)).batch(k).rows for i in range(3)]
        assert [len(p) for p in parts] == [2, 2, 2]
        assert [*parts[0], *parts[1], *parts[2]] == list(batches(Part()).batch(k).rows)
    with pytest.raises(ContractError, match="multiple of 4"):
        batches(Part(0, 4))


@pytest.mark.slow
def test_sigterm_to_one_process_of_the_script_ends_all(tmp_path, data):
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
        *("--standalone", "scripts/train.py", "threads=1", "device=cpu", "steps=1000000"),
        *(f"data_dir={data}", f"out_dir={tmp_path}", "name=x", "prior_path=random"),
        *("batch_size=2", "log_every=1", *tiny_overrides()),
    ]
    metrics = tmp_path / "x" / "metrics.jsonl"
    with (tmp_path / "err").open("w") as err:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=err, text=True)
        while not metrics.exists() or metrics.read_text().count("\n") < 2:
            assert process.poll() is None, (tmp_path / "err").read_text()[-4000:]
            time.sleep(0.05)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGTERM)
        out, _ = process.communicate()
    assert process.returncode == 0, (tmp_path / "err").read_text()[-4000:]
    (line,) = [x for x in out.splitlines() if x.startswith("{")]
    assert json.loads(line)["ending"] == "signal"


def tiny_overrides():
    from vega_policy.policy.config import PolicyConfig

    nano = dict(flat(PolicyConfig().to_dict()))
    return [
        f"policy.{key}={json.dumps(value)}"
        for key, value in flat(tiny_config().to_dict())
        if nano[key] != value
    ]


def flat(values, prefix=""):
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
