"""ScanRefer (Chen et al. 2020): one box a description; Acc@0.25 and Acc@0.5."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from vega_policy.scene.metrics.pairing import Problem, log_problems, pair, read_box
from vega_policy.scene.metrics.score import Evaluation, SceneBootstrap
from vega_policy.scene.metrics.truth import overlap_with_truth
from vega_policy.spec import ContractError
from vega_policy.spec.names import require_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from vega_policy.scene.annotations import ScanReferRow

THRESHOLDS = (0.25, 0.5)
FIELDS = ("scene_id", "object_id", "ann_id")
KNOWN_CLASSES = frozenset({*range(1, 13), 14, 16, 24, 28, 33, 34, 36, 39})
"""nyu40 classes ScanNet's benchmark knows; the others are one, `OTHER`."""
OTHER = 39
VAL_COUNTS = (1845, 7663)
"""Unique and multiple descriptions of the released validation split."""
UniqueBy = Literal["nyu40", "file", "name"]


def read_label_classes(path: Path | str) -> dict[str, int]:
    """Read nyu40 classes by raw category from ``scannetv2-labels.combined.tsv``.

    Raises:
        ContractError: The file is missing or has other columns.
    """
    file = Path(path)
    if not file.is_file():
        raise ContractError(f"no file {file}; scannetv2-labels.combined.tsv comes with ScanNet")
    with file.open(newline="", encoding="utf-8") as handle:
        reader = csv.DictReader(handle, delimiter="\t", quoting=csv.QUOTE_NONE)
        columns = set(reader.fieldnames or ())
        if not {"raw_category", "nyu40id"} <= columns:
            raise ContractError(
                f"{file} has no columns raw_category and nyu40id; give scannetv2-labels.combined.tsv"
            )
        return {row["raw_category"]: int(row["nyu40id"]) for row in reader if row["nyu40id"]}


def unique_descriptions(
    rows: Sequence[ScanReferRow],
    *,
    by: UniqueBy,
    classes: Mapping[str, int] | None = None,
    split: Sequence[ScanReferRow] | None = None,
) -> NDArray[np.bool_]:
    """Say which descriptions mean the only annotated object of its class in the scene, (n,).

    Args:
        rows: Descriptions.
        by: ``nyu40``: the official rule; a class is the nyu40 number of the object's name, those that
            the benchmark does not know are one class. ``file``: what the file itself says
            (``eval_type``). ``name``: a class is a name; needs no table, differs from the official rule.
        classes: Of `read_label_classes`, for ``nyu40``.
        split: The whole split; objects are counted over it, so a part of it makes too many unique.

    Raises:
        ContractError: What ``by`` needs is missing.
    """
    require_name(by, ["nyu40", "file", "name"], what="unique_by")
    if by == "file":
        unlabelled = [row for row in rows if row.eval_type is None]
        if unlabelled:
            raise ContractError(
                f"{len(unlabelled)} of {len(rows)} descriptions have no eval_type; "
                "use unique_by=nyu40 with the label table, or unique_by=name"
            )
        return np.array([row.eval_type == "unique" for row in rows])
    if by == "nyu40" and classes is None:
        raise ContractError(
            "unique_by=nyu40 needs scannetv2-labels.combined.tsv; name it with labels=, "
            "or use unique_by=name, which differs from the official rule"
        )

    whole = rows if split is None else split
    nameless = [f"{r.scene_id}/{r.object_id}" for r in (*whole, *rows) if not r.object_name]
    if nameless:
        raise ContractError(
            f"{len(nameless)} descriptions have no object_name (first {nameless[0]}), which "
            f"unique_by={by} needs; use unique_by=file where the annotation has eval_type"
        )

    def class_of(row: ScanReferRow) -> object:
        name = row.object_name.replace("_", " ")
        if by == "name" or classes is None:
            return name
        number = classes.get(name, OTHER)
        return number if number in KNOWN_CLASSES else OTHER

    objects = {(r.scene_id, r.object_id): class_of(r) for r in whole}
    counts = Counter((scene, label) for (scene, _), label in objects.items())
    return np.array([counts[row.scene_id, class_of(row)] <= 1 for row in rows])


def score_scanrefer(
    predictions: Iterable[object],
    annotations: Sequence[ScanReferRow],
    *,
    unique_by: UniqueBy | None = None,
    classes: Mapping[str, int] | None = None,
    split: Sequence[ScanReferRow] | None = None,
) -> Evaluation:
    """Score one box a description.

    Args:
        predictions: Rows ``scene_id, object_id, ann_id, box``.
        annotations: With ground-truth boxes.
        unique_by: As `unique_descriptions`; None: ``nyu40`` where ``classes`` are given, else ``file``
            where the file says, else ``name``. The result says which.
        classes: Of `read_label_classes`.
        split: The whole split, where ``annotations`` are a part of it.

    Raises:
        ContractError: Boxes of the annotation are missing, or as `pair` and `unique_descriptions`.
    """
    keys = [(row.scene_id, row.object_id, row.ann_id) for row in annotations]
    paired = pair(predictions, keys, fields=FIELDS, read=read_box)
    overlap = overlap_with_truth(annotations, paired.values)
    by = unique_by or _unique_by(annotations, classes)
    is_unique = unique_descriptions(annotations, by=by, classes=classes, split=split)
    scenes = tuple(row.scene_id for row in annotations)
    bootstrap = SceneBootstrap(scenes)
    values = {f"acc@{t}": (overlap >= t).astype(np.float64) for t in THRESHOLDS}
    groups: dict[str, Any] = {"": None, "unique/": is_unique, "multiple/": ~is_unique}
    scores = {
        f"{group}{name}": bootstrap.mean(hits, mask)
        for group, mask in groups.items()
        for name, hits in values.items()
    }
    problems = (*paired.problems, *_odd_counts(is_unique, by))
    log_problems("scanrefer", problems)
    return Evaluation(
        task="scanrefer",
        n=len(annotations),
        protocol={"unique_by": by},
        scores=scores,
        problems=problems,
        ids=paired.ids,
        scenes=scenes,
        values={**values, "iou": np.maximum(overlap, 0.0), "unique": is_unique.astype(np.float64)},
    )


def _unique_by(rows: Sequence[ScanReferRow], classes: Mapping[str, int] | None) -> UniqueBy:
    if classes is not None:
        return "nyu40"
    return "file" if all(row.eval_type is not None for row in rows) else "name"


def _odd_counts(is_unique: NDArray[np.bool_], by: UniqueBy) -> tuple[Problem, ...]:
    """Return the problem that a file as long as the validation split has other counts."""
    counts = (int(is_unique.sum()), int((~is_unique).sum()))
    if by == "name" or sum(counts) != sum(VAL_COUNTS) or counts == VAL_COUNTS:
        return ()
    message = (
        f"{counts[0]} unique and {counts[1]} multiple descriptions, the validation split has "
        f"{VAL_COUNTS[0]} and {VAL_COUNTS[1]}: the two groups cannot be compared with published ones"
    )
    return (Problem(code="annotation", message=message, ids=("whole file",)),)
