"""Furnished rooms with the truth a renderer would write, but for the pixels: those are drawn."""

import numpy as np
import pytest

from envs.scan.rooms import furnish
from vega_policy.scene.questions.generate import generate
from vega_policy.scene.truth import ObjectTruth, SceneTruth

FRAMES = 24
ROOMS = (0, 1, 2, 3, 4, 5, 26, 53)
"""The last two have two pillows on a bed."""


def room(k):
    """Return room ``k``; each object comes into view at some frame and is seen well soon or at once."""
    drawn = furnish((11, k))
    rng = np.random.default_rng([11, k])
    objects = []
    for i, thing in enumerate(drawn.things):
        piece, (c, s) = thing.piece, (np.cos(thing.yaw), np.sin(thing.yaw))
        axes = np.array([[c, s, 0], [-s, c, 0], [0, 0, 1.0]])
        middle, size = (piece.low + piece.high) / 2, piece.high - piece.low
        centre = middle @ axes + [thing.x, thing.y, thing.z]
        reach = np.abs(axes.T) @ size
        first = int(rng.integers(0, FRAMES - 2))
        seen = np.where(np.arange(FRAMES) < first, 0, rng.integers(100, 900, FRAMES))
        seen[first] = rng.choice([10, 400])
        objects.append(
            ObjectTruth(
                object_id=i,
                label=piece.label,
                colour=piece.colour,
                box=np.concatenate([centre, reach]),
                centre=centre,
                size=size,
                axes=axes,
                visible_px=seen,
                stands_on=thing.stands_on,
            )
        )
    return SceneTruth(
        scene_id=f"room{k:04d}_11",
        dataset="rooms",
        objects=tuple(objects),
        frames=tuple(range(FRAMES)),
        poses=np.tile(np.eye(4), (FRAMES, 1, 1)),
        image_px=(160, 120),
        intrinsics=np.eye(3),
        floor=drawn.floor_corners,
    )


@pytest.fixture(scope="session")
def rooms():
    return [room(k) for k in ROOMS]


@pytest.fixture(scope="session")
def labels(rooms):
    return sorted({o.label for truth in rooms for o in truth.objects})


@pytest.fixture(scope="session")
def asked(rooms, labels):
    """(row, truth) of each task, over all rooms."""
    found = {}
    for truth in rooms:
        for task, rows in generate(truth, labels=labels).items():
            found.setdefault(task, []).extend((row, truth) for row in rows)
    return found
