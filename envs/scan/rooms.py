"""Furnished rooms, each drawn from its seed, as plain MuJoCo scenes.

A room is a rectangle around the origin with its floor at z = 0. Nothing overlaps: two pieces are kept
apart on the floor plan wherever their heights meet.
"""
# pyright: basic

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from envs.scan import furniture
from envs.scan.furniture import Piece, Primitive, Rgb

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    Make = Callable[[np.random.Generator], Piece]

CAMERA = "scan"
_GAP_M = 0.04
_WALL_M = 0.1
_FULL = 0.36
"""Share of the floor that furniture may take before no more is brought in."""
_AT_WALL: tuple[tuple[Make, float], ...] = (
    (furniture.bed, 0.5),
    (furniture.sofa, 0.7),
    (furniture.desk, 0.8),
    (furniture.desk, 0.3),
    (furniture.bookshelf, 0.7),
    (furniture.bookshelf, 0.3),
    (furniture.cabinet, 0.7),
    (furniture.cabinet, 0.4),
    (furniture.nightstand, 0.4),
    (furniture.nightstand, 0.3),
    (furniture.refrigerator, 0.3),
)
"""What stands with its back to a wall, and how often a room has it."""
_ANYWHERE: tuple[tuple[Make, int], ...] = (
    (furniture.stool, 2),
    (furniture.box, 3),
    (furniture.trash_can, 2),
    (furniture.plant, 2),
    (furniture.floor_lamp, 2),
)
"""What stands anywhere, and the most a room has of it."""
_ON_TOP: dict[str, tuple[Make, ...]] = {
    "table": (furniture.book, furniture.cup, furniture.small_box, furniture.small_plant),
    "coffee table": (furniture.book, furniture.cup),
    "desk": (furniture.monitor, furniture.book, furniture.cup, furniture.table_lamp),
    "cabinet": (furniture.table_lamp, furniture.small_plant, furniture.small_box, furniture.book),
    "nightstand": (furniture.table_lamp, furniture.cup, furniture.book),
    "bed": (furniture.pillow, furniture.pillow),
    "sofa": (furniture.pillow,),
}


@dataclass(frozen=True)
class Placed:
    """A piece and where it stands."""

    piece: Piece
    x: float
    y: float
    z: float = 0.0
    yaw: float = 0.0
    """Radians from +x to where the piece faces."""
    stands_on: int | None = None
    """Index of its carrier in the room."""

    @cached_property
    def corners(self) -> NDArray[np.float64]:
        """(4, 2) of the bounding rectangle on the floor plan, in order."""
        low, high = self.piece.low, self.piece.high
        local = np.array(
            [[low[0], low[1]], [high[0], low[1]], [high[0], high[1]], [low[0], high[1]]]
        )
        c, s = np.cos(self.yaw), np.sin(self.yaw)
        return local @ np.array([[c, s], [-s, c]]) + [self.x, self.y]

    @cached_property
    def heights(self) -> tuple[float, float]:
        """Lower and upper end."""
        return self.z + float(self.piece.low[2]), self.z + float(self.piece.high[2])


@dataclass(frozen=True)
class Room:
    """A furnished room."""

    size: tuple[float, float, float]
    """Inner length, width and height in metres."""
    things: tuple[Placed, ...]
    wall: Rgb
    floor: tuple[Rgb, Rgb]

    @property
    def floor_corners(self) -> NDArray[np.float64]:
        """(4, 2) of the floor, in order."""
        return np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * np.array(self.size[:2]) / 2


def furnish(seed: Sequence[int]) -> Room:
    """Draw a room.

    Args:
        seed: Whole numbers; the same ones give the same room.
    """
    rng = np.random.default_rng(list(seed))
    size = (rng.uniform(3.2, 6.2), rng.uniform(3.0, 5.4), rng.uniform(2.4, 2.8))
    layout = _Layout(rng, size)
    layout.hang(furniture.door, keep_free_m=0.7)
    for make, most in ((furniture.window, 2), (furniture.picture, 3)):
        for _ in range(int(rng.integers(0, most + 1))):
            layout.hang(make)
    for make, share in _AT_WALL:
        if rng.random() < share:
            layout.put_at_wall(make)
    for make in (furniture.table, furniture.coffee_table, furniture.table):
        if rng.random() < 0.6:
            layout.put_anywhere(make)
    for seat in [t for t in layout.things if t.piece.label in ("desk", "table")]:
        for _ in range(1 if seat.piece.label == "desk" else int(rng.integers(1, 5))):
            layout.put_chair(seat)
    if rng.random() < 0.3:
        layout.put_anywhere(furniture.chair)
    for make, most in _ANYWHERE:
        for _ in range(int(rng.integers(0, most + 1))):
            layout.put_anywhere(make)
    for carrier in range(len(layout.things)):
        layout.load(carrier)
    wall = rng.uniform(0.72, 0.92) * np.array([1.0, rng.uniform(0.9, 1), rng.uniform(0.8, 1)])
    tone = rng.uniform(0.35, 0.65) * np.array([1.0, rng.uniform(0.8, 1), rng.uniform(0.55, 0.9)])
    return Room(
        size=size,
        things=tuple(layout.things),
        wall=_rgb(wall),
        floor=(_rgb(tone), _rgb(tone * rng.uniform(0.8, 0.92))),
    )


