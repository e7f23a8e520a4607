"""Predictions put beside annotations, every problem listed.

A question without a usable prediction stays in the denominator and counts as wrong:

===============  ==========================================================================
missing          no prediction for a question: wrong (Scan2Cap: the empty caption)
unknown          a prediction for no question of the annotation: ignored
duplicate        a question predicted twice: once if both say the same, else wrong
no id            a row that names no question: ignored
bad value        NaN, infinity, a negative size, no text: wrong
empty            an empty text: taken as it is
===============  ==========================================================================

Where no prediction fits, the file is of another split or task; that is an error, not a score of 0.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import numpy as np

from vega_policy.spec import ContractError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

Code = Literal["missing", "unknown", "duplicate", "no_id", "bad_value", "empty", "annotation"]
Value = TypeVar("Value")
_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something wrong with predictions, for all questions that have it."""

    code: Code
    message: str
    """What it is and how it counts."""
    ids: tuple[str, ...]
    """Questions concerned, or ``row N`` (from 0) where the row names none."""

    def __str__(self) -> str:
        """Return one line that shows the first few ids."""
        shown = ", ".join(self.ids[:_SHOWN])
        rest = len(self.ids) - _SHOWN
        return f"{self.message} ({len(self.ids)}): {shown}{f' and {rest} more' if rest > 0 else ''}"

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary with all ids."""
        return {
            "code": self.code,
            "message": self.message,
            "n": len(self.ids),
            "ids": list(self.ids),
        }


class BadValueError(ValueError):
    """What a prediction says cannot be used; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Paired(Generic[Value]):
    """Predictions in the order of the annotation."""

    ids: tuple[str, ...]
    values: tuple[Value | None, ...]
    """None where there is no usable prediction."""
    problems: tuple[Problem, ...]


def pair(
    predictions: Iterable[object],
    keys: Sequence[tuple[object, ...]],
    *,
    fields: Sequence[str],
    read: Callable[[Mapping[str, Any]], Value],
    missing_counts_as: str = "wrong",
) -> Paired[Value]:
    """Find the prediction of each question.

    Args:
        predictions: JSON rows: objects with ``fields`` and what ``read`` reads.
        keys: What names each question, one value a field; a number equals its text.
        fields: The fields that name a question.
        read: Takes the prediction out of a row; raises `BadValueError`.
        missing_counts_as: For the message.

    Raises:
        ContractError: The annotation is empty or names a question twice, or no prediction belongs to it.
    """
    ids = ["/".join(map(str, key)) for key in keys]
    _require_unique(ids, fields)
    known = set(ids)
    found: dict[str, list[Value | None]] = {}
    listed: dict[tuple[Code, str], list[str]] = {}
    n_rows = 0
    for n_rows, row in enumerate(predictions, start=1):
        name = _name(row, fields)
        if name is None or not isinstance(row, Mapping):
            message = f"rows without {', '.join(fields)}: ignored"
            listed.setdefault(("no_id", message), []).append(f"row {n_rows - 1}")
        elif name not in known:
            message = "predictions for no question of this annotation: ignored"
            listed.setdefault(("unknown", message), []).append(name)
        else:
            found.setdefault(name, []).append(_read(row, name, read, listed))
    if not found:
        raise ContractError(
            f"none of the {n_rows} predictions names a question of the annotation by "
            f"{', '.join(fields)} (annotation: {ids[0]}, "
            f"predictions: {_first_unknown(listed)}); give the annotation of the same split"
        )
    values = [_single(found.get(name, []), name, listed, missing_counts_as) for name in ids]
    problems = (
        Problem(code=code, message=message, ids=tuple(names))
        for (code, message), names in listed.items()
    )
    return Paired(ids=tuple(ids), values=tuple(values), problems=tuple(problems))


def read_text(row: Mapping[str, Any]) -> str:
    """Return the field ``text``.

    Raises:
        BadValueError: It is missing or no text.
    """
    if not isinstance(row.get("text"), str):
        raise BadValueError("text is missing or no text")
    return row["text"]


def read_box(row: Mapping[str, Any]) -> NDArray[np.float64]:
    """Return the field ``box``, (6,).

    Raises:
        BadValueError: It is missing or unusable.
    """
    return as_box(row.get("box"))


def as_box(value: object) -> NDArray[np.float64]:
    """Return (6,) centre and size.

    Raises:
        BadValueError: It is no list of six finite numbers, or a size is negative.
    """
    try:
        box = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        box = np.empty(0)
    if value is None or box.shape != (6,):
        raise BadValueError("box is missing or not six numbers")
    if not np.isfinite(box).all():
        raise BadValueError("box holds NaN or infinity")
    if (box[3:] < 0).any():
        raise BadValueError("box has a negative size")
    return box


def empty_texts(ids: Sequence[str], texts: Sequence[str | None]) -> tuple[Problem, ...]:
    """Return the problem that texts are empty, or nothing; None is a missing one, not an empty one."""
    pairs = zip(ids, texts, strict=True)
    names = tuple(name for name, text in pairs if text is not None and not text.strip())
    message = "empty texts: taken as they are"
    return (Problem(code="empty", message=message, ids=names),) if names else ()


def log_problems(task: str, problems: Iterable[Problem]) -> None:
    """Write one warning a problem."""
    for problem in problems:
        logger.warning("%s: %s", task, problem)


def _name(row: object, fields: Sequence[str]) -> str | None:
    if not isinstance(row, Mapping):
        return None
    parts = [row.get(name) for name in fields]
    sound = all(isinstance(part, str | int) and not isinstance(part, bool) for part in parts)
    return "/".join(map(str, parts)) if sound else None


def _read(
    row: Mapping[str, Any],
    name: str,
    read: Callable[[Mapping[str, Any]], Value],
    listed: dict[tuple[Code, str], list[str]],
) -> Value | None:
    try:
        return read(row)
    except BadValueError as error:
        listed.setdefault(("bad_value", f"{error}: counts as missing"), []).append(name)
        return None


def _single(
    values: list[Value | None],
    name: str,
    listed: dict[tuple[Code, str], list[str]],
    missing_counts_as: str,
) -> Value | None:
    if not values:
        message = f"questions without a prediction: {missing_counts_as}"
        listed.setdefault(("missing", message), []).append(name)
        return None
    if len(values) == 1:
        return values[0]
    same = all(_plain(value) == _plain(values[0]) for value in values[1:])
    counts = "counts once" if same else f"contradictory, {missing_counts_as}"
    listed.setdefault(("duplicate", f"questions predicted twice: {counts}"), []).append(name)
    return values[0] if same else None


def _plain(value: object) -> Hashable:
    return repr(value.tolist() if isinstance(value, np.ndarray) else value)


def _first_unknown(listed: Mapping[tuple[Code, str], list[str]]) -> str:
    return next((names[0] for (code, _), names in listed.items() if code == "unknown"), "no id")


def _require_unique(ids: Sequence[str], fields: Sequence[str]) -> None:
    if not ids:
        raise ContractError("the annotation has no questions; give the file of a split")
    seen: set[str] = set()
    twice = [name for name in ids if name in seen or seen.add(name)]
    if twice:
        raise ContractError(
            f"the annotation names {len(twice)} questions twice by {', '.join(fields)}: "
            f"{', '.join(twice[:_SHOWN])}; give the released file"
        )
