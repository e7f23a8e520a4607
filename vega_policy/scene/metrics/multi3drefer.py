"""Multi3DRefer (Zhang et al. 2023): any number of boxes a description; F1@0.25 and F1@0.5."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from scipy.optimize import linear_sum_assignment

from vega_policy.scene.annotations import EvalType
from vega_policy.scene.boxes import NOWHERE, iou
from vega_policy.scene.metrics.pairing import (
    BadValueError,
    Problem,
    as_box,
    log_problems,
    pair,
)
from vega_policy.scene.metrics.score import Evaluation, SceneBootstrap
from vega_policy.spec import ContractError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from vega_policy.scene.annotations import Multi3DReferRow

THRESHOLDS = (0.25, 0.5)
FIELDS = ("scene_id", "ann_id")


def f1(
    predicted: NDArray[np.float64], truth: NDArray[np.float64], *, thresholds: Sequence[float]
) -> NDArray[np.float64]:
    """Return ``2 TP / (|P| + |G|)`` at each threshold, (len(thresholds),).

    One assignment of greatest total overlap serves all thresholds; a pair counts where its overlap
    reaches the threshold. Both empty is 1, one empty is 0.

    Args:
        predicted: (p, 6) boxes.
        truth: (g, 6) boxes.
        thresholds: Of the overlap.
    """
    if not len(predicted) and not len(truth):
        return np.ones(len(thresholds))
    overlap = iou(predicted, truth)
    matched = overlap[linear_sum_assignment(overlap, maximize=True)]
    hits = (matched >= np.asarray(thresholds)[:, None]).sum(axis=1)
    return 2 * hits / (len(predicted) + len(truth))


def score_multi3drefer(
    predictions: Iterable[object], annotations: Sequence[Multi3DReferRow]
) -> Evaluation:
    """Score the boxes of each description; which proposals are predicted is the head's decision.

    The overall score is the mean over descriptions, not over types.

    Args:
        predictions: Rows ``scene_id, ann_id, boxes``; an empty list says that there is no such object.
        annotations: With ground-truth boxes.

    Raises:
        ContractError: Boxes of the annotation are missing, or as `pair`.
    """
    unboxed = [f"{r.scene_id}/{r.ann_id}" for r in annotations if r.object_ids and r.boxes is None]
    if unboxed:
        raise ContractError(
            f"{len(unboxed)} of {len(annotations)} descriptions have no ground-truth boxes "
            f"(first {unboxed[0]}); name the folder of the scans with scans="
        )
    keys = [(row.scene_id, row.ann_id) for row in annotations]
    broken: list[str] = []
    paired = pair(predictions, keys, fields=FIELDS, read=lambda row: _boxes(row, broken))
    rows = np.zeros((len(annotations), len(THRESHOLDS)))
    for i, (boxes, row) in enumerate(zip(paired.values, annotations, strict=True)):
        if boxes is not None:
            truth = np.array(row.boxes or (), dtype=np.float64).reshape(-1, 6)
            rows[i] = f1(boxes, truth, thresholds=THRESHOLDS)
    scenes = tuple(row.scene_id for row in annotations)
    types = np.array([row.eval_type for row in annotations])
    bootstrap = SceneBootstrap(scenes)
    values = {f"f1@{t}": rows[:, i] for i, t in enumerate(THRESHOLDS)}
    groups: dict[str, Any] = {"": None, **{f"{t}/": types == t for t in get_args(EvalType)}}
    scores = {
        f"{group}{name}": bootstrap.mean(scored, mask)
        for group, mask in groups.items()
        if mask is None or mask.any()
        for name, scored in values.items()
    }
    problems = paired.problems
    if broken:
        message = "boxes with NaN, infinity, a negative size or no six numbers: count as false"
        problems = (*problems, Problem(code="bad_value", message=message, ids=tuple(broken)))
    log_problems("multi3drefer", problems)
    return Evaluation(
        task="multi3drefer",
        n=len(annotations),
        protocol={"overall": "mean over descriptions"},
        scores=scores,
        problems=problems,
        ids=paired.ids,
        scenes=scenes,
        values=values,
    )


def _boxes(row: Mapping[str, Any], broken: list[str]) -> NDArray[np.float64]:
    given = row.get("boxes")
    if not isinstance(given, list):
        raise BadValueError("boxes is missing or no list")
    boxes: list[object] = []
    for i, value in enumerate(given):
        try:
            boxes.append(as_box(value))
        except BadValueError:
            broken.append(f"{row['scene_id']}/{row['ann_id']} boxes[{i}]")
            boxes.append(NOWHERE)  # still a prediction, and a false one
    return np.array(boxes, dtype=np.float64).reshape(-1, 6)
