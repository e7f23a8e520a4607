"""Ground-truth objects of a scene, from the first of the files that lies there.

1. ``objects.json``: ours, a list of ``object_id, label, box`` and optional ``attributes``.
2. ``<scene>.aggregation.json`` with ``<scene>_vh_clean_2.0.010000.segs.json``,
   ``<scene>_vh_clean_2.ply`` and ``<scene>.txt``: the release; a box spans the aligned vertices of its
   object, and ``object_id`` is ``objectId``, the number ScanRefer uses.
3. ``objects_info_<scene>.npy``: the same objects as a list of dictionaries.
4. ``<scene>_aligned_bbox.npy``: (n, 8) ``cx cy cz dx dy dz nyu40 object_id``, as detection tools write
   it; the label is the name of the nyu40 class, coarser than that of the others.
"""

from __future__ import annotations

import logging
from pathlib import Path
from tokenize import TokenError
from typing import TYPE_CHECKING, Any

import numpy as np

from vega_policy.scene.readers.mesh import read_vertices
from vega_policy.scene.readers.object_array import centre_and_size, read_object_array
from vega_policy.scene.readers.rows import Fields, Problems, parse_rows, read_json
from vega_policy.scene.scan import SceneObject
from vega_policy.spec import ContractError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

OBJECTS_FILE = "objects.json"
# fmt: off
NYU40 = (
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf",
    "picture", "counter", "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror",
    "floor mat", "clothes", "ceiling", "books", "refrigerator", "television", "paper", "towel",
    "shower curtain", "box", "whiteboard", "person", "night stand", "toilet", "sink", "lamp",
    "bathtub", "bag", "other structure", "other furniture", "other prop",
)
# fmt: on
"""Names of the nyu40 classes; the number of a class is its place, from 1."""
_SUBFOLDERS = ("", "scannet_data", "objects_info")


def read_objects(
    folders: Path | str | Iterable[Path], scene_id: str
) -> tuple[SceneObject, ...] | None:
    """Read the objects of a scene.

    Args:
        folders: Where to look: folders of the scene, or folders with a file for each scene.
        scene_id: For example ``scene0011_00``.

    Returns:
        The objects by rising id, or None where none of the files is there.

    Raises:
        ContractError: A file is broken, or rows have problems; all are listed.
    """
    given = [Path(folders)] if isinstance(folders, Path | str) else list(folders)
    places = [folder / sub for folder in given for sub in _SUBFOLDERS]
    names = {
        OBJECTS_FILE: _from_ours,
        f"{scene_id}.aggregation.json": _from_release,
        f"objects_info_{scene_id}.npy": _from_object_array,
        f"{scene_id}_aligned_bbox.npy": _from_detection,
    }
    for name, read in names.items():
        # objects.json does not say of which scene it is: its folder must
        places_of_name = [p for p in places if name != OBJECTS_FILE or p.name == scene_id]
        path = next((p / name for p in places_of_name if (p / name).is_file()), None)
        if path is not None:
            return tuple(sorted(read(path, scene_id), key=lambda item: item.object_id))
    return None


def read_axis_alignment(path: Path | str) -> NDArray[np.float64]:
    """Read the (4, 4) world-to-aligned matrix of ``<scene>.txt``.

    A file without the line gives the identity: the hidden test split has none.

    Raises:
        ContractError: The file is missing, or its line does not hold 16 finite numbers.
    """
    file = Path(path)
    if not file.is_file():
        raise ContractError(
            f"{file} is missing, expected its line axisAlignment; put it beside the frames "
            "(it comes with the ScanNet scans)"
        )
    for line in file.read_text(errors="replace").splitlines():
        key, _, value = line.partition("=")
        if key.strip() == "axisAlignment":
            try:
                matrix = np.array([float(word) for word in value.split()]).reshape(4, 4)
            except ValueError:
                matrix = np.full((4, 4), np.nan)
            if not np.isfinite(matrix).all():
                raise ContractError(
                    f"axisAlignment of {file} is {value.strip()[:40]!r}, expected 16 numbers; "
                    "copy it again"
                )
            return matrix
    logger.warning("%s has no axisAlignment, as in the test split: the world frame is used", file)
    return np.eye(4)


