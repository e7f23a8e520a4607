"""ScanQA (Azuma et al. 2022): a short answer a question; EM@1, EM-R, caption scores."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Literal

import numpy as np

from vega_policy.scene.metrics.answers import EmRefined, refined_match
from vega_policy.scene.metrics.captions import score_captions
from vega_policy.scene.metrics.meteor import JavaMissingError, ptb_tokens
from vega_policy.scene.metrics.pairing import empty_texts, log_problems, pair, read_text
from vega_policy.scene.metrics.score import Evaluation, SceneBootstrap
from vega_policy.spec.names import require_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vega_policy.scene.annotations import ScanQARow
    from vega_policy.scene.metrics.score import Floats, Score

FIELDS = ("question_id",)
Text = Literal["raw", "ptb", "both"]
"""``raw``: texts as they are but for full stops at the end of the prediction, as in Video-3D-LLM; a
capital letter is a mistake. ``ptb``: lower case, punctuation gone, as in the official script; needs Java."""


def score_scanqa(
    predictions: Iterable[object],
    annotations: Sequence[ScanQARow],
    *,
    text: Text = "both",
    em_r: EmRefined = "strict",
    with_meteor: bool = True,
) -> Evaluation:
    """Score one answer a question.

    Args:
        predictions: Rows ``question_id, text``.
        annotations: With one or more answers.
        text: How texts are prepared for the caption scores, whose names say it: the two differ by more
            than models do (CIDEr 63 against 196 for capitalised answers).
        em_r: Whether an empty answer is a refined match.
        with_meteor: Whether to run METEOR.

    Raises:
        ContractError: As `pair`.
    """
    require_name(text, ["raw", "ptb", "both"], what="text")
    require_name(em_r, ["strict", "leo"], what="em_r")
    keys = [(row.question_id,) for row in annotations]
    paired = pair(predictions, keys, fields=FIELDS, read=read_text)
    answers = [value or "" for value in paired.values]
    is_given = np.array([value is not None for value in paired.values])
    references = [list(row.answers) for row in annotations]
    both = list(zip(answers, references, strict=True))
    values: dict[str, Floats] = {
        "em@1": is_given * np.array([answer in texts for answer, texts in both], dtype=np.float64),
        "em_r": is_given
        * np.array(
            [refined_match(answer, texts, em_r=em_r) for answer, texts in both], dtype=np.float64
        ),
    }
    scenes = tuple(row.scene_id for row in annotations)
    bootstrap = SceneBootstrap(scenes)
    scores: dict[str, Score] = {name: bootstrap.mean(hits) for name, hits in values.items()}
    notes: list[str] = []
    for mode in ("raw", "ptb") if text == "both" else (text,):
        try:
            candidates, targets = _prepared(answers, references, mode=mode)
        except JavaMissingError as error:
            notes.append(f"caption scores with text=ptb not computed: {error}")
            continue
        found = score_captions(candidates, targets, bootstrap, with_meteor=with_meteor)
        scores |= {f"{mode}/{name}": score for name, score in found.scores.items()}
        values |= {f"{mode}/{name}": items for name, items in found.values.items()}
        notes += [f"text={mode}: {note}" for note in found.notes]
    problems = (*paired.problems, *empty_texts(paired.ids, paired.values))
    log_problems("scanqa", problems)
    return Evaluation(
        task="scanqa",
        n=len(annotations),
        protocol={"text": text, "em_r": em_r},
        scores=scores,
        problems=problems,
        notes=tuple(notes),
        ids=paired.ids,
        scenes=scenes,
        values=values,
    )


def _prepared(
    answers: list[str], references: list[list[str]], *, mode: Text
) -> tuple[list[str], list[list[str]]]:
    if mode == "raw":
        return [answer.rstrip(".") for answer in answers], references
    tokens = iter(ptb_tokens([*answers, *chain.from_iterable(references)]))
    return [next(tokens) for _ in answers], [[next(tokens) for _ in row] for row in references]
