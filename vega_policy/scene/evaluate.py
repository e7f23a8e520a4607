"""A prediction file scored against an annotation file, without any model.

Predictions are JSON lists or one JSON object a line:

=============  ==========================================================================
scanrefer      ``scene_id, object_id, ann_id, box``
multi3drefer   ``scene_id, ann_id, boxes`` (empty list: there is no such object)
scan2cap       ``scene_id, object_id, text`` and ``box``, the proposal it was made for
scanqa         ``question_id, text``
sqa3d          ``question_id, text``
vsi_bench      ``id, text``
=============  ==========================================================================

Other public forms are read as well (`public_rows`). Annotations are the released files.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from vega_policy.scene.annotations import TASKS, Task
from vega_policy.scene.boxes import NOWHERE
from vega_policy.scene.metrics.multi3drefer import score_multi3drefer
from vega_policy.scene.metrics.public import public_rows
from vega_policy.scene.metrics.scan2cap import score_scan2cap
from vega_policy.scene.metrics.scanqa import score_scanqa
from vega_policy.scene.metrics.scanrefer import read_label_classes, score_scanrefer
from vega_policy.scene.metrics.score import Evaluation, Score
from vega_policy.scene.metrics.sqa3d import score_sqa3d
from vega_policy.scene.metrics.vsi_bench import score_vsi_bench
from vega_policy.scene.readers.folder import annotation_file
from vega_policy.scene.readers.ground_truth import read_objects
from vega_policy.scene.readers.multi3drefer import read_multi3drefer
from vega_policy.scene.readers.scan2cap import read_scan2cap
from vega_policy.scene.readers.scanqa import read_scanqa
from vega_policy.scene.readers.scanrefer import read_scanrefer
from vega_policy.scene.readers.sqa3d import read_sqa3d
from vega_policy.scene.readers.vsi_bench import read_vsi
from vega_policy.spec import ContractError
from vega_policy.spec.names import require_name

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from vega_policy.scene.annotations import Box

__all__ = [
    "OPTIONS",
    "TASKS",
    "Evaluation",
    "EvaluationSettings",
    "Score",
    "Task",
    "evaluate",
    "find_annotations",
    "read_rows",
]


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """Options that change numbers, by the task they belong to; None is the task's default."""

    scans: Path | str | None = None
    """Folder of scans, for ground-truth boxes that the annotation does not hold."""
    unique_by: str | None = None
    """scanrefer: ``nyu40, file`` or ``name``."""
    labels: Path | str | None = None
    """scanrefer: ``scannetv2-labels.combined.tsv``, for ``nyu40``."""
    split: Path | str | None = None
    """scanrefer: annotation of the whole split, where ``annotations`` is a part of it."""
    located: str | None = None
    """scan2cap: ``prediction, annotation`` or ``all``."""
    threshold: str | None = None
    """scan2cap: ``inclusive`` or ``strict``."""
    text: str | None = None
    """scanqa: ``raw, ptb`` or ``both``."""
    em_r: str | None = None
    """scanqa, sqa3d: ``strict`` or ``leo``."""
    parser: str | None = None
    """vsi_bench: ``original`` or ``lmms_eval``."""
    meteor: bool | None = None
    """scan2cap, scanqa: whether to run METEOR."""


OPTIONS: dict[str, tuple[Task, ...]] = {
    "scans": ("scanrefer", "multi3drefer", "scan2cap"),
    "unique_by": ("scanrefer",),
    "labels": ("scanrefer",),
    "split": ("scanrefer",),
    "located": ("scan2cap",),
    "threshold": ("scan2cap",),
    "text": ("scanqa",),
    "em_r": ("scanqa", "sqa3d"),
    "parser": ("vsi_bench",),
    "meteor": ("scan2cap", "scanqa"),
}
"""The tasks each option is for."""


def evaluate(
    task: str,
    predictions: Path | str,
    annotations: Path | str,
    settings: EvaluationSettings | None = None,
) -> Evaluation:
    """Score a prediction file.

    Args:
        task: One of `TASKS`.
        predictions: JSON or JSON lines.
        annotations: The released file of a split (sqa3d: the questions; the answers lie beside them).
        settings: Options of the protocol.

    Raises:
        ContractError: The task is unknown, a file is missing or broken, an option belongs to another
            task, or no prediction belongs to the annotation.
    """
    require_name(task, TASKS, what="task")
    options = _options(task, settings or EvaluationSettings())
    rows = public_rows(task, read_rows(predictions), annotations)
    return _SCORERS[task](rows, annotations, options)


def find_annotations(task: str, annotations: Path | str) -> Path:
    """Return the annotation file of a task: ``annotations`` itself, or the one in that folder.

    Raises:
        ContractError: The folder has none.
    """
    path = Path(annotations)
    return annotation_file(path, task) if path.is_dir() else path


def read_rows(path: Path | str) -> list[Any]:
    """Read a JSON list or one JSON value a line; blank lines are skipped.

    Raises:
        ContractError: The file is missing, empty, no text or neither of the two.
    """
    file = Path(path)
    if not file.is_file():
        raise ContractError(f"no prediction file {file}; check predictions=")
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ContractError(f"{file} is no UTF-8 text ({error}); write it as JSON again") from error
    try:
        content = json.loads(text)
    except ValueError:
        content = _lines(text, file)
    rows = content if isinstance(content, list) else [content]
    if not rows:
        raise ContractError(f"{file} has no predictions; write a JSON list or one object a line")
    return rows


