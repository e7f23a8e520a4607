"""Position code, object features, grounding rules, prompts and inputs, each against a slow reading."""

import math

import numpy as np
import pytest
import torch

from vega_policy.scene.heads import prompts
from vega_policy.scene.heads.config import CodeConfig, ScanNetConfig, from_dict, to_dict
from vega_policy.scene.heads.grounding import GroundingHead, info_nce
from vega_policy.scene.heads.inputs import scene_inputs, video_inputs
from vega_policy.scene.heads.object_features import (
    object_means,
    patch_points,
    patches_of_boxes,
    shares_of_boxes,
)
from vega_policy.scene.heads.position_code import cell_points, position_code
from vega_policy.scene.heads.presets import scannet_config, vsi_config
from vega_policy.scene.scan import Frame, Scan
from vega_policy.spec import ContractError


def slow_code(point, width, config):
    per_axis = 2 * (width // 6)
    values = []
    for x, low, high in zip(point, config.low_m, config.high_m, strict=True):
        cell = round((min(max(x, low), high) - low) / config.cell_m)
        for i in range(per_axis // 2):
            angle = cell / config.temperature ** (2 * i / per_axis)
            values += [math.sin(angle), math.cos(angle)]
    return values + [0.0] * (width - len(values))


@pytest.mark.parametrize("width", [3584, 128, 16])
def test_position_code_is_the_slow_one(width):
    points = torch.tensor([[0.0, 0.0, 0.0], [1.26, -3.48, 2.22], [99.0, -99.0, 99.0]])
    code = position_code(points, width=width, config=CodeConfig())
    slow = torch.tensor([slow_code(p.tolist(), width, CodeConfig()) for p in points])
    assert torch.allclose(code, slow, atol=2e-4)  # float32 sines of angles up to 300


def test_position_code_of_the_published_width_leaves_two_numbers_zero():
    code = position_code(torch.rand(5, 3), width=3584, config=CodeConfig())
    assert (code[:, -2:] == 0).all()
    assert (code[:, 1194 * 3 - 1] != 0).all()


def test_cells_are_means_of_27_by_27_pixels_of_the_378_that_patches_cover():
    points = torch.rand(1, 384, 384, 3, generator=torch.Generator().manual_seed(0))
    counts = torch.ones(1, 384, 384, dtype=torch.bool)
    means, known = cell_points(points, counts, grid=14, patch_px=14)
    assert means.shape == (1, 196, 3)
    assert known.all()
    slow = points[0, 13 * 27 : 378, 27:54].reshape(-1, 3).mean(0)
    assert torch.allclose(means[0, 13 * 14 + 1], slow, atol=1e-5)


def test_pixels_without_depth_do_not_move_a_cell_unless_they_are_to_count():
    points = torch.zeros(1, 4, 4, 3)
    points[0, 0, 0] = 2.0
    measured = torch.zeros(1, 4, 4, dtype=torch.bool)
    measured[0, 0, 0] = True
    means, known = cell_points(points, measured, grid=2, patch_px=2)
    assert means[0, 0].tolist() == [2.0] * 3
    assert known[0].tolist() == [True, False, False, False]
    means, known = cell_points(points, torch.ones_like(measured), grid=2, patch_px=2)
    assert means[0, 0].tolist() == [0.5] * 3
    assert known.all()


def test_a_patch_belongs_to_a_box_from_98_of_196_points_on():
    points = torch.full((1, 28, 28, 3), 9.0)
    points[0, :7, :14] = 0.0  # 98 of the first patch
    points[0, :7, 14:27] = 0.0  # 91 of the second
    cut = patch_points(points, patch_px=14)
    counts = torch.ones(cut.shape[:3], dtype=torch.bool)
    boxes = torch.tensor([[0.0, 0, 0, 1, 1, 1], [50.0, 0, 0, 1, 1, 1]])
    belongs = patches_of_boxes(cut, counts, boxes)
    assert belongs[0, 0].tolist() == [True, False, False, False]
    assert not belongs[1].any()
    counts[0, 0, 0] = False
    assert not patches_of_boxes(cut, counts, boxes).any()


def test_patches_of_boxes_are_those_of_the_slow_count():
    g = torch.Generator().manual_seed(0)
    corners = torch.rand(2, 3, 1, 3, generator=g) * 3
    points = corners + torch.rand(2, 3, 16, 3, generator=g) * 0.3
    counts = torch.rand(2, 3, 16, generator=g) > 0.2
    boxes = torch.cat([corners.view(6, 3), torch.rand(6, 3, generator=g) * 2 + 0.2], dim=1)
    found = patches_of_boxes(points, counts, boxes)
    for n, v, m in np.ndindex(6, 2, 3):
        inside = sum(
            bool(c) and bool(((p - boxes[n, :3]).abs() <= boxes[n, 3:] / 2).all())
            for p, c in zip(points[v, m], counts[v, m], strict=True)
        )
        assert found[n, v, m] == (inside >= 8)
        assert shares_of_boxes(points, counts, boxes)[n, v, m] == inside / 16
    assert 0 < found.sum() < found.numel()


def test_objects_are_means_over_views_and_zero_where_nothing_is_seen():
    tokens = torch.arange(12.0).view(2, 3, 2)
    belongs = torch.zeros(2, 2, 3, dtype=torch.bool)
    belongs[0, 0, 1] = belongs[0, 1, 2] = True
    assert object_means(tokens, belongs).tolist() == [[6.0, 7.0], [0.0, 0.0]]


def test_objects_smaller_than_a_patch_have_a_mean_by_shares():
    tokens = torch.arange(12.0).view(2, 3, 2)
    shares = torch.zeros(2, 2, 3)
    shares[0, 0, 1], shares[0, 1, 2] = 0.1, 0.3
    assert torch.allclose(object_means(tokens, shares)[0], (tokens[0, 1] + 3 * tokens[1, 2]) / 4)
    assert not object_means(tokens, shares)[1].any()


def test_info_nce_on_an_example_by_hand():
    scores = torch.tensor([0.07, 0.0, 0.14])  # 1, 0, 2 after the temperature
    e = math.e
    total = e + 1 + e**2
    assert info_nce(scores, [0]).item() == pytest.approx(-math.log(e / total))
    assert info_nce(scores, [0, 1]).item() == pytest.approx(-math.log((e + 1) / total))
    assert info_nce(scores, []).item() == pytest.approx(-math.log(e**2 / total))
    with pytest.raises(ValueError, match=r"targets \[2\] are no objects"):
        info_nce(scores, [2])


def test_gradient_of_info_nce_is_share_minus_share_of_the_targets():
    scores = torch.tensor([0.3, -0.1, 0.2, 0.0], dtype=torch.float64, requires_grad=True)
    info_nce(scores, [0, 2]).backward()
    share = (scores.detach() / 0.07).softmax(0)
    meant = torch.zeros(4, dtype=torch.float64)
    meant[[0, 2]] = (scores.detach()[[0, 2]] / 0.07).softmax(0)
    assert torch.allclose(scores.grad, (share - meant) / 0.07)
    assert torch.autograd.gradcheck(lambda s: info_nce(s, [0, 2]), scores.detach().requires_grad_())


def test_head_scores_are_cosines_and_every_weight_gets_a_gradient():
    torch.manual_seed(0)
    head = GroundingHead(width=8)
    scores = head(torch.randn(5, 8), torch.randn(8))
    assert scores.shape == (6,)
    assert (scores.abs() <= 1).all()
    info_nce(scores, [1]).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())


def test_prompts_are_the_protocol_word_for_word():
    assert prompts.scanrefer("The Chair by the TV.") == (
        "Identify the object according to the following description.\nThe chair by the tv."
    )
    assert prompts.multi3drefer("a chair").endswith(
        "A chair\nThere may be no corresponding object, or there may be one or more objects."
    )
    assert prompts.scan2cap() == (
        "Given an object located at <coord> , describe the object in detail."
    )
    assert prompts.scanqa("Where?") == "Where? Answer the question simply."
    assert prompts.sqa3d("I stand.", "Where?") == (
        "I stand. Where? Answer the question using a single word or phrase."
    )
    assert prompts.vsi_bench("How many?") == (
        "These are frames of a video.\nHow many?\n"
        "Please answer the question using a single word or phrase."
    )
    assert prompts.vsi_bench("Which?", ["A. x", "B. y"]) == (
        "These are frames of a video.\nWhich?\nOptions:\nA. x\nB. y\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert prompts.MAX_NEW_TOKENS["vsi_bench"] == 16


def scan_of(frames, size=(6, 8)):
    k = np.array([[4.0, 0, size[1] / 2], [0, 4.0, size[0] / 2], [0, 0, 1]])
    return Scan("scene9999_00", frames, k, k, np.eye(4))


def frame_of(index, depth, size=(6, 8)):
    image = np.full((*size, 3), 7 * index, dtype=np.uint8)
    pose = np.eye(4)
    pose[:3, 3] = [0.5, 0, 1]
    return Frame(index, image, depth, pose)


def test_points_lie_where_the_camera_model_puts_them():
    depth = np.full((6, 8), 2.0, dtype=np.float32)
    depth[0, 0] = 0
    inputs = scene_inputs(scan_of([frame_of(0, depth), frame_of(1, depth)]), px=4)
    assert inputs.pixels.shape == (2, 3, 4, 4)
    assert inputs.points.shape == (2, 4, 4, 3)
    # Row 1 of 4 shows depth row 2 of 6, column 3 of 4 shows column 7 of 8.
    assert inputs.points[0, 1, 3].tolist() == [
        0.5 + (7 - 4) / 4 * 2,
        (2 - 3) / 4 * 2,
        3.0,
    ]
    assert inputs.measured.all()
    depth[2, 7] = 0
    inputs = scene_inputs(scan_of([frame_of(0, depth)]), px=4)
    assert not inputs.measured[0, 1, 3]
    assert inputs.points[0, 1, 3].tolist() == [0.5, 0.0, 1.0]  # the camera


def test_frames_of_the_models_size_are_left_as_they_are():
    image = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    frame = Frame(0, image, None, np.eye(4))
    inputs = scene_inputs(scan_of([frame]), px=4)
    assert torch.equal(inputs.pixels[0].permute(1, 2, 0), torch.from_numpy(image))
    assert inputs.points is None


def test_frames_without_depth_among_others_are_listed():
    depth = np.ones((6, 8), dtype=np.float32)
    with pytest.raises(ContractError, match=r"frames \[3, 5\] have no depth"):
        scene_inputs(scan_of([frame_of(1, depth), frame_of(3, None), frame_of(5, None)]), px=4)
    with pytest.raises(ContractError, match="has no frames"):
        scene_inputs(scan_of([]), px=4)


def test_a_video_of_640_by_480_becomes_504_by_392():
    frames = [np.zeros((480, 640, 3), dtype=np.uint8)] * 2
    assert video_inputs(frames, width_px=518, unit_px=28).pixels.shape == (2, 3, 392, 504)


def test_mixed_and_tiny_frames_are_refused():
    small, large = (np.zeros((h, 64, 3), dtype=np.uint8) for h in (48, 64))
    with pytest.raises(ContractError, match="sizes"):
        video_inputs([small, large], width_px=112, unit_px=28)
    with pytest.raises(ContractError, match="less than one token"):
        video_inputs([small], width_px=20, unit_px=28)


@pytest.mark.parametrize("config", [scannet_config("7b"), scannet_config(), vsi_config("7b")])
def test_settings_survive_json(config):
    import json

    assert from_dict(type(config), json.loads(json.dumps(to_dict(config)))) == config


def test_unknown_settings_are_listed():
    with pytest.raises(ContractError, match=r"(?s)'tower'.*'code\.cell'.*chat is 'x'"):
        from_dict(ScanNetConfig, {"tower": 1, "code": {"cell": 1}, "chat": "x"})
