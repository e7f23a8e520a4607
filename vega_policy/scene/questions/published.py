"""What VSI-Bench's rules ask about the scenes it was made from, to be held against its published counts.

The functions here decide for the generator too, which leaves out what is not beyond doubt besides.
"""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from vega_policy.scene.truth import ObjectTruth, SceneTruth

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vega_policy.scene.readers.vsi_bench import VsiScene

LEAST_M = 0.2
"""No distance below this is asked."""


def several(counts: Mapping[str, int]) -> list[str]:
    """Return the classes whose members are counted: those with more than one."""
    return [label for label, n in counts.items() if n > 1]


def alone(counts: Mapping[str, int]) -> list[str]:
    """Return the classes that name a thing: those with exactly one."""
    return [label for label, n in counts.items() if n == 1]


def spoken_m(distance_m: float) -> float | None:
    """Round a distance to a decimetre as the answers are; None where it is too short to be asked."""
    rounded = round(distance_m, 1)
    return rounded if rounded >= LEAST_M else None


def candidates(scene: VsiScene, distance_m: Callable[[int, int], float]) -> Counter[str]:
    """Count the questions that the rules allow about one scene.

    Args:
        scene: Of a meta_info file.
        distance_m: Of two objects' closest points, by their places in ``scene.objects``.
    """
    boxes = Counter(item.category for item in scene.objects)
    # A few classes that are counted once have more boxes, or none.
    named = [label for label in alone(scene.counts) if boxes[label] == 1]
    places = [k for k, item in enumerate(scene.objects) if item.category in named]
    return Counter(
        room_size_estimation=1,
        object_counting=len(several(scene.counts)),
        object_size_estimation=len(named),
        object_abs_distance=sum(
            spoken_m(distance_m(i, j)) is not None for i, j in combinations(places, 2)
        ),
    )


def as_truth(scene: VsiScene) -> SceneTruth:
    """Return the boxes of a scene, to be measured; no camera, colours or floor are known of it."""
    return SceneTruth(
        scene_id=scene.scene_name,
        dataset=scene.dataset,
        objects=tuple(
            ObjectTruth(
                object_id=k,
                label=item.category,
                colour="",
                box=np.concatenate([(item.low + item.high) / 2, item.high - item.low]),
                centre=item.centre,
                size=item.lengths_m,
                axes=item.axes,
                visible_px=np.zeros(0, dtype=np.int64),
            )
            for k, item in enumerate(scene.objects)
        ),
        frames=(),
        poses=np.zeros((0, 4, 4)),
        image_px=(0, 0),
        intrinsics=np.eye(3),
        floor=None,
    )
