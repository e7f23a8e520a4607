"""ScanRefer: ``ScanRefer_filtered_{train,val}.json``, also as conversations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, cast

from vega_policy.scene.annotations import ScanReferRow
from vega_policy.scene.readers.conversations import asked, is_conversations, scene_of
from vega_policy.scene.readers.rows import parse_rows, read_list, write_list

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from vega_policy.scene.readers.rows import Fields

_EVAL_TYPES = ("unique", "multiple")


def read_scanrefer(path: Path | str) -> list[ScanReferRow]:
    """Read the annotations.

    Conversations hold no object name (empty here) and only the capitalised description.

    Raises:
        ContractError: The file is missing, or rows have problems; all are listed.
    """
    items = read_list(path)
    build = _from_conversation if is_conversations(items) else _from_row
    return parse_rows(path, items, build, key=lambda row: (row.scene_id, row.object_id, row.ann_id))


def write_scanrefer(path: Path | str, rows: Iterable[ScanReferRow]) -> None:
    """Write the annotations in the released format."""
    write_list(path, (_to_row(row) for row in rows))


def _from_row(fields: Fields) -> ScanReferRow:
    return ScanReferRow(
        scene_id=fields.text("scene_id"),
        object_id=fields.integer("object_id"),
        object_name=fields.name("object_name"),
        ann_id=str(fields.integer("ann_id")),
        description=fields.text("description"),
        token=fields.texts("token") if "token" in fields else (),
        eval_type=_eval_type(fields, "eval_type") if "eval_type" in fields else None,
        box=fields.box("box") if "box" in fields else None,
    )


def _from_conversation(fields: Fields) -> ScanReferRow:
    meta = fields.inside("metadata")
    before = "Identify the object according to the following description.\n"
    return ScanReferRow(
        scene_id=scene_of(fields),
        object_id=meta.integer("object_id"),
        object_name="",
        ann_id=str(meta.integer("ann_id")),
        description=asked(fields, before=before),
        eval_type=_eval_type(meta, "question_type"),
        box=fields.box("box") if "box" in fields else None,
    )


def _eval_type(fields: Fields, key: str) -> Literal["unique", "multiple"]:
    return cast("Literal['unique', 'multiple']", fields.choice(key, _EVAL_TYPES))


def _to_row(row: ScanReferRow) -> dict[str, object]:
    out: dict[str, object] = {
        "scene_id": row.scene_id,
        "object_id": str(row.object_id),
        "object_name": row.object_name.replace(" ", "_"),
        "ann_id": row.ann_id,
        "description": row.description,
        "token": list(row.token),
    }
    if row.eval_type is not None:
        out["eval_type"] = row.eval_type
    if row.box is not None:
        out["box"] = list(row.box)
    return out
