"""Shapes of objects as points, read from MuJoCo's collision geometry.

Shape legend: ``p`` points.
"""
# pyright: basic
# ruff: noqa: ANN401

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BOX, _CYLINDER, _CAPSULE, _SPHERE, _ELLIPSOID, _MESH = 6, 5, 3, 2, 4, 7
_N_SIDE = 7
_YAWS = np.arange(0.0, np.pi, np.pi / 36)


def subtree(model: Any, root: int) -> list[int]:
    """List a body and all bodies below it."""
    found = [root]
    for body in range(root + 1, model.nbody):
        if model.body_parentid[body] in found:
            found.append(body)
    return found


def collision_points(
    model: Any, data: Any, root: int, *, without: int | None = None
) -> NDArray[np.float64]:
    """Cover the collision geometry below a body with points.

    Args:
        model: The compiled model.
        data: Its data, with poses up to date.
        root: The body.
        without: A body below it that is left out, with everything below that.

    Returns:
        (p, 3) world coordinates, metres, on the surfaces.
    """
    bodies = set(subtree(model, root)) - set(subtree(model, without) if without else ())
    clouds = []
    for geom in range(model.ngeom):
        if model.geom_bodyid[geom] not in bodies:
            continue
        if not (model.geom_contype[geom] or model.geom_conaffinity[geom]):
            continue
        local = _surface(model, geom)
        if local is not None:
            clouds.append(local @ data.geom_xmat[geom].reshape(3, 3).T + data.geom_xpos[geom])
    return np.concatenate(clouds)


def _surface(model: Any, geom: int) -> NDArray[np.float64] | None:
    kind, size = model.geom_type[geom], model.geom_size[geom]
    if kind == _BOX:
        return _box_surface() * size
    if kind in (_CYLINDER, _CAPSULE):
        height = size[1] + (size[0] if kind == _CAPSULE else 0.0)
        angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        rings = [
            np.c_[size[0] * np.cos(angle), size[0] * np.sin(angle), np.full(24, z)]
            for z in np.linspace(-height, height, _N_SIDE)
        ]
        return np.concatenate(rings)
    if kind in (_SPHERE, _ELLIPSOID):
        radii = size if kind == _ELLIPSOID else np.full(3, size[0])
        ball = _box_surface()
        return ball / np.linalg.norm(ball, axis=1, keepdims=True) * radii
    if kind == _MESH:
        mesh = model.geom_dataid[geom]
        first_v, first_f = model.mesh_vertadr[mesh], model.mesh_faceadr[mesh]
        vertices = model.mesh_vert[first_v : first_v + model.mesh_vertnum[mesh]].astype(np.float64)
        faces = model.mesh_face[first_f : first_f + model.mesh_facenum[mesh]]
        return np.concatenate([vertices, vertices[faces].mean(axis=1)])
    return None


def _box_surface() -> NDArray[np.float64]:
    side = np.linspace(-1, 1, _N_SIDE)
    grid = np.stack(np.meshgrid(side, side, side, indexing="ij"), axis=-1).reshape(-1, 3)
    return grid[np.abs(grid).max(axis=1) == 1.0]


@dataclass(frozen=True)
class Width:
    """How wide a set of points is across a horizontal direction."""

    yaw: float
    """Direction in radians, [0, pi)."""
    width: float
    """Extent along it, metres."""
    centre: NDArray[np.float64]
    """(2,) middle of the extent along it and across it."""


def widths(points: NDArray[np.float64]) -> list[Width]:
    """Measure the extent of points across horizontal directions, every 5 degrees."""
    found = []
    for yaw in _YAWS:
        along = np.array([np.cos(yaw), np.sin(yaw)])
        across = np.array([-along[1], along[0]])
        a, b = points[:, :2] @ along, points[:, :2] @ across
        centre = along * (a.max() + a.min()) / 2 + across * (b.max() + b.min()) / 2
        found.append(Width(yaw=float(yaw), width=float(a.max() - a.min()), centre=centre))
    return found
