"""Table tops of LIBERO as scans."""

import numpy as np
import pytest

from envs.scan.check import check_scan
from envs.scan.export import LIBERO_TASKS, ScanSettings, export_some, scene_id
from envs.scan.libero_scenes import TableTop, label_of
from envs.suites import get_task, init_states
from vega_policy.scene.truth import read_truth

pytestmark = pytest.mark.sim


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    out = tmp_path_factory.mktemp("tabletops")
    settings = ScanSettings(
        kind="libero", out=out, n=1, frames=6, width_px=128, height_px=96, video=False
    )
    export_some(settings, [0])
    return settings


def test_depth_points_lie_in_the_boxes_of_their_objects(export):
    found = check_scan(export.out, scene_id(export, 0))
    assert found.is_good, found
    assert len(found.inside) >= 5


def test_objects_are_named_and_none_is_the_robot(export):
    truth = read_truth(export.out / scene_id(export, 0) / "truth.json")
    labels = [o.label for o in truth.objects]
    assert sorted(labels) == sorted(
        ["bowl", "bowl", "cookies", "ramekin", "plate", "cabinet", "stove"]
    )
    assert truth.room_size_m2 is None


def test_placement_is_none_of_the_evaluation(export):
    suite, task_id = LIBERO_TASKS[0]
    truth = read_truth(export.out / scene_id(export, 0) / "truth.json")
    bowl = next(o for o in truth.objects if o.label == "bowl")
    states = init_states(suite, task_id)
    # The first three numbers of a free joint are its place; nine joints of the robot come before.
    places = states[:, 1 + 9 : 1 + 9 + 2]
    assert np.linalg.norm(places - bowl.box[:2], axis=1).min() > 1e-4


def test_tasks_are_there():
    assert all(get_task(suite, task_id).bddl_file.is_file() for suite, task_id in LIBERO_TASKS)


@pytest.mark.parametrize(
    ("name", "label", "colour"),
    [
        ("akita_black_bowl_2", "bowl", "black"),
        ("red_coffee_mug_1", "mug", "red"),
        ("white_cabinet_1", "cabinet", "white"),
        ("white_yellow_mug_1", "mug", ""),
        ("orange_juice_1", "orange juice", ""),
        ("plate_1", "plate", ""),
    ],
)
def test_label_and_colour_of_a_name(name, label, colour):
    assert label_of(name) == (label, colour)


@pytest.mark.parametrize(
    ("task_id", "on"),
    [
        (3, [("bowl", "cabinet"), ("bowl", "cookies")]),
        (4, [("bowl", "cabinet")]),  # the other bowl is inside a drawer of it
        (8, []),
    ],
)
def test_what_stands_on_what_is_as_the_task_sets_it_up(task_id, on):
    top = TableTop(suite="libero_spatial", task_id=task_id)
    try:
        top.draw(seed=0, index=0)
        things = top.things()
    finally:
        top.close()
    found = [(t.label, things[t.stands_on].label) for t in things if t.stands_on is not None]
    assert sorted(found) == on
