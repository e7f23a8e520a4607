"""Two processes with half the batch each are one process with the whole batch."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
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
from vega_policy.train.metrics import read_records

ROOT = Path(__file__).parents[2]
ROUNDING = 2e-6
"""Largest difference of a weight: gradients of two halves are added in another order."""

SCRIPT = """
    import json, sys, threading, torch
    from vega_policy.train.config import TrainConfig
    from vega_policy.train.imitation import train
    from vega_policy.train.ranks import join
    torch.set_num_threads(1)
    values, stop_at = json.loads(sys.argv[1]), json.loads(sys.argv[2])
    config = TrainConfig.from_dict(values)
    ranks = join("cpu", parallel=config.parallel)
    asked = 0
    def should_stop():
        global asked
        asked += 1
        return [ranks.rank, asked] == stop_at
    gradients = {}
    if stop_at == "gradients":
        from vega_policy.train.learner import Learner
        clip = torch.nn.utils.clip_grad_norm_
        def watch(weights, limit):
            weights = list(weights)
            gradients.update({i: w.grad.clone() for i, w in enumerate(weights)})
            return clip(weights, limit)
        torch.nn.utils.clip_grad_norm_ = watch
    result = train(config, should_stop=should_stop, ranks=ranks)
    if gradients:
        torch.save(gradients, f"{config.run_dir}/gradients-{ranks.rank}.pt")
    print("steps", result.steps, flush=True)
    ranks.leave()
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_suite(tmp_path_factory.mktemp("data"), n_demos=3, px=32)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    folder = tmp_path_factory.mktemp("start") / "policy"
    tiny_policy(folder)
    return folder


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
            "augment": {"style": "openvla", "brightness": 0.1, "hue": 0.05, "crop": 0.1},
        },
        "optim": {"schedule": {"peak": 3e-3, "warmup_steps": 0}, "eps": 1e-4, "clip_norm": 0.5},
        "policy": tiny_config().to_dict(),
        **changes,
    }
    return TrainConfig.from_dict(values)


def run_two(config, *, stop_at=None):
    """Train in two real processes; returns the updates each has made."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
            *("--standalone", "--no-python", sys.executable, "-c", textwrap.dedent(SCRIPT)),
            *(json.dumps(config.to_dict()), json.dumps(stop_at)),
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [int(line.split()[1]) for line in done.stdout.splitlines() if "steps" in line]


def state(config):
    newest = max((config.run_dir / "checkpoint").glob("step-*"))
    return load_file(newest / "tensors.safetensors")


def assert_same_weights(one, other, *, within=ROUNDING):
    a, b = state(one), state(other)
    assert a.keys() == b.keys()
    for name in a:
        if name.startswith(("model/", "average/")):
            torch.testing.assert_close(a[name], b[name], rtol=0, atol=within, msg=name)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_halves_of_a_batch_are_the_whole(tmp_path, data, start, parallel):
    one = settings(tmp_path / "one", data, tune="lora", init_from=str(start))
    two = settings(tmp_path / "two", data, tune="lora", init_from=str(start), parallel=parallel)
    train(one)
    assert run_two(two) == [3, 3]
    assert_same_weights(one, two)
    a, b = (load_file(c.run_dir / "policy/model.safetensors") for c in (one, two))
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=ROUNDING, msg=name)
    rows = [
        [r["loss"] for r in read_records(c.run_dir / "metrics.jsonl") if "loss" in r]
        for c in (one, two)
    ]
    assert rows[0] == pytest.approx(rows[1], abs=1e-6)


def test_every_trained_weight_has_the_same_gradient_in_all_processes(tmp_path, data):
    config = settings(tmp_path, data)
    run_two(config, stop_at="gradients")
    one, other = (torch.load(config.run_dir / f"gradients-{r}.pt") for r in (0, 1))
    assert len(one) > 50
    assert all(torch.equal(one[i], other[i]) for i in one)
    assert all(bool(g.any()) for g in one.values())


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_stop_in_any_process_ends_all_and_a_resume_is_exact(tmp_path, data, parallel):
    whole = settings(tmp_path / "whole", data, parallel=parallel)
    run_two(whole)
    halting = settings(tmp_path / "halting", data, parallel=parallel)
    assert run_two(halting, stop_at=[1, 1]) == [1, 1]
    assert run_two(halting) == [3, 3]
    a, b = state(whole), state(halting)
    assert [k for k in a if not torch.equal(a[k], b[k])] == []


def test_a_run_of_two_processes_continues_in_one(tmp_path, data):
    whole = settings(tmp_path / "whole", data)
    train(whole)
    moving = settings(tmp_path / "moving", data, parallel="fsdp")
    run_two(moving, stop_at=[0, 2])
    assert train(moving).steps == 3
    assert_same_weights(whole, moving)


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
