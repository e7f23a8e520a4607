"""Exact bounding boxes of MuJoCo geoms, in any frame.

``geom_aabb`` turned into another frame is the box of a box, too large for round things and meshes
that stand askew; here each shape is measured along the axes asked for.
"""
# pyright: basic
# ruff: noqa: ANN401

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray


def bounds(
    model: Any, data: Any, geoms: Iterable[int], axes: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the least and greatest coordinate (3,) of some geoms along unit vectors (3, 3), one a row.

    Raises:
        ValueError: No geom, or one that has no end, such as a plane.
    """
    ends = [_ends(model, data, geom, axes) for geom in geoms]
    if not ends:
        raise ValueError("no geom was given, so there is nothing to bound")
    return np.min([low for low, _ in ends], axis=0), np.max([high for _, high in ends], axis=0)


def box_of(model: Any, data: Any, geoms: Iterable[int]) -> NDArray[np.float64]:
    """Return ``cx cy cz dx dy dz`` of the box around some geoms, along the axes of the world."""
    low, high = bounds(model, data, geoms, np.eye(3))
    return np.concatenate([(low + high) / 2, high - low])


def _ends(
    model: Any, data: Any, geom: int, axes: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    import mujoco

    mj: Any = mujoco
    shapes = mj.mjtGeom
    kind, size = int(model.geom_type[geom]), model.geom_size[geom]
    place = axes @ data.geom_xpos[geom]
    local = axes @ data.geom_xmat[geom].reshape(3, 3)  # (axis asked for, axis of the geom)
    if kind == shapes.mjGEOM_MESH:
        mesh = int(model.geom_dataid[geom])
        first, n = int(model.mesh_vertadr[mesh]), int(model.mesh_vertnum[mesh])
        along = model.mesh_vert[first : first + n].astype(np.float64) @ local.T
        return place + along.min(axis=0), place + along.max(axis=0)
    if kind == shapes.mjGEOM_BOX:
        reach = np.abs(local) @ size
    elif kind == shapes.mjGEOM_SPHERE:
        reach = np.full(3, size[0])
    elif kind == shapes.mjGEOM_ELLIPSOID:
        reach = np.sqrt(((local * size) ** 2).sum(axis=1))
    elif kind == shapes.mjGEOM_CAPSULE:
        reach = size[0] + size[1] * np.abs(local[:, 2])
    elif kind == shapes.mjGEOM_CYLINDER:
        across = np.sqrt(np.maximum(1 - local[:, 2] ** 2, 0))
        reach = size[0] * across + size[1] * np.abs(local[:, 2])
    else:
        raise ValueError(f"geom {geom} has no bounded shape (type {kind})")
    return place - reach, place + reach
