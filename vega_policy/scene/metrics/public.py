"""Prediction files of others, brought to the fields the metrics read.

==========================  ======================================================================
Video-3D-LLM, VEGA-3D       ``sample_id`` (the ``id`` of the conversation), ``pred_response``;
                            Multi3DRefer: ``scores`` of the proposals ``objects``, of which
                            `select_many` takes those that are meant
ScanRefer benchmark         ``bbox``: the eight corners in place of ``box``
ScanQA benchmark            ``answer_top10``: the first is the answer
lmms-eval, VSI-Bench        ``vsibench_score`` or ``vsibench_overall``: the question with its
                            ``prediction``; or ``doc`` beside ``filtered_resps``
==========================  ======================================================================

A row in none of these forms is passed on as it is; what it lacks is listed when it is paired.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vega_policy.scene.readers.scanqa import question_id_of
from vega_policy.scene.selection import select_many

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_BOX_TASKS = ("scanrefer", "multi3drefer", "scan2cap")
"""Their conversations have numbers of their own, which only the annotation explains."""
_VSI_LOGS = ("vsibench_score", "vsibench_overall")


def public_rows(task: str, rows: Iterable[Any], annotations: Path | str) -> list[Any]:
    """Return prediction rows with the fields of `scene.evaluate`.

    Args:
        task: What the predictions are for.
        rows: As JSON has them.
        annotations: Read where rows name a conversation of it by number.
    """
    given = list(rows)
    if any(isinstance(row, Mapping) and "sample_id" in row for row in given):
        named = _names(task, annotations)
        given = [_from_conversation(row, task, named) for row in given]
    convert = _CONVERT.get(task)
    if convert is None:
        return given
    return [convert(row) if isinstance(row, Mapping) else row for row in given]


def _names(task: str, annotations: Path | str) -> dict[str, dict[str, Any]]:
    """Return the fields that name a question, by the id of its conversation."""
    if task not in _BOX_TASKS or not Path(annotations).is_file():
        return {}
    try:
        content = json.loads(Path(annotations).read_bytes())
    except ValueError:
        return {}  # its reader says what is wrong with it
    items = content if isinstance(content, list) else []
    return {
        str(item["id"]): {
            "scene_id": str(item.get("video", "")).rsplit("/", 1)[-1],
            "object_id": item.get("metadata", {}).get("object_id"),
            "ann_id": item.get("metadata", {}).get("ann_id"),
        }
        for item in items
        if isinstance(item, dict) and "conversations" in item and "id" in item
    }


def _from_conversation(row: Any, task: str, named: dict[str, dict[str, Any]]) -> Any:  # noqa: ANN401
    if not isinstance(row, Mapping) or "sample_id" not in row:
        return row
    sample = row["sample_id"]
    if task == "scanqa":
        name = {"question_id": question_id_of(str(sample))}
    elif task in _BOX_TASKS:
        name = named.get(str(sample), {})
    else:
        name = {"question_id": sample, "id": sample}
    return {**name, **_content(row, task)}


def _content(row: Mapping[str, Any], task: str) -> dict[str, Any]:
    if task == "multi3drefer" and "scores" in row:
        return {"boxes": _meant(row["scores"], row.get("objects"))}
    if "pred_response" not in row:
        return {}
    name = {"scanrefer": "box", "multi3drefer": "boxes"}.get(task, "text")
    return {name: row["pred_response"]}


def _meant(scores: Any, objects: Any) -> list[Any] | None:  # noqa: ANN401
    """Return the proposals that are meant, or None where scores and proposals do not fit."""
    try:
        given = np.asarray(scores, dtype=np.float64)
    except (TypeError, ValueError):
        return None
    fits = isinstance(objects, list) and given.shape == (len(objects) + 1,)
    if not fits or not np.isfinite(given).all():
        return None
    return [objects[i] for i in select_many(given)]


def _scanrefer(row: Mapping[str, Any]) -> Mapping[str, Any]:
    if "box" in row or "bbox" not in row:
        return row
    try:
        corners = np.asarray(row["bbox"], dtype=np.float64)
    except (TypeError, ValueError):
        return row
    if corners.shape != (8, 3):
        return row
    low, high = corners.min(axis=0), corners.max(axis=0)
    return {**row, "box": [*((low + high) / 2), *(high - low)]}


def _scanqa(row: Mapping[str, Any]) -> Mapping[str, Any]:
    best = row.get("answer_top10")
    return (
        {**row, "text": best[0]} if "text" not in row and isinstance(best, list) and best else row
    )


def _vsi_bench(row: Mapping[str, Any]) -> Mapping[str, Any]:
    logged = next((row[key] for key in _VSI_LOGS if isinstance(row.get(key), Mapping)), None)
    if logged is not None and "prediction" in logged:
        return {"id": logged.get("id"), "text": logged["prediction"]}
    doc, said = row.get("doc"), row.get("filtered_resps")
    if isinstance(doc, Mapping) and isinstance(said, list) and said:
        first = said[0]
        return {"id": doc.get("id"), "text": first[0] if isinstance(first, list) else first}
    return row


_CONVERT: dict[str, Callable[[Mapping[str, Any]], Mapping[str, Any]]] = {
    "scanrefer": _scanrefer,
    "scanqa": _scanqa,
    "vsi_bench": _vsi_bench,
}
