"""Towers learn from rooms once, and every arm gets the same."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file

from vega_policy.scene.heads.object_features import patch_points, shares_of_boxes
from vega_policy.scene.heads.presets import nano_scannet, scannet_config
from vega_policy.scene.train.arms import ARMS
from vega_policy.scene.train.corpus import corpus_of
from vega_policy.scene.train.eyes import FILE, Eyes, NamingLoss, share_named, sight_of, train_eyes
from vega_policy.scene.train.models import new_scannet
from vega_policy.scene.train.rooms import Room
from vega_policy.scene.train.settings import SceneTrainConfig
from vega_policy.spec import ContractError

PATCH_PX = scannet_config().vision.semantic.patch_px
HOW = {"policy": "nano-libero-object", "fusion": "token_gate_normed", "seed": 0}


@pytest.fixture(scope="module")
def corpus(bare_rooms):
    rooms, rows = bare_rooms
    # The higher box is a lamp and green, the lower one a table and red.
    return corpus_of([painted(r) for r in rooms[:7]], [painted(r) for r in rooms[7:]], rows)


def painted(room: Room) -> Room:
    high = int(room.boxes[:, 2].argmax())
    pixels = room.seen.pixels.clone()
    points = room.seen.points
    every = pixels.shape[-1] // points.shape[1]
    for i, channel in ((high, 1), (1 - high, 0)):
        box = room.boxes[i]
        low, up = box[:3] - box[3:] / 2, box[:3] + box[3:] / 2
        inside = ((points >= low) & (points <= up)).all(-1) & room.seen.measured
        inside = inside.repeat_interleave(every, 1).repeat_interleave(every, 2)
        for c in range(3):
            pixels[:, c][inside] = 200 if c == channel else 0
    labels = tuple("lamp" if i == high else "table" for i in range(2))
    seen = dataclasses.replace(room.seen, pixels=pixels)
    return dataclasses.replace(room, seen=seen, labels=labels)


def settings(out, **eyes):
    return SceneTrainConfig.from_dict(
        {
            "out": str(out),
            "warmup_steps": 2,
            "checkpoint_every_s": 0.0,
            "precision": "float32",
            "eyes": {"steps": 4, "views": 1, **eyes},
        }
    )


def test_what_is_known_of_an_object_is_its_share_of_patches_and_its_colour(corpus):
    room = corpus.train[0]
    sight = sight_of(room, ["lamp", "table"], PATCH_PX)
    along = PATCH_PX * room.seen.points.shape[1] // room.seen.pixels.shape[-1]
    points, measured = (
        patch_points(part, patch_px=along) for part in (room.seen.points, room.seen.measured)
    )
    assert torch.equal(sight.shares, shares_of_boxes(points, measured, room.boxes))
    assert sight.labels.tolist() == [["lamp", "table"].index(label) for label in room.labels]
    colours = sight.colours.sum(1) / sight.seen.sum(1, keepdim=True)
    for label, colour in zip(room.labels, colours, strict=True):
        expected = [0, 200 / 255, 0] if label == "lamp" else [200 / 255, 0, 0]
        torch.testing.assert_close(colour, torch.tensor(expected))


def test_a_class_that_training_has_not_is_never_right(corpus):
    sights = [sight_of(room, ["sofa"], PATCH_PX) for room in corpus.held_out]
    eyes = Eyes(nano_scannet(["a"]).branch.semantic, ["sofa"])
    right, total = share_named(eyes, corpus.held_out, sights, views=1)
    assert (right, total) == (0, 2 * len(corpus.held_out))


def test_towers_learn_to_name_what_they_could_not(corpus, tmp_path):
    labels = ["lamp", "table"]
    sights = [sight_of(room, labels, PATCH_PX) for room in corpus.held_out]
    for steps, least in ((1, 0.0), (30, 1.0)):
        folder = tmp_path / str(steps)
        train_eyes(settings(tmp_path, steps=steps), corpus, folder)
        assert (folder / FILE).is_file()
        named = json.loads((folder / "done.json").read_text())["named"]
        assert named["of"] == 2 * len(sights)
        assert named["right"] >= least * named["of"]


def test_a_killed_run_ends_with_the_towers_of_an_unbroken_one(corpus, tmp_path, monkeypatch):
    config = settings(tmp_path)
    train_eyes(config, corpus, tmp_path / "whole")
    plain = NamingLoss.__call__

    def dies(self, step):
        if step == 2:
            raise KeyboardInterrupt
        return plain(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(NamingLoss, "__call__", dies)
        with pytest.raises(KeyboardInterrupt):
            train_eyes(config, corpus, tmp_path / "killed")
    assert not (tmp_path / "killed" / FILE).exists()
    train_eyes(config, corpus, tmp_path / "killed")
    whole, killed = (load_file(tmp_path / name / FILE) for name in ("whole", "killed"))
    assert whole.keys() == killed.keys()
    assert all(torch.equal(whole[name], killed[name]) for name in whole)


def test_all_arms_have_the_trained_towers_and_none_trains_them(corpus, tmp_path):
    train_eyes(settings(tmp_path), corpus, tmp_path)
    trained = load_file(tmp_path / FILE)
    policys = nano_scannet(["a"]).branch.semantic.state_dict()
    assert any(not torch.equal(trained[name], policys[name]) for name in trained)
    for arm in ("full", "no_prior", "oracle"):
        model = new_scannet(ARMS[arm], ["a"], wiring="fused", eyes=tmp_path, **HOW)
        towers = model.branch.semantic.towers
        assert all(torch.equal(trained[k], v) for k, v in towers.state_dict().items())
        assert not any(p.requires_grad for p in towers.parameters())


def test_a_room_without_depth_is_refused(corpus):
    room = corpus.train[0]
    bare = dataclasses.replace(
        room, seen=dataclasses.replace(room.seen, points=None, measured=None)
    )
    with pytest.raises(ContractError, match="has no depth"):
        sight_of(bare, ["lamp"], PATCH_PX)
