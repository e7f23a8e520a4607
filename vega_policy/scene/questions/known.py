"""What the generator knows of a scene: names, boxes, gaps and directions, with the margins asked for.

Boxes are taken as upright (`ObjectTruth.axes` ends with up), so that the distance of two boxes is that of
their footprints and that of their heights, at right angles.

Shape legend: ``n`` objects, ``s`` standpoints.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vega_policy.scene.questions.published import alone, several
from vega_policy.scene.questions.sentences import COLOURS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vega_policy.scene.truth import SceneTruth

GAP_M = 0.15
"""Least difference of two distances that are compared (VLM-3R); twice that in a large room."""
LARGE_ROOM_M2 = 40.0
BOUNDARY_DEG = 10.0
"""Least angle to the boundary between two directions (VLM-3R)."""
APART_M = 0.3
"""Least distance of things between which a direction is asked (VLM-3R)."""
SIGHT_DEG = 110.0
"""Nobody sees what is farther off the middle of what they look at."""
SHOWN = 0.002
"""Share of a frame that shows a thing well enough to be asked for."""
REACH_M = 0.4
"""How far from a thing somebody may be who stands by it."""
STEP_M = 0.1
"""Between standpoints."""


@dataclass(frozen=True, eq=False)
class Footprints:
    """Upright boxes as rectangles on the floor plan with heights."""

    corners: NDArray[np.float64]
    """(n, 4, 2) in order."""
    low: NDArray[np.float64]
    """(n,) lower end."""
    high: NDArray[np.float64]
    """(n,) upper end."""

    def gaps(self) -> NDArray[np.float64]:
        """Return (n, n) distances between the closest points of two boxes, 0 where they meet."""
        flat = rectangle_gaps(self.corners)
        steps = self.low[:, None] - self.high[None]
        return np.hypot(flat, np.maximum(np.maximum(steps, steps.T), 0.0))


def footprints(
    centre: NDArray[np.float64], size: NDArray[np.float64], axes: NDArray[np.float64]
) -> Footprints:
    """Return rectangles of (n, 3) centres, (n, 3) full sizes along (n, 3, 3) unit axes, the last up."""
    half = size / 2
    x, y = (half[:, k, None] * axes[:, k, :2] for k in (0, 1))
    offsets = np.stack([-x - y, x - y, x + y, -x + y], axis=1)
    return Footprints(
        corners=centre[:, None, :2] + offsets,
        low=centre[:, 2] - half[:, 2],
        high=centre[:, 2] + half[:, 2],
    )


def rectangle_gaps(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (n, n) distances of rectangles: of corners to sides, unless the rectangles meet."""
    n = len(corners)
    sides = np.roll(corners, -1, axis=1) - corners
    # (n, 4 corners, n, 4 sides)
    rel = corners[:, :, None, None] - corners[None, None]
    along = (rel * sides).sum(-1) / np.maximum((sides**2).sum(-1), 1e-12)
    away = rel - np.clip(along, 0, 1)[..., None] * sides
    near = np.hypot(away[..., 0], away[..., 1]).min(axis=(1, 3))
    normals = np.stack([-sides[..., 1], sides[..., 0]], axis=-1)[:, :2]
    lengths = np.maximum(np.linalg.norm(normals, axis=-1), 1e-12)
    # corners of object j along normals of object i: (i, 2, j, 4)
    on = np.einsum("iad,jcd->iajc", normals, corners) / lengths[:, :, None, None]
    own = on[np.arange(n), :, np.arange(n)]
    apart = (on.min(-1) > own.max(-1)[..., None]) | (on.max(-1) < own.min(-1)[..., None])
    parted = apart.any(axis=1)
    return np.where(parted | parted.T, np.minimum(near, near.T), 0.0)


