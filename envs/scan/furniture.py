"""Furniture made of primitives.

A piece stands with its origin on the floor, faces along +x and has z up. Its colour word is the colour of
nearly all of its surface.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Rgb = tuple[float, float, float]
COLOURS: dict[str, Rgb] = {
    "red": (0.80, 0.10, 0.10),
    "orange": (0.95, 0.50, 0.08),
    "yellow": (0.95, 0.85, 0.15),
    "green": (0.12, 0.55, 0.20),
    "blue": (0.12, 0.25, 0.80),
    "purple": (0.45, 0.15, 0.60),
    "pink": (0.95, 0.55, 0.70),
    "brown": (0.42, 0.26, 0.13),
    "white": (0.92, 0.92, 0.90),
    "black": (0.07, 0.07, 0.08),
    "gray": (0.40, 0.40, 0.42),
}
"""Far enough apart to stay distinct under the rooms' light."""
_WOOD = ("brown", "white", "black", "gray")
_METAL: Rgb = (0.62, 0.63, 0.66)


@dataclass(frozen=True)
class Primitive:
    """One shape of a piece."""

    kind: Literal["box", "cylinder", "ellipsoid"]
    half: tuple[float, float, float]
    """Half sizes along x, y, z in metres; a cylinder is upright and as deep as wide."""
    centre: tuple[float, float, float]
    rgb: Rgb


@dataclass(frozen=True)
class Piece:
    """One piece of furniture, not yet placed."""

    label: str
    colour: str
    shapes: tuple[Primitive, ...]
    top: tuple[float, float, float] | None = None
    """Half sizes x, y and the height of a plane that carries things; None if there is none."""

    @cached_property
    def low(self) -> NDArray[np.float64]:
        """(3,) least coordinate of all shapes."""
        return np.min([np.subtract(s.centre, s.half) for s in self.shapes], axis=0)

    @cached_property
    def high(self) -> NDArray[np.float64]:
        """(3,) greatest coordinate of all shapes."""
        return np.max([np.add(s.centre, s.half) for s in self.shapes], axis=0)


def chair(rng: np.random.Generator) -> Piece:
    """A seat on four legs with a back."""
    name, rgb = _colour(rng)
    w, seat, back = rng.uniform(0.40, 0.50), rng.uniform(0.42, 0.48), rng.uniform(0.80, 1.00)
    half = w / 2
    return Piece(
        "chair",
        name,
        (
            _box(half, half, 0.03, at=(0, 0, seat - 0.03), rgb=rgb),
            _box(0.025, half, (back - seat) / 2, at=(-half + 0.025, 0, (back + seat) / 2), rgb=rgb),
            *_legs(half, half, seat - 0.06, 0.02, _darker(rgb)),
        ),
    )


def stool(rng: np.random.Generator) -> Piece:
    """A round seat on a post."""
    name, rgb = _colour(rng)
    r, h = rng.uniform(0.15, 0.20), rng.uniform(0.42, 0.65)
    return Piece(
        "stool",
        name,
        (
            _tube(r, 0.035, at=(0, 0, h - 0.035), rgb=rgb),
            _tube(0.04, h / 2 - 0.045, at=(0, 0, h / 2 - 0.025), rgb=_darker(rgb)),
            _tube(r * 0.9, 0.01, at=(0, 0, 0.01), rgb=_darker(rgb)),
        ),
    )


def table(rng: np.random.Generator) -> Piece:
    """A rectangular or round table."""
    name, rgb = _colour(rng, (*_WOOD, "blue", "green", "red"))
    h = rng.uniform(0.68, 0.76)
    if rng.random() < 0.35:
        r = rng.uniform(0.40, 0.60)
        shapes = (
            _tube(r, 0.02, at=(0, 0, h - 0.02), rgb=rgb),
            _tube(0.06, h / 2 - 0.03, at=(0, 0, h / 2 - 0.01), rgb=_darker(rgb)),
            _tube(r * 0.5, 0.01, at=(0, 0, 0.01), rgb=_darker(rgb)),
        )
        return Piece("table", name, shapes, top=(r * 0.7, r * 0.7, h))
    x, y = rng.uniform(0.30, 0.45), rng.uniform(0.45, 0.80)
    shapes = (
        _box(x, y, 0.02, at=(0, 0, h - 0.02), rgb=rgb),
        *_legs(x, y, h - 0.04, 0.03, _darker(rgb)),
    )
    return Piece("table", name, shapes, top=(x, y, h))


