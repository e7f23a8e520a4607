"""VSI-Bench: questions (``test.jsonl`` or ``test*.parquet``) and objects of its scenes (meta_info)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vega_policy.scene.annotations import CHOICE_TYPES, NUMERIC_TYPES, VsiRow
from vega_policy.scene.readers.rows import Fields, Problems, parse_rows, read_json
from vega_policy.spec import ContractError
from vega_policy.spec.files import atomic_path, write_atomic

if TYPE_CHECKING:
    from collections.abc import Iterable

_COLUMNS = (
    "id",
    "dataset",
    "scene_name",
    "question_type",
    "question",
    "ground_truth",
    "options",
    "pruned",
)


@dataclass(frozen=True, eq=False)
class VsiObject:
    """One object of a video's scene."""

    category: str
    centre: NDArray[np.float64]
    """(3,) metres."""
    lengths_m: NDArray[np.float64]
    """(3,) full size along the object's own axes."""
    axes: NDArray[np.float64]
    """(3, 3), one unit axis a row."""
    low: NDArray[np.float64]
    """(3,) least corner of the axis-aligned box."""
    high: NDArray[np.float64]
    """(3,) greatest corner."""


@dataclass(frozen=True, eq=False)
class VsiScene:
    """What is known of a video's scene."""

    scene_name: str
    dataset: str
    room_size_m2: float
    counts: Mapping[str, int]
    """Objects of each category, also of those without boxes."""
    objects: tuple[VsiObject, ...]


def read_vsi(path: Path | str) -> list[VsiRow]:
    """Read the questions of a jsonl or a parquet file.

    Raises:
        ContractError: The file is missing, pyarrow is needed and missing, or rows have problems, an
            answer that is neither a number nor the letter of an option among them; all are listed.
    """
    file = Path(path)
    if not file.is_file():
        raise ContractError(f"no file {file}; where each data set goes is in docs/scene_data.md")
    items = _parquet_rows(file) if file.suffix == ".parquet" else _json_lines(file)
    if not items:
        raise ContractError(f"{file} has no rows; copy it again")
    return parse_rows(file, items, _from_row, key=lambda row: row.id)


def write_vsi(path: Path | str, rows: Iterable[VsiRow]) -> None:
    """Write questions as jsonl or parquet, by the suffix of ``path``.

    Raises:
        ContractError: Another suffix, or pyarrow is needed and missing.
    """
    items = [_to_row(row) for row in rows]
    suffix = Path(path).suffix
    if suffix == ".jsonl":
        lines = (json.dumps(item, ensure_ascii=False) + "\n" for item in items)
        write_atomic(path, "".join(lines))
        return
    if suffix != ".parquet":
        raise ContractError(f"cannot write questions as {suffix!r}; use .jsonl or .parquet")
    pyarrow, parquet = _pyarrow()
    kinds = {"id": pyarrow.int64(), "options": pyarrow.list_(pyarrow.string())}
    kinds["pruned"] = pyarrow.bool_()
    schema = pyarrow.schema([(name, kinds.get(name, pyarrow.string())) for name in _COLUMNS])
    with atomic_path(path) as temporary:
        parquet.write_table(pyarrow.Table.from_pylist(items, schema=schema), temporary)


def read_vsi_meta(path: Path | str) -> dict[str, VsiScene]:
    """Read ``{scannet,scannetpp,arkitscenes}_meta_info_val.json``: ground truth by scene.

    Raises:
        ContractError: The file is missing, or scenes have problems; all are listed.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not content:
        raise ContractError(f"{path} is not an object of scenes; copy it again")
    problems = Problems(path)
    scenes = {
        name: _scene(name, Fields(item, row=i, problems=problems, prefix=f"{name}."), path)
        for i, (name, item) in enumerate(content.items())
    }
    problems.raise_any()
    return scenes


def _scene(name: str, fields: Fields, path: Path | str) -> VsiScene:
    counts, boxes = fields.inside("object_counts"), fields.inside("object_bbox")
    named = Path(path).name.split("_meta_info")[0]
    return VsiScene(
        scene_name=name,
        dataset=fields.text("dataset") if "dataset" in fields else named,
        room_size_m2=fields.number("room_size"),
        counts={category: counts.integer(category) for category in counts.names()},
        objects=tuple(
            VsiObject(
                category=category,
                centre=np.array(item.numbers("centroid", 3)),
                lengths_m=np.array(item.numbers("axesLengths", 3)),
                axes=np.array(item.numbers("normalizedAxes", 9)).reshape(3, 3),
                low=np.array(item.numbers("min", 3)),
                high=np.array(item.numbers("max", 3)),
            )
            for category in boxes.names()
            for item in boxes.each(category)
        ),
    )


def _from_row(fields: Fields) -> VsiRow:
    row = VsiRow(
        id=fields.integer("id"),
        dataset=fields.text("dataset"),
        scene_name=fields.text("scene_name"),
        question_type=fields.choice("question_type", NUMERIC_TYPES + CHOICE_TYPES),
        question=fields.text("question"),
        ground_truth=fields.text("ground_truth"),
        options=(fields.texts("options") or None) if "options" in fields else None,
        pruned=fields.flag("pruned") if "pruned" in fields else None,
    )
    if row.question_type in NUMERIC_TYPES and row.ground_truth and not _is_number(row.ground_truth):
        fields.note(f"ground_truth is {row.ground_truth!r}, expected a number")
    if row.question_type in CHOICE_TYPES:
        letters = [option[:1] for option in row.options or ()]
        if not letters:
            fields.note(f"{row.question_type} has no options")
        elif row.ground_truth not in letters:
            fields.note(f"ground_truth is {row.ground_truth!r}, expected one of {letters}")
    return row


def _to_row(row: VsiRow) -> dict[str, object]:
    item: dict[str, object] = {name: getattr(row, name) for name in _COLUMNS}
    item["options"] = None if row.options is None else list(row.options)
    if row.pruned is None:
        del item["pruned"]
    return item


def _is_number(text: str) -> bool:
    try:
        return bool(np.isfinite(float(text)))
    except ValueError:
        return False


def _json_lines(file: Path) -> list[Any]:
    items: list[Any] = []
    problems = Problems(file)
    for i, line in enumerate(file.read_bytes().splitlines()):
        try:
            items.append(json.loads(line) if line.strip() else None)
        except (ValueError, RecursionError) as error:
            problems.note(f"not JSON ({error})", i)
    problems.raise_any()
    return [item for item in items if item is not None]


def _parquet_rows(file: Path) -> list[Any]:
    pyarrow, parquet = _pyarrow()
    try:
        return parquet.read_table(file).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise ContractError(f"{file} is not parquet ({error}); copy it again") from error


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ContractError(
            f"parquet files need pyarrow: {error}; pip install 'vega-policy[data]'"
        ) from error
    return pyarrow, parquet
