"""Where to take hold of a thing, from its collision geometry and what stands around it."""
# pyright: basic

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from envs.expert.geometry import Width, widths
from envs.expert.hand import MAX_OPENING
from envs.expert.rotations import about, wrap_half

if TYPE_CHECKING:
    from collections.abc import Sequence

    from envs.expert.hand import Hand
    from envs.expert.scene import Thing

_DEPTH = 0.036
"""Wanted height of a thing's top above the grip site, metres."""
_RIM_DEPTH = 0.022
_TOO_WIDE = 500.0
"""Cost above which a thing does not fit between the fingers."""
_DOWNWARD = np.array([0.0, 0.0, -1.0])
_TILTS = (0.0, 0.45, -0.45)
_HANDLE_REACH = 0.010
"""How far a handle must stick out of a round body to be one, metres."""


@dataclass(frozen=True, eq=False)
class Grasp:
    """A pose of the hand, fixed to the thing."""

    kind: str
    """``wrap``: fingers around it. ``rim``: one finger inside, one outside. ``handle``."""
    point: NDArray[np.float64]
    """(3,) grip site in the thing's frame, metres."""
    rotation: NDArray[np.float64]
    """(3, 3) of the hand in the thing's frame."""
    up: NDArray[np.float64]
    """(3,) the world's up in the thing's frame when the grasp was planned."""

    def pose(self, thing: Thing) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return where the hand has to be now: position (3,) and rotation (3, 3)."""
        return thing.rotation @ self.point + thing.position, thing.rotation @ self.rotation

    def has_tipped(self, thing: Thing) -> bool:
        """Return whether the thing lies differently than when the grasp was planned."""
        return bool((thing.rotation @ self.up)[2] < 0.9)


def plan_grasp(
    thing: Thing,
    hand: Hand,
    obstacles: NDArray[Any],
    *,
    avoid: Sequence[Grasp] = (),
) -> Grasp:
    """Choose a grasp from above: around the thing, or at its rim where it is too wide for that.

    Args:
        thing: What to take.
        hand: The hand.
        obstacles: (p, 3) points of everything else near it.
        avoid: Grasps that have failed; others are preferred.
    """
    cost, grasp = _wrap(thing, hand, obstacles, avoid, depth=0.018)
    if cost < _TOO_WIDE:
        return grasp
    ring, centre, radius = round_top(thing.points, thing.own_up)
    if (np.linalg.norm(ring[:, :2] - centre, axis=1) > 0.5 * radius).all():  # hollow
        return _rim(thing, hand, obstacles, avoid) or grasp
    return _wrap(thing, hand, obstacles, avoid, depth=0.006)[1]


def _wrap(
    thing: Thing, hand: Hand, obstacles: NDArray[Any], avoid: Sequence[Grasp], *, depth: float
) -> tuple[float, Grasp]:
    """Return cost and pose of the best grasp around a thing, ``depth`` below its top or lower."""
    points = thing.points
    top, bottom = points[:, 2].max(), points[:, 2].min()
    wanted = max(top - _DEPTH, bottom + 0.012)
    middle = (points[:, :2].max(axis=0) + points[:, :2].min(axis=0)) / 2
    best = (1e6, np.r_[middle, wanted], hand.facing_down(hand.yaw))
    shallow = top - min(depth, 0.4 * (top - bottom))
    for z in np.arange(max(shallow, bottom + 0.008), max(bottom + 0.006, top - 0.06), -0.006):
        slab = points[np.abs(points[:, 2] - z) < 0.010]
        above = points[points[:, 2] > z - 0.010]
        if len(slab) < 8:
            continue
        for width, whole in zip(widths(slab), widths(above), strict=True):
            closing = np.array([np.cos(width.yaw), np.sin(width.yaw)])
            off_centre = abs(float((width.centre - whole.centre) @ closing))
            room = max(width.width, whole.width + 2 * off_centre)
            if width.width < 0.006:
                continue
            # A turn of the wrist costs time; a wide thing costs tolerance.
            turn = abs(wrap_half(width.yaw - hand.yaw))
            cost = abs(z - wanted) / 0.01 + 2.0 * turn + room / 0.015
            cost += 1000.0 * max(0.0, room - MAX_OPENING) / 0.001
            if cost > best[0]:
                continue
            rotation = hand.facing_down(width.yaw)
            for shift in _shifts(slab, width):
                point = np.r_[width.centre + shift * np.array([-closing[1], closing[0]]), z]
                total = cost + abs(shift) / 0.01 + _blocked(obstacles, point, rotation, hand)
                total += _repeats(thing, point, rotation, avoid)
                if total < best[0] - 1e-9:
                    best = (total, point, rotation)
    cost, point, rotation = best
    return cost, fixed(thing, "wrap", point, rotation)


def _rim(thing: Thing, hand: Hand, obstacles: NDArray[Any], avoid: Sequence[Grasp]) -> Grasp | None:
    points = thing.points
    ring, centre, radius = round_top(points, thing.own_up)
    depth = min(_RIM_DEPTH, 0.6 * float(np.ptp(points @ thing.own_up)))
    best: tuple[float, NDArray[np.float64], NDArray[np.float64]] | None = None
    for yaw in np.arange(0, 2 * np.pi, np.pi / 12):
        outward = np.array([np.cos(yaw), np.sin(yaw)])
        if (((ring[:, :2] - centre) @ outward) > radius + _HANDLE_REACH).any():
            continue  # the handle
        near = np.linalg.norm(ring[:, :2] - centre - outward * radius, axis=1).argmin()
        point = np.r_[centre + outward * (radius - 0.005), ring[near, 2] - depth]
        for tilt in _TILTS:
            rotation = about(np.r_[outward, 0.0], tilt) @ hand.facing_down(yaw)
            cost = _blocked(obstacles, point, rotation, hand)
            cost += 0.7 * _blocked(obstacles, point - 0.1 * _DOWNWARD, rotation, hand)
            cost += 2.0 * abs(wrap_half(yaw - hand.yaw)) + 4.0 * (tilt != 0.0)
            cost += _repeats(thing, point, rotation, avoid)
            if best is None or cost < best[0]:
                best = (cost, point, rotation)
    return None if best is None else fixed(thing, "rim", best[1], best[2])


def round_top(
    points: NDArray[Any], up: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Return the points of a round opening (r, 3), its centre (2,) and radius, metres.

    Args:
        points: (p, 3) of the thing.
        up: (3,) direction in which it opens.
    """
    height = points @ up
    ring = points[height > height.max() - min(0.012, 0.4 * float(np.ptp(height)))]
    kept = ring[:, :2]
    centre = (kept.max(axis=0) + kept.min(axis=0)) / 2
    for _ in range(3):  # a handle pulls the middle towards it at first
        distance = np.linalg.norm(ring[:, :2] - centre, axis=1)
        kept = ring[distance < np.median(distance) + _HANDLE_REACH][:, :2]
        centre = (kept.max(axis=0) + kept.min(axis=0)) / 2
    distance = np.linalg.norm(kept - centre, axis=1)
    return ring, centre, float(np.percentile(distance, 90))