def _from_ours(path: Path, _: str) -> list[SceneObject]:
    items = read_json(path)
    if not isinstance(items, list):
        raise ContractError(f"{path} is not a list of objects; write it again")
    return parse_rows(path, items, _ours, key=lambda item: item.object_id)


def _ours(fields: Fields) -> SceneObject:
    attributes = fields.inside("attributes") if "attributes" in fields else None
    return SceneObject(
        object_id=fields.integer("object_id"),
        label=fields.text("label"),
        box=np.array(fields.box("box")),
        attributes={k: attributes.text(k) for k in attributes.names()} if attributes else {},
    )


def _from_release(path: Path, scene_id: str) -> list[SceneObject]:
    folder = path.parent
    stem = f"{scene_id}_vh_clean_2"
    segments = read_json(folder / f"{stem}.0.010000.segs.json")
    problems = Problems(folder / f"{stem}.0.010000.segs.json")
    of_vertex = np.array(Fields(segments, row=0, problems=problems).integers("segIndices"))
    problems.raise_any()
    vertices = read_vertices(folder / f"{stem}.ply")
    if len(of_vertex) != len(vertices):
        raise ContractError(
            f"{folder}: {stem}.ply has {len(vertices)} vertices, its segments {len(of_vertex)}; "
            "take both of one release"
        )
    alignment = read_axis_alignment(folder / f"{scene_id}.txt")
    aligned = vertices @ alignment[:3, :3].T + alignment[:3, 3]
    content = read_json(path)
    groups = content.get("segGroups") if isinstance(content, dict) else None

    def build(fields: Fields) -> SceneObject:
        inside = aligned[np.isin(of_vertex, fields.integers("segments"))]
        if not len(inside):
            fields.note("segments has no vertex")
            inside = np.zeros((1, 3))
        return SceneObject(
            object_id=fields.integer("objectId"), label=fields.text("label"), box=box_of(inside)
        )

    if not isinstance(groups, list):
        raise ContractError(f"{path} has no list segGroups; copy it again")
    return parse_rows(path, groups, build, key=lambda item: item.object_id)


def _from_object_array(path: Path, _: str) -> list[SceneObject]:
    items = [
        {"id": item.get("id"), "label": item.get("label"), "box": centre_and_size(item)}
        for item in read_object_array(path)
    ]

    def build(fields: Fields) -> SceneObject:
        return SceneObject(
            object_id=fields.integer("id"),
            label=fields.text("label"),
            box=np.array(fields.box("box")),
        )

    return parse_rows(path, items, build, key=lambda item: item.object_id)


def _from_detection(path: Path, _: str) -> list[SceneObject]:
    try:
        rows = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError, TokenError) as error:
        raise ContractError(f"{path} is not a plain array ({error}); copy it again") from error
    if not isinstance(rows, np.ndarray) or rows.dtype.kind not in "fiu":
        raise ContractError(f"{path} is not an array of numbers; copy it again")
    if rows.ndim != 2 or rows.shape[1] != 8 or not np.isfinite(rows).all():
        raise ContractError(f"{path} has shape {rows.shape}, expected (n, 8) finite numbers")
    strange = sorted({int(c) for c in rows[:, 6] if not 1 <= c <= len(NYU40)})
    if strange:
        raise ContractError(f"{path} has nyu40 classes {strange}, expected 1 to {len(NYU40)}")
    return [
        SceneObject(object_id=int(row[7]), label=NYU40[int(row[6]) - 1], box=row[:6].astype(float))
        for row in rows
    ]


def box_of(points: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return the (6,) axis-aligned box of (n, 3) points, n > 0."""
    low, high = points.min(axis=0), points.max(axis=0)
    return np.concatenate([(low + high) / 2, high - low]).astype(np.float64)
