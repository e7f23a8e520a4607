"""The metrics take the rows as they are, and right answers are worth everything."""

from dataclasses import replace

import pytest

from vega_policy.scene.metrics.multi3drefer import score_multi3drefer
from vega_policy.scene.metrics.scanqa import score_scanqa
from vega_policy.scene.metrics.scanrefer import score_scanrefer
from vega_policy.scene.metrics.sqa3d import score_sqa3d
from vega_policy.scene.metrics.vsi_bench import score_vsi_bench


@pytest.fixture(scope="module")
def rows(asked):
    found = {task: [row for row, _ in pairs] for task, pairs in asked.items()}
    found["sqa3d"] = [replace(row, question_id=i) for i, row in enumerate(found["sqa3d"])]
    found["vsi_bench"] = [replace(row, id=i) for i, row in enumerate(found["vsi_bench"])]
    return found


def headline(found):
    return next(iter(found.scores.values())).value


def test_right_boxes_score_100(rows):
    said = [
        {
            "scene_id": r.scene_id,
            "object_id": r.object_id,
            "ann_id": r.ann_id,
            "box": list(r.box),
        }
        for r in rows["scanrefer"]
    ]
    assert headline(score_scanrefer(said, rows["scanrefer"])) == 100
    said = [
        {"scene_id": r.scene_id, "ann_id": r.ann_id, "boxes": [list(b) for b in r.boxes]}
        for r in rows["multi3drefer"]
    ]
    assert headline(score_multi3drefer(said, rows["multi3drefer"])) == 100


def test_every_right_answer_scores_100(rows):
    for pick in (0, -1):
        said = [{"question_id": r.question_id, "text": r.answers[pick]} for r in rows["scanqa"]]
        found = score_scanqa(said, rows["scanqa"], with_meteor=False)
        assert found.values["em@1"].mean() == 1
    said = [{"question_id": r.question_id, "text": r.answer} for r in rows["sqa3d"]]
    assert headline(score_sqa3d(said, rows["sqa3d"])) == 100
    said = [{"id": r.id, "text": r.ground_truth} for r in rows["vsi_bench"]]
    assert headline(score_vsi_bench(said, rows["vsi_bench"])) == 100