def _lines(text: str, file: Path) -> list[Any]:
    rows: list[Any] = []
    broken: list[str] = []
    for i, line in enumerate(text.split("\n"), start=1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except ValueError as error:
            broken.append(f"line {i}: {error}")
    if broken:
        shown = "; ".join(broken[:5])
        raise ContractError(
            f"{file} is neither a JSON list nor JSON lines ({len(broken)} broken: {shown}); mend them"
        )
    return rows


def _options(task: str, settings: EvaluationSettings) -> dict[str, Any]:
    given = {field.name: getattr(settings, field.name) for field in fields(settings)}
    given = {name: value for name, value in given.items() if value is not None}
    foreign = [
        f"{name} (of {', '.join(OPTIONS[name])})" for name in given if task not in OPTIONS[name]
    ]
    if foreign:
        raise ContractError(
            f"task {task} has no option {', '.join(foreign)}; leave out what it has"
        )
    return given


def _scanrefer(rows: list[Any], annotations: Path | str, options: Mapping[str, Any]) -> Evaluation:
    labels, split = options.get("labels"), options.get("split")
    return score_scanrefer(
        rows,
        add_boxes(read_scanrefer(annotations), options.get("scans")),
        unique_by=options.get("unique_by"),
        classes=None if labels is None else read_label_classes(labels),
        split=None if split is None else read_scanrefer(split),
    )


def _multi3drefer(
    rows: list[Any], annotations: Path | str, options: Mapping[str, Any]
) -> Evaluation:
    described = read_multi3drefer(annotations)
    if options.get("scans") is not None:
        boxes = _Boxes(options["scans"])
        described = [
            row
            if row.boxes is not None
            else replace(row, boxes=tuple(boxes.of(row.scene_id, i) for i in row.object_ids))
            for row in described
        ]
        boxes.raise_missing()
    return score_multi3drefer(rows, described)


def _scan2cap(rows: list[Any], annotations: Path | str, options: Mapping[str, Any]) -> Evaluation:
    return score_scan2cap(
        rows,
        add_boxes(read_scan2cap(annotations), options.get("scans")),
        located=options.get("located"),
        threshold=options.get("threshold", "inclusive"),
        with_meteor=options.get("meteor", True),
    )


def _scanqa(rows: list[Any], annotations: Path | str, options: Mapping[str, Any]) -> Evaluation:
    return score_scanqa(
        rows,
        read_scanqa(annotations),
        text=options.get("text", "both"),
        em_r=options.get("em_r", "strict"),
        with_meteor=options.get("meteor", True),
    )


def _sqa3d(rows: list[Any], annotations: Path | str, options: Mapping[str, Any]) -> Evaluation:
    return score_sqa3d(rows, read_sqa3d(annotations), em_r=options.get("em_r", "strict"))


def _vsi_bench(rows: list[Any], annotations: Path | str, options: Mapping[str, Any]) -> Evaluation:
    return score_vsi_bench(rows, read_vsi(annotations), parser=options.get("parser", "original"))


_SCORERS: dict[str, Callable[[list[Any], Path | str, Mapping[str, Any]], Evaluation]] = {
    "scanrefer": _scanrefer,
    "multi3drefer": _multi3drefer,
    "scan2cap": _scan2cap,
    "scanqa": _scanqa,
    "sqa3d": _sqa3d,
    "vsi_bench": _vsi_bench,
}


class _Boxes:
    """Ground-truth boxes of scans, read when asked for; what is missing is collected."""

    def __init__(self, root: Path | str) -> None:
        self._root = Path(root)
        self._scenes: dict[str, dict[int, Box]] = {}
        self._missing: list[str] = []

    def of(self, scene_id: str, object_id: int) -> Box:
        """Return the box of an object, or a stand-in; `raise_missing` follows."""
        if scene_id not in self._scenes:
            places = [self._root / scene_id, self._root / "scans" / scene_id, self._root]
            found = read_objects(places, scene_id)
            self._scenes[scene_id] = {
                item.object_id: cast("Box", tuple(item.box.tolist())) for item in found or ()
            }
        box = self._scenes[scene_id].get(object_id)
        if box is None:
            self._missing.append(f"{scene_id}/{object_id}")
            return NOWHERE
        return box

    def raise_missing(self) -> None:
        """Raise one error that names what was not found."""
        if self._missing:
            raise ContractError(
                f"{self._root} holds no box of {len(self._missing)} objects, first "
                f"{', '.join(self._missing[:5])}; docs/scene_data.md says which files are read"
            )


def add_boxes(rows: Sequence[Any], scans: Path | str | None) -> list[Any]:
    """Return ScanRefer or Scan2Cap rows with the boxes they lack.

    Args:
        rows: Of the annotation file.
        scans: Root of the scans; None leaves the rows as they are.

    Raises:
        ContractError: Boxes are not there; how many, and the first, are named.
    """
    if scans is None:
        return list(rows)
    boxes = _Boxes(scans)
    full = [
        row if row.box is not None else replace(row, box=boxes.of(row.scene_id, row.object_id))
        for row in rows
    ]
    boxes.raise_missing()
    return full
