"""Scores of single questions, from the evaluators of `scene.metrics`, for paired comparisons."""

from __future__ import annotations

import dataclasses
from collections import Counter
from statistics import fmean
from typing import TYPE_CHECKING, Any, cast

from vega_policy.scene.annotations import (
    NUMERIC_TYPES,
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
from vega_policy.scene.metrics.vsi_bench import mean_relative_accuracy, score_vsi_bench
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
    """Score the best answer that needs neither the question's words nor frames.

    ScanRefer: any one of the proposals, as the expected score. Multi3DRefer: the same, or always
    "none", whichever is better in training. Text: of the training answers to questions of the same type
    (VSI-Bench) or with the same first two words the commonest; of numbers the one that scores best.

    Args:
        task: Whose.
        rows: Held-out questions, of `with_boxes`.
        train: Training questions of the task.
        rooms: By scene, on both sides of the split.

    Returns:
        As `question_scores`.
    """
    if task in ("scanrefer", "multi3drefer"):
        says_none = task == "multi3drefer" and (
            fmean(not case_of(row).targets for row in train)
            > fmean(_any_box(row, rooms) for row in train)
        )
        values = [
            float(not case_of(row).targets) if says_none else _any_box(row, rooms) for row in rows
        ]
        return dict(zip(_ids(task, rows), values, strict=True))
    answers: dict[str, list[str]] = {}
    for case in map(case_of, train):
        for opening in {_opening(case.row), ""}:
            answers.setdefault(opening, []).extend(case.answers[:1])
    best = {opening: _best(opening, some) for opening, some in answers.items()}
    predictions = [{**name_of(row), "text": best.get(_opening(row), best[""])} for row in rows]
    return question_scores(score(task, predictions, rows), task)


def any_of_class(rows: Sequence[ScanReferRow], rooms: Mapping[str, Room]) -> dict[str, float]:
    """Score a draw among the proposals of the class that is meant: what knowing every class is worth.

    Args:
        rows: Of ScanRefer.
        rooms: By scene.

    Returns:
        The expected score by question, as `question_scores`.
    """
    values: list[float] = []
    for row in rows:
        labels = rooms[row.scene_id].labels
        meant = labels[rooms[row.scene_id].indices([row.object_id])[0]]
        values.append(1 / labels.count(meant))
    return dict(zip(_ids("scanrefer", rows), values, strict=True))


def _ids(task: Task, rows: Sequence[Any]) -> Sequence[str]:
    # Any file gives the ids; the values are not looked at.
    return score(task, [{**name_of(row), "box": [0] * 6, "boxes": []} for row in rows], rows).ids


def _best(opening: str, answers: Sequence[str]) -> str:
    if opening not in NUMERIC_TYPES:
        return Counter(answers).most_common(1)[0][0]
    truths = [float(answer) for answer in answers]
    # Sorted: of equally good ones the least.
    return max(
        sorted(set(answers), key=float),
        key=lambda one: fmean(mean_relative_accuracy(float(one), t) for t in truths),
    )


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
