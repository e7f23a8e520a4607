"""Checkpoints: whole or not at all, the same bits, all disagreements at once, nothing written."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from vega_policy.policy import from_pretrained, pretrained
from vega_policy.spec import ActionSpec, CheckpointError, ContractError
from vega_policy.testing.tiny_policy import tiny_config, tiny_observation, tiny_policy
from vega_policy.vision.fusion import FusionConfig


@pytest.fixture(scope="module")
def policy():
    return tiny_policy()


@pytest.fixture
def checkpoint(policy, tmp_path):
    policy.save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def snapshot(folder: Path):
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()}


def change(path: Path, edit):
    values = json.loads(path.read_text())
    edit(values)
    path.write_text(json.dumps(values))


def test_a_loaded_policy_gives_the_same_bits_and_loading_writes_nothing(policy, checkpoint):
    before = snapshot(checkpoint.parent)
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    loaded = from_pretrained(checkpoint)
    assert torch.equal(torch.rand(1), expected)
    assert snapshot(checkpoint.parent) == before
    assert loaded.config == policy.config
    for seed in range(2):
        seen = [tiny_observation(seed)]
        a, b = policy.act(seen, keys=[1])[0], loaded.act(seen, keys=[1])[0]
        assert np.array_equal(a.actions, b.actions)
        assert np.array_equal(a.gate["wrist"], b.gate["wrist"])


def test_saving_twice_gives_the_same_weights_and_leaves_nothing_behind(policy, checkpoint):
    first = (checkpoint / "model.safetensors").read_bytes()
    policy.save_pretrained(checkpoint, card="# Second\n")
    assert (checkpoint / "model.safetensors").read_bytes() == first
    assert (checkpoint / "README.md").read_text() == "# Second\n"
    assert [p.name for p in checkpoint.parent.iterdir()] == ["tiny"]


def test_a_save_that_fails_leaves_the_old_checkpoint_alone(policy, checkpoint, monkeypatch):
    before = snapshot(checkpoint.parent)

    def fail(*_args, **_kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(pretrained, "save_statistics", fail)
    with pytest.raises(OSError, match="disk full"):
        policy.save_pretrained(checkpoint)
    assert snapshot(checkpoint.parent) == before


def test_a_folder_that_is_not_a_checkpoint_is_never_replaced(policy, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ContractError, match="choose another directory"):
        policy.save_pretrained(tmp_path)
    assert (tmp_path / "thesis.txt").exists()


def test_a_cast_policy_still_answers(checkpoint):
    half = from_pretrained(checkpoint, dtype=torch.bfloat16)
    full = from_pretrained(checkpoint)
    seen = [tiny_observation(0)]
    a, b = half.act(seen, keys=[0])[0].actions, full.act(seen, keys=[0])[0].actions
    np.testing.assert_allclose(a[:, :6], b[:, :6], atol=0.1)


def test_all_disagreements_are_listed_at_once(checkpoint):
    change(checkpoint / "config.json", lambda c: c["policy"]["action"].update(size=6))
    change(checkpoint / "config.json", lambda c: c["policy"].update(proprio_size=9))
    with pytest.raises(CheckpointError) as error:
        from_pretrained(checkpoint, expected=ActionSpec(horizon=16))
    for words in (
        "statistics of libero_object: action q01 has 7 numbers, the configuration 6",
        "statistics of libero_object: proprio q99 has 8 numbers, the configuration 9",
        "weight head.fc_out.weight is [7, 32], the configuration builds [6, 32]",
        "weight proprio.fc1.weight is [32, 8]",
        "action size: the checkpoint has 6, the run has 7",
        "action horizon: the checkpoint has 8, the run has 16",
    ):
        assert words in str(error.value)


def test_missing_and_unexpected_weights_are_all_named(checkpoint):
    weights = load_file(checkpoint / "model.safetensors")
    del weights["head.fc_out.bias"], weights["proprio.fc1.bias"]
    weights["surprise"] = torch.zeros(1)
    save_file(weights, checkpoint / "model.safetensors")
    with pytest.raises(CheckpointError) as error:
        from_pretrained(checkpoint)
    for words in ("lack head.fc_out.bias", "lack proprio.fc1.bias", "unknown surprise"):
        assert words in str(error.value)


def test_a_truncated_weight_file_is_a_checkpoint_error(checkpoint):
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=r"its header describes .*: it was not downloaded"):
        from_pretrained(checkpoint)


def test_large_checkpoints_are_written_in_shards_and_read_back(policy, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "SHARD_BYTES", "100KB")
    policy.save_pretrained(tmp_path / "tiny")
    files = sorted(p.name for p in tmp_path.glob("tiny/model*"))
    assert len(files) > 2
    assert files[-1] == "model.safetensors.index.json"
    assert_equal(policy.model, from_pretrained(tmp_path / "tiny").model)
    (tmp_path / "tiny" / files[1]).unlink()
    with pytest.raises(CheckpointError, match=f"lacks {files[1]}"):
        from_pretrained(tmp_path / "tiny")


def assert_equal(a, b):
    first, second = a.trainable_state_dict(), b.trainable_state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_training_on_mapped_weights_does_not_reach_the_file(policy, checkpoint):
    before = snapshot(checkpoint)
    loaded = from_pretrained(checkpoint)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            parameter.add_(1)
    assert snapshot(checkpoint) == before
    assert_equal(policy.model, from_pretrained(checkpoint).model)


def test_a_policy_without_a_prior_saves_and_loads_none(tmp_path):
    config = dataclasses.replace(tiny_config(), fusion=FusionConfig(name="none"))
    policy = tiny_policy(tmp_path / "tiny", config=config)
    assert not (tmp_path / "tiny" / "prior").exists()
    loaded = from_pretrained(tmp_path / "tiny")
    assert loaded.model.prior is None
    assert not any("prior" in name for name in loaded.model.state_dict())
    assert_equal(policy.model, loaded.model)


def test_an_unknown_path_is_answered_with_the_nearest(checkpoint):
    with pytest.raises(CheckpointError, match=r"did you mean .*tiny'"):
        from_pretrained(checkpoint.parent / "tinny")


def test_a_checkpoint_of_the_package_is_found_by_its_name(checkpoint, monkeypatch):
    monkeypatch.setattr(pretrained, "ASSETS", checkpoint.parent)
    assert pretrained.resolve("tiny") == checkpoint
    with pytest.raises(CheckpointError, match="did you mean 'tiny'"):
        from_pretrained("tinyy")


def test_a_foreign_directory_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["ACTPolicy"]}')
    with pytest.raises(CheckpointError, match=r"has format None, expected 1; use a directory"):
        from_pretrained(tmp_path)


def test_settings_are_for_published_checkpoints(checkpoint):
    with pytest.raises(CheckpointError, match="leave them out"):
        from_pretrained(checkpoint, settings={"proprio_size": 0})


def test_a_configuration_with_an_unknown_key_names_the_nearest(checkpoint):
    change(checkpoint / "config.json", lambda c: c["policy"].update(chunk=8))
    with pytest.raises(CheckpointError, match=r"config\.json: .*unknown key 'chunk'"):
        from_pretrained(checkpoint)
