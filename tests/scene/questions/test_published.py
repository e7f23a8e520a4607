"""The rules by which VSI-Bench was made, held against its published counts."""

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from vega_policy.scene.questions.known import Known
from vega_policy.scene.questions.measured import Measured
from vega_policy.scene.questions.published import alone, as_truth, candidates, several, spoken_m
from vega_policy.scene.readers.vsi_bench import read_vsi_meta

META = Path(os.environ.get("VEGA_SCENE_DATA", "no such folder"), "vsi_bench", "meta_info")
PUBLISHED = {
    "room_size_estimation": 288,
    "object_counting": 565,
    "object_size_estimation": 953,
    "object_abs_distance": 834,
}
OURS = {
    "room_size_estimation": 288,
    "object_counting": 570,
    "object_size_estimation": 948,
    "object_abs_distance": 1590,
}


def box(x, y, z, *, size=1.0):
    low, high = ([v + sign * size / 2 for v in (x, y, z)] for sign in (-1, 1))
    return {
        "centroid": [x, y, z],
        "axesLengths": [size] * 3,
        "normalizedAxes": [1, 0, 0, 0, 1, 0, 0, 0, 1],
        "min": low,
        "max": high,
    }


@pytest.fixture
def meta(tmp_path):
    """Two chairs, three lamps of which one has no box, and three things that are alone."""
    scene = {
        "room_size": 12.5,
        "room_center": [0, 0, 0],
        "video_path": "a.mp4",
        "dataset": "scannet",
        "object_counts": {"chair": 2, "lamp": 3, "bed": 1, "desk": 1, "sink": 1, "ghost": 1},
        "object_bbox": {
            "chair": [box(0, 0, 0), box(5, 0, 0)],
            "lamp": [box(0, 5, 0), box(5, 5, 0)],
            "bed": [box(0, 9, 0)],
            # 0.1 m off the bed: too close to ask how far; the sink is 2 m from both.
            "desk": [box(1.1, 9, 0)],
            "sink": [box(0, 9, 3)],
        },
    }
    path = tmp_path / "scannet_meta_info_val.json"
    path.write_text(json.dumps({"scene0000_00": scene}))
    return path


def count(path):
    total = Counter()
    for scene in read_vsi_meta(path).values():
        total += candidates(scene, Measured(as_truth(scene)).apart)
    return total


def test_the_rules_count_classes_with_more_than_one_and_measure_those_with_one(meta):
    assert count(meta) == {
        "room_size_estimation": 1,
        "object_counting": 2,
        "object_size_estimation": 3,
        "object_abs_distance": 2,
    }


def test_the_generator_goes_by_the_same_rules(rooms):
    for truth in rooms:
        known = Known(truth)
        counts = Counter(o.label for o in truth.objects)
        assert {known.labels[i] for i in known.singles} <= set(alone(counts))
        assert set(known.several) <= set(several(counts))
        left_out = set(counts) - {known.labels[i] for i in known.singles} - set(known.several)
        assert not any(known.clear[label] for label in left_out)


def test_distances_are_said_in_decimetres_from_two_up():
    assert [spoken_m(d) for d in (0.0, 0.14, 0.151, 0.24, 3.26)] == [None, None, 0.2, 0.2, 3.3]


def test_the_real_scenes_have_about_as_many_questions_as_the_benchmark():
    """Measured: equal room sizes; 0.9 % more counts and 0.5 % fewer sizes; twice the distances.

    The benchmark keeps six distances of a scene at most, and people threw out what was not clear.
    """
    if not META.is_dir():
        pytest.skip("vsi_bench/meta_info is not in VEGA_SCENE_DATA")
    names = ("scannet", "scannetpp", "arkitscenes")
    total = sum((count(META / f"{name}_meta_info_val.json") for name in names), Counter())
    assert total == OURS
    assert total["room_size_estimation"] == PUBLISHED["room_size_estimation"]
    assert total["object_counting"] == pytest.approx(PUBLISHED["object_counting"], rel=0.01)
    assert total["object_size_estimation"] == pytest.approx(
        PUBLISHED["object_size_estimation"], rel=0.01
    )
    assert total["object_abs_distance"] > PUBLISHED["object_abs_distance"]
