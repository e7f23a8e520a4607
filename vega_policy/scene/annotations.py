"""One row of each public annotation file, as values.

Names of objects have blanks between words (``office chair``), also where a file writes underscores.
Boxes are ``cx cy cz dx dy dz``, metres, axis-aligned in the aligned frame of `scene.scan`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Box = tuple[float, float, float, float, float, float]
"""Centre and full size in metres."""
EvalType = Literal["zt_w_d", "zt_wo_d", "st_w_d", "st_wo_d", "mt"]
"""Zero, single or multiple targets, with or without distractors of the same class."""


@dataclass(frozen=True, kw_only=True)
class ScanReferRow:
    """A description of one object."""

    scene_id: str
    object_id: int
    object_name: str
    ann_id: str
    """Number of the description among those of its object."""
    description: str
    token: tuple[str, ...] = ()
    """Words of the description; empty where the file has none."""
    eval_type: Literal["unique", "multiple"] | None = None
    """Whether the object is the only one of its class; None in unlabelled files."""
    box: Box | None = None
    """Ground truth where the file carries it."""


@dataclass(frozen=True, kw_only=True)
class Multi3DReferRow:
    """A description of any number of objects."""

    scene_id: str
    object_ids: tuple[int, ...]
    """Empty for zero targets."""
    description: str
    eval_type: EvalType
    object_name: str
    ann_id: int
    attributes: frozenset[str] = frozenset()
    """Of ``spatial, color, texture, shape``: what the description uses."""
    boxes: tuple[Box, ...] | None = None
    """Ground truth, in the order of ``object_ids``, where the file carries it."""


@dataclass(frozen=True, kw_only=True)
class Scan2CapRow:
    """One object to be described, with what people said of it."""

    scene_id: str
    object_id: int
    box: Box | None
    """Ground truth; None where it was never looked up."""
    references: tuple[str, ...]
    """1 to 5 captions."""
    box_input: Box | None = None
    """The proposal whose centre is put into the prompt; None: no proposal overlaps by half."""
    object_name: str = ""
    ann_id: str = ""
    question_type: str = ""
    """``unique`` or ``multiple``; empty where unknown."""


@dataclass(frozen=True, kw_only=True)
class ScanQARow:
    """A question about a scene."""

    scene_id: str
    question_id: str
    question: str
    answers: tuple[str, ...]
    object_ids: tuple[int, ...] = ()
    object_names: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SQA3DRow:
    """A question asked by somebody who stands in the scene."""

    scene_id: str
    question_id: int
    situation: str
    question: str
    answer: str
    position: tuple[float, float, float] | None = None
    """Where they stand, metres in the aligned frame; None where the file does not say."""
    rotation: tuple[float, float, float, float] | None = None
    """Quaternion x y z w of how they are turned."""
    alternative_situations: tuple[str, ...] = ()
    question_type: str = ""
    """``what is how can which others``; empty where the file does not say."""


@dataclass(frozen=True, kw_only=True)
class VsiRow:
    """A question about a video."""

    id: int
    dataset: str
    scene_name: str
    question_type: str
    question: str
    ground_truth: str
    """A number, or the letter of an option."""
    options: tuple[str, ...] | None = None
    """``A. ...`` and so on; None where a number is asked for."""
    pruned: bool | None = None
    """Left out of the debiased set; None where the file does not say."""


NUMERIC_TYPES = (
    "object_counting",
    "object_abs_distance",
    "object_size_estimation",
    "room_size_estimation",
)
"""Types of VSI-Bench that are answered with a number."""
DIRECTIONS = tuple(f"object_rel_direction_{level}" for level in ("easy", "medium", "hard"))
CHOICE_TYPES = ("object_rel_distance", *DIRECTIONS, "route_planning", "obj_appearance_order")
"""Types of VSI-Bench that are answered with a letter."""

Row = ScanReferRow | Multi3DReferRow | Scan2CapRow | ScanQARow | SQA3DRow | VsiRow
Task = Literal["scanrefer", "multi3drefer", "scan2cap", "scanqa", "sqa3d", "vsi_bench"]
TASKS: tuple[Task, ...] = get_args(Task)
"""Whose row each of them is, in the same order."""
