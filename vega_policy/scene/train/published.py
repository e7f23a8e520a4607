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
from vega_policy.scene.readers.scannet import list_scans, read_scan
from vega_policy.scene.readers.video import missing_videos, read_uniform_frames, video_path
from vega_policy.scene.train.answering import answer
from vega_policy.scene.train.cases import case_of
from vega_policy.spec import ContractError
from vega_policy.spec.files import write_atomic

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from vega_policy.scene.annotations import Task, VsiRow
    from vega_policy.scene.readers.proposals import Proposals
    from vega_policy.scene.train.cases import Case
    from vega_policy.scene.train.settings import Head, PublishedConfig, SceneTrainConfig

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
BOXED = ("scanrefer", "multi3drefer", "scan2cap")
"""Tasks whose evaluators need the true boxes of the scans."""


def evaluate_published(config: SceneTrainConfig) -> dict[str, Any]:
    """Answer the real questions, write prediction files, score them and print the paper's columns.

    The answers about a scene are on disk before the next scene is read; the same command continues.

    Raises:
        ContractError: Something is missing; all is listed, with where it goes. Or the folder holds
            answers of another model.
    """
    from vega_policy.scene.evaluate import EvaluationSettings, evaluate

    problems = missing(config)
    if problems:
        raise ContractError("; ".join(problems))
    real, folder = config.published, config.out_dir / "published"
    columns: dict[str, float] = {}
    failed: list[str] = []
    for head in ("scannet", "vsi"):
        if not getattr(real, f"{head}_model"):
            continue
        said = _answers(config, head, folder / head)
        for task, rows in said.items():
            write_atomic(folder / f"{task}.json", json.dumps(rows) + "\n")
        for task in said:
            needs_boxes = task in BOXED
            try:
                found = evaluate(
                    task,
                    folder / f"{task}.json",
                    annotation_file(real.annotations, task),
                    EvaluationSettings(scans=real.scans) if needs_boxes else None,
                )
            except ContractError as error:
                # The other tasks' scores are worth having.
                failed.append(f"{task}: {error}")
                continue
            log.info("%s", found.table())
            for name in PAPER[task]:
                if name in found.scores:
                    columns[f"{task} {name}"] = round(found.scores[name].value, 2)
    result = {"what": "published models", "columns": columns, "predictions": str(folder)}
    if failed:
        log.warning("not scored: %s", "; ".join(failed))
    return {**result, "not_scored": failed}


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
    return sentences or _lost(config)


_WHAT = {
    "annotations": "put the released annotation files there (docs/scene_data.md)",
    "scannet_model": "name a directory that ScanNetModel.save_pretrained wrote of a trained model",
    "scans": "name the root of ScanNet's scans (docs/scene_data.md)",
    "proposals": "put the Mask3D proposals there (docs/scene_data.md)",
    "vsi_model": "name a directory that VsiModel.save_pretrained wrote of a trained model",
    "videos": "unpack VSI-Bench's videos there, <dataset>/<scene>.mp4",
}


def _answers(
    config: SceneTrainConfig, head: Head, folder: Path
) -> dict[Task, list[dict[str, Any]]]:
    """Answer every question of a head's tasks, scene by scene, and return the rows by task."""
    real = config.published
    scenes = _cases(config, head)
    _claim(config, head, folder)
    model = proposals = None
    said: dict[Task, list[dict[str, Any]]] = {task: [] for task in config.tasks_of(head)}
    with Progress(len(scenes), what=f"{head} answers", unit="scenes") as progress:
        for scene, cases in scenes.items():
            path = folder / f"{scene}.json"
            if not path.is_file():
                if model is None:
                    kind = ScanNetModel if head == "scannet" else VsiModel
                    model = kind.from_pretrained(getattr(real, f"{head}_model")).to(_device(real))
                if head == "scannet" and proposals is None:
                    proposals = read_proposals(real.proposals, scans=real.scans)
                boxes = torch.zeros(0, 6) if proposals is None else _boxes(proposals, scene)
                write_atomic(path, json.dumps(_of_scene(real, model, cases, boxes)) + "\n")
            for task, rows in json.loads(path.read_text()).items():
                said[task] += rows
            progress.update(1)
    return said


