"""The score is what its sentence says, and the controls land where they must."""

import itertools
import math
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest

from vega_policy.scene.correspondence import (
    CONTROLS,
    CorrespondenceSettings,
    correspondence,
    find_matches,
)
from vega_policy.scene.correspondence.features import WHOLE
from vega_policy.scene.correspondence.score import bootstrap
from vega_policy.spec import ContractError
from vega_policy.testing.box_room import box_room

GRID = (5, 7)


@pytest.fixture(scope="module")
def room():
    """Five views, a third of the depth missing; colour of another size than depth."""
    scan = box_room(seed=3, n_frames=5, height=24, width=32)
    large = box_room(seed=3, n_frames=5, height=34, width=42)
    hole = np.random.default_rng(0).random((5, 24, 32)) < 0.35
    frames = [
        replace(
            large.frames[i],
            depth_m=np.where(hole[i], 0, scan.frames[i].depth_m).astype(np.float32),
        )
        for i in range(5)
    ]
    axis = np.eye(4)
    axis[:3, :3] = [[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]]
    axis[:3, 3] = [0.3, -0.2, 0.1]
    return replace(
        scan, frames=frames, intrinsics=large.intrinsics, axis_alignment=axis, scene_id="room"
    )


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(1).normal(size=(5, *GRID, 7)) + 0.5


@pytest.fixture(scope="module")
def big_room():
    return box_room(seed=1, n_frames=12, height=84, width=112)


def scored(scan, tokens, **settings):
    chosen = CorrespondenceSettings(**settings)
    matches = find_matches(scan, grid=tokens.shape[1:3], settings=chosen)
    return correspondence([tokens], [matches], scene_ids=[scan.scene_id], mean=chosen.mean)


def control(name, scan, **settings):
    matches = find_matches(scan, grid=(14, 14), settings=CorrespondenceSettings(**settings))
    return correspondence([CONTROLS[name](scan, matches, WHOLE)], [matches], scene_ids=["a"])


# The score again, from its sentence and in loops: every pixel, token, voxel and pair by itself.


def places(frame, scan, grid, *, masked, share):
    """Return {(row, column): point} of the tokens that have a place."""
    hd, wd = frame.depth_m.shape
    h, w = frame.image.shape[:2]
    kd, kc = scan.depth_intrinsics, scan.intrinsics
    pixels = defaultdict(list)
    for y, x in itertools.product(range(hd), range(wd)):
        z = float(frame.depth_m[y, x])
        ray = np.array([(x - kd[0, 2]) / kd[0, 0], (y - kd[1, 2]) / kd[1, 1], 1.0])
        seen = kc @ ray
        row = math.floor((seen[1] + 0.5) / h * grid[0])
        column = math.floor((seen[0] + 0.5) / w * grid[1])
        if 0 <= row < grid[0] and 0 <= column < grid[1]:
            world = frame.pose @ np.append(ray * z, 1.0)
            pixels[row, column].append((z > 0, (scan.axis_alignment @ world)[:3]))
    found = {}
    for cell, members in pixels.items():
        measured = [point for has_depth, point in members if has_depth]
        if measured and len(measured) >= share * len(members):
            taken = measured if masked else [point for _, point in members]
            found[cell] = np.mean(taken, axis=0)
    return found


def cosine(a, b):
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def slow_score(
    scan, tokens, *, voxel_m=0.1, pairs="all", mean="pair", masked=True, share=0.1, centre=None
):
    """Return (mvcs, mvcs_negative, number of matches) of one scan."""
    centre = np.zeros(tokens.shape[-1]) if centre is None else centre
    seen = defaultdict(lambda: defaultdict(list))
    for v, frame in enumerate(scan.frames):
        for cell, point in places(
            frame, scan, tokens.shape[1:3], masked=masked, share=share
        ).items():
            voxel = tuple(math.floor(p / voxel_m) for p in point)
            seen[voxel][v].append(tokens[v][cell])
    means = {
        m: {v: np.mean(t, axis=0) - centre for v, t in by_view.items()}
        for m, by_view in seen.items()
    }
    matches = [
        (m, i, j)
        for m, by_view in means.items()
        for i, j in itertools.combinations(sorted(by_view), 2)
        if pairs == "all" or j == i + 1
    ]
    positive, negative = defaultdict(list), defaultdict(list)
    for m, i, j in matches:
        unit = {"pair": (m, i, j), "voxel": m, "view_pair": (i, j)}[mean]
        positive[unit].append(cosine(means[m][i], means[m][j]))
        others = [n for n, a, b in matches if (a, b) == (i, j) and n != m]
        crossed = [cosine(means[m][i], means[n][j]) for n in others]
        crossed += [cosine(means[n][i], means[m][j]) for n in others]
        if crossed:
            negative[unit].append(np.mean(crossed))
    total = [
        np.mean([np.mean(values) for values in part.values()]) for part in (positive, negative)
    ]
    return (*total, len(matches))


