"""SQA3D (Ma et al. 2023): a short answer a question; EM and refined EM, by the first word."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from vega_policy.scene.metrics.answers import EmRefined, clean_answer, refined_match
from vega_policy.scene.metrics.pairing import empty_texts, log_problems, pair, read_text
from vega_policy.scene.metrics.score import Evaluation, SceneBootstrap
from vega_policy.spec.names import require_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vega_policy.scene.annotations import SQA3DRow

FIELDS = ("question_id",)
STARTS = ("what", "is", "how", "can", "which")
TYPES = (*STARTS, "others")


def question_type(question: str) -> str:
    """Return ``what, is, how, can, which`` or ``others`` by how a question starts.

    The letters, not the word: "Isn't" is of ``is``, as in LEO's code.
    """
    start = question.lstrip().lower()
    return next((name for name in STARTS if start.startswith(name)), "others")


def score_sqa3d(
    predictions: Iterable[object],
    annotations: Sequence[SQA3DRow],
    *,
    em_r: EmRefined = "strict",
) -> Evaluation:
    """Score one answer a question; both sides are cleaned (`clean_answer`).

    Args:
        predictions: Rows ``question_id, text``.
        annotations: With one answer each.
        em_r: Whether an empty answer is a refined match.

    Raises:
        ContractError: As `pair`.
    """
    require_name(em_r, ["strict", "leo"], what="em_r")
    keys = [(row.question_id,) for row in annotations]
    paired = pair(predictions, keys, fields=FIELDS, read=read_text)
    both = list(zip(paired.values, annotations, strict=True))
    exact = [t is not None and clean_answer(t) == clean_answer(row.answer) for t, row in both]
    refined = [t is not None and refined_match(t, [row.answer], em_r=em_r) for t, row in both]
    values = {
        "em": np.array(exact, dtype=np.float64),
        "em_r": np.array(refined, dtype=np.float64),
    }
    scenes = tuple(row.scene_id for row in annotations)
    types = np.array([question_type(row.question) for row in annotations])
    bootstrap = SceneBootstrap(scenes)
    groups: dict[str, Any] = {"": None, **{f"{name}/": types == name for name in TYPES}}
    problems = (*paired.problems, *empty_texts(paired.ids, paired.values))
    log_problems("sqa3d", problems)
    return Evaluation(
        task="sqa3d",
        n=len(annotations),
        protocol={"em_r": em_r},
        scores={
            f"{group}{name}": bootstrap.mean(hits, mask)
            for group, mask in groups.items()
            if mask is None or mask.any()
            for name, hits in values.items()
        },
        problems=problems,
        ids=paired.ids,
        scenes=scenes,
        values=values,
    )