def coffee_table(rng: np.random.Generator) -> Piece:
    """A low table with a shelf."""
    name, rgb = _colour(rng, _WOOD)
    x, y, h = rng.uniform(0.25, 0.35), rng.uniform(0.35, 0.55), rng.uniform(0.35, 0.45)
    shapes = (
        _box(x, y, 0.02, at=(0, 0, h - 0.02), rgb=rgb),
        _box(x - 0.04, y - 0.04, 0.01, at=(0, 0, 0.14), rgb=rgb),
        *_legs(x, y, h - 0.04, 0.025, _darker(rgb)),
    )
    return Piece("coffee table", name, shapes, top=(x, y, h))


def desk(rng: np.random.Generator) -> Piece:
    """A desk with side panels, open to the front."""
    name, rgb = _colour(rng, _WOOD)
    x, y, h = rng.uniform(0.28, 0.36), rng.uniform(0.50, 0.75), rng.uniform(0.70, 0.76)
    leg = (h - 0.03) / 2
    shapes = (
        _box(x, y, 0.015, at=(0, 0, h - 0.015), rgb=rgb),
        _box(x, 0.015, leg, at=(0, y - 0.015, leg), rgb=rgb),
        _box(x, 0.015, leg, at=(0, -y + 0.015, leg), rgb=rgb),
        _box(0.01, y, 0.15, at=(-x + 0.01, 0, h - 0.18), rgb=_darker(rgb)),
    )
    return Piece("desk", name, shapes, top=(x, y, h))


def sofa(rng: np.random.Generator) -> Piece:
    """A seat with back, arms and cushions."""
    name, rgb = _colour(rng)
    x, y = rng.uniform(0.40, 0.48), rng.uniform(0.65, 1.05)
    n = 2 if y < 0.85 else 3
    wide = (y - 0.15) / n
    cushions = (
        _box(x - 0.11, wide - 0.01, 0.06, at=(0.1, (2 * k + 1 - n) * wide, 0.37), rgb=rgb)
        for k in range(n)
    )
    shapes = (
        _box(x, y, 0.14, at=(0, 0, 0.17), rgb=_darker(rgb)),
        *cushions,
        _box(0.1, y, 0.27, at=(-x + 0.1, 0, 0.56), rgb=rgb),
        _box(x, 0.075, 0.30, at=(0, y - 0.075, 0.31), rgb=rgb),
        _box(x, 0.075, 0.30, at=(0, -y + 0.075, 0.31), rgb=rgb),
        *_legs(x, y, 0.03, 0.03, _METAL),
    )
    return Piece("sofa", name, shapes, top=(x - 0.14, y - 0.2, 0.43))


def bed(rng: np.random.Generator) -> Piece:
    """A mattress with a blanket on a frame, with a head board."""
    name, rgb = _colour(rng)
    x, y, h = rng.uniform(0.95, 1.03), rng.uniform(0.45, 0.75), rng.uniform(0.42, 0.52)
    shapes = (
        _box(x, y, 0.10, at=(0, 0, 0.16), rgb=_darker(rgb)),
        _box(x - 0.03, y - 0.01, (h - 0.26) / 2, at=(0, 0, (h + 0.26) / 2), rgb=rgb),
        _box(0.03, y, 0.25, at=(-x + 0.03, 0, h + 0.1), rgb=_darker(rgb)),
        *_legs(x, y, 0.06, 0.03, _METAL),
    )
    return Piece("bed", name, shapes, top=(x - 0.1, y - 0.05, h))


