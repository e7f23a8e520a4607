"""Which objects the scores of a grounding head mean.

Scores are ``(n + 1,)``: one for each object, and last that of the zero target ("none of them").
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.special import softmax

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

TEMPERATURE = 0.07
MASS = 0.4


def select_one(scores: ArrayLike) -> int:
    """Return the best object, also where the zero target scores higher (ScanRefer).

    Raises:
        ValueError: There is no object.
    """
    of_objects = np.asarray(scores, dtype=np.float32)[:-1]
    if not len(of_objects):
        raise ValueError("there are no objects to choose from; give at least one box")
    return int(of_objects.argmax())


def select_many(scores: ArrayLike, *, mass: float = MASS) -> list[int]:
    """Return the objects that are meant, best first (Multi3DRefer; the rule of Video-3D-LLM).

    None where the zero target scores highest. Else the softmax at temperature 0.07 over all scores,
    zero target included and not renormalised, is summed from the top until ``mass`` is reached.
    """
    given = np.asarray(scores, dtype=np.float32)
    if int(given.argmax()) == len(given) - 1:
        return []
    share = softmax(given / np.float32(TEMPERATURE))[:-1]
    ranked = np.argsort(-share, kind="stable")
    # Without an object that reaches the mass, all of them are meant.
    n_meant = int(np.searchsorted(np.cumsum(share[ranked]), mass)) + 1
    return ranked[:n_meant].tolist()
