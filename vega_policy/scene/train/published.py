"""Trained models of full size on real data, through the same prompts, heads and evaluators.

Nothing here trains, and only whole trained models are read: a backbone whose heads are new would give a
random-weight accuracy, which is no result.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from vega_policy.data.progress import Progress
from vega_policy.scene.heads.inputs import scene_inputs, video_inputs
from vega_policy.scene.heads.prompts import MAX_NEW_TOKENS
from vega_policy.scene.heads.scannet_model import ScanNetModel
from vega_policy.scene.heads.vsi_model import VsiModel
from vega_policy.scene.readers.folder import (
    annotation_file,
    missing_annotations,
    read_annotations,
)
from vega_policy.scene.readers.proposals import read_proposals
from vega_policy.scene.readers.scannet import read_scan
from vega_policy.scene.readers.video import missing_videos, read_uniform_frames, video_path
from vega_policy.scene.train.answering import answer
from vega_policy.scene.train.cases import case_of
from vega_policy.spec import ContractError
from vega_policy.spec.files import write_atomic

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vega_policy.scene.annotations import Row, Task, VsiRow
    from vega_policy.scene.train.cases import Case
    from vega_policy.scene.train.settings import SceneTrainConfig

log = logging.getLogger(__name__)

PAPER: dict[str, tuple[str, ...]] = {
    "scanrefer": ("acc@0.25", "acc@0.5"),
    "multi3drefer": ("f1@0.25", "f1@0.5"),
    "scan2cap": ("cider@0.5", "bleu4@0.5"),
    "scanqa": ("raw/cider", "em@1"),
    "sqa3d": ("em",),
    "vsi_bench": ("overall",),
}
"""Columns of the paper's tables."""


def evaluate_published(config: SceneTrainConfig) -> dict[str, Any]:
    """Answer the real questions, write prediction files, score them and print the paper's columns.

    Raises:
        ContractError: Something is missing; all is listed, with where it goes.
    """
    from vega_policy.scene.evaluate import EvaluationSettings, evaluate

    problems = missing(config)
    if problems:
        raise ContractError("; ".join(problems))
    real, folder = config.published, config.out_dir / "published"
    columns: dict[str, float] = {}
    for head in ("scannet", "vsi"):
        tasks = config.tasks_of(head) if getattr(real, f"{head}_model") else ()
        if not tasks:
            continue
        rows = {task: _answered(config, task) for task in tasks}
        for task, said in rows.items():
            path = folder / f"{task}.json"
            write_atomic(path, json.dumps(said) + "\n")
            needs_boxes = task in ("scanrefer", "multi3drefer", "scan2cap")
            found = evaluate(
                task,
                path,
                annotation_file(real.annotations, task),
                EvaluationSettings(scans=real.scans) if needs_boxes else None,
            )
            log.info("%s", found.table())
            for name in PAPER[task]:
                if name in found.scores:
                    columns[f"{task} {name}"] = round(found.scores[name].value, 2)
    return {"what": "published models", "columns": columns, "predictions": str(folder)}


def missing(config: SceneTrainConfig) -> list[str]:
    """Return one sentence for each thing that is not there."""
    real = config.published
    needs = {"annotations": real.annotations}
    if real.scannet_model or not real.vsi_model:
        needs |= {
            "scannet_model": real.scannet_model,
            "scans": real.scans,
            "proposals": real.proposals,
        }
    if real.vsi_model:
        needs |= {"vsi_model": real.vsi_model, "videos": real.videos}
    sentences = [
        f"published.{name} is {value!r}, which does not exist; {_WHAT[name]}"
        for name, value in needs.items()
        if not value or not Path(value).exists()
    ]
    if real.annotations and Path(real.annotations).exists():
        tasks = config.tasks_of("scannet") if real.scannet_model else ()
        tasks += config.tasks_of("vsi") if real.vsi_model else ()
        sentences += missing_annotations(real.annotations, tasks)
    return sentences


_WHAT = {
    "annotations": "put the released annotation files there (docs/scene_data.md)",
    "scannet_model": "name a directory that ScanNetModel.save_pretrained wrote of a trained model",
    "scans": "name the root of ScanNet's scans (docs/scene_data.md)",
    "proposals": "put the Mask3D proposals there (docs/scene_data.md)",
    "vsi_model": "name a directory that VsiModel.save_pretrained wrote of a trained model",
    "videos": "unpack VSI-Bench's videos there, <dataset>/<scene>.mp4",
}


@torch.no_grad()
def _answered(config: SceneTrainConfig, task: Task) -> list[dict[str, Any]]:
    real = config.published
    rows = cast("Sequence[Row]", read_annotations(real.annotations, task))
    scenes: dict[str, list[Case]] = {}
    for case in map(case_of, rows):
        scenes.setdefault(case.scene_id, []).append(case)
    said: list[dict[str, Any]] = []
    with Progress(len(scenes), what=task, unit="scenes") as progress:
        if task == "vsi_bench":
            lost = missing_videos(real.videos, cast("Sequence[VsiRow]", rows))
            if lost:
                raise ContractError(f"{len(lost)} videos are missing, {lost[0]} first; unpack them")
            model = VsiModel.from_pretrained(real.vsi_model)
            for cases in scenes.values():
                path = video_path(real.videos, cast("VsiRow", cases[0].row))
                frames = read_uniform_frames(path, n_frames=real.n_frames)
                width_px = model.config.width_px
                inputs = video_inputs(frames, width_px=width_px, unit_px=model.unit_px)
                none = torch.zeros(0, 6)
                said += answer(model, model.encode([inputs]), none, cases, limits=MAX_NEW_TOKENS)
                progress.update(1)
            return said
        scannet = ScanNetModel.from_pretrained(real.scannet_model)
        proposals = read_proposals(real.proposals, scans=real.scans)
        for scene, cases in scenes.items():
            scan = read_scan(real.scans, scene, n_frames=real.n_frames)
            tokens = scannet.encode([scene_inputs(scan, px=scannet.image_px)])
            if scene not in proposals:
                raise ContractError(f"{real.proposals} has no boxes of scene {scene}; add them")
            boxes = torch.from_numpy(proposals[scene].boxes).float()
            said += answer(scannet, tokens, boxes, cases, limits=MAX_NEW_TOKENS)
            progress.update(1)
    return said
