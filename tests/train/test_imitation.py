"""A run is a function of its settings and data, whatever happened to its process on the way."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from vega_policy.policy import from_pretrained
from vega_policy.spec import CheckpointError, ContractError
from vega_policy.testing.demos import write_suite
from vega_policy.testing.tiny_policy import tiny_config, tiny_observation, tiny_policy
from vega_policy.train.config import TrainConfig
from vega_policy.train.imitation import train
from vega_policy.train.metrics import read_records
from vega_policy.train.preparation import open_policy


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def data(tmp_path):
    return write_suite(tmp_path / "data", n_demos=4, px=32)


def settings(tmp_path, data, **changes):
    values = {
        "name": "run",
        "run_root": str(tmp_path / "runs"),
        "steps": 6,
        "batch_size": 4,
        "prior_path": "random",
        "device": "cpu",
        "log_every": 2,
        "checkpoint_every": 3,
        "validate_every": 3,
        "data": {
            "dirs": [str(data)],
            "held_out": 0.3,
            "augment": {"brightness": 0.1, "contrast": 0.1},
            **changes.pop("reading", {}),
        },
        "optim": {"schedule": {"peak": 3e-3, "warmup_steps": 2}, **changes.pop("optim", {})},
        "policy": changes.pop("policy", tiny_config().to_dict()),
        **changes,
    }
    return TrainConfig.from_dict(values)


def weights(config):
    folder = config.run_dir
    (newest,) = sorted((folder / "checkpoint").glob("step-*"))[-1:]
    return load_file(newest / "tensors.safetensors"), load_file(folder / "policy/model.safetensors")


def timeless(config):
    """Return the metrics without those that depend on the clock."""
    clocks = ("samples_per_s", "data_wait_share")
    rows = read_records(config.run_dir / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k not in clocks} for row in rows]


def assert_same_run(one, other):
    for a, b in zip(weights(one), weights(other), strict=True):
        assert a.keys() == b.keys()
        assert [k for k in a if not torch.equal(a[k], b[k])] == []
    assert timeless(one) == timeless(other)


def run_in_process(config, *, then):
    """Train in a real process that reports its fourth update and then waits; do ``then`` to it."""
    script = f"""
        import json, sys, time, torch
        from vega_policy.train.config import TrainConfig
        from vega_policy.train.imitation import train
        torch.set_num_threads(1)
        calls = 0
        def should_stop():
            global calls
            calls += 1
            if calls == 4:
                print("fourth", flush=True)
                time.sleep(100)
            return False
        train(TrainConfig.from_dict(json.loads({json.dumps(json.dumps(config.to_dict()))})),
              should_stop=should_stop)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "fourth\n"
    os.kill(process.pid, then)
    process.wait()
    process.stdout.close()


def test_a_run_resumed_after_sigkill_equals_an_uninterrupted_one(tmp_path, data):
    whole = settings(tmp_path, data, name="whole")
    train(whole)
    killed = settings(tmp_path, data, name="killed")
    run_in_process(killed, then=signal.SIGKILL)
    assert (
        json.loads((killed.run_dir / "checkpoint/step-000000003/state.json").read_text())["step"]
        == 3
    )
    result = train(killed)
    assert (result.steps, result.ending) == (6, "finished")
    assert_same_run(whole, killed)


def test_a_run_stopped_at_every_step_equals_an_uninterrupted_one(tmp_path, data):
    whole = settings(tmp_path, data, name="whole", precision="float32", accumulate=2)
    train(whole)
    halting = settings(tmp_path, data, name="halting", precision="float32", accumulate=2)
    endings = [train(halting, should_stop=lambda: True).ending for _ in range(6)]
    assert endings == ["signal"] * 5 + ["finished"]
    assert_same_run(whole, halting)


def test_a_finished_run_is_not_touched_again(tmp_path, data):
    config = settings(tmp_path, data)
    first = train(config)
    before = (config.run_dir / "policy" / "model.safetensors").stat().st_mtime_ns
    again = train(config)
    assert (again.steps, again.loss, again.validation) == (6, first.loss, first.validation)
    assert (config.run_dir / "policy" / "model.safetensors").stat().st_mtime_ns == before


def test_the_result_is_a_policy_with_the_statistics_of_its_data(tmp_path, data):
    result = train(settings(tmp_path, data))
    policy = from_pretrained(result.checkpoint)
    (chunk,) = policy.act([tiny_observation()], keys=[0])
    assert chunk.actions.shape == (8, 7)
    assert list(policy.statistics) == ["libero_object"]
    assert policy.statistics["libero_object"].num_trajectories == 8
    assert set(result.validation) >= {"val/loss", "val/x_mm", "val/yaw_deg", "val/gripper_accuracy"}
    assert (result.checkpoint.parent / "loss.png").stat().st_size > 1000


