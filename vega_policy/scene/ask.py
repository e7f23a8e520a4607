"""One question about one scan, answered by a scene model and drawn where the answer is."""

# pyright: basic
from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from vega_policy.scene.annotations import TASKS
from vega_policy.scene.drawing import draw_box
from vega_policy.scene.heads import prompts
from vega_policy.scene.heads.inputs import POINTS_PX, scene_inputs, video_inputs
from vega_policy.scene.heads.scannet_model import ScanNetModel
from vega_policy.scene.heads.vsi_model import VsiModel
from vega_policy.scene.selection import select_many, select_one
from vega_policy.spec import ContractError
from vega_policy.spec.files import atomic_path
from vega_policy.spec.names import require_name

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from vega_policy.scene.scan import Scan

_ANSWER, _OTHER = (0.1, 0.85, 0.2, 1.0), (1.0, 1.0, 1.0, 0.35)
_COLUMNS = 3
_WRAP = 96


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked."""

    task: str
    """One of the six: says in which words, and whether the answer is boxes or text."""
    text: str = ""
    """Description or question; not used by scan2cap."""
    situation: str = ""
    """Where one stands (sqa3d)."""
    object_id: int | None = None
    """What is to be described (scan2cap)."""
    options: tuple[str, ...] = ()
    """Of a multiple choice, letters included (vsi_bench)."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What a model says."""

    text: str | None = None
    """None where the answer is boxes."""
    object_ids: tuple[int, ...] | None = None
    """Of the boxes that are meant, best first; empty: none of them. None where the answer is text."""


@torch.no_grad()
def ask(model: ScanNetModel | VsiModel, scan: Scan, question: Question) -> Reply:
    """Ask one question.

    Args:
        model: A `VsiModel` for vsi_bench, a `ScanNetModel` for the other tasks.
        scan: The frames that the model sees; with depth and boxes where boxes are asked for.
        question: See `Question`.

    Raises:
        ContractError: Model, scan and question do not fit.
    """
    require_name(question.task, TASKS, what="task")
    wanted = VsiModel if question.task == "vsi_bench" else ScanNetModel
    if not isinstance(model, wanted):
        raise ContractError(
            f"{question.task} is answered by a {wanted.__name__}, got a {type(model).__name__}; name "
            "another model"
        )
    if isinstance(model, VsiModel):
        images = [frame.image for frame in scan.frames]
        seen = video_inputs(images, width_px=model.config.width_px, unit_px=model.unit_px)
        tokens = model.encode([seen])
        text = prompts.vsi_bench(question.text, question.options or None)
        return Reply(text=model.answer(tokens, [text], max_new_tokens=16)[0])
    points_px = POINTS_PX if model.config.patches == "share" else None
    tokens = model.encode([scene_inputs(scan, px=model.image_px, points_px=points_px)])
    if question.task in ("scanrefer", "multi3drefer"):
        boxes = _boxes(scan)
        prompt = prompts.scanrefer if question.task == "scanrefer" else prompts.multi3drefer
        scores = model.ground(tokens, [boxes], [prompt(question.text)])[0].tolist()
        chosen = [select_one(scores)] if question.task == "scanrefer" else select_many(scores)
        return Reply(object_ids=tuple(scan.objects[i].object_id for i in chosen))
    if question.task == "scan2cap":
        place = torch.from_numpy(_boxes(scan)[_index(scan, question.object_id), :3]).float()
        return Reply(text=model.answer(tokens, [prompts.scan2cap()], coords=[place])[0])
    text = (
        prompts.scanqa(question.text)
        if question.task == "scanqa"
        else prompts.sqa3d(question.situation, question.text)
    )
    return Reply(text=model.answer(tokens, [text])[0])


def draw_reply(scan: Scan, question: Question, reply: Reply, path: Path) -> None:
    """Draw every frame of the scan with the boxes that are meant in green, the others pale.

    Args:
        scan: What the model saw.
        question: What was asked.
        reply: What it said.
        path: A PNG file.
    """
    from matplotlib.figure import Figure

    meant = reply.object_ids or ()
    if question.task == "scan2cap" and question.object_id is not None:
        meant = (question.object_id,)
    height, width = scan.frames[0].image.shape[:2]
    rows = -(-len(scan.frames) // _COLUMNS)
    figure = Figure(
        figsize=(3.4 * _COLUMNS, 3.4 * rows * height / width + 0.7), layout="constrained"
    )
    axes = figure.subplots(rows, _COLUMNS, squeeze=False).flat
    for k, axis in enumerate(axes):
        axis.axis("off")
        if k >= len(scan.frames):
            continue
        axis.imshow(scan.frames[k].image)
        # Those that are meant last, on top.
        for item in sorted(scan.objects, key=lambda o: o.object_id in meant):
            is_meant = item.object_id in meant
            draw_box(
                axis,
                scan,
                k,
                item.box,
                _ANSWER if is_meant else _OTHER,
                linewidth=1.6 if is_meant else 0.5,
            )
        axis.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    figure.suptitle(textwrap.fill(_title(scan, question, reply), _WRAP), fontsize=10)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=80, format="png", pil_kwargs={"optimize": True})


def _title(scan: Scan, question: Question, reply: Reply) -> str:
    asked = " ".join(part for part in (question.situation, question.text) if part)
    if question.task == "scan2cap":
        asked = f"object {question.object_id}"
    if reply.text is not None:
        return f"{question.task}: {asked} \u2192 {reply.text}"
    labels = {item.object_id: item.label for item in scan.objects}
    found = ", ".join(f"{labels[i]} ({i})" for i in reply.object_ids or ()) or "none of them"
    return f"{question.task}: {asked} \u2192 {found}"


def _boxes(scan: Scan) -> NDArray[np.float64]:
    if not scan.objects:
        raise ContractError(
            f"scene {scan.scene_id} has no objects, among whose boxes the answer is found; add its "
            "ground truth, or ask for text"
        )
    return np.stack([item.box for item in scan.objects])


def _index(scan: Scan, object_id: int | None) -> int:
    known = [item.object_id for item in scan.objects]
    if object_id not in known:
        raise ContractError(
            f"scan2cap describes an object of the scene, got {object_id}; expected one of {known}"
        )
    return known.index(object_id)
