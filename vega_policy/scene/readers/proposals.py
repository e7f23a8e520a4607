"""Proposals: boxes of a 3D instance segmenter (Mask3D) among which the grounding head chooses.

Three forms, told apart by what ``path`` is:

- a JSON file ``{"scannet/<scene>": [[cx, cy, cz, dx, dy, dz], ...]}``: what the released code reads
  (``scannet_<split>_pred_box.json``);
- a folder of ``objects_info_*_<scene>.npy``: lists of dictionaries with ``center_position, size, label,
  score``;
- a folder of ``<scene>.txt`` with lines ``<mask file> <label id> <score>``: Mask3D's own output, one 0 or
  1 a line for each vertex of the mesh. Meshes and ``<scene>.txt`` of the scans lie in another folder.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vega_policy.scene.readers.ground_truth import box_of, read_axis_alignment
from vega_policy.scene.readers.mesh import read_vertices
from vega_policy.scene.readers.object_array import centre_and_size, read_object_array
from vega_policy.scene.readers.rows import Fields, parse_rows, read_json
from vega_policy.spec import ContractError
from vega_policy.spec.files import write_atomic

if TYPE_CHECKING:
    from collections.abc import Mapping

_OBJECTS_INFO = re.compile(r"objects_info\w*?_(?P<scene>scene\d+_\d+)")


@dataclass(frozen=True, eq=False)
class Proposals:
    """Boxes of one scene, best first where scores are known."""

    scene_id: str
    boxes: NDArray[np.float64]
    """(n, 6) ``cx cy cz dx dy dz``, metres, aligned frame."""
    labels: tuple[str, ...] = ()
    """Predicted classes; empty where the file has none."""
    scores: tuple[float, ...] = ()
    """In [0, 1]; empty where the file has none."""


def read_proposals(
    path: Path | str, *, scans: Path | str | None = None, limit: int = 50
) -> dict[str, Proposals]:
    """Read the proposals of every scene.

    Args:
        path: A file or a folder in one of the forms above.
        scans: Folder of the ScanNet scans; only Mask3D's own output needs it.
        limit: Boxes a scene; 50 in the released evaluation.

    Raises:
        ContractError: The path is missing or has none of the forms, or rows have problems; all rows
            of a file are listed.
    """
    place = Path(path)
    if not place.exists():
        raise ContractError(f"no proposals {place}; where they go is in docs/scene_data.md")
    if place.is_file():
        return _from_json(place, limit)
    arrays = {
        match["scene"]: file
        for file in sorted(place.glob("*.npy"))
        if (match := _OBJECTS_INFO.fullmatch(file.stem))
    }
    if arrays:
        return {scene: _from_array(file, scene, limit) for scene, file in arrays.items()}
    lists = sorted(place.glob("scene*_*.txt"))
    if not lists:
        raise ContractError(
            f"{place} holds neither objects_info_*_<scene>.npy nor <scene>.txt; give the folder of "
            "one of them, or a JSON file"
        )
    if scans is None:
        raise ContractError(f"{place} holds masks; say where the meshes are (scans=)")
    return {file.stem: _from_masks(file, Path(scans), limit) for file in lists}


def write_proposals(path: Path | str, proposals: Mapping[str, Proposals]) -> None:
    """Write boxes as JSON, in the form the released code reads; labels and scores are left out."""
    content = {
        f"scannet/{scene}": [[float(x) for x in box] for box in item.boxes]
        for scene, item in proposals.items()
    }
    write_atomic(path, json.dumps(content) + "\n")


def _from_json(path: Path, limit: int) -> dict[str, Proposals]:
    content = read_json(path)
    if not isinstance(content, dict) or not content:
        raise ContractError(f"{path} is not an object of scenes with boxes")
    names = [name.rsplit("/", 1)[-1] for name in content]
    items = [
        {"scene_id": name, name: boxes} for name, boxes in zip(names, content.values(), strict=True)
    ]

    def build(fields: Fields) -> Proposals:
        scene_id = fields.text("scene_id")
        boxes = np.array(fields.boxes(scene_id), dtype=np.float64).reshape(-1, 6)
        return Proposals(scene_id=scene_id, boxes=boxes[:limit])

    rows = parse_rows(path, items, build, key=lambda item: item.scene_id)
    return {row.scene_id: row for row in rows}


def _from_array(path: Path, scene_id: str, limit: int) -> Proposals:
    items = [{**item, "box": centre_and_size(item)} for item in read_object_array(path)]

    def build(fields: Fields) -> tuple[Any, str, float]:
        return fields.box("box"), fields.text("label"), fields.number("score")

    rows = parse_rows(path, items, build)
    return _ranked(scene_id, rows, limit)


def _from_masks(path: Path, scans: Path, limit: int) -> Proposals:
    scene_id = path.stem
    folder = next((f for f in (scans / scene_id, scans / "scans" / scene_id) if f.is_dir()), scans)
    vertices = read_vertices(folder / f"{scene_id}_vh_clean_2.ply")
    alignment = read_axis_alignment(folder / f"{scene_id}.txt")
    aligned = vertices @ alignment[:3, :3].T + alignment[:3, 3]
    lines = [line.split() for line in path.read_text().splitlines() if line.strip()]
    items = [
        {"mask": line[0], "label": line[1], "score": line[2]} if len(line) == 3 else line
        for line in lines
    ]

    def build(fields: Fields) -> tuple[Any, str, float]:
        name, label, score = fields.text("mask"), fields.text("label"), fields.text("score")
        box = np.zeros(6)
        try:
            mask = np.array((path.parent / name).read_text().split(), dtype=np.float64) > 0
            if len(mask) != len(aligned) or not mask.any():
                fields.note(
                    f"{name} marks {int(mask.sum())} of {len(mask)} vertices, the mesh has "
                    f"{len(aligned)}"
                )
            else:
                box = box_of(aligned[mask])
        except (OSError, ValueError) as error:
            fields.note(f"mask {name!r} cannot be read ({error})")
        try:
            return box, label, float(score)
        except ValueError:
            fields.note(f"score is {score!r}, expected a number")
            return box, label, 0.0

    return _ranked(scene_id, parse_rows(path, items, build), limit)


def _ranked(scene_id: str, rows: list[tuple[Any, str, float]], limit: int) -> Proposals:
    best = sorted(rows, key=lambda row: -row[2])[:limit]
    return Proposals(
        scene_id=scene_id,
        boxes=np.array([box for box, _, _ in best], dtype=np.float64).reshape(-1, 6),
        labels=tuple(label for _, label, _ in best),
        scores=tuple(score for _, _, score in best),
    )
