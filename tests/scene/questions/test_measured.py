"""Two ways to measure a scene agree, and with pencil and paper."""

from dataclasses import replace

import numpy as np
import pytest

from vega_policy.scene.questions.known import Known, bearings
from vega_policy.scene.questions.measured import Doubt, Measured
from vega_policy.scene.truth import ObjectTruth


def thing(k, centre, size, *, turn_deg=0.0):
    c, s = np.cos(np.radians(turn_deg)), np.sin(np.radians(turn_deg))
    axes = np.array([[c, s, 0], [-s, c, 0], [0, 0, 1.0]])
    return ObjectTruth(
        object_id=k,
        label="box",
        colour="red",
        box=np.concatenate([centre, np.abs(axes.T) @ np.array(size)]),
        centre=np.array(centre, dtype=float),
        size=np.array(size, dtype=float),
        axes=axes,
        visible_px=np.array([900]),
    )


def scene(rooms, *things, floor=None):
    return replace(rooms[0], objects=things, floor=rooms[0].floor if floor is None else floor)


@pytest.mark.parametrize(
    ("other", "gap"),
    [
        (thing(1, (3, 0, 0), (1, 1, 1)), 2.0),
        (thing(1, (3, 0, 4), (1, 1, 1)), np.hypot(2, 3)),
        (thing(1, (3, 3, 4), (1, 1, 1)), np.sqrt(4 + 4 + 9)),
        (thing(1, (3, 0, 0), (1, 1, 1), turn_deg=45), 2.5 - np.sqrt(0.5)),
        (thing(1, (0.7, 0.7, 0), (1, 1, 1), turn_deg=45), 0.0),
        (thing(1, (0, 0, 0), (0.2, 0.2, 0.2)), 0.0),
        (thing(1, (0, 0, 1), (4, 4, 1)), 0.0),
    ],
)
def test_distances_are_those_on_paper(rooms, other, gap):
    truth = scene(rooms, thing(0, (0, 0, 0), (1, 1, 1)), other)
    low, high = Measured(truth).distance(0, 1)
    assert low - 1e-9 <= gap <= high + 1e-9
    assert high - low < 0.0101
    assert Known(truth).gaps[0, 1] == pytest.approx(gap, abs=1e-6)


def test_both_ways_to_measure_agree_on_every_pair(rooms):
    for truth in rooms[:3]:
        known, measured = Known(truth), Measured(truth)
        for i in range(known.n):
            for j in range(i):
                low, high = measured.distance(i, j)
                assert low - 1e-6 <= known.gaps[i, j] <= high + 1e-6


def test_both_ways_to_look_agree_on_every_angle(rooms):
    truth = rooms[0]
    known, measured = Known(truth), Measured(truth)
    stand = measured.places_by(0)
    for i in range(2, known.n):
        ahead, left = measured.seen_from(stand, 1, i)
        angles = bearings(stand, known.centres[1, :2], known.centres[i, :2])
        assert np.allclose(np.degrees(np.arctan2(left, ahead)), angles)


def test_both_ways_to_see_what_is_on_what_agree(rooms):
    for truth in rooms:
        known, measured = Known(truth), Measured(truth)
        for i in range(known.n):
            assert measured.support(i) == known.carrier[i]


def test_areas_are_counted(rooms):
    for truth in rooms:
        assert Measured(truth).area_m2() == pytest.approx(truth.room_size_m2, abs=1e-6)
    corner = np.array([[0, 0], [4, 0], [4, 1], [1, 1], [1, 3], [0, 3]])
    ell = replace(rooms[0], floor=corner.astype(float))
    assert Measured(ell).area_m2() == pytest.approx(4 + 2, abs=0.06)
    assert ell.room_size_m2 == pytest.approx(6)


def test_nobody_stands_where_there_is_no_room(rooms):
    buried = scene(rooms, thing(0, (0, 0, 0.5), (50, 50, 1)))
    with pytest.raises(Doubt, match="nobody can stand"):
        Measured(buried).places_by(0)
    with pytest.raises(Doubt, match="no floor"):
        Measured(replace(buried, floor=None)).places_by(0)


def test_places_by_a_thing_are_near_it_and_not_inside(rooms):
    measured = Measured(rooms[0])
    for i in range(len(measured.objects)):
        off = measured.off_plan(i, measured.places_by(i))
        assert off.min() > 0
        assert off.max() <= 0.4


def test_a_wall_of_boxes_blocks_the_view_and_a_low_one_does_not(rooms):
    eye, end = np.array([-2.0, 0, 1.5]), np.array([2.0, 0, 1.0])
    for height, is_blocked in ((2.0, True), (0.5, False)):
        truth = scene(rooms, thing(0, (0, 0, height / 2), (0.3, 2, height)))
        assert Measured(truth).is_blocked(eye, end, []) == is_blocked
        assert not Measured(truth).is_blocked(eye, end, [0])
