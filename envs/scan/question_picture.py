"""A picture of questions about one scene: what is meant is drawn where it is."""

# pyright: basic
# ruff: noqa: ANN401
from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from envs.scan.picture import draw_object, draw_plan
from vega_policy.scene.readers.folder import read_annotations
from vega_policy.scene.readers.scannet import read_scan
from vega_policy.scene.truth import TRUTH_FILE, read_truth
from vega_policy.spec import ContractError
from vega_policy.spec.files import atomic_path

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vega_policy.scene.annotations import SQA3DRow, VsiRow
    from vega_policy.scene.scan import Scan
    from vega_policy.scene.truth import SceneTruth

_MEANT, _OTHER = (0.1, 0.85, 0.2, 1.0), (0.9, 0.3, 0.2, 1.0)
_PLAN = (0.75, 0.75, 0.75, 1.0)
_WRAP = 40


def draw_questions(root: Path | str, scene_id: str, annotations: Path, path: Path | str) -> None:
    """Draw one question of each ScanNet task, and write one of each VSI-Bench type beside them.

    Raises:
        ContractError: Files are missing or broken, or there is a task without a question of the scene.
    """
    from matplotlib.figure import Figure

    truth = read_truth(Path(root) / scene_id / TRUTH_FILE)
    scan = read_scan(root, scene_id, n_frames=len(truth.frames))
    # A relation is worth a picture, a class alone is not.
    refer = _row(annotations, "scanrefer", scene_id, "facing")
    several = _row(annotations, "multi3drefer", scene_id, "all the")
    caption = _row(annotations, "scan2cap", scene_id, "")
    question = _row(annotations, "scanqa", scene_id, "closest")
    situated = _row(annotations, "sqa3d", scene_id, "to my")
    panels = [
        ("ScanRefer", refer.description, (refer.object_id,)),
        ("Multi3DRefer", several.description, several.object_ids),
        ("Scan2Cap", caption.references[0], (caption.object_id,)),
        ("ScanQA", f"{question.question} {question.answers[0]}", question.object_ids),
    ]
    width, height = truth.image_px
    figure = Figure(figsize=(13.5, 3.1 * 2 * height / width * 1.25), layout="constrained")
    grid = figure.add_gridspec(2, 4, width_ratios=[1, 1, 0.9, 1.3])
    for k, (task, text, ids) in enumerate(panels):
        axis = figure.add_subplot(grid[k // 2, k % 2])
        _view(axis, scan, truth, ids)
        axis.set_title(textwrap.fill(f"{task}: {text}", _WRAP), fontsize=8)
    _plan_of(figure.add_subplot(grid[:, 2]), truth, situated)
    _list(figure.add_subplot(grid[:, 3]), _types(annotations, scene_id))
    with atomic_path(Path(path)) as temporary:
        figure.savefig(temporary, dpi=80, format="png", pil_kwargs={"optimize": True})


def _row(annotations: Path, task: Any, scene_id: str, word: str) -> Any:
    """Return the first row of a scene with a word in it, or the first of all."""
    every: Any = read_annotations(annotations, task)
    rows = [row for row in every if row.scene_id == scene_id]
    if not rows:
        raise ContractError(f"no question of {task} about {scene_id}; take another scene")
    return next((row for row in rows if word in str(row)), rows[0])


def _types(annotations: Path, scene_id: str) -> list[VsiRow]:
    """Return the first row of each VSI-Bench type."""
    found: dict[str, VsiRow] = {}
    every: Any = read_annotations(annotations, "vsi_bench")
    for row in every:
        if row.scene_name == scene_id:
            found.setdefault(row.question_type, row)
    return list(found.values())


def _view(axis: Any, scan: Scan, truth: SceneTruth, ids: Sequence[int]) -> None:
    """Show the frame that shows what is meant best; others of its class are drawn in red."""
    meant = [o for o in truth.objects if o.object_id in ids]
    labels = {o.label for o in meant}
    seen = np.array([o.visible_px for o in meant])
    k = int(np.argmax((seen > 0).sum(axis=0) * 1e6 + seen.min(axis=0)))
    axis.imshow(scan.frames[k].image)
    for item in truth.objects:
        if item.label in labels and item.visible_px[k]:
            draw_object(axis, scan, k, item, _MEANT if item in meant else _OTHER)
    width, height = truth.image_px
    axis.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), xticks=[], yticks=[])


def _plan_of(axis: Any, truth: SceneTruth, row: SQA3DRow) -> None:
    """Show where one stands and looks."""
    draw_plan(axis, truth, [_PLAN] * (1 + max(o.object_id for o in truth.objects)), walk=False)
    if row.position is not None and row.rotation is not None:
        x, y, _ = row.position
        turn = 2 * np.arctan2(row.rotation[2], row.rotation[3])
        axis.plot(x, y, "o", color=_MEANT, markersize=7)
        axis.quiver(x, y, np.cos(turn), np.sin(turn), color=[_MEANT], scale=6, width=0.012)
    text = textwrap.fill(f"SQA3D: {row.situation} {row.question} {row.answer}", _WRAP)
    axis.set_title(text, fontsize=8)


def _list(axis: Any, rows: Sequence[VsiRow]) -> None:
    axis.axis("off")
    lines: list[str] = ["VSI-Bench"]
    for row in rows:
        options = "" if row.options is None else f" ({', '.join(row.options)})"
        question = row.question.split(" An object is")[0].split(" The directions")[0]
        question = re.sub(r" \(Note.*?\):", ":", question)
        lines += ["", *textwrap.wrap(f"{question}{options} {row.ground_truth}", 72)]
    axis.text(0, 1, "\n".join(lines), fontsize=6.5, va="top")
