"""Bad predictions are listed, and count as documented; nothing is skipped in silence."""

import logging

import numpy as np
import pytest

from vega_policy.scene.annotations import ScanReferRow, SQA3DRow
from vega_policy.scene.boxes import as_boxes, iou, iou_of_pairs
from vega_policy.scene.metrics.multi3drefer import score_multi3drefer
from vega_policy.scene.metrics.scanrefer import score_scanrefer
from vega_policy.scene.metrics.sqa3d import score_sqa3d
from vega_policy.spec import ContractError

from .test_parity import multi_row

BOX = [0.0, 0.0, 0.0, 1.0, 1.0, 1.0]


def rows(n):
    return [
        ScanReferRow(
            scene_id=f"scene{i % 2}",
            object_id=i,
            object_name="chair",
            ann_id="0",
            description="a chair",
            box=tuple(BOX),
        )
        for i in range(n)
    ]


def said(i, box=BOX, **changed):
    return {"scene_id": f"scene{i % 2}", "object_id": str(i), "ann_id": 0, "box": box, **changed}


def test_every_kind_of_bad_box_is_listed_and_stays_in_the_denominator(caplog):
    predictions = [
        said(0),
        said(1, [np.nan, 0, 0, 1, 1, 1]),
        said(2, [0, 0, 0, 1, -1, 1]),
        said(3, [0, 0, 0]),
        said(4, None),
        said(5, "box"),
        said(6),
        said(6),
        said(7),
        said(7, [5.0, 0, 0, 1, 1, 1]),
        said(99),
        {"box": BOX},
        "not an object",
        said(8, [float("inf"), 0, 0, 1, 1, 1]),
    ]
    with caplog.at_level(logging.WARNING):
        found = score_scanrefer(predictions, rows(10), unique_by="name")
    assert found.values["acc@0.5"].tolist() == [1, 0, 0, 0, 0, 0, 1, 0, 0, 0]
    assert found.scores["acc@0.5"].n == 10
    listed = {(p.code, p.ids) for p in found.problems}
    assert listed == {
        ("bad_value", ("scene1/1/0", "scene0/8/0")),
        ("bad_value", ("scene0/2/0",)),
        ("bad_value", ("scene1/3/0", "scene0/4/0", "scene1/5/0")),
        ("duplicate", ("scene0/6/0",)),
        ("duplicate", ("scene1/7/0",)),
        ("unknown", ("scene1/99/0",)),
        ("no_id", ("row 11", "row 12")),
        ("missing", ("scene1/9/0",)),
    }
    assert all(str(problem) in caplog.text for problem in found.problems)
    assert all(problem.ids[0] in found.table() for problem in found.problems)


def test_predictions_of_another_split_are_an_error_not_a_score_of_zero():
    with pytest.raises(ContractError, match="same split"):
        score_scanrefer([said(99)], rows(3))


def test_an_annotation_that_names_a_question_twice_is_an_error():
    with pytest.raises(ContractError, match="twice"):
        score_scanrefer([said(0)], [*rows(1), *rows(1)])


def test_an_annotation_without_boxes_says_where_they_come_from():
    bare = [
        ScanReferRow(
            scene_id="scene0", object_id=0, object_name="chair", ann_id="0", description="a chair"
        )
    ]
    with pytest.raises(ContractError, match="scans="):
        score_scanrefer([said(0)], bare)


def test_a_broken_box_among_several_counts_as_a_false_one():
    row = {"scene_id": "s", "ann_id": 0, "eval_type": "st_w_d", "boxes": [BOX]}
    broken = [{"scene_id": "s", "ann_id": 0, "boxes": [BOX, [np.nan] * 6]}]
    found = score_multi3drefer(broken, [multi_row(row)])
    assert found.values["f1@0.5"].tolist() == [pytest.approx(2 / 3)]
    assert [p.ids for p in found.problems] == [("s/0 boxes[1]",)]
    zero = {**row, "eval_type": "zt_w_d", "boxes": []}
    assert score_multi3drefer(
        [{"scene_id": "s", "ann_id": 0, "boxes": [[np.nan] * 6]}], [multi_row(zero)]
    ).values["f1@0.5"].tolist() == [0]


def test_empty_texts_are_listed_and_numbers_are_no_texts():
    questions = [
        SQA3DRow(scene_id="s", question_id=i, situation="", question="What?", answer="4")
        for i in range(3)
    ]
    answers = [
        {"question_id": 0, "text": "4"},
        {"question_id": 1, "text": ""},
        {"question_id": 2, "text": 4},
    ]
    found = score_sqa3d(answers, questions)
    assert found.values["em"].tolist() == [1, 0, 0]
    assert {(p.code, p.ids) for p in found.problems} == {("empty", ("1",)), ("bad_value", ("2",))}


def test_boxes_overlap_as_defined():
    half = [0.25, 0.0, 0.0, 0.5, 1.0, 1.0]
    assert iou([BOX], [BOX, half]).tolist() == [[1 / (1 + 1e-8), 0.5 / (1 + 1e-8)]]
    assert iou_of_pairs([BOX, half], [half, half]) == pytest.approx([0.5, 1], abs=1e-7)
    assert iou([], [BOX]).shape == (0, 1)
    flat = [0.0, 0.0, 0.0, 1.0, 1.0, 0.0]
    assert iou([flat], [flat]).tolist() == [[0.0]]
    for bad in ([[0, 0, 0]], [[0, 0, 0, 1, 1, -1]], [[np.nan, 0, 0, 1, 1, 1]]):
        with pytest.raises(ContractError):
            as_boxes(bad)
