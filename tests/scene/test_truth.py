"""Truth of a scene survives the disk, and what is no truth is refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from vega_policy.scene.truth import read_truth, write_truth
from vega_policy.spec import ContractError

SHIPPED = Path(__file__).parents[1] / "data" / "scene" / "rooms" / "room0000_90" / "truth.json"


@pytest.fixture
def row():
    return json.loads(SHIPPED.read_text())


def written(tmp_path, row):
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(row))
    return path


def test_what_is_written_is_read_to_the_last_bit(tmp_path):
    truth = read_truth(SHIPPED)
    write_truth(tmp_path / "again.json", truth)
    again = read_truth(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == SHIPPED.read_text()
    assert np.array_equal(again.poses, truth.poses)
    assert [o.label for o in again.objects] == [o.label for o in truth.objects]


def test_room_size_is_the_area_of_the_floor():
    truth = read_truth(SHIPPED)
    low, high = truth.floor.min(axis=0), truth.floor.max(axis=0)
    assert truth.room_size_m2 == pytest.approx(np.prod(high - low))


def test_oriented_box_lies_in_the_axis_aligned_one():
    for o in read_truth(SHIPPED).objects:
        corners = np.array(np.meshgrid(*[[-0.5, 0.5]] * 3)).reshape(3, -1).T * o.size @ o.axes
        assert np.allclose(o.axes @ o.axes.T, np.eye(3))
        # The box around the oriented box; equal for things made of boxes, smaller for round ones.
        assert (np.abs(o.centre - o.box[:3]) <= np.ptp(corners, axis=0) / 2 + 1e-9).all()
        assert (o.box[3:] <= np.ptp(corners, axis=0) + 1e-9).all()


def test_every_problem_of_a_broken_truth_is_named(tmp_path, row):
    row["poses"] = row["poses"][1:]
    row["objects"][0]["box"] = [0.0] * 5
    row["objects"][1]["object_id"] = row["objects"][2]["object_id"]
    row["objects"][3]["stands_on"] = 999
    row["objects"][4]["size"][0] = float("nan")
    with pytest.raises(ContractError) as error:
        read_truth(written(tmp_path, row))
    said = str(error.value)
    for problem in ("poses has shape", "box of object 0", "twice", "stands on 999", "not finite"):
        assert problem in said
    assert "scripts/scan.py" in said


def test_missing_field_is_no_truth(tmp_path, row):
    del row["objects"][0]["label"]
    with pytest.raises(ContractError, match="label"):
        read_truth(written(tmp_path, row))


def test_missing_file_says_where_truths_come_from(tmp_path):
    with pytest.raises(ContractError, match=r"scripts/scan\.py"):
        read_truth(tmp_path / "truth.json")