def bookshelf(rng: np.random.Generator) -> Piece:
    """An open shelf as tall as a person."""
    name, rgb = _colour(rng, (*_WOOD, "green", "blue"))
    x, y, h = rng.uniform(0.13, 0.18), rng.uniform(0.30, 0.55), rng.uniform(1.40, 1.95)
    n = int(rng.integers(4, 6))
    shelves = (
        _box(x, y, 0.012, at=(0, 0, 0.012 + k * (h - 0.024) / n), rgb=rgb) for k in range(n + 1)
    )
    shapes = (
        *shelves,
        _box(0.01, y, h / 2, at=(-x + 0.01, 0, h / 2), rgb=_darker(rgb)),
        _box(x, 0.012, h / 2, at=(0, y - 0.012, h / 2), rgb=rgb),
        _box(x, 0.012, h / 2, at=(0, -y + 0.012, h / 2), rgb=rgb),
    )
    return Piece("bookshelf", name, shapes)


def cabinet(rng: np.random.Generator) -> Piece:
    """A chest with two doors."""
    return _chest(rng, "cabinet", x=(0.18, 0.28), y=(0.35, 0.60), h=(0.75, 1.10))


def nightstand(rng: np.random.Generator) -> Piece:
    """A small chest."""
    return _chest(rng, "nightstand", x=(0.17, 0.22), y=(0.18, 0.25), h=(0.45, 0.60))


def refrigerator(rng: np.random.Generator) -> Piece:
    """A tall box with two doors and handles."""
    name, rgb = _colour(rng, ("white", "gray", "black", "red"))
    x, y, h = rng.uniform(0.28, 0.34), rng.uniform(0.28, 0.36), rng.uniform(1.55, 1.85)
    split = h * 0.68
    shapes = (
        _box(x - 0.02, y, h / 2, at=(-0.02, 0, h / 2), rgb=_darker(rgb)),
        _box(0.02, y, split / 2 - 0.01, at=(x - 0.02, 0, split / 2), rgb=rgb),
        _box(0.02, y, (h - split) / 2 - 0.01, at=(x - 0.02, 0, (h + split) / 2), rgb=rgb),
        _box(0.015, 0.015, 0.2, at=(x + 0.015, y - 0.07, split - 0.3), rgb=_METAL),
        _box(0.015, 0.015, 0.12, at=(x + 0.015, y - 0.07, split + 0.2), rgb=_METAL),
    )
    return Piece("refrigerator", name, shapes)


def floor_lamp(rng: np.random.Generator) -> Piece:
    """A lamp on a pole."""
    return _lamp(rng, h=(1.35, 1.65), r=(0.16, 0.22), shade=0.16)


def table_lamp(rng: np.random.Generator) -> Piece:
    """A lamp that stands on furniture."""
    return _lamp(rng, h=(0.38, 0.48), r=(0.10, 0.13), shade=0.10)


def box(rng: np.random.Generator) -> Piece:
    """A parcel for the floor."""
    return _parcel(rng, least=0.12, most=0.26)


def small_box(rng: np.random.Generator) -> Piece:
    """A parcel for a table."""
    return _parcel(rng, least=0.07, most=0.11)


def trash_can(rng: np.random.Generator) -> Piece:
    """An upright bin with a rim."""
    name, rgb = _colour(rng)
    r, h = rng.uniform(0.13, 0.18), rng.uniform(0.30, 0.45)
    shapes = (
        _tube(r * 0.93, h / 2, at=(0, 0, h / 2), rgb=rgb),
        _tube(r, 0.015, at=(0, 0, h - 0.01), rgb=_darker(rgb)),
    )
    return Piece("trash can", name, shapes)


def plant(rng: np.random.Generator) -> Piece:
    """Leaves above a pot."""
    return _plant(rng, r=(0.12, 0.17), pot=(0.22, 0.32), leaves=(0.20, 0.30))


def small_plant(rng: np.random.Generator) -> Piece:
    """A plant for a table."""
    return _plant(rng, r=(0.06, 0.08), pot=(0.08, 0.12), leaves=(0.09, 0.12))