def slow_mean(scan, tokens, *, masked=True, share=0.1):
    """Return the mean over all tokens that have a place."""
    return np.mean(
        [
            tokens[v][cell]
            for v, frame in enumerate(scan.frames)
            for cell in places(frame, scan, tokens.shape[1:3], masked=masked, share=share)
        ],
        axis=0,
    )


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("pairs", ["all", "adjacent"])
@pytest.mark.parametrize("mean", ["pair", "voxel", "view_pair"])
def test_score_equals_the_slow_reading_of_its_definition(room, tokens, pairs, mean, masked):
    settings = {"voxel_m": 0.45, "pairs": pairs, "mean": mean, "masked": masked}
    found = scored(room, tokens, **settings)
    mvcs, negative, n = slow_score(room, tokens, **settings)
    assert found.n_matches == n > 20
    assert found.mvcs == pytest.approx(mvcs, abs=1e-9)
    assert found.mvcs_negative == pytest.approx(negative, abs=1e-9)
    assert found.gap == pytest.approx(mvcs - negative, abs=1e-9)
    centre = slow_mean(room, tokens, masked=masked)
    centred, _, _ = slow_score(room, tokens, **settings, centre=centre)
    assert found.mvcs_centred == pytest.approx(centred, abs=1e-9)
    assert abs(found.mvcs - found.mvcs_centred) > 0.1


def test_token_with_too_little_depth_has_no_place(room, tokens):
    settings = {"voxel_m": 0.45, "min_depth_share": 0.7}
    found = scored(room, tokens, **settings)
    mvcs, _, n = slow_score(room, tokens, voxel_m=0.45, share=0.7)
    assert found.n_matches == n < scored(room, tokens, voxel_m=0.45).n_matches
    assert found.mvcs == pytest.approx(mvcs, abs=1e-9)


def test_depth_less_pixels_pull_places_to_the_camera_unless_masked(room):
    masked = find_matches(room, grid=GRID).points
    unmasked = find_matches(room, grid=GRID, settings=CorrespondenceSettings(masked=False)).points
    eyes = np.stack([(room.axis_alignment @ f.pose)[:3, 3] for f in room.frames])
    apart, near = (
        np.linalg.norm(points - eyes[:, None, None], axis=-1) for points in (masked, unmasked)
    )
    known = np.isfinite(apart)
    assert (near[known] <= apart[known] + 1e-9).all()
    assert near[known].mean() < 0.75 * apart[known].mean()


def test_controls_land_where_they_must(big_room):
    oracle = control("xyz oracle", big_room)
    constant = control("constant + 5 % noise", big_room)
    noise = control("iid noise", big_room)
    position = control("image position only", big_room)
    untrained = control("random conv net", big_room)
    assert oracle.n_matches > 400
    assert oracle.mvcs > 0.9
    assert oracle.mvcs_centred > 0.85
    assert oracle.gap > 0.4
    assert constant.mvcs == pytest.approx(1 / 1.0025, abs=1e-3)
    assert abs(constant.gap) < 1e-3
    assert abs(constant.mvcs_centred) < 0.02
    assert abs(noise.mvcs) < 0.02
    assert abs(position.mvcs) < 0.06
    # The raw score alone puts both above geometry itself; centring and the gap put them below.
    assert constant.mvcs > oracle.mvcs
    assert untrained.mvcs_centred < oracle.mvcs_centred
    assert untrained.gap < oracle.gap


def test_larger_voxels_cost_the_oracle(big_room):
    found = [control("xyz oracle", big_room, voxel_m=v).mvcs for v in (0.05, 0.1, 0.2, 0.4)]
    assert found == sorted(found, reverse=True)


@pytest.mark.parametrize("mean", ["pair", "voxel", "view_pair"])
def test_order_of_views_does_not_matter_when_all_pair(room, tokens, mean):
    order = [3, 0, 4, 2, 1]
    shuffled = replace(room, frames=[room.frames[i] for i in order])
    a = scored(room, tokens, voxel_m=0.45, mean=mean)
    b = scored(shuffled, tokens[order], voxel_m=0.45, mean=mean)
    for number in ("mvcs", "mvcs_centred", "mvcs_negative", "gap"):
        assert getattr(a, number) == pytest.approx(getattr(b, number), abs=1e-12)


