"""What a policy sees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

AGENTVIEW = "agentview"
"""The third-person camera."""
WRIST = "wrist"
"""The camera on the hand."""
CAMERAS = (AGENTVIEW, WRIST)
"""Camera order everywhere: third person first."""


@dataclass(frozen=True, eq=False)
class Observation:
    """One moment of one robot."""

    images: Mapping[str, NDArray[np.uint8]]
    """Per camera (h, w, 3) RGB, upright: LIBERO's renders are already rotated by 180 degrees."""
    proprio: NDArray[np.float32]
    """(8,): end-effector position in metres (3), axis-angle in radians, angle in [0, 2 pi] (3),
    gripper finger positions in metres (2)."""
    instruction: str
    """The task in words, as the benchmark writes it."""
    episode: int | None = None
    """Names the episode this moment belongs to, so that a policy may keep something between its
    inferences (a prior with a cadence does); None: every observation stands alone."""
    inference: int = 0
    """How many inferences the episode had before this one."""