def test_the_exported_policy_predicts_what_validation_measured(tmp_path, data):
    config = settings(
        tmp_path, data, precision="float32", reading={"features": {"dtype": "float32"}}
    )
    train(config)
    averages, exported = weights(config)
    for name, tensor in exported.items():
        if f"average/{name}" in averages:
            assert torch.equal(averages[f"average/{name}"], tensor), name


def test_without_an_average_the_weights_themselves_are_saved(tmp_path, data):
    options = {"precision": "float32", "reading": {"features": {"dtype": "float32"}}}
    plain = settings(tmp_path, data, name="plain", optim={"ema_decay": 0.0}, **options)
    averaged = settings(tmp_path, data, name="averaged", **options)
    train(plain)
    train(averaged)
    (own, policy), (other, _) = weights(plain), weights(averaged)
    assert not [k for k in own if k.startswith("average/")]
    trained = {k.removeprefix("model/"): v for k, v in own.items() if k.startswith("model/")}
    assert trained
    assert all(torch.equal(policy[k], v) for k, v in trained.items())
    # The average watches; it does not change what is learned.
    assert all(torch.equal(other[f"model/{k}"], v) for k, v in trained.items())


def test_leaving_the_prior_out_by_chance_is_a_function_of_the_run(tmp_path, data):
    def run(name, probability):
        reading = {"features": {"cached": False}, "augment": {"prior_dropout": probability}}
        return settings(tmp_path, data, name=name, precision="float32", reading=reading)

    whole, halting, never = run("whole", 0.5), run("halting", 0.5), run("never", 0.0)
    train(whole)
    train(never)
    while train(halting, should_stop=lambda: True).ending != "finished":
        pass
    assert_same_run(whole, halting)
    (one, _), (other, _) = weights(whole), weights(never)
    assert not torch.equal(one["model/head.fc_out.weight"], other["model/head.fc_out.weight"])


@pytest.mark.parametrize("fusion", ["none", "prior_only", "sequence_concat"])
def test_fusions_that_need_the_prior_refuse_to_lose_it(tmp_path, data, fusion):
    policy = {**tiny_config().to_dict(), "fusion": {"name": fusion}}
    reading = {"augment": {"prior_dropout": 0.1}}
    config = settings(tmp_path, data, policy=policy, reading=reading)
    with pytest.raises(ContractError, match=rf"prior_dropout is 0.1, but with fusion {fusion}"):
        train(config)
    assert not config.run_dir.exists()


def test_cached_features_train_the_same_weights_as_a_running_prior(tmp_path, data):
    cached = settings(
        tmp_path,
        data,
        name="cached",
        precision="float32",
        reading={"features": {"dtype": "float32"}},
    )
    live = settings(
        tmp_path, data, name="live", precision="float32", reading={"features": {"cached": False}}
    )
    train(cached)
    train(live)
    (one, _), (other, _) = weights(cached), weights(live)
    for name in one:
        if name.startswith("model/"):
            torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=1e-4)


def test_training_lowers_the_loss(tmp_path, data):
    config = settings(
        tmp_path,
        data,
        steps=30,
        batch_size=16,
        log_every=10,
        checkpoint_every=100,
        validate_every=100,
    )
    train(config)
    losses = [
        row["loss"] for row in read_records(config.run_dir / "metrics.jsonl") if "loss" in row
    ]
    assert losses[-1] < 0.9 * losses[0]


def test_a_started_policy_keeps_its_statistics_and_tokenizer(tmp_path, data):
    first = train(settings(tmp_path, data))
    more = write_suite(tmp_path / "more", n_demos=1, n_steps=30, px=32)
    both = settings(
        tmp_path,
        data,
        name="second",
        prior_path=None,
        init_from=str(first.checkpoint),
        reading={"dirs": [str(data), str(more)], "held_out": 0.0},
    )
    second = from_pretrained(train(both).checkpoint)
    start = from_pretrained(first.checkpoint)
    np.testing.assert_array_equal(
        second.statistics["libero_object"].action.q99, start.statistics["libero_object"].action.q99
    )
    assert second.tokenizer.get_vocab() == start.tokenizer.get_vocab()
    assert not torch.equal(
        second.model.state_dict()["head.fc_out.weight"],
        start.model.state_dict()["head.fc_out.weight"],
    )


def test_every_disagreement_is_listed_before_anything_is_written(tmp_path, data):
    first = train(settings(tmp_path, data))
    other = write_suite(tmp_path / "other", suite="libero_goal", n_demos=1, px=48)
    policy = {**tiny_config().to_dict(), "action": {"horizon": 4}}
    config = settings(
        tmp_path,
        other,
        name="bad",
        init_from=str(first.checkpoint),
        reading={"dirs": [str(other)], "suites": ["libero_goal"]},
        policy=policy,
    )
    with pytest.raises(ContractError) as caught:
        train(config)
    message = str(caught.value)
    for part in ("horizon", "image size", "libero_goal"):
        assert part in message
    assert not config.run_dir.exists()
    assert not (other / ".cache").exists()


