"""Rows of the public annotation files as what a model is asked, and what it is trained to answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vega_policy.scene.annotations import (
    Multi3DReferRow,
    Row,
    Scan2CapRow,
    ScanQARow,
    ScanReferRow,
    SQA3DRow,
    Task,
    VsiRow,
)
from vega_policy.scene.heads import prompts
from vega_policy.spec import ContractError

if TYPE_CHECKING:
    from collections.abc import Iterable

GROUND_TASKS: tuple[Task, ...] = ("scanrefer", "multi3drefer")


@dataclass(frozen=True, eq=False)
class Case:
    """One question."""

    task: Task
    row: Row
    scene_id: str
    prompt: str
    """What follows the scene."""
    targets: tuple[int, ...] = ()
    """``object_id`` of what is meant (grounding only); empty: nothing is."""
    answers: tuple[str, ...] = ()
    """All of them are right (text only)."""
    coord: tuple[float, float, float] | None = None
    """Place the prompt names, metres in the aligned frame."""

    @property
    def is_grounding(self) -> bool:
        """Whether the answer is a choice of boxes."""
        return self.task in GROUND_TASKS

    @property
    def kind(self) -> str:
        """What questions are counted by, beside the task."""
        row = self.row
        if isinstance(row, ScanReferRow | Multi3DReferRow):
            return row.eval_type or "all"
        return row.question_type or "all" if isinstance(row, SQA3DRow | VsiRow) else "all"


def case_of(row: Row) -> Case:
    """Turn a row into a question, in the words of the published prompts.

    Raises:
        ContractError: An object that is to be described has no box.
    """
    match row:
        case ScanReferRow():
            prompt = prompts.scanrefer(row.description)
            return Case("scanrefer", row, row.scene_id, prompt, targets=(row.object_id,))
        case Multi3DReferRow():
            prompt = prompts.multi3drefer(row.description)
            return Case("multi3drefer", row, row.scene_id, prompt, targets=row.object_ids)
        case Scan2CapRow():
            box = row.box_input or row.box
            if box is None:
                raise ContractError(
                    f"object {row.object_id} of scene {row.scene_id} is to be described and has no "
                    "box; write annotations with boxes"
                )
            return Case(
                *("scan2cap", row, row.scene_id, prompts.scan2cap()),
                answers=row.references,
                coord=box[:3],
            )
        case ScanQARow():
            prompt = prompts.scanqa(row.question)
            return Case("scanqa", row, row.scene_id, prompt, answers=row.answers)
        case SQA3DRow():
            prompt = prompts.sqa3d(row.situation, row.question)
            return Case("sqa3d", row, row.scene_id, prompt, answers=(row.answer,))
        case VsiRow():
            prompt = prompts.vsi_bench(row.question, row.options)
            return Case("vsi_bench", row, row.scene_name, prompt, answers=(row.ground_truth,))


def words(cases: Iterable[Case]) -> list[str]:
    """Return every text a tokenizer should know."""
    return [text for case in cases for text in (case.prompt, *case.answers)]
