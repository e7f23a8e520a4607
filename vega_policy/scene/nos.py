"""The normalised overall score: columns of a results table brought to [0, 1], then averaged by row.

VEGA-3D (arXiv:2603.19235v2, Fig. 3b). A score is relative to the rows it was made with: add or drop one
and all the others move. What the paper plots follows from normalising each group with the baseline
apart, so that its two groups are on different scales; ``joint`` is one scale for all.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from vega_policy.spec import ContractError
from vega_policy.spec.names import require_name

if TYPE_CHECKING:
    from collections.abc import Sequence

Grouping = Literal["per_group", "joint"]
Unknown = Literal["row", "column"]
NAME, GROUP = "name", "group"
_UNKNOWN = ("", "-", "\N{EN DASH}", "nan", "null", "unknown")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a results table."""

    name: str
    group: str
    """Rows of one group are normalised together; the baseline's are part of every group."""
    values: Mapping[str, float | None]
    """By column, more is better; None where unknown."""


@dataclass(frozen=True, kw_only=True)
class GroupScores:
    """Scores of one row set."""

    group: str
    scores: dict[str, float]
    """Row to score in [0, 1], best first."""
    columns: tuple[str, ...]
    """What was averaged."""
    left_out: tuple[str, ...]
    """Rows and columns that were not, one sentence each."""

    def table(self) -> str:
        """Return the scores in percent below the row set and columns they hold for."""
        width = max(map(len, self.scores)) + 2
        return "\n".join(
            [
                f"{self.group}: {len(self.scores)} rows, {len(self.columns)} columns "
                f"({', '.join(self.columns)})",
                *(
                    f"  {name.ljust(width)}{100 * value:6.2f}"
                    for name, value in self.scores.items()
                ),
                *(f"  left out: {sentence}" for sentence in self.left_out),
            ]
        )

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return asdict(self)


def read_results(path: Path | str) -> list[Row]:
    """Read a table with the columns ``name``, ``group`` and one for each metric.

    CSV with a header, or a JSON list of objects. A value that is empty, null, ``-``, ``nan`` or
    ``unknown`` is not known; without ``group`` all rows are of one.

    Raises:
        ContractError: The file is missing, is no such table, names a row twice or holds a value that is
            no number; every problem is listed.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8-sig")
        is_json = file.suffix == ".json"
        raw: Any = json.loads(text) if is_json else list(csv.DictReader(text.splitlines()))
    except (OSError, ValueError) as error:
        raise ContractError(
            f"{file} cannot be read: {error}; give a results table as .csv or .json"
        ) from error
    if not isinstance(raw, list) or not all(isinstance(row, dict) for row in raw) or not raw:
        raise ContractError(
            f"{file} is no table; write a CSV with a header, or a JSON list of objects, with a row each"
        )
    rows: list[Row] = []
    problems: list[str] = []
    columns = list(dict.fromkeys(c for row in raw for c in row if c not in (NAME, GROUP)))
    for number, row in enumerate(raw, start=1):
        name = str(row.get(NAME) or "").strip()
        if not name:
            problems.append(f"row {number} has no {NAME}")
        elif any(name == other.name for other in rows):
            problems.append(f"row {number} repeats the name {name!r}")
        values: dict[str, float | None] = {}
        for column in columns:
            try:
                values[str(column)] = _number(row.get(column))
            except (TypeError, ValueError):
                problems.append(f"row {number} has {column} = {row[column]!r}, which is no number")
        rows.append(Row(name=name, group=str(row.get(GROUP) or "").strip(), values=values))
    if not columns:
        problems.append(f"there is no column but {NAME} and {GROUP}")
    if problems:
        raise ContractError(f"{file}: " + "; ".join(problems) + "; correct the table")
    return rows


def nos(
    rows: Sequence[Row],
    *,
    group: Grouping = "per_group",
    baseline: str | None = "baseline",
    unknown: Unknown = "row",
) -> list[GroupScores]:
    """Score the rows of a table.

    Args:
        rows: See `read_results`.
        group: ``per_group`` gives each group, the baseline with it, a scale of its own; ``joint`` all
            rows one.
        baseline: Name of the row that is in every group; None if there is none.
        unknown: What an unknown value costs: ``row`` leaves its row out, ``column`` its column. (A mean
            over the columns a row happens to have could not be compared with the others.)

    Returns:
        One entry for each group, in the table's order.

    Raises:
        ContractError: No row is the baseline, or a group has no column with two different values.
    """
    require_name(group, get_args(Grouping), what="group")
    require_name(unknown, get_args(Unknown), what="unknown")
    if baseline is not None and baseline not in [row.name for row in rows]:
        require_name(baseline, [row.name for row in rows], what="baseline row")
    if group == "joint":
        return [_scored("joint", rows, unknown)]
    shared = [row for row in rows if row.name == baseline]
    names = list(dict.fromkeys(row.group for row in rows if row.name != baseline))
    return [
        _scored(
            name or "all",
            [*shared, *(r for r in rows if r.group == name and r not in shared)],
            unknown,
        )
        for name in names
    ]


def _scored(group: str, rows: Sequence[Row], unknown: Unknown) -> GroupScores:
    columns = list(rows[0].values)
    left_out: list[str] = []
    gaps = {row.name: [c for c in columns if row.values[c] is None] for row in rows}
    if unknown == "row":
        left_out += [
            f"row {n}, {', '.join(missing)} unknown" for n, missing in gaps.items() if missing
        ]
        rows = [row for row in rows if not gaps[row.name]]
    else:
        for column in columns:
            without = [name for name, missing in gaps.items() if column in missing]
            if without:
                left_out.append(f"column {column}, unknown for {', '.join(without)}")
        columns = [c for c in columns if not any(c in missing for missing in gaps.values())]
    table = np.array([[row.values[c] for c in columns] for row in rows], dtype=float)
    table = table.reshape(len(rows), len(columns))
    spread = np.ptp(table, axis=0) if rows else np.zeros(len(columns))
    left_out += [
        f"column {c}, the same for all rows"
        for c, s in zip(columns, spread, strict=True)
        if s == 0 and rows
    ]
    used = [c for c, s in zip(columns, spread, strict=True) if s > 0]
    if not used:
        raise ContractError(
            f"group {group} has no column in which two rows differ"
            + "".join(f"; left out: {sentence}" for sentence in left_out)
            + "; give at least two different rows, or unknown=column"
        )
    scaled = (table - table.min(axis=0)) / np.where(spread > 0, spread, 1.0)
    means = scaled[:, spread > 0].mean(axis=1)
    scores = {row.name: float(value) for row, value in zip(rows, means, strict=True)}
    return GroupScores(
        group=group,
        scores=dict(sorted(scores.items(), key=lambda item: -item[1])),
        columns=tuple(used),
        left_out=tuple(left_out),
    )


def _number(value: Any) -> float | None:  # noqa: ANN401 - whatever the file holds
    if value is None or (isinstance(value, str) and value.strip().lower() in _UNKNOWN):
        return None
    if isinstance(value, bool):
        raise TypeError("true and false are no numbers")
    number = float(value)
    if math.isinf(number):
        raise ValueError("infinite")
    return None if math.isnan(number) else number