def test_a_missing_prior_is_named_before_anything_is_written(tmp_path, data):
    config = settings(tmp_path, data, prior_path=str(tmp_path / "nowhere"))
    with pytest.raises(CheckpointError, match="nowhere"):
        train(config)
    assert not config.run_dir.exists()


def test_another_run_in_the_same_folder_lists_what_changed(tmp_path, data):
    train(settings(tmp_path, data))
    with pytest.raises(CheckpointError, match=r"batch_size: the run has 4.*steps: the run has 6"):
        train(settings(tmp_path, data, steps=8, batch_size=2))


def test_a_run_from_before_a_setting_existed_continues(tmp_path, data):
    config = settings(tmp_path, data, reading={"features": {"cached": False}})
    train(config, should_stop=lambda: True)
    path = config.run_dir / "config.json"
    saved = json.loads(path.read_text())
    del saved["data"]["augment"]["prior_dropout"]
    path.write_text(json.dumps(saved))
    assert train(config).steps == 6


def test_new_data_under_a_running_name_is_refused(tmp_path, data):
    config = settings(tmp_path, data)
    train(config)
    write_suite(data, n_demos=5, px=32)
    with pytest.raises(CheckpointError, match="files changed"):
        train(config)


def test_another_policy_to_start_from_under_a_running_name_is_refused(tmp_path, data):
    start = train(settings(tmp_path, data)).checkpoint
    second = settings(tmp_path, data, name="second", prior_path=None, init_from=str(start))
    train(second, should_stop=lambda: True)
    other = train(settings(tmp_path, data, name="other", seed=1)).checkpoint
    shutil.copy(other / "model.safetensors", start / "model.safetensors")
    with pytest.raises(CheckpointError, match="starting policy changed"):
        train(second)


def test_settings_list_everything_wrong_at_once():
    with pytest.raises(ContractError) as caught:
        TrainConfig.from_dict({"stepps": 3, "batch_size": "many", "data": {"held_out": True}})
    message = str(caught.value)
    assert "did you mean 'steps'" in message
    assert "batch_size is 'many', expected int" in message
    assert "data.held_out is True" in message


def test_a_shift_needs_a_running_prior():
    values = {
        "prior_path": "random",
        "data": {"dirs": ["x"], "augment": {"shift_px": 4}},
        "sinks": ["jsnl"],
    }
    with pytest.raises(ContractError, match=r"jsonl.*shift_px"):
        TrainConfig.from_dict(values)


def test_a_graft_replaces_a_prior_of_the_same_settings_and_other_weights(tmp_path, data):
    start = tiny_policy(seed=0)
    start.save_pretrained(tmp_path / "start")
    made = {"init_from": str(tmp_path / "start"), "graft": True, "policy": start.config.to_dict()}
    own = str(tmp_path / "start" / "prior")
    kept = open_policy(settings(tmp_path, data, prior_path=own, **made))
    new = open_policy(settings(tmp_path, data, prior_path="random", seed=9, **made))
    first, before, after = (p.model.prior.state_dict() for p in (start, kept, new))
    assert all(torch.equal(first[name], before[name]) for name in first)
    assert any(not torch.equal(first[name], after[name]) for name in first)


def test_without_a_prior_no_prior_is_looked_for(tmp_path, data):
    policy = tiny_config().to_dict()
    policy["fusion"] = {**policy["fusion"], "name": "none"}
    assert open_policy(settings(tmp_path, data, prior_path="/nowhere", policy=policy)) is None
    with pytest.raises(CheckpointError, match="nowhere"):
        open_policy(settings(tmp_path, data, prior_path="/nowhere"))


def test_hidden_units_are_added_and_survive_a_stop(tmp_path, data):
    policy = tiny_config().to_dict()
    policy["fusion"] = {**policy["fusion"], "name": "none"}
    start = tmp_path / "start"
    tiny_policy(seed=0).save_pretrained(start)
    made = {"init_from": str(start), "graft": True, "graft_widen": 5, "policy": policy}
    whole = settings(tmp_path, data, name="whole", **made)
    parts = settings(tmp_path, data, name="parts", **made)
    found = train(whole)
    calls = iter([False, False, True])
    assert train(parts, should_stop=lambda: next(calls, True)).ending == "signal"
    assert train(parts).trained_weights == found.trained_weights
    assert_same_run(whole, parts)
    name = "vision.semantic_projector.fc1.weight"
    assert weights(whole)[1][name].shape[0] == tiny_config().projector.semantic_hidden + 5
