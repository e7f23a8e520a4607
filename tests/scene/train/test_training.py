"""Training: continues where it stopped, learns through the features, ends in files that are scored."""

import dataclasses
import json

import pytest
import torch

from vega_policy.scene.train.arms import ARMS
from vega_policy.scene.train.corpus import corpus_of
from vega_policy.scene.train.learning import SceneLoss
from vega_policy.scene.train.runs import Job, bank_of, build, run_all
from vega_policy.scene.train.settings import SceneTrainConfig
from vega_policy.spec import CheckpointError, ContractError


@pytest.fixture(scope="module")
def corpus(bare_rooms):
    rooms, rows = bare_rooms
    return corpus_of(rooms[:6], rooms[6:], rows)


def settings(out, **changed):
    values = {
        "out": str(out),
        "workers": 1,
        "warmup_steps": 2,
        "feature_store": "",
        "shift_m": 0.5,
        "checkpoint_every_s": 0.0,
        "eyes": {"steps": 0},
        "words_first": 1,
        "scannet": {"arms": ["oracle"], "steps": 4, "texts_per_scene": 6},
        "vsi": {"arms": []},
    }
    return SceneTrainConfig.from_dict({**values, **changed})


def weights_of(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model" / "heads.safetensors")


def test_a_resumed_run_ends_as_one_that_was_never_stopped(corpus, tmp_path, monkeypatch):
    job = Job("scannet", "oracle")
    whole, stopped = settings(tmp_path / "whole"), settings(tmp_path / "stopped")
    run_all(whole, corpus)
    plain = SceneLoss.__call__

    def killed(self, step):
        if step == 2:
            raise KeyboardInterrupt
        return plain(self, step)

    monkeypatch.setattr(SceneLoss, "__call__", killed)
    with pytest.raises(KeyboardInterrupt):
        run_all(stopped, corpus)
    monkeypatch.setattr(SceneLoss, "__call__", plain)
    run_all(stopped, corpus)
    first, second = (weights_of(job.folder(c)) for c in (whole, stopped))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    files = sorted(p.name for p in (job.folder(whole) / "predictions").iterdir())
    assert files == ["multi3drefer.json", "scan2cap.json", "scanqa.json", "scanrefer.json"]
    for name in files:
        paths = [job.folder(c) / "predictions" / name for c in (whole, stopped)]
        assert paths[0].read_text() == paths[1].read_text()
    folder = job.folder(stopped)
    last = json.loads((folder / "train_metrics.jsonl").read_text().splitlines()[-1])
    said = json.loads((folder / "done.json").read_text())
    assert said["seconds"]["training"] >= last["spent_s"], "what came before the stop counts too"
    with pytest.raises(CheckpointError, match="peak"):
        run_all(dataclasses.replace(stopped, peak=0.5), corpus)


def test_an_arm_that_is_done_is_not_trained_again(corpus, tmp_path, monkeypatch):
    config = settings(tmp_path)
    run_all(config, corpus)
    monkeypatch.setattr(SceneLoss, "__call__", None)
    run_all(config, corpus)


@pytest.mark.parametrize(("name", "is_learnt"), [("oracle", True), ("no_prior", False)])
def test_what_only_places_decide_is_learnt_from_coordinates_alone(
    corpus, name, is_learnt, tmp_path
):
    config = settings(
        tmp_path,
        warmup_steps=20,
        checkpoint_every_s=30.0,
        tasks=["scanrefer"],
        words_first=60,
        peak=5e-4,
        precision="float32",
        scannet={"arms": [name], "steps": 160, "texts_per_scene": 6},
    )
    run_all(config, corpus)
    path = Job("scannet", name).folder(config) / "predictions" / "scanrefer.json"
    truth = {room.scene_id: room for room in corpus.held_out}
    said = json.loads(path.read_text())
    right = [
        bool(
            torch.allclose(torch.tensor(row["box"]), truth[row["scene_id"]].boxes[row["object_id"]])
        )
        for row in said
    ]
    assert len(right) == 8
    assert all(right) if is_learnt else sum(right) <= 6


def test_blind_frames_hide_the_scene(corpus, tmp_path):
    config = settings(tmp_path)
    arm = ARMS["no_vision"]
    model = build("scannet", arm, config, corpus)
    from vega_policy.scene.train.learning import encode

    bank = bank_of(model, corpus.train, config)
    first, second = (encode(model, arm, room, bank).tokens[0] for room in corpus.train[:2])
    assert torch.equal(first, second)


def test_questions_about_objects_that_are_not_there_are_refused(bare_rooms):
    rooms, rows = bare_rooms
    wrong = [dataclasses.replace(rows["scanrefer"][0], object_id=99)]
    with pytest.raises(ContractError, match=r"objects \[99\]"):
        corpus_of(rooms[:6], rooms[6:], {"scanrefer": wrong})


def test_every_wrong_setting_is_named_at_once():
    with pytest.raises(ContractError, match=r"'orakel'.*oracle.*workers is 0"):
        SceneTrainConfig.from_dict({"scannet": {"arms": ["orakel"]}, "workers": 0})
