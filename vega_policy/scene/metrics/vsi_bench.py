"""VSI-Bench (Yang et al. 2025, arXiv:2412.14171): eight tasks, accuracy or mean relative accuracy."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Literal

import numpy as np

from vega_policy.scene.annotations import CHOICE_TYPES, DIRECTIONS, NUMERIC_TYPES
from vega_policy.scene.metrics.pairing import (
    Problem,
    empty_texts,
    log_problems,
    pair,
    read_text,
)
from vega_policy.scene.metrics.score import Evaluation, SceneBootstrap, Score, mean_defined
from vega_policy.spec import ContractError
from vega_policy.spec.names import require_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from vega_policy.scene.annotations import VsiRow
    from vega_policy.scene.metrics.score import Floats

FIELDS = ("id",)
Parser = Literal["original", "lmms_eval"]
"""How a number is read. ``original``: the first word must be one. ``lmms_eval``: the first number
anywhere, digits or words. Scores of the two cannot be compared."""
TASKS = (
    *NUMERIC_TYPES,
    "object_rel_distance",
    "object_rel_direction",
    "route_planning",
    "obj_appearance_order",
)
"""The eight tasks of the overall score; the three levels of direction are one."""

THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""NumPy's own points: those of torch differ in the last bit and flip answers that lie on one."""

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_LETTERS = re.compile(r"[a-z]+")
# fmt: off
_SMALL = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
# fmt: on
_WORDS = (
    {word: i for i, word in enumerate(_SMALL)}
    | {word: 10 * i for i, word in enumerate(_TENS, start=2)}
    | {"hundred": 100, "thousand": 1000}
)


def first_word(text: str) -> str:
    """Return what stands before the first blank, without full stops at its end.

    Only the blank parts words, so that a line break does not, and a leading blank leaves nothing.
    """
    return text.split(" ", maxsplit=1)[0].rstrip(".").strip()


def parse_number(text: str, *, parser: Parser) -> float | None:
    """Return the number an answer says, or None."""
    if parser == "lmms_eval":
        return _number_anywhere(text)
    try:
        return float(first_word(text))
    except ValueError:
        return None


def mean_relative_accuracy(answer: float | None, truth: float) -> float:
    """Return the share of thresholds t with ``|answer - truth| / truth <= 1 - t``.

    Ten thresholds from .5 to .95. No number is 0.

    Args:
        answer: What was said.
        truth: Greater than 0.
    """
    if answer is None:
        return 0.0
    return float((abs(answer - truth) / truth <= 1 - THRESHOLDS).mean())


def score_answer(text: str, row: VsiRow, *, parser: Parser) -> float:
    """Return what one answer is worth, 0 to 1."""
    if row.question_type in NUMERIC_TYPES:
        return mean_relative_accuracy(parse_number(text, parser=parser), float(row.ground_truth))
    return float(first_word(text).lower() == row.ground_truth.lower())


def score_vsi_bench(
    predictions: Iterable[object],
    annotations: Sequence[VsiRow],
    *,
    parser: Parser = "original",
) -> Evaluation:
    """Score one answer a question.

    Overall: mean by type, the three levels of direction averaged into one task, mean over the eight
    tasks. In a part of the benchmark without some type the mean is over those there are, and the
    result says so.

    Args:
        predictions: Rows ``id, text``.
        annotations: Questions with their answers.
        parser: How a number is read.

    Raises:
        ContractError: A type is unknown, a number to be estimated is not greater than 0, or as `pair`.
    """
    require_name(parser, ["original", "lmms_eval"], what="parser")
    _require_sound(annotations)
    paired = pair(predictions, [(row.id,) for row in annotations], fields=FIELDS, read=read_text)
    points = np.array(
        [
            0.0 if text is None else score_answer(text, row, parser=parser)
            for text, row in zip(paired.values, annotations, strict=True)
        ]
    )
    scenes = tuple(f"{row.dataset}/{row.scene_name}" for row in annotations)
    types = np.array([row.question_type for row in annotations])
    scores, missing = _scores(points, types, SceneBootstrap(scenes))
    problems = (*paired.problems, *empty_texts(paired.ids, paired.values))
    if missing:
        message = "types without a question: the means are over the others"
        problems = (*problems, Problem(code="annotation", message=message, ids=missing))
    log_problems("vsi_bench", problems)
    return Evaluation(
        task="vsi_bench",
        n=len(annotations),
        protocol={"parser": parser},
        scores=scores,
        problems=problems,
        ids=paired.ids,
        scenes=scenes,
        values={"score": points},
    )


