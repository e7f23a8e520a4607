"""Where the camera goes: once around a room as somebody with a phone would, or around a table top."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np

from envs.scan.posed_camera import look_at

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from envs.scan.rooms import Room

_CELL_M = 0.1
_CLEARANCE_M = 0.3
_NEAREST_M = 0.25
"""Of a camera over a table to anything on it."""
_EYE_M = 1.5
_OBSTACLE_M = 1.0
"""The camera is carried above what is lower."""
_ANCHORS = 8


def walk_room(room: Room, rng: np.random.Generator, *, n: int) -> NDArray[np.float64]:
    """Return ``n`` poses (n, 4, 4), evenly spaced on a loop through the free part of a room.

    The camera looks across the room and sways, so that near and far, low and high things are seen.
    """
    loop = _loop(room)
    leg = np.linalg.norm(np.diff(np.vstack([loop, loop[:1]]), axis=0), axis=1)
    along = np.concatenate([[0.0], np.cumsum(leg)])
    wanted = (np.arange(n) / n + rng.random()) % 1.0 * along[-1]
    closed = np.vstack([loop, loop[:1]])
    feet = np.stack([np.interp(wanted, along, closed[:, k]) for k in range(2)], axis=1)
    phase = rng.uniform(0, 2 * np.pi, 3)
    t = np.arange(n) / n * 2 * np.pi
    eyes = np.column_stack([feet, _EYE_M + 0.1 * np.sin(2 * t + phase[0])])
    centre = np.zeros(2)
    towards = np.arctan2(*(centre - feet).T[::-1])
    heading = towards + 0.7 * np.sin(5 * t + phase[1])
    pitch = np.deg2rad(-20) + np.deg2rad(14) * np.sin(7 * t + phase[2])
    direction = np.column_stack(
        [np.cos(pitch) * np.cos(heading), np.cos(pitch) * np.sin(heading), np.sin(pitch)]
    )
    return np.stack([look_at(eye, eye + d) for eye, d in zip(eyes, direction, strict=True)])


def orbit(
    centre: NDArray[np.float64],
    rng: np.random.Generator,
    *,
    n: int,
    spread_m: float,
    boxes: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return ``n`` poses (n, 4, 4) on an arc of 0.5 to 0.8 m around a table top.

    Args:
        centre: (3,) middle of what is looked at; the robot stands at -x of it.
        rng: Draws the sway.
        n: How many.
        spread_m: How far from the centre the camera's targets wander.
        boxes: (b, 6) centre and size of what the camera is lifted over.
    """
    t = (np.arange(n) + 0.5) / n
    phase = rng.uniform(0, 2 * np.pi, 3)
    azimuth = np.deg2rad(-115 + 230 * t)
    elevation = np.deg2rad(42 + 12 * np.sin(4 * np.pi * t + phase[0]))
    distance = 0.65 + 0.15 * np.sin(6 * np.pi * t + phase[1])
    way = np.column_stack(
        [
            np.cos(elevation) * np.cos(azimuth),
            np.cos(elevation) * np.sin(azimuth),
            np.sin(elevation),
        ]
    )
    swing = 2 * np.pi * (3 * t) + phase[2]
    target = centre + spread_m * np.column_stack([np.cos(swing), np.sin(swing), 0 * t])
    eyes = target + distance[:, None] * way
    for eye in eyes:
        while (_distance(eye, boxes) < _NEAREST_M).any():
            eye[2] += 0.02
    return np.stack([look_at(eye, to) for eye, to in zip(eyes, target, strict=True)])


def _distance(point: NDArray[np.float64], boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how far (b,) a point is from each box."""
    outside = np.maximum(np.abs(point - boxes[:, :3]) - boxes[:, 3:] / 2, 0)
    return np.linalg.norm(outside, axis=1)


def free_cells(room: Room) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Return x (i,), y (j,) of a grid, and (i, j) where somebody with a camera has room."""
    half = np.array(room.size[:2]) / 2
    xs, ys = (np.arange(-h + _CELL_M / 2, h, _CELL_M) for h in half)
    grid = np.stack(np.meshgrid(xs, ys, indexing="ij"), axis=-1)
    free = (half - np.abs(grid) >= _CLEARANCE_M).all(axis=-1)
    for thing in room.things:
        if thing.heights[1] > _OBSTACLE_M:
            c, s = np.cos(thing.yaw), np.sin(thing.yaw)
            local = (grid - [thing.x, thing.y]) @ np.array([[c, -s], [s, c]])
            low, high = thing.piece.low[:2], thing.piece.high[:2]
            free &= (np.maximum(low - local, local - high) >= _CLEARANCE_M).any(axis=-1)
    return xs, ys, free


def _loop(room: Room) -> NDArray[np.float64]:
    """Return a closed path (p, 2) over free cells, around the middle of the room."""
    xs, ys, free = free_cells(room)
    region = _largest_region(free)
    cells = np.argwhere(region)
    places = np.column_stack([xs[cells[:, 0]], ys[cells[:, 1]]])
    angles = np.arange(_ANCHORS) / _ANCHORS * 2 * np.pi
    ring = 0.33 * np.column_stack([np.cos(angles), np.sin(angles)]) * room.size[:2]
    stops = [tuple(cells[np.argmin(np.linalg.norm(places - p, axis=1))]) for p in ring]
    path: list[tuple[int, int]] = []
    for start, end in zip(stops, [*stops[1:], stops[0]], strict=True):
        path += _shortest(region, start, end)[:-1]
    if not path:  # all anchors fell on one cell: turn on the spot
        path = [stops[0]]
    points = np.array([[xs[i], ys[j]] for i, j in path])
    window = min(7, len(points))
    # Rounds the corners of the grid; the clearance is wider than what is cut.
    return np.mean([np.roll(points, k, axis=0) for k in range(window)], axis=0)


def _largest_region(free: NDArray[np.bool_]) -> NDArray[np.bool_]:
    from scipy import ndimage

    found: Any = ndimage.label(free)
    labels, n = found
    if n == 0:
        raise ValueError("the room has no free floor; furnish it less")
    sizes = np.bincount(labels.ravel())[1:]
    return labels == 1 + int(sizes.argmax())


def _shortest(
    free: NDArray[np.bool_], start: tuple[int, int], end: tuple[int, int]
) -> list[tuple[int, int]]:
    """Return a shortest path of cells, both ends included (breadth first)."""
    came: dict[tuple[int, int], tuple[int, int]] = {start: start}
    queue = deque([start])
    while queue and end not in came:
        i, j = queue.popleft()
        for cell in ((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)):
            # The outermost cells are never free, so neighbours of free ones exist.
            if free[cell] and cell not in came:
                came[cell] = (i, j)
                queue.append(cell)
    path = [end]
    while path[-1] != start:
        path.append(came[path[-1]])
    return path[::-1]