def point_gaps(points: NDArray[np.float64], corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (s, n) distances of (s, 2) points from (n, 4, 2) rectangles, 0 inside."""
    middle = corners.mean(axis=1)
    sides = np.stack([corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 1]], axis=1)
    lengths = np.maximum(np.linalg.norm(sides, axis=-1), 1e-12)
    along = np.abs(np.einsum("snd,nkd->snk", points[:, None] - middle, sides / lengths[..., None]))
    return np.linalg.norm(np.maximum(along - lengths / 2, 0.0), axis=-1)


class Known:
    """One scene, as the generator sees it.

    Args:
        truth: What the renderer knows.
    """

    def __init__(self, truth: SceneTruth) -> None:
        self.truth = truth
        self.objects = truth.objects
        self.n = len(truth.objects)
        self.ids = [o.object_id for o in truth.objects]
        self.labels = [o.label for o in truth.objects]
        # A word outside the closed list could not be told from a class.
        self.colours = [o.colour if o.colour in COLOURS else "" for o in truth.objects]
        least = SHOWN * truth.image_px[0] * truth.image_px[1]
        self.shown = [bool(o.visible_px.max(initial=0) >= least) for o in truth.objects]
        self.centres = np.array([o.centre for o in truth.objects]).reshape(-1, 3)
        self.sizes = np.array([o.size for o in truth.objects]).reshape(-1, 3)
        axes = np.array([o.axes for o in truth.objects]).reshape(-1, 3, 3)
        self.prints = footprints(self.centres, self.sizes, axes)
        self.counts = Counter(self.labels)
        self.by_label: dict[str, list[int]] = {}
        for i, label in enumerate(self.labels):
            self.by_label.setdefault(label, []).append(i)
        self.clear = {
            # With a coffee table in the room, "the table" may be either.
            k: all(self.shown[i] for i in some)
            and not any(x.endswith(f" {k}") for x in self.by_label)
            for k, some in self.by_label.items()
        }
        """Whether a class can be asked for: all of it is shown, and no other class is a kind of it."""

    @property
    def margin_m(self) -> float:
        """Least difference of two distances that are compared."""
        area = self.truth.room_size_m2
        return GAP_M if area is None or area <= LARGE_ROOM_M2 else 2 * GAP_M

    @cached_property
    def gaps(self) -> NDArray[np.float64]:
        """(n, n) closest distances."""
        return self.prints.gaps()

    @cached_property
    def between_centres(self) -> NDArray[np.float64]:
        """(n, n) distances of centres."""
        return np.linalg.norm(self.centres[:, None] - self.centres[None], axis=-1)

    @cached_property
    def singles(self) -> list[int]:
        """Things that are the only one of their class, and are shown."""
        return [self.by_label[label][0] for label in alone(self.counts) if self.clear[label]]

    @cached_property
    def several(self) -> list[str]:
        """Classes with more than one, all of them shown."""
        return [label for label in several(self.counts) if self.clear[label]]

    @cached_property
    def names(self) -> dict[int, str]:
        """A noun phrase for each thing that one fits alone: its class, or colour word and class."""
        found: dict[int, str] = {}
        for label, some in self.by_label.items():
            if not self.clear[label]:
                continue
            if len(some) == 1:
                found[some[0]] = label
                continue
            colours = [self.colours[i] for i in some]
            if "" in colours:
                continue
            found |= {
                i: f"{c} {label}"
                for i, c in zip(some, colours, strict=True)
                if colours.count(c) == 1
            }
        return found

    def coloured(self, label: str) -> bool:
        """Whether every thing of a class has a colour word."""
        return all(self.colours[i] for i in self.by_label[label])

    @cached_property
    def carrier(self) -> list[int | None]:
        """Index of what carries each thing."""
        where = {object_id: i for i, object_id in enumerate(self.ids)}
        return [None if o.stands_on is None else where[o.stands_on] for o in self.objects]

    @cached_property
    def unclear(self) -> NDArray[np.bool_]:
        """(n, n) whether thing i may seem to be on thing j although it is not, or the reverse."""
        meets = rectangle_gaps(self.prints.corners) == 0
        low, high = self.prints.low, self.prints.high
        above = (low[:, None] > low[None] + 0.03) & (low[:, None] < high[None] + 0.06)
        seems = meets & above & ~np.eye(self.n, dtype=bool)
        is_on = np.zeros_like(seems)
        for i, carrier in enumerate(self.carrier):
            if carrier is not None:
                is_on[i, carrier] = True
        return seems != is_on

    def is_on_clear(self, things: Sequence[int], carriers: Sequence[int]) -> bool:
        """Whether it is beyond doubt which of some things are on which carriers."""
        return not self.unclear[np.ix_(list(things), list(carriers))].any()

    def nearest(self, some: Sequence[int], to: int, *, farthest: bool = False) -> int | None:
        """Return which of some things is closest to another, by closest points and by centres alike.

        None where one of them touches it, or the margin is not kept.
        """
        sign = -1 if farthest else 1
        gaps = sign * self.gaps[list(some), to]
        order = np.argsort(gaps)
        best, second = int(order[0]), int(order[1])
        centres = sign * self.between_centres[list(some), to]
        if (
            np.abs(gaps).min() < GAP_M
            or gaps[second] - gaps[best] < self.margin_m
            or np.delete(centres, best).min() < centres[best] + 0.05
        ):
            return None
        return some[best]

    def most(self, some: Sequence[int], what: str) -> int | None:
        """Return the ``biggest smallest tallest shortest`` of some things, or None where that is open.

        Big means more volume (by 3:2) and a longer longest side (by 10:9); tall means at least 0.05 m and a
        quarter taller.
        """
        sizes = self.sizes[list(some)]
        if what in ("biggest", "smallest"):
            keys = [
                np.log(sizes.prod(axis=1)) / np.log(1.5),
                np.log(sizes.max(axis=1)) / np.log(10 / 9),
            ]
        else:
            keys = [sizes[:, 2] / 0.05, np.log(sizes[:, 2]) / np.log(1.25)]
        sign = 1 if what in ("biggest", "tallest") else -1
        winners = {int(np.argmax(sign * key)) for key in keys}
        if len(winners) > 1:
            return None
        best = winners.pop()
        is_clear = all((sign * (key[best] - np.delete(key, best)) >= 1).all() for key in keys)
        return some[best] if is_clear else None

    def stands_low(self, i: int) -> bool:
        """Whether somebody can stand by it: it reaches down to the floor."""
        return self.truth.floor is not None and float(self.prints.low[i]) < 0.1

    def inside_floor(self, points: NDArray[np.float64], *, by_m: float = 0.0) -> NDArray[np.bool_]:
        """Return (s,) whether (s, 2) points are on the convex floor, ``by_m`` off its edges."""
        floor = self.truth.floor
        if floor is None:
            return np.zeros(len(points), dtype=bool)
        sides = np.roll(floor, -1, axis=0) - floor
        inward = np.stack([-sides[:, 1], sides[:, 0]], axis=-1)
        inward /= np.linalg.norm(inward, axis=1, keepdims=True)
        if np.sum((floor.mean(axis=0) - floor[0]) * inward[0]) < 0:
            inward = -inward
        off = np.einsum("skd,kd->sk", points[:, None] - floor[None], inward)
        return (off >= by_m).all(axis=1)

    def standpoints(self, by: int) -> NDArray[np.float64]:
        """Return (s, 2) places by a thing: a grid of all within reach of it, up to the walls."""
        floor = self.truth.floor
        if floor is None:
            return np.zeros((0, 2))
        plan = self.prints.corners[by]
        low = np.maximum(plan.min(axis=0) - REACH_M, floor.min(axis=0))
        high = np.minimum(plan.max(axis=0) + REACH_M, floor.max(axis=0))
        if (low > high).any():
            return np.zeros((0, 2))
        n = np.ceil((high - low) / STEP_M).astype(int) + 1
        x, y = (np.linspace(low[k], high[k], n[k]) for k in (0, 1))
        points = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
        off = point_gaps(points, plan[None])[:, 0]
        return points[(off > 0) & (off <= REACH_M) & self.inside_floor(points, by_m=-1e-9)]

    def is_free(self, points: NDArray[np.float64], *, by_m: float = 0.15) -> NDArray[np.bool_]:
        """Return (s,) whether somebody fits at (s, 2) points of the floor."""
        low = self.prints.corners[self.prints.low < 1.8]
        return self.inside_floor(points, by_m=by_m) & (point_gaps(points, low) > by_m).all(axis=1)


def bearings(
    stand: NDArray[np.float64], facing: NDArray[np.float64], to: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return angles in degrees from where one faces, left positive, in (-180, 180].

    Args:
        stand: (..., 2).
        facing: (..., 2) a point one looks at.
        to: (..., 2).
    """
    ahead, there = facing - stand, to - stand
    cross = ahead[..., 0] * there[..., 1] - ahead[..., 1] * there[..., 0]
    return np.degrees(np.arctan2(cross, (ahead * there).sum(-1)))


class View:
    """What is where for somebody who stands by one thing and faces another, wherever exactly they stand.

    Args:
        known: The scene.
        by: Index of what they stand by.
        facing: Index of what they face.
    """

    def __init__(self, known: Known, by: int, facing: int) -> None:
        self.known, self.by, self.facing = known, by, facing
        self.stand = known.standpoints(by)
        """(s, 2)."""
        target = known.centres[facing, :2]
        points = np.concatenate([known.centres[:, None, :2], known.prints.corners], axis=1)
        self.angles = bearings(self.stand[:, None, None], target, points[None])
        """(s, n, 5) bearings of centres and of corners."""
        self.off_m = point_gaps(self.stand, known.prints.corners)
        """(s, n) distances on the floor plan."""
        self.is_usable = bool(len(self.stand) >= 4 and self.off_m[:, facing].min() >= APART_M)

    def _is_within(self, i: int, low: float, high: float) -> bool:
        """Whether the centre is inside a range with the margin, and the corners are inside it."""
        if self.off_m[:, i].min() < APART_M:
            return False
        centre, all_points = self.angles[:, i, 0] % 360, self.angles[:, i] % 360
        is_margin_kept = (centre >= low + BOUNDARY_DEG) & (centre <= high - BOUNDARY_DEG)
        return bool(is_margin_kept.all() and ((all_points > low) & (all_points < high)).all())

    def half(self, i: int) -> str | None:
        """Return ``left`` or ``right``, or None where it is neither for sure."""
        if self._is_within(i, 0, 180):
            return "left"
        return "right" if self._is_within(i, 180, 360) else None

    def sector(self, i: int) -> str | None:
        """Return ``front left behind right``, each 90 degrees wide, or None."""
        for name, low in (("left", 45), ("behind", 135), ("right", 225)):
            if self._is_within(i, low, low + 90):
                return name
        return "front" if self._is_ahead(i, 45) else None

    def is_out_of_sight(self, i: int) -> bool:
        """Whether all of it is farther round than eyes see (110 degrees), its centre by the margin."""
        angles = np.abs(self.angles[:, i])
        is_margin_kept = (angles[:, 0] >= SIGHT_DEG + BOUNDARY_DEG).all()
        return bool(is_margin_kept and (angles > SIGHT_DEG).all())

    def holds(self, i: int, way: str) -> bool | None:
        """Say whether a thing is ``left``, ``right`` (half-planes) or ``behind`` (a quarter); None: open."""
        if way == "behind":
            if self._is_within(i, 135, 225):
                return True
            return False if self._is_ahead(i, 135) else None
        half = self.half(i)
        return None if half is None else half == way

    def _is_ahead(self, i: int, edge_deg: float) -> bool:
        if self.off_m[:, i].min() < APART_M:
            return False
        angles = np.abs(self.angles[:, i])
        return bool((angles[:, 0] <= edge_deg - BOUNDARY_DEG).all() and (angles < edge_deg).all())
