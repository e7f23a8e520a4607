"""A scene measured a second time, by other means than the generator's.

Distances are those of corner-spanned boxes, closed in from both sides; directions are coordinates in a turned
frame at points drawn at random; what lies on what, and the floor's area, are read off the geometry.

Shape legend: ``n`` objects, ``p`` points.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from vega_policy.scene.truth import SceneTruth

SHOWN_SHARE = 0.0019
STANDS_WITHIN_M = 0.4
_MOST_STEPS = 4000
_OVERHEAD_M = 1.8
_BODY_M = 0.14


class Doubt(Exception):
    """Why a row is not proved."""


class Measured:
    """Geometry of one scene.

    Args:
        truth: What the renderer knows.
    """

    def __init__(self, truth: SceneTruth) -> None:
        self.truth = truth
        self.objects = truth.objects
        signs = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
        self.corners = np.array(
            [o.centre + (signs * o.size / 2) @ o.axes for o in truth.objects]
        ).reshape(-1, 8, 3)
        """(n, 8, 3)."""
        self._distances: dict[tuple[int, int], tuple[float, float]] = {}
        self._clouds: dict[int, NDArray[np.float64]] = {}

    def inconsistent(self, i: int) -> str | None:
        """Say in what way a thing contradicts itself, or None."""
        o = self.objects[i]
        low, high = self.corners[i].min(axis=0), self.corners[i].max(axis=0)
        if not np.allclose(o.axes @ o.axes.T, np.eye(3), atol=1e-3) or o.size.min() <= 0:
            return f"object {o.object_id} has axes that are no axes, or no size"
        half = o.box[3:] / 2
        if (o.box[:3] - half < low - 0.01).any() or (o.box[:3] + half > high + 0.01).any():
            return f"the box of object {o.object_id} sticks out of its oriented box"
        if (o.box[3:] < 0.5 * (high - low)).any():
            return f"the box of object {o.object_id} is far smaller than its oriented box"
        return None

    def is_shown(self, i: int) -> bool:
        """Whether some frame shows enough of it."""
        width, height = self.truth.image_px
        return int(self.objects[i].visible_px.max(initial=0)) >= SHOWN_SHARE * width * height

    def local(self, i: int, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return (p, 3) points in the frame of a box."""
        return (points - self.objects[i].centre) @ self.objects[i].axes.T

    def clip(self, i: int, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the points of a box closest to (p, 3) points."""
        half = self.objects[i].size / 2
        return (
            np.clip(self.local(i, points), -half, half) @ self.objects[i].axes
            + self.objects[i].centre
        )

    def distance(self, i: int, j: int) -> tuple[float, float]:
        """Return bounds, a centimetre apart, of the distance between the closest points of two boxes.

        Projections onto the two in turn (Cheney and Goldstein 1959) give the upper bound, the slab between
        them across the line found so far the lower.
        """
        key = (min(i, j), max(i, j))
        if key not in self._distances:
            self._distances[key] = self._close_in(*key)
        return self._distances[key]

    def _close_in(self, i: int, j: int) -> tuple[float, float]:
        a = self.objects[i].centre[None]
        low, high = 0.0, np.inf
        for step in range(_MOST_STEPS):
            b = self.clip(j, a)
            a = self.clip(i, b)
            if step % 10 == 9:
                high = float(np.linalg.norm(a - b))
                if high < 1e-3:
                    return 0.0, high
                across = (b - a)[0] / high
                slab = (self.corners[j] @ across).min() - (self.corners[i] @ across).max()
                low = max(low, float(slab))
                if high - low < 0.01:
                    break
        return low, high

    def apart(self, i: int, j: int) -> float:
        """Return the distance between the closest points of two boxes, to a centimetre."""
        low, high = self.distance(i, j)
        if high - low > 0.011:
            raise Doubt(f"distance between objects {i} and {j} is only known to {high - low:.2f} m")
        return high

    def centres_apart(self, i: int, j: int) -> float:
        """Return the distance between two centres."""
        return float(np.linalg.norm(self.objects[i].centre - self.objects[j].centre))

    def edges_m(self, i: int) -> tuple[float, float, float]:
        """Return the lengths of a box along its edges, the upright one last."""
        c = self.corners[i]
        return tuple(float(np.linalg.norm(c[k] - c[0])) for k in (4, 2, 1))  # type: ignore[return-value]

    def is_on(self, i: int, j: int) -> bool:
        """Whether the middle of a thing is over another and it rests there, not on the floor."""
        bottom = float(self.corners[i][:, 2].min())
        low, high = float(self.corners[j][:, 2].min()), float(self.corners[j][:, 2].max())
        where = self.local(j, self.objects[i].centre[None])[0, :2]
        is_over = bool((np.abs(where) <= self.objects[j].size[:2] / 2).all())
        return i != j and is_over and low + 0.03 < bottom < high + 0.06

    def support(self, i: int) -> int | None:
        """Return what a thing is on, or None for the floor or a wall."""
        return next((j for j in range(len(self.objects)) if self.is_on(i, j)), None)

    def area_m2(self) -> float:
        """Return the floor's area, counted in cells of about 2 cm."""
        return self._area_m2

    @cached_property
    def _area_m2(self) -> float:
        floor = self.truth.floor
        if floor is None:
            raise Doubt("the scene has no floor")
        low, span = floor.min(axis=0), np.ptp(floor, axis=0)
        n = np.maximum((span / 0.02).astype(int), 1)
        x, y = (low[k] + span[k] * (np.arange(n[k]) + 0.5) / n[k] for k in (0, 1))
        grid = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
        return float(self.on_floor(grid).mean() * span.prod())

    def on_floor(self, points: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return (p,) whether (p, 2) points are inside the floor (crossings of a ray)."""
        floor = self.truth.floor
        if floor is None:
            raise Doubt("the scene has no floor")
        is_inside = np.zeros(len(points), dtype=bool)
        for (x0, y0), (x1, y1) in zip(floor, np.roll(floor, -1, axis=0), strict=True):
            is_level = (y0 > points[:, 1]) != (y1 > points[:, 1])
            with np.errstate(divide="ignore", invalid="ignore"):
                x = x0 + (points[:, 1] - y0) * (x1 - x0) / (y1 - y0)
            is_inside ^= is_level & (points[:, 0] < x)
        return is_inside

    def off_plan(self, i: int, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return (p,) distances on the floor plan of (p, 2) points from a thing."""
        level = np.column_stack([points, np.full(len(points), self.objects[i].centre[2])])
        return np.linalg.norm(self.clip(i, level) - level, axis=1)

    def is_free(self, points: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return (p,) whether somebody fits at (p, 2) points: no wall or thing below 1.8 m within 14 cm."""
        free = self.on_floor(points)
        for aside in ((_BODY_M, 0), (-_BODY_M, 0), (0, _BODY_M), (0, -_BODY_M)):
            free &= self.on_floor(points + np.array(aside))
        for i in range(len(self.objects)):
            if self.corners[i][:, 2].min() < _OVERHEAD_M:
                free &= self.off_plan(i, points) >= _BODY_M
        return free

    def places_by(self, i: int) -> NDArray[np.float64]:
        """Return (p, 2) random places on the floor by a thing, within reach of it."""
        if i not in self._clouds:
            plan = self.corners[i][:, :2]
            low, high = plan.min(axis=0) - STANDS_WITHIN_M, plan.max(axis=0) + STANDS_WITHIN_M
            rng = np.random.default_rng([len(self.objects), i])
            points = rng.uniform(low, high, size=(600, 2))
            off = self.off_plan(i, points)
            points = points[(off > 0.02) & (off <= STANDS_WITHIN_M) & self.on_floor(points)]
            if len(points) < 5:
                raise Doubt(f"nobody can stand by object {self.objects[i].object_id}")
            self._clouds[i] = points
        return self._clouds[i]

    def seen_from(
        self, stand: NDArray[np.float64], facing: int, i: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return how far ahead and how far to the left the centre of a thing is, (p,) each."""
        heading = self.objects[facing].centre[:2] - stand
        heading = heading / np.linalg.norm(heading, axis=1, keepdims=True)
        there = self.objects[i].centre[:2] - stand
        left = np.stack([-heading[:, 1], heading[:, 0]], axis=1)
        return (there * heading).sum(axis=1), (there * left).sum(axis=1)

    def is_blocked(
        self, start: NDArray[np.float64], end: NDArray[np.float64], but: Sequence[int]
    ) -> bool:
        """Whether one of 200 points between two (3,) points is inside a thing."""
        points = start + np.linspace(0, 1, 200)[:, None] * (end - start)
        return any(
            (np.abs(self.local(j, points)) <= self.objects[j].size / 2).all(axis=1).any()
            for j in range(len(self.objects))
            if j not in but
        )
