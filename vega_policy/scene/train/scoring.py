"""Scores of single questions, from the evaluators of `scene.metrics`, for paired comparisons."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import TYPE_CHECKING, Any, cast

from vega_policy.scene.annotations import (
    Box,
    Multi3DReferRow,
    Scan2CapRow,
    ScanQARow,
    ScanReferRow,
    SQA3DRow,
    VsiRow,
)
from vega_policy.scene.metrics.multi3drefer import score_multi3drefer
from vega_policy.scene.metrics.scan2cap import score_scan2cap
from vega_policy.scene.metrics.scanqa import score_scanqa
from vega_policy.scene.metrics.scanrefer import score_scanrefer
from vega_policy.scene.metrics.sqa3d import score_sqa3d
from vega_policy.scene.metrics.vsi_bench import score_vsi_bench
from vega_policy.scene.train.answering import name_of
from vega_policy.scene.train.cases import case_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vega_policy.scene.annotations import Row, Task
    from vega_policy.scene.metrics.score import Evaluation
    from vega_policy.scene.train.rooms import Room

HEADLINE: dict[Task, str] = {
    "scanrefer": "acc@0.5",
    "multi3drefer": "f1@0.5",
    "scan2cap": "cider",
    "scanqa": "em@1",
    "sqa3d": "em",
    "vsi_bench": "score",
}
"""The value of a single question that arms are compared by."""


def with_boxes(row: Row, rooms: Mapping[str, Room]) -> Row:
    """Return an annotation with the true boxes of its objects, which public files leave to the scans."""
    if not isinstance(row, ScanReferRow | Multi3DReferRow | Scan2CapRow):
        return row
    room = rooms[row.scene_id]
    ids = row.object_ids if isinstance(row, Multi3DReferRow) else (row.object_id,)
    boxes = tuple(cast("Box", tuple(room.boxes[i].tolist())) for i in room.indices(ids))
    if isinstance(row, Multi3DReferRow):
        return dataclasses.replace(row, boxes=boxes)
    return dataclasses.replace(row, box=boxes[0])


def score(task: Task, predictions: Sequence[Mapping[str, Any]], rows: Sequence[Any]) -> Evaluation:
    """Score a prediction file in the evaluators' default protocols, METEOR left out.

    Args:
        task: Whose.
        predictions: Rows of the file.
        rows: Annotations, of `with_boxes`.
    """
    match task:
        case "scanrefer":
            return score_scanrefer(predictions, rows)
        case "multi3drefer":
            return score_multi3drefer(predictions, rows)
        case "scan2cap":
            # Captions are made for the true boxes.
            return score_scan2cap(predictions, rows, located="all", with_meteor=False)
        case "scanqa":
            return score_scanqa(predictions, rows, with_meteor=False)
        case "sqa3d":
            return score_sqa3d(predictions, rows)
        case "vsi_bench":
            return score_vsi_bench(predictions, rows)


def question_scores(evaluation: Evaluation, task: Task) -> dict[str, float]:
    """Return what each question contributes, by its id."""
    values = evaluation.values[HEADLINE[task]]
    return dict(zip(evaluation.ids, values.tolist(), strict=True))


def chance(
    task: Task, rows: Sequence[Any], train: Sequence[Row], rooms: Mapping[str, Room]
) -> dict[str, float]:
    """Score what needs neither text nor frames.

    Grounding: any one of the proposals, as the expected score. Text: the commonest training answer to
    questions of the same type (VSI-Bench) or with the same first two words.

    Args:
        task: Whose.
        rows: Held-out questions, of `with_boxes`.
        train: Training questions of the task.
        rooms: By scene.

    Returns:
        As `question_scores`.
    """
    if task in ("scanrefer", "multi3drefer"):
        # Any file gives the ids; the values are not looked at.
        ids = score(task, [{**name_of(row), "box": [0] * 6, "boxes": []} for row in rows], rows).ids
        return dict(zip(ids, (_any_box(row, rooms) for row in rows), strict=True))
    answers: dict[str, Counter[str]] = {}
    for case in map(case_of, train):
        for opening in {_opening(case.row), ""}:
            answers.setdefault(opening, Counter()).update(case.answers[:1])
    said = [answers.get(_opening(row), answers[""]).most_common(1)[0][0] for row in rows]
    predictions = [{**name_of(row), "text": text} for row, text in zip(rows, said, strict=True)]
    return question_scores(score(task, predictions, rows), task)


def _opening(row: Row) -> str:
    if isinstance(row, VsiRow):
        return row.question_type
    if isinstance(row, ScanQARow | SQA3DRow):
        return " ".join(row.question.lower().split()[:2])
    return ""


def _any_box(row: Row, rooms: Mapping[str, Room]) -> float:
    """Return the expected score of one proposal drawn at random."""
    case = case_of(row)
    n, k = len(rooms[case.scene_id].object_ids), len(case.targets)
    return k / n * (1.0 if case.task == "scanrefer" else 2 / (1 + k))