@torch.no_grad()
def _of_scene(
    real: PublishedConfig, model: ScanNetModel | VsiModel, cases: Sequence[Case], boxes: Tensor
) -> dict[str, list[dict[str, Any]]]:
    """Return the rows about one scene, which is read once, by task."""
    if isinstance(model, VsiModel):
        path = video_path(real.videos, cast("VsiRow", cases[0].row))
        frames = read_uniform_frames(path, n_frames=real.n_frames)
        tokens: Any = model.encode(
            [video_inputs(frames, width_px=model.config.width_px, unit_px=model.unit_px)]
        )
    else:
        scan = read_scan(real.scans, cases[0].scene_id, n_frames=real.n_frames)
        tokens = model.encode([scene_inputs(scan, px=model.image_px)])
    said: dict[str, list[dict[str, Any]]] = {}
    for task in dict.fromkeys(case.task for case in cases):
        some = [case for case in cases if case.task == task]
        said[task] = [
            row
            for at in range(0, len(some), real.texts_at_once)
            for row in answer(
                *(model, tokens, boxes, some[at : at + real.texts_at_once]), limits=MAX_NEW_TOKENS
            )
        ]
    return said


def _cases(config: SceneTrainConfig, head: Head) -> dict[str, list[Case]]:
    """Return the questions by scene, with the boxes that files leave to the scans."""
    from vega_policy.scene.evaluate import add_boxes

    real = config.published
    scenes: dict[str, list[Case]] = {}
    for task in config.tasks_of(head):
        rows: list[Any] = list(read_annotations(real.annotations, task))
        for case in map(case_of, add_boxes(rows, real.scans) if task == "scan2cap" else rows):
            scenes.setdefault(case.scene_id, []).append(case)
    return scenes


def _claim(config: SceneTrainConfig, head: Head, folder: Path) -> None:
    """Say in the folder whose answers it holds, or refuse one that holds others."""
    real, path = config.published, folder / "of.json"
    model = Path(getattr(real, f"{head}_model"))
    said = {
        "model": str(model.resolve()),
        "annotations": str(Path(real.annotations).resolve()),
        "tasks": list(config.tasks_of(head)),
        "n_frames": real.n_frames,
    }
    if not path.is_file():
        write_atomic(path, json.dumps(said, indent=1) + "\n")
    elif (found := json.loads(path.read_text())) != said:
        changed = sorted(k for k in said if found.get(k) != said[k])
        raise ContractError(
            f"{folder} holds answers made with another {', '.join(changed)}; choose another out, or "
            "remove it"
        )


def _boxes(proposals: Mapping[str, Proposals], scene: str) -> Tensor:
    return torch.from_numpy(proposals[scene].boxes).float()


def _device(real: PublishedConfig) -> torch.device:
    if real.device != "auto":
        return torch.device(real.device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _lost(config: SceneTrainConfig) -> list[str]:
    """Return one sentence for each kind of thing that questions need and scenes lack."""
    real = config.published
    problems: list[str] = []
    if real.vsi_model:
        rows: Any = read_annotations(real.annotations, "vsi_bench")
        lost = missing_videos(real.videos, rows)
        if lost:
            problems.append(f"{len(lost)} videos are missing, {lost[0]} first; unpack them")
    if not real.scannet_model:
        return problems
    scenes = _cases(config, "scannet")
    for what, there in (
        ("scan", set(list_scans(real.scans))),
        ("proposals", set(read_proposals(real.proposals, scans=real.scans))),
    ):
        without = sorted(set(scenes) - there)
        if without:
            problems.append(f"{len(without)} scenes have no {what}, {without[0]} first; add them")
    return problems
