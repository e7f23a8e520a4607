"""Training from a published directory, from the command line to a merged checkpoint."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vega_policy.policy import from_pretrained
from vega_policy.spec import ContractError
from vega_policy.testing.demos import write_suite
from vega_policy.testing.published import published_checkpoint, published_config
from vega_policy.testing.tiny_policy import tiny_config, tiny_observation
from vega_policy.train.config import TrainConfig
from vega_policy.train.imitation import train
from vega_policy.train.lora import GRAFTED
from vega_policy.train.metrics import read_records
from vega_policy.train.start import Start

ROOT = Path(__file__).parents[2]
ROUNDING = 2e-6


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_suite(tmp_path_factory.mktemp("data"), n_demos=3, px=32)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return published_checkpoint(tmp_path_factory.mktemp("start") / "policy")


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    torch.set_num_threads(1)


def command(folder, data, published, *more):
    """Return what follows ``scripts/train.py``: the full recipe at a tiny size."""
    prior = {**tiny_config().to_dict()["prior"], "name": "wan"}
    dims = prior.pop("dims")
    given = ("width", "image_px", "grid", "block_index", "prompt_tokens")
    return [
        *(
            "policy=oft_7b",
            f"init_from={published}",
            "prior_path=random",
            "device=cpu",
            "threads=1",
        ),
        *(f"policy.prior.{key}={json.dumps(prior[key])}" for key in given),
        *(f"policy.prior.dims.{key}={json.dumps(value)}" for key, value in dims.items()),
        *("policy.projector.prior_hidden=32", "lora.rank=4", "estimate_memory=false"),
        *(f"data_dir={data}", f"out_dir={folder}", "name=run", "steps=4", "batch_size=4"),
        *("accumulate=2", "log_every=1", "checkpoint_every=1", "validate_every=4"),
        *("data.held_out=0.3", "data.augment.prior_dropout=0.5"),
        # Equal to rounding only in float32; a larger eps keeps Adam from dividing rounding by itself.
        *("precision=float32", "base_dtype=float32", "optim.eps=1e-4"),
        *more,
    ]


def composed(arguments):
    from hydra_cli import load_config
    from train import train_settings

    return TrainConfig.from_dict(train_settings(load_config("train", arguments)))


def in_two_processes(arguments):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
            *("--standalone", "scripts/train.py", *arguments),
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    (line,) = [x for x in done.stdout.splitlines() if x.startswith("{")]
    return json.loads(line)


def state(config):
    newest = max((config.run_dir / "checkpoint").glob("step-*"))
    return load_file(newest / "tensors.safetensors")


def policy_weights(config):
    return load_file(config.run_dir / "policy/model.safetensors")


def losses(config):
    return [r["loss"] for r in read_records(config.run_dir / "metrics.jsonl") if "loss" in r]


def test_the_whole_way_from_a_published_directory(tmp_path, data, published):
    """One process, one that was killed, and two; then the result goes on."""
    whole = composed(command(tmp_path / "one", data, published))
    assert (whole.tune, whole.data.augment.style) == ("lora", "openvla")
    assert (whole.data.augment.crop, whole.policy.fusion.name) == (0.1, "residual_zero")
    assert Start.of(whole).policy_config.language.width == published_config().language.width
    train(whole)

    killed = composed(command(tmp_path / "killed", data, published))
    asked = 0

    def dies():
        nonlocal asked
        asked += 1
        if asked == 3:
            raise SystemExit  # between a checkpoint and the next update
        return False

    with pytest.raises(SystemExit):
        train(killed, should_stop=dies)
    train(killed)
    a, b = state(whole), state(killed)
    assert [k for k in a if not torch.equal(a[k], b[k])] == []
    assert losses(whole) == losses(killed)

    arguments = command(tmp_path / "two", data, published)
    last = in_two_processes(arguments)
    assert (last["ending"], last["steps"]) == ("finished", 4)
    two = composed(arguments)
    assert losses(two) == pytest.approx(losses(whole), abs=1e-6)
    for one, other in ((state(whole), state(two)), (policy_weights(whole), policy_weights(two))):
        assert one.keys() == other.keys()
        for name in one:
            if not name.startswith("optimizer/") and name != "random":
                torch.testing.assert_close(one[name], other[name], rtol=0, atol=ROUNDING, msg=name)

    policy = from_pretrained(last["checkpoint"])
    assert not [n for n, _ in policy.model.named_parameters() if "lora" in n]
    (chunk,) = policy.act([tiny_observation()], keys=[0])
    assert chunk.actions.shape == (8, 7)
    before = from_pretrained(published, dtype=torch.float32).model.state_dict()
    moved = [n for n, v in before.items() if not torch.equal(v, policy.model.state_dict()[n])]
    assert "language.layers.0.mlp.up_proj.weight" in moved
    assert "head.fc_out.weight" in moved
    assert "language.embed_tokens.weight" not in moved

    on = composed(
        command(tmp_path / "on", data, last["checkpoint"], "tune=grafted", "data.held_out=0")
    )
    train(on)
    start, end = policy_weights(two), policy_weights(on)
    changed = {n for n in end if not torch.equal(start[n], end[n])}
    assert changed
    assert all(n.startswith(GRAFTED) for n in changed)


@pytest.mark.parametrize("is_base", [False, True])
@pytest.mark.parametrize("kind", ["l1", "diffusion", "discrete"])
def test_every_head_learns_in_the_recipes_precision(tmp_path, data, kind, is_base):
    sizes = published_config(kind=kind)
    start = published_checkpoint(tmp_path / "start", config=sizes, is_base=is_base)
    arguments = [
        *(f"policy.head.kind={kind}", "policy.head.width=32"),
        *(f"policy.proprio_size={sizes.proprio_size}", "gradient_checkpointing=true"),
        *("precision=bfloat16", "base_dtype=bfloat16", "data.augment.prior_dropout=0"),
        *("steps=16", "batch_size=8", "accumulate=1", "checkpoint_every=100", "log_every=4"),
        *("data.held_out=0", "optim.schedule.peak=1e-2", "lora.alpha=4"),
    ]
    config = composed(command(tmp_path, data, start, *arguments))
    train(config)
    found = losses(config)
    assert len(found) == 4
    assert min(found[1:]) < 0.9 * found[0]
    policy = from_pretrained(config.run_dir / "policy")
    assert policy.config.head.kind == kind
    # A base model's statistics are of other robots.
    name = "libero_object" if is_base else "libero_object_no_noops"
    assert list(policy.statistics) == [name]


def test_the_statistics_of_a_base_model_can_only_be_kept_where_they_fit(tmp_path, data):
    start = published_checkpoint(tmp_path / "start", is_base=True)
    arguments = command(tmp_path, data, start, "policy.head.width=32", "statistics=checkpoint")
    with pytest.raises(ContractError, match="has bridge_orig, the data is of libero_object"):
        train(composed(arguments))
    assert not (tmp_path / "run").exists()