def monitor(rng: np.random.Generator) -> Piece:
    """A screen on a foot."""
    y, h = rng.uniform(0.22, 0.32), rng.uniform(0.15, 0.19)
    rgb = COLOURS["black"]
    shapes = (
        _box(0.02, y, h, at=(0, 0, h + 0.1), rgb=rgb),
        _box(0.02, 0.02, 0.05, at=(-0.02, 0, 0.06), rgb=rgb),
        _box(0.08, 0.12, 0.006, at=(0, 0, 0.006), rgb=rgb),
    )
    return Piece("monitor", "black", shapes)


def book(rng: np.random.Generator) -> Piece:
    """A book that lies."""
    name, rgb = _colour(rng)
    x, y, z = rng.uniform(0.09, 0.12), rng.uniform(0.07, 0.09), rng.uniform(0.015, 0.03)
    return Piece("book", name, (_box(x, y, z, at=(0, 0, z), rgb=rgb),))


def cup(rng: np.random.Generator) -> Piece:
    """A mug with a handle."""
    name, rgb = _colour(rng)
    r, h = rng.uniform(0.04, 0.05), rng.uniform(0.10, 0.13)
    shapes = (
        _tube(r, h / 2, at=(0, 0, h / 2), rgb=rgb),
        _box(0.012, 0.008, h * 0.3, at=(r + 0.012, 0, h / 2), rgb=rgb),
    )
    return Piece("cup", name, shapes)


def pillow(rng: np.random.Generator) -> Piece:
    """A cushion that lies on a bed or sofa."""
    name, rgb = _colour(rng)
    x, y, z = rng.uniform(0.15, 0.19), rng.uniform(0.20, 0.26), rng.uniform(0.06, 0.08)
    return Piece("pillow", name, (Primitive("ellipsoid", (x, y, z), (0, 0, z), rgb),))


def door(rng: np.random.Generator) -> Piece:
    """A closed door in its frame."""
    name, rgb = _colour(rng, ("brown", "white", "gray", "blue", "green"))
    y = rng.uniform(0.40, 0.46)
    shapes = (
        _box(0.02, y, 1.0, at=(0.02, 0, 1.0), rgb=rgb),
        _box(0.03, 0.04, 1.02, at=(0.03, y + 0.04, 1.02), rgb=_darker(rgb)),
        _box(0.03, 0.04, 1.02, at=(0.03, -y - 0.04, 1.02), rgb=_darker(rgb)),
        _box(0.03, y, 0.02, at=(0.03, 0, 2.02), rgb=_darker(rgb)),
        _box(0.02, 0.05, 0.01, at=(0.06, y - 0.1, 1.02), rgb=_METAL),
    )
    return Piece("door", name, shapes)


def window(rng: np.random.Generator) -> Piece:
    """A frame around four panes of sky; no colour word fits."""
    y, z, low = rng.uniform(0.35, 0.60), rng.uniform(0.40, 0.50), rng.uniform(0.95, 1.10)
    frame, sky = COLOURS["white"], (0.55, 0.75, 0.95)
    middle = low + z
    shapes = (
        _box(0.01, y - 0.02, z - 0.02, at=(0.01, 0, middle), rgb=sky),
        *(_box(0.02, 0.025, z, at=(0.02, s * (y - 0.025), middle), rgb=frame) for s in (-1, 0, 1)),
        *(
            _box(0.02, y, 0.025, at=(0.02, 0, middle + s * (z - 0.025)), rgb=frame)
            for s in (-1, 0, 1)
        ),
    )
    return Piece("window", "", shapes)


def picture(rng: np.random.Generator) -> Piece:
    """A canvas of one colour in a thin frame."""
    name, rgb = _colour(rng)
    y, z = rng.uniform(0.22, 0.40), rng.uniform(0.18, 0.30)
    shapes = (
        _box(0.012, y, z, at=(0.012, 0, 1.5), rgb=_darker(rgb)),
        _box(0.005, y - 0.02, z - 0.02, at=(0.025, 0, 1.5), rgb=rgb),
    )
    return Piece("picture", name, shapes)


def _colour(rng: np.random.Generator, names: tuple[str, ...] = tuple(COLOURS)) -> tuple[str, Rgb]:
    """Draw a colour word and a shade of it."""
    name = str(rng.choice(names))
    red, green, blue = np.clip(np.array(COLOURS[name]) + rng.uniform(-0.03, 0.03, 3), 0, 1)
    return name, (float(red), float(green), float(blue))


