"""SQA3D: a file of questions and a file of annotations, or conversations in one file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from vega_policy.scene.annotations import SQA3DRow
from vega_policy.scene.readers.conversations import answered, asked, is_conversations, scene_of
from vega_policy.scene.readers.rows import parse_rows, read_json, read_list
from vega_policy.spec import ContractError
from vega_policy.spec.files import write_atomic

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vega_policy.scene.readers.rows import Fields

_LAST_SENTENCE = re.compile(r"(?P<situation>.*[.?!]) (?P<question>[^.]*)", re.DOTALL)
_HEADER = {"data_type": "scannet", "data_subtype": "v2"}


def read_sqa3d(questions: Path | str, annotations: Path | str | None = None) -> list[SQA3DRow]:
    """Read questions with their answers.

    Args:
        questions: ``v1_balanced_questions_<split>_scannetv2.json``, or a file of conversations.
        annotations: ``v1_balanced_sqa_annotations_<split>_scannetv2.json``; None: the file beside
            ``questions`` whose name says ``sqa_annotations`` (released names) or ``annotations``
            instead. Conversations need none: they hold situation and question
            in one text, which is cut at the last sentence (12 of 3,519 are cut elsewhere than in the
            released file; what the model is asked stays the same), and no position.

    Raises:
        ContractError: A file is missing, rows have problems, or the two disagree; all are listed.
    """
    content = read_json(questions)
    if isinstance(content, list):
        items = read_list(questions)
        if not is_conversations(items):
            raise ContractError(f"{questions} is a list, expected questions or conversations")
        return parse_rows(questions, items, _from_conversation, key=lambda row: row.question_id)
    paired = _beside(Path(questions)) if annotations is None else Path(annotations)
    asked_rows = parse_rows(
        questions, _part(content, "questions", questions), _question, key=lambda r: r["question_id"]
    )
    answer_rows = parse_rows(
        paired,
        _part(read_json(paired), "annotations", paired),
        _annotation,
        key=lambda r: r["question_id"],
    )
    by_id = {row["question_id"]: row for row in answer_rows}
    _check_pairs(questions, asked_rows, paired, by_id)
    return [SQA3DRow(**{**by_id[row["question_id"]], **row}) for row in asked_rows]


def write_sqa3d(
    questions: Path | str, rows: Sequence[SQA3DRow], *, annotations: Path | str | None = None
) -> None:
    """Write both files in the released format.

    Args:
        questions: Where the questions go.
        rows: With positions and rotations.
        annotations: Where the answers go; None: beside ``questions``, as `read_sqa3d` looks for it.

    Raises:
        ContractError: Rows lack a position or a rotation; all are listed.
    """
    unplaced = [row.question_id for row in rows if row.position is None or row.rotation is None]
    if unplaced:
        raise ContractError(f"questions {unplaced} have no position or rotation; add them")
    paired = _beside(Path(questions)) if annotations is None else Path(annotations)
    _write(questions, "questions", (_to_question(row) for row in rows))
    _write(paired, "annotations", (_to_annotation(row) for row in rows))


def _beside(questions: Path) -> Path:
    word = "sqa_annotations" if questions.name.startswith("v1_balanced_") else "annotations"
    name = questions.name.replace("questions", word)
    if name == questions.name:
        raise ContractError(
            f"the name {questions.name} does not say which annotations belong to it; name them"
        )
    return questions.with_name(name)


def _part(content: Any, key: str, path: Path | str) -> list[Any]:  # noqa: ANN401 - JSON
    items = content.get(key) if isinstance(content, dict) else None
    if not isinstance(items, list) or not items:
        raise ContractError(f"{path} has no list {key!r}; give the released file of {key}")
    return items


def _question(fields: Fields) -> dict[str, Any]:
    others = fields.texts("alternative_situation") if "alternative_situation" in fields else ()
    return {
        "scene_id": fields.text("scene_id"),
        "question_id": fields.integer("question_id"),
        "situation": fields.text("situation"),
        "question": fields.text("question"),
        "alternative_situations": others,
    }


def _annotation(fields: Fields) -> dict[str, Any]:
    answers = fields.each("answers")
    if len(answers) != 1:
        fields.note(f"{len(answers)} answers, expected 1")
    position, rotation = fields.inside("position"), fields.inside("rotation")
    return {
        "scene_id": fields.text("scene_id"),
        "question_id": fields.integer("question_id"),
        "answer": answers[0].text("answer") if answers else "",
        "position": tuple(position.number(axis) for axis in "xyz"),
        "rotation": tuple(rotation.number(f"_{axis}") for axis in "xyzw"),
    }


def _check_pairs(
    questions: Path | str,
    asked_rows: list[dict[str, Any]],
    annotations: Path,
    by_id: dict[int, dict[str, Any]],
) -> None:
    ids = {row["question_id"] for row in asked_rows}
    found = {
        "no annotation": sorted(ids - by_id.keys()),
        "no question": sorted(by_id.keys() - ids),
        "another scene_id in the annotation": [
            row["question_id"]
            for row in asked_rows
            if by_id.get(row["question_id"], row)["scene_id"] != row["scene_id"]
        ],
    }
    listed = "; ".join(f"{what} for question_id {at}" for what, at in found.items() if at)
    if listed:
        raise ContractError(f"{questions} and {annotations}: {listed}; take both of one split")


def _from_conversation(fields: Fields) -> SQA3DRow:
    text = asked(fields, after="Answer the question using a single word or phrase.")
    match = _LAST_SENTENCE.fullmatch(text)
    meta = fields.inside("metadata")
    return SQA3DRow(
        scene_id=scene_of(fields),
        question_id=fields.integer("id"),
        situation=match["situation"] if match else "",
        question=match["question"] if match else text,
        answer=answered(fields),
        question_type=meta.text("question_type") if "question_type" in meta else "",
    )


def _to_question(row: SQA3DRow) -> dict[str, object]:
    return {
        "scene_id": row.scene_id,
        "situation": row.situation,
        "alternative_situation": list(row.alternative_situations),
        "question": row.question,
        "question_id": row.question_id,
    }


def _to_annotation(row: SQA3DRow) -> dict[str, object]:
    position = cast("tuple[float, ...]", row.position)
    rotation = cast("tuple[float, ...]", row.rotation)
    return {
        "scene_id": row.scene_id,
        "question_type": "N/A",
        "answer_type": "other",
        "question_id": row.question_id,
        "answers": [{"answer": row.answer, "answer_confidence": "yes", "answer_id": 1}],
        "rotation": {f"_{axis}": value for axis, value in zip("xyzw", rotation, strict=True)},
        "position": dict(zip("xyz", position, strict=True)),
    }


def _write(path: Path | str, key: str, rows: Iterable[dict[str, object]]) -> None:
    write_atomic(path, json.dumps({**_HEADER, key: list(rows)}, ensure_ascii=False) + "\n")