def test_motion_of_the_world_that_maps_voxels_to_voxels_changes_nothing(room, tokens):
    motion = np.array([[0, -1, 0, 1.8], [1, 0, 0, -0.9], [0, 0, 1, 0.45], [0, 0, 0, 1.0]])
    moved = replace(room, axis_alignment=motion @ room.axis_alignment)
    a, b = (scored(scan, tokens, voxel_m=0.45) for scan in (room, moved))
    assert (a.mvcs, a.n_matches) == (pytest.approx(b.mvcs, abs=1e-9), b.n_matches)
    shift = np.eye(4)
    shift[0, 3] = 0.2
    other = scored(replace(room, axis_alignment=shift @ room.axis_alignment), tokens, voxel_m=0.45)
    assert other.mvcs != pytest.approx(a.mvcs, abs=1e-6)


def test_poses_carry_the_same_motion_as_the_alignment(room, tokens):
    poses = [replace(f, pose=room.axis_alignment @ f.pose) for f in room.frames]
    same = replace(room, frames=poses, axis_alignment=np.eye(4))
    assert scored(same, tokens, voxel_m=0.45).mvcs == pytest.approx(
        scored(room, tokens, voxel_m=0.45).mvcs, abs=1e-9
    )


def test_scale_and_rotation_of_features_change_nothing(room, tokens):
    turn, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(7, 7)))
    a, b = (scored(room, t, voxel_m=0.45) for t in (tokens, 40 * tokens @ turn))
    assert a.mvcs == pytest.approx(b.mvcs, abs=1e-9)
    assert a.mvcs_centred == pytest.approx(b.mvcs_centred, abs=1e-9)


def test_window_looks_only_at_its_part_of_the_image(room):
    left = find_matches(room, grid=(6, 4), window=(0.0, 0.0, 1.0, 0.5)).points
    np.testing.assert_array_equal(left, find_matches(room, grid=(6, 8)).points[:, :, :4])


def test_zero_features_have_no_cosine_and_say_so(room):
    found = scored(room, np.zeros((5, *GRID, 3)), voxel_m=0.45)
    assert np.isnan(found.mvcs)
    assert found.n_undefined == found.n_matches > 0


def test_constant_features_vanish_when_centred(room):
    found = scored(room, np.full((5, *GRID, 3), 0.1), voxel_m=0.45)
    assert found.mvcs == pytest.approx(1.0)
    assert np.isnan(found.mvcs_centred)
    assert found.gap == pytest.approx(0.0, abs=1e-12)


def test_data_set_is_the_mean_over_scenes_with_one_common_centre(room, tokens):
    other = replace(box_room(seed=8, n_frames=5, height=24, width=32), scene_id="other")
    matches = [
        find_matches(s, grid=GRID, settings=CorrespondenceSettings(voxel_m=0.45))
        for s in (room, other)
    ]
    both = correspondence([tokens, tokens + 3], matches, scene_ids=["room", "other"])
    alone = scored(room, tokens, voxel_m=0.45)
    assert both.scenes[0].mvcs == pytest.approx(alone.mvcs, abs=1e-12)
    assert both.scenes[0].mvcs_centred != pytest.approx(alone.mvcs_centred, abs=1e-3)
    assert both.mvcs == pytest.approx(np.mean([s.mvcs for s in both.scenes]))
    assert both.gap == pytest.approx(both.mvcs - both.mvcs_negative)
    low, high = both.intervals["mvcs"]
    assert low <= both.mvcs <= high


def test_bootstrap_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    intervals = [bootstrap(rng.normal(size=60), seed=i, n_draws=400) for i in range(200)]
    covered = np.mean([low < 0 < high for low, high in intervals])
    assert 0.89 < covered < 0.99
    assert bootstrap(np.array([0.5]), seed=0) is None


@pytest.mark.parametrize(
    ("setting", "advice"),
    [
        ({"voxel_m": 0}, "metres above 0"),
        ({"pairs": "al"}, "did you mean 'all'"),
        ({"mean": "voxels"}, "did you mean 'voxel'"),
        ({"min_depth_share": 0}, "a share in"),
    ],
)
def test_setting_without_meaning_names_what_would_be_one(setting, advice):
    with pytest.raises(ContractError, match=advice):
        CorrespondenceSettings(**setting)
