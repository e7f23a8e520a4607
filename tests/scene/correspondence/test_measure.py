"""Nothing is left out in silence, and controls stand beside every grid."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from vega_policy.scene.correspondence import CONTROLS, FeatureMap, measure
from vega_policy.spec import ContractError
from vega_policy.testing.box_room import box_room


@dataclass(frozen=True)
class Noise:
    """Features for a test."""

    name: str = "noise"
    grid: tuple = (6, 8)
    channels: int = 5
    fill: float = 0.0
    n_extra: int = 0

    def __call__(self, scan):
        size = (len(scan.frames) + self.n_extra, *self.grid, self.channels)
        rng = np.random.default_rng(len(scan.scene_id))
        return FeatureMap(tokens=(rng.normal(size=size) + self.fill).astype(np.float32))


@pytest.fixture(scope="module")
def rooms():
    return [box_room(seed=i, n_frames=6, height=30, width=40) for i in range(3)]


def without_depth(scan, indices):
    frames = [replace(f, depth_m=None) if f.index in indices else f for f in scan.frames]
    return replace(scan, frames=frames)


def test_every_grid_gets_its_own_controls(rooms):
    found = measure(rooms, [Noise(), Noise(name="fine", grid=(8, 8)), Noise(name="third")])
    rows = [(s.grid, s.name) for s in found.scores]
    assert rows[:2] == [((6, 8), "noise"), ((6, 8), "third")]
    assert [n for g, n in rows if g == (6, 8)][2:] == list(CONTROLS)
    assert [n for g, n in rows if g == (8, 8)] == ["fine", *CONTROLS]
    assert all(s.is_control == (s.name in CONTROLS) for s in found.scores)
    assert all(s.n_scenes == 3 for s in found.scores)


def test_scene_and_views_without_depth_are_listed_and_left_out(rooms):
    scans = [rooms[0], without_depth(rooms[1], range(6)), without_depth(rooms[2], {1, 4})]
    found = measure(scans, [Noise()])
    assert found.scene_ids == ("room0000_00", "room0002_00")
    assert found.problems == (
        "scene room0001_00 has no depth, so no voxel can be matched",
        "views [1, 4] of scene room0002_00 have no depth",
    )
    assert "left out: scene room0001_00 has no depth" in found.table()
    assert found.to_json()["left_out"] == list(found.problems)


def test_scene_whose_views_share_nothing_is_listed(rooms):
    far = np.eye(4)
    far[0, 3] = 100.0
    frames = [
        replace(f, pose=np.linalg.matrix_power(far, i) @ f.pose)
        for i, f in enumerate(rooms[1].frames)
    ]
    found = measure([rooms[0], replace(rooms[1], frames=frames)], [Noise()])
    assert found.problems == (
        "scene room0001_00 has no voxel of 0.1 m that two views see with 6x8 tokens",
    )
    assert found.scene_ids == ("room0000_00",)


def test_one_view_is_no_pair_and_no_scan_is_an_error(rooms):
    alone = replace(rooms[0], frames=rooms[0].frames[:1])
    with pytest.raises(
        ContractError, match="1 views with depth, two make a pair; give posed scans"
    ):
        measure([alone], [Noise()])
    with pytest.raises(ContractError, match="none was given"):
        measure([], [Noise()])


def test_scene_given_twice_is_refused(rooms):
    with pytest.raises(ContractError, match="room0000_00 was given twice"):
        measure([rooms[0], rooms[0]], [Noise()])


@pytest.mark.parametrize("sources", [[], [Noise(), Noise()], [Noise(name="iid noise")]])
def test_rows_need_names_of_their_own(rooms, sources):
    with pytest.raises(ContractError, match="a name of its own"):
        measure(rooms, sources)


@pytest.mark.parametrize(
    ("source", "problem"),
    [(Noise(n_extra=1), "one map for each view"), (Noise(fill=np.nan), "are not finite")],
)
def test_features_that_cannot_be_scored_name_source_and_scene(rooms, source, problem):
    with pytest.raises(ContractError, match=f"'noise' of scene room0000_00 .*{problem}"):
        measure(rooms, [source])


def test_result_is_json_and_the_same_again(rooms):
    a, b = (measure(iter(rooms), [Noise()]).to_json() for _ in range(2))
    assert a == b
    row = a["rows"][0]
    assert set(row["intervals"]) == {"mvcs", "mvcs_centred", "mvcs_negative", "gap"}
    assert row["intervals"]["mvcs"][0] <= row["mvcs"] <= row["intervals"]["mvcs"][1]
    zero = measure(rooms, [Noise(name="empty", channels=1, fill=0.0)])
    assert zero.scores[0].width == 1
