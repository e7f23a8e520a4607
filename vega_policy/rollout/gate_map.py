"""The gate drawn over the camera images.

Shape legend: ``t`` inferences, ``v`` cameras, ``h, w`` token grid, ``H, W`` image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vega_policy.spec.files import atomic_path

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

# Dark is low (the prior speaks), bright is high (the semantic stream speaks); lightness rises
# evenly, so the map survives a grey print and red-green blindness.
_ANCHORS = np.array(
    [[36, 18, 84], [56, 64, 148], [36, 118, 160], [40, 168, 134], [148, 208, 80], [252, 236, 112]],
    dtype=np.float64,
)


@dataclass(frozen=True, eq=False, kw_only=True)
class GateTrace:
    """The gate of one episode, with the images of one moment to draw it on."""

    cameras: tuple[str, ...]
    gates: NDArray[np.float32]
    """(t, v, h, w), weight of the semantic stream in [0, 1]."""
    images: NDArray[np.uint8]
    """(v, H, W, 3) what the policy saw at inference ``moment``."""
    moment: int

    def save(self, path: Path) -> None:
        """Write an npz without pickle, atomically."""
        with atomic_path(path) as temporary:
            np.savez_compressed(
                temporary,
                cameras=np.array(self.cameras),
                gates=self.gates,
                images=self.images,
                moment=np.array(self.moment),
            )

    @classmethod
    def load(cls, path: Path) -> GateTrace:
        """Read a trace back."""
        with np.load(path, allow_pickle=False) as stored:
            return cls(
                cameras=tuple(str(name) for name in stored["cameras"]),
                gates=stored["gates"],
                images=stored["images"],
                moment=int(stored["moment"]),
            )

    @classmethod
    def of(
        cls,
        gates: Sequence[Mapping[str, NDArray[np.float32]]],
        images: Sequence[Mapping[str, NDArray[np.uint8]]],
    ) -> GateTrace | None:
        """Gather the gates of an episode; None where the policy has none.

        The moment kept for the still is the one a third into the episode: the hand is near the
        object by then, and has not covered it yet.
        """
        if not gates:
            return None
        cameras = tuple(gates[0])
        moment = len(gates) // 3
        return cls(
            cameras=cameras,
            gates=np.stack([[g[c] for c in cameras] for g in gates]).astype(np.float32),
            images=np.stack([images[moment][c] for c in cameras]),
            moment=moment,
        )


def colours(values: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Map numbers in [0, 1] of any shape to RGB; adds an axis of 3."""
    position = np.clip(np.nan_to_num(values), 0.0, 1.0) * (len(_ANCHORS) - 1)
    low = np.minimum(position.astype(int), len(_ANCHORS) - 2)
    share = (position - low)[..., None]
    return np.rint(_ANCHORS[low] * (1 - share) + _ANCHORS[low + 1] * share).astype(np.uint8)


def scaled(values: NDArray[np.floating[Any]], low: float, high: float) -> NDArray[np.float64]:
    """Map [low, high] to [0, 1]; a constant map becomes 0.5 everywhere."""
    if high - low < 1e-6:
        return np.full(values.shape, 0.5)
    return (np.asarray(values, dtype=np.float64) - low) / (high - low)


def overlay(
    image: NDArray[np.uint8], gate: NDArray[np.floating[Any]], *, low: float, high: float
) -> NDArray[np.uint8]:
    """Draw a gate map over a greyed camera image, one square per token, nothing smoothed.

    Args:
        image: (H, W, 3).
        gate: (h, w).
        low: Gate value of the darkest colour.
        high: Gate value of the brightest colour.

    Returns:
        (H, W, 3) uint8.
    """
    tint = enlarged(colours(scaled(gate, low, high)), image.shape[0], image.shape[1])
    grey = (image @ np.array([0.299, 0.587, 0.114]))[..., None]
    return np.rint(0.45 * tint + 0.55 * grey).astype(np.uint8)


def enlarged(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Resize (H, W, 3) to the given size by repeating pixels."""
    rows = np.arange(height) * image.shape[0] // height
    columns = np.arange(width) * image.shape[1] // width
    return image[rows][:, columns]
