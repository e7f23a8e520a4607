"""What a trained model answers about held-out scenes, in the prediction formats of `scene.evaluate`."""

# ruff: noqa: ANN401
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from vega_policy.data.progress import Progress
from vega_policy.scene.annotations import (
    TASKS,
    Multi3DReferRow,
    Scan2CapRow,
    ScanQARow,
    ScanReferRow,
    SQA3DRow,
    VsiRow,
)
from vega_policy.scene.heads.prompts import GROUND
from vega_policy.scene.heads.scannet_model import ScanNetModel
from vega_policy.scene.selection import select_many, select_one
from vega_policy.scene.train.learning import encode, places
from vega_policy.scene.train.reading import answers_to, ground_scores, read_texts
from vega_policy.scene.train.rooms import stretches

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from vega_policy.scene.annotations import Row, Task
    from vega_policy.scene.heads.scene_model import SceneModel
    from vega_policy.scene.train.arms import Arm
    from vega_policy.scene.train.cases import Case
    from vega_policy.scene.train.features import FeatureBank
    from vega_policy.scene.train.rooms import Room

MAX_NEW_TOKENS: dict[str, int] = {"scan2cap": 48, "scanqa": 16, "sqa3d": 16, "vsi_bench": 16}
"""Longer than any answer of the generated questions."""


@torch.no_grad()
def answer_all(
    model: SceneModel,
    arm: Arm,
    rooms: Sequence[Room],
    cases: Mapping[str, Sequence[Case]],
    bank: FeatureBank,
    *,
    views: int,
) -> dict[Task, list[dict[str, Any]]]:
    """Answer every question about some rooms.

    Args:
        model: A scene model.
        arm: What it sees.
        rooms: Whole rooms.
        cases: Questions by scene.
        bank: Features of the rooms.
        views: Frames it sees, evenly spaced.

    Returns:
        Rows of prediction files by task.
    """
    rows: dict[Task, list[dict[str, Any]]] = {}
    with Progress(len(cases), what=f"{arm.name} answers", unit="scenes") as progress:
        for room in rooms:
            asked = cases.get(room.scene_id)
            if not asked:
                continue
            seen = room.seen_in([a for a, _ in stretches(len(room.seen.pixels), views)])
            tokens = encode(model, arm, seen, bank)
            for task in TASKS:
                some = [case for case in asked if case.task == task]
                if not some:
                    continue
                rows.setdefault(task, []).extend(answer(model, tokens, room.boxes, some))
            progress.update(1)
    return rows


def answer(
    model: SceneModel,
    tokens: Any,
    boxes: Tensor,
    cases: Sequence[Case],
    *,
    limits: Mapping[str, int] = MAX_NEW_TOKENS,
) -> list[dict[str, Any]]:
    """Answer questions of one task about one scene.

    Args:
        model: A scene model.
        tokens: Of one scene.
        boxes: (o, 6) proposals.
        cases: Questions.
        limits: New tokens by task.

    Returns:
        Rows of a prediction file.
    """
    prompts = [case.prompt for case in cases]
    if cases[0].is_grounding and isinstance(model, ScanNetModel):
        read = read_texts(model, tokens, prompts, answers=[GROUND] * len(cases))
        scores = ground_scores(model, tokens, boxes, read)
        return [_boxes_row(c, s.tolist(), boxes) for c, s in zip(cases, scores, strict=True)]
    texts = answers_to(
        *(model, tokens, prompts), coords=places(cases), max_new_tokens=limits[cases[0].task]
    )
    return [{**name_of(case.row), "text": text} for case, text in zip(cases, texts, strict=True)]


def _boxes_row(case: Case, scores: Sequence[float], boxes: Tensor) -> dict[str, Any]:
    if isinstance(case.row, ScanReferRow):
        return {**name_of(case.row), "box": boxes[select_one(scores)].tolist()}
    return {**name_of(case.row), "boxes": [boxes[i].tolist() for i in select_many(scores)]}


def name_of(row: Row) -> dict[str, Any]:
    """Return the fields that say which question this is."""
    match row:
        case ScanReferRow():
            return {"scene_id": row.scene_id, "object_id": row.object_id, "ann_id": row.ann_id}
        case Multi3DReferRow():
            return {"scene_id": row.scene_id, "ann_id": row.ann_id}
        case Scan2CapRow():
            return {"scene_id": row.scene_id, "object_id": row.object_id}
        case ScanQARow() | SQA3DRow():
            return {"question_id": row.question_id}
        case VsiRow():
            return {"id": row.id}
