"""A walk rendered: the scan in ScanNet's terms, its truth, and who is seen in every pixel."""
# pyright: basic
# ruff: noqa: ANN401

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from envs.scan.boxes import bounds, box_of
from vega_policy.scene.scan import Frame, Scan, SceneObject
from vega_policy.scene.truth import ObjectTruth, SceneTruth

if TYPE_CHECKING:
    from collections.abc import Sequence

    from envs.scan.posed_camera import PosedCamera

_TURN_M = 3.0


@dataclass(frozen=True, eq=False, kw_only=True)
class Thing:
    """An object of a compiled scene."""

    label: str
    colour: str
    geoms: tuple[int, ...]
    """Numbers of the geoms that are drawn of it."""
    axes: NDArray[np.float64]
    """(3, 3) unit vectors of its oriented box, one a row; the last is up."""
    stands_on: int | None = None
    """Index of its carrier among the things."""


@dataclass(frozen=True, eq=False)
class Rendered:
    """One scan."""

    scan: Scan
    truth: SceneTruth
    instances: NDArray[np.uint8]
    """(f, h, w) ``object_id + 1`` of what each pixel shows, 0 for nothing listed."""


def render(
    camera: PosedCamera,
    model: Any,
    data: Any,
    *,
    scene_id: str,
    dataset: str,
    things: Sequence[Thing],
    poses: NDArray[np.float64],
    floor: NDArray[np.float64] | None,
    turn: NDArray[np.float64],
) -> Rendered:
    """Look from every pose.

    Args:
        camera: Of the scene.
        model: ``mujoco.MjModel``.
        data: ``mujoco.MjData`` with present kinematics.
        scene_id: Name of the scan.
        dataset: ``rooms`` or ``libero``.
        things: At most 255; their order gives the object ids.
        poses: (f, 4, 4) in the simulator's frame, which is the aligned one.
        floor: See `SceneTruth`.
        turn: (4, 4) aligned to world. Poses are stored in the turned world, as a tracker that knows
            nothing of walls would give them.
    """
    if len(things) > 255:
        raise ValueError(f"{scene_id} has {len(things)} things; an 8-bit mask can tell 255 apart")
    views = [camera.look(pose) for pose in poses]
    table = np.zeros(model.ngeom + 1, dtype=np.uint8)
    for k, thing in enumerate(things):
        table[list(thing.geoms)] = k + 1
    instances = np.stack([table[view.geom] for view in views])
    counts = np.stack([np.bincount(i.ravel(), minlength=len(things) + 1) for i in instances])
    objects = tuple(
        _truth(model, data, k, thing, counts[:, k + 1]) for k, thing in enumerate(things)
    )
    height, width = instances.shape[1:]
    truth = SceneTruth(
        scene_id=scene_id,
        dataset=dataset,
        objects=objects,
        frames=tuple(range(len(poses))),
        poses=poses,
        image_px=(width, height),
        intrinsics=camera.intrinsics,
        floor=floor,
    )
    scan = Scan(
        scene_id=scene_id,
        frames=[
            Frame(index=k, image=view.image, depth_m=view.depth_m, pose=turn @ pose)
            for k, (view, pose) in enumerate(zip(views, poses, strict=True))
        ],
        intrinsics=camera.intrinsics,
        depth_intrinsics=camera.intrinsics,
        axis_alignment=np.linalg.inv(turn),
        objects=tuple(
            SceneObject(
                object_id=o.object_id,
                label=o.label,
                box=o.box,
                attributes={"colour": o.colour} if o.colour else {},
            )
            for o in objects
        ),
    )
    return Rendered(scan=scan, truth=truth, instances=instances)


def draw_turn(rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw a rigid motion (4, 4) that keeps up: at least 10 degrees off the axes, metres away."""
    quarter = np.pi / 2
    angle = rng.integers(0, 4) * quarter + rng.uniform(np.deg2rad(10), quarter - np.deg2rad(10))
    turn = np.eye(4)
    c, s = np.cos(angle), np.sin(angle)
    turn[:2, :2] = [[c, -s], [s, c]]
    turn[:3, 3] = rng.uniform(-_TURN_M, _TURN_M, 3)
    return turn


def _truth(
    model: Any, data: Any, k: int, thing: Thing, visible_px: NDArray[np.int64]
) -> ObjectTruth:
    own_low, own_high = bounds(model, data, thing.geoms, thing.axes)
    return ObjectTruth(
        object_id=k,
        label=thing.label,
        colour=thing.colour,
        box=box_of(model, data, thing.geoms),
        centre=(own_low + own_high) / 2 @ thing.axes,
        size=own_high - own_low,
        axes=thing.axes,
        visible_px=visible_px.astype(np.int64),
        stands_on=thing.stands_on,
    )