def overlap(a: Placed, b: Placed, *, gap_m: float = _GAP_M) -> bool:
    """Say whether two pieces meet, or come closer on the floor plan than ``gap_m``."""
    (low_a, high_a), (low_b, high_b) = a.heights, b.heights
    if low_a >= high_b or low_b >= high_a:
        return False
    return not _are_apart(a.corners, b.corners, gap_m)


def _are_apart(a: NDArray[np.float64], b: NDArray[np.float64], gap_m: float) -> bool:
    """Look for a side of one rectangle that parts it from the other."""
    for corners in (a, b):
        for k in range(2):
            edge = corners[k + 1] - corners[k]
            normal = np.array([-edge[1], edge[0]]) / np.hypot(*edge)
            on_a, on_b = a @ normal, b @ normal
            if on_a.min() > on_b.max() + gap_m or on_b.min() > on_a.max() + gap_m:
                return True
    return False


class _Layout:
    """A room while it is being furnished."""

    def __init__(self, rng: np.random.Generator, size: tuple[float, float, float]) -> None:
        self._rng, self._size = rng, size
        self.things: list[Placed] = []
        self._kept_free: list[Placed] = []

    def hang(self, make: Make, *, keep_free_m: float = 0.0) -> None:
        """Hang a piece on a wall; the floor ``keep_free_m`` in front of it stays empty."""
        piece = make(self._rng)
        for _ in range(20):
            thing = self._against_wall(piece, gap_m=0.0)
            if self._fits(thing):
                self.things.append(thing)
                if keep_free_m:
                    depth = float(piece.high[0]) + keep_free_m
                    half = (depth / 2, float(piece.high[1]), 1.0)
                    block = Primitive("box", half, (depth / 2, 0.0, 1.0), (0, 0, 0))
                    self._kept_free.append(replace(thing, piece=Piece("", "", (block,))))
                return

    def put_at_wall(self, make: Make) -> None:
        """Stand a piece with its back to a wall."""
        piece = make(self._rng)
        self._try(lambda: self._against_wall(piece, gap_m=self._rng.uniform(0.01, 0.06)))

    def put_anywhere(self, make: Make) -> None:
        """Stand a piece anywhere."""
        piece = make(self._rng)

        def draw() -> Placed:
            x, y = (self._rng.uniform(-s / 2, s / 2) for s in self._size[:2])
            right = self._rng.integers(0, 4) * np.pi / 2
            is_straight = self._rng.random() < 0.5
            return Placed(
                piece, x, y, yaw=right if is_straight else self._rng.uniform(-np.pi, np.pi)
            )

        self._try(draw)

    def put_chair(self, at: Placed) -> None:
        """Stand a chair before a desk, or at a side of a table."""
        piece = furniture.chair(self._rng)

        def draw() -> Placed:
            side = 0 if at.piece.label == "desk" else int(self._rng.integers(0, 4))
            way = at.yaw + side * np.pi / 2
            reach = (at.piece.high[side % 2] + piece.high[0]) + self._rng.uniform(0.06, 0.15)
            across = self._rng.uniform(-0.3, 0.3)
            c, s = np.cos(way), np.sin(way)
            x, y = at.x + c * reach - s * across, at.y + s * reach + c * across
            return Placed(piece, x, y, yaw=way + np.pi + self._rng.normal(0, 0.15))

        self._try(draw)

    def load(self, carrier: int) -> None:
        """Put small things onto the carrier."""
        under = self.things[carrier]
        if under.piece.top is None:
            return
        half_x, half_y, height = under.piece.top
        for make in _ON_TOP[under.piece.label]:
            if self._rng.random() < 0.5:
                continue
            piece = make(self._rng)
            turn = self._rng.normal(0, 0.25)
            reach = float(np.hypot(*np.maximum(np.abs(piece.low), np.abs(piece.high))[:2]))
            room_x, room_y = half_x - reach, half_y - reach
            if min(room_x, room_y) < 0:
                continue
            for _ in range(10):
                dx, dy = self._rng.uniform(-room_x, room_x), self._rng.uniform(-room_y, room_y)
                c, s = np.cos(under.yaw), np.sin(under.yaw)
                thing = Placed(
                    piece,
                    under.x + c * dx - s * dy,
                    under.y + s * dx + c * dy,
                    z=under.z + height,
                    yaw=under.yaw + turn,
                    stands_on=carrier,
                )
                if self._fits(thing, beside=under):
                    self.things.append(thing)
                    break

    def _against_wall(self, piece: Piece, *, gap_m: float) -> Placed:
        wall = int(self._rng.integers(0, 4))
        yaw = wall * np.pi / 2
        inward = np.array([np.cos(yaw), np.sin(yaw)])
        along = np.array([-inward[1], inward[0]])
        depth, length = self._size[wall % 2], self._size[1 - wall % 2]
        free = max(length / 2 - float(piece.high[1]) - 0.03, 0.0)
        x, y = inward * (-depth / 2 + gap_m - float(piece.low[0])) + along * self._rng.uniform(
            -free, free
        )
        return Placed(piece, float(x), float(y), yaw=yaw)

    def _try(self, draw: Callable[[], Placed]) -> None:
        taken = sum(_area(t) for t in self.things if t.heights[0] < 0.1)
        if taken > _FULL * self._size[0] * self._size[1]:
            return
        for _ in range(15):
            thing = draw()
            if self._fits(thing):
                self.things.append(thing)
                return

    def _fits(self, thing: Placed, *, beside: Placed | None = None) -> bool:
        """Say whether a piece is inside the room and clear of all others.

        Args:
            thing: The piece.
            beside: Its carrier, whose box it may share (pillows lie lower than the back of a sofa).
        """
        half = np.array(self._size[:2]) / 2 + 1e-6
        if (np.abs(thing.corners) > half).any() or thing.heights[1] > self._size[2]:
            return False
        others = [*self.things, *self._kept_free]
        return not any(overlap(thing, other) for other in others if other is not beside)


