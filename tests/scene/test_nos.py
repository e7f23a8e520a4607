"""The paper's plotted scores follow from its Table 4, and the score says what it rests on."""

import json
from pathlib import Path

import pytest

from vega_policy.scene.nos import nos, read_results
from vega_policy.spec import ContractError

TABLE = Path(__file__).parents[1] / "data" / "scene" / "vega3d_table4.csv"
PER_GROUP = {
    "discriminative": {"VGGT": 88.24, "V-JEPA v2": 77.54, "DINOv3-L": 61.63, "baseline": 13.58},
    "generative": {
        "Wan2.1-VACE": 89.32,
        "Wan2.1-T2V": 82.41,
        "VAE (SD 2.1)": 77.29,
        "SEVA": 75.28,
        "SD 2.1": 70.57,
        "Vmem": 63.75,
        "SVD": 52.06,
        "baseline": 12.22,
    },
}
JOINT = {
    "Wan2.1-VACE": 90.04,
    "Wan2.1-T2V": 83.25,
    "VAE (SD 2.1)": 77.49,
    "SEVA": 77.00,
    "SD 2.1": 71.90,
    "VGGT": 71.48,
    "Vmem": 66.15,
    "V-JEPA v2": 61.82,
    "SVD": 55.62,
    "DINOv3-L": 51.84,
    "baseline": 13.61,
}


def percent(scores):
    return {name: round(100 * value, 2) for name, value in scores.items()}


def table(path, rows):
    path.write_text(json.dumps(rows))
    return read_results(path)


def test_scores_by_group_are_those_the_paper_plots():
    found = nos(read_results(TABLE))
    assert {one.group: percent(one.scores) for one in found} == PER_GROUP


def test_scores_on_one_scale_differ_and_come_in_this_order():
    (found,) = nos(read_results(TABLE), group="joint")
    assert percent(found.scores) == JOINT
    assert list(found.scores) == list(JOINT)


def test_table_prints_the_row_set_and_the_columns():
    text = nos(read_results(TABLE))[0].table()
    assert "discriminative: 4 rows, 9 columns (scanrefer_25, " in text
    assert "baseline" in text


def test_column_with_equal_values_is_left_out_and_said(tmp_path):
    rows = table(
        tmp_path / "t.json", [{"name": "a", "x": 1, "y": 5}, {"name": "b", "x": 2, "y": 5}]
    )
    (found,) = nos(rows, baseline=None)
    assert found.columns == ("x",)
    assert found.scores == {"b": 1.0, "a": 0.0}
    assert found.left_out == ("column y, the same for all rows",)


def test_unknown_value_costs_its_row_or_its_column(tmp_path):
    file = tmp_path / "t.csv"
    file.write_text("name,group,x,y\na,g,1,4\nb,g,2,\N{EN DASH}\nc,g,3,2\n")
    rows = read_results(file)
    (by_row,) = nos(rows, baseline=None)
    assert by_row.scores == {"a": 0.5, "c": 0.5}
    assert by_row.left_out == ("row b, y unknown",)
    (by_column,) = nos(rows, baseline=None, unknown="column")
    assert by_column.scores == {"c": 1.0, "b": 0.5, "a": 0.0}
    assert by_column.left_out == ("column y, unknown for b",)


def test_order_of_rows_does_not_matter():
    rows = read_results(TABLE)
    assert [percent(g.scores) for g in nos(rows[::-1], group="joint")] == [JOINT]


def test_every_problem_of_a_table_is_listed(tmp_path):
    file = tmp_path / "t.csv"
    file.write_text("name,group,x\na,g,one\n,g,2\na,g,3\n")
    with pytest.raises(ContractError, match=r"'one'.*row 2 has no name.*row 3 repeats"):
        read_results(file)


@pytest.mark.parametrize("text", ["{}", "[]", "[1]", "{"])
def test_what_is_no_table_is_refused(tmp_path, text):
    file = tmp_path / "t.json"
    file.write_text(text)
    with pytest.raises(ContractError, match="table"):
        read_results(file)


def test_missing_file_and_unknown_baseline_are_one_sentence(tmp_path):
    with pytest.raises(ContractError, match="cannot be read"):
        read_results(tmp_path / "none.csv")
    with pytest.raises(ContractError, match="unknown baseline row 'base'; did you mean 'baseline'"):
        nos(read_results(TABLE), baseline="base")


def test_rows_without_any_difference_are_refused(tmp_path):
    rows = table(tmp_path / "t.json", [{"name": "a", "x": 1}, {"name": "b", "x": None}])
    with pytest.raises(
        ContractError, match=r"no column in which two rows differ.*row b, x unknown"
    ):
        nos(rows, baseline=None)