def _darker(rgb: Rgb) -> Rgb:
    return (rgb[0] * 0.8, rgb[1] * 0.8, rgb[2] * 0.8)


def _box(x: float, y: float, z: float, *, at: tuple[float, float, float], rgb: Rgb) -> Primitive:
    return Primitive("box", (x, y, z), at, rgb)


def _tube(r: float, z: float, *, at: tuple[float, float, float], rgb: Rgb) -> Primitive:
    return Primitive("cylinder", (r, r, z), at, rgb)


def _legs(x: float, y: float, height: float, half: float, rgb: Rgb) -> tuple[Primitive, ...]:
    """Four legs at the corners of a plane of half sizes x, y."""
    return tuple(
        _box(half, half, height / 2, at=(i * (x - half), j * (y - half), height / 2), rgb=rgb)
        for i in (-1, 1)
        for j in (-1, 1)
    )


def _chest(
    rng: np.random.Generator,
    label: str,
    *,
    x: tuple[float, float],
    y: tuple[float, float],
    h: tuple[float, float],
) -> Piece:
    name, rgb = _colour(rng, (*_WOOD, "yellow", "red", "blue"))
    dx, dy, dz = rng.uniform(*x), rng.uniform(*y), rng.uniform(*h)
    front = dy / 2
    doors = (
        _box(0.01, front - 0.01, dz / 2 - 0.04, at=(dx - 0.01, s * front, dz / 2), rgb=rgb)
        for s in (-1, 1)
    )
    knobs = (
        _box(0.01, 0.012, 0.03, at=(dx + 0.01, s * 0.05, dz * 0.6), rgb=_METAL) for s in (-1, 1)
    )
    body = _box(dx - 0.01, dy, dz / 2, at=(-0.01, 0, dz / 2), rgb=_darker(rgb))
    return Piece(label, name, (body, *doors, *knobs), top=(dx - 0.02, dy, dz))


def _lamp(
    rng: np.random.Generator, *, h: tuple[float, float], r: tuple[float, float], shade: float
) -> Piece:
    name, rgb = _colour(rng, tuple(c for c in COLOURS if c != "gray"))
    height, radius = rng.uniform(*h), rng.uniform(*r)
    pole = height - 2 * shade
    shapes = (
        _tube(radius, shade, at=(0, 0, height - shade), rgb=rgb),
        _tube(0.015, pole / 2, at=(0, 0, pole / 2), rgb=_darker(rgb)),
        _tube(radius * 0.8, 0.012, at=(0, 0, 0.012), rgb=_darker(rgb)),
    )
    return Piece("lamp", name, shapes)


def _parcel(rng: np.random.Generator, *, least: float, most: float) -> Piece:
    name, rgb = _colour(rng)
    x, y, z = rng.uniform(least, most, 3)
    shapes = (
        _box(x, y, z, at=(0, 0, z), rgb=rgb),
        _box(x + 0.002, 0.02, z, at=(0, 0, z + 0.002), rgb=_darker(rgb)),
    )
    return Piece("box", name, shapes)


def _plant(
    rng: np.random.Generator,
    *,
    r: tuple[float, float],
    pot: tuple[float, float],
    leaves: tuple[float, float],
) -> Piece:
    shade = COLOURS["green"]
    radius, height, leaf = rng.uniform(*r), rng.uniform(*pot), rng.uniform(*leaves)
    low = height + leaf * 0.9
    tufts = [
        (0.0, 0.0, low),
        *((leaf * 0.5 * i, leaf * 0.5 * j, low) for i in (-1, 1) for j in (-1, 1)),
    ]
    shapes = (
        _tube(radius, height / 2, at=(0, 0, height / 2), rgb=_darker(_darker(COLOURS["brown"]))),
        *(Primitive("ellipsoid", (leaf * 0.7, leaf * 0.7, leaf), t, shade) for t in tufts),
    )
    return Piece("plant", "green", shapes)
