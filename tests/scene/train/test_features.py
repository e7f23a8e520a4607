"""Each arm gets what its name says, and nothing is computed twice."""

import dataclasses

import pytest
import torch

from vega_policy.scene.heads.position_code import cell_points, position_code
from vega_policy.scene.train.arms import ARMS
from vega_policy.scene.train.features import FeatureBank
from vega_policy.scene.train.models import new_scannet, new_vsi
from vega_policy.scene.train.rooms import Move, grey
from vega_policy.spec import ContractError

HOW = {"policy": "nano-libero-object", "fusion": "token_gate_normed", "seed": 0}


@pytest.fixture(scope="module")
def model():
    return new_scannet(ARMS["full"], ["a box"], wiring="fused", **HOW)


def test_stored_features_are_the_live_ones(model, bare_rooms, tmp_path):
    rooms = bare_rooms[0][:2]
    live = model.prior_features(rooms[0].seen)
    for _ in range(2):
        bank = FeatureBank(model, rooms, store_dir=tmp_path)
        assert torch.equal(bank.of(rooms[0], "prior"), live)
    model.branch.prior.encode, kept = None, model.branch.prior.encode
    try:
        again = FeatureBank(model, rooms, store_dir=tmp_path).of(rooms[0], "prior")
    finally:
        model.branch.prior.encode = kept
    assert torch.equal(again, live)


def test_shuffled_features_are_those_of_another_scene(model, bare_rooms):
    rooms = bare_rooms[0][:3]
    bank = FeatureBank(model, rooms)
    own = [bank.of(room, "prior") for room in rooms]
    for i, room in enumerate(rooms):
        found = bank.of(room, "shuffled")
        assert not torch.equal(found, own[i])
        assert any(torch.equal(found, own[j]) for j in range(3) if j != i)


def test_one_scene_cannot_be_shuffled(model, bare_rooms):
    with pytest.raises(ContractError, match="render at least 2"):
        FeatureBank(model, bare_rooms[0][:1])


def test_oracle_features_are_coordinates_and_move_with_the_room(model, bare_rooms):
    rooms = bare_rooms[0][:2]
    bank = FeatureBank(model, rooms)
    moved = Move(turns=1, shift_m=torch.tensor([0.5, -0.3, 0.0])).room(rooms[0])
    for room in (rooms[0], moved):
        places, known = cell_points(room.seen.points, room.seen.measured, grid=8, patch_px=4)
        code = position_code(places, width=128, config=model.config.code)
        assert torch.equal(bank.of(room, "xyz"), code * known.unsqueeze(-1))
    assert not torch.equal(bank.of(moved, "xyz"), bank.of(rooms[0], "xyz"))
    assert bank.of(rooms[0], "zeroed").shape == bank.of(rooms[0], "xyz").shape
    assert not bank.of(rooms[0], "zeroed").any()


def test_features_of_videos_have_the_models_grid(bare_rooms):
    model = new_vsi(ARMS["full"], ["a box"], **HOW)
    room = bare_rooms[0][0]
    bank = FeatureBank(model, bare_rooms[0][:2])
    for what in ("prior", "shuffled", "zeroed", "xyz"):
        features = bank.of(room, what)
        assert features.ndim == 4
        assert model.encode([room.video], prior_features=[features]).tokens[0].isfinite().all()


def test_moving_a_room_keeps_points_in_their_boxes(bare_rooms):
    room = bare_rooms[0][0]
    moved = Move(turns=3, shift_m=torch.tensor([1.0, 2.0, 0.0])).room(room)

    def inside(r):
        half = r.boxes[:, 3:] / 2
        points = r.seen.points[r.seen.measured]
        return ((points[:, None] - r.boxes[:, :3]).abs() <= half).all(-1).sum(0)

    assert (inside(room) > 200).all()
    assert torch.equal(inside(moved), inside(room))


def test_arms_start_with_equal_weights_where_they_have_the_same(bare_rooms):
    full = new_scannet(ARMS["full"], ["a box"], wiring="fused", **HOW)
    none = new_scannet(ARMS["no_prior"], ["a box"], wiring="fused", **HOW)
    shared = dict(full.named_parameters())
    assert all(torch.equal(p, shared[name]) for name, p in none.named_parameters())
    assert none.branch.prior is None
    assert len(shared) > len(dict(none.named_parameters()))
    seen = bare_rooms[0][0].seen
    assert grey(seen).pixels.unique().tolist() == [128]
    assert dataclasses.replace(seen) is not seen
