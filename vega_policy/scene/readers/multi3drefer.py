"""Multi3DRefer: ``multi3drefer_{train,val}.json``, also as conversations."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast, get_args

from vega_policy.scene.annotations import EvalType, Multi3DReferRow
from vega_policy.scene.readers.conversations import asked, is_conversations, scene_of
from vega_policy.scene.readers.rows import parse_rows, read_list, write_list

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from vega_policy.scene.readers.rows import Fields

ATTRIBUTES = ("spatial", "color", "texture", "shape")
EVAL_TYPES: tuple[str, ...] = get_args(EvalType)
_N_TARGETS = {"z": (0, 0), "s": (1, 1), "m": (2, 10**9)}


def read_multi3drefer(path: Path | str) -> list[Multi3DReferRow]:
    """Read the annotations.

    Conversations hold neither object name nor attributes (empty here).

    Raises:
        ContractError: The file is missing, or rows have problems, a number of targets that its type
            excludes among them; all are listed.
    """
    items = read_list(path)
    return parse_rows(path, items, _from_conversation if is_conversations(items) else _from_row)


def write_multi3drefer(path: Path | str, rows: Iterable[Multi3DReferRow]) -> None:
    """Write the annotations in the released format."""
    write_list(path, (_to_row(row) for row in rows))


def _from_row(fields: Fields) -> Multi3DReferRow:
    flags = {name: fields.flag(name) if name in fields else False for name in ATTRIBUTES}
    row = Multi3DReferRow(
        scene_id=fields.text("scene_id"),
        object_ids=fields.integers("object_ids"),
        description=fields.text("description"),
        eval_type=cast("EvalType", fields.choice("eval_type", EVAL_TYPES)),
        object_name=fields.name("object_name"),
        ann_id=fields.integer("ann_id"),
        attributes=frozenset(name for name, is_set in flags.items() if is_set),
        boxes=fields.boxes("boxes") if "boxes" in fields else None,
    )
    _check_targets(row, fields)
    return row


def _from_conversation(fields: Fields) -> Multi3DReferRow:
    meta = fields.inside("metadata")
    row = Multi3DReferRow(
        scene_id=scene_of(fields),
        object_ids=meta.integers("object_id"),
        description=asked(
            fields,
            before="Identify the object according to the following description.\n",
            after="\nThere may be no corresponding object, or there may be one or more objects.",
        ),
        eval_type=cast("EvalType", meta.choice("question_type", EVAL_TYPES)),
        object_name="",
        ann_id=meta.integer("ann_id"),
        boxes=fields.boxes("box") if "box" in fields else None,
    )
    _check_targets(row, fields)
    return row


def _check_targets(row: Multi3DReferRow, fields: Fields) -> None:
    low, high = _N_TARGETS.get(row.eval_type[:1], (0, 10**9))
    if not low <= len(row.object_ids) <= high:
        fields.note(f"eval_type {row.eval_type} has {len(row.object_ids)} object_ids")
    if row.boxes is not None and len(row.boxes) != len(row.object_ids):
        fields.note(f"{len(row.boxes)} boxes for {len(row.object_ids)} object_ids")


def _to_row(row: Multi3DReferRow) -> dict[str, object]:
    out: dict[str, object] = {
        "scene_id": row.scene_id,
        "object_ids": list(row.object_ids),
        "object_name": row.object_name.replace(" ", "_"),
        "ann_id": row.ann_id,
        "description": row.description,
        "eval_type": row.eval_type,
        **{name: name in row.attributes for name in ATTRIBUTES},
    }
    if row.boxes is not None:
        out["boxes"] = [list(box) for box in row.boxes]
    return out
