"""What a renderer knows of a scene, so that questions about it have provable answers.

Everything is in the aligned frame of `scene.scan`: metres, z up, walls along the axes.

Shape legend: ``f`` rendered frames in the order of the walk, ``k`` corners of the floor.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vega_policy.spec import ContractError
from vega_policy.spec.files import write_atomic

TRUTH_FILE, SPLITS_FILE = "truth.json", "splits.json"


@dataclass(frozen=True, eq=False, kw_only=True)
class ObjectTruth:
    """One object."""

    object_id: int
    label: str
    """Its class, words with blanks, for example ``floor lamp``."""
    colour: str
    """One word, for example ``red``; empty where no word fits."""
    box: NDArray[np.float64]
    """(6,) centre and full size ``cx cy cz dx dy dz``, axis-aligned."""
    centre: NDArray[np.float64]
    """(3,) centre of the oriented box."""
    size: NDArray[np.float64]
    """(3,) full lengths of the oriented box along ``axes``; the last is the height."""
    axes: NDArray[np.float64]
    """(3, 3) unit vectors, one a row; the last is up. The first is where a chair or sofa faces."""
    visible_px: NDArray[np.int64]
    """(f,) how many pixels of each frame show the object."""
    stands_on: int | None = None
    """``object_id`` of what carries it; None for the floor or a wall."""


@dataclass(frozen=True, eq=False, kw_only=True)
class SceneTruth:
    """One scene and a walk of the camera through it."""

    scene_id: str
    dataset: str
    """Where the scene comes from: ``rooms`` or ``libero``; folder of the videos."""
    objects: tuple[ObjectTruth, ...]
    """All of them, also those no frame shows."""
    frames: tuple[int, ...]
    """Numbers of the rendered frames, in the order of the walk and of the video."""
    poses: NDArray[np.float64]
    """(f, 4, 4) camera (OpenCV's) to aligned."""
    image_px: tuple[int, int]
    """Width and height of the frames."""
    intrinsics: NDArray[np.float64]
    """(3, 3) pixels; integers are pixel centres."""
    floor: NDArray[np.float64] | None
    """(k, 2) corners of the floor in order; None where the scene is no room."""

    @property
    def room_size_m2(self) -> float | None:
        """Area of the floor; None where the scene is no room."""
        if self.floor is None:
            return None
        x, y = self.floor.T
        return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)

    def visible(self, *, least_px: int = 1) -> tuple[ObjectTruth, ...]:
        """Return the objects that at least one frame shows with ``least_px`` pixels."""
        return tuple(o for o in self.objects if o.visible_px.max(initial=0) >= least_px)


def write_truth(path: Path | str, truth: SceneTruth) -> None:
    """Write one scene as JSON; numbers keep all their digits."""
    row = {
        "scene_id": truth.scene_id,
        "dataset": truth.dataset,
        "frames": list(truth.frames),
        "image_px": list(truth.image_px),
        "intrinsics": truth.intrinsics.tolist(),
        "poses": truth.poses.tolist(),
        "floor": None if truth.floor is None else truth.floor.tolist(),
        "room_size_m2": truth.room_size_m2,
        "objects": [
            {
                "object_id": o.object_id,
                "label": o.label,
                "colour": o.colour,
                "stands_on": o.stands_on,
                **{name: getattr(o, name).tolist() for name in _OBJECT_SHAPES},
                "visible_px": o.visible_px.tolist(),
            }
            for o in truth.objects
        ],
    }
    write_atomic(path, json.dumps(row) + "\n")


def read_truth(path: Path | str) -> SceneTruth:
    """Read what `write_truth` wrote.

    Raises:
        ContractError: The file is missing or is no truth of a scene; every problem is listed.
    """
    path = Path(path)
    if not path.is_file():
        raise ContractError(f"no file {path}; render scenes with scripts/scan.py")
    try:
        row = json.loads(path.read_text())
        truth = SceneTruth(
            scene_id=str(row["scene_id"]),
            dataset=str(row["dataset"]),
            objects=tuple(_object(item) for item in row["objects"]),
            frames=tuple(int(i) for i in row["frames"]),
            poses=np.array(row["poses"], dtype=np.float64),
            image_px=(int(row["image_px"][0]), int(row["image_px"][1])),
            intrinsics=np.array(row["intrinsics"], dtype=np.float64),
            floor=None if row["floor"] is None else np.array(row["floor"], dtype=np.float64),
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ContractError(
            f"{path} is no truth of a scene ({error!r}); render it again with scripts/scan.py"
        ) from error
    problems = _problems(truth)
    if problems:
        raise ContractError(f"{path}: {'; '.join(problems)}; render it again with scripts/scan.py")
    return truth


_OBJECT_SHAPES = {"box": (6,), "centre": (3,), "size": (3,), "axes": (3, 3)}


def _object(item: dict[str, Any]) -> ObjectTruth:
    return ObjectTruth(
        object_id=int(item["object_id"]),
        label=str(item["label"]),
        colour=str(item["colour"]),
        stands_on=None if item["stands_on"] is None else int(item["stands_on"]),
        visible_px=np.array(item["visible_px"], dtype=np.int64),
        **{name: np.array(item[name], dtype=np.float64) for name in _OBJECT_SHAPES},
    )


def _problems(truth: SceneTruth) -> list[str]:
    f = len(truth.frames)
    wrong = [
        f"{name} has shape {got}, expected {want}"
        for name, got, want in (
            ("poses", truth.poses.shape, (f, 4, 4)),
            ("intrinsics", truth.intrinsics.shape, (3, 3)),
            ("floor", (0, 2) if truth.floor is None else (0, *truth.floor.shape[1:]), (0, 2)),
        )
        if got != want
    ]
    ids = [o.object_id for o in truth.objects]
    if len(set(ids)) < len(ids):
        wrong.append(f"object ids {sorted({i for i in ids if ids.count(i) > 1})} appear twice")
    for o in truth.objects:
        shapes = {**_OBJECT_SHAPES, "visible_px": (f,)}
        wrong += [
            f"{name} of object {o.object_id} has shape {getattr(o, name).shape}, expected {shape}"
            for name, shape in shapes.items()
            if getattr(o, name).shape != shape
        ]
        wrong += [
            f"{name} of object {o.object_id} is not finite"
            for name in _OBJECT_SHAPES
            if not np.isfinite(getattr(o, name)).all()
        ]
        if o.stands_on is not None and o.stands_on not in ids:
            wrong.append(f"object {o.object_id} stands on {o.stands_on}, which is not there")
    return wrong