def _scores(
    points: Floats, types: NDArray[np.str_], bootstrap: SceneBootstrap
) -> tuple[dict[str, Score], tuple[str, ...]]:
    """Return the scores, overall first, and the types without a question."""
    single: dict[str, Score] = {}
    draws: dict[str, Floats] = {}
    missing: list[str] = []
    for name in (*NUMERIC_TYPES, *CHOICE_TYPES):
        mask = types == name
        if not mask.any():
            missing.append(name)
            continue
        single[name] = bootstrap.mean(points, mask)
        sums = bootstrap.sums(np.stack([points * mask, mask], axis=1).astype(np.float64))
        with np.errstate(invalid="ignore"):
            draws[name] = 100 * sums[:, 0] / sums[:, 1]
    levels = [name for name in DIRECTIONS if name in single]
    if levels:
        single["object_rel_direction"] = _averaged(levels, single, draws, bootstrap)
        draws["object_rel_direction"] = mean_defined([draws[name] for name in levels])
    tasks = [name for name in TASKS if name in single]
    overall = _averaged(tasks, single, draws, bootstrap)
    ordered = {"overall": overall, **{name: single[name] for name in tasks}}
    return {**ordered, **{name: single[name] for name in levels}}, tuple(missing)


def _averaged(
    names: Sequence[str],
    single: dict[str, Score],
    draws: dict[str, Floats],
    bootstrap: SceneBootstrap,
) -> Score:
    value = math.fsum(single[name].value for name in names) / len(names)
    n = sum(single[name].n for name in names)
    return bootstrap.of(value, n, mean_defined([draws[name] for name in names]))


def _require_sound(annotations: Sequence[VsiRow]) -> None:
    wrong = [
        f"{row.id} ({row.question_type}, {row.ground_truth!r})"
        for row in annotations
        if row.question_type not in (*NUMERIC_TYPES, *CHOICE_TYPES)
        or (row.question_type in NUMERIC_TYPES and not _is_positive(row.ground_truth))
    ]
    if wrong:
        raise ContractError(
            f"{len(wrong)} questions have an unknown type or a number that is not greater than 0, to "
            f"which relative accuracy does not apply: {', '.join(wrong[:5])}; mend or drop them"
        )


def _is_positive(text: str) -> bool:
    try:
        return 0 < float(text) < math.inf
    except ValueError:
        return False


def _number_anywhere(text: str) -> float | None:
    """Return the number that comes first, written in digits or in English words.

    Words that follow each other are one number (``three hundred and two``): of the run, ``hundred``
    and ``thousand`` multiply what stands before them.
    """
    lower = text.strip().lower()
    digits = _NUMBER.search(lower)
    words = list(_LETTERS.finditer(lower))
    start = next((i for i, word in enumerate(words) if word[0] in _WORDS), None)
    if digits is not None and (start is None or digits.start() < words[start].start()):
        return float(digits[0])
    if start is None:
        return None
    total = current = 0
    for word in words[start:]:
        if word[0] == "and":
            continue
        value = _WORDS.get(word[0])
        if value is None:
            break
        if value == 100:
            current = max(current, 1) * 100
        elif value == 1000:
            total, current = total + max(current, 1) * 1000, 0
        else:
            current += value
    return float(total + current)