def fixed(thing: Thing, kind: str, point: NDArray[Any], rotation: NDArray[Any]) -> Grasp:
    """Tie a pose of the hand in the world to a thing as it lies now."""
    frame = thing.rotation.T
    return Grasp(
        kind=kind,
        point=frame @ (point - thing.position),
        rotation=frame @ rotation,
        up=frame @ np.array([0.0, 0.0, 1.0]),
    )


def _blocked(
    obstacles: NDArray[Any], point: NDArray[Any], rotation: NDArray[Any], hand: Hand
) -> float:
    """Return millimetres by which obstacles lie in the hand or in its open fingers.

    Hand and fingers are boxes; sizes are those of the Panda hand's collision geometry, rounded up.
    """
    local = obstacles - point
    closing, approach = hand.closing_in(rotation), rotation[:, 2]
    along = np.abs(local @ closing)
    across = np.abs(local @ np.cross(approach, closing))
    back = np.negative(local @ approach)
    palm = np.minimum.reduce([0.112 - along, 0.042 - across, back - 0.040, 0.30 - back])
    fingers = np.minimum.reduce(
        [0.062 - along, along - 0.030, 0.016 - across, back + 0.012, 0.045 - back]
    )
    return 1e3 * float(max(0.0, palm.max(), fingers.max()))


def _repeats(
    thing: Thing, point: NDArray[Any], rotation: NDArray[Any], avoid: Sequence[Grasp]
) -> float:
    """Return a penalty for a pose like one that has failed."""
    penalty = 0.0
    for old in avoid:
        place, turned = old.pose(thing)
        is_near = np.linalg.norm(place - point) < 0.02
        is_alike = np.trace(turned.T @ rotation) > 1 + 2 * np.cos(0.35)
        penalty += 12.0 * float(is_near and is_alike)
    return penalty


def _shifts(slab: NDArray[Any], width: Width) -> NDArray[np.float64]:
    """List where along an elongated thing it can be grasped, metres from its middle."""
    across = np.array([-np.sin(width.yaw), np.cos(width.yaw)])
    extent = (slab[:, :2] - width.centre) @ across
    reach = max(0.0, float(np.ptp(extent)) / 2 - 0.018)
    return np.array([0.0, -reach, -reach / 2, reach / 2, reach]) if reach > 0.005 else np.zeros(1)
