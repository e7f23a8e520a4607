"""Ground-truth objects of a scene, from the first of the files that lies there.

1. ``objects.json``: ours, a list of ``object_id, label, box`` and optional ``attributes``.
2. ``<scene>_aligned_bbox.npy``: (n, 8) ``cx cy cz dx dy dz nyu40 object_id``, as the ScanNet detection
   tools write it; the label is the name of the nyu40 class.
3. ``<scene>.aggregation.json`` with ``<scene>_vh_clean_2.0.010000.segs.json`` and
   ``<scene>_vh_clean_2.ply``: the release; a box spans the aligned vertices of its object.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from vega_policy.scene.scan import SceneObject

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

OBJECTS_FILE = "objects.json"


def read_objects(
    folders: Sequence[Path], scene_id: str, problems: list[str]
) -> tuple[SceneObject, ...]:
    """Read the objects of a scene, empty where no file is there; problems are added to the list."""
    for folder in folders:
        path = folder / OBJECTS_FILE
        if folder.name == scene_id and path.is_file():
            return _from_json(path, problems)
    return ()


def _from_json(path: Path, problems: list[str]) -> tuple[SceneObject, ...]:
    try:
        items: list[dict[str, Any]] = json.loads(path.read_text())
    except ValueError as error:
        problems.append(f"{path.name} is not JSON ({error})")
        return ()
    objects: list[SceneObject] = []
    for row, item in enumerate(items):
        try:
            box = np.array([float(x) for x in item["box"]])
            objects.append(
                SceneObject(
                    object_id=int(item["object_id"]),
                    label=str(item["label"]),
                    box=box,
                    attributes={str(k): str(v) for k, v in item.get("attributes", {}).items()},
                )
            )
            if box.shape != (6,) or not np.isfinite(box).all():
                problems.append(f"{path.name} row {row}: the box is not 6 finite numbers")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            problems.append(f"{path.name} row {row}: {error!r}, expected object_id, label, box")
    return tuple(objects)
