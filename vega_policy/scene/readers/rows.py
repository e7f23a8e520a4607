"""Rows of JSON files, checked field by field so that every problem of a file comes out at once."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

from vega_policy.spec import ContractError
from vega_policy.spec.files import write_atomic

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Hashable, Iterable, Sequence

    from vega_policy.scene.annotations import Box

Row = TypeVar("Row")


class Problems:
    """What is wrong in one file, each problem with the rows that have it."""

    def __init__(self, path: Path | str) -> None:
        self._path = path
        self._rows: dict[str, list[int]] = {}

    def note(self, message: str, row: int) -> None:
        """Add a problem of one row, counted from 0."""
        rows = self._rows.setdefault(message, [])
        if not rows or rows[-1] != row:
            rows.append(row)

    def __len__(self) -> int:
        return len(self._rows)

    def raise_any(self) -> None:
        """Raise one error that lists every problem with its rows, or do nothing.

        Raises:
            ContractError: There is a problem.
        """
        if self._rows:
            listed = "; ".join(f"{what} (row {_ranges(at)})" for what, at in self._rows.items())
            raise ContractError(f"{self._path}: {listed}; rows count from 0")


class Fields:
    """One row: fields of the expected type, or a problem and a stand-in.

    The stand-in never leaves the reader, since `Problems.raise_any` follows.
    """

    def __init__(self, item: object, *, row: int, problems: Problems, prefix: str = "") -> None:
        self.row = row
        self._problems = problems
        self._prefix = prefix
        self._is_object = isinstance(item, dict)
        self._item: dict[str, Any] = item if isinstance(item, dict) else {}
        if not self._is_object:
            problems.note(
                f"{prefix.rstrip('.') or 'row'} is {_seen(item)}, expected an object", row
            )

    def __contains__(self, key: str) -> bool:
        return self._item.get(key) is not None

    def names(self) -> list[str]:
        """Return the names of the fields."""
        return list(self._item)

    def note(self, message: str) -> None:
        """Add a problem of this row; a row that is no object has had its one problem already."""
        if self._is_object:
            self._problems.note(message, self.row)

    def inside(self, key: str) -> Fields:
        """Return the fields of an object in this row."""
        prefix = f"{self._prefix}{key}."
        return Fields(self._item.get(key), row=self.row, problems=self._problems, prefix=prefix)

    def each(self, key: str) -> list[Fields]:
        """Return the fields of each object of a list in this row."""
        return [
            Fields(item, row=self.row, problems=self._problems, prefix=f"{self._prefix}{key}[{i}].")
            for i, item in enumerate(self._list(key))
        ]

    def text(self, key: str) -> str:
        """Return a text that is not empty."""
        value = self._item.get(key)
        if isinstance(value, str) and value.strip():
            return value
        return self._wrong(key, "a text that is not empty", "")

    def name(self, key: str) -> str:
        """Return the name of an object, blanks in place of underscores."""
        return self.text(key).replace("_", " ")

    def choice(self, key: str, valid: Collection[str]) -> str:
        """Return one of some texts."""
        value = self._item.get(key)
        if isinstance(value, str) and value in valid:
            return value
        return self._wrong(key, "one of " + ", ".join(valid), "")

    def integer(self, key: str) -> int:
        """Return a whole number, also one written as a text."""
        value = self._item.get(key)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        if isinstance(value, str) and value.strip().isdecimal() and len(value) < 20:
            return int(value)
        return self._wrong(key, "a whole number", 0)

    def flag(self, key: str) -> bool:
        """Return true or false."""
        value = self._item.get(key)
        return (
            value if isinstance(value, bool) else self._wrong(key, "true or false", default=False)
        )

    def texts(self, key: str) -> tuple[str, ...]:
        """Return a list of texts."""
        values = self._list(key)
        if all(isinstance(value, str) for value in values):
            return tuple(values)
        return self._wrong(key, "a list of texts", ())

    def integers(self, key: str) -> tuple[int, ...]:
        """Return a list of whole numbers."""
        values = self._list(key)
        if all(isinstance(value, int) and not isinstance(value, bool) for value in values):
            return tuple(values)
        return self._wrong(key, "a list of whole numbers", ())

    def number(self, key: str) -> float:
        """Return a finite number."""
        value = self._item.get(key)
        return float(value) if _is_finite(value) else self._wrong(key, "a finite number", 0.0)

    def numbers(self, key: str, n: int) -> tuple[float, ...]:
        """Return ``n`` finite numbers."""
        values = self._item.get(key)
        if isinstance(values, list) and len(values) == n and all(map(_is_finite, values)):
            return tuple(float(value) for value in values)
        return self._wrong(key, f"{n} finite numbers", (0.0,) * n)

    def box(self, key: str) -> Box:
        """Return centre and size; no size is negative."""
        return self._as_box(self.numbers(key, 6), key)

    def boxes(self, key: str) -> tuple[Box, ...]:
        """Return a list of boxes."""
        found: list[Box] = []
        for i, values in enumerate(self._list(key)):
            one = Fields({key: values}, row=self.row, problems=self._problems, prefix=f"[{i}] ")
            found.append(one.box(key))
        return tuple(found)

    def _as_box(self, v: tuple[float, ...], key: str) -> Box:
        if min(v[3:]) < 0:
            self.note(f"{self._prefix}{key} has a negative size")
        return (v[0], v[1], v[2], v[3], v[4], v[5])

    def _list(self, key: str) -> list[Any]:
        value = self._item.get(key)
        return value if isinstance(value, list) else self._wrong(key, "a list", [])

    def _wrong(self, key: str, expected: str, default: Row) -> Row:
        found = _seen(self._item[key]) if key in self._item else "missing"
        self.note(f"{self._prefix}{key} is {found}, expected {expected}")
        return default


def read_json(path: Path | str) -> Any:  # noqa: ANN401 - JSON is anything
    """Read a JSON file.

    Raises:
        ContractError: There is no such file, or it is not JSON.
    """
    file = Path(path)
    if not file.is_file():
        raise ContractError(f"no file {file}; where each data set goes is in docs/scene_data.md")
    try:
        return json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ContractError(f"{file} is not JSON ({error}); copy it again") from error


def read_list(path: Path | str) -> list[Any]:
    """Read a JSON file that is a list of rows.

    Raises:
        ContractError: As `read_json`, or it is no list, or empty.
    """
    items = read_json(path)
    if not isinstance(items, list) or not items:
        raise ContractError(f"{path} is {_seen(items)}, expected a list of rows that is not empty")
    return items


def parse_rows(
    path: Path | str,
    items: Sequence[object],
    build: Callable[[Fields], Row],
    *,
    key: Callable[[Row], Hashable] | None = None,
) -> list[Row]:
    """Build one value of each row.

    Args:
        path: For the messages.
        items: Rows as JSON has them.
        build: Makes the value from checked fields.
        key: What names a row; two rows of one key are a problem.

    Raises:
        ContractError: Rows have problems; all are listed.
    """
    problems = Problems(path)
    rows: list[Row] = []
    first: dict[Hashable, int] = {}
    for i, item in enumerate(items):
        before = len(problems)
        value = build(Fields(item, row=i, problems=problems))
        rows.append(value)
        if key is not None and len(problems) == before:
            earlier = first.setdefault(key(value), i)
            if earlier != i:
                problems.note(f"{key(value)} is already in row {earlier}", i)
    problems.raise_any()
    return rows


def write_list(path: Path | str, rows: Iterable[object]) -> None:
    """Write rows as a JSON list, one a line, atomically."""
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    write_atomic(path, f"[\n{lines}\n]\n")


def _is_finite(value: object) -> TypeGuard[float]:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond the range of floats
        return False


def _seen(value: object) -> str:
    text = json.dumps(value, default=repr, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "..."


def _ranges(numbers: list[int]) -> str:
    """Write rising numbers as ``0-3, 7``."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)
