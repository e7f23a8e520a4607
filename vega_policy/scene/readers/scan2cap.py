"""Scan2Cap: objects to be described, from conversations or straight from a ScanRefer file.

The data set *is* ScanRefer, grouped by object; the released code adds the ground-truth box and the
best proposal (``gt_box``, ``box_input``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vega_policy.scene.annotations import Scan2CapRow
from vega_policy.scene.readers.conversations import conversation, is_conversations, scene_of
from vega_policy.scene.readers.rows import parse_rows, read_list, write_list
from vega_policy.scene.readers.scanrefer import read_scanrefer

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from vega_policy.scene.annotations import ScanReferRow
    from vega_policy.scene.readers.rows import Fields


def read_scan2cap(path: Path | str) -> list[Scan2CapRow]:
    """Read the objects of either format.

    Raises:
        ContractError: The file is missing, or rows have problems; all are listed.
    """
    items = read_list(path)
    if not is_conversations(items):
        return captions_of(read_scanrefer(path))
    return parse_rows(
        path, items, _from_conversation, key=lambda row: (row.scene_id, row.object_id)
    )


def write_scan2cap(path: Path | str, rows: Iterable[Scan2CapRow]) -> None:
    """Write objects as conversations."""
    write_list(path, (_to_row(i, row) for i, row in enumerate(rows)))


def captions_of(rows: Iterable[ScanReferRow]) -> list[Scan2CapRow]:
    """Group ScanRefer descriptions by object, in the order of the file."""
    groups: dict[tuple[str, int], list[ScanReferRow]] = {}
    for row in rows:
        groups.setdefault((row.scene_id, row.object_id), []).append(row)
    return [
        Scan2CapRow(
            scene_id=scene_id,
            object_id=object_id,
            box=group[0].box,
            references=tuple(row.description for row in group),
            object_name=group[0].object_name,
            ann_id=group[0].ann_id,
            question_type=group[0].eval_type or "",
        )
        for (scene_id, object_id), group in groups.items()
    ]


def _from_conversation(fields: Fields) -> Scan2CapRow:
    meta = fields.inside("metadata")
    references = fields.texts("annotations")
    if not references or not all(text.strip() for text in references):
        fields.note("annotations has no text or an empty one")
    return Scan2CapRow(
        scene_id=scene_of(fields),
        object_id=meta.integer("object_id"),
        box=fields.box("gt_box") if "gt_box" in fields else None,
        references=references,
        box_input=fields.box("box_input") if "box_input" in fields else None,
        object_name=meta.text("object_name") if "object_name" in meta else "",
        ann_id=meta.text("ann_id") if "ann_id" in meta else "",
        question_type=meta.text("question_type") if "question_type" in meta else "",
    )


def _to_row(i: int, row: Scan2CapRow) -> dict[str, object]:
    named = {
        "question_type": row.question_type,
        "ann_id": row.ann_id,
        "object_name": row.object_name,
    }
    out = conversation(
        row_id=i,
        scene_id=row.scene_id,
        human="<image> Given an object located at <coord> , describe the object in detail.",
        gpt=row.references[0].capitalize(),
        metadata={
            "dataset": "scan2cap",
            "object_id": str(row.object_id),
            **{key: value for key, value in named.items() if value},
        },
    )
    out["box_input"] = None if row.box_input is None else list(row.box_input)
    out["gt_box"] = None if row.box is None else list(row.box)
    out["annotations"] = list(row.references)
    return out