def _area(thing: Placed) -> float:
    extent = thing.piece.high - thing.piece.low
    return float(extent[0] * extent[1])


def _rgb(values: NDArray[np.float64]) -> Rgb:
    red, green, blue = np.clip(values, 0, 1)
    return (float(red), float(green), float(blue))


# -- MJCF --------------------------------------------------------------------------------------------


def mjcf(room: Room) -> str:
    """Write the room as a MuJoCo scene; body ``object<k>`` is the room's thing ``k``."""
    x, y, z = (s / 2 for s in room.size)
    t = _WALL_M / 2
    sides = (
        ((x + 2 * t, y + 2 * t, t), (0, 0, -t), 'material="floor"'),
        ((x + 2 * t, y + 2 * t, t), (0, 0, 2 * z + t), 'rgba="0.95 0.95 0.95 1"'),
        *(((t, y, z), (k * (x + t), 0, z), f'rgba="{_text(room.wall)} 1"') for k in (-1, 1)),
        *(((x, t, z), (0, k * (y + t), z), f'rgba="{_text(room.wall)} 1"') for k in (-1, 1)),
    )
    shell = "".join(
        f'<geom type="box" group="1" size="{_text(size)}" pos="{_text(at)}" {look}/>\n'
        for size, at, look in sides
    )
    bodies = "".join(_body(k, thing) for k, thing in enumerate(room.things))
    light, dark = room.floor
    return f"""<mujoco model="room">
<compiler angle="radian"/>
<visual>
 <headlight ambient="0.45 0.45 0.45" diffuse="0.15 0.15 0.15" specular="0 0 0"/>
 <map znear="0.01" zfar="5"/>
 <quality shadowsize="0" numslices="20" numstacks="10"/>
</visual>
<statistic extent="5" center="0 0 1"/>
<asset>
 <texture name="floor" type="2d" builtin="checker" rgb1="{_text(light)}" rgb2="{_text(dark)}"
  width="64" height="64"/>
 <material name="floor" texture="floor" texuniform="true" texrepeat="2 2" specular="0"/>
</asset>
<default><geom contype="0" conaffinity="0"/></default>
<worldbody>
<light pos="{_text((x * 0.4, -y * 0.3, 2 * z - 0.2))}" dir="0 0 -1" cutoff="180" exponent="0"
 diffuse="0.5 0.5 0.5" specular="0 0 0" castshadow="false"/>
<camera name="{CAMERA}" pos="0 0 1"/>
{shell}{bodies}</worldbody>
</mujoco>
"""


def _body(k: int, thing: Placed) -> str:
    geoms = "".join(
        f'<geom type="{s.kind}" group="1" size="{_text(_size(s))}" pos="{_text(s.centre)}" '
        f'rgba="{_text(s.rgb)} 1"/>\n'
        for s in thing.piece.shapes
    )
    place = _text((thing.x, thing.y, thing.z))
    return f'<body name="object{k}" pos="{place}" euler="0 0 {thing.yaw:.17g}">\n{geoms}</body>\n'


def _size(shape: Primitive) -> tuple[float, ...]:
    return (shape.half[0], shape.half[2]) if shape.kind == "cylinder" else shape.half


def _text(numbers: Sequence[float]) -> str:
    return " ".join(f"{float(n):.17g}" for n in numbers)
