"""ScanQA: ``ScanQA_v1.0_{train,val}.json``, also as conversations."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from vega_policy.scene.annotations import ScanQARow
from vega_policy.scene.readers.conversations import asked, is_conversations, scene_of
from vega_policy.scene.readers.rows import parse_rows, read_list, write_list

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from vega_policy.scene.readers.rows import Fields

_CONVERSATION_ID = re.compile(r"scanqa_(?P<question>.+)_\d+")


def read_scanqa(path: Path | str) -> list[ScanQARow]:
    """Read the questions.

    Conversations hold no objects (empty here). In training conversations a question comes once for
    each answer, under one id; read the released file instead.

    Raises:
        ContractError: The file is missing, or rows have problems; all are listed.
    """
    items = read_list(path)
    build = _from_conversation if is_conversations(items) else _from_row
    return parse_rows(path, items, build, key=lambda row: row.question_id)


def write_scanqa(path: Path | str, rows: Iterable[ScanQARow]) -> None:
    """Write the questions in the released format."""
    write_list(path, (_to_row(row) for row in rows))


def question_id_of(conversation_id: str) -> str:
    """Return the question a conversation of Video-3D-LLM is about: its id holds that of ScanQA."""
    match = _CONVERSATION_ID.fullmatch(conversation_id)
    return match["question"] if match else conversation_id


def _from_row(fields: Fields) -> ScanQARow:
    row = ScanQARow(
        scene_id=fields.text("scene_id"),
        question_id=fields.text("question_id"),
        question=fields.text("question"),
        answers=_answers(fields),
        object_ids=fields.integers("object_ids"),
        object_names=fields.texts("object_names"),
    )
    if len(row.object_ids) != len(row.object_names):
        fields.note(f"{len(row.object_ids)} object_ids, {len(row.object_names)} object_names")
    return row


def _from_conversation(fields: Fields) -> ScanQARow:
    return ScanQARow(
        scene_id=scene_of(fields),
        question_id=question_id_of(fields.text("id")),
        question=asked(fields, after="Answer the question simply."),
        answers=_answers(fields.inside("metadata")),
    )


def _answers(fields: Fields) -> tuple[str, ...]:
    answers = fields.texts("answers")
    if not answers:
        fields.note("answers is empty")
    return answers


def _to_row(row: ScanQARow) -> dict[str, object]:
    return {
        "answers": list(row.answers),
        "object_ids": list(row.object_ids),
        "object_names": list(row.object_names),
        "question": row.question,
        "question_id": row.question_id,
        "scene_id": row.scene_id,
    }
