"""What the published annotations and proposals allow at best; see docs/scene_metrics.md."""

from dataclasses import replace

import numpy as np
import pytest

from vega_policy.scene.annotations import ScanReferRow
from vega_policy.scene.boxes import iou
from vega_policy.scene.metrics.cider import cider
from vega_policy.scene.metrics.scan2cap import prepare, score_scan2cap
from vega_policy.scene.metrics.scanrefer import score_scanrefer
from vega_policy.scene.readers.proposals import read_proposals
from vega_policy.scene.readers.scan2cap import read_scan2cap

N_DRAWS = 20


@pytest.fixture(scope="module")
def rows(real):
    return read_scan2cap(real("scan2cap", "scan2cap_val_llava_style.json"))


@pytest.fixture(scope="module")
def proposals(real):
    return read_proposals(real("proposals", "objects_info_3dvista_200c_wof"))


def described(rows):
    """Return a ScanRefer question for every description of every object."""
    return [
        ScanReferRow(
            scene_id=row.scene_id,
            object_id=row.object_id,
            object_name="",
            ann_id=str(k),
            description=text,
            eval_type="multiple",
            box=row.box,
        )
        for row in rows
        for k, text in enumerate(row.references)
    ]


def accuracies(questions, boxes):
    predictions = [
        {"scene_id": q.scene_id, "object_id": q.object_id, "ann_id": q.ann_id, "box": list(box)}
        for q, box in zip(questions, boxes, strict=True)
    ]
    scores = score_scanrefer(predictions, questions).scores
    return scores["acc@0.25"].value, scores["acc@0.5"].value


def test_the_best_proposal_is_right_as_often_as_published(rows, proposals):
    questions = described(rows)
    assert len(questions) == 9508
    boxes = []
    for q in questions:
        some = proposals[q.scene_id].boxes
        boxes.append(some[int(iou(some, np.array([q.box])).argmax())])
    assert accuracies(questions, boxes) == pytest.approx((90.49, 82.09), abs=0.005)


def test_a_proposal_drawn_at_random_is_hardly_ever_right(rows, proposals):
    questions = described(rows)
    rng = np.random.default_rng(0)
    boxes = [
        some[int(rng.integers(len(some)))]
        for some in (proposals[q.scene_id].boxes for q in questions)
    ]
    # One other draw of 9,508 gave 2.99 and 2.52.
    assert accuracies(questions, boxes) == pytest.approx((2.99, 2.52), abs=0.6)


def test_people_describe_objects_as_people_do(rows):
    """One description of each object against its others: drawn, so that a mean of draws is compared."""
    rng = np.random.default_rng(0)
    several = [row for row in rows if len(row.references) > 1]
    assert len(several) == 2052
    found = []
    for _ in range(N_DRAWS):
        left_out = [int(rng.integers(len(row.references))) for row in several]
        others = [
            [prepare(t) for i, t in enumerate(row.references) if i != k]
            for row, k in zip(several, left_out, strict=True)
        ]
        said = [prepare(row.references[k]) for row, k in zip(several, left_out, strict=True)]
        located = [
            text if row.box_input is not None else prepare("")
            for text, row in zip(said, several, strict=True)
        ]
        found.append([100 * cider(texts, others).mean() for texts in (said, located)])
    mean, spread = np.mean(found, axis=0), np.std(found, axis=0)
    # 102.89 and 85.00 are those of one draw.
    assert np.all(np.abs(mean - [102.89, 85.00]) < 3 * spread)
    assert np.all(spread < 2)


def test_saying_nothing_scores_what_it_is_known_to_score(rows):
    rows = [replace(row, box_input=row.box) for row in rows]
    silent = [{"scene_id": r.scene_id, "object_id": r.object_id, "text": ""} for r in rows]
    scores = score_scan2cap(silent, rows, with_meteor=False).scores
    assert scores["cider@0.5"].value == 0
    assert scores["bleu4@0.5"].value == pytest.approx(0, abs=1e-6)
    assert scores["rouge_l@0.5"].value == pytest.approx(25.46, abs=0.02)
