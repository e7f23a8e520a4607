"""Scan2Cap (Chen et al. 2021): one caption an object; CIDEr, BLEU-4, METEOR, ROUGE-L at 0.5 IoU.

``M@0.5IoU``: a caption counts where the box it was made for overlaps the object by half; elsewhere it
is replaced by the empty caption. That is not 0: between its end markers even an empty caption shares two
words with every reference. `score_scan2cap` prints that floor beside each score.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from vega_policy.scene.metrics.captions import score_captions
from vega_policy.scene.metrics.pairing import (
    Problem,
    empty_texts,
    log_problems,
    pair,
    read_box,
    read_text,
)
from vega_policy.scene.metrics.score import Evaluation, SceneBootstrap
from vega_policy.scene.metrics.truth import overlap_with_truth
from vega_policy.spec.names import require_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import ArrayLike, NDArray

    from vega_policy.scene.annotations import Scan2CapRow

FIELDS = ("scene_id", "object_id")
HEADLINE = ("cider", "bleu4", "meteor", "rouge_l")
IOU = 0.5
Located = Literal["prediction", "annotation", "all"]
Threshold = Literal["inclusive", "strict"]


class _Caption(NamedTuple):
    text: str
    box: NDArray[np.float64] | None


def prepare(text: str) -> str:
    """Return a caption as the metrics see it: lower case, ``.`` and ``,`` apart, end markers."""
    return f"sos {text.replace('.', ' . ').replace(',', ' , ').lower()} eos"


def score_scan2cap(
    predictions: Iterable[object],
    annotations: Sequence[Scan2CapRow],
    *,
    located: Located | None = None,
    threshold: Threshold = "inclusive",
    with_meteor: bool = True,
) -> Evaluation:
    """Score one caption an object.

    Args:
        predictions: Rows ``scene_id, object_id, text`` and, where a caption was made for a proposal,
            its ``box``.
        annotations: With references and, unless all objects count as located, boxes.
        located: Which captions count. ``prediction``: those whose ``box`` overlaps the object by half.
            ``annotation``: those of objects with a ``box_input`` that does. ``all``: all, as where the
            model was given the true box; not the published protocol, and the scores' names end
            without ``@0.5``. None: the first of the three that the files have boxes for. The result
            says which.
        threshold: ``strict``: the overlap must exceed one half, as in the original code; ``inclusive``:
            reaching it is enough, as in later ones.
        with_meteor: Whether to run METEOR.

    Raises:
        ContractError: Boxes are missing, or as `pair`.
    """
    keys = [(row.scene_id, row.object_id) for row in annotations]
    paired = pair(
        predictions, keys, fields=FIELDS, read=_read, missing_counts_as="the empty caption"
    )
    captions = paired.values
    given = any(caption is not None and caption.box is not None for caption in captions)
    kept = any(row.box_input is not None for row in annotations)
    rule = located or ("prediction" if given else "annotation" if kept else "all")
    require_name(rule, ["prediction", "annotation", "all"], what="located")
    require_name(threshold, ["inclusive", "strict"], what="threshold")
    problems = list(paired.problems)
    hits = np.ones(len(annotations), dtype=bool)
    if rule == "prediction":
        hits = _hits(annotations, [c.box if c else None for c in captions], threshold)
        unplaced = [
            name
            for name, caption in zip(paired.ids, captions, strict=True)
            if caption is not None and caption.box is None
        ]
        if unplaced:
            message = "captions without a box: the empty caption"
            problems.append(Problem(code="bad_value", message=message, ids=tuple(unplaced)))
    elif rule == "annotation":
        hits = _hits(annotations, [row.box_input for row in annotations], threshold)
    texts = [
        caption.text if caption is not None and hit else ""
        for caption, hit in zip(captions, hits, strict=True)
    ]
    problems += empty_texts(paired.ids, [c.text if c else None for c in captions])
    scenes = tuple(row.scene_id for row in annotations)
    bootstrap = SceneBootstrap(scenes)
    references = [[prepare(text) for text in row.references] for row in annotations]
    found = score_captions(
        [prepare(text) for text in texts], references, bootstrap, with_meteor=with_meteor
    )
    floor = score_captions(
        [prepare("")] * len(texts), references, bootstrap, with_meteor="meteor" in found.scores
    )
    log_problems("scan2cap", problems)
    names = [name for name in HEADLINE if name in found.scores]
    at = "" if rule == "all" else f"@{IOU}"
    notes = list(found.notes)
    if rule == "all" and located is None:
        notes.append(
            "neither predictions (box) nor annotation (box_input) say where a caption belongs: every "
            f"caption counts, which is not the published score at {IOU}"
        )
    return Evaluation(
        task="scan2cap",
        n=len(annotations),
        protocol={"located": rule, "threshold": threshold, "missing": "empty caption"},
        scores={
            **{f"{name}{at}": found.scores[name] for name in names},
            "located": bootstrap.mean(hits.astype(np.float64)),
            **{f"{name} of empty captions": floor.scores[name] for name in names},
        },
        problems=tuple(problems),
        notes=tuple(notes),
        ids=paired.ids,
        scenes=scenes,
        values={**found.values, "located": hits.astype(np.float64)},
    )


def _read(row: Mapping[str, Any]) -> _Caption:
    text = read_text(row)
    if row.get("box") is None:
        return _Caption(text, None)
    return _Caption(text, read_box(row))


def _hits(
    rows: Sequence[Scan2CapRow], boxes: Sequence[ArrayLike | None], threshold: Threshold
) -> NDArray[np.bool_]:
    """Say where a box overlaps the object by half."""
    overlap = overlap_with_truth(rows, boxes)
    return overlap >= IOU if threshold == "inclusive" else overlap > IOU
